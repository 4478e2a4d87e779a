"""Equal initializers are stored once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, run_passes
from onnxopt.passes.deduplicate_initializers import SAMPLE_BYTES

PASS = "deduplicate_initializers"
RNG = np.random.default_rng(0)
FEED = {"x": RNG.standard_normal((3, 4)).astype(np.float32)}


def graph(body: str, *, outputs: str = "y", **weights: np.ndarray) -> onnx.ModelProto:
    return model(f"g (float[3,4] x) => ({outputs}) {{ {body} }}", **weights)


def names(proto: onnx.ModelProto) -> list[str]:
    return [one.name for one in proto.graph.initializer]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64, np.int8, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 4), (0, 4), (100, 3, 4)])
def test_equal_tensors_are_one(dtype: type, shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 2, shape).astype(dtype)
    casts = "a = Cast<to=1>(v)\n b = Cast<to=1>(w)\n"
    before = graph(f"{casts} c = Add(a, b)\n y = Add(x, c)", v=array, w=array.copy())
    after, _ = run_passes(before, PASS)
    assert names(after) == ["v"]
    if 0 not in shape:
        assert_same(before, after, FEED, rtol=0, atol=0)


@pytest.mark.parametrize("position", [0, 1, SAMPLE_BYTES, -1])
@pytest.mark.parametrize("size", [4 * SAMPLE_BYTES])
def test_large_tensors_that_differ_in_one_element(position: int, size: int) -> None:
    v = np.zeros(size, np.float32)
    w = v.copy()
    w[position] = 1
    before = graph(
        "a = Sub(v, w)\n b = ReduceMax<keepdims=0>(a)\n c = ReduceMin<keepdims=0>(a)\n d = Sub(b, c)\n y = Add(x, d)",
        v=v,
        w=w,
    )
    after, _ = run_passes(before, PASS)
    assert names(after) == ["v", "w"]
    assert_same(before, after, FEED, rtol=0, atol=0)


def test_three_of_a_kind() -> None:
    ones = np.ones(4, np.float32)
    before = graph("a = Add(x, u)\n b = Mul(a, v)\n y = Sub(b, w)", u=ones, v=ones, w=ones)
    after, report = run_passes(before, PASS)
    assert (names(after), report.records[0].patches) == (["u"], 2)
    assert_same(before, after, FEED, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("v", "w"),
    [
        (np.zeros(4, np.float32), -np.zeros(4, np.float32)),
        (np.ones(4, np.float32), np.ones((1, 4), np.float32)),
        (np.ones(4, np.float32), np.ones((4, 1), np.float32)[:3]),
        (np.zeros((4,), np.float32), np.zeros((3, 4), np.float32)),
    ],
    ids=["signs of zero", "rank", "axis", "size"],
)
def test_refuses_tensors_that_only_look_equal(v: np.ndarray, w: np.ndarray) -> None:
    before = graph("a = Div(x, v)\n b = Div(x, w)\n y = Sub(a, b)", v=v, w=w)
    after, _ = run_passes(before, PASS)
    assert names(after) == ["v", "w"]
    assert_same(before, after, FEED)


def test_refuses_other_types_of_the_same_bytes() -> None:
    before = graph(
        "a = Cast<to=1>(v)\n b = Cast<to=1>(w)\n c = Sub(a, b)\n y = Add(x, c)",
        v=np.array([0x3F800000] * 4, np.int32),
        w=np.ones(4, np.float32),
    )
    after, _ = run_passes(before, PASS)
    assert names(after) == ["v", "w"]
    assert_same(before, after, FEED)


def test_equal_payloads_of_nan_are_equal() -> None:
    nan = np.full(4, np.nan, np.float32)
    before = graph("a = Add(x, v)\n y = Add(a, w)", v=nan, w=nan.copy())
    after, _ = run_passes(before, PASS)
    assert names(after) == ["v"]
    assert_same(before, after, FEED)


@pytest.mark.parametrize("output", ["v", "w"])
def test_an_initializer_that_is_an_output_stays(output: str) -> None:
    ones = np.ones(4, np.float32)
    before = graph("a = Add(x, v)\n y = Mul(a, w)", outputs=f"y, {output}", v=ones, w=ones)
    after, _ = run_passes(before, PASS)
    assert names(after) == ["v", "w"]
    assert_same(before, after, FEED, rtol=0, atol=0)


@pytest.mark.parametrize("given", ["v", "w"])
def test_a_default_that_the_caller_may_override_stays(given: str) -> None:
    ones = np.ones(4, np.float32)
    before = graph("a = Add(x, v)\n y = Mul(a, w)", v=ones, w=ones)
    before.graph.input.append(onnx.helper.make_tensor_value_info(given, onnx.TensorProto.FLOAT, [4]))
    after, _ = run_passes(before, PASS)
    assert names(after) == ["v", "w"]
    assert_same(before, after, [FEED, {**FEED, given: np.full(4, 5, np.float32)}])


def test_what_a_branch_captures() -> None:
    branches = "then_branch = t () => (float[3,4] p) { p = Add(x, v) }"
    branches += ", else_branch = e () => (float[3,4] q) { q = Sub(x, w) }"
    ones = np.ones(4, np.float32)
    before = model(f"g (float[3,4] x, bool flag) => (y) {{ y = If(flag) <{branches}> }}", v=ones, w=ones)
    after, _ = run_passes(before, PASS)
    assert names(after) == ["v"]
    assert_same(before, after, [{**FEED, "flag": np.array(flag)} for flag in (True, False)])


def test_strings_stay() -> None:
    texts = np.array(["a", "b"], object)
    before = graph(
        "a = Equal(v, w)\n b = Cast<to=1>(a)\n c = ReduceMax<keepdims=0>(b)\n y = Add(x, c)", v=texts, w=texts
    )
    before.opset_import[0].version = 19
    assert names(run_passes(before, PASS)[0]) == ["v", "w"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4", "uint4"])
def test_types_that_numpy_lacks(dtype: str) -> None:
    kind = getattr(onnx.TensorProto, dtype.upper().replace("FLOAT8_", "FLOAT8"))
    before = graph(
        "a = Cast<to=1>(v)\n b = Cast<to=1>(w)\n c = Cast<to=1>(u)\n d = Add(a, b)\n e = Sub(d, c)\n y = Add(x, e)"
    )
    before.opset_import[0].version = 21
    before.ir_version = 10
    for name, numbers in {"v": [1, 2, 3, 4], "w": [1, 2, 3, 4], "u": [1, 2, 3, 5]}.items():
        before.graph.initializer.append(onnx.helper.make_tensor(name, kind, [4], numbers))
    after, _ = run_passes(before, PASS)
    assert names(after) == ["v", "u"]
    assert_same(before, after, FEED)
