"""Which Resize nodes become FusedResize, and how the others run channels-last."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.ops import fused_resize as op
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal, attribute

MODES = ("nearest", "linear")
RANK = 4
REPEATING = frozenset(
    {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("tf_half_pixel_for_nn", "floor")}
)
"""Coordinates and roundings that find pixel i / n for pixel i of n times as many."""

COORDINATES_OPSET = 11
"""Before, coordinates were asymmetric and rounded down."""


def refuse(node: ir.Node, shapes: ir.ShapeEnv) -> Refusal | None:
    """Why a Resize cannot run channels-last; None where it can."""
    x = node.inputs[0]
    if x is None or shapes.dtype(x) is not ir.DataType.FLOAT or shapes.rank(x) != RANK:
        return Refusal("it is not of float32 with two spatial dims", culprit=node)
    known = attribute(node, "mode", "nearest") in MODES and not attribute(node, "antialias", 0)
    if not known or "axes" in node.attributes:
        return Refusal("the runtime has no kernel of its mode in the other layout", culprit=node)
    if attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return Refusal("it crops", culprit=node)
    result = shapes.shape(node.outputs[0])
    if result is None or shapes.equal(result[1], shapes.shape(x)[1]) is not True:  # type: ignore[index]
        return Refusal("it resizes channels", culprit=node)
    numbers = [ir.small_array(value) for value in node.inputs[1:] if value is not None]
    if not any(one is not None and one.size == RANK for one in numbers):
        return Refusal("its scales are not constant", culprit=node)
    return None


def build(b: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    """The op that gives the resized image, for its input in channels-last layout; the result is in that layout too."""
    factors = _factors(node, b.ctx.opset)
    if factors is None:
        return _permuted(b, node, x)
    overload = op.overload(factors, b.ctx.opset)
    if (op.SPEC.domain, op.SPEC.name, overload) not in b.ctx.model.functions:
        b.functions.append(op.body(factors, b.ctx.opset))
    return b.op(
        op.SPEC.name,
        [x],
        {"factors": list(factors)},
        domain=op.SPEC.domain,
        overload=overload,
        name=node.name or op.SPEC.name,
    )[0]


def repeats(node: ir.Node, opset: int) -> bool:
    """Whether a Resize only repeats pixels, for which there is a kernel."""
    return _factors(node, opset) is not None


def _factors(node: ir.Node, opset: int) -> tuple[int, int] | None:
    """How often pixels are repeated, where that is all."""
    if attribute(node, "mode", "nearest") != "nearest":
        return None
    coordinates = attribute(node, "coordinate_transformation_mode", "half_pixel")
    rounding = attribute(node, "nearest_mode", "round_prefer_floor")
    index = 1 if opset < COORDINATES_OPSET else 2
    scales = ir.small_array(node.inputs[index]) if index < len(node.inputs) else None
    if opset >= COORDINATES_OPSET and (coordinates, rounding) not in REPEATING:
        return None
    if scales is None or scales.size != RANK or scales.dtype.kind != "f":
        return None
    batch, channels, height, width = (float(scale) for scale in scales)
    whole = height.is_integer() and width.is_integer() and min(height, width) >= 1
    return (int(height), int(width)) if (batch, channels) == (1, 1) and whole else None


def _permuted(b: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    """The same op, whose scales or sizes follow the dims."""
    inputs: list[ir.Value | None] = [x]
    for value in node.inputs[1:]:
        numbers = ir.small_array(value)
        has_one_per_dim = numbers is not None and numbers.size == RANK
        inputs.append(b.constant(numbers[[0, 2, 3, 1]], "sizes") if has_one_per_dim else value)  # type: ignore[index]
    return b.copy_of(node, inputs)[0]
