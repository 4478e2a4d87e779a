"""Which pairs of a depthwise and a pointwise convolution become FusedSeparableConv, and how."""

from __future__ import annotations

import math

from onnxopt import ir
from onnxopt.ops import fused_conv
from onnxopt.ops import fused_separable_conv as op
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.rules import Match, Refusal, attribute, rule

DOMAIN = fused_conv.SPEC.domain
BIASED_INPUTS = 3


@pattern
def _pointwise_of_depthwise(p, x, filters, bias, matrix, second_bias):  # type: ignore[no-untyped-def]
    inner = p.op("FusedConv", x, filters, bias, domain=DOMAIN, as_="depthwise", biased=1, planar=None)
    return p.op(
        "FusedConv", inner, matrix, second_bias, domain=DOMAIN, as_="pointwise", biased=1, group=1, open_inputs=True
    )


def _is_separable(m: Match) -> bool | Refusal:
    depthwise, pointwise = m.node("depthwise"), m.node("pointwise")
    filters = m.ctx.shapes.static_shape(m["filters"])
    if filters is None or len(filters) != 2 or len(depthwise.inputs) != BIASED_INPUTS:
        return Refusal("the first is not depthwise, or reads more than its input", culprit=depthwise)
    taps = math.prod(attribute(pointwise, "kernel_shape"))
    moved = [*(attribute(pointwise, "strides") or ()), *(1 + pad for pad in attribute(pointwise, "pads") or ())]
    if taps != 1 or any(number != 1 for number in moved):
        return Refusal("the second is not pointwise", culprit=pointwise)
    shape = m.ctx.shapes.static_shape(m.output)
    if shape is not None and math.prod(shape[:-1]) < m.ctx.target.costs.separable_pixels:
        return Refusal("{} pixels are too few", math.prod(shape[:-1]), culprit=pointwise)
    return True


@rule(_pointwise_of_depthwise, where=_is_separable)
def fuse_separable_conv(b: Builder, m: Match) -> ir.Value | Refusal:
    """A depthwise and a pointwise convolution run together, so that the tensor between them stays in the cache."""
    ctx, nodes = m.ctx, (m.node("depthwise"), m.node("pointwise"))
    functions = [ctx.model.functions.get(node.op_identifier()) for node in nodes]
    if functions[0] is None or functions[1] is None:
        return Refusal("a body is missing", culprit=m.root)
    between, epilogue = op.programs(nodes)
    further = nodes[1].inputs[BIASED_INPUTS:]
    overload = op.overload(nodes[0].overload, nodes[1].overload)
    if (op.SPEC.domain, op.SPEC.name, overload) not in ctx.model.functions:
        b.functions.append(op.body(functions[0], functions[1], len(further), ctx.opset))
    windows = {
        name: nodes[0].attributes[name]
        for name in ("kernel_shape", "strides", "pads", "dilations", "auto_pad")
        if name in nodes[0].attributes
    }
    attributes = {**windows, "filters": attribute(nodes[1], "filters"), "between": between, "epilogue": epilogue}
    inputs = [m["x"], m["filters"], m["bias"], m["matrix"], m["second_bias"], *further]
    (result,) = b.op(op.SPEC.name, inputs, attributes, domain=op.SPEC.domain, overload=overload, name=nodes[1].name)
    ctx.shapes.set(result, ctx.shapes.dtype(m.output), ctx.shapes.shape(m.output))
    return result
