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


REFUSED = {
    "weights are an output": (
        core("p = Softmax<axis = -1>(s)", "", ", float[B,2,S,T] p"),
        "others use the weights 'p'",
    ),
    "scores are an output": (core("p = Softmax<axis = -1>(s)", "", ", float[B,2,S,T] s"), "others use the scores 's'"),
    "softmax over rows": (core("p = Softmax<axis = 2>(s)"), "not over the keys"),
    "scaled after the mask": (
        core(
            "a = Add(s, m) c = Constant<value_float = 2.0>() b = Mul(a, c) p = Softmax<axis = -1>(b)", ", float[S,T] m"
        ),
        "scaled after the mask 'm'",
    ),
    "scaled by a tensor": (core("a = Mul(s, m) p = Softmax<axis = -1>(a)", ", float[S,T] m"), "scaled by no constant"),
    "another op between": (core("a = Abs(s) p = Softmax<axis = -1>(a)"), "Abs is between"),
    "mask that broadcasts the scores": (
        core("a = Add(s, m) p = Softmax<axis = -1>(a)", ", float[B,2,S,U] m"),
        "the mask 'm' of shape B or 2 or S or U does not fit",
    ),
    "half precision": (
        model("""g (float16[2,2,5,8] q, float16[2,2,8,5] k, float16[2,2,5,8] v) => (float16[2,2,5,8] y) {
            s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(p, v) }"""),
        "float32",
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


def test_native_attention_is_left_alone() -> None:
    text = "g (float[2,2,5,8] q, float[2,2,5,8] k, float[2,2,5,8] v) => (float[2,2,5,8] y) { y = Attention(q, k, v) }"
    assert refusals(model(text, opset=23, ir_version=10)) == []


def test_a_second_run_changes_nothing() -> None:
    after, _ = fuse(heads())
    again, _ = fuse(after)
    assert again.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
