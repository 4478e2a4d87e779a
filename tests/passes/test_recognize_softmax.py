"""Softmax written out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "recognize_softmax"
RNG = np.random.default_rng(0)


def written_out(
    axis: int, *, sum_axis: int | None = None, opset: int = 18, shift: str = "s = Sub(x, m)"
) -> onnx.ModelProto:
    body = f"m = ReduceMax(x, a)\n {shift}\n e = Exp(s)\n t = ReduceSum(e, b)\n y = Div(e, t)"
    axes = {"a": np.array([axis]), "b": np.array([axis if sum_axis is None else sum_axis])}
    if opset < 13:
        body = body.replace("ReduceMax(x, a)", f"ReduceMax<axes=[{axis}]>(x)")
        body = body.replace("ReduceSum(e, b)", f"ReduceSum<axes=[{axis}]>(e)")
        axes = {}
    return model(f"g (float[2,3,4] x) => (y) {{ {body} }}", opset=opset, **axes)


def feeds() -> list[dict[str, np.ndarray]]:
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32) * 10
    wild = x.copy()
    wild[0, 0, 0], wild[1, 1, 1], wild[1, 2, 3], wild[0, 2, :3] = np.inf, np.nan, -np.inf, -np.inf
    return [{"x": x}, {"x": wild}, {"x": x * 100}]


@pytest.mark.parametrize(("axis", "opset"), [(-1, 18), (2, 18), (0, 18), (1, 18), (-1, 11)])
def test_becomes_softmax(axis: int, opset: int) -> None:
    before = written_out(axis, opset=opset)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Softmax"]
    assert_same(before, after, feeds())


@pytest.mark.parametrize(
    "before",
    [
        written_out(1, sum_axis=2),
        written_out(1, opset=11),
        written_out(1, shift="s = Sub(m, x)"),
        written_out(1, shift="s = Add(x, m)"),
    ],
    ids=["other axis", "old Softmax", "negated", "added"],
)
def test_refuses(before: onnx.ModelProto) -> None:
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("m = ReduceMax<keepdims=0>(x, a)\n s = Sub(x, m)\n e = Exp(s)\n t = ReduceSum(e, a)\n y = Div(e, t)", "y"),
        ("m = ReduceMax(x, a)\n s = Sub(x, m)\n e = Exp(s)\n t = ReduceSum<keepdims=0>(e, a)\n y = Div(e, t)", "y"),
        ("m = ReduceMax(x, both)\n s = Sub(x, m)\n e = Exp(s)\n t = ReduceSum(e, both)\n y = Div(e, t)", "y"),
        ("m = ReduceMax(x)\n s = Sub(x, m)\n e = Exp(s)\n t = ReduceSum(e)\n y = Div(e, t)", "y"),
        ("m = ReduceMin(x, a)\n s = Sub(x, m)\n e = Exp(s)\n t = ReduceSum(e, a)\n y = Div(e, t)", "y"),
        ("m = ReduceMax(x, a)\n s = Sub(x, m)\n e = Exp(s)\n t = ReduceMean(e, a)\n y = Div(e, t)", "y"),
        ("m = ReduceMax(x, a)\n s = Sub(x, m)\n e = Exp(s)\n t = ReduceSum(e, a)\n y = Div(t, e)", "y"),
        ("m = ReduceMax(x, a)\n s = Sub(x, m)\n e = Exp(s)\n t = ReduceSum(s, a)\n y = Div(e, t)", "y"),
        ("e = Exp(x)\n t = ReduceSum(e, a)\n y = Div(e, t)", "y"),
        ("m = ReduceMax(x, a)\n s = Sub(x, m)\n e = Exp(s)\n t = ReduceSum(e, a)\n y = Div(e, t)", "y, e"),
        ("m = ReduceMax(x, a)\n s = Sub(x, m)\n e = Exp(s)\n t = ReduceSum(e, a)\n y = Div(e, t)\n z = Log(t)", "y, z"),
    ],
    ids=[
        "dropped dim of the largest",
        "dropped dim of the sum",
        "two axes",
        "all axes",
        "smallest",
        "mean",
        "upside down",
        "another sum",
        "without the largest",
        "powers are an output",
        "sum is used elsewhere",
    ],
)
def test_refuses_other_formulas(body: str, outputs: str) -> None:
    axes = {"a": np.array([1]), "both": np.array([1, 2])}
    used = {name: axis for name, axis in axes.items() if f", {name})" in body}
    before = model(f"g (float[3,3,3] x) => ({outputs}) {{ {body} }}", opset=18, **used)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)
    assert_same(before, after, {"x": RNG.standard_normal((3, 3, 3)).astype(np.float32)})


@pytest.mark.parametrize("dtype", ["float", "float16", "double"])
@pytest.mark.parametrize(("declared", "shape"), [("N,M,4", (5, 7, 4)), ("N,M,K", (1, 3, 1)), ("N,M,4", (0, 2, 4))])
def test_types_and_shapes(dtype: str, declared: str, shape: tuple[int, ...]) -> None:
    before = written_out(-1)
    info = onnx.parser.parse_graph(f"g ({dtype}[{declared}] x) => (y) {{ y = Neg(x) }}").input[0]
    before.graph.input[0].CopyFrom(info)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Softmax"]
    kind = {"float": np.float32, "float16": np.float16, "double": np.float64}[dtype]
    tolerance = 1e-2 if dtype == "float16" else 1e-5
    assert_same(before, after, {"x": RNG.standard_normal(shape).astype(kind)}, rtol=tolerance, atol=tolerance)


def test_inside_a_branch() -> None:
    body = "m = ReduceMax(x, a) s = Sub(x, m) e = Exp(s) t = ReduceSum(e, a) y = Div(e, t)"
    branches = (
        f"then_branch = p () => (float[2,3] y) {{ {body} }}, else_branch = q () => (float[2,3] z) {{ z = Neg(x) }}"
    )
    before = model(f"g (float[2,3] x, bool f) => (o) {{ o = If(f) <{branches}> }}", opset=18, a=np.array([1]))
    after, _ = run_passes(before, PASS)
    assert [node.op_type for node in after.graph.node[0].attribute[0].g.node] == ["Softmax"]
    assert_same(before, after, {"x": RNG.standard_normal((2, 3)).astype(np.float32), "f": np.array(True)})
