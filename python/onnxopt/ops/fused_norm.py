"""FusedNorm: layer, RMS, group and instance normalization, and what is computed element by element before and after it.

Inputs: those of the prologue (without one: the tensor); with `scaled` and `biased` a factor and a term; what else the epilogue reads.
Outputs: those of the epilogue (without one: the normalized tensor); with `kept` the prologue's result. Attributes: `kind` (layer or rms);
`axis` (negative, the first of the normalized axes) and `inner` (how many axes follow them), scale and bias having the dims of these axes; or
`groups`, of the channels of [N, C, ...], or with `channels_last` of [N, ..., C] (then without prologue), scale and bias being [C]; `epsilon`; `prologue` and `epilogue` (expressions, see fused_elementwise). All float32, but for what the expressions say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import BodyBuilder, OpSpec, overload_of
from onnxopt.ops.fused_conv import channels_first, channels_last
from onnxopt.rewrite.rules import attribute

SPEC = OpSpec(
    name="FusedNorm",
    attributes=(
        "kind",
        "axis",
        "inner",
        "groups",
        "channels_last",
        "epsilon",
        "scaled",
        "biased",
        "kept",
        "prologue",
        "epilogue",
    ),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 1e-5},
)

LAYER_NORM_OPSET, RMS_NORM_OPSET, AXES_INPUT_OPSET = 17, 23, 18


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """What a node without prologue and epilogue computes. `inner` is how many axes follow those of scale and bias."""

    kind: str = "layer"
    axis: int = -1
    inner: int = 0
    groups: int = 0
    epsilon: float = 1e-5
    scaled: bool = False
    biased: bool = False
    channels_last: bool = False

    @staticmethod
    def of(node: ir.Node, rank: int) -> Layout:
        """The layout of a node whose tensor has that rank."""
        groups = attribute(node, "groups", 0)
        return Layout(
            attribute(node, "kind", "layer"),
            attribute(node, "axis", -1),
            rank - 2 if groups else attribute(node, "inner", 0),
            groups,
            attribute(node, "epsilon", 1e-5),
            bool(attribute(node, "scaled", 0)),
            bool(attribute(node, "biased", 0)),
            bool(attribute(node, "channels_last", 0)),
        )

    def attributes(self) -> dict[str, Any]:
        where = {"groups": self.groups} if self.groups else {"axis": self.axis}
        if self.inner and not self.groups:
            where["inner"] = self.inner
        flags = {name: 1 for name in ("channels_last", "scaled", "biased") if getattr(self, name)}
        return {"kind": self.kind, **where, "epsilon": self.epsilon, **flags}

    def affine_shape(self, shape: Sequence[object]) -> tuple[object, ...]:
        """The dims of scale and bias for a tensor of that shape."""
        if self.groups:
            return (shape[-1] if self.channels_last else shape[1],)
        return tuple(shape[self.axis : len(shape) - self.inner])

    def overload(self, opset: int) -> str:
        return overload_of(f"{opset}|{self}")


def body(layout: Layout, opset: int) -> ir.Function:
    """The function of a node without prologue and epilogue."""
    builder = BodyBuilder(1 + layout.scaled + layout.biased, opset)
    x, *affine = builder.inputs
    if layout.groups and layout.channels_last:
        rank = layout.inner + 2
        planar = builder.op("Transpose", [x], {"perm": channels_first(rank)})
        result = builder.op("Transpose", [_grouped(builder, layout, planar, affine)], {"perm": channels_last(rank)})
    elif layout.groups:
        result = _grouped(builder, layout, x, affine)
    elif (op_type := _standard_op(layout, opset)) is not None:
        result = builder.op(op_type, [x, *affine], {"axis": layout.axis, "epsilon": layout.epsilon})
    else:
        result = _affine(builder, layout, _normalized(builder, layout, x), affine)
    return builder.function(SPEC, layout.overload(opset), [result])


def _standard_op(layout: Layout, opset: int) -> str | None:
    """The op of the standard that computes the same."""
    if layout.inner:
        return None
    if layout.kind == "layer" and opset >= LAYER_NORM_OPSET and layout.scaled:
        return "LayerNormalization"
    if layout.kind == "rms" and opset >= RMS_NORM_OPSET and layout.scaled and not layout.biased:
        return "RMSNormalization"
    return None


def _mean(b: BodyBuilder, x: ir.Value, layout: Layout) -> ir.Value:
    axes = list(range(layout.axis, -layout.inner))
    if b.opset < AXES_INPUT_OPSET:
        return b.op("ReduceMean", [x], {"axes": axes, "keepdims": 1})
    return b.op("ReduceMean", [x, b.integers(*axes)], {"keepdims": 1})


def _normalized(b: BodyBuilder, layout: Layout, x: ir.Value) -> ir.Value:
    if layout.kind == "layer":
        x = b.op("Sub", [x, _mean(b, x, layout)])
    variance = _mean(b, b.op("Mul", [x, x]), layout)
    root = b.op("Sqrt", [b.op("Add", [variance, b.constant(np.array(layout.epsilon, np.float32))])])
    return b.op("Div", [x, root])


def _affine(b: BodyBuilder, layout: Layout, x: ir.Value, affine: list[ir.Value]) -> ir.Value:
    own = 1 if layout.groups else -layout.axis - layout.inner
    dims = b.integers(*[0] * own, *[1] * layout.inner) if affine and layout.inner else None
    for op_type, value in zip([*["Mul"] * layout.scaled, *["Add"] * layout.biased], affine, strict=True):
        x = b.op(op_type, [x, value if dims is None else b.op("Reshape", [value, dims])])
    return x


def _grouped(b: BodyBuilder, layout: Layout, x: ir.Value, affine: list[ir.Value]) -> ir.Value:
    rows = b.op("Reshape", [x, b.integers(0, layout.groups, -1)])
    ones = b.constant(np.ones(layout.groups, np.float32))
    zeros = b.constant(np.zeros(layout.groups, np.float32))
    normalized = b.op("InstanceNormalization", [rows, ones, zeros], {"epsilon": layout.epsilon})
    return _affine(b, layout, b.op("Reshape", [normalized, b.op("Shape", [x])]), affine)
