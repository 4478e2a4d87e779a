"""Which convolutions become FusedConv, and how."""

from __future__ import annotations

from typing import Any

from onnxopt import ir
from onnxopt.ops import fused_conv as op
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal, attribute

RANKS = (3, 4)
WINDOW_ATTRIBUTES = ("kernel_shape", "strides", "pads", "dilations", "auto_pad")


def windows_of(node: ir.Node, *more: str) -> dict[str, Any]:
    """The attributes of a node that say where its windows lie."""
    names = (*WINDOW_ATTRIBUTES, *more)
    return {name: _plain(attribute(node, name)) for name in names if name in node.attributes}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else list(value)


def refuse(node: ir.Node, shapes: ir.ShapeEnv) -> Refusal | None:
    """Why a Conv is none for the kernel; None where it is."""
    x, filters, *bias = node.inputs
    if x is None or filters is None or shapes.dtype(x) is not ir.DataType.FLOAT:
        return Refusal("the kernel computes float32", culprit=node)
    shape = shapes.static_shape(filters)
    if shape is None or len(shape) not in RANKS or 0 in shape:
        return Refusal("the kernel has one or two spatial dims", culprit=node)
    group = attribute(node, "group", 1)
    if group > 1 and shape[1] == 1 and 1 < shape[0] // group < ir.PANEL:
        return Refusal("{} filters of each channel leave most of a vector empty", shape[0] // group, culprit=node)
    if any(value is not None and ir.constant(value) is None for value in (filters, *bias)):
        return Refusal("its filters or biases are not constant", culprit=node)
    if any(attr.is_ref() for attr in node.attributes.values()):
        return Refusal("an attribute of it is not known here", culprit=node)
    return None


def reads_planar(node: ir.Node, ctx: Context) -> bool:
    """Whether the kernel reads the input of a Conv well as it is, [N, C, ...]."""
    assert node.inputs[1] is not None
    shape = ctx.shapes.static_shape(node.inputs[1])
    dilations = attribute(node, "dilations", (1,))
    few = shape is not None and shape[1] <= ctx.target.costs.planar_channels and shape[-1] > 1
    return few and attribute(node, "group", 1) == 1 and bool(dilations) and dilations[-1] == 1


def build(b: Builder, node: ir.Node, x: ir.Value, *, planar: bool = False) -> ir.Value:
    """The FusedConv of a Conv, for its input in channels-last layout (as it is, if `planar`); the result is in that layout."""
    ctx = b.ctx
    filters, bias = node.inputs[1], ir.input_at(node, 2)
    assert filters is not None
    shape, tensor = ctx.shapes.static_shape(filters), ir.constant(filters)
    assert shape is not None and tensor is not None
    group = int(attribute(node, "group", 1))
    windows = {"kernel_shape": list(shape[2:]), **windows_of(node)}
    name = filters.name or "filters"
    inputs = [x, b.constant(ir.packed_filters(tensor, name, group), name)]
    if bias is not None:
        inputs.append(bias)
    biased = bias is not None
    overload = op.overload(shape, windows, group, ctx.opset, biased=biased, planar=planar)
    b.define(
        op.SPEC.domain,
        op.SPEC.name,
        overload,
        lambda: op.body(shape, windows, group, ctx.opset, biased=biased, planar=planar),
    )
    attributes = {**windows, "group": group, "filters": shape[0]}
    attributes |= {"biased": 1 if biased else None, "planar": 1 if planar else None}
    return b.op(
        op.SPEC.name, inputs, attributes, domain=op.SPEC.domain, overload=overload, name=node.name or op.SPEC.name
    )[0]
