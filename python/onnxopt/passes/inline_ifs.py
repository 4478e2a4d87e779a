"""Ifs whose condition is known are replaced by the branch that runs."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import walk


@register_pass
class InlineIfs(Pass):
    """Inline the branch of an If that is certain to run: a constant condition, or one that shape arithmetic decides.

    An If inside an If is inlined as well, innermost last, without recursion. Refused: conditions that depend on run-time values.
    """

    name = "inline_ifs"
    phase = "fold"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        stack = [node for node in walk(model.graph) if node.op_type == "If"]
        stack.reverse()
        while stack:
            node = stack.pop()
            if node.op_type != "If" or node.domain or node.graph is None:
                continue
            condition = _condition(node, ctx)
            if condition is None:
                continue
            branch = node.attributes["then_branch" if condition else "else_branch"].as_graph()
            inner = [one for one in walk(branch) if one.op_type == "If"]
            outputs = dict(zip(node.outputs, branch.outputs, strict=True))
            if not ctx.editor.inline_graph(self.name, node, branch, [], outputs):
                break
            patches += 1
            stack.extend(reversed(inner))
        return PassResult(patches > 0, patches)


def _condition(node: ir.Node, ctx: Context) -> bool | None:
    value = node.inputs[0]
    known = ir.scalar(value)
    if known is None:
        elements = ctx.shapes.integers(value)
        known = elements[0] if elements else None
    return None if known is None else bool(known)
