"""Transposes: merged, cancelled, and moved behind what stands between them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, ops, run_passes

PASS = "sink_transposes"
RNG = np.random.default_rng(0)
TO_LAST = "Transpose<perm=[0,2,3,1]>"
TO_FIRST = "Transpose<perm=[0,3,1,2]>"


def between(body: str, *, shape: str = "2,3,4,5", opset: int = 18, **weights: np.ndarray) -> onnx.ModelProto:
    """x, t = x with its channels last, what `body` makes u of t, and y = u with its channels first."""
    text = f"g (float[{shape}] x) => (y) {{ t = {TO_LAST}(x)\n {body}\n y = {TO_FIRST}(u) }}"
    return model(text, opset=opset, **weights)


def inputs(shape: tuple[int, ...] = (2, 3, 4, 5)) -> list[dict[str, np.ndarray]]:
    x = RNG.standard_normal(shape).astype(np.float32)
    wild = x.copy()
    wild.reshape(-1)[:4] = np.inf, -np.inf, np.nan, -0.0
    return [{"x": x}, {"x": wild}]


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = Transpose<perm=[0,1,2,3]>(x)", ["Identity"]),
        (f"t = {TO_LAST}(x)\n y = {TO_FIRST}(t)", ["Identity"]),
        (f"t = {TO_LAST}(x)\n y = {TO_LAST}(t)", ["Transpose"]),
        ("t = Transpose(x)\n y = Transpose(t)", ["Identity"]),
        ("t = Transpose(x)\n y = Transpose<perm=[3,2,1,0]>(t)", ["Identity"]),
    ],
    ids=["identity", "inverse", "chain", "no perm", "perm and none"],
)
def test_merges(body: str, left: list[str]) -> None:
    before = model(f"g (float[2,3,4,5] x) => (y) {{ {body} }}")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == left
    assert_same(before, after, inputs())


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("u = Relu(t)", {}),
        ("s = Sigmoid(t)\n u = Mul(t, s)", {}),
        ("a = Add(t, c)\n u = Mul(a, d)", {"c": np.float32([1, 2, 3]), "d": np.float32(2)}),
        ("u = Add(c, t)", {"c": RNG.standard_normal((4, 1, 3)).astype(np.float32)}),
        ("u = PRelu(t, c)", {"c": np.float32([0.5, 2, -1])}),
        ("u = Clip(t, c, d)", {"c": np.float32(-0.5), "d": np.float32(0.5)}),
        ("u = Where(c, t, d)", {"c": np.array([True, False, True]), "d": np.float32(7)}),
        ("u = Softmax(t)", {}),
        ("u = Softmax<axis=1>(t)", {}),
        ("u = Concat<axis=-1>(t, c)", {"c": np.ones((2, 4, 5, 1), np.float32)}),
        ("u = Concat<axis=1>(t, t)", {}),
        ("a, b = Split<axis=3>(t, n)\n u = Concat<axis=3>(b, a)", {"n": ints(1, 2)}),
        ("u = Slice(t, s, e, a)", {"s": ints(1, 0), "e": ints(3, 2), "a": ints(1, -1)}),
        ("u = Slice(t, s, e)", {"s": ints(0, 1, 2), "e": ints(1, 4, 4)}),
        ("u = Slice(t, s, e, a, p)", {"s": ints(-1), "e": ints(-9), "a": ints(2), "p": ints(-2)}),
        ("u = Pad(t, n)", {"n": ints(0, 1, 2, 3, 1, 0, 2, 1)}),
        ("u = Pad(t, n, v, a)", {"n": ints(1, 2, 3, 4), "v": np.float32(3), "a": ints(3, 1)}),
        ('u = Pad<mode="reflect">(t, n)', {"n": ints(0, 1, 2, 0, 0, 0, 1, 2)}),
        ("u = ReduceMean(t, a)", {"a": ints(1, 2)}),
        ("u = ReduceMax(t, a)", {"a": ints(-1)}),
        ("u = ReduceSum(t)", {}),
        ("q = QuantizeLinear(t, s, z)\n u = DequantizeLinear(q, s, z)", {"s": np.float32(0.1), "z": np.uint8(100)}),
        (
            "q = QuantizeLinear<axis=3>(t, s, z)\n u = DequantizeLinear<axis=-1>(q, s, z)",
            {"s": np.float32([0.1, 0.2, 0.3]), "z": np.uint8([1, 2, 3])},
        ),
        ("i = ArgMax<axis=3>(t)\n f = Cast<to=1>(i)\n u = Mul(f, f)", {}),
        ("g = Gather<axis=3>(t, i)\n u = Neg(g)", {"i": ints(2, 0)}),
        ("e = Unsqueeze(t, a)\n r = Relu(e)\n u = Squeeze(r, b)", {"a": ints(2, 0), "b": ints(0, 2)}),
    ],
)
def test_cancels_around(body: str, weights: dict[str, np.ndarray]) -> None:
    before = between(body, **weights)
    after, _ = run_passes(before, PASS)
    assert "Transpose" not in ops(after)
    assert len(after.graph.node) < len(before.graph.node)
    feeds = inputs()[:1] if "Quantize" in body or "Arg" in body else inputs()
    assert_same(before, after, feeds)


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("u = Slice<starts=[1,0], ends=[3,2], axes=[1,3]>(t)", 9),
        ("u = Slice<starts=[1,0], ends=[2,3]>(t)", 9),
        ("u = Pad<pads=[0,1,2,3,1,0,2,1]>(t)", 10),
        ("u = ReduceMean<axes=[1,2]>(t)", 12),
        ("e = Unsqueeze<axes=[1]>(t)\n u = Squeeze<axes=[1]>(e)", 12),
    ],
)
def test_attribute_forms(body: str, opset: int) -> None:
    before = between(body, opset=opset)
    after, _ = run_passes(before, PASS)
    assert "Transpose" not in ops(after)
    assert_same(before, after, inputs())


def test_residual_network_in_the_other_layout() -> None:
    text = f"""g (float[1,3,8,8] x) => (y) {{
        i = {TO_LAST}(x)
        i1 = {TO_FIRST}(i)
        c1 = Conv(i1, w)
        t1 = {TO_LAST}(c1)
        a1 = Add(t1, i)
        r1 = Relu(a1)
        i2 = {TO_FIRST}(r1)
        c2 = Conv(i2, w)
        t2 = {TO_LAST}(c2)
        b2 = Mul(t2, scale)
        a2 = Add(b2, r1)
        y = {TO_FIRST}(a2)
    }}"""
    weights = RNG.standard_normal((3, 3, 1, 1)).astype(np.float32)
    before = model(text, w=weights, scale=np.float32([1, 2, 3]))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv", "Add", "Relu", "Conv", "Mul", "Add"]
    assert_same(before, after, inputs((1, 3, 8, 8)))


def test_takes_the_other_operand_along() -> None:
    text = f"""g (float[2,3,4,5] x, float[2,4,5,3] z) => (y) {{
        t = {TO_LAST}(x)
        a = Add(t, z)
        y = {TO_FIRST}(a)
    }}"""
    before = model(text)
    after, _ = run_passes(before, PASS)
    assert sorted(op_list(after)) == ["Add", "Transpose"]
    assert_same(before, after, inputs()[0] | {"z": RNG.standard_normal((2, 4, 5, 3)).astype(np.float32)})


def test_vanishes_in_a_reduction() -> None:
    before = model(f"g (float[2,3,4,5] x) => (y) {{ t = {TO_LAST}(x)\n y = ReduceMean<axes=[1,2], keepdims=0>(t) }}")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["ReduceMean"]
    assert_same(before, after, inputs())


def test_one_transpose_behind_several_operands() -> None:
    before = model(
        f"g (float[2,3,4,5] x, float[2,3,4,5] z) => (y) {{ t = {TO_LAST}(x)\n s = {TO_LAST}(z)\n y = Add(t, s) }}"
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Add", "Transpose"]
    assert_same(before, after, inputs()[0] | {"z": inputs()[1]["x"]})


def test_symbolic_dims() -> None:
    before = between("u = Relu(t)", shape="N,3,H,W")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Relu"]
    assert_same(before, after, [*inputs(), *inputs((1, 3, 1, 7)), {"x": np.zeros((0, 3, 2, 2), np.float32)}])


def test_keeps_what_the_branch_of_an_if_captures() -> None:
    text = f"""g (float[2,3,4,5] x, bool c) => (y) {{
        t = {TO_LAST}(x)
        r = Relu(t)
        y = If (c) <
            then_branch = yes () => (float[2,3,4,5] a) {{ a = {TO_FIRST}(r) }},
            else_branch = no () => (float[2,3,4,5] b) {{ s = {TO_FIRST}(t)\n b = Neg(s) }}
        >
    }}"""
    before = model(text)
    after, _ = run_passes(before, PASS)
    for c in (True, False):
        assert_same(before, after, inputs()[0] | {"c": np.array(c)})


def test_batched_product() -> None:
    swap = "Transpose<perm=[0,2,1]>"
    text = f"g (float[2,3,4] x, float[2,5,3] z) => (y) {{ a = {swap}(x)\n b = {swap}(z)\n y = MatMul(a, b) }}"
    before = model(text)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["MatMul", "Transpose"]
    assert_same(before, after, {"x": np.float32(RNG.random((2, 3, 4))), "z": np.float32(RNG.random((2, 5, 3)))})


@pytest.mark.parametrize(
    ("shape", "perm"),
    [("1,3,1,5", [2, 1, 0, 3]), ("N,1,4", [1, 0, 2]), ("1,N,M", [1, 2, 0]), ("1,N,1,M", [2, 1, 0, 3])],
)
def test_axes_of_size_one_only(shape: str, perm: list[int]) -> None:
    before = model(f"g (float[{shape}] x) => (y) {{ y = Transpose<perm={perm}>(x) }}")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == (["Transpose"] if shape == "1,N,M" else ["Reshape"])
    sizes = tuple({"N": 6, "M": 7}.get(part) or int(part) for part in shape.split(","))
    assert_same(before, after, inputs(sizes)[0])


@pytest.mark.parametrize(
    "body",
    [
        "u = Relu(t)\n z = Neg(u)\n o = GlobalMaxPool(z)",
        "u = Softmax<axis=1>(t)\n o = GlobalMaxPool(u)",
        "p = MaxPool<kernel_shape=[2,2]>(t)\n u = Relu(p)",
        "u = Add(t, v)",
        "u = Slice(t, s, e, a)",
    ],
    ids=["nothing gained", "softmax", "pooling", "lower rank", "axes unknown"],
)
def test_refuses(body: str) -> None:
    ending = "" if "o =" in body else f"o = {TO_FIRST}(u)"
    before = model(
        f"""g (float[2,3,4,5] x, float[3] v, int64[1] s, int64[1] e, int64[1] a) => (float[b,c,d,e] o) {{
            t = {TO_LAST}(x)
            {body}
            {ending}
        }}"""
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


def test_refuses_softmax_over_flattened_axes() -> None:
    before = between("u = Softmax<axis=1>(t)", opset=11)
    after, _ = run_passes(before, PASS)
    assert ops(after) == ops(before)


def test_refuses_a_large_constant() -> None:
    before = between("u = Add(t, c)", shape="1,64,80,80", c=np.ones((80, 80, 64), np.float32))
    after, _ = run_passes(before, PASS)
    assert ops(after) == ops(before)


def test_leaves_plain_matrices_to_gemm() -> None:
    before = model("g (float[3,4] x, float[5,3] z) => (y) { a = Transpose(x)\n b = Transpose(z)\n y = MatMul(a, b) }")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


def test_keeps_outputs() -> None:
    before = model(f"g (float[2,3,4,5] x) => (t, y) {{ t = {TO_LAST}(x)\n r = Relu(t)\n y = {TO_FIRST}(r) }}")
    after, _ = run_passes(before, PASS)
    assert sorted(op_list(after)) == ["Relu", "Transpose"]
    assert [value.name for value in after.graph.output] == ["t", "y"]
    assert_same(before, after, inputs())
