"""Patterns: what matches, in which orders, and what is told of a match that failed."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import model
from onnxopt.rewrite.pattern import Pattern, PatternBuilder, Term, Trace, op, pattern
from onnxopt.rewrite.rules import Match, kind_of
from rewriting import context, node_of


def match(one: Pattern, body: str, root: str, *, outputs: str = "y", **weights: np.ndarray) -> tuple[Match | None, str]:
    """What a pattern finds at the only node of type `root`, and what it says where it finds nothing."""
    ctx = context(model(f"g (float[2,3] x, float[2,3] z) => ({outputs}) {{ {body} }}", **weights))
    trace = Trace()
    node = node_of(ctx, root)
    found = one.match(node, ctx, trace)
    # What the rule set asks first must never leave a match out.
    kinds = [kind_of(value) for value in node.inputs]
    possible = one.alternatives_of(node.domain, node.op_type)
    candidates = [number for number, alternative in possible if alternative.may_match_inputs(node.op_type, kinds)]
    assert found is None or one.match(node, ctx, None, candidates) is not None
    return found, "" if found is not None or trace.refusal is None else str(trace.refusal)


@pattern
def silu(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
    return p.Mul(x, p.Sigmoid(x))


@pattern
def scaled(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
    return p.Mul(x, 0.5)


@pattern
def halved(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
    return p.Div(x, 2)


@pattern
def difference(p: PatternBuilder, x: Term, y: Term):  # type: ignore[no-untyped-def]
    return p.Sub(p.Exp(x), y)


@pattern
def by_axis(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
    return p.Softmax(x, axis=lambda axis: axis in (1, -1))


@pattern
def bounded(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
    return p.Clip(x, p.const("low"), p.optional("high"))


@pattern
def shared_exp(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
    return p.Neg(p.Exp(x, shared=True))


@pattern
def second_output(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
    return p.Neg(p.op("Split", x, output=1, open_inputs=True))


@pattern
def either(p: PatternBuilder, x: Term, y: Term):  # type: ignore[no-untyped-def]
    return p.Neg(p.either(p.Add(p.Exp(x), y), p.Sub(x, y)))


@pattern
def same_node(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
    return p.Add(p.op("Exp", x, as_="exp"), p.Neg(p.op("Exp", x, as_="exp")))


HALF = {"half": np.array(0.5, np.float32)}


@pytest.mark.parametrize(
    ("one", "body", "root", "weights"),
    [
        (silu, "s = Sigmoid(x) y = Mul(x, s)", "Mul", {}),
        (silu, "s = Sigmoid(x) y = Mul(s, x)", "Mul", {}),
        (scaled, "y = Mul(x, half)", "Mul", HALF),
        (scaled, "y = Mul(half, x)", "Mul", HALF),
        (scaled, "y = Mul(x, half)", "Mul", {"half": np.full((2, 3), 0.5, np.float32)}),
        (scaled, "y = Mul(x, half)", "Mul", {"half": np.array(0.50004, np.float32)}),
        (scaled, "half = Constant<value_float=0.5>() y = Mul(x, half)", "Mul", {}),
        (difference, "e = Exp(x) y = Sub(e, z)", "Sub", {}),
        (by_axis, "y = Softmax<axis=1>(x)", "Softmax", {}),
        (bounded, "y = Clip(x, half)", "Clip", HALF),
        (bounded, "y = Clip(x, half, half)", "Clip", HALF),
        (shared_exp, "e = Exp(x) n = Neg(e) y = Add(n, e)", "Neg", {}),
        (second_output, "a, b = Split<axis=0>(x) y = Neg(b)", "Neg", {}),
        (either, "e = Exp(x) a = Add(e, z) y = Neg(a)", "Neg", {}),
        (either, "e = Exp(x) a = Add(z, e) y = Neg(a)", "Neg", {}),
        (either, "a = Sub(x, z) y = Neg(a)", "Neg", {}),
        (same_node, "e = Exp(x) n = Neg(e) y = Add(e, n)", "Add", {}),
        (same_node, "e = Exp(x) n = Neg(e) y = Add(n, e)", "Add", {}),
        (op("Mul", "Div"), "y = Div(x, z)", "Div", {}),
        (silu | scaled, "y = Mul(x, half)", "Mul", HALF),
    ],
    ids=[
        "in order", "commuted", "number", "number first", "equal elements", "number as printed", "constant node",
        "inputs by name", "attribute", "optional absent", "optional present", "shared", "second output",
        "first of either", "first of either commuted", "second of either", "one node twice", "one node twice commuted",
        "one of two types", "second alternative",
    ],
)  # fmt: skip
def test_matches(one: Pattern, body: str, root: str, weights: dict[str, np.ndarray]) -> None:
    found, _ = match(one, body, root, **weights)
    assert found is not None and found.root.op_type == root


@pytest.mark.parametrize(
    ("one", "body", "root", "weights", "sentence"),
    [
        (silu, "s = Sigmoid(z) y = Mul(x, s)", "Mul", {}, "x stands for two different values"),
        (difference, "e = Tanh(x) y = Sub(e, z)", "Sub", {}, "expected Exp, found Tanh"),
        (scaled, "y = Mul(x, z)", "Mul", {}, "expected a constant"),
        (halved, "y = Div(x, two)", "Div", {"two": np.array(2.5, np.float32)}, "expected the constant 2, found 2.5"),
        (halved, "y = Div(x, two)", "Div", {"two": np.array([[2, 1, 1]], np.float32)}, "expected the constant 2, found unknown"),
        (difference, "e = Exp(x) y = Sub(z, e)", "Sub", {}, "expected Exp, found an input or constant"),
        (by_axis, "y = Softmax<axis=0>(x)", "Softmax", {}, "attribute axis is 0"),
        (by_axis, "y = Softmax(x)", "Softmax", {}, "attribute axis is unknown"),
        (bounded, "y = Clip(x)", "Clip", {}, "expected a constant"),
        (op("Mul"), "y = Div(x, z)", "Div", {}, ""),
        (second_output, "a, b = Split<axis=0>(x) y = Neg(a)", "Neg", {}, "expected output 1 of Split, found output 0"),
        (same_node, "e = Exp(x) f = Exp(x) n = Neg(f) y = Add(e, n)", "Add", {}, "exp stands for two different nodes"),
    ],
    ids=[
        "other operand", "other op", "variable for number", "other number", "unequal elements", "not commutative",
        "attribute", "attribute absent", "constant absent", "other root", "first output", "two nodes for one",
    ],
)  # fmt: skip
def test_refuses(one: Pattern, body: str, root: str, weights: dict[str, np.ndarray], sentence: str) -> None:
    found, told = match(one, body, root, **weights)
    assert found is None
    assert sentence in told


def test_refuses_inner_node_that_others_use() -> None:
    found, told = match(silu, "s = Sigmoid(x) y = Mul(x, s) t = Neg(s)", "Mul", outputs="y, t")
    assert found is None and told.startswith("s is also used by Neg")


def test_refuses_inner_node_that_is_an_output() -> None:
    found, told = match(silu, "s = Sigmoid(x) y = Mul(x, s)", "Mul", outputs="y, s")
    assert found is None and told == "s is an output of the graph"


def test_refuses_inner_node_that_a_subgraph_uses() -> None:
    body = """s = Sigmoid(x) y = Mul(x, s) n = ReduceSum<keepdims=0>(z) f = Cast<to=9>(n)
        t = If(f) <then_branch = a () => (float[2,3] p) { p = Neg(s) }, else_branch = b () => (float[2,3] q) { q = Abs(x) }>"""
    found, told = match(silu, body, "Mul", outputs="y, t")
    assert found is None and told.startswith("s is also used by Neg")


def test_names_of_the_pattern_give_values_and_nodes() -> None:
    found, _ = match(same_node, "e = Exp(x) n = Neg(e) y = Add(e, n)", "Add")
    assert found is not None
    assert found["x"].name == "x" and found.node("exp").op_type == "Exp" and found.output.name == "y"
    assert {node.op_type for node in found.matched} == {"Add", "Neg", "Exp"}


def test_a_failed_order_leaves_no_names_behind() -> None:
    """x is bound to `e` in the first order of Add; the second one must start without it."""
    found, _ = match(either, "e = Exp(x) a = Add(z, e) y = Neg(a)", "Neg")
    assert found is not None and (found["x"].name, found["y"].name) == ("x", "z")


@pytest.mark.parametrize(
    ("dtype", "number"), [(np.float16, 0.044715), (np.float16, 0.7978845608), (np.float32, 0.044715)]
)
def test_numbers_as_narrow_types_round_them(dtype: type, number: float) -> None:
    @pattern
    def times(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
        return p.Mul(x, number)

    kind = "float16" if dtype is np.float16 else "float"
    ctx = context(model(f"g ({kind}[3] x) => (y) {{ y = Mul(x, c) }}", c=np.array(number, dtype)))
    assert times.match(node_of(ctx, "Mul"), ctx) is not None


def test_matching_changes_nothing() -> None:
    ctx = context("g (float[2] x) => (y) { s = Sigmoid(x) y = Mul(x, s) }")
    before = [(value.name, len(value.uses())) for node in ctx.model.graph for value in node.outputs]
    silu.match(node_of(ctx, "Mul"), ctx)
    assert before == [(value.name, len(value.uses())) for node in ctx.model.graph for value in node.outputs]
