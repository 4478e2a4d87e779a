"""Which normalizations become FusedNorm, and how: standard ops, and written out ones where the opset has no op. Those of groups of channels
can have these last."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.fusions import halves
from onnxopt.ops import fused_norm as op
from onnxopt.ops.base import DOMAIN, prepare_model
from onnxopt.passes import recognize_norms as forms
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op as single
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, attribute, rule

STANDARD = ("LayerNormalization", "RMSNormalization")


def _refuse(m: Match, x: ir.Value) -> Refusal | None:
    """Why the kernel is not for this tensor."""
    if m.ctx.shapes.dtype(x) is not ir.DataType.FLOAT and not (
        m.root.op_type in STANDARD and halves.are_taken(m.ctx, x)
    ):
        return Refusal("the kernel computes float32", culprit=m.root)
    if not m.ctx.runs_once(m.root):
        return Refusal("it is in a loop's body, where tensors are small", culprit=m.root)
    if m.ctx.shapes.rank(x) in (None, 0):
        return Refusal("the rank of '{}' is unknown", x.name, culprit=x)
    return None


def _is_small(m: Match, x: ir.Value) -> bool:
    shape = m.ctx.shapes.static_shape(x)
    return shape is not None and math.prod(shape) < m.ctx.target.costs.norm_elements


def _make(b: Builder, m: Match, layout: op.Layout, inputs: list[ir.Value]) -> ir.Value:
    """The node of a layout; its result has the shape of what the rule replaces."""
    ctx = m.ctx
    overload = layout.overload(ctx.opset)
    if (op.SPEC.domain, op.SPEC.name, overload) not in ctx.model.functions:
        b.functions.append(op.body(layout, ctx.opset))
    prepare_model(ctx.model)
    (result,) = b.op(op.SPEC.name, inputs, layout.attributes(), domain=op.SPEC.domain, overload=overload)
    ctx.shapes.set(result, ir.DataType.FLOAT, ctx.shapes.shape(m.output))
    return result


# --- over trailing axes --------------------------------------------------------------------------------------------
@rule(single(*STANDARD))
def fuse_norm(b: Builder, m: Match) -> list[ir.Value | None] | Refusal:
    """A normalization of the standard."""
    node = m.root
    x, scale, bias = (*node.inputs, None)[:3]
    if x is None or scale is None:
        return Refusal("inputs are missing", culprit=node)
    if (refusal := _refuse(m, x)) is not None:
        return refusal
    if _is_small(m, x):
        return Refusal("its tensor is small", culprit=node)
    if any(ir.use_count(value) or value.is_graph_output() for value in node.outputs[1:]):
        return Refusal("its mean or deviation is used", culprit=node)
    shape, axis = m.ctx.shapes.shape(x), attribute(node, "axis", -1)
    assert shape is not None
    axis = axis - len(shape) if axis >= 0 else axis
    scale, bias = (None if _is_all(value, neutral) else value for value, neutral in ((scale, 1.0), (bias, 0.0)))
    for value in (scale, bias):
        if value is not None and m.ctx.shapes.shape(value) != shape[axis:]:
            return Refusal("{} does not have the shape of the normalized axes", value.name, culprit=value)
    kind = "layer" if node.op_type == "LayerNormalization" else "rms"
    epsilon = attribute(node, "epsilon", 1e-5)
    layout = op.Layout(kind, axis, epsilon=epsilon, scaled=scale is not None, biased=bias is not None)
    inputs = [halves.widen(b, value) for value in (x, scale, bias) if value is not None]
    return [halves.like(b, x, _make(b, m, layout, inputs)), *[None] * (len(node.outputs) - 1)]


def _is_all(value: ir.Value | None, number: float) -> bool:
    return value is not None and forms.is_all(value, number)


def _fuse_decomposed(b: Builder, m: Match, kind: str, means: tuple[str, ...]) -> ir.Value | Refusal:
    for refusal in (_refuse(m, m["x"]), forms.refuse_core(m, means)):
        if refusal is not None:
            return refusal
    axes, shape = forms.axes_of(m, means[-1]), m.ctx.shapes.shape(m["x"])
    assert axes is not None and shape is not None
    rank, epsilon = len(shape), float(m.scalar("epsilon") or 0.0)
    scaled, biased = (m.get(name) is not None for name in ("scale", "bias"))
    layout = op.Layout(kind, axes.start - rank, rank - axes.stop, 0, epsilon, scaled, biased)
    inputs = [m["x"]]
    for name in ["scale"] * scaled + ["bias"] * biased:
        affine = _affine_of(b, layout, shape, m[name])
        if affine is None:
            return Refusal("the {} does not have the shape of the normalized axes", name, culprit=m.root)
        inputs.append(affine)
    return _make(b, m, layout, inputs)


def _affine_of(b: Builder, layout: op.Layout, shape: Sequence[object], value: ir.Value) -> ir.Value | None:
    """A constant that is multiplied with or added to a tensor of that shape, as a scale or bias; None where it is none."""
    own = layout.affine_shape(shape)
    inner = 0 if layout.channels_last else layout.inner
    found = forms.with_trailing_shape(b, value, (*own, *[1] * inner))
    tensor = None if found is None else ir.constant(found)
    if tensor is None or inner == 0:
        return found
    return b.constant(tensor.numpy().reshape(tensor.shape.numpy()[: len(own)]), value.name or "constant")


@rule(forms.LAYER_NORM_CORE)
def fuse_decomposed_layer_norm(b: Builder, m: Match) -> ir.Value | Refusal:
    """Layer normalization written out, where the opset has no op for it."""
    return _fuse_decomposed(b, m, "layer", ("mean", "variance"))


@rule(forms.DISTRIBUTED_LAYER_NORM)
def fuse_distributed_layer_norm(b: Builder, m: Match) -> ir.Value | Refusal:
    """Layer normalization whose factor is multiplied with tensor and mean one by one."""
    return _fuse_decomposed(b, m, "layer", ("mean", "variance"))


@rule(forms.RMS_NORM_CORE)
def fuse_decomposed_rms_norm(b: Builder, m: Match) -> ir.Value | Refusal:
    """RMS normalization written out, where the opset has no op for it."""
    return _fuse_decomposed(b, m, "rms", ("variance",))


# --- scale and bias ------------------------------------------------------------------------------------------------
@pattern
def _scaled(p):  # type: ignore[no-untyped-def]
    return p.Mul(p.op(op.SPEC.name, domain=DOMAIN, as_="norm", open_inputs=True), p.const("factor"))


@pattern
def _biased(p):  # type: ignore[no-untyped-def]
    return p.Add(p.op(op.SPEC.name, domain=DOMAIN, as_="norm", open_inputs=True), p.const("term"))


def _with_affine(b: Builder, m: Match, constant: str, **added: bool) -> ir.Value | Refusal:
    node, value = m.node("norm"), m[constant]
    rank = m.ctx.shapes.rank(m.output)
    x = node.inputs[0]
    assert rank is not None and x is not None
    layout = op.Layout.of(node, rank)
    if layout.biased or (added.get("scaled") and layout.scaled):
        return Refusal("it has a scale or bias already", culprit=node)
    shape = m.ctx.shapes.shape(x)
    assert shape is not None
    affine = _affine_of(b, layout, shape, value)
    if affine is None or not m.ctx.shapes.same_shape(x, m.output):
        return Refusal("'{}' does not have the shape of the normalized axes", value.name, culprit=value)
    inputs = [one for one in node.inputs if one is not None]
    return _make(b, m, dataclasses.replace(layout, **added), [*inputs, affine])  # type: ignore[arg-type]


@rule(_scaled)
def fuse_scale(b: Builder, m: Match) -> ir.Value | Refusal:
    """A constant factor of each normalized element or channel."""
    return _with_affine(b, m, "factor", scaled=True)


@rule(_biased)
def fuse_bias(b: Builder, m: Match) -> ir.Value | Refusal:
    """A constant term of each normalized element or channel."""
    return _with_affine(b, m, "term", biased=True)


# --- groups of channels --------------------------------------------------------------------------------------------
@rule(single("InstanceNormalization", "GroupNormalization"))
def fuse_group_norm(b: Builder, m: Match) -> ir.Value | Refusal:
    """A normalization of channels or groups of them."""
    node = m.root
    x, scale, bias = (*node.inputs, None, None)[:3]
    if x is None or scale is None or bias is None:
        return Refusal("inputs are missing", culprit=node)
    if (refusal := _refuse(m, x)) is not None:
        return refusal
    shape = m.ctx.shapes.shape(x)
    assert shape is not None
    if len(shape) < 3 or not isinstance(channels := shape[1], int) or channels == 0:
        return Refusal("the number of channels is unknown", culprit=node)
    groups = channels if node.op_type == "InstanceNormalization" else attribute(node, "num_groups")
    if not groups or channels % groups:
        return Refusal("{} channels are no {} groups", channels, groups, culprit=node)
    scale, bias = (_for_each_channel(b, value, channels) for value in (scale, bias))
    scale, bias = (None if _is_all(value, neutral) else value for value, neutral in ((scale, 1.0), (bias, 0.0)))
    for value in (scale, bias):
        if value is not None and m.ctx.shapes.static_shape(value) != (channels,):
            return Refusal("'{}' is not for each channel", value.name, culprit=value)
    epsilon = attribute(node, "epsilon", 1e-5)
    layout = op.Layout("layer", -1, len(shape) - 2, groups, epsilon, scale is not None, bias is not None)
    return _make(b, m, layout, [value for value in (x, scale, bias) if value is not None])


def _for_each_channel(b: Builder, value: ir.Value, channels: int) -> ir.Value:
    """A constant that has one element for each group, as GroupNormalization has before opset 21, for each channel."""
    tensor = ir.constant(value)
    if tensor is None or len(tensor.shape) != 1 or tensor.size in (0, channels) or channels % tensor.size:
        return value
    return b.constant(np.repeat(tensor.numpy(), channels // tensor.size), value.name or "constant")


@pattern
def _group_norm(p, x):  # type: ignore[no-untyped-def]
    rows = p.Reshape(x, p.any("rows"), as_="into_groups")
    return p.Reshape(p.op(op.SPEC.name, rows, domain=DOMAIN, as_="norm"), p.any("shape"))


@rule(_group_norm)
def fuse_reshaped_group_norm(b: Builder, m: Match) -> ir.Value | Refusal:
    """Group normalization as a normalization of each channel of a tensor whose channels are the groups."""
    shapes = m.ctx.shapes
    shape, rows = shapes.shape(m["x"]), shapes.shape(m.node("into_groups").outputs[0])
    groups = attribute(m.node("norm"), "groups", 0)
    if shape is None or len(shape) < 3 or rows is None or len(rows) != 3 or groups != rows[1]:
        return Refusal("it is no tensor of groups", culprit=m.root)
    if not shapes.same_shape(m["x"], m.output) or shapes.equal(shape[0], rows[0]) is not True:
        return Refusal("it does not keep batch and shape", culprit=m.root)
    if not isinstance(shape[1], int) or shape[1] % groups:
        return Refusal("{} channels are no {} groups", shape[1], groups, culprit=m.root)
    epsilon = attribute(m.node("norm"), "epsilon", 1e-5)
    return _make(b, m, op.Layout("layer", -1, len(shape) - 2, groups, epsilon), [m["x"]])


@rule(_scaled)
def fuse_scale_of_groups(b: Builder, m: Match) -> ir.Value | Refusal:
    """A constant factor of each channel."""
    return _with_affine(b, m, "factor", scaled=True)


@rule(_biased)
def fuse_bias_of_groups(b: Builder, m: Match) -> ir.Value | Refusal:
    """A constant term of each channel."""
    return _with_affine(b, m, "term", biased=True)


RULES = RuleSet(
    [
        fuse_norm,
        fuse_decomposed_layer_norm,
        fuse_distributed_layer_norm,
        fuse_decomposed_rms_norm,
        fuse_scale,
        fuse_bias,
    ]
)

GROUP_RULES = RuleSet([fuse_group_norm, fuse_reshaped_group_norm, fuse_scale_of_groups, fuse_bias_of_groups])


# --- channels that lie last ----------------------------------------------------------------------------------------
def refuse_channels_last(node: ir.Node, shapes: ir.ShapeEnv) -> Refusal | None:
    """Why a normalization of [N, C, ...] cannot have its channels last."""
    x = node.inputs[0]
    if not attribute(node, "groups", 0) or attribute(node, "channels_last", 0):
        return Refusal("it is not of groups of the second axis", culprit=node)
    if x is None or shapes.rank(x) is None or "prologue" in node.attributes or "epilogue" in node.attributes:
        return Refusal("it has a program of its own", culprit=node)
    return None


def build_channels_last(b: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    """The normalization of a tensor that has its channels last."""
    rank = b.ctx.shapes.rank(node.outputs[0])
    assert rank is not None
    layout = dataclasses.replace(op.Layout.of(node, rank), channels_last=True)
    overload = layout.overload(b.ctx.opset)
    b.define(op.SPEC.domain, op.SPEC.name, overload, lambda: op.body(layout, b.ctx.opset))
    inputs = [x, *node.inputs[1:]]
    return b.op(op.SPEC.name, inputs, layout.attributes(), domain=op.SPEC.domain, overload=overload, name=node.name)[0]
