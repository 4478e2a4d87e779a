"""Custom ops become the standard ops that they stand for."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.ops.base import DOMAIN
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import walk
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal

EMITTED_DOMAINS = frozenset({DOMAIN, "com.microsoft"})
"""Domains of the ops that onnxopt emits. Its functions have an overload, which tells them from those of others."""

ROUNDING = {"cpu": frozenset({"QGemm", "QConv", "QAttention"}), "cuda": frozenset({"QGemm", "QConv"})}
"""By target, the ops of integers for which it has kernels."""


@register_pass
class InlineCustomOps(Pass):
    """Put the body of every op that onnxopt emitted in its place, constants as initializers.

    So a model that was optimized before can be optimized anew, also for a target without custom ops. Refused: nodes
    whose function the model does not hold, bodies of another opset than the model's, and nodes of integers for which the target has
    a kernel: the many ops that round in their bodies would not become one node again. For a processor, which has kernels for all ops, a
    model that holds such a node stays as it is. Functions that the model came with stay.
    """

    name = "inline_custom_ops"
    phase = "canonicalize"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not any(_is_emitted(*key) for key in model.functions):
            return PassResult(False)
        nodes = [node for node in walk(model.graph) if _is_emitted(*node.op_identifier())]
        if ctx.target.name == "cpu" and any(_is_of_integers(node, ctx) for node in nodes):
            return PassResult(False)
        patches = sum(self._inline(node, model, ctx) for node in nodes)
        self._remove_functions(model)
        return PassResult(patches > 0, patches)

    def _inline(self, node: ir.Node, model: ir.Model, ctx: Context) -> bool:
        function = model.functions.get(node.op_identifier())
        refusal = _refuse(node, function, ctx)
        if refusal is not None:
            ctx.log.refused(self.name, node, refusal, 1)
            return False
        assert function is not None
        builder = Builder(ctx, node)
        values: dict[ir.Value | None, ir.Value | None] = {None: None}
        values.update(zip(function.inputs, node.inputs, strict=True))
        for inner in function:
            if inner.op_type == "Constant" and "value" in inner.attributes:
                values[inner.outputs[0]] = builder.constant(inner.attributes["value"].as_tensor().numpy())
            else:
                values.update(
                    zip(inner.outputs, builder.copy_of(inner, [values[one] for one in inner.inputs]), strict=True)
                )
        replacements = {
            old: new for old, one in zip(node.outputs, function.outputs, strict=True) if (new := values[one])
        }
        return ctx.editor.apply(builder.patch(self.name, replacements), unused=[node])

    @staticmethod
    def _remove_functions(model: ir.Model) -> None:
        called = {node.op_identifier() for node in walk(model.graph)}
        for key in [key for key in model.functions if _is_emitted(*key) and key not in called]:
            del model.functions[key]
        if not any(domain == DOMAIN for domain, _, _ in called):
            model.graph.opset_imports.pop(DOMAIN, None)


def _is_emitted(domain: str, name: str, overload: str) -> bool:
    return domain in EMITTED_DOMAINS and bool(overload)


def _is_of_integers(node: ir.Node, ctx: Context) -> bool:
    packed = ctx.target.name == "cpu" and node.op_type == "FusedGemm" and "block" in node.attributes
    return packed or node.op_type in ROUNDING.get(ctx.target.name, ())


def _refuse(node: ir.Node, function: ir.Function | None, ctx: Context) -> Refusal | None:
    if function is None:
        return Refusal("the model holds no body of {}", node.op_type, culprit=node)
    if _is_of_integers(node, ctx):
        return Refusal("the target multiplies the integers of {}", node.op_type, culprit=node)
    if function.opset_imports.get("", ctx.opset) != ctx.opset:
        return Refusal("the body of {} is of another opset than the model", node.op_type, culprit=node)
    if len(node.inputs) != len(function.inputs) or len(node.outputs) != len(function.outputs):
        return Refusal("{} has other inputs or outputs than its body", node.op_type, culprit=node)
    return None
