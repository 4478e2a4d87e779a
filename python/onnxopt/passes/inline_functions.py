"""Model-local functions are inlined, on request."""

from __future__ import annotations

import onnx.inliner

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass


@register_pass
class InlineFunctions(Pass):
    """Replace calls of model-local functions by their bodies, nested calls and overloads included, when `--inline-functions` asks for it.

    onnx's own inliner does the work. Functions of onnxopt's custom ops are definitions, not calls; `onnxopt inline` removes those.
    """

    name = "inline_functions"
    phase = "canonicalize"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not ctx.options.inline_functions or not model.functions:
            return PassResult(False)
        ir.rebuild(model, onnx.inliner.inline_local_functions)
        ctx.refresh()
        return PassResult(True)
