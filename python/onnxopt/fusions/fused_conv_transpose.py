"""Which transposed convolutions become FusedConvTranspose, and how."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.ops import fused_conv_transpose as op
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal, attribute

MAX_BYTES = 4 << 20
"""Filters up to this size are packed here and now; those of such heads are far smaller."""


def refuse(node: ir.Node, shapes: ir.ShapeEnv) -> Refusal | None:
    """Why a ConvTranspose is none for the kernel; None where it is."""
    x, filters, *bias = node.inputs
    if x is None or filters is None or shapes.dtype(x) is not ir.DataType.FLOAT:
        return Refusal("the kernel computes float32", culprit=node)
    shape, tensor = shapes.static_shape(filters), ir.constant(filters)
    if shape is None or len(shape) != op.RANK or tensor is None or tensor.nbytes > MAX_BYTES or 0 in shape:
        return Refusal("its filters are not constant, or not of two spatial dims", culprit=node)
    if any(value is not None and ir.constant(value) is None for value in bias):
        return Refusal("its biases are not constant", culprit=node)
    if any(attr.is_ref() for attr in node.attributes.values()) or attribute(node, "group", 1) != 1:
        return Refusal("it has groups, or an attribute that is not known here", culprit=node)
    if tuple(attribute(node, "strides", ())) != shape[2:] or any(attribute(node, "pads", ())):
        return Refusal("its windows overlap, or it is padded", culprit=node)
    plain = attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID") and "output_shape" not in node.attributes
    if not plain or any(attribute(node, "output_padding", ())) or set(attribute(node, "dilations", (1,))) != {1}:
        return Refusal("it is padded or dilated", culprit=node)
    return None


def build(b: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    """The FusedConvTranspose of a ConvTranspose, for its input in channels-last layout; the result is in that layout too."""
    ctx = b.ctx
    filters = ir.constant(node.inputs[1])
    assert filters is not None
    array = filters.numpy()
    channels, count, height, width = array.shape
    held = ir.constant(ir.input_at(node, 2))
    bias = np.zeros(count, np.float32) if held is None else held.numpy()
    name = filters.name or "filters"
    inputs = [x, b.constant(op.pack(array), name), b.constant(np.tile(bias, width), "bias")]
    shape = (channels, count, height, width)
    overload = op.overload(shape, ctx.opset)
    if (op.SPEC.domain, op.SPEC.name, overload) not in ctx.model.functions:
        b.functions.append(op.body(shape, ctx.opset))
    attributes = {"kernel_shape": [height, width], "filters": count}
    return b.op(
        op.SPEC.name, inputs, attributes, domain=op.SPEC.domain, overload=overload, name=node.name or op.SPEC.name
    )[0]
