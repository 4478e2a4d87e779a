"""Which convolutions that expand channels, filter and project them become FusedInvertedResidual, and how."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions.fused_separable_conv import BIASED_INPUTS, DOMAIN, is_depthwise, is_pointwise, replace
from onnxopt.ops import fused_inverted_residual as op
from onnxopt.ops.fused_separable_conv import programs
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.rules import Match, Refusal, attribute, rule

SPATIAL_DIMS = 2
"""The kernel takes bands of lines, and a sequence is one line."""

CHANNELS_AXIS = 2
"""Of packed filters."""

NODES = ("expand", "depthwise", "project")


@pattern
def _projection_of_depthwise_of_expansion(p, x, matrix, bias, filters, second_bias, projection, third_bias):  # type: ignore[no-untyped-def]
    expanded = p.op("FusedConv", x, matrix, bias, domain=DOMAIN, as_="expand", biased=1, planar=None, group=1)
    inner = p.op("FusedConv", expanded, filters, second_bias, domain=DOMAIN, as_="depthwise", biased=1, planar=None)
    return p.op(
        "FusedConv", inner, projection, third_bias, domain=DOMAIN, as_="project", biased=1, group=1, open_inputs=True
    )


def _is_inverted_residual(m: Match) -> bool | Refusal:
    expand, depthwise, project = map(m.node, NODES)
    fits = is_depthwise(depthwise, m.ctx) and is_pointwise(expand) and is_pointwise(project)
    if not fits:
        return fits
    if len(attribute(depthwise, "kernel_shape")) != SPATIAL_DIMS:
        return Refusal("the kernel takes images alone", culprit=depthwise)
    if len(expand.inputs) != BIASED_INPUTS:
        return Refusal("the expansion reads more than its input", culprit=expand)
    wide, filters = (attribute(one, "filters") for one in (expand, project))
    shape = m.ctx.shapes.static_shape(m["matrix"])
    channels = None if shape is None else shape[CHANNELS_AXIS]
    if channels is None or wide <= max(channels, filters):
        return Refusal("{} channels between {} and {} are not expanded", wide, channels, filters, culprit=expand)
    return True


@rule(_projection_of_depthwise_of_expansion, where=_is_inverted_residual)
def fuse_inverted_residual(b: Builder, m: Match) -> ir.Value | Refusal:
    """Three convolutions run together, some channels of some lines at a time, so that what lies between stays in the cache."""
    nodes = [m.node(name) for name in NODES]
    expansion, between, epilogue = programs(nodes)
    attributes = {
        "expanded": attribute(nodes[0], "filters"),
        "filters": attribute(nodes[2], "filters"),
        "expansion": expansion,
        "between": between,
        "epilogue": epilogue,
    }
    return replace(b, m, nodes, op.SPEC, op.body, attributes)
