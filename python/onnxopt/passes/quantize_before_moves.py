"""Bytes are moved instead of the floats that they are made of."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal

RULE = "quantize_before_moves"

MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
"""Ops whose first input's elements are their result's."""


@register_pass
class QuantizeBeforeMoves(Pass):
    """Let QuantizeLinear read what a chain of Transpose, Reshape and the like moves: bytes move faster than floats, and a chain that goes on
    behind it (a kernel's layout) is one chain.

    Refused: scales along an axis, floats that others read too, and floats that are an output.
    """

    name = RULE
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        nodes = [node for node in ctx.nodes_of([("", "QuantizeLinear")]) if _move_before(node) is not None]
        done = [ctx.editor.try_built(RULE, node, build(node, ctx), 2) for node in nodes]
        return PassResult(any(done), sum(done))

    def rule_names(self) -> list[str]:
        return [RULE]


def _move_before(node: ir.Node) -> ir.Node | None:
    """The node that moves the elements of a node's first input."""
    producer = None if node.inputs[0] is None else node.inputs[0].producer()
    return producer if producer is not None and producer.op_type in MOVES and not producer.domain else None


def build(node: ir.Node, ctx: Context) -> Patch | Refusal:
    """The patch that quantizes before the chain that ends at a QuantizeLinear."""
    if any(value is not None and ctx.shapes.static_shape(value) not in ((), (1,)) for value in node.inputs[1:]):
        return Refusal("it has several scales", culprit=node)
    chain: list[ir.Node] = []
    move = _move_before(node)
    while move is not None:
        result = move.outputs[0]
        if result.is_graph_output() or ir.use_count(result) != 1:
            break
        chain.append(move)
        move = _move_before(move)
    if not chain:
        return Refusal("others read '{}' too", node.inputs[0].name, culprit=node)  # type: ignore[union-attr]
    builder = Builder(ctx, node)
    source, dtype = chain[-1].inputs[0], ctx.shapes.dtype(node.outputs[0])
    assert source is not None
    (value,) = builder.copy_of(node, [source, *node.inputs[1:]])
    ctx.shapes.set(value, dtype, ctx.shapes.shape(source))
    for one in reversed(chain):
        (value,) = builder.copy_of(one, [value, *one.inputs[1:]])
        ctx.shapes.set(value, dtype, ctx.shapes.shape(one.outputs[0]))
    return builder.patch(RULE, {node.outputs[0]: value})
