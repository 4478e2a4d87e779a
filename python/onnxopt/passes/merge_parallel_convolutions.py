"""Convolutions of the same tensor whose results are added become one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.passes.fuse_padding import own_pads
from onnxopt.rewrite.affine import FOLDABLE, affine_of, rounded
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, attribute, rule

AFFINE = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Sub"})


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Which elements a convolution reads along one dim: taps at a distance, from `begin` elements before the first one on."""

    taps: int
    stride: int
    dilation: int
    begin: int
    end: int

    @property
    def last(self) -> int:
        """Where the last tap lies, counted from the first element."""
        return (self.taps - 1) * self.dilation - self.begin

    def joined(self, other: Window) -> Window | None:
        """The window with the taps of both, for the same result; None where there is none."""
        steps = {one.dilation for one in (self, other) if one.taps > 1} or {1}
        step = min(steps)
        same_size = self.end - self.last == other.end - other.last
        if self.stride != other.stride or len(steps) > 1 or not same_size or (self.begin - other.begin) % step:
            return None
        begin, last = max(self.begin, other.begin), max(self.last, other.last)
        return Window((begin + last) // step + 1, self.stride, step, begin, max(self.end, other.end))


@dataclasses.dataclass(frozen=True, slots=True)
class Branch:
    """A convolution with constant weights [M, C / groups, ...] that nothing else reads."""

    node: ir.Node
    weights: ir.TensorProtocol
    bias: np.ndarray
    groups: int
    windows: tuple[Window, ...]

    def placed(self, windows: tuple[Window, ...]) -> np.ndarray:
        """Its weights in float64 in windows with more taps."""
        pads = [(0, 0), (0, 0)]
        for own, joined in zip(self.windows, windows, strict=True):
            before = (joined.begin - own.begin) // joined.dilation
            pads.append((before, joined.taps - own.taps - before))
        return np.pad(self.weights.numpy().astype(np.float64), pads)


def _branch(value: ir.Value | None, m: Match) -> Branch | Refusal | None:
    """The convolution that makes a value; None where another op does."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type != "Conv" or node.domain:
        return None
    weights, *biases = (None if one is None else ir.constant(one) for one in node.inputs[1:])
    if weights is None or None in biases or weights.dtype not in FOLDABLE:
        return Refusal("its weights are not constant", culprit=node)
    if ir.use_count(value) > 1 or value.is_graph_output():
        return Refusal("'{}' is also used elsewhere", value.name, culprit=value)
    count, _, *kernel = weights.shape.numpy()
    pads = own_pads(node, len(kernel))
    if pads is None:
        return Refusal("auto_pad depends on the size", culprit=node)
    steps = [attribute(node, name) or (1,) * len(kernel) for name in ("strides", "dilations")]
    windows = tuple(map(Window, kernel, *steps, pads[: len(kernel)], pads[len(kernel) :]))
    bias = biases[0].numpy().astype(np.float64) if biases and biases[0] is not None else np.zeros(count)
    return Branch(node, weights, bias, attribute(node, "group", 1), windows)


def _merged(
    b: Builder, m: Match, branch: Branch, weights: np.ndarray, bias: np.ndarray, windows: tuple[Window, ...]
) -> ir.Value | Refusal:
    """The convolution of a branch with other weights in other windows."""
    dtype = branch.weights.dtype
    constants = rounded(weights, dtype), rounded(bias, dtype)
    if constants[0] is None or constants[1] is None:
        return Refusal("the sums do not fit into {}", dtype.name, culprit=m.root)
    name = branch.weights.name or "weights"
    attributes = {
        "kernel_shape": [one.taps for one in windows],
        "dilations": [one.dilation for one in windows],
        "pads": [*(one.begin for one in windows), *(one.end for one in windows)],
        "auto_pad": None,
    }
    inputs = [branch.node.inputs[0], b.constant(constants[0], name), b.constant(constants[1], f"{name}.bias")]
    return b.copy_of(branch.node, inputs, **attributes)[0]


@rule(op("Add"), benefit=2)
def merge_convolutions(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """The sum of two convolutions of a tensor is its convolution by the sum of their weights."""
    first, second = (_branch(value, m) for value in m.root.inputs)
    if not isinstance(first, Branch) or not isinstance(second, Branch):
        return first if isinstance(first, Refusal) else second if isinstance(second, Refusal) else None
    if first.node is second.node or first.node.inputs[0] is not second.node.inputs[0]:
        return None
    same_rank = len(first.windows) == len(second.windows)
    if not same_rank or first.groups != second.groups or len(first.bias) != len(second.bias):
        return Refusal("their filters or groups differ", culprit=second.node)
    windows = []
    for one, other in zip(first.windows, second.windows, strict=True):
        joined = one.joined(other)
        if joined is None:
            return Refusal("their windows move or lie differently", culprit=second.node)
        windows.append(joined)
    taps = [math.prod(window.taps for window in found) for found in (windows, first.windows, second.windows)]
    if taps[0] > taps[1] + taps[2]:
        return Refusal("a window of both would have {} taps", taps[0], culprit=second.node)
    weights = first.placed(tuple(windows)) + second.placed(tuple(windows))
    return _merged(b, m, first, weights, first.bias + second.bias, tuple(windows))


@rule(op("Add"))
def merge_scale_into_convolution(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """The sum of a convolution and its scaled input is a convolution with the scale in the middle of its weights."""
    for value, other in (m.root.inputs, m.root.inputs[::-1]):
        branch, node = _branch(value, m), None if other is None else other.producer()
        if isinstance(branch, Branch) and node is not None and not node.domain and node.op_type in AFFINE:
            return _with_scale(b, m, branch, node)
    return None


def _with_scale(b: Builder, m: Match, branch: Branch, node: ir.Node) -> ir.Value | Refusal | None:
    x, result = branch.node.inputs[0], node.outputs[0]
    if x is None or x not in node.inputs:
        return None
    if ir.use_count(result) > 1 or result.is_graph_output():
        return Refusal("'{}' is also used elsewhere", result.name, culprit=result)
    middle = tuple(one.begin // one.dilation for one in branch.windows)
    keeps_size = all(one.stride == 1 and not one.begin % one.dilation and one.end == one.last for one in branch.windows)
    count, depth, *_ = branch.weights.shape.numpy()
    if not keeps_size or any(tap >= one.taps for tap, one in zip(middle, branch.windows, strict=True)):
        return Refusal("no tap of it reads the element at the same place", culprit=branch.node)
    if count != depth * branch.groups:
        return Refusal("it has other channels than its input", culprit=branch.node)
    affine = affine_of(node, x, rank=len(branch.windows) + 2, axis=1, length=count)
    if isinstance(affine, Refusal):
        return affine
    weights = branch.weights.numpy().astype(np.float64)
    channels = np.arange(count)
    places: tuple[Any, ...] = (channels, channels % depth, *middle)
    weights[places] += affine.scale_or_one(count)
    return _merged(b, m, branch, weights, branch.bias + affine.shift_or_zero(count), branch.windows)


@register_pass
class MergeParallelConvolutions(RulePass):
    """Make one convolution of those that read the same tensor and whose results are added, as networks of several branches
    (RepVGG, MobileOne) are trained; a branch may be a BatchNormalization or another scale and shift per channel alone.

    Weights are added in float64 and rounded once. Refused: weights that are not constant, other strides, dilations, groups or sizes of
    the result, windows that together have more taps than both (a row and a column), results that others use as well.
    """

    name = "merge_parallel_convolutions"
    phase = "simplify"
    rules = RuleSet([merge_convolutions, merge_scale_into_convolution])
