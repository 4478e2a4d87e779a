"""Squeeze-and-Excitation blocks become one node."""

from __future__ import annotations

from onnxopt.fusions.fused_squeeze_excite import fuse_squeeze_excite
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.rules import RuleSet


@register_pass
class FuseSqueezeExcite(RulePass):
    """Turn a tensor times gates that two products make of its means into FusedSqueezeExcite.

    The products may be convolutions of one pixel, Gemm or MatMul, with Reshape and the like around them; any element-wise ops may follow
    each. Refused: tensors that are not channels-last, weights that are not constant, means over some of the pixels, activations that
    read more than the product, and inner results that others read too.
    """

    name = "fuse_squeeze_excite"
    phase = "fuse"
    rules = RuleSet([fuse_squeeze_excite])
