"""Tensors of 8-bit integers are split as integers."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import quantized
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal

RULE = "split_bytes"


@register_pass
class SplitBytes(Pass):
    """Let Split read and make bytes where what it reads comes from bytes and all its results become bytes, with the same scale and zero point.

    Refused: results that are rounded otherwise, that are read as floats as well, or that are outputs.
    """

    name = RULE
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        done = [self._split(node, ctx) for node in ctx.nodes_of([("", "Split")])]
        return PassResult(any(done), sum(done))

    def _split(self, node: ir.Node, ctx: Context) -> bool:
        built = build(node, ctx)
        if not isinstance(built, Patch):
            return ctx.editor.try_built(RULE, node, built, 2)
        ctx.log.attempted(RULE)
        return ctx.editor.apply(built, unused=[*_readers(node), node])

    def rule_names(self) -> list[str]:
        return [RULE]


def _readers(node: ir.Node) -> list[ir.Node]:
    return [user for result in node.outputs for user, _ in result.uses()]


def build(node: ir.Node, ctx: Context) -> Patch | Refusal | None:
    """The patch that splits the bytes that a Split's operand stands for; None where there are none."""
    given = quantized.dequantized(node.inputs[0], ctx)
    if given is None:
        return None
    for result in node.outputs:
        if result.is_graph_output() or not all(quantized.gives_back(user, given) for user, _ in result.uses()):
            return Refusal("'{}' is read as floats, or rounded otherwise than what it is of", result.name, culprit=node)
    if not _readers(node):
        return Refusal("nothing reads it", culprit=node)
    builder = Builder(ctx, node)
    parts = builder.copy_of(node, [given.value, *node.inputs[1:]])
    for part, result in zip(parts, node.outputs, strict=True):
        ctx.shapes.set(part, given.dtype, ctx.shapes.shape(result))
    replaced = {
        user.outputs[0]: part for part, result in zip(parts, node.outputs, strict=True) for user, _ in result.uses()
    }
    return builder.patch(RULE, replaced)
