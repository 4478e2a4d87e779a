"""Convolutions that expand channels, filter and project them become one node."""

from __future__ import annotations

from onnxopt.fusions.fused_inverted_residual import fuse_inverted_residual
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.rules import RuleSet


@register_pass
class FuseInvertedResiduals(RulePass):
    """Turn a pointwise FusedConv, the depthwise one that alone reads its result, and the pointwise one that alone reads that one's into
    FusedInvertedResidual.

    Refused: convolutions without biases, results between that others read too, inner ones whose epilogue reads more than their result,
    and sequences.
    """

    name = "fuse_inverted_residuals"
    phase = "fuse"
    rules = RuleSet([fuse_inverted_residual])
