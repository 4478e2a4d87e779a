"""What every iteration computes alike."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, ops, run_passes

PASS = "hoist_loop_invariants"
X = np.array([[1.0, -2.0], [np.nan, np.inf]], np.float32)


def loop(
    body: str, *, trips: int | None = None, result: str = "float[2,2] s2", **weights: np.ndarray
) -> onnx.ModelProto:
    text = f"y = Loop (n, , x) <body = g1 (int64 i, bool k, float[2,2] s) => (bool k2, {result}) {{ k2 = Identity(k) {body} }}>"
    if trips is None:
        return model(f"g (float[2,2] x, int64 n) => (float[2,2] y) {{ {text} }}", **weights)
    return model(f"g (float[2,2] x) => (float[2,2] y) {{ {text} }}", n=np.array(trips), **weights)


def feeds(before: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    names = [one.name for one in before.graph.input]
    return [{"x": X, "n": np.array(trips)} if "n" in names else {"x": X} for trips in (0, 1, 3)]


def test_chain_of_invariants_moves_before_the_loop() -> None:
    before = loop("p = MatMul(x, x) q = Tanh(p) s2 = Add(s, q)")
    after, _ = run_passes(before, PASS)
    assert op_list(after)[:2] == ["MatMul", "Tanh"]
    assert_same(before, after, feeds(before), rtol=0, atol=0)


def test_what_depends_on_the_iteration_or_a_carried_value_stays() -> None:
    before = loop("f = Cast<to = 1>(i) p = Mul(x, f) q = Mul(s, s) r = Add(p, q) s2 = Add(s, r)")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Loop"]


@pytest.mark.parametrize(("trips", "moves"), [(None, False), (0, False), (2, True)])
def test_what_may_fail_moves_only_when_the_loop_runs(trips: int | None, moves: bool) -> None:
    body = "f = ReduceMin<keepdims = 0>(x) q = Cast<to = 7>(f) z = Sub(q, q) w = Unsqueeze(z, zero) p = Gather(x, w) s2 = Add(s, p)"
    before = loop(body, trips=trips, zero=np.array([0]))
    after, _ = run_passes(before, PASS)
    assert ("Gather" in op_list(after)) == moves
    assert_same(before, after, feeds(before), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("step", "moves"),
    [
        ("p = Gather(x, w)", True),
        ("p = Slice(x, w, one, w)", True),
        ("p = Reshape(x, dims)", True),
        ("p = Gather(x, far)", False),
    ],
)
def test_what_cannot_fail_moves_before_a_loop_that_may_not_run(step: str, moves: bool) -> None:
    numbers = {"w": np.array([0]), "one": np.array([1]), "dims": np.array([2, 2]), "far": np.array([9])}
    before = loop(f"{step} m = ReduceMax<keepdims = 0>(p) s2 = Add(s, m)", trips=0, **numbers)
    after, _ = run_passes(before, PASS)
    assert (len(op_list(after)) > 1) == moves
    assert_same(before, after, feeds(before), rtol=0, atol=0)


def test_integer_division_stays_where_the_loop_may_not_run() -> None:
    text = (
        "y = Loop (n, , x) <body = g1 (int64 i, bool k, int64 s) => (bool k2, int64 s2) "
        "{ k2 = Identity(k) p = Div(x, d) s2 = Add(s, p) }>"
    )
    before = model(f"g (int64 x, int64 n, int64 d) => (int64 y) {{ {text} }}")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Loop"]
    assert_same(before, after, {"x": np.array(7), "n": np.array(0), "d": np.array(0)}, rtol=0, atol=0)


def test_random_numbers_stay() -> None:
    before = loop("r = RandomUniformLike(x) s2 = Add(s, r)")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Loop"]


def test_result_of_the_body_stays_inside() -> None:
    before = loop("s2 = MatMul(x, x)")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Loop"]
    assert_same(before, after, feeds(before), rtol=0, atol=0)


def test_invariant_of_nested_loops_moves_out_of_both() -> None:
    inner = (
        "t = Loop (n, , s) <body = g2 (int64 j, bool q, float[2,2] u) => (bool q2, float[2,2] u2) "
        "{ q2 = Identity(q) p = Exp(x) u2 = Add(u, p) }> s2 = Identity(t)"
    )
    before = loop(inner)
    after, _ = run_passes(before, PASS)
    after, _ = run_passes(after, PASS)
    assert op_list(after)[0] == "Exp"
    assert_same(before, after, feeds(before), rtol=0, atol=0)


def test_names_that_shadow_outer_ones_are_made_new() -> None:
    text = (
        "p = Neg(x) y = Loop (n, , p) <body = g1 (int64 i, bool k, float[2,2] s) => (bool k2, float[2,2] s2) "
        "{ k2 = Identity(k) q = Exp(x) s2 = Add(s, q) }> q2 = Mul(y, p) z = Loop (n, , q2) <body = g3 (int64 i, bool k, float[2,2] s) => "
        "(bool k2, float[2,2] s2) { k2 = Identity(k) q = Tanh(p) s2 = Add(s, q) }>"
    )
    before = model(f"g (float[2,2] x, int64 n) => (float[2,2] z) {{ {text} }}")
    after, _ = run_passes(before, PASS)
    assert {"Exp", "Tanh"} <= set(op_list(after))
    assert_same(before, after, feeds(before), rtol=0, atol=0)
    assert "Loop" in ops(after)
