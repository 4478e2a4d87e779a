"""Which poolings become FusedPool, and how."""

from __future__ import annotations

import math

from onnxopt import ir
from onnxopt.fusions.fused_conv import RANKS, windows_of
from onnxopt.fusions.quantized import BYTES
from onnxopt.ops import fused_pool as op
from onnxopt.ops.base import prepare_model
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op as single
from onnxopt.rewrite.permutations import constant_axes
from onnxopt.rewrite.rules import Match, Refusal, attribute, rule

EXPLICIT = ("NOTSET", "VALID")
"""Values of `auto_pad` that say how much is padded."""


def refuse(node: ir.Node, shapes: ir.ShapeEnv) -> Refusal | None:
    """Why a pooling, or a ReduceMean of all spatial dims, is none for the kernel; None where it is."""
    x = node.inputs[0]
    types = (ir.DataType.FLOAT, *BYTES) if node.op_type == "MaxPool" else (ir.DataType.FLOAT,)
    if x is None or shapes.dtype(x) not in types or shapes.rank(x) not in RANKS:
        return Refusal("the kernel computes float32, and maxima of bytes, with one or two spatial dims", culprit=node)
    if len(node.outputs) > 1 or any(attr.is_ref() for attr in node.attributes.values()):
        return Refusal("it has a further output, or an attribute that is not known here", culprit=node)
    if node.op_type == "ReduceMean":
        rank = shapes.rank(x)
        assert rank is not None
        spatial = attribute(node, "keepdims", 1) and constant_axes(node, 1, rank)
        return (
            None
            if spatial and sorted(spatial) == list(range(2, rank))
            else Refusal("it keeps a spatial dim", culprit=node)
        )
    if node.op_type == "AveragePool" and attribute(node, "count_include_pad", 0) and attribute(node, "ceil_mode", 0):
        return Refusal("runtimes differ in what they count beyond the padding", culprit=node)
    if set(attribute(node, "dilations", ()) or ()) - {1} and attribute(node, "auto_pad", "NOTSET") not in EXPLICIT:
        return Refusal("runtimes differ in how they pad windows with gaps to the same size", culprit=node)
    return None


def _kind(node: ir.Node) -> str:
    if node.op_type in ("GlobalAveragePool", "ReduceMean"):
        return "global_average"
    if node.op_type == "MaxPool":
        return "max"
    return "average_with_pads" if attribute(node, "count_include_pad", 0) else "average"


def build(b: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    """The FusedPool of a pooling, for its input in channels-last layout; the result is in that layout too."""
    ctx = b.ctx
    kind = _kind(node)
    rank = None if node.inputs[0] is None else ctx.shapes.rank(node.inputs[0])
    assert rank is not None
    windows = {} if kind == "global_average" else windows_of(node, "ceil_mode")
    overload = op.overload(kind, rank, windows, ctx.opset)
    b.define(op.SPEC.domain, op.SPEC.name, overload, lambda: op.body(kind, rank, windows, ctx.opset))
    return b.op(
        op.SPEC.name,
        [x],
        {"kind": kind, **windows},
        domain=op.SPEC.domain,
        overload=overload,
        name=node.name or op.SPEC.name,
    )[0]


@rule(single("ReduceMean"), where=lambda m: m.ctx.target.name == "cpu")
def fuse_mean(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """The means of all channels of [N, H, W, C] or [N, L, C], which the kernel adds up row by row."""
    node, ctx = m.root, m.ctx
    x = node.inputs[0]
    shape = None if x is None else ctx.shapes.shape(x)
    if x is None or shape is None or len(shape) not in RANKS or ctx.shapes.dtype(x) is not ir.DataType.FLOAT:
        return Refusal("the kernel computes float32 with one or two spatial dims", culprit=node)
    if node.graph is not ctx.model.graph:
        return Refusal("what a loop or branch reads may have no known rank when it is run", culprit=node)
    rank = len(shape)
    axes = constant_axes(node, 1, rank)
    if axes is None or sorted(axes) != list(range(1, rank - 1)):
        return Refusal("it keeps other dims than samples and channels", culprit=node)
    static = ctx.shapes.static_shape(x)
    if static is not None and math.prod(static) < ctx.target.costs.norm_elements:
        return Refusal("{} elements take less time than the call", math.prod(static), culprit=node)
    result = build(b, node, x)
    ctx.shapes.set(result, ir.DataType.FLOAT, (shape[0], *(1 for _ in axes), shape[-1]))
    prepare_model(ctx.model)
    return result if attribute(node, "keepdims", 1) else b.Flatten(result)
