"""Reductions whose dims are put back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "keep_reduced_dims"
RNG = np.random.default_rng(0)


def reduced(body: str, *, shape: str = "2,3,4", outputs: str = "y", opset: int = 18) -> onnx.ModelProto:
    constants: dict[str, list[int]] = {
        "last": [2],
        "middle": [1],
        "outer": [0, -1],
        "full": [2, 3, 1],
        "open": [-1, 3, 1],
    }
    used = {name: np.array(value) for name, value in constants.items() if name in body}
    used |= {"c": np.float32([1, 2, 3])} if " c)" in body else {}
    return model(f"g (float[{shape}] x) => ({outputs}) {{ {body} }}", opset=opset, **used)


def feeds() -> dict[str, np.ndarray]:
    return {"x": RNG.standard_normal((2, 3, 4)).astype(np.float32)}


@pytest.mark.parametrize(
    ("body", "shape", "opset"),
    [
        ("r = ReduceMax<keepdims=0>(x, last)\n v = Unsqueeze(r, last)\n y = Sub(x, v)", "2,3,4", 18),
        ("r = ReduceMax<keepdims=0, axes=[-1]>(x)\n v = Unsqueeze<axes=[2]>(r)\n y = Sub(x, v)", "2,3,4", 12),
        ("r = ReduceMean<keepdims=0>(x, outer)\n v = Unsqueeze(r, outer)\n y = Sub(x, v)", "N,M,4", 18),
        ("r = ReduceSum<keepdims=0>(x, last)\n v = Reshape(r, full)\n y = Sub(x, v)", "2,3,4", 18),
        ("r = ReduceSum<keepdims=0>(x, last)\n v = Reshape(r, open)\n y = Sub(x, v)", "N,3,M", 18),
        ("r = ReduceSum<keepdims=0>(x, last)\n t = Exp(r)\n v = Unsqueeze(t, last)\n y = Sub(x, v)", "2,3,4", 18),
        ("r = ReduceSum<keepdims=0>(x, last)\n t = Mul(r, c)\n v = Unsqueeze(t, last)\n y = Sub(x, v)", "2,3,4", 18),
        (
            "r = ReduceSum<keepdims=0>(x, middle)\n v = Unsqueeze(r, middle)\n w = Unsqueeze(r, middle)\n y = Sub(w, v)",
            "2,3,4",
            18,
        ),
    ],
    ids=["unsqueeze", "attributes", "two axes", "reshape", "open reshape", "unary", "constant", "two views"],
)
def test_keeps_dims(body: str, shape: str, opset: int) -> None:
    before = reduced(body, shape=shape, opset=opset)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert not {"Unsqueeze", "Reshape"} & set(op_list(after))
    assert_same(before, after, feeds())


def test_variance_of_two_reductions() -> None:
    body = """
        q = Mul(x, x)
        s = ReduceMean<keepdims=0>(x, last)
        t = ReduceMean<keepdims=0>(q, last)
        d = Mul(s, s)
        u = Sub(t, d)
        a = Unsqueeze(s, last)
        b = Unsqueeze(u, last)
        k = Sub(x, a)
        y = Div(k, b)"""
    before = reduced(body)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Mul", "ReduceMean", "ReduceMean", "Mul", "Sub", "Sub", "Div"]
    assert_same(before, after, feeds(), rtol=1e-4)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("r = ReduceSum<keepdims=0>(x, last)\n v = Unsqueeze(r, last)\n y = Sub(x, v)", "y, r"),
        ("r = ReduceSum<keepdims=0>(x, last)\n v = Unsqueeze(r, last)\n y = MatMul(r, v)", "y"),
        ("r = ReduceSum<keepdims=0>(x, last)\n v = Unsqueeze(r, middle)\n y = Mul(v, v)", "float[p,q,r] y"),
        ("r = ReduceSum<keepdims=0>(x, last)\n y = Exp(r)", "y"),
        ("r = ReduceSum(x, last)\n y = Unsqueeze(r, last)", "y"),
        (
            "r = ReduceSum<keepdims=0>(x, last)\n i = ArgMax<axis=2, keepdims=0>(x)\n o = Cast<to=1>(i)\n"
            "t = Add(r, o)\n y = Unsqueeze(t, last)",
            "y",
        ),
    ],
    ids=["an output", "used without dims", "another axis", "no view", "dims kept", "other operand"],
)
def test_refuses(body: str, outputs: str) -> None:
    before = reduced(body, outputs=outputs)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)
    assert_same(before, after, feeds())


@pytest.mark.parametrize("kind", ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"])
def test_every_reduction(kind: str) -> None:
    before = reduced(f"a = Abs(x)\n r = Reduce{kind}<keepdims=0>(a, last)\n v = Unsqueeze(r, last)\n y = Sub(x, v)")
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Abs", f"Reduce{kind}", "Sub"]
    assert_same(before, after, feeds())


@pytest.mark.parametrize("op", ["Clip(m, r)", "Clip(r, , m)", "PRelu(m, r)"])
def test_bounds_and_slopes_that_are_reduced_alike_stay_scalars(op: str) -> None:
    body = f"r = ReduceMax<keepdims=0>(x)\n m = ReduceMean<keepdims=0>(x)\n t = {op}\n v = Reshape(t, full)\n y = Add(x, v)"
    before = reduced(body)
    before.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([1, 1, 1]), "full"))
    for node in before.graph.node[:2]:
        node.input.append("all")
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 1, 2]), "all"))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert_same(before, after, feeds())


@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 1, 1), (5, 7, 4)])
def test_sizes(shape: tuple[int, ...]) -> None:
    before = reduced("r = ReduceSum<keepdims=0>(x, last)\n v = Unsqueeze(r, last)\n y = Sub(x, v)", shape="N,M,K")
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["ReduceSum", "Sub"]
    assert_same(before, after, {"x": RNG.standard_normal(shape).astype(np.float32)})


def test_all_axes_of_a_vector() -> None:
    before = model(
        "g (float[5] x) => (y) { r = ReduceMax<keepdims=0>(x, zero)\n v = Unsqueeze(r, zero)\n y = Sub(x, v) }",
        opset=18,
        zero=np.array([0]),
    )
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["ReduceMax", "Sub"]
    assert_same(before, after, {"x": np.array([1, np.nan, np.inf, -np.inf, 2], np.float32)})


def test_refuses_what_a_branch_captures() -> None:
    branches = (
        "then_branch = a () => (float[2,3] t) { t = Neg(r) }, else_branch = b () => (float[2,3] e) { e = Exp(r) }"
    )
    before = model(
        f"g (float[2,3,4] x, bool f) => (y, float[2,3] z) {{ r = ReduceSum<keepdims=0>(x, last)\n v = Unsqueeze(r, last)\n y = Sub(x, v)\n z = If(f) <{branches}> }}",
        opset=18,
        last=np.array([2]),
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)
    assert_same(before, after, {**feeds(), "f": np.array(True)})


def test_inside_a_branch() -> None:
    branches = "then_branch = a () => (float[2,3,4] t) { r = ReduceSum<keepdims=0>(x, last) v = Unsqueeze(r, last) t = Sub(x, v) }"
    branches += ", else_branch = b () => (float[2,3,4] e) { e = Exp(x) }"
    before = model(f"g (float[2,3,4] x, bool f) => (y) {{ y = If(f) <{branches}> }}", opset=18, last=np.array([2]))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert [node.op_type for node in after.graph.node[0].attribute[0].g.node] == ["ReduceSum", "Sub"]
    assert_same(before, after, {**feeds(), "f": np.array(True)})


def test_refuses_axes_that_the_caller_gives() -> None:
    body = "r = ReduceSum<keepdims=0>(x, a)\n v = Unsqueeze(r, last)\n y = Sub(x, v)"
    before = model(f"g (float[2,3,4] x, int64[1] a) => (float[2,3,4] y) {{ {body} }}", opset=18, last=np.array([2]))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)
    assert_same(before, after, {**feeds(), "a": np.array([2])})


def test_constants_that_vary_along_kept_dims() -> None:
    body = "r = ReduceSum<keepdims=0>(x, middle)\n t = Mul(r, m)\n v = Unsqueeze(t, middle)\n y = Sub(x, v)"
    before = model(
        f"g (float[2,3,4] x) => (y) {{ {body} }}",
        opset=18,
        middle=np.array([1]),
        m=RNG.standard_normal((2, 4)).astype(np.float32),
    )
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["ReduceSum", "Mul", "Sub"]
    assert_same(before, after, feeds())


def test_refuses_a_constant_of_higher_rank() -> None:
    body = "r = ReduceSum<keepdims=0>(x, last)\n t = Mul(r, m)\n v = Unsqueeze(t, last)\n y = Neg(v)"
    before = model(
        f"g (float[2,3,4] x) => (y) {{ {body} }}", opset=18, last=np.array([2]), m=np.ones((2, 1, 1), np.float32)
    )
    after, _ = run_passes(before, PASS)
    assert_same(before, after, feeds())
