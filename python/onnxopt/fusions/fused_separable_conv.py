"""Which pairs of a depthwise and a pointwise convolution become FusedSeparableConv, and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from onnxopt import ir
from onnxopt.ops import fused_conv
from onnxopt.ops import fused_separable_conv as op
from onnxopt.ops.base import OpSpec
from onnxopt.passes.base import Context
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


def is_depthwise(node: ir.Node, ctx: Context) -> bool | Refusal:
    """Whether a FusedConv with biases is a depthwise convolution whose epilogue reads nothing but its result."""
    filters = None if node.inputs[1] is None else ctx.shapes.static_shape(node.inputs[1])
    depthwise = filters is not None and len(filters) == 2 and filters[1] == attribute(node, "group", 1)
    if not depthwise or len(node.inputs) != BIASED_INPUTS:
        return Refusal("the convolution between is not depthwise, or reads more than its input", culprit=node)
    return True


def is_pointwise(node: ir.Node) -> bool | Refusal:
    """Whether a FusedConv is a product of each pixel's channels."""
    moved = [*(attribute(node, "strides") or ()), *(1 + pad for pad in attribute(node, "pads") or ())]
    if math.prod(attribute(node, "kernel_shape")) != 1 or any(number != 1 for number in moved):
        return Refusal("a convolution beside the depthwise one is not pointwise", culprit=node)
    return True


def replace(
    b: Builder,
    m: Match,
    nodes: Sequence[ir.Node],
    spec: OpSpec,
    body: Callable[[Sequence[ir.Function], int, int], ir.Function],
    attributes: dict[str, int | str | None],
) -> ir.Value | Refusal:
    """One node for FusedConv nodes with biases, each of which reads the result of the one before; one of them is depthwise."""
    ctx = m.ctx
    functions = [found for node in nodes if (found := ctx.model.functions.get(node.op_identifier())) is not None]
    if len(functions) < len(nodes):
        return Refusal("a body is missing", culprit=m.root)
    weights = [value for node in nodes for value in node.inputs[1:]]
    overload = op.overload(*(one.overload for one in functions))
    if (spec.domain, spec.name, overload) not in ctx.model.functions:
        b.functions.append(body(functions, len(weights) - 2 * len(nodes), ctx.opset))
    depthwise = nodes[-2].attributes
    names = ("kernel_shape", "strides", "pads", "dilations", "auto_pad")
    windows = {name: depthwise[name] for name in names if name in depthwise}
    inputs = [nodes[0].inputs[0], *weights]
    (result,) = b.op(
        spec.name, inputs, {**windows, **attributes}, domain=spec.domain, overload=overload, name=nodes[-1].name
    )
    ctx.shapes.set(result, ctx.shapes.dtype(m.output), ctx.shapes.shape(m.output))
    return result


def _is_separable(m: Match) -> bool | Refusal:
    pointwise = m.node("pointwise")
    fits = is_depthwise(m.node("depthwise"), m.ctx) and is_pointwise(pointwise)
    if not fits:
        return fits
    shape = m.ctx.shapes.static_shape(m.output)
    if shape is not None and math.prod(shape[:-1]) < m.ctx.target.costs.separable_pixels:
        return Refusal("{} pixels are too few", math.prod(shape[:-1]), culprit=pointwise)
    return True


@rule(_pointwise_of_depthwise, where=_is_separable)
def fuse_separable_conv(b: Builder, m: Match) -> ir.Value | Refusal:
    """A depthwise and a pointwise convolution run together, so that the tensor between them stays in the cache."""
    nodes = (m.node("depthwise"), m.node("pointwise"))
    between, epilogue = op.programs(nodes)
    attributes = {"filters": attribute(nodes[1], "filters"), "between": between, "epilogue": epilogue}
    return replace(b, m, nodes, op.SPEC, op.body, attributes)
