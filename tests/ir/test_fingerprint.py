"""Fingerprints: equal however a model is stored, different where anything differs that a rewrite may see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import helpers
from onnxopt import ir

TEXT = """g (float[N, 64] x, bool c) => (float[N, 64] y) {
    a = MatMul (x, w) k = Constant <value = float[2] {1.0, 2.0}> ()
    y = If (c) <then_branch = t () => (float[N, 64] p) { p = Add (a, v) }, else_branch = e () => (float[N, 64] q) { q = Relu (a) }>
}"""


def model() -> onnx.ModelProto:
    return helpers.model(TEXT, w=np.ones((64, 64), np.float32), v=np.arange(64, dtype=np.float32))


def fingerprint(proto: onnx.ModelProto) -> str:
    return ir.fingerprint(ir.load(proto))


@pytest.mark.parametrize("external", ["inside", "external"])
def test_does_not_depend_on_how_a_model_is_stored(tmp_path: Path, external: str) -> None:
    ir.save(ir.load(model()), tmp_path / "m.onnx", external_data=external)
    assert ir.fingerprint(ir.load(tmp_path / "m.onnx")) == fingerprint(model())


def test_does_not_depend_on_doc_strings_and_metadata() -> None:
    other = model()
    other.doc_string = "text"
    other.metadata_props.add(key="author", value="me")
    assert fingerprint(other) == fingerprint(model())


def _branch(proto: onnx.ModelProto, index: int) -> onnx.GraphProto:
    return proto.graph.node[2].attribute[index].g


CHANGES: dict[str, Callable[[onnx.ModelProto], object]] = {
    "weight": lambda one: one.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.full((64, 64), 2, np.float32), "w")
    ),
    "type of a weight": lambda one: one.graph.initializer[1].CopyFrom(
        onnx.numpy_helper.from_array(np.arange(64, dtype=np.float64), "v")
    ),
    "constant": lambda one: one.graph.node[1].attribute[0].t.float_data.__setitem__(0, 3.0),
    "op": lambda one: setattr(one.graph.node[0], "op_type", "Gemm"),
    "op of a branch": lambda one: setattr(_branch(one, 1).node[0], "op_type", "Tanh"),
    "name of a node": lambda one: setattr(one.graph.node[0], "name", "other"),
    "opset": lambda one: setattr(one.opset_import[0], "version", 18),
    "size of a dim": lambda one: setattr(one.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 3),
}


@pytest.mark.parametrize("what", CHANGES)
def test_depends_on(what: str) -> None:
    other = model()
    CHANGES[what](other)
    assert fingerprint(other) != fingerprint(model())
