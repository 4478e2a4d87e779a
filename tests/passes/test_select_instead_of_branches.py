"""Ifs of few small element-wise nodes that become Where."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "select_instead_of_branches"
X = np.array([[1, -2, np.nan], [np.inf, -np.inf, -0.0]], np.float32)
FEEDS = [{"x": X, "flag": np.array(flag)} for flag in (True, False)]


def graph(
    then_body: str, else_body: str, *, shape: str = "2,3", made: str = "2,3", condition: str = "flag"
) -> onnx.ModelProto:
    """Element-wise nodes around an If that gives `t` or `e`."""
    branches = f"then_branch = a () => (float[{made}] t) {{ {then_body} }}, else_branch = b () => (float[{made}] e) {{ {else_body} }}"
    return model(
        f"g (float[{shape}] x, bool flag) => (float[{made}] y) {{ p = Neg(x) q = Tanh(p) i = If ({condition}) <{branches}> r = Abs(i) y = Sqrt(r) }}"
    )


SMALL = ("f = Exp(q) t = Add(f, p)", "h = Abs(q) e = Mul(h, x)")


ALONE = model(
    "g (float[2,3] x, bool flag) => (float[2,3] y) { y = If (flag) <then_branch = a () => (float[2,3] t) { t = Exp(x) }, "
    "else_branch = b () => (float[2,3] e) { e = Abs(x) }> }"
)


def test_small_branches_become_where() -> None:
    before = graph(*SMALL)
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["Neg", "Tanh", "Exp", "Add", "Abs", "Mul", "Where", "Abs", "Sqrt"]
    assert_same(before, after, FEEDS, rtol=0, atol=0)


def test_the_result_is_one_kernel_inside_the_pipeline() -> None:
    before = graph(*SMALL)
    after, _ = run_passes(before, PASS, "fuse_elementwise", target="cpu")
    assert op_list(after) == ["FusedElementwise"]
    assert_same(before, after, FEEDS, library=True)


def test_several_results() -> None:
    text = (
        "g (float[2,3] x, bool flag) => (float[2,3] y, float[2,3] z) { p = Neg(x) i, j = If (flag) <then_branch = a () => (float[2,3] t, "
        "float[2,3] u) { t = Exp(p) u = Abs(p) }, else_branch = b () => (float[2,3] e, float[2,3] f) { e = Identity(x) f = Neg(p) }> "
        "y = Abs(i) z = Add(j, x) }"
    )
    after, _ = run_passes(model(text), PASS, target="cpu")
    assert op_list(after).count("Where") == 2
    assert_same(model(text), after, FEEDS, rtol=0, atol=0)


@pytest.mark.parametrize(
    "before",
    [
        graph("t = Softmax(q)", "h = Abs(q) g = Neg(h) e = Mul(g, x)"),
        graph("f = RandomNormalLike(q) t = Add(f, p)", "h = Abs(q) e = Mul(h, x)"),
        graph(*SMALL, shape="N,3", made="N,3"),
        graph(*SMALL, shape="64,64", made="64,64"),
        ALONE,
    ],
    ids=["not element-wise", "random", "unknown size", "large", "nothing to fuse with"],
)
def test_refuses(before: onnx.ModelProto) -> None:
    after, _ = run_passes(before, PASS, target="cpu")
    assert "If" in op_list(after)


def test_stays_a_branch_where_no_kernel_fuses() -> None:
    after, _ = run_passes(graph(*SMALL), PASS)
    assert "If" in op_list(after)


def test_branches_of_other_ranks_stay() -> None:
    before = graph("t = Exp(q)", "h = Exp(q) k = Abs(h) m = Neg(k) n = Abs(m) e = ReduceMax<axes = [0]>(n)", made="a,b")
    after, _ = run_passes(before, PASS, target="cpu")
    assert "If" in op_list(after)


SHORT_CIRCUITS = {
    "and": ("t = Greater(v, u)", "e = Identity(false)", ["And"]),
    "or": ("t = Identity(true)", "e = Greater(v, u)", ["Or"]),
    "either": ("t = Less(v, u)", "e = Greater(v, u)", ["And", "Not", "And", "Or"]),
}


@pytest.mark.parametrize("name", SHORT_CIRCUITS)
def test_conditions_are_computed_whole(name: str) -> None:
    then_body, else_body, expected = SHORT_CIRCUITS[name]
    before = model(
        f"""g (float v, float u, bool flag) => (bool y) {{ y = If (flag) <then_branch = a () => (bool t) {{ {then_body} }},
            else_branch = b () => (bool e) {{ {else_body} }}> }}""",
        true=np.array(True),
        false=np.array(False),
    )
    after, _ = run_passes(before, PASS, target="cpu")
    logic = [op for op in op_list(after) if op not in ("Greater", "Less", "Identity")]
    assert logic == expected
    for flag in (True, False):
        for v in (0.0, 2.0, np.nan):
            feed = {"v": np.float32(v), "u": np.float32(1), "flag": np.array(flag)}
            assert_same(before, after, {key: np.array(value) for key, value in feed.items()})


IN_LOOPS = {
    "a token that is looked up": ("e = Gather(s, place) t = Concat<axis = 0>(e, e, e)", "u = Neg(s)", True),
    "a product": ("t = MatMul(s, s)", "m = Softmax(s) u = Mul(m, s)", True),
    "a part": ("p = Slice(s, zero, one, zero) t = Concat<axis = 0>(p, p, p)", "u = Identity(s)", True),
    "an index that may lie outside": ("q = Cast<to = 7>(m0) e = Gather(s, q) t = Add(e, s)", "u = Neg(s)", False),
    "what is random": ("t = RandomNormalLike(s)", "u = Neg(s)", False),
}


@pytest.mark.parametrize("name", IN_LOOPS)
def test_any_small_branches_in_loops(name: str) -> None:
    then_body, else_body, selected = IN_LOOPS[name]
    before = model(
        f"""g (float[3,3] x, int64 n) => (float[3,3] y) {{ y = Loop (n, , x) <body = g1 (int64 i, bool k, float[3,3] s) => (bool k2, float[3,3] s2) {{
            k2 = Identity(k) m0 = ReduceMax<keepdims = 0>(s) c = Less(m0, half)
            r = If (c) <then_branch = a () => (float[3,3] t) {{ {then_body} }}, else_branch = b () => (float[3,3] u) {{ {else_body} }}>
            s2 = Mul(r, half) }}> }}""",
        half=np.array(0.5, np.float32),
        place=np.array([1]),
        zero=np.array([0]),
        one=np.array([1]),
    )
    after, _ = run_passes(before, PASS, target="cpu")
    body = next(attr.g for node in after.graph.node for attr in node.attribute if attr.HasField("g"))
    assert ("If" not in [node.op_type for node in body.node]) == selected
    if "random" not in name:
        x = np.random.default_rng(0).normal(0, 0.3, (3, 3)).astype(np.float32)
        assert_same(before, after, [{"x": x, "n": np.array(n)} for n in (0, 1, 4)])
