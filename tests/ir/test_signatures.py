"""The table of signatures says what the schemas say, and spares asking them."""

from __future__ import annotations

import onnx
import pytest

import helpers
from onnxopt import ir
from onnxopt.ir import signatures

NAMES = sorted({schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain})


def test_table_is_that_of_the_schemas() -> None:
    opsets = range(-1, onnx.defs.onnx_opset_version() + 2)
    different = [
        (name, opset)
        for name in [*NAMES, "NoSuchOp"]
        for opset in opsets
        if signatures.signature(name, opset) != signatures.defined(name, opset)
    ]
    assert not different
    assert len(NAMES) > 180


def test_newer_opsets_than_the_table_knows_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    newest, lines = signatures._table()
    monkeypatch.setattr(signatures, "_table", lambda: (12, {}))
    signatures.signature.cache_clear()
    assert signatures.signature("Squeeze", 12) is None
    assert signatures.signature("Squeeze", 13) == signatures.defined("Squeeze", 13)
    signatures.signature.cache_clear()
    assert newest >= 13
    assert "Squeeze" in lines


def test_reading_a_model_makes_no_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = helpers.model("g (float[2, 3] x) => (float[3, 2] y) { a = Relu (x) y = Transpose <perm = [1, 0]> (a) }")
    signatures.signature.cache_clear()
    monkeypatch.delattr(onnx.defs, "get_schema")
    assert ir.load(proto).graph.num_nodes() == 2
