"""Decomposed activations become the standard op of the model's opset."""

from __future__ import annotations

import math

from onnxopt import ir
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import Op, PatternBuilder, Term, pattern
from onnxopt.rewrite.rules import Match, Refusal, Rule, RuleSet

GELU_OPSET = 20
HARD_SWISH_OPSET = 14
MISH_OPSET = 18

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""Element types that activations are made for: the standard has none for integers, and onnxruntime hardly any for double."""


def _since(opset: int):  # type: ignore[no-untyped-def]
    def where(m: Match) -> bool | Refusal:
        if m.ctx.opset < opset:
            return Refusal("the model's opset is {}, the op needs {}", m.ctx.opset, opset, culprit=m.root)
        return _fits(m)

    return where


def _before(opset: int):  # type: ignore[no-untyped-def]
    def where(m: Match) -> bool | Refusal:
        return m.ctx.opset < opset and _fits(m)

    return where


def _fits(m: Match) -> bool | Refusal:
    if m.dtype("x") not in FLOATS:
        return Refusal("runtimes do not have the op for elements of type {}", m.dtype("x"), culprit=m.root)
    return _keeps_shape(m)


def _keeps_shape(m: Match) -> bool | Refusal:
    if m.ctx.shapes.same_shape(m["x"], m.output):
        return True
    return Refusal("a constant may broadcast the result", culprit=m.root)


# --- Gelu ----------------------------------------------------------------------------------------------------------
def _one_plus_erf(p: PatternBuilder, x: Term) -> Op:
    return p.Add(p.Erf(p.either(p.Div(x, math.sqrt(2)), p.Mul(x, math.sqrt(0.5)))), 1.0)


@pattern
def _gelu(p, x):  # type: ignore[no-untyped-def]
    erf = _one_plus_erf(p, x)
    return [
        p.Mul(p.Mul(x, erf), 0.5),
        p.Mul(x, p.Mul(erf, 0.5)),
        p.Mul(p.Mul(x, 0.5), erf),
    ]


@pattern
def _gelu_tanh(p, x):  # type: ignore[no-untyped-def]
    cubes = (p.Pow(x, 3.0), p.Mul(p.Mul(x, x), x))
    inner = [p.Mul(p.Add(x, p.Mul(cube, 0.044715)), math.sqrt(2 / math.pi)) for cube in cubes]
    factors = [p.Add(p.Tanh(one), 1.0) for one in inner]
    return [
        *(p.Mul(p.Mul(x, 0.5), factor) for factor in factors),
        *(p.Mul(p.Mul(x, factor), 0.5) for factor in factors),
        *(p.Mul(x, p.Mul(factor, 0.5)) for factor in factors),
    ]


# --- hard activations ----------------------------------------------------------------------------------------------
def _near(wanted: float, default: float):  # type: ignore[no-untyped-def]
    """A predicate of an attribute: it is `wanted`, or it is absent and its default is."""
    return lambda value: math.isclose(default if value is None else value, wanted, rel_tol=1e-5)


def _relu6(p: PatternBuilder, y: Term) -> Term:
    return p.either(p.Clip(y, 0.0, 6.0), p.Min(p.Relu(y), 6.0), p.Min(p.Max(y, 0.0), 6.0))


def _clipped_products(p: PatternBuilder, x: Term) -> list[Op]:
    clipped = _relu6(p, p.Add(x, 3.0))
    return [
        p.Div(p.Mul(x, clipped), 6.0),
        p.Mul(p.Mul(x, clipped), 1 / 6),
        p.Mul(x, p.Div(clipped, 6.0)),
        p.Mul(x, p.Mul(clipped, 1 / 6)),
    ]


@pattern
def _hard_swish(p, x):  # type: ignore[no-untyped-def]
    gated = p.Mul(x, p.HardSigmoid(x, alpha=_near(1 / 6, 0.2), beta=_near(0.5, 0.5)))
    return [*_clipped_products(p, x), gated]


@pattern
def _hard_swish_without_op(p, x):  # type: ignore[no-untyped-def]
    return _clipped_products(p, x)


@pattern
def _hard_sigmoid(p, x):  # type: ignore[no-untyped-def]
    clipped = _relu6(p, p.Add(x, 3.0))
    return [p.Div(clipped, 6.0), p.Mul(clipped, 1 / 6)]


@pattern
def _clipped_line(p, x):  # type: ignore[no-untyped-def]
    line = p.Add(p.Mul(x, p.const("slope")), p.const("offset"))
    return [p.Clip(line, 0.0, 1.0), p.Min(p.Max(line, 0.0), 1.0), p.Min(p.Relu(line), 1.0)]


def _is_line(m: Match) -> bool | Refusal:
    if m.scalar("slope") is None or m.scalar("offset") is None:
        return Refusal("slope and offset are no scalars", culprit=m.root)
    return _fits(m)


def _build_hard_sigmoid(b: Builder, m: Match) -> ir.Value:
    """Clip(slope x + offset, 0, 1), as Keras writes it, is HardSigmoid."""
    return b.op("HardSigmoid", [m["x"]], {"alpha": m.scalar("slope"), "beta": m.scalar("offset")})[0]


# --- smooth activations --------------------------------------------------------------------------------------------
@pattern
def _mish(p, x):  # type: ignore[no-untyped-def]
    return p.Mul(x, p.Tanh(p.Softplus(x)))


@pattern
def _softplus(p, x):  # type: ignore[no-untyped-def]
    return p.Log(p.Add(p.Exp(x), 1.0))


@pattern
def _sigmoid(p, x):  # type: ignore[no-untyped-def]
    return [p.Reciprocal(p.Add(p.Exp(p.Neg(x)), 1.0)), p.Div(1.0, p.Add(p.Exp(p.Neg(x)), 1.0))]


@pattern
def _clip_min_max(p, x):  # type: ignore[no-untyped-def]
    return [p.Min(p.Max(x, p.const("low")), p.const("high")), p.Min(p.Relu(x), p.const("high"))]


def _scalar_bounds(m: Match) -> bool | Refusal:
    low, high = m.scalar("low") if m.get("low") is not None else 0.0, m.scalar("high")
    if m.ctx.opset < 12 or low is None or high is None or low > high:
        return Refusal("the bounds are no ordered scalars", culprit=m.root)
    return _keeps_shape(m)


def _build_clip(b: Builder, m: Match) -> ir.Value | Refusal:
    """Min(Max(x, low), high) is Clip."""
    dtype = m.dtype("x")
    if dtype is None:
        return Refusal("the element type is unknown", culprit=m.root)
    low = m.scalar("low") if m.get("low") is not None else 0.0
    numbers = [dtype.numpy().type(number) for number in (low, m.scalar("high"))]
    return b.Clip(m["x"], *(b.constant(number, "bound") for number in numbers))


def _build_gate(b: Builder, m: Match) -> ir.Value:
    """HardSwish in an opset without it is x * HardSigmoid(x), which runtimes know as well."""
    return b.Mul(m["x"], b.op("HardSigmoid", [m["x"]], {"alpha": 1 / 6, "beta": 0.5})[0])


def _make(op_type: str, **attributes: object):  # type: ignore[no-untyped-def]
    def build(b: Builder, m: Match) -> ir.Value:
        return b.op(op_type, [m["x"]], attributes)[0]

    build.__doc__ = f"The decomposed form of {op_type}."
    return build


@register_pass
class RecognizeActivations(RulePass):
    """Recognize Gelu (erf and tanh), HardSwish, HardSigmoid, Mish, Softplus, Sigmoid and Clip in the forms that exporters write.

    Constants are matched within 1e-4. Refused: integers and double, opsets that lack the op, constants that may
    broadcast the result, inner values used elsewhere.
    """

    name = "recognize_activations"
    phase = "simplify"
    rules = RuleSet(
        [
            Rule("recognize_gelu", _gelu, _make("Gelu"), _since(GELU_OPSET), benefit=3),
            Rule("recognize_gelu_tanh", _gelu_tanh, _make("Gelu", approximate="tanh"), _since(GELU_OPSET), benefit=3),
            Rule("recognize_hard_swish", _hard_swish, _make("HardSwish"), _since(HARD_SWISH_OPSET), benefit=4),
            Rule(
                "recognize_hard_swish_gate", _hard_swish_without_op, _build_gate, _before(HARD_SWISH_OPSET), benefit=4
            ),
            Rule(
                "recognize_hard_sigmoid",
                _hard_sigmoid,
                _make("HardSigmoid", alpha=1 / 6, beta=0.5),
                _fits,
                benefit=2,
            ),
            Rule("recognize_clipped_line", _clipped_line, _build_hard_sigmoid, _is_line, benefit=2),
            Rule("recognize_mish", _mish, _make("Mish"), _since(MISH_OPSET), benefit=2),
            Rule("recognize_softplus", _softplus, _make("Softplus"), _fits),
            Rule("recognize_sigmoid", _sigmoid, _make("Sigmoid"), _fits),
            Rule("recognize_clip", _clip_min_max, _build_clip, _scalar_bounds),
        ]
    )
