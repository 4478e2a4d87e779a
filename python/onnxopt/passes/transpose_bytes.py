"""Transposes beside quantization: they move bytes instead of floats."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import quantized
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.passes.sink_transposes import move_before
from onnxopt.rewrite.driver import Driver
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op
from onnxopt.rewrite.permutations import Move, Permutation, is_identity, move, permutation
from onnxopt.rewrite.rules import Match, RuleSet, rule

MOST_STEPS = 8
"""Nodes between a Transpose and a QuantizeLinear that are looked at."""


@rule(op("Transpose"))
def transpose_before_dequantizing(b: Builder, m: Match) -> ir.Value | None:
    """What is transposed after DequantizeLinear is transposed before it, where others may have the bytes so already."""
    perm, floats = permutation(m.ctx, m.root), m.root.inputs[0]
    found = quantized.dequantized(floats, m.ctx)
    if perm is None or found is None or floats is None:
        return None
    node = floats.producer()
    assert node is not None
    at_hand = (user.outputs[0] for user, _ in found.value.uses() if permutation(m.ctx, user) == perm)
    moved = next(at_hand, None)
    return b.copy_of(node, [b.Transpose(found.value, perm=perm) if moved is None else moved, *node.inputs[1:]])[0]


RULES = RuleSet([transpose_before_dequantizing])
QUANTIZE = "transpose_after_quantizing"


@register_pass
class TransposeBytes(Pass):
    """Move Transposes behind the QuantizeLinear that follows them, and before the DequantizeLinear that they follow.

    Between a convolution of bytes and its QuantizeLinear there is then only what the convolution itself computes, and a residual sum reads
    bytes. Regions of convolutions on a processor are channels-last as a whole; this is for CUDA devices, where what is between them has
    kernels for channels first alone. Refused: several scales, results that others read in between.
    """

    name = "transpose_bytes"
    phase = "fuse"

    def rule_names(self) -> list[str]:
        return [QUANTIZE, *(one.name for one in RULES)]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if ctx.target.name != "cuda":
            return PassResult(False)
        patches = sum(_lower(node, ctx) for node in list(model.graph) if quantized.quantization(node) is not None)
        patches += Driver(RULES, ctx).run(model.graph)
        if patches:
            # Bytes that are at hand may have been made later than what reads them now.
            model.graph.sort()
        return PassResult(patches > 0, patches)


def _lower(quantize: ir.Node, ctx: Context) -> int:
    """Move the Transpose above a QuantizeLinear behind it. Returns the number of patches."""
    found = _chain(quantize, ctx)
    if found is None:
        return 0
    perm, nodes = found
    applied = 0
    for node, how in nodes:
        if not move_before(node, perm, how, ctx):
            break
        applied += 1
    return applied


def _chain(quantize: ir.Node, ctx: Context) -> tuple[Permutation, list[tuple[ir.Node, Move]]] | None:
    """The axes of the Transpose above a node, and the nodes from it to that one, if each reads nothing but the one before it."""
    nodes = [quantize]
    for _ in range(MOST_STEPS):
        value = nodes[-1].inputs[0]
        maker = None if value is None else value.producer()
        if value is None or maker is None or ir.use_count(value) != 1 or value.is_graph_output():
            return None
        perm = permutation(ctx, maker)
        if perm is None:
            nodes.append(maker)
            continue
        moves = [(node, move(ctx, node, perm)) for node in reversed(nodes)]
        taken = [(node, how) for node, how in moves if how is not None and how.data == (0,) and how.outputs == (perm,)]
        return (perm, taken) if len(taken) == len(moves) and not is_identity(perm) else None
    return None
