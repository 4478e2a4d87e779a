"""Products with constant matrices become FusedGemm nodes."""

from __future__ import annotations

from onnxopt.fusions.dequantized_gemm import fuse_dequantized_gemm
from onnxopt.fusions.fused_gemm import fuse_gemm
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.rules import RuleSet


@register_pass
class FuseGemms(RulePass):
    """Turn MatMul and Gemm with a constant matrix, and the bias after them, into FusedGemm with packed weights. A matrix that
    DequantizeLinear makes of int8 or int4 stays integers, with a scale for each column or block of a column.

    Refused: element types other than float32 (for CUDA devices float16 and bfloat16 too), transposed or scaled operands, weights that
    others use too, biases that are no vector of the columns, small products, and those inside loops. Of integers: those that are not
    around zero, scales of rows, and blocks before opset 21.
    """

    name = "fuse_gemms"
    phase = "fuse"
    rules = RuleSet([fuse_gemm, fuse_dequantized_gemm])
