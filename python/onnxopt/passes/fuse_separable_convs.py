"""Depthwise and pointwise convolutions become one node."""

from __future__ import annotations

from onnxopt.fusions.fused_separable_conv import fuse_separable_conv
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.rules import RuleSet


@register_pass
class FuseSeparableConvs(RulePass):
    """Turn a depthwise FusedConv and the pointwise one that alone reads its result into FusedSeparableConv.

    Refused: convolutions without biases, results that others read too, depthwise ones whose epilogue reads more than their result, and
    images of few pixels.
    """

    name = "fuse_separable_convs"
    phase = "fuse"
    rules = RuleSet([fuse_separable_conv])
