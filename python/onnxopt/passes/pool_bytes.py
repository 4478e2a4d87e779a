"""Maxima of 8-bit integers are taken of the integers."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import quantized
from onnxopt.passes.base import Context, PassResult, RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, rule

MIN_OPSET = 12
"""The opset from which on MaxPool takes integers."""


@pattern
def _quantized_maximum(p):  # type: ignore[no-untyped-def]
    pool = p.MaxPool(p.DequantizeLinear(open_inputs=True, as_="bytes", shared=True), as_="pool")
    return p.QuantizeLinear(pool, open_inputs=True)


@rule(_quantized_maximum)
def pool_bytes(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """QuantizeLinear(MaxPool(DequantizeLinear(x))) with one scale and zero point is MaxPool(x): rounding keeps the order, and a window that lies
    in the padding gives the lowest number either way."""
    pool = m.node("pool")
    given = quantized.dequantized(pool.inputs[0], m.ctx)
    if given is None or not quantized.gives_back(m.root, given):
        return Refusal("it is rounded otherwise than what it reads", culprit=m.root)
    if m.ctx.opset < MIN_OPSET:
        return Refusal("opset {} has no MaxPool of integers", m.ctx.opset, culprit=pool)
    if len(pool.outputs) > 1:
        return Refusal("it has a further output", culprit=pool)
    return b.copy_of(pool, [given.value])[0]


@register_pass
class PoolBytes(RulePass):
    """Let MaxPool read and make bytes where what it reads comes from bytes and its result becomes bytes, with the same scale and zero point.

    Refused: results that are rounded otherwise or that others read as well, indices of the maxima, opsets below 12, targets other than
    the CPU.
    """

    name = "pool_bytes"
    phase = "fuse"
    rules = RuleSet([pool_bytes])

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        return super().run(model, ctx) if ctx.target.name == "cpu" else PassResult(False)
