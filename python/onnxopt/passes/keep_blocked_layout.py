"""Scales and shifts between convolutions become BatchNormalization, which onnxruntime computes in its blocked layout."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.fusions.blocked_layout import RANK, BlockedLayout
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.affine import affine_of, rounded
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal

AFFINE = frozenset({"Add", "Div", "Mul", "Sub"})
OPSET = 7
"""The first opset whose BatchNormalization has its parameters as they are today."""


@register_pass
class KeepBlockedLayout(Pass):
    """Turn Mul, Add, Sub and Div by constants per channel, between convolutions, into one BatchNormalization.

    A tensor that onnxruntime holds in the layout of its convolutions would be reordered before such an op and again
    after it; BatchNormalization it computes in the layout. Refused: what no convolution reads, element types other
    than float32, and targets other than the CPU.
    """

    name = "keep_blocked_layout"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if ctx.target.name != "cpu" or ctx.opset < OPSET:
            return PassResult(False, 0)
        patches = 0
        for graph in ctx.graphs():
            layout = BlockedLayout(graph, ctx)
            for node in list(graph):
                chain = _chain(node, layout)
                patches += bool(chain) and self._replace(chain, layout, ctx)
        return PassResult(patches > 0, patches)

    def _replace(self, chain: list[ir.Node], layout: BlockedLayout, ctx: Context) -> bool:
        source, last = _source(chain[0], layout), chain[-1]
        channels = layout.channels(source)
        if source is None or channels is None:
            return False
        patch = _build(source, chain, channels, ctx)
        if isinstance(patch, Refusal):
            ctx.log.refused(self.name, last, patch, len(chain))
            return False
        return ctx.editor.apply(patch, unused=reversed(chain))


def _source(node: ir.Node, layout: BlockedLayout) -> ir.Value | None:
    """The blocked operand of an op with a constant."""
    if node.domain or node.op_type not in AFFINE:
        return None
    for value, other in (node.inputs, reversed(node.inputs)):
        if layout.channels(value) is not None and ir.constant(other) is not None:
            return value
    return None


def _chain(node: ir.Node, layout: BlockedLayout) -> list[ir.Node]:
    """The ops with constants from here to a convolution; none where there is no convolution."""
    if _source(node, layout) is None:
        return []
    chain = [node]
    while True:
        value = chain[-1].outputs[0]
        if any(layout.is_wanted_by(user) for user, _ in value.uses()):
            return chain
        users = [user for user, _ in value.uses()]
        follows = len(users) == 1 and not value.is_graph_output() and not users[0].domain and users[0].op_type in AFFINE
        if not follows or not any(ir.constant(one) is not None for one in users[0].inputs):
            return []
        chain.append(users[0])


def _build(source: ir.Value, chain: list[ir.Node], channels: int, ctx: Context) -> Patch | Refusal:
    scale, shift, operand = np.ones(channels), np.zeros(channels), source
    for node in chain:
        affine = affine_of(node, operand, rank=RANK, axis=1, length=channels)
        if isinstance(affine, Refusal):
            return affine
        scale = scale * affine.scale_or_one(channels)
        shift = shift * affine.scale_or_one(channels) + affine.shift_or_zero(channels)
        operand = node.outputs[0]
    gamma, beta = (rounded(vector, ir.DataType.FLOAT) for vector in (scale, shift))
    if gamma is None or beta is None:
        return Refusal("the constants together do not fit into float32", culprit=chain[-1])
    b = Builder(ctx, chain[-1])
    parameters = [
        b.constant(gamma, f"{source.name}.scale"),
        b.constant(beta, f"{source.name}.shift"),
        b.constant(np.zeros(channels, np.float32), "mean"),
        b.constant(np.ones(channels, np.float32), "variance"),
    ]
    result = b.op("BatchNormalization", [source, *parameters], {"epsilon": 0.0})[0]
    return b.patch("keep_blocked_layout", {chain[-1].outputs[0]: result})
