"""Which nodes become FusedAttention, what of their surroundings it takes in, and why others do not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import evaluate, model, run_passes
from onnxopt import ir
from onnxopt.ops import fused_attention as op
from onnxopt.pipeline import PassManager

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(1)
PASS = "fuse_attention"


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def fuse(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.NodeProto]]:
    after, _ = run_passes(proto, PASS, target="cpu")
    return after, [node for node in after.graph.node if node.op_type == op.SPEC.name]


def fused(proto: onnx.ModelProto) -> dict[str, Any]:
    """The attributes of the only attention."""
    _, nodes = fuse(proto)
    (node,) = nodes
    found = {attr.name: onnx.helper.get_attribute_value(attr) for attr in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def assert_same(proto: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    """The kernel and the body compute what the model computed."""
    after, nodes = fuse(proto)
    assert nodes
    for library in (True, False):
        for wanted, found in zip(evaluate(proto, feeds), evaluate(after, feeds, library=library), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)


def refusals(proto: onnx.ModelProto) -> list[str]:
    loaded = ir.load(proto)
    report = PassManager("cpu", [PASS], explain=True).run(loaded)
    assert not any(node.op_type == op.SPEC.name for node in loaded.graph)
    return [str(near.refusal) for near in report.near_misses]


CORE = "float[B,2,S,8] q, float[B,2,T,8] k, float[B,2,T,6] v"


def core(
    between: str = "p = Softmax<axis = -1>(s)", inputs: str = "", outputs: str = "", opset: int = 17
) -> onnx.ModelProto:
    text = f"""g ({CORE}{inputs}) => (float[B,2,S,6] y{outputs}) {{
        kt = Transpose<perm = [0, 1, 3, 2]>(k)
        s = MatMul(q, kt)
        {between}
        y = MatMul(p, v)
    }}"""
    return model(text, opset=opset)


def operands(b: int = 2, s: int = 5, t: int = 7) -> dict[str, Array]:
    return {"q": normal(b, 2, s, 8), "k": normal(b, 2, t, 8), "v": normal(b, 2, t, 6)}


def test_products_around_a_softmax() -> None:
    proto = core()
    found = fused(proto)
    assert (found["q"], found["k"], found["v"], found["y"]) == ("b h s d",) * 4
    assert (found["heads"], found["kv_heads"], found["head_size"], found["value_size"]) == (2, 2, 8, 6)
    assert_same(proto, operands())


@settings(max_examples=15, deadline=None)
@given(b=st.integers(1, 3), s=st.integers(1, 40), t=st.integers(1, 40))
def test_any_sizes(b: int, s: int, t: int) -> None:
    assert_same(core(), operands(b, s, t))


BETWEEN = {
    "scaled": ("c = Constant<value_float = 0.25>() a = Mul(s, c) p = Softmax<axis = -1>(a)", {}),
    "divided": ("c = Constant<value_float = 4.0>() a = Div(s, c) p = Softmax<axis = -1>(a)", {}),
    "masked": ("a = Add(s, m) p = Softmax<axis = -1>(a)", {"m": (2, 1, 5, 7)}),
    "mask first": ("a = Add(m, s) p = Softmax<axis = 3>(a)", {"m": (1, 1, 1, 7)}),
    "two masks": ("a = Add(s, m) b = Add(a, n) p = Softmax<axis = -1>(b)", {"m": (1, 2, 5, 7), "n": (5, 7)}),
    "scaled and masked": (
        "c = Constant<value_float = 0.25>() a = Mul(c, s) b = Add(a, m) p = Softmax<axis = -1>(b)",
        {"m": (2, 1, 1, 7)},
    ),
    "masked and scaled": (
        "c = Constant<value_float = 0.25>() a = Add(s, m) b = Mul(a, c) p = Softmax<axis = -1>(b)",
        {"m": (2, 1, 5, 7)},
    ),
    "mask subtracted": ("a = Sub(s, m) p = Softmax<axis = -1>(a)", {"m": (2, 1, 1, 7)}),
    "mask subtracted and scaled": (
        "c = Constant<value_float = 4.0>() a = Sub(s, m) b = Add(a, n) d = Div(b, c) p = Softmax<axis = -1>(d)",
        {"m": (2, 2, 5, 7), "n": (5, 7)},
    ),
    "capped": (
        "c = Constant<value_float = 3.0>() a = Div(s, c) b = Tanh(a) d = Mul(b, c) p = Softmax<axis = -1>(d)",
        {},
    ),
    "NaNs cleared": (
        "z = Constant<value_float = 0.0>() e = Softmax<axis = -1>(s) n = IsNaN(e) p = Where(n, z, e)",
        {},
    ),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_takes_in_what_is_between(case: str) -> None:
    between, masks = BETWEEN[case]
    declared = "".join(f", float[{','.join(map(str, shape))}] {name}" for name, shape in masks.items())
    proto = core(
        between, declared.replace("[2,", "[B,").replace(",5,", ",S,").replace("[5,", "[S,").replace(",7]", ",T]")
    )
    assert_same(proto, operands() | {name: normal(*shape) for name, shape in masks.items()})


@pytest.mark.parametrize(("order", "word"), [("m, s, f", "keep"), ("m, f, s", "hide")])
@pytest.mark.parametrize("fill", ["-1e9", "-inf"])
def test_boolean_mask(order: str, word: str, fill: str) -> None:
    number = np.array(float(fill), np.float32)
    text = f"""g ({CORE}, bool[B,1,S,T] m) => (float[B,2,S,6] y) {{
        kt = Transpose<perm = [0, 1, 3, 2]>(k)  s = MatMul(q, kt)
        a = Where({order})  p = Softmax<axis = -1>(a)  y = MatMul(p, v)
    }}"""
    proto = model(text, f=number)
    assert fused(proto)["masks"] == f"{word}={float(number)!r}"
    mask = RNG.random((2, 1, 5, 7)) < 0.5
    mask[..., 0] = word == "keep"
    assert_same(proto, operands() | {"m": mask})


TRIANGLE = np.tril(np.ones((1, 1, 9, 9), np.float32))
SCALED = "c = Constant<value_float = 0.25>() d = Mul(s, c) "
HIDING = {
    "constants": (SCALED + "e = Mul(d, b) a = Add(e, f) p = Softmax<axis = -1>(a)", {"f": -1e4 * (1 - TRIANGLE)}),
    "in the other order": (
        SCALED + "e = Mul(b, d) a = Add(f, e) p = Softmax<axis = -1>(a)",
        {"f": -1e4 * (1 - TRIANGLE)},
    ),
    "another mask after it": (
        SCALED + "e = Mul(d, b) a = Add(e, f) g = Add(a, m) p = Softmax<axis = -1>(g)",
        {"f": -1e4 * (1 - TRIANGLE), "m": normal(1, 2, 9, 9)},
    ),
    "scaled after it": (
        "e = Mul(s, b) a = Add(e, f) " + SCALED.replace("(s,", "(a,") + "p = Softmax<axis = -1>(d)",
        {"f": -1e4 * (1 - TRIANGLE)},
    ),
    "computed": (
        "r = Sub(one, b) f = Mul(r, low) e = Mul(s, b) a = Add(e, f) p = Softmax<axis = -1>(a)",
        {"one": np.array(1, np.float32), "low": np.array(-1e4, np.float32)},
    ),
    "a part of a table": (
        """t = Slice(table, zero, size, two) b = Slice(t, zero, size, three) r = Sub(one, b) f = Mul(low, r)
        e = Mul(s, b) a = Add(e, f) p = Softmax<axis = -1>(a)""",
        {
            "one": np.array(1, np.float32),
            "low": np.array(-1e4, np.float32),
            "size": np.array([9]),
            "zero": np.array([0]),
            "two": np.array([2]),
            "three": np.array([3]),
            "table": np.tril(np.ones((1, 1, 20, 20), np.float32)),
        },
    ),
}


def square(between: str, weights: dict[str, Array], b: Array = TRIANGLE) -> onnx.ModelProto:
    """Nine rows and keys."""
    text = f"""g (float[2,2,9,8] q, float[2,2,9,8] k, float[2,2,9,6] v) => (float[2,2,9,6] y) {{
        kt = Transpose<perm = [0, 1, 3, 2]>(k)  s = MatMul(q, kt)  {between}  y = MatMul(p, v) }}"""
    return model(text, **weights, **({} if "b = " in between else {"b": b}))


@pytest.mark.parametrize("case", HIDING)
def test_scores_that_are_hidden_by_a_product_and_a_sum(case: str) -> None:
    proto = square(*HIDING[case])
    assert fused(proto)["masks"].split()[0] == f"keep={-2500.0 if case == 'scaled after it' else -10000.0}"
    assert_same(proto, operands(2, 9, 9))


@pytest.mark.parametrize(
    "f", [-1e4 * TRIANGLE, -1e4 * (1 - TRIANGLE) + 1, -1e4 * (1 - TRIANGLE[0]), np.linspace(-9, -8, 81)]
)
def test_refuses_sums_that_are_not_those_of_hidden_scores(f: Array) -> None:
    between = HIDING["constants"][0]
    proto = square(between, {"f": f.reshape((1, 1, 9, 9) if f.ndim == 1 else f.shape).astype(np.float32)})
    assert any("scaled by no constant" in one for one in refusals(proto))


def test_refuses_products_with_other_numbers_than_zero_and_one() -> None:
    proto = square(*HIDING["constants"], b=TRIANGLE / 2)
    assert any("scaled by no constant" in one for one in refusals(proto))


LOWEST = float(np.finfo(np.float32).min)
LIMITED = {
    "mask": "a = Add(s, m) x = Max(a, low) p = Softmax<axis = -1>(x)",
    "mask, the number first": "a = Add(m, s) x = Max(low, a) p = Softmax<axis = -1>(x)",
    "scaled mask": SCALED + "a = Add(d, m) x = Max(a, low) p = Softmax<axis = -1>(x)",
    "scores": "x = Max(s, low) p = Softmax<axis = -1>(x)",
    "a mask after it": "x = Max(s, low) a = Add(x, m) p = Softmax<axis = -1>(a)",
}


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("case", LIMITED)
def test_scores_that_are_limited_from_below(case: str, constant: bool) -> None:
    """Rows that are hidden whole take the mean of all values."""
    mask = np.where(RNG.random((2, 1, 5, 7)) < 0.5, LOWEST, 0).astype(np.float32)
    if case not in ("scores", "a mask after it"):
        mask[0, 0, 1], mask[1, 0, 3], mask[1, 0, 4, :3] = -np.inf, LOWEST, -np.inf
    between = LIMITED[case]
    weights = {"low": np.array(LOWEST, np.float32)} | ({"m": mask} if constant and "m" in between else {})
    declared = "" if constant or case == "scores" else ", float[B,1,S,T] m"
    proto = model(
        f"""g ({CORE.replace("B", "2").replace("S", "5").replace("T", "7") if constant else CORE}{declared}) => (float[?,2,?,6] y) {{
        kt = Transpose<perm = [0, 1, 3, 2]>(k)  s = MatMul(q, kt)  {between}  y = MatMul(p, v) }}""",
        **weights,
    )
    assert_same(proto, operands() | ({"m": mask} if declared else {}))


def test_keys_and_values_of_a_single_batch_without_its_dim() -> None:
    proto = model("""g (float[1,2,5,8] q, float[2,8,7] k, float[2,7,6] v, float[1,1,5,7] m) => (float[1,2,5,6] y) {
        s = MatMul(q, k)  a = Add(s, m)  p = Softmax<axis = -1>(a)  y = MatMul(p, v) }""")
    found = fused(proto)
    assert (found["k"], found["v"], found["kv_heads"]) == ("h d s", "h s d", 2)
    assert_same(proto, {"q": normal(1, 2, 5, 8), "k": normal(2, 8, 7), "v": normal(2, 7, 6), "m": normal(1, 1, 5, 7)})


def test_mask_of_scores_whose_batches_are_written_as_windows() -> None:
    """Axes of size 1 that reshaped scores have, and the mask with them, are none of the op's."""
    text = f"""g ({CORE}, float[1,2,1,S,T] m) => (float[B,2,S,6] y) {{
        kt = Transpose<perm = [0, 1, 3, 2]>(k)  s = MatMul(q, kt)
        deep = Constant<value_ints = [1, 2, 2, 5, 7]>()  r = Reshape(s, deep)
        a = Add(r, m)
        flat = Constant<value_ints = [2, 2, 5, 7]>()  back = Reshape(a, flat)
        p = Softmax<axis = -1>(back)  y = MatMul(p, v)
    }}"""
    for name, size in {"B": 2, "S": 5, "T": 7}.items():
        text = re.sub(rf"\b{name}\b", str(size), text)
    proto = model(text)
    assert fused(proto)["masks"] == "add"
    assert_same(proto, operands() | {"m": normal(1, 2, 1, 5, 7)})


def heads(layout: str = "[0, 0, 2, 8]") -> onnx.ModelProto:
    """Projections whose heads are split and merged, as encoders do."""
    text = f"""g (float[B,S,16] q, float[B,T,16] k, float[B,T,16] v) => (float[B,S,16] y) {{
        shape = Constant<value_ints = {layout}>()
        q1 = Reshape(q, shape)  q2 = Transpose<perm = [0, 2, 1, 3]>(q1)
        k1 = Reshape(k, shape)  k2 = Transpose<perm = [0, 2, 3, 1]>(k1)
        v1 = Reshape(v, shape)  v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
        s = MatMul(q2, k2)  p = Softmax<axis = -1>(s)  y2 = MatMul(p, v2)
        y1 = Transpose<perm = [0, 2, 1, 3]>(y2)
        flat = Constant<value_ints = [0, 0, 16]>()
        y = Reshape(y1, flat)
    }}"""
    return model(text)


def test_takes_in_head_split_and_merge() -> None:
    after, _ = fuse(heads())
    assert [node.op_type for node in after.graph.node] == ["FusedAttention"]
    assert_same(heads(), {"q": normal(2, 5, 16), "k": normal(2, 7, 16), "v": normal(2, 7, 16)})


def test_one_product_for_queries_keys_and_values() -> None:
    text = """g (float[B,S,48] x) => (float[B,S,16] y) {
        shape = Constant<value_ints = [0, 0, 3, 2, 8]>()
        a = Reshape(x, shape)  b = Transpose<perm = [2, 0, 3, 1, 4]>(a)
        zero = Constant<value_int = 0>()  one = Constant<value_int = 1>()  two = Constant<value_int = 2>()
        q = Gather<axis = 0>(b, zero)  k = Gather<axis = 0>(b, one)  v = Gather<axis = 0>(b, two)
        kt = Transpose<perm = [0, 1, 3, 2]>(k)
        s = MatMul(q, kt)  p = Softmax<axis = -1>(s)  y2 = MatMul(p, v)
        y1 = Transpose<perm = [0, 2, 1, 3]>(y2)
        flat = Constant<value_ints = [0, 0, 16]>()
        y = Reshape(y1, flat)
    }"""
    found = fused(model(text))
    assert (found["q"], found["k"], found["v"]) == ("b s @0 h d", "b s @1 h d", "b s @2 h d")
    assert_same(model(text), {"x": normal(2, 5, 48)})


def test_batch_and_heads_in_one_dim() -> None:
    text = """g (float[B,S,16] x) => (float[B,S,16] y) {
        shape = Constant<value_ints = [0, 0, 2, 8]>()  joined = Constant<value_ints = [-1, 5, 8]>()
        a = Reshape(x, shape)  b = Transpose<perm = [0, 2, 1, 3]>(a)  c = Reshape(b, joined)
        t = Transpose<perm = [0, 2, 1]>(c)
        s = MatMul(c, t)  p = Softmax<axis = -1>(s)  y3 = MatMul(p, c)
        apart = Constant<value_ints = [-1, 2, 5, 8]>()  flat = Constant<value_ints = [-1, 5, 16]>()
        y2 = Reshape(y3, apart)  y1 = Transpose<perm = [0, 2, 1, 3]>(y2)  y = Reshape(y1, flat)
    }""".replace("[B,S,", "[B,5,")
    assert fused(model(text))["heads"] == 2
    assert_same(model(text), {"x": normal(3, 5, 16)})


JOINED = "q3 = Reshape(q, rows)  k3 = Reshape(k, keys)  v3 = Reshape(v, keys)  kt = Transpose<perm = [0, 2, 1]>(k3)"


def joined(scores: str, inputs: str) -> onnx.ModelProto:
    """Products of three dims, batches and heads in one, around scores of whichever rank; S is 5, T is 7."""
    shapes = {"rows": [-1, 5, 8], "keys": [-1, 7, 8], "apart": [-1, 2, 5, 7], "together": [-1, 5, 7]}
    return model(
        f"""g (float[3,2,5,8] q, float[3,2,7,8] k, float[3,2,7,8] v, {inputs}) => (float[?,5,8] y) {{
        {JOINED}  s = MatMul(q3, kt)  {scores}  y = MatMul(p, v3) }}""",
        **{name: np.array(shape) for name, shape in shapes.items()},
    )


WITH_JOINED_HEADS = {
    "masks of both ranks": (
        "a = Add(s, n)  r = Reshape(a, apart)  b = Add(r, m)  e = Softmax<axis = -1>(b)  p = Reshape(e, together)",
        {"m": (3, 1, 5, 7), "n": (6, 1, 7)},
    ),
    "mask of joined heads": ("a = Add(s, n)  p = Softmax<axis = -1>(a)", {"n": (6, 5, 7)}),
    "mask of all heads": ("a = Add(s, n)  p = Softmax<axis = -1>(a)", {"n": (1, 5, 7)}),
}


@pytest.mark.parametrize("case", WITH_JOINED_HEADS)
def test_masks_of_batch_and_heads_in_one_dim(case: str) -> None:
    scores, masks = WITH_JOINED_HEADS[case]
    proto = joined(scores, ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in masks.items()))
    assert fused(proto)["heads"] == 2
    feeds = {name: normal(*shape) for name, shape in masks.items()}
    assert_same(proto, feeds | {"q": normal(3, 2, 5, 8), "k": normal(3, 2, 7, 8), "v": normal(3, 2, 7, 8)})


@pytest.mark.parametrize("mask", ["", "B,1,T,S", "1,2,1,S"])
def test_keys_times_queries(mask: str) -> None:
    """Scores are computed as rows of keys, and Softmax runs over these, as tf2onnx writes the einsums of Keras."""
    declared, between = (f", float[{mask}] m", "a = Add(s, m)") if mask else ("", "a = Identity(s)")
    text = f"""g (float[B,2,S,8] q, float[B,2,T,8] k, float[B,2,T,6] v{declared}) => (float[B,2,S,6] y) {{
        qt = Transpose<perm = [0, 1, 3, 2]>(q)  s = MatMul(k, qt)  {between}  p = Softmax<axis = 2>(a)
        pt = Transpose<perm = [0, 1, 3, 2]>(p)  y = MatMul(pt, v) }}"""
    proto = run_passes(model(text), "eliminate_noops")[0]
    assert fused(proto).get("masks", "") == ("add" if mask else "")
    sizes = {"B": 3, "S": 5, "T": 7}
    masks = {"m": normal(*(sizes.get(one) or int(one) for one in mask.split(",")))} if mask else {}
    assert_same(proto, masks | {"q": normal(3, 2, 5, 8), "k": normal(3, 2, 7, 8), "v": normal(3, 2, 7, 6)})


def test_scores_and_weights_with_another_axis_of_one() -> None:
    text = """g (float[B,2,S,8] q, float[B,2,T,8] k, float[B,2,T,6] v) => (float[B,2,S,6] y) {
        kt = Transpose<perm = [0, 1, 3, 2]>(k)  s = MatMul(q, kt)  u = Unsqueeze(s, axis)  a = Squeeze(u, axis)
        p = Softmax<axis = 3>(a)  pu = Unsqueeze(p, axis)  w = Transpose<perm = [0, 2, 1, 3, 4]>(pu)
        pt = Transpose<perm = [0, 2, 1, 3, 4]>(w)  ps = Squeeze(pt, axis)  y = MatMul(ps, v) }"""
    proto = model(text, axis=np.array([1]))
    assert_same(proto, operands())


def test_masks_of_products_without_heads() -> None:
    text = """g (float[B,S,8] q, float[B,8,T] k, float[B,T,6] v, float[B,S,T] m) => (float[B,S,6] y) {
        s = MatMul(q, k)  a = Add(s, m)  p = Softmax<axis = -1>(a)  y = MatMul(p, v) }"""
    assert fused(model(text))["masks"] == "add"
    assert_same(model(text), {"q": normal(3, 5, 8), "k": normal(3, 8, 7), "v": normal(3, 7, 6), "m": normal(3, 5, 7)})


def test_weights_as_the_right_operand() -> None:
    text = """g (float[B,2,8,S] q, float[B,2,8,T] k, float[B,2,6,T] v) => (float[B,2,6,S] y) {
        qt = Transpose<perm = [0, 1, 3, 2]>(q)
        s = MatMul(qt, k)  p = Softmax<axis = -1>(s)
        pt = Transpose<perm = [0, 1, 3, 2]>(p)  y = MatMul(v, pt)
    }"""
    found = fused(model(text))
    assert (found["q"], found["k"], found["v"], found["y"]) == ("b h d s",) * 4
    assert_same(model(text), {"q": normal(2, 2, 8, 5), "k": normal(2, 2, 8, 7), "v": normal(2, 2, 6, 7)})


@pytest.mark.parametrize("signed", [False, True])
def test_rotary_embedding_of_shared_heads(signed: bool) -> None:
    crossed = "{x}x = Concat<axis = 3>({x}hi, {x}lo)"
    if not signed:
        crossed = "{x}n = Neg({x}hi)  {x}x = Concat<axis = 3>({x}n, {x}lo)"
    turn = "\n".join(
        f"""{x}lo, {x}hi = Split<axis = 3>({x}, halves)  {crossed.format(x=x)}
        {x}c = Mul({x}, cos)  {x}s = Mul({x}x, sin)  {x}r = Add({x}c, {x}s)"""
        for x in "qk"
    )
    text = f"""g (float[B,4,S,8] q, float[B,2,S,8] k, float[B,2,S,8] v, float[1,1,S,8] cos, float[1,1,S,8] sin) => (float[B,4,S,8] y) {{
        halves = Constant<value_ints = [4, 4]>()
        {turn}
        wide = Constant<value_ints = [1, 1, 2, 1, 1]>()
        k5 = Unsqueeze(kr, two)  k6 = Expand(k5, wide)  k7 = Reshape(k6, joined)
        v5 = Unsqueeze(v, two)  v6 = Expand(v5, wide)  v7 = Reshape(v6, joined)
        kt = Transpose<perm = [0, 1, 3, 2]>(k7)
        s = MatMul(qr, kt)  p = Softmax<axis = -1>(s)  y = MatMul(p, v7)
    }}""".replace("[B,", "[2,").replace(",S,", ",5,")
    proto = model(text, two=np.array([2]), joined=np.array([2, 4, 5, 8]))
    found = fused(proto)
    assert (found["heads"], found["kv_heads"], found["rotary"]) == (4, 2, "qk")
    tables = {"cos": normal(1, 1, 5, 8), "sin": normal(1, 1, 5, 8)}
    assert_same(proto, {"q": normal(2, 4, 5, 8), "k": normal(2, 2, 5, 8), "v": normal(2, 2, 5, 8)} | tables)


HALVES = "{x}lo, {x}hi = Split<axis = 3>({x}p, halves)  {x}n = Neg({x}hi)  {x}x = Concat<axis = 3>({x}n, {x}lo)"
NEIGHBOURS = """{x}hi = Slice({x}p, one, end, last, two)  {x}lo = Slice({x}p, zero, end, last, two)
    {x}n = Neg({x}hi)  {x}nu = Unsqueeze({x}n, minus)  {x}lu = Unsqueeze({x}lo, minus)
    {x}st = Concat<axis = -1>({x}nu, {x}lu)  {x}x = Reshape({x}st, flat)"""
TURN = "{x}c = Mul({x}p, cos)  {x}s = Mul({x}x, sin)  {x}a = Add({x}c, {x}s)"
PARTS = {
    "whole": ("{x}p = Identity({x})", "{x}r = Identity({x}a)", 8),
    "split": ("{x}p, {x}o = Split<axis = 3>({x}, parts)", "{x}r = Concat<axis = -1>({x}a, {x}o)", 4),
    "sliced": (
        "{x}p = Slice({x}, zero, four, last)  {x}o = Slice({x}, four, end, last)",
        "{x}r = Concat<axis = 3>({x}a, {x}o)",
        4,
    ),
}


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("alike", [False, True])
def test_rotary_embedding_of_keys_that_have_rows_before_heads(alike: bool, constant: bool) -> None:
    tables = {"cos": normal(3, 5, 8), "sin": normal(3, 5, 8)}
    other = tables if alike else {"cos": tables["sin"], "sin": tables["cos"]}
    placed = {f"{name}q": table[:, None] for name, table in tables.items()}
    placed |= {f"{name}k": table[:, :, None] for name, table in other.items()}
    views = "" if constant else "cosq = Unsqueeze(cos, one)  sinq = Unsqueeze(sin, one)"
    if not constant:
        first, second = ("cos", "sin") if alike else ("sin", "cos")
        views += (
            f" cosk = Unsqueeze({first}, two)  sk = Unsqueeze({second}, one)  sink = Transpose<perm = [0, 2, 1, 3]>(sk)"
        )
    turned = "\n".join(
        f"{x}p = Identity({x}) {HALVES} {TURN}".format(x=x).replace("cos)", f"cos{x})").replace("sin)", f"sin{x})")
        for x in "qk"
    )
    given = "" if constant else ", float[3,5,8] cos, float[3,5,8] sin"
    text = f"""g (float[3,2,5,8] q, float[3,5,2,8] k, float[3,2,5,8] v{given}) => (float[3,2,5,8] y) {{ {views} {turned}
        kt = Transpose<perm = [0, 2, 3, 1]>(ka)
        s = MatMul(qa, kt)  p = Softmax<axis = -1>(s)  y = MatMul(p, v) }}"""
    numbers = {"halves": [4, 4], "one": [1], "two": [2]}
    proto = model(text, **{name: np.array(array) for name, array in numbers.items()}, **(placed if constant else {}))
    proto = run_passes(proto, "eliminate_noops")[0]
    assert fused(proto)["rotary"] == ("qk" if alike else "q")
    feeds = {"q": normal(3, 2, 5, 8), "k": normal(3, 5, 2, 8), "v": normal(3, 2, 5, 8)}
    assert_same(proto, feeds if constant else feeds | tables)


@pytest.mark.parametrize("rows_first", [False, True])
@pytest.mark.parametrize("crossed", [HALVES, NEIGHBOURS], ids=["halves", "neighbours"])
@pytest.mark.parametrize("part", PARTS)
def test_rotary_embedding(part: str, crossed: str, rows_first: bool) -> None:
    before, after, width = PARTS[part]
    dims, table, perms = (
        ("3,5,2", "3,5,1", ("0, 2, 1, 3", "0, 2, 3, 1"))
        if rows_first
        else ("3,2,5", "3,1,5", ("0, 1, 2, 3", "0, 1, 3, 2"))
    )
    turned = "\n".join(f"{before} {crossed} {TURN} {after}".format(x=x) for x in "qk")
    text = f"""g (float[{dims},8] q, float[{dims},8] k, float[3,2,5,8] v, float[{table},{width}] cos, float[{table},{width}] sin)
        => (float[3,2,5,8] y) {{ {turned}
        qt = Transpose<perm = [{perms[0]}]>(qr)  kt = Transpose<perm = [{perms[1]}]>(kr)
        s = MatMul(qt, kt)  p = Softmax<axis = -1>(s)  y = MatMul(p, v) }}"""
    sizes = {"halves": [width // 2] * 2, "parts": [4, 4], "flat": [*map(int, dims.split(",")), width], "end": [1 << 60]}
    numbers = {"zero": [0], "one": [1], "two": [2], "four": [4], "last": [3], "minus": [-1]}
    proto = model(text, **{name: np.array(array) for name, array in (sizes | numbers).items()})
    proto = run_passes(proto, "eliminate_noops")[0]
    found = fused(proto)
    assert (found["rotary"], found.get("interleaved", 0)) == ("qk", int(crossed is NEIGHBOURS))
    shape = tuple(map(int, dims.split(",")))
    tables = {name: normal(*map(int, table.split(",")), width) for name in ("cos", "sin")}
    assert_same(proto, {"q": normal(*shape, 8), "k": normal(*shape, 8), "v": normal(3, 2, 5, 8)} | tables)
    standard, _ = run_passes(fuse(proto)[0], "inline_custom_ops", "lift_constants")
    again = fused(standard)
    assert all(again.get(name) == found.get(name) for name in ("rotary", "interleaved", "heads", "masks"))


@pytest.mark.parametrize(
    ("columns", "axis", "rotary"),
    [
        ([4, 5, 6, 7, 0, 1, 2, 3], -1, "q"),
        ([1, 0, 3, 2, 5, 4, 7, 6], 3, "q"),
        ([4, 5, 6, 7, 0, 1, 3, 2], 3, ""),
        ([0, 1, 2, 3, 4, 5, 6, 7], 3, ""),
        ([4, 5, 6, 7, 0, 1, 2, 3], 2, ""),
    ],
)
def test_rotary_embedding_whose_partners_are_gathered(columns: list[int], axis: int, rotary: str) -> None:
    proto = model(
        f"""g (float[3,2,8,8] q, float[3,2,8,5] k, float[3,2,5,8] v, float[8,8] cos, float[8,8] sin) => (float[3,2,8,8] y) {{
        x = Gather<axis = {axis}>(q, columns)  a = Mul(q, cos)  b = Mul(x, sin)  r = Add(a, b)
        s = MatMul(r, k)  p = Softmax<axis = -1>(s)  y = MatMul(p, v) }}""",
        columns=np.array(columns),
    )
    assert fused(proto).get("rotary", "") == rotary
    shapes = {"q": (3, 2, 8, 8), "k": (3, 2, 8, 5), "v": (3, 2, 5, 8), "cos": (8, 8), "sin": (8, 8)}
    assert_same(proto, {name: normal(*shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("positions", [False, True])
def test_op_for_rotary_embeddings(width: int, interleaved: int, positions: bool) -> None:
    table, at, declared = (
        (f"20,{width // 2}", ", at", ", int64[3,5] at") if positions else (f"3,5,{width // 2}", "", "")
    )
    kind = f"interleaved = {interleaved}, rotary_embedding_dim = {width if width < 8 else 0}"
    text = f"""g (float[3,2,5,8] q, float[3,2,5,8] k, float[{table}] cos, float[{table}] sin{declared}) => (float[3,2,5,8] y) {{
        qr = RotaryEmbedding<{kind}>(q, cos, sin{at})  kr = RotaryEmbedding<{kind}>(k, cos, sin{at})
        kt = Transpose<perm = [0, 1, 3, 2]>(kr)  s = MatMul(qr, kt)  p = Softmax<axis = -1>(s)  y = MatMul(p, k) }}"""
    proto = model(text, opset=23, ir_version=10)
    assert (fused(proto)["rotary"], fused(proto).get("interleaved", 0)) == ("qk", interleaved)
    feeds = {name: normal(*map(int, table.split(","))) for name in ("cos", "sin")}
    feeds |= {"at": RNG.integers(0, 20, (3, 5))} if positions else {}
    assert_same(proto, feeds | {"q": normal(3, 2, 5, 8), "k": normal(3, 2, 5, 8)})


def test_layers_share_tables() -> None:
    turn = "{x}lo, {x}hi = Split<axis = 3>({x}, halves)  {x}n = Neg({x}hi)  {x}x = Concat<axis = 3>({x}n, {x}lo)"
    layers = "".join(
        f"""{turn.format(x=x)}  {x}c = Mul({x}, cos)  {x}s = Mul({x}x, sin)  {x}r = Add({x}c, {x}s)
        {x}t = Transpose<perm = [0, 1, 3, 2]>(k)  {x}w = MatMul({x}r, {x}t)  {x}p = Softmax<axis = -1>({x}w)
        {y} = MatMul({x}p, k) """
        for x, y in (("q", "m"), ("m", "y"))
    )
    text = (
        f"g (float[3,2,5,8] q, float[3,2,5,8] k, float[5,8] cos, float[5,8] sin) => (float[3,2,5,8] y) {{ {layers} }}"
    )
    after, nodes = fuse(model(text, halves=np.array([4, 4])))
    assert len(nodes) == 2 and nodes[0].input[-2:] == nodes[1].input[-2:]
    assert [node.op_type for node in after.graph.node] == ["Mul", "FusedAttention", "FusedAttention"]


def test_rotation_of_other_columns_stays() -> None:
    """What is joined behind the rotated columns is not the rest of the same tensor."""
    text = """g (float[3,2,5,8] q, float[3,2,5,4] o, float[3,2,5,8] k, float[5,4] cos, float[5,4] sin) => (float[3,2,5,8] y) {
        qp = Slice(q, zero, four, last)  qlo, qhi = Split<axis = 3>(qp, halves)  qn = Neg(qhi)  qx = Concat<axis = 3>(qn, qlo)
        qc = Mul(qp, cos)  qs = Mul(qx, sin)  qa = Add(qc, qs)  qr = Concat<axis = 3>(qa, o)
        kt = Transpose<perm = [0, 1, 3, 2]>(k)  s = MatMul(qr, kt)  p = Softmax<axis = -1>(s)  y = MatMul(p, k) }"""
    arrays = {"zero": [0], "four": [4], "last": [3], "halves": [2, 2]}
    assert "rotary" not in fused(model(text, **{name: np.array(array) for name, array in arrays.items()}))


REFUSED = {
    "weights are an output": (
        core("p = Softmax<axis = -1>(s)", "", ", float[B,2,S,T] p"),
        "others use the weights 'p'",
    ),
    "scores are an output": (core("p = Softmax<axis = -1>(s)", "", ", float[B,2,S,T] s"), "others use the scores 's'"),
    "softmax over rows": (core("p = Softmax<axis = 2>(s)"), "not over the keys"),
    "capped after the mask": (
        core(
            """a = Add(s, m) c = Constant<value_float = 2.0>() b = Div(a, c) d = Tanh(b) e = Mul(d, c)
            p = Softmax<axis = -1>(e)""",
            ", float[S,T] m",
        ),
        "capped after the mask 'm'",
    ),
    "weights reshaped otherwise": (
        model("""g (float[2,2,5,8] q, float[2,2,8,5] k, float[10,2,8] v) => (float[10,2,8] y) {
            s = MatMul(q, k) p = Softmax<axis = -1>(s) f = Constant<value_ints = [10, 5, 2]>() r = Reshape(p, f)
            y = MatMul(r, v) }"""),
        "the weights are reshaped",
    ),
    "scaled by a tensor": (core("a = Mul(s, m) p = Softmax<axis = -1>(a)", ", float[S,T] m"), "scaled by no constant"),
    "limited by another number": (
        core("c = Constant<value_float = -9.0>() a = Max(s, c) p = Softmax<axis = -1>(a)"),
        "limited from below",
    ),
    "limited after two masks": (
        core(
            f"""c = Constant<value_float = {LOWEST!r}>() a = Add(s, m) b = Add(a, n) d = Max(b, c)
            p = Softmax<axis = -1>(d)""",
            ", float[S,T] m, float[S,T] n",
        ),
        "limited after the mask 'm'",
    ),
    "another op between": (core("a = Abs(s) p = Softmax<axis = -1>(a)"), "Abs is between"),
    "mask that broadcasts the scores": (
        core("a = Add(s, m) p = Softmax<axis = -1>(a)", ", float[B,2,S,U] m"),
        "the mask 'm' of shape B or 2 or S or U does not fit",
    ),
    "some of the weights": (
        model("""g (float[2,2,5,8] q, float[2,2,8,7] k, float[2,2,6,8] v) => (float[2,2,5,8] y) {
            zero = Constant<value_ints = [0]>()  six = Constant<value_ints = [6]>()  last = Constant<value_ints = [3]>()
            s = MatMul(q, k) p = Softmax<axis = -1>(s) r = Slice(p, zero, six, last) y = MatMul(r, v) }"""),
        "the weights are reshaped",
    ),
    "the weights of some heads": (
        model("""g (float[2,4,5,8] q, float[2,4,8,7] k, float[2,2,7,8] v) => (float[2,2,5,8] y) {
            one = Constant<value_ints = [1]>()  three = Constant<value_ints = [3]>()
            s = MatMul(q, k) p = Softmax<axis = -1>(s) r = Slice(p, one, three, one) y = MatMul(r, v) }"""),
        "the weights are reshaped",
    ),
    "one head's weights for all": (
        model("""g (float[2,1,5,8] q, float[2,1,8,7] k, float[2,2,7,8] v) => (float[2,2,5,8] y) {
            all = Constant<value_ints = [2, 2, 5, 7]>()
            s = MatMul(q, k) p = Softmax<axis = -1>(s) r = Expand(p, all) y = MatMul(r, v) }"""),
        "the weights are reshaped",
    ),
    "mask that may be the same for all batches and heads in one dim": (
        model("""g (float[B,2,5,8] q, float[B,2,8,5] k, float[B,2,5,8] v, float[M,5,5] m) => (float[?,5,8] y) {
            rows = Constant<value_ints = [-1, 5, 8]>()  columns = Constant<value_ints = [-1, 8, 5]>()
            q3 = Reshape(q, rows)  k3 = Reshape(k, columns)  v3 = Reshape(v, rows)
            s = MatMul(q3, k3)  a = Add(s, m)  p = Softmax<axis = -1>(a)  y = MatMul(p, v3) }"""),
        "the mask 'm' of shape M or 5 or 5 does not fit",
    ),
    "mask of fewer dims of moved scores": (
        model(f"""g ({CORE}, float[T,S] m) => (float[B,2,S,6] y) {{
            qt = Transpose<perm = [0, 1, 3, 2]>(q)  s = MatMul(k, qt)  a = Add(s, m)  p = Softmax<axis = 2>(a)
            pt = Transpose<perm = [0, 1, 3, 2]>(p)  y = MatMul(pt, v) }}"""),
        "scores to which the mask 'm' is applied are moved",
    ),
    "half precision": (
        model("""g (float16[2,2,5,8] q, float16[2,2,8,5] k, float16[2,2,5,8] v) => (float16[2,2,5,8] y) {
            s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(p, v) }"""),
        "does not compute",
    ),
    "unknown heads": (
        model("""g (float[B,H,S,8] q, float[B,H,8,S] k, float[B,H,S,8] v) => (float[B,H,S,8] y) {
            s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(p, v) }"""),
        "not known",
    ),
    "broadcast batch": (
        model("""g (float[B,2,S,8] q, float[1,2,8,S] k, float[B,2,S,8] v) => (float[B,2,S,8] y) {
            s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(p, v) }"""),
        "is broadcast",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    proto, sentence = REFUSED[case]
    assert any(sentence in one for one in refusals(proto)), refusals(proto)


def test_other_products_are_not_near_misses() -> None:
    assert refusals(model("g (float[S,8] x, float[8,4] w) => (float[S,4] y) { y = MatMul(x, w) }")) == []


def test_a_second_run_changes_nothing() -> None:
    after, _ = fuse(heads())
    again, _ = fuse(after)
    assert again.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
