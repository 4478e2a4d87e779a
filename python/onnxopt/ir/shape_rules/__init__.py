"""Shape rules by op type: what the ONNX standard says of output types and shapes, over symbolic dims.

A rule gets the environment and a node and sets what it can prove; what it cannot is left unknown. The elements of small integer
tensors are followed through shape arithmetic.
"""

from onnxopt.ir.shape_rules import control_flow, elementwise, layout, reductions, windows  # each files its rules
from onnxopt.ir.shape_rules.base import CONTRIB, RULES, Rule, broadcast
from onnxopt.ir.shape_rules.layout import OPEN_END, slice_bounds

__all__ = [
    "CONTRIB",
    "OPEN_END",
    "RULES",
    "Rule",
    "broadcast",
    "control_flow",
    "elementwise",
    "layout",
    "reductions",
    "slice_bounds",
    "windows",
]
