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
