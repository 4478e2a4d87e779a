"""Model-local functions are inlined, on request."""

from __future__ import annotations

from collections.abc import Mapping

import onnx.inliner

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import walk


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
        before = dict(model.functions)
        ir.rebuild(model, onnx.inliner.inline_local_functions)
        _restore_called(model, before)
        ctx.refresh()
        return PassResult(True)


def _restore_called(model: ir.Model, functions: Mapping[tuple[str, str, str], ir.Function]) -> None:
    """Bring back what is still called: the inliner leaves functions of another opset than the model's, and drops those that they call."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    while graphs:
        for node in walk(graphs.pop()):
            key = node.op_identifier()
            if key in functions and key not in model.functions:
                model.functions[key] = functions[key]
                graphs.append(functions[key].graph)
