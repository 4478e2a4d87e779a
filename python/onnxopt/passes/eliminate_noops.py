"""Nodes that change nothing, and pairs of nodes that undo each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxopt import ir
from onnxopt.ir import shape_rules
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op, pattern
from onnxopt.rewrite.rules import Match, Refusal, Rule, RuleSet, attribute, rule

NEUTRAL = {"Mul": 1, "Div": 1, "Pow": 1, "And": 1, "Max": -math.inf, "Min": math.inf}
"""Second operands that change nothing, where that is not 0."""

IDEMPOTENT = ("Abs", "Ceil", "Floor", "Relu", "Round", "Sign")


def _first_input(_: Builder, m: Match) -> ir.Value:
    """The node's first input takes its place."""
    value = m.root.inputs[0]
    assert value is not None
    return value


def _keeps_shape(m: Match, kept: ir.Value) -> bool | Refusal:
    """Whether the kept operand alone has the output's shape: the other one must not broadcast it to a larger one."""
    if m.ctx.shapes.same_shape(kept, m.output):
        return True
    return Refusal("'{}' may be broadcast to another shape", kept.name, culprit=kept)


# --- one node ------------------------------------------------------------------------------------------------------
def _drops_nothing(m: Match) -> bool | Refusal:
    if len(m.root.outputs) > 1 and ir.use_count(m.root.outputs[1]):
        return Refusal("the mask is used", culprit=m.root)
    if attribute(m.root, "is_test", 1) == 0:
        return Refusal("it is in training mode", culprit=m.root)
    training = ir.input_at(m.root, 2)
    if training is not None and ir.scalar(training) not in (False, 0):
        return Refusal("it may be in training mode", culprit=m.root)
    return not any(value.is_graph_output() for value in m.root.outputs[1:])


@rule(op("Dropout"), where=_drops_nothing)
def drop_dropout(b: Builder, m: Match) -> list[ir.Value | None]:
    """Dropout passes its input through when it does not train."""
    return [m.root.inputs[0], *(None for _ in m.root.outputs[1:])]


def _same_type(m: Match) -> bool:
    source = m.root.inputs[0]
    return source is not None and m.ctx.shapes.dtype(source) == m.ctx.shapes.dtype(m.output) is not None


def _full_shape_of_own(m: Match) -> bool:
    source = m.root.inputs[0]
    return source is not None and m.ctx.shapes.same_shape(source, m.output) is True


def _one_input(m: Match) -> bool:
    return len(m.root.inputs) == 1


@pattern
def _double_not(p, x):  # type: ignore[no-untyped-def]
    return p.Not(p.Not(x, shared=True))


@pattern
def _double_neg(p, x):  # type: ignore[no-untyped-def]
    return p.Neg(p.Neg(x, shared=True))


def _take_x(_: Builder, m: Match) -> ir.Value:
    return m["x"]


# --- x + 0, x * 1 --------------------------------------------------------------------------------------------------
@pattern
def _neutral(p, x):  # type: ignore[no-untyped-def]
    return [
        p.Add(x, p.number(0)),
        p.Sub(x, p.number(0)),
        p.Mul(x, p.number(1)),
        p.Div(x, p.number(1)),
        p.Pow(x, p.number(1)),
        p.Or(x, p.number(0)),
        p.And(x, p.number(1)),
        p.Xor(x, p.number(0)),
        p.Max(x, p.number(-math.inf)),
        p.Min(x, p.number(math.inf)),
    ]


def _neutral_fits(m: Match) -> bool | Refusal:
    numbers = [value for value in m.root.inputs if value is not None and value is not m["x"]]
    if not numbers or ir.scalar(numbers[0]) != NEUTRAL.get(m.root.op_type, 0):
        return Refusal("the constant is only nearly neutral", culprit=m.root)
    if m.dtype("x") != m.ctx.shapes.dtype(m.output):
        return False
    return _keeps_shape(m, m["x"])


# --- Expand ---------------------------------------------------------------------------------------------------------
BROADCASTING = ("Add", "Sub", "Mul", "Div", "Max", "Min", "And", "Or", "Xor", "Equal", "Less", "Greater")


@pattern
def _expanded_operand(p, x, v, shape):  # type: ignore[no-untyped-def]
    expanded = p.Expand(v, shape, shared=True, as_="expand")
    return [p.op(BROADCASTING, x, expanded), p.op(BROADCASTING, expanded, x)]


def _is_expanded_anyway(m: Match, expand: ir.Node, others: Sequence[ir.Value]) -> bool:
    """Whether other operands of the root, one of them or all together, have the dims that an operand is expanded to."""
    shapes = m.ctx.shapes
    if any(shapes.same_shape(other, m.output) is True for other in others):
        return True
    target = shapes.elements(expand.inputs[1])
    known = [shape for other in others if (shape := shapes.shape(other)) is not None]
    if target is None or not known:
        return False
    whole = shape_rules.broadcast(shapes, known)
    return shape_rules.broadcast(shapes, [target, whole]) == whole


def _stays(expand: ir.Node) -> bool:
    """Whether an Expand is there for others as well: what it made is then read faster than broadcast again."""
    users = [user for user, _ in expand.outputs[0].uses()]
    return expand.outputs[0].is_graph_output() or any(
        user.domain or user.op_type not in (*BROADCASTING, "Where") for user in users
    )


def _other_has_shape(m: Match) -> bool | Refusal:
    if m.root.inputs[0] is m.root.inputs[1]:
        return False
    if _stays(m.node("expand")):
        return Refusal("others read what it is expanded to", culprit=m.node("expand"))
    if _is_expanded_anyway(m, m.node("expand"), [m["x"]]):
        return True
    return Refusal("'{}' may be broadcast to another shape", m["x"].name, culprit=m.root)


@rule(_expanded_operand, where=_other_has_shape)
def drop_expand_of_operand(b: Builder, m: Match) -> ir.Value:
    """An operand need not be expanded to a shape that the other one has: the op broadcasts it."""
    return b.copy_of(m.root, [m["v"] if value is not m["x"] else m["x"] for value in m.root.inputs])[0]


@rule(op("Where"))
def drop_expand_in_where(b: Builder, m: Match) -> ir.Value | None:
    """A condition or branch need not be expanded to a shape that other inputs have."""
    inputs = list(m.root.inputs)
    for index, value in enumerate(inputs):
        expand = None if value is None else value.producer()
        if expand is None or expand.op_type != "Expand" or expand.domain or _stays(expand):
            continue
        if _is_expanded_anyway(m, expand, [other for other in inputs if other is not None and other is not value]):
            return b.Where(*inputs[:index], expand.inputs[0], *inputs[index + 1 :])
    return None


# --- Where, Clip, Relu ---------------------------------------------------------------------------------------------
@pattern
def _where_not(p, c, x, y):  # type: ignore[no-untyped-def]
    return p.Where(p.Not(c, shared=True), x, y)


@rule(_where_not)
def swap_where_branches(b: Builder, m: Match) -> ir.Value:
    """Where(Not(c), x, y) is Where(c, y, x)."""
    return b.Where(m["c"], m["y"], m["x"])


def _constant_condition(m: Match) -> bool | Refusal:
    condition = ir.scalar(m.root.inputs[0])
    if condition is None:
        return False
    chosen = m.root.inputs[1 if condition else 2]
    assert chosen is not None
    return _keeps_shape(m, chosen)


@rule(op("Where"), where=_constant_condition)
def fold_where(_: Builder, m: Match) -> ir.Value:
    """Where with a constant condition is one of its branches."""
    chosen = m.root.inputs[1 if ir.scalar(m.root.inputs[0]) else 2]
    assert chosen is not None
    return chosen


@rule(op("Where"), where=lambda m: m.root.inputs[1] is m.root.inputs[2] and _keeps_shape(m, m.root.inputs[1]))  # type: ignore[arg-type]
def fold_where_equal_branches(_: Builder, m: Match) -> ir.Value:
    """Where with equal branches is the branch."""
    branch = m.root.inputs[1]
    assert branch is not None
    return branch


@pattern
def _idempotent(p, x):  # type: ignore[no-untyped-def]
    return [p.op(name, p.op(name, x, shared=True)) for name in IDEMPOTENT]


def _inner(_: Builder, m: Match) -> ir.Value:
    value = m.root.inputs[0]
    assert value is not None
    return value


def _clip_keeps_relu(m: Match) -> bool:
    bounds = _clip_bounds(m.root)
    return bounds is not None and bounds[0] is not None and bounds[0] >= 0


def _clip_bounds(node: ir.Node) -> tuple[float | None, float | None] | None:
    """Lowest and highest value of a Clip, None for an open end; None altogether where a bound is not constant."""
    if "min" in node.attributes or "max" in node.attributes:
        return attribute(node, "min"), attribute(node, "max")
    found: list[float | None] = []
    for index in (1, 2):
        value = ir.input_at(node, index)
        number = ir.scalar(value)
        if value is not None and number is None:
            return None
        found.append(None if number is None else float(number))
    return found[0], found[1]


@pattern
def _clip_of_relu(p, x):  # type: ignore[no-untyped-def]
    return p.Clip(p.Relu(x, shared=True), open_inputs=True)


@rule(_clip_of_relu, where=_clip_keeps_relu)
def drop_relu_before_clip(b: Builder, m: Match) -> ir.Value:
    """Clip from 0 or above takes Relu's work over."""
    return b.copy_of(m.root, [m["x"], *m.root.inputs[1:]])[0]


RULES = RuleSet(
    [
        Rule("drop_identity", op("Identity"), _first_input),
        drop_dropout,
        Rule("drop_cast_to_own_type", op("Cast", "CastLike"), _first_input, _same_type),
        Rule("drop_expand_to_own_shape", op("Expand", "Tile"), _first_input, _full_shape_of_own),
        Rule("drop_single_operand", op("Sum", "Mean", "Max", "Min", "Concat"), _first_input, _one_input),
        Rule("drop_double_not", _double_not, _take_x),
        Rule("drop_double_neg", _double_neg, _take_x),
        Rule("drop_neutral_operand", _neutral, _take_x, _neutral_fits),
        Rule("drop_repeated_idempotent", _idempotent, _inner),
        swap_where_branches,
        fold_where,
        fold_where_equal_branches,
        drop_relu_before_clip,
        drop_expand_of_operand,
        drop_expand_in_where,
    ]
)


@register_pass
class EliminateNoops(RulePass):
    """Remove nodes that change nothing: Identity, Dropout, casts to the own type, x+0, x*1, repeated idempotent ops, decided Wheres,
    and Expands of operands that are broadcast anyway.

    `x + 0.0` is dropped although it turns -0.0 into 0.0, as every optimizer of the field does. Refused: operands that broadcast the
    kept one to a larger shape, and Dropout that may train.
    """

    name = "eliminate_noops"
    phase = "simplify"
    rules = RULES
