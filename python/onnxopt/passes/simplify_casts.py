"""Chains of casts."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, rule

_SIGNED = {DataType.INT8: 8, DataType.INT16: 16, DataType.INT32: 32, DataType.INT64: 64}
_UNSIGNED = {DataType.UINT8: 8, DataType.UINT16: 16, DataType.UINT32: 32, DataType.UINT64: 64}
_MANTISSA = {DataType.FLOAT16: 11, DataType.BFLOAT16: 8, DataType.FLOAT: 24, DataType.DOUBLE: 53}
_EXPONENT = {DataType.FLOAT16: 5, DataType.BFLOAT16: 8, DataType.FLOAT: 8, DataType.DOUBLE: 11}


def holds_every(wide: DataType | None, narrow: DataType | None) -> bool:
    """Whether every value of type `narrow` has an equal one of type `wide`."""
    if wide is None or narrow is None:
        return False
    if wide == narrow:
        return True
    if narrow == DataType.BOOL:
        return wide in _SIGNED or wide in _UNSIGNED or wide in _MANTISSA
    if narrow in _MANTISSA:
        return wide in _MANTISSA and _MANTISSA[wide] >= _MANTISSA[narrow] and _EXPONENT[wide] >= _EXPONENT[narrow]
    bits = _SIGNED.get(narrow, 0) or _UNSIGNED.get(narrow, 0)
    if not bits:
        return False
    if wide in _MANTISSA:
        return _MANTISSA[wide] >= bits and wide != DataType.FLOAT16
    if narrow in _SIGNED:
        return _SIGNED.get(wide, 0) >= bits
    return _UNSIGNED.get(wide, 0) >= bits or _SIGNED.get(wide, 0) > bits


@pattern
def _cast_of_cast(p, x):  # type: ignore[no-untyped-def]
    return p.Cast(p.Cast(x, as_="inner", shared=True))


def _loses_nothing(m: Match) -> bool | Refusal:
    if m.ctx.shapes.dtype(m.output) == DataType.STRING:
        return Refusal("how a number is written depends on its type", culprit=m.root)
    middle, source = m.ctx.shapes.dtype(m.node("inner").outputs[0]), m.dtype("x")
    if holds_every(middle, source):
        return True
    return Refusal("the inner Cast from {} to {} may change values", source, middle, culprit=m.node("inner"))


@rule(_cast_of_cast, where=_loses_nothing)
def merge_casts(b: Builder, m: Match) -> ir.Value:
    """A Cast that loses nothing before another Cast is not needed."""
    return b.copy_of(m.root, [m["x"]])[0]


@register_pass
class SimplifyCasts(RulePass):
    """Merge chains of Casts whose inner one keeps every value. Refused: an inner Cast that may round, wrap or overflow, and casts
    to strings."""

    name = "simplify_casts"
    phase = "simplify"
    rules = RuleSet([merge_casts])
