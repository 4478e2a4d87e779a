"""Normalizations become FusedNorm nodes."""

from __future__ import annotations

from onnxopt.fusions.fused_norm import RULES
from onnxopt.passes.base import RulePass, register_pass


@register_pass
class FuseNorms(RulePass):
    """Turn layer and RMS normalizations, also written out ones, into FusedNorm nodes.

    Refused: element types other than float32, means over other axes than the last ones, scales and biases of other shapes than the
    normalized axes, small tensors, and nodes inside loops.
    """

    name = "fuse_norms"
    phase = "fuse"
    rules = RULES
