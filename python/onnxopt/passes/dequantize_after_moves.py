"""Bytes that a subgraph reads as floats, after they were moved, are moved as bytes."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions.quantized import BYTES
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.passes.pool_bytes import MIN_OPSET
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal, attribute

RULE = "dequantize_after_moves"

MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "MaxPool")
"""Ops that onnxruntime has read bytes where a DequantizeLinear is before them."""


@register_pass
class DequantizeAfterMoves(Pass):
    """Let DequantizeLinear read what a chain of moves makes of bytes, where an If, Loop or Scan captures the chain's result.

    onnxruntime does so everywhere, but looks for the reader of the result among the inputs that the op itself has: it ends the process where
    a subgraph is the reader. Refused: scales along an axis, maxima whose windows may lie in the padding or are indices as well.
    """

    name = RULE
    phase = "lower"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        nodes = [node for node in ctx.nodes_of([("", move) for move in MOVES]) if _is_captured(node)]
        done = [ctx.editor.try_built(RULE, node, build(node, ctx), 2) for node in nodes]
        return PassResult(any(done), sum(done))

    def rule_names(self) -> list[str]:
        return [RULE]


def _is_captured(node: ir.Node) -> bool:
    """Whether a subgraph reads the result of a node, perhaps after it was moved further."""
    stack, seen = [node], {node}
    while stack:
        users = {user for user, _ in stack.pop().outputs[0].uses()} - seen
        if any(user.graph is not node.graph for user in users):
            return True
        stack += [user for user in users if user.op_type in MOVES and not user.domain]
        seen |= users
    return False


def build(node: ir.Node, ctx: Context) -> Patch | Refusal | None:
    """The patch that lets a node move the bytes that a DequantizeLinear reads; None where none is before it."""
    floats = node.inputs[0]
    dequantize = None if floats is None else floats.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.domain:
        return None
    source, *parameters = dequantize.inputs
    if any(value is not None and ctx.shapes.static_shape(value) not in ((), (1,)) for value in parameters):
        return Refusal("it has several scales", culprit=dequantize)
    if node.op_type == "MaxPool" and not _takes_bytes(node, dequantize, ctx):
        return Refusal("its maxima are not those of the bytes", culprit=node)
    builder = Builder(ctx, node)
    (moved,) = builder.copy_of(node, [source, *node.inputs[1:]])
    ctx.shapes.set(moved, ctx.shapes.dtype(source), ctx.shapes.shape(node.outputs[0]))  # type: ignore[arg-type]
    return builder.patch(RULE, {node.outputs[0]: builder.copy_of(dequantize, [moved, *parameters])[0]})


def _takes_bytes(pool: ir.Node, dequantize: ir.Node, ctx: Context) -> bool:
    """Whether MaxPool takes the bytes, larger ones are larger floats, and every window has an element."""
    dtype, scale = ctx.shapes.dtype(dequantize.inputs[0]), ir.scalar(dequantize.inputs[1])  # type: ignore[arg-type]
    ordered = dtype in BYTES and scale is not None and scale > 0 and ctx.opset >= MIN_OPSET
    kernel = attribute(pool, "kernel_shape", ())
    pads = attribute(pool, "pads", (0,) * (2 * len(kernel)))
    inside = all(pad < size for pad, size in zip(pads, (*kernel, *kernel), strict=True))
    plain = attribute(pool, "auto_pad", "NOTSET") == "NOTSET" and not attribute(pool, "ceil_mode", 0)
    return (
        ordered
        and inside
        and plain
        and all(step == 1 for step in attribute(pool, "dilations", ()))
        and len(pool.outputs) == 1
    )
