"""Ifs whose condition is known are replaced by the branch that runs."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import walk
from onnxopt.rewrite.editor import subgraphs
from onnxopt.rewrite.patch import Patch


@register_pass
class InlineIfs(Pass):
    """Inline the branch of an If that is certain to run.

    The condition is constant, or decided by shape arithmetic, or by an If around it that tests the same value. `If(Not(c), a, b)`
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
        ctx.log.applied(Patch("swap_if_branches", node))
        ctx.editor.remove_unused([inverse])
        return True

    def _decide(self, graph: ir.Graph, known: dict[ir.Value, bool], ctx: Context) -> int:
        """Give Ifs inside the branches of an If that tests the same value a constant condition."""
        patches = 0
        for node in list(graph):
            condition = node.inputs[0] if _is_if(node) else None
            if condition is not None and condition in known and ctx.budget.take():
                node.replace_input_with(0, _boolean(known[condition], ctx))
                ctx.log.applied(Patch("decide_if_by_outer_if", node))
                patches += 1
                condition = None
            for inner in subgraphs(node):
                inside = known
                if condition is not None:
                    inside = {**known, condition: inner is node.attributes["then_branch"].value}
                patches += self._decide(inner, inside, ctx)
        return patches


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
