"""Means over all pixels of channels-last tensors become FusedPool nodes."""

from __future__ import annotations

from onnxopt.fusions.fused_pool import fuse_mean
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.rules import RuleSet


@register_pass
class FuseMeans(RulePass):
    """Turn ReduceMean over all dims but the first and the last into FusedPool, with a Flatten where the dims do not stay.

    Refused: element types other than float32, axes that are not constant, more than two dims between, small tensors, nodes inside branches
    and loops, and targets other than the CPU.
    """

    name = "fuse_means"
    phase = "fuse"
    rules = RuleSet([fuse_mean])
