"""Contrib ops of onnxruntime, where they are allowed."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import contrib
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.passes.fuse_attention import FuseAttention


@register_pass
class UseContribOps(Pass):
    """Use MultiHeadAttention of onnxruntime's domain com.microsoft; only with `allow_contrib`, as the result needs onnxruntime.

    Our own kernel of attention comes first: this is for the target "generic", and where `fuse_attention` is left out.
    """

    name = "use_contrib_ops"
    phase = "contrib"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        ours = ctx.target.custom_ops and FuseAttention.name not in ctx.options.without
        if ours or not ctx.options.allow_contrib:
            return PassResult(False)
        products = [node for node in model.graph if node.op_type == "MatMul" and node.domain == ""]
        used = [self._use(node, ctx) for node in products]
        return PassResult(any(used), sum(used))

    def _use(self, node: ir.Node, ctx: Context) -> bool:
        built = None if node.graph is None else contrib.build(node, ctx)
        return ctx.editor.try_built(contrib.RULE, node, built, 3)

    def rule_names(self) -> list[str]:
        return [contrib.RULE]
