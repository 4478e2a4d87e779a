"""Ifs whose condition is known are replaced by the branch that runs."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import walk
from onnxopt.rewrite.editor import subgraphs

Known = dict[ir.Value, float | bool]
"""Values of one element that are certain within a branch."""


@register_pass
class InlineIfs(Pass):
    """Inline the branch of an If that is certain to run.

    The condition is constant, or decided by shape arithmetic, or by an If around it: that tests the same value, or one
    from which it follows through Not, And, Or and comparisons with constants. `If(Not(c), a, b)`
    becomes `If(c, b, a)`. An If inside an inlined branch is looked at again, without recursion. Refused: conditions that depend on
    run-time values.
    """

    name = "inline_ifs"
    phase = "fold"

    def rule_names(self) -> list[str]:
        return ["inline_ifs", "decide_if_by_outer_if", "swap_if_branches"]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not ctx.has_subgraphs:
            return PassResult(False)
        patches = 0
        for node in list(walk(model.graph)):
            if _is_if(node):
                patches += self._swap(node, ctx)
        patches += self._decide(model.graph, {}, ctx)
        stack = [node for node in walk(model.graph) if _is_if(node)]
        stack.reverse()
        while stack:
            node = stack.pop()
            if node.graph is None:
                continue
            condition = _condition(node, ctx)
            if condition is None:
                continue
            branch = node.attributes["then_branch" if condition else "else_branch"].as_graph()
            inner = [one for one in walk(branch) if _is_if(one)]
            outputs = dict(zip(node.outputs, branch.outputs, strict=True))
            if not ctx.editor.inline_graph(self.name, node, branch, [], outputs):
                break
            patches += 1
            stack.extend(reversed(inner))
        return PassResult(patches > 0, patches)

    def _swap(self, node: ir.Node, ctx: Context) -> bool:
        condition = node.inputs[0]
        inverse = None if condition is None else condition.producer()
        if inverse is None or inverse.op_type != "Not" or inverse.domain or not ctx.budget.take():
            return False
        then_branch, else_branch = node.attributes["then_branch"], node.attributes["else_branch"]
        node.attributes["then_branch"] = ir.Attr("then_branch", else_branch.type, else_branch.value)
        node.attributes["else_branch"] = ir.Attr("else_branch", then_branch.type, then_branch.value)
        node.replace_input_with(0, inverse.inputs[0])
        ctx.log.applied("swap_if_branches", node)
        ctx.editor.remove_unused([inverse])
        return True

    def _decide(self, graph: ir.Graph, known: Known, ctx: Context) -> int:
        """Give Ifs inside the branches of an If constant conditions where that one's condition decides theirs."""
        patches = 0
        for node in list(graph):
            condition = node.inputs[0] if _is_if(node) else None
            decided = None if condition is None or not known or ir.constant(condition) else _evaluate(condition, known)
            if decided is not None and ctx.budget.take():
                node.replace_input_with(0, _boolean(bool(decided), ctx))
                ctx.log.applied("decide_if_by_outer_if", node)
                patches += 1
                condition = None
            for inner in subgraphs(node):
                inside = known
                if condition is not None:
                    inside = dict(known)
                    _learn(condition, inner is node.attributes["then_branch"].value, inside)
                patches += self._decide(inner, inside, ctx)
        return patches


COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "And": operator.and_,
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Or": operator.or_,
    "Xor": operator.xor,
}
MAX_DEPTH = 8
"""How far back conditions are looked at: exporters combine two or three comparisons."""


def _learn(value: ir.Value, truth: bool, known: Known, depth: int = 0) -> None:
    """Note what follows from a condition: its own truth, that of its parts, and the number that a value is equal to."""
    known[value] = truth
    node = value.producer()
    if node is None or node.domain or depth > MAX_DEPTH:
        return
    parts = [one for one in node.inputs if one is not None]
    if node.op_type == "Not":
        _learn(parts[0], not truth, known, depth + 1)
    elif node.op_type == "Identity":
        _learn(parts[0], truth, known, depth + 1)
    elif (node.op_type == "And" and truth) or (node.op_type == "Or" and not truth):
        for part in parts:
            _learn(part, truth, known, depth + 1)
    elif node.op_type == "Equal":
        for part, other in (parts, parts[::-1]):
            number = ir.scalar(other)
            if isinstance(number, bool):
                _learn(part, number == truth, known, depth + 1)
            elif isinstance(number, int) and truth:
                known[part] = number


def _evaluate(value: ir.Value | None, known: Known, depth: int = 0) -> float | bool | None:
    """The number or truth of a value of one element that follows from what is known; None where nothing does."""
    if value is None or depth > MAX_DEPTH:
        return None
    found = known.get(value)
    number = ir.scalar(value) if found is None else found
    if number is not None:
        return number
    node = value.producer()
    if node is None or node.domain:
        return None
    parts = [_evaluate(one, known, depth + 1) for one in node.inputs]
    if node.op_type in ("Not", "Identity") and parts[0] is not None:
        return not parts[0] if node.op_type == "Not" else parts[0]
    if node.op_type in ("And", "Or") and (node.op_type == "Or") in [part for part in parts if part is not None]:
        return node.op_type == "Or"
    compare = COMPARISONS.get(node.op_type)
    if compare is None or len(parts) != 2 or parts[0] is None or parts[1] is None:
        return None
    return bool(compare(parts[0], parts[1]))


def _boolean(value: bool, ctx: Context) -> ir.Value:
    return ctx.constant(np.array(value), "condition")


def _is_if(node: ir.Node) -> bool:
    return node.op_type == "If" and not node.domain


def _condition(node: ir.Node, ctx: Context) -> bool | None:
    value = node.inputs[0]
    known = ir.scalar(value)
    if known is None:
        elements = ctx.shapes.integers(value)
        known = elements[0] if elements else None
    return None if known is None else bool(known)
