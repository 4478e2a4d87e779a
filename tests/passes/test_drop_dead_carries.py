"""Carried values that no one needs, that never change, or that are copies of another."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, ops, run_passes

PASS = "drop_dead_carries"
X = np.array([1.0, -2.0, np.nan, np.inf], np.float32)
SIGNATURE = "float[4] x, int64 n"


def loop(body: str, carries: int, *, outputs: str, left: str, results: str, initial: str = "") -> onnx.ModelProto:
    """A Loop of n trips whose carried values a, b, ... all begin as x or as `initial` says."""
    names = "abcd"[:carries]
    inside = ", ".join(f"float[4] {name}" for name in names)
    start = initial or ", ".join("x" for _ in names)
    text = f"{left} = Loop (n, , {start}) <body = g1 (int64 i, bool k, {inside}) => (bool k2, {results}) {{ k2 = Identity(k) {body} }}>"
    return model(f"g ({SIGNATURE}) => ({outputs}) {{ {text} }}")


def carried(proto: onnx.ModelProto) -> int:
    (node,) = [one for one in proto.graph.node if one.op_type == "Loop"]
    return len(node.input) - 2


def check(before: onnx.ModelProto, left: int) -> None:
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert carried(after) == left
    assert_same(before, after, [{"x": X, "n": np.array(trips)} for trips in (0, 1, 3)], rtol=0, atol=0)


def test_value_that_no_iteration_changes_is_the_one_from_outside() -> None:
    body = "a2 = Add(a, b) b2 = Identity(b)"
    check(loop(body, 2, outputs="float[4] y, float[4] z", left="y, z", results="float[4] a2, float[4] b2"), 1)


def test_values_that_go_on_alike_are_one() -> None:
    body = "a2 = Add(a, x) b2 = Identity(a2)"
    check(loop(body, 2, outputs="float[4] y, float[4] z", left="y, z", results="float[4] a2, float[4] b2"), 1)


def test_values_that_begin_differently_stay_two() -> None:
    body = "a2 = Add(a, x) b2 = Identity(a2)"
    left = loop(
        body, 2, outputs="float[4] y, float[4] z", left="y, z", results="float[4] a2, float[4] b2", initial="x, w"
    )
    left.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(4, np.float32), "w"))
    check(left, 2)


def test_value_that_leads_to_nothing_goes() -> None:
    body = "a2 = Add(a, x) b2 = Mul(b, a)"
    check(loop(body, 2, outputs="float[4] y", left="y, z", results="float[4] a2, float[4] b2"), 1)


def test_chain_of_values_that_lead_to_nothing_goes() -> None:
    body = "a2 = Add(a, x) b2 = Mul(c, b) c2 = Identity(b)"
    check(loop(body, 3, outputs="float[4] y", left="y, z, w", results="float[4] a2, float[4] b2, float[4] c2"), 1)


def test_value_that_another_needs_stays() -> None:
    body = "a2 = Add(a, b) b2 = Mul(b, x)"
    check(loop(body, 2, outputs="float[4] y", left="y, z", results="float[4] a2, float[4] b2"), 2)


def test_exchange_of_values_stays() -> None:
    body = "a2 = Identity(b) b2 = Identity(a)"
    before = loop(
        body, 2, outputs="float[4] y, float[4] z", left="y, z", results="float[4] a2, float[4] b2", initial="x, w"
    )
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "w"))
    check(before, 2)


def test_value_that_the_condition_needs_stays() -> None:
    text = (
        "y, z = Loop (n, , x, x) <body = g1 (int64 i, bool k, float[4] a, float[4] b) => (bool k2, float[4] a2, float[4] b2) "
        "{ a2 = Add(a, x) b2 = Neg(b) f = ReduceMax<keepdims = 0>(b2) t = IsNaN(f) k2 = Not(t) }>"
    )
    before = model(f"g ({SIGNATURE}) => (float[4] y) {{ {text} }}")
    check(before, 2)


@pytest.mark.parametrize("used", ["y", "z"])
def test_scan_output_without_uses_goes(used: str) -> None:
    shape = "float[4]" if used == "y" else "float[t,4]"
    body = "a2 = Add(a, x) s = Mul(a, a)"
    before = loop(body, 1, outputs=f"{shape} {used}", left="y, z", results="float[4] a2, float[4] s")
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    (node,) = after.graph.node
    assert len(node.output) == (1 if used == "y" else 2)
    assert_same(before, after, [{"x": X, "n": np.array(trips)} for trips in (0, 1, 3)], rtol=0, atol=0)


def test_nothing_is_left_of_a_loop_that_changes_nothing() -> None:
    before = loop("a2 = Identity(a)", 1, outputs="float[4] y", left="y", results="float[4] a2")
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert "Loop" not in ops(after)
    assert_same(before, after, [{"x": X, "n": np.array(trips)} for trips in (0, 2)], rtol=0, atol=0)


def test_sequence_of_a_scan_without_uses_goes() -> None:
    text = (
        "y, z = Scan <num_scan_inputs = 2, body = g1 (float[4] a, float[4] p, float[4] q) => (float[4] a2, float[4] s) "
        "{ a2 = Add(a, q) s = Mul(a2, x) }> (x, u, v)"
    )
    before = model(f"g (float[4] x, float[t,4] u, float[t,4] v) => (float[4] y, float[t,4] z) {{ {text} }}")
    after, _ = run_passes(before, PASS)
    (node,) = after.graph.node
    assert list(node.input) == ["x", "v"]
    feed = {"x": X, "u": np.ones((3, 4), np.float32), "v": np.arange(12, dtype=np.float32).reshape(3, 4)}
    assert_same(before, after, feed, rtol=0, atol=0)
