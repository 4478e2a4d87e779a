"""Products with constant matrices become products of 8-bit integers."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions.quantize_product import quantize_product
from onnxopt.passes.base import Context, PassResult, RulePass, register_pass
from onnxopt.rewrite.rules import RuleSet


@register_pass
class QuantizeProducts(RulePass):
    """Turn MatMul and Gemm with a constant matrix, and the bias after them, into QGemm: int8 weights with a scale per column, and rows that
    the kernel quantizes over their own ranges, so that nothing has to be calibrated.

    Runs only where quantization was asked for (`onnxopt.quantize`). Refused: what `fuse_gemms` refuses, matrices that are too narrow,
    weights that are not finite, opsets below 13, and nodes that are to stay in float.
    """

    name = "quantize_products"
    phase = "quantize"
    rules = RuleSet([quantize_product])

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        return super().run(model, ctx) if ctx.options.quantize_products else PassResult(False)
