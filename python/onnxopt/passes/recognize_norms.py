"""Decomposed normalizations become the standard op of the model's opset."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import Op, PatternBuilder, Term, pattern
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, attribute, rule

LAYER_NORM_OPSET = 17
RMS_NORM_OPSET = 23


def _mean(p: PatternBuilder, x: Term, name: str) -> Term:
    """A mean over axes, or a sum over them divided by their size."""
    total = p.ReduceSum(x, open_inputs=True, as_=name)
    return p.either(
        p.op(("ReduceMean", "GlobalAveragePool"), x, open_inputs=True, as_=name),
        p.Mul(total, p.const(f"{name}_share")),
        p.Div(total, p.const(f"{name}_size")),
    )


def _square(p: PatternBuilder, x: Term) -> Term:
    return p.either(p.Pow(x, 2.0), p.Mul(x, x))


def _quotients(p: PatternBuilder, value: Term, scaled: Term) -> list[Op]:
    """value / sqrt(scaled), as exporters write it, also with a scale on the way."""
    root = p.Sqrt(scaled)
    inverse = p.either(p.Reciprocal(root), p.Div(1.0, root), p.Pow(scaled, -0.5))
    return [p.Div(value, root), p.Mul(value, inverse), p.Mul(value, p.Mul(inverse, p.const("scale")))]


def _centred_quotients(p: PatternBuilder, x: Term) -> list[Op]:
    mean = _mean(p, x, "mean")
    centred = p.Sub(x, mean, shared=True)
    # Flax: the mean of squares less the square of the mean, which rounding may make negative.
    moments = p.Sub(_mean(p, _square(p, x), "variance"), _square(p, mean))
    variance = p.either(_mean(p, _square(p, centred), "variance"), moments, p.Max(moments, 0.0), p.Relu(moments))
    return _quotients(p, centred, p.either(p.Add(variance, p.const("epsilon")), variance))


@pattern
def LAYER_NORM_CORE(p, x):  # type: ignore[no-untyped-def]
    return _centred_quotients(p, x)


@pattern
def RMS_NORM_CORE(p, x):  # type: ignore[no-untyped-def]
    squares = _mean(p, _square(p, x), "variance")
    return _quotients(p, x, p.either(p.Add(squares, p.const("epsilon")), squares))


@pattern
def LAYER_NORM(p, x):  # type: ignore[no-untyped-def]
    return [p.Add(p.Mul(core, p.const("scale")), p.const("bias")) for core in _centred_quotients(p, x)[:2]]


@pattern
def DISTRIBUTED_LAYER_NORM(p, x):  # type: ignore[no-untyped-def]
    """x f + (bias - mean f) with f = scale / sqrt(variance + epsilon): Keras."""
    mean = _mean(p, x, "mean")
    scaled = p.Add(_mean(p, _square(p, p.Sub(x, mean)), "variance"), p.const("epsilon"))
    root = p.Sqrt(scaled)
    factor = p.Mul(p.either(p.Reciprocal(root), p.Div(1.0, root), p.Pow(scaled, -0.5)), p.const("scale"))
    return p.Add(p.Mul(x, factor), p.Sub(p.const("bias"), p.Mul(mean, factor)))


def axes_of(m: Match, name: str) -> range | None:
    """The neighbouring axes that a node reduces and keeps; None for others."""
    node, rank = m.node(name), m.rank("x")
    if node.op_type == "GlobalAveragePool":
        return None if rank is None or rank < 3 else range(2, rank)
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        axes = ir.integers(node.inputs[1])
    if rank is None or not axes or not attribute(node, "keepdims", 1):
        return None
    sorted_axes = sorted(axis % rank for axis in axes)
    found = range(sorted_axes[0], sorted_axes[-1] + 1)
    return found if sorted_axes == list(found) else None


def refuse_core(m: Match, means: tuple[str, ...]) -> Refusal | None:
    """Why what was matched is no normalization over neighbouring axes."""
    axes = {axes_of(m, name) for name in means}
    if len(axes) != 1 or None in axes:
        return Refusal("the means are not over the same trailing axes", culprit=m.root)
    if m.get("epsilon") is not None and m.scalar("epsilon") is None:
        return Refusal("epsilon is no scalar", culprit=m.root)
    if not m.ctx.shapes.same_shape(m["x"], m.output):
        return Refusal("a constant may broadcast the result", culprit=m.root)
    for name in means:
        if not _divides_by_size(m, name):
            return Refusal("a sum is not divided by the number of its elements", culprit=m.node(name))
    return None


def _divides_by_size(m: Match, name: str) -> bool:
    if m.get(f"{name}_share") is None and m.get(f"{name}_size") is None:
        return True
    axes, shape = axes_of(m, name), m.ctx.shapes.shape(m["x"])
    sizes = [shape[axis] for axis in axes] if axes is not None and shape is not None else [None]
    count = math.prod(size for size in sizes if isinstance(size, int))
    if count == 0 or not all(isinstance(size, int) for size in sizes):
        return False
    share, size = m.scalar(f"{name}_share"), m.scalar(f"{name}_size")
    return (size is not None and size == count) or (share is not None and math.isclose(share * count, 1, rel_tol=1e-6))


def _trailing_axis(m: Match, name: str) -> int | None:
    """The first of the axes that a node reduces where they are the last ones."""
    axes = axes_of(m, name)
    return axes.start if axes is not None and axes.stop == m.rank("x") else None


def is_all(value: ir.Value, number: float) -> bool:
    """Whether a value is a constant whose elements all are that number."""
    tensor = ir.constant(value)
    return tensor is not None and bool(np.all(tensor.numpy() == number))


def _ones(b: Builder, m: Match, axis: int) -> ir.Value | None:
    """A scale that changes nothing; None where the normalized axes have no fixed size."""
    shape, dtype = m.ctx.shapes.shape(m["x"]), m.dtype("x")
    sizes = () if shape is None else shape[axis:]
    if dtype is None or not all(isinstance(size, int) for size in sizes):
        return None
    return b.constant(np.ones(sizes, dtype.numpy()), "scale")  # type: ignore[arg-type]


def _recognize(b: Builder, m: Match, op_type: str, opset: int, means: tuple[str, ...]) -> ir.Value | Refusal:
    if m.ctx.opset < opset:
        return Refusal("the model's opset is {}, the op needs {}", m.ctx.opset, opset, culprit=m.root)
    refusal = refuse_core(m, means)
    if refusal is not None:
        return refusal
    axis = _trailing_axis(m, means[0])
    if axis is None:
        return Refusal("the means are not over the same trailing axes", culprit=m.root)
    scale = _ones(b, m, axis) if m.get("scale") is None else _of_normalized_shape(b, m, "scale", axis)
    if scale is None:
        return Refusal("the normalized axes have no fixed size, or not that of the scale", culprit=m.root)
    return b.op(op_type, [m["x"], scale], {"axis": axis, "epsilon": float(m.scalar("epsilon") or 0.0)})[0]


@rule(LAYER_NORM_CORE)
def recognize_layer_norm(b: Builder, m: Match) -> ir.Value | Refusal:
    """(x - mean) / sqrt(variance + epsilon), without scale and bias."""
    return _recognize(b, m, "LayerNormalization", LAYER_NORM_OPSET, ("mean", "variance"))


@rule(RMS_NORM_CORE)
def recognize_rms_norm(b: Builder, m: Match) -> ir.Value | Refusal:
    """x / sqrt(mean of squares + epsilon), without scale."""
    return _recognize(b, m, "RMSNormalization", RMS_NORM_OPSET, ("variance",))


@rule(DISTRIBUTED_LAYER_NORM)
def recognize_distributed_layer_norm(b: Builder, m: Match) -> ir.Value | Refusal:
    """Layer normalization whose factor is computed first and multiplied with tensor and mean one by one."""
    if m.ctx.opset < LAYER_NORM_OPSET:
        return Refusal("the model's opset is {}, the op needs {}", m.ctx.opset, LAYER_NORM_OPSET, culprit=m.root)
    refusal = refuse_core(m, ("mean", "variance"))
    if refusal is not None:
        return refusal
    axis = _trailing_axis(m, "mean")
    if axis is None:
        return Refusal("the means are not over the same trailing axes", culprit=m.root)
    affine = [_of_normalized_shape(b, m, name, axis) for name in ("scale", "bias")]
    if None in affine:
        return Refusal("scale or bias does not have the shape of the normalized axes", culprit=m.root)
    attributes = {"axis": axis, "epsilon": float(m.scalar("epsilon") or 0.0)}
    return b.op("LayerNormalization", [m["x"], *affine], attributes)[0]


def _of_normalized_shape(b: Builder, m: Match, name: str, axis: int) -> ir.Value | None:
    """A constant with the dims of the axes from `axis` on; None where its elements are not one for each element there."""
    shape = m.ctx.shapes.shape(m["x"])
    return None if shape is None else with_trailing_shape(b, m[name], shape[axis:])


def with_trailing_shape(b: Builder, value: ir.Value, wanted: Sequence[object]) -> ir.Value | None:
    """A constant without the leading dims of 1 that a shape lacks; None where it has another shape then."""
    tensor = ir.constant(value)
    if tensor is None:
        return None
    shape = tuple(tensor.shape.numpy())
    extra = len(shape) - len(wanted)
    if extra < 0 or shape[extra:] != tuple(wanted) or any(size != 1 for size in shape[:extra]):
        return None
    return value if extra == 0 else b.constant(tensor.numpy().reshape(shape[extra:]), value.name or "constant")


# --- scale and bias ------------------------------------------------------------------------------------------------
NORMS = ("LayerNormalization", "RMSNormalization")


@pattern
def _scaled(p, x):  # type: ignore[no-untyped-def]
    return p.Mul(p.op(NORMS, x, p.const("ones"), as_="norm"), p.const("scale"))


@pattern
def _biased(p, x):  # type: ignore[no-untyped-def]
    return p.Add(p.LayerNormalization(x, p.any("scale"), as_="norm"), p.const("bias"))


def _affine(b: Builder, m: Match, constant: str, **others: ir.Value) -> ir.Value | Refusal:
    norm, shape = m.node("norm"), m.ctx.shapes.shape(m["x"])
    if shape is None or len(norm.outputs) != 1:
        return Refusal("its mean or deviation is an output", culprit=norm)
    value = _of_normalized_shape(b, m, constant, attribute(norm, "axis", -1))
    if value is None:
        return Refusal("'{}' does not have the shape of the normalized axes", m[constant].name, culprit=m.root)
    return b.copy_of(norm, [m["x"], *others.values(), value])[0]


@rule(_scaled)
def put_scale_into_norm(b: Builder, m: Match) -> ir.Value | Refusal:
    """A constant factor of a normalization that has none."""
    if not is_all(m["ones"], 1.0):
        return Refusal("it has a scale already", culprit=m.root)
    return _affine(b, m, "scale")


@rule(_biased)
def put_bias_into_norm(b: Builder, m: Match) -> ir.Value | Refusal:
    """A constant term of a normalization that has none."""
    return _affine(b, m, "bias", scale=m["scale"])


@register_pass
class RecognizeNorms(RulePass):
    """Recognize LayerNormalization (opset 17) and RMSNormalization (opset 23) over trailing axes, in the forms that exporters write.

    Scale and bias join the op where they are constants of the normalized shape. Refused: opsets that lack the op, axes that are not the
    last ones or have no fixed size, inner values used elsewhere.
    """

    name = "recognize_norms"
    phase = "simplify"
    rules = RuleSet(
        [
            recognize_layer_norm,
            recognize_rms_norm,
            recognize_distributed_layer_norm,
            put_scale_into_norm,
            put_bias_into_norm,
        ]
    )
