"""Chains of casts: an inner cast goes where it keeps every value."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes
from onnxopt.ir import DataType
from onnxopt.passes.simplify_casts import holds_every

PASS = "simplify_casts"
RNG = np.random.default_rng(0)
NUMPY = {
    DataType.BOOL: np.bool_,
    DataType.INT8: np.int8,
    DataType.INT16: np.int16,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
    DataType.UINT8: np.uint8,
    DataType.UINT16: np.uint16,
    DataType.UINT32: np.uint32,
    DataType.UINT64: np.uint64,
    DataType.FLOAT16: np.float16,
    DataType.FLOAT: np.float32,
    DataType.DOUBLE: np.float64,
}
TEXT = {DataType.FLOAT: "float", DataType.DOUBLE: "double"}
LOSSLESS = [pair for pair in itertools.permutations(NUMPY, 2) if holds_every(pair[1], pair[0])]
LOSSY = [pair for pair in itertools.permutations(NUMPY, 2) if not holds_every(pair[1], pair[0])]


def chain(source: DataType, *targets: DataType, outputs: str = "y", opset: int = 17) -> onnx.ModelProto:
    names = ["x", *(f"a{index}" for index in range(len(targets) - 1)), "y"]
    casts = [f"{names[i + 1]} = Cast<to={target.value}>({names[i]})" for i, target in enumerate(targets)]
    text = TEXT.get(source, source.name.lower())
    return model(f"g ({text}[3,5] x) => ({outputs}) {{ " + "\n".join(casts) + " }", opset=opset)


def extremes(dtype: DataType) -> np.ndarray:
    kind = np.dtype(NUMPY[dtype])
    if kind.kind == "b":
        return RNG.integers(0, 2, (3, 5)).astype(kind)
    if kind.kind == "f":
        return RNG.uniform(-100, 100, (3, 5)).astype(kind)
    limits = np.iinfo(kind)
    x = RNG.integers(limits.min, limits.max, (3, 5), dtype=kind, endpoint=True)
    x[0, :3] = limits.min, limits.max, 0
    return x


@pytest.mark.parametrize(("narrow", "wide"), LOSSLESS, ids=lambda dtype: dtype.name)
def test_every_number_survives_a_lossless_cast(narrow: DataType, wide: DataType) -> None:
    if np.dtype(NUMPY[narrow]).itemsize <= 2:
        bits = np.arange(1 << 8 * np.dtype(NUMPY[narrow]).itemsize)
        unsigned = np.uint8 if np.dtype(NUMPY[narrow]).itemsize == 1 else np.uint16
        numbers = bits[:2].astype(bool) if narrow is DataType.BOOL else bits.astype(unsigned).view(NUMPY[narrow])
    else:
        numbers = extremes(narrow)
    back = numbers.astype(NUMPY[wide]).astype(NUMPY[narrow])
    np.testing.assert_array_equal(back, numbers)


@pytest.mark.parametrize(("narrow", "wide"), LOSSLESS, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("target", [DataType.FLOAT, DataType.INT64, DataType.BOOL], ids=lambda dtype: dtype.name)
def test_merges_what_loses_nothing(narrow: DataType, wide: DataType, target: DataType) -> None:
    before = chain(narrow, wide, target)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Cast"]
    assert_same(before, after, {"x": extremes(narrow)}, rtol=0, atol=0)


@pytest.mark.parametrize(("source", "middle"), LOSSY, ids=lambda dtype: dtype.name)
def test_refuses_what_may_lose(source: DataType, middle: DataType) -> None:
    after, _ = run_passes(chain(source, middle, DataType.FLOAT), PASS)
    assert op_list(after) == ["Cast", "Cast"]


@pytest.mark.parametrize("target", [DataType.FLOAT16, DataType.DOUBLE, DataType.BOOL], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("source", [DataType.FLOAT16, DataType.FLOAT], ids=lambda dtype: dtype.name)
def test_what_is_not_finite(source: DataType, target: DataType) -> None:
    middle = DataType.FLOAT if source is DataType.FLOAT16 else DataType.DOUBLE
    before = chain(source, middle, target)
    after, _ = run_passes(before, PASS)
    x = extremes(source)
    x[0, :4] = np.nan, np.inf, -np.inf, -0.0
    x[1, 0] = np.finfo(NUMPY[source]).max
    assert_same(before, after, {"x": x}, rtol=0, atol=0)


def test_long_chains_become_one() -> None:
    before = chain(DataType.UINT8, DataType.INT16, DataType.INT32, DataType.DOUBLE, DataType.INT64, DataType.FLOAT)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Cast"]
    assert_same(before, after, {"x": extremes(DataType.UINT8)}, rtol=0, atol=0)


def test_there_and_back_is_nothing() -> None:
    before = chain(DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT)
    after, _ = run_passes(before, PASS, "eliminate_noops")
    assert op_list(after) == ["Identity"]


def test_an_inner_cast_that_others_use_stays() -> None:
    before = chain(DataType.FLOAT16, DataType.FLOAT, DataType.DOUBLE, outputs="y, a0")
    after, _ = run_passes(before, PASS)
    assert [node.input[0] for node in after.graph.node] == ["x", "x"]
    assert_same(before, after, {"x": extremes(DataType.FLOAT16)}, rtol=0, atol=0)


def test_refuses_strings() -> None:
    after, _ = run_passes(chain(DataType.FLOAT, DataType.DOUBLE, DataType.STRING), PASS)
    assert op_list(after) == ["Cast", "Cast"]
    after, _ = run_passes(chain(DataType.STRING, DataType.FLOAT, DataType.DOUBLE), PASS)
    assert op_list(after) == ["Cast", "Cast"]


@pytest.mark.parametrize("middle", ["BFLOAT16", "FLOAT8E4M3FN"])
def test_refuses_narrow_floats(middle: str) -> None:
    after, _ = run_passes(chain(DataType.FLOAT16, DataType[middle], DataType.FLOAT, opset=19), PASS)
    assert op_list(after) == ["Cast", "Cast"]


def test_keeps_attributes_of_the_outer_cast() -> None:
    before = chain(DataType.FLOAT16, DataType.FLOAT, DataType.FLOAT8E4M3FN, opset=19)
    before.graph.node[1].attribute.add(name="saturate", type=onnx.AttributeProto.INT, i=0)
    after, _ = run_passes(before, PASS)
    assert {one.name: one.i for one in after.graph.node[0].attribute} == {"to": DataType.FLOAT8E4M3FN, "saturate": 0}


def test_inside_a_branch() -> None:
    body = "then_branch = a () => (double[3] t) { b = Cast<to=1>(x) t = Cast<to=11>(b) }"
    body += ", else_branch = c () => (double[3] e) { e = Cast<to=11>(x) }"
    before = model(f"g (float16[3] x, bool flag) => (double[3] y) {{ y = If(flag) <{body}> }}")
    after, _ = run_passes(before, PASS)
    assert [len(one.g.node) for one in after.graph.node[0].attribute] == [1, 1]
    feeds = {"x": np.array([np.inf, 1, np.nan], np.float16), "flag": np.array(True)}
    assert_same(before, after, feeds, rtol=0, atol=0)
