"""Decomposed normalizations become the standard op of the model's opset."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import Op, PatternBuilder, Term, pattern
from onnxopt.rewrite.rules import Match, Refusal, Rule, RuleSet, attribute

LAYER_NORM_OPSET = 17
RMS_NORM_OPSET = 23


def _mean(p: PatternBuilder, x: Term, name: str) -> Op:
    return p.ReduceMean(x, open_inputs=True, as_=name)


def _inverse_root_forms(p: PatternBuilder, value: Term, scaled: Term) -> list[Op]:
    """value / sqrt(scaled), as exporters write it."""
    root = p.Sqrt(scaled)
    return [p.Div(value, root), p.Mul(value, p.Reciprocal(root)), p.Mul(value, p.Div(1.0, root))]


@pattern
def LAYER_NORM(p, x):  # type: ignore[no-untyped-def]
    centred = p.Sub(x, _mean(p, x, "mean"), shared=True)
    squares = (p.Pow(centred, 2.0), p.Mul(centred, centred))
    forms = []
    for square in squares:
        for whole in _inverse_root_forms(p, centred, p.Add(_mean(p, square, "variance"), p.const("epsilon"))):
            forms.append(p.Add(p.Mul(whole, p.const("scale")), p.const("bias")))
    return forms


@pattern
def _rms_norm(p, x):  # type: ignore[no-untyped-def]
    forms = []
    for square in (p.Pow(x, 2.0), p.Mul(x, x)):
        for whole in _inverse_root_forms(p, x, p.Add(_mean(p, square, "variance"), p.const("epsilon"))):
            forms.append(p.Mul(whole, p.const("scale")))
    return forms


def _axis(m: Match, name: str) -> int | None:
    """The first of the trailing axes that a ReduceMean reduces, kept; None for other axes."""
    node, rank = m.node(name), m.rank("x")
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        axes = ir.integers(node.inputs[1])
    if rank is None or not axes or not attribute(node, "keepdims", 1):
        return None
    sorted_axes = sorted(axis % rank for axis in axes)
    return sorted_axes[0] if sorted_axes == list(range(sorted_axes[0], rank)) else None


def _fits(m: Match, opset: int, means: tuple[str, ...]) -> bool | Refusal:
    if m.ctx.opset < opset:
        return Refusal("the model's opset is {}, the op needs {}", m.ctx.opset, opset, culprit=m.root)
    axes = {_axis(m, name) for name in means}
    if len(axes) != 1 or None in axes:
        return Refusal("the means are not over the same trailing axes", culprit=m.root)
    if m.scalar("epsilon") is None:
        return Refusal("epsilon is no scalar", culprit=m.root)
    if not m.ctx.shapes.same_shape(m["x"], m.output):
        return Refusal("a constant may broadcast the result", culprit=m.root)
    axis = axes.pop()
    shape = m.ctx.shapes.shape(m["x"])
    assert shape is not None and axis is not None
    for name in ("scale", "bias"):
        value = m.get(name)
        if value is not None and m.ctx.shapes.shape(value) != shape[axis:]:
            return Refusal("{} does not have the shape of the normalized axes", name, culprit=value)
    return True


def _build(op_type: str, inputs: tuple[str, ...], mean: str):  # type: ignore[no-untyped-def]
    def build(b: Builder, m: Match) -> ir.Value:
        attributes = {"axis": _axis(m, mean), "epsilon": float(m.scalar("epsilon") or 0.0)}
        return b.op(op_type, [m[name] for name in inputs], attributes)[0]

    build.__doc__ = f"The decomposed form of {op_type}."
    return build


@register_pass
class RecognizeNorms(RulePass):
    """Recognize LayerNormalization (opset 17) and RMSNormalization (opset 23) over trailing axes, in the forms that exporters write.

    Refused: opsets that lack the op, axes that are not the last ones, constants that broadcast, inner values used elsewhere.
    """

    name = "recognize_norms"
    phase = "simplify"
    rules = RuleSet(
        [
            Rule(
                "recognize_layer_norm",
                LAYER_NORM,
                _build("LayerNormalization", ("x", "scale", "bias"), "mean"),
                lambda m: _fits(m, LAYER_NORM_OPSET, ("mean", "variance")),
            ),
            Rule(
                "recognize_rms_norm",
                _rms_norm,
                _build("RMSNormalization", ("x", "scale"), "variance"),
                lambda m: _fits(m, RMS_NORM_OPSET, ("variance",)),
            ),
        ]
    )
