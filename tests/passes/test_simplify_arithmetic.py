"""Chains of constants, and cheaper ops for costly ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, evaluate, model, op_list, run_passes
from onnxopt import ir
from onnxopt.passes.base import Options
from onnxopt.pipeline import PassManager

PASS = "simplify_arithmetic"
RNG = np.random.default_rng(0)


def arithmetic(body: str, *, shape: str = "2,3,4", dtype: str = "float", **weights: np.ndarray) -> onnx.ModelProto:
    return model(f"g ({dtype}[{shape}] x) => (y) {{ {body} }}", opset=18, **weights)


def scalar(number: float) -> np.ndarray:
    return np.array(number, np.float32)


def inputs(shape: tuple[int, ...] = (2, 3, 4)) -> list[dict[str, np.ndarray]]:
    x = RNG.standard_normal(shape).astype(np.float32)
    wild = x.copy()
    wild.reshape(-1)[:6] = np.inf, -np.inf, np.nan, -0.0, 0.0, 1e-30
    return [{"x": x}, {"x": wild}]


ROW, COLUMN = np.float32([1, 2, -3, 4]), np.float32([[1], [2], [3]])


@pytest.mark.parametrize("outer", ["Add(t, d)", "Add(d, t)", "Sub(t, d)", "Sub(d, t)"])
@pytest.mark.parametrize("inner", ["Add(x, c)", "Sub(x, c)", "Sub(c, x)"])
@pytest.mark.parametrize(
    ("c", "d"), [(scalar(1.5), scalar(3)), (ROW, scalar(0.25)), (COLUMN, ROW), (scalar(3), scalar(-3))]
)
def test_merges_shifts(inner: str, outer: str, c: np.ndarray, d: np.ndarray) -> None:
    before = arithmetic(f"t = {inner}\n y = {outer}", c=c, d=d)
    after, _ = run_passes(before, PASS)
    assert len(after.graph.node) == 1
    assert_same(before, after, inputs(), atol=1e-5)


@pytest.mark.parametrize("outer", ["Mul(t, d)", "Div(t, d)", "Div(d, t)"])
@pytest.mark.parametrize("inner", ["Mul(x, c)", "Div(x, c)", "Div(c, x)"])
@pytest.mark.parametrize(("c", "d"), [(scalar(1.5), scalar(3)), (ROW, scalar(0.3)), (COLUMN, ROW)])
def test_merges_scales(inner: str, outer: str, c: np.ndarray, d: np.ndarray) -> None:
    before = arithmetic(f"t = {inner}\n y = {outer}", c=c, d=d)
    after, _ = run_passes(before, PASS)
    assert len(after.graph.node) == 1
    assert_same(before, after, inputs())


def test_merges_longer_chains() -> None:
    before = arithmetic("a = Add(x, c)\n b = Sub(a, d)\n e = Sub(c, b)\n y = Add(d, e)", c=scalar(1.5), d=ROW)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Sub"]
    assert_same(before, after, inputs(), atol=1e-5)


@pytest.mark.parametrize(
    ("body", "c", "d", "left"),
    [
        ("t = Add(x, c)\n y = Sub(t, d)", 200, 100, ["Add"]),
        ("t = Sub(c, x)\n y = Sub(d, t)", 200, 100, ["Add"]),
        ("t = Mul(x, c)\n y = Mul(t, d)", 100, 100, ["Mul"]),
        ("t = Mul(x, c)\n y = Div(t, d)", 3, 3, ["Mul", "Div"]),
        ("t = Div(x, c)\n y = Div(t, d)", 3, 5, ["Div", "Div"]),
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_integers_wrap(body: str, c: int, d: int, left: list[str], kind: type) -> None:
    text = arithmetic(body, dtype=np.dtype(kind).name, c=np.array(c, kind), d=np.array(d, kind))
    after, _ = run_passes(text, PASS)
    assert op_list(after) == left
    if kind is np.uint8 and "Mul" in left:
        return  # onnxruntime has no such kernel
    x = RNG.integers(np.iinfo(kind).min, np.iinfo(kind).max, (2, 3, 4), kind, endpoint=True)
    assert_same(text, after, {"x": x})


@pytest.mark.parametrize(
    ("body", "c", "d"),
    [
        ("t = Add(x, c)\n y = Sub(t, d)", scalar(1.5 * 2**23), scalar(1.5 * 2**23)),
        ("t = Add(x, c)\n y = Add(t, d)", scalar(3e38), scalar(3e38)),
        ("t = Add(x, c)\n y = Add(t, d)", scalar(np.inf), scalar(1)),
        ("t = Mul(x, c)\n y = Mul(t, d)", scalar(1e30), scalar(1e30)),
        ("t = Mul(x, c)\n y = Mul(t, d)", scalar(1e-30), scalar(1e-30)),
        ("t = Mul(x, c)\n y = Mul(t, d)", scalar(0), scalar(3)),
        ("t = Div(x, c)\n y = Mul(t, d)", scalar(0), scalar(3)),
        ("t = Mul(x, c)\n y = Mul(t, d)", scalar(np.nan), scalar(3)),
        ("t = Add(x, c)\n y = Add(t, d)", np.ones((1, 1, 1, 200), np.float32), np.ones((200, 1, 1, 1), np.float32)),
        ("t = Add(x, c)\n y = Mul(t, d)", scalar(2), scalar(3)),
    ],
    ids=[
        "rounding",
        "sum overflows",
        "infinity",
        "overflow",
        "underflow",
        "zero",
        "divisor zero",
        "nan",
        "size",
        "mixed",
    ],
)
def test_refuses_chains(body: str, c: np.ndarray, d: np.ndarray) -> None:
    before = arithmetic(body, shape="2,3,1,1" if c.ndim == 4 else "2,3,4", c=c, d=d)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


@pytest.mark.parametrize("ending", ["z = Neg(t)", ""])
def test_refuses_what_others_see(ending: str) -> None:
    outputs = "y, z" if ending else "y, t"
    text = f"g (float[2,3,4] x) => ({outputs}) {{ t = Add(x, c)\n y = Add(t, c)\n {ending} }}"
    after, report = run_passes(model(text, c=scalar(1)), PASS, explain=True)
    assert op_list(after).count("Add") == 2
    assert any("used by others" in str(miss.refusal) for miss in report.near_misses)


def test_default_of_an_input_is_no_constant() -> None:
    text = "g (float[2,3,4] x, float c = {2}) => (y) { t = Mul(x, c)\n y = Mul(t, d) }"
    after, _ = run_passes(model(text, d=scalar(3)), PASS)
    assert op_list(after) == ["Mul", "Mul"]


@pytest.mark.parametrize(("divisor", "op_type"), [(8.0, "Mul"), (-0.25, "Mul"), (3.0, "Div"), (2.0**127, "Div")])
def test_divides_exactly(divisor: float, op_type: str) -> None:
    before = arithmetic("y = Div(x, c)", c=scalar(divisor))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == [op_type]
    assert_same(before, after, inputs(), rtol=0, atol=0)


def test_divides_by_a_vector_of_powers_of_two() -> None:
    before = arithmetic("y = Div(x, c)", c=np.float32([1, 2, 0.5, -64]))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Mul"]
    assert_same(before, after, inputs(), rtol=0, atol=0)


def test_divides_by_reciprocals_with_fast_math() -> None:
    before = arithmetic("y = Div(x, c)", c=scalar(3))
    loaded = ir.load(before)
    PassManager("generic", [PASS], options=Options(fast_math=True), strict=True).run(loaded)
    after = ir.to_proto(loaded)
    assert op_list(after) == ["Mul"]
    assert_same(before, after, inputs())


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = Div(c, x)", ["Reciprocal"]),
        ("t = Div(c, x)\n y = Mul(x, t)", ["Div"]),
        ("t = Reciprocal(x)\n y = Mul(t, d)", ["Div"]),
        ("t = Reciprocal(x)\n y = Div(d, t)", ["Mul"]),
        ("t = Div(d, x)\n y = Reciprocal(t)", ["Div"]),
        ("y = Pow(x, two)", ["Mul"]),
        ("y = Pow(x, e)", ["Reciprocal"]),
        ("a = Abs(x)\n y = Pow(a, h)", ["Abs", "Sqrt"]),
        ("a = Mul(x, x)\n m = ReduceMean(a)\n s = Add(m, c)\n y = Pow(s, h)", ["Mul", "ReduceMean", "Add", "Sqrt"]),
        ("a = Neg(x)\n y = Add(a, d)", ["Sub"]),
        ("a = Neg(x)\n y = Sub(d, a)", ["Add"]),
        ("a = Neg(x)\n y = Mul(d, a)", ["Mul"]),
        ("a = Div(x, three)\n y = Neg(a)", ["Div"]),
    ],
)
def test_cheaper_ops(body: str, left: list[str]) -> None:
    numbers = {"c": scalar(1), "two": scalar(2), "three": scalar(3), "h": scalar(0.5), "e": scalar(-1)}
    before = arithmetic(
        body, d=ROW, **{name: value for name, value in numbers.items() if f"{name})" in body or f"{name}," in body}
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == left
    assert_same(before, after, inputs()[:1] if "Reduce" in body else inputs())


@pytest.mark.parametrize(
    "body",
    ["y = Pow(x, h)", "y = Pow(x, near)", "y = Pow(x, vector)", "y = Pow(c, x)", "y = Div(near, x)"],
    ids=["negative base", "nearly two", "broadcasting", "constant base", "nearly one"],
)
def test_refuses_cheaper_ops(body: str) -> None:
    constants = {
        "h": scalar(0.5),
        "near": scalar(2.0001),
        "vector": np.full((5, 1, 1, 1), 2, np.float32),
        "c": scalar(2),
    }
    if "near, x" in body:
        constants["near"] = scalar(1.00001)
    before = arithmetic(body, **constants)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


def test_keeps_a_reciprocal_of_few_elements_where_time_counts() -> None:
    text = "g (float[2,3,4] x, float[2,3,1] v) => (y) { r = Reciprocal(v)\n y = Mul(x, r) }"
    assert op_list(run_passes(model(text), PASS, target="cpu")[0]) == ["Reciprocal", "Mul"]
    assert op_list(run_passes(model(text), PASS, target="generic")[0]) == ["Div"]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("t = Relu(x)\n y = Min(t, b)", ["Clip"]),
        ("t = Max(x, a)\n y = Min(b, t)", ["Clip"]),
        ("t = Min(x, a)\n y = Max(t, b)", ["Clip"]),
        ("t = Clip(x, a, b)\n y = Relu(t)", ["Clip"]),
        ("t = Clip(x, a, b)\n y = Clip(t, b, c)", ["Clip"]),
        ("t = Clip(x, b, a)\n y = Clip(t, a, c)", ["Clip"]),
        ("t = Max(x, a)\n y = Max(b, t)", ["Max"]),
        ("t = Max(a, x)\n y = Relu(t)", ["Relu"]),
        ("t = Min(x, b)\n y = Min(t, c)", ["Min"]),
        ("t = Clip(x, a)\n y = Min(t, b)", ["Clip"]),
        ("t = Clip(x, , b)\n y = Max(t, a)", ["Clip"]),
    ],
)
def test_merges_bounds(body: str, left: list[str]) -> None:
    before = arithmetic(body, a=scalar(-0.5), b=scalar(0.5), c=scalar(1))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == left
    assert_same(before, after, inputs(), rtol=0, atol=0)


def test_merges_bounds_in_attributes() -> None:
    before = model("g (float[2,3,4] x) => (y) { t = Relu(x)\n y = Clip<min=-1.0, max=0.5>(t) }", opset=10)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Clip"]
    assert_same(before, after, inputs(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "body", ["t = Max(x, v)\n y = Min(t, b)", "t = Max(x, n)\n y = Min(t, b)", "t = Max(x, x2)\n y = Min(t, b)"]
)
def test_refuses_bounds(body: str) -> None:
    text = f"g (float[2,3,4] x, float[2,3,4] x2) => (y) {{ {body} }}"
    before = model(text, v=ROW, b=scalar(0.5), n=scalar(np.nan))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


@pytest.mark.parametrize("scales", [("Mul(x, s)", "Mul(t, r)"), ("Div(x, s)", "Mul(r, t)"), ("Mul(s, x)", "Div(t, r)")])
def test_one_scale_around_a_product(scales: tuple[str, str]) -> None:
    text = f"g (float[2,3,4] x, float[2,4,5] t) => (y) {{ a = {scales[0]}\n b = {scales[1]}\n y = MatMul(a, b) }}"
    before = model(text, s=scalar(0.35), r=scalar(0.7))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Mul", "MatMul"]
    assert after.graph.node[0].input[0] == "x"
    assert_same(before, after, inputs()[0] | {"t": RNG.standard_normal((2, 4, 5)).astype(np.float32)})


@pytest.mark.parametrize("scale", [scalar(1e-20), ROW, np.float32([[[2]]])], ids=["range", "vector", "rank"])
def test_refuses_scales_of_a_product(scale: np.ndarray) -> None:
    text = "g (float[2,3,4] x, float[2,4,4] t) => (y) { a = Mul(x, s)\n b = Mul(t, s)\n y = MatMul(a, b) }"
    before = model(text, s=scale)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


def test_half_precision_keeps_its_range() -> None:
    text = "g (float16[2,3] x) => (y) { t = Mul(x, c)\n y = Mul(t, c) }"
    before = model(text, c=np.array(300, np.float16))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Mul", "Mul"]
    x = {"x": RNG.standard_normal((2, 3)).astype(np.float16)}
    assert np.array_equal(evaluate(before, x)[0], evaluate(after, x)[0])
