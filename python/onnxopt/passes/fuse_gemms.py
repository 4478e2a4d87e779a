"""Products with constant matrices become FusedGemm nodes."""

from __future__ import annotations

from onnxopt.fusions.fused_gemm import fuse_gemm
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.rules import RuleSet


@register_pass
class FuseGemms(RulePass):
    """Turn MatMul and Gemm with a constant matrix, and the bias after them, into FusedGemm with packed weights.

    Refused: element types other than float32, transposed or scaled operands, weights that others use too, biases that are no
    vector of the columns, small products, and those inside branches and loops.
    """

    name = "fuse_gemms"
    phase = "fuse"
    rules = RuleSet([fuse_gemm])
