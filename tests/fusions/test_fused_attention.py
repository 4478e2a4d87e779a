"""Which nodes become FusedAttention, what of their surroundings it takes in, and why others do not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import CORE, LOWEST, assert_same, core, fuse, fused, normal, operands, refusals
from helpers import model, run_passes

pytest.importorskip("onnxopt._native", reason="the native library is not built")


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


def test_keys_and_values_of_a_single_batch_without_its_dim() -> None:
    proto = model("""g (float[1,2,5,8] q, float[2,8,7] k, float[2,7,6] v, float[1,1,5,7] m) => (float[1,2,5,6] y) {
        s = MatMul(q, k)  a = Add(s, m)  p = Softmax<axis = -1>(a)  y = MatMul(p, v) }""")
    found = fused(proto)
    assert (found["k"], found["v"], found["kv_heads"]) == ("h d s", "h s d", 2)
    assert_same(proto, {"q": normal(1, 2, 5, 8), "k": normal(2, 8, 7), "v": normal(2, 7, 6), "m": normal(1, 1, 5, 7)})


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


def test_weights_as_the_right_operand() -> None:
    text = """g (float[B,2,8,S] q, float[B,2,8,T] k, float[B,2,6,T] v) => (float[B,2,6,S] y) {
        qt = Transpose<perm = [0, 1, 3, 2]>(q)
        s = MatMul(qt, k)  p = Softmax<axis = -1>(s)
        pt = Transpose<perm = [0, 1, 3, 2]>(p)  y = MatMul(v, pt)
    }"""
    found = fused(model(text))
    assert (found["q"], found["k"], found["v"], found["y"]) == ("b h d s",) * 4
    assert_same(model(text), {"q": normal(2, 2, 8, 5), "k": normal(2, 2, 8, 7), "v": normal(2, 2, 6, 7)})


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
