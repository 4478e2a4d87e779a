"""Code that both branches of an If share."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "merge_branches"
X = np.array([[1, -2, np.nan], [np.inf, -np.inf, -0.0]], np.float32)
FEEDS = [{"x": X, "flag": np.array(flag)} for flag in (True, False)]
W = np.arange(9, dtype=np.float32).reshape(3, 3)


def choice(
    then_body: str, else_body: str, *, results: str = "y", outputs: str = "y", **weights: np.ndarray
) -> onnx.ModelProto:
    """An If that gives `results`: t0, t1, ... of the first branch, e0, e1, ... of the second; the graph gives `outputs` of them."""
    count = len(results.split(","))
    then_results = ", ".join(f"float[2, 3] t{index}" for index in range(count))
    else_results = ", ".join(f"float[2, 3] e{index}" for index in range(count))
    given = ", ".join(f"float[2, 3] {one}" for one in outputs.split(","))
    text = (
        f"g (float[2, 3] x, bool flag) => ({given}) {{ {results} = If (flag) <then_branch = a () => ({then_results}) {{ {then_body} }}, "
        f"else_branch = b () => ({else_results}) {{ {else_body} }}> }}"
    )
    return model(text, **weights)


def branches(proto: onnx.ModelProto) -> list[list[str]]:
    """The ops of the branches of the only If."""
    node = next(node for node in proto.graph.node if node.op_type == "If")
    by_name = {attr.name: [inner.op_type for inner in attr.g.node] for attr in node.attribute}
    return [by_name["then_branch"], by_name["else_branch"]]


@pytest.mark.parametrize(
    ("then_body", "else_body"),
    [
        ("t0 = Neg(x)", "e0 = Neg(x)"),
        ("a = Neg(x) b = Abs(a) t0 = Add(a, b)", "p = Neg(x) q = Abs(p) e0 = Add(p, q)"),
        ("a = Neg(x) b = Abs(x) t0 = Sub(a, b)", "q = Abs(x) p = Neg(x) e0 = Sub(p, q)"),
        ("t0 = MatMul(x, w)", "e0 = MatMul(x, w)"),
        ("t0 = Identity(x)", "e0 = Identity(x)"),
    ],
    ids=["one node", "chain", "in another order", "product", "passed on"],
)
def test_equal_branches_are_one(then_body: str, else_body: str) -> None:
    before = choice(then_body, else_body, **({"w": W} if "w" in then_body else {}))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert "If" not in op_list(after)
    assert_same(before, after, FEEDS, rtol=0, atol=0)


def test_common_prefix_moves_out() -> None:
    before = choice("a = Neg(x) b = Exp(a) t0 = Add(b, x)", "a2 = Neg(x) b2 = Exp(a2) e0 = Mul(b2, x)")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Neg", "Exp", "If"]
    assert branches(after) == [["Add"], ["Mul"]]
    assert_same(before, after, FEEDS)


def test_equal_result_leaves_and_the_other_stays() -> None:
    before = choice("t0 = Neg(x) t1 = Abs(x)", "e0 = Neg(x) e1 = Exp(x)", results="y, z", outputs="y,z")
    after, _ = run_passes(before, PASS)
    assert branches(after) == [["Abs"], ["Exp"]]
    assert_same(before, after, FEEDS)


def test_result_of_one_branch_that_the_other_computes_on_the_way() -> None:
    before = choice("t0 = Neg(x)", "n = Neg(x) e0 = Abs(n)")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Neg", "If"]
    assert_same(before, after, FEEDS)


def test_unused_result_goes() -> None:
    before = choice("t0 = Neg(x) t1 = Abs(x)", "e0 = Exp(x) e1 = Tanh(x)", results="y, z", outputs="y")
    after, _ = run_passes(before, PASS)
    assert branches(after) == [["Neg"], ["Exp"]]
    assert len(after.graph.node[0].output) == 1
    assert_same(before, after, FEEDS)


def test_outer_if_gets_what_inner_ifs_share() -> None:
    inner = "If (flag) <then_branch = c () => (float[2, 3] {0}t) {{ {0}t = Neg(x) }}, else_branch = d () => (float[2, 3] {0}e) {{ {0}e = Neg(x) }}>"
    before = choice(f"t0 = {inner.format('p')}", f"e0 = {inner.format('q')}")
    after, _ = run_passes(before, PASS, PASS, "eliminate_dead_code")
    assert "If" not in op_list(after)
    assert_same(before, after, FEEDS)


@pytest.mark.parametrize(
    ("then_body", "else_body"),
    [
        ("a = RandomNormalLike(x) t0 = Mul(a, a)", "c = RandomNormalLike(x) e0 = Mul(c, c)"),
        ("a = LeakyRelu<alpha = 0.5>(x) t0 = Neg(a)", "c = LeakyRelu<alpha = 0.25>(x) e0 = Neg(c)"),
        ("a = Sub(x, one) t0 = Neg(a)", "c = Sub(one, x) e0 = Abs(c)"),
        ("a = MatMul(x, w) t0 = Relu(a)", "c = MatMul(x, w) e0 = Tanh(c)"),
    ],
    ids=["random", "other attributes", "other inputs", "product with other followers"],
)
def test_refuses(then_body: str, else_body: str) -> None:
    before = choice(then_body, else_body, w=W, one=np.array(1, np.float32))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["If"]
    assert [len(one) for one in branches(after)] == [2, 2]
