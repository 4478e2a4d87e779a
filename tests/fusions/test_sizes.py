"""Tables of an unknown number of rows have a few; nothing else is guessed."""

from __future__ import annotations

import pytest

from helpers import model
from onnxopt import ir
from onnxopt.fusions.sizes import UNKNOWN_ROWS, elements
from onnxopt.passes.base import Context
from onnxopt.runtime.target import Target


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("3,4", 12),
        ("0,4", 0),
        ("", None),
        ("N,4", UNKNOWN_ROWS * 4),
        ("N,0", 0),
        ("3,N", None),
        ("N,M", None),
        ("N", None),
        ("N,4,5", None),
    ],
)
def test_elements(shape: str, expected: int | None) -> None:
    proto = model(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Neg(x) }}")
    loaded = ir.load(proto)
    assert elements(loaded.graph.inputs[0], Context(loaded, target=Target.named("cpu"))) == expected


@pytest.mark.parametrize(("input_shape", "target"), [("N,4,1", "cpu"), ("N", "cpu"), ("N,M", "cpu"), ("N,4", "cuda")])
def test_guesses_for_models_of_tables_on_processors_alone(input_shape: str, target: str) -> None:
    proto = model(f"g (float[N,4] x, float[{input_shape}] z) => (float[N,4] y) {{ y = Neg(x) }}")
    loaded = ir.load(proto)
    assert elements(loaded.graph.inputs[0], Context(loaded, target=Target.named(target))) is None
