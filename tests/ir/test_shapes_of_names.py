"""Dims that are called by expressions over the names of inputs' dims."""

from __future__ import annotations

import onnx
import pytest

from helpers import model
from onnxopt import ir

CACHE = """g (float[N,2,past,8] old, float[N,2,rows,8] new, int64[N,MASK] mask) => (float[N,2,all,8] y) {
    y = Concat<axis = 2>(old, new) }"""


def shapes_of(proto: onnx.ModelProto, **fixed: int) -> tuple[ir.ShapeEnv, ir.Model]:
    loaded = ir.load(proto)
    env = ir.ShapeEnv(loaded, fixed)
    env.infer_model()
    return env, loaded


def with_name(name: str) -> onnx.ModelProto:
    proto = model(CACHE)
    proto.graph.input[2].type.tensor_type.shape.dim[1].dim_param = name
    return proto


@pytest.mark.parametrize("name", ["past + rows", "rows+past"])
def test_equals_what_is_computed(name: str) -> None:
    env, loaded = shapes_of(with_name(name))
    joined, mask = env.shape(loaded.graph.outputs[0]), env.shape(loaded.graph.inputs[2])
    assert joined is not None and mask is not None and joined[2] == mask[1]


def test_has_the_sizes_that_are_stated() -> None:
    env, loaded = shapes_of(with_name("past + rows"), past=3, rows=4)
    assert str(env.shape(loaded.graph.inputs[2])) == "(N, 7)"
    env, loaded = shapes_of(with_name("past + rows"), **{"past + rows": 9})
    assert str(env.shape(loaded.graph.inputs[2])) == "(N, 9)"


@pytest.mark.parametrize("name", ["past-length", "other + rows", "past rows"])
def test_other_names_are_names(name: str) -> None:
    env, loaded = shapes_of(with_name(name))
    shape = env.shape(loaded.graph.inputs[2])
    assert shape is not None and str(shape[1]) == name
