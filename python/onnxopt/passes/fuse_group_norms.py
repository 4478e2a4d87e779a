"""Normalizations of groups of channels become FusedNorm nodes, before regions of convolutions are found, which take them in."""

from __future__ import annotations

from onnxopt.fusions.fused_norm import GROUP_RULES
from onnxopt.passes.base import RulePass, register_pass


@register_pass
class FuseGroupNorms(RulePass):
    """Turn group and instance normalizations, also those that are an instance normalization of reshaped channels, into FusedNorm nodes.

    Refused: element types other than float32, numbers of channels that are not known, scales and biases that are not of a channel
    each, and nodes inside loops.
    """

    name = "fuse_group_norms"
    phase = "fuse"
    rules = GROUP_RULES
