"""Softmax with element-wise ops next to it becomes FusedSoftmax nodes."""

from __future__ import annotations

from onnxopt.fusions.fused_softmax import fuse_softmax
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.rules import RuleSet


@register_pass
class FuseSoftmax(RulePass):
    """Turn Softmax and LogSoftmax into FusedSoftmax nodes, which `fuse_prologues` and `fuse_epilogues` extend.

    Refused: element types other than float32, nodes inside loops, several axes (before opset 13), and the last axis with
    nothing element-wise next to it, which onnxruntime computes as fast.
    """

    name = "fuse_softmax"
    phase = "fuse"
    rules = RuleSet([fuse_softmax])
