"""Pads that the convolution or pooling behind them can do itself."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from onnxopt import ir
from onnxopt.ir import shape_rules
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, attribute, rule

FIRST_SPATIAL = 2
"""Batch and channels come first in what convolutions and poolings read."""

INPUTS_FROM_OPSET = 11
"""Since then `pads` and the value are inputs of Pad, before they were attributes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Padding:
    """What a constant Pad adds: elements before and after each dim, and their value."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    value: float

    @property
    def spatial(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.begins[FIRST_SPATIAL:], self.ends[FIRST_SPATIAL:]


def padding_of(node: ir.Node, m: Match) -> Padding | Refusal:
    """Read a Pad of any opset.

    Refused: modes other than constant, amounts that are not constant or negative (they crop), a value that is not
    constant.
    """
    mode = attribute(node, "mode", "constant")
    if mode not in ("constant", b"constant"):
        return Refusal("it pads by mode {}", mode, culprit=node)
    rank = m.ctx.shapes.rank(node.outputs[0])
    source = node.inputs[0]
    if rank is None and source is not None:
        rank = m.ctx.shapes.rank(source)
    amounts, axes, value = _operands(node, m)
    if rank is None or amounts is None or axes is None or value is None:
        return Refusal("how much it pads is not constant", culprit=node)
    axes = tuple(axis + rank if axis < 0 else axis for axis in axes or range(rank))
    if len(amounts) != 2 * len(axes) or len(set(axes)) != len(axes) or any(not 0 <= axis < rank for axis in axes):
        return Refusal("its pads do not fit its rank {}", rank, culprit=node)
    if min(amounts, default=0) < 0:
        return Refusal("it crops", culprit=node)
    begins, ends = [0] * rank, [0] * rank
    for axis, begin, end in zip(axes, amounts[: len(axes)], amounts[len(axes) :], strict=True):
        begins[axis], ends[axis] = begin, end
    return Padding(tuple(begins), tuple(ends), value)


def _operands(node: ir.Node, m: Match) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None, float | None]:
    """Amounts, axes (none given: all) and value; None for what is not constant."""
    if m.ctx.opset < INPUTS_FROM_OPSET:
        amounts = attribute(node, "pads")
        return None if amounts is None else tuple(amounts), (), float(attribute(node, "value", 0.0))
    operands = [*node.inputs, None, None, None]
    value = 0.0 if operands[2] is None else ir.scalar(operands[2])
    axes = () if operands[3] is None else ir.integers(operands[3])
    return ir.integers(operands[1]), axes, None if value is None else float(value)


@pattern
def _padded(p, x):  # type: ignore[no-untyped-def]
    return p.op(
        ("Conv", "AveragePool", "MaxPool"), p.Pad(x, open_inputs=True, as_="pad"), as_="window", open_inputs=True
    )


@rule(_padded)
def fuse_pad(b: Builder, m: Match) -> list[ir.Value | None] | Refusal | None:
    """A Pad of spatial dims with the value that the window op pads with itself becomes its `pads`."""
    pad, node = m.node("pad"), m.root
    if node.inputs[0] is not pad.outputs[0]:
        return None
    padding = padding_of(pad, m)
    if isinstance(padding, Refusal):
        return padding
    begins, ends = padding.spatial
    own = own_pads(node, len(begins))
    if own is None:
        return Refusal("auto_pad depends on the padded size", culprit=node)
    if any(padding.begins[:FIRST_SPATIAL]) or any(padding.ends[:FIRST_SPATIAL]):
        return Refusal("it pads batch or channels", culprit=pad)
    objection = _OBJECTIONS[node.op_type](padding, own, node, m)
    if objection is not None:
        return objection
    total = [outer + inner for outer, inner in zip((*begins, *ends), own, strict=True)]
    changed: dict[str, Any] = {"auto_pad": None, "pads": total}
    if node.op_type == "AveragePool":
        changed["count_include_pad"] = 1
    return list(b.copy_of(node, [m["x"], *node.inputs[1:]], **changed))


def own_pads(node: ir.Node, spatial: int) -> tuple[int, ...] | None:
    """The explicit pads of a window op; None where they depend on the size of its input."""
    mode = attribute(node, "auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode not in ("NOTSET", "VALID"):
        return None
    pads = None if mode == "VALID" else attribute(node, "pads")
    return tuple(pads) if pads else (0,) * (2 * spatial)


def _against_convolution(padding: Padding, own: tuple[int, ...], node: ir.Node, m: Match) -> Refusal | None:
    if padding.value == 0:
        return None
    return Refusal("it pads with {}, a convolution with 0", padding.value, culprit=m.node("pad"))


def _against_average(padding: Padding, own: tuple[int, ...], node: ir.Node, m: Match) -> Refusal | None:
    if padding.value != 0:
        return Refusal("it pads with {}, which changes averages", padding.value, culprit=m.node("pad"))
    if any(own) and not attribute(node, "count_include_pad", 0):
        return Refusal("padding of its own is not counted in averages", culprit=node)
    return _against_pooling(padding, own, node)


def _against_maximum(padding: Padding, own: tuple[int, ...], node: ir.Node, m: Match) -> Refusal | None:
    if len(node.outputs) > 1 and (ir.use_count(node.outputs[1]) or node.outputs[1].is_graph_output()):
        return Refusal("indices refer to the padded tensor", culprit=node)
    if padding.value != -math.inf and not (padding.value == 0 and _is_never_negative(m["x"])):
        return Refusal("it pads with {}, which may be a maximum", padding.value, culprit=m.node("pad"))
    if set(attribute(node, "dilations", ()) or ()) - {1}:
        return Refusal("windows with gaps may see padding alone", culprit=node)
    dtype = m.dtype("x")
    if dtype is None or not dtype.is_floating_point():
        return Refusal("only floating point has an infinity", culprit=node)
    return _against_pooling(padding, own, node)


def _against_pooling(padding: Padding, own: tuple[int, ...], node: ir.Node) -> Refusal | None:
    """Every window must see at least one element, and none may be added or left out by rounding up."""
    if attribute(node, "ceil_mode", 0):
        return Refusal("ceil_mode leaves out windows that begin in padding", culprit=node)
    kernel = attribute(node, "kernel_shape", ()) or ()
    total = [outer + inner for outer, inner in zip((*padding.spatial[0], *padding.spatial[1]), own, strict=True)]
    if any(amount >= size for amount, size in zip(total, (*kernel, *kernel), strict=True)):
        return Refusal("windows would lie in padding alone", culprit=node)
    return None


_OBJECTIONS = {"Conv": _against_convolution, "AveragePool": _against_average, "MaxPool": _against_maximum}

_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "Abs", "HardSigmoid", "Softmax", "Exp"})


def _is_never_negative(value: ir.Value) -> bool:
    """Whether a value is the result of an op that gives no negative numbers."""
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "Clip":
        low = attribute(node, "min") if "min" in node.attributes else ir.scalar([*node.inputs, None][1])
        return low is not None and low >= 0
    return node.op_type in _NEVER_NEGATIVE


@pattern
def _pad_of_pad(p, x):  # type: ignore[no-untyped-def]
    return p.Pad(p.Pad(x, open_inputs=True, as_="inner"), open_inputs=True)


@rule(_pad_of_pad)
def merge_pads(b: Builder, m: Match) -> ir.Value | Refusal:
    """Two Pads in a row with the same value are one."""
    inner, outer = padding_of(m.node("inner"), m), padding_of(m.root, m)
    for one in (inner, outer):
        if isinstance(one, Refusal):
            return one
    assert isinstance(inner, Padding) and isinstance(outer, Padding)
    if inner.value != outer.value or len(inner.begins) != len(outer.begins):
        return Refusal("they pad with {} and {}", inner.value, outer.value, culprit=m.root)
    amounts = [a + c for a, c in zip(inner.begins + inner.ends, outer.begins + outer.ends, strict=True)]
    if m.ctx.opset < INPUTS_FROM_OPSET:
        return b.copy_of(m.root, [m["x"]], pads=amounts)[0]
    value = m.root.inputs[2:3]
    return b.copy_of(m.root, [m["x"], b.constant(np.array(amounts, np.int64), "pads"), *value])[0]


@pattern
def _cropped(p, x):  # type: ignore[no-untyped-def]
    return p.Slice(p.Conv(x, open_inputs=True, as_="conv"), open_inputs=True)


@rule(_cropped)
def drop_cropped_padding(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """A convolution need not pad for results that a Slice leaves out, as causal convolutions do."""
    conv, shapes = m.node("conv"), m.ctx.shapes
    shape, kept = shapes.shape(conv.outputs[0]), shapes.shape(m.output)
    if m.root.inputs[0] is not conv.outputs[0] or shape is None or kept is None:
        return None
    bounds = shape_rules.slice_bounds(shapes, m.root, len(shape))
    pads = own_pads(conv, len(shape) - FIRST_SPATIAL)
    if pads is None or bounds is None or ir.use_count(conv.outputs[0]) != 1:
        return Refusal("its padding or the Slice is not constant, or others read all of it", culprit=conv)
    left = list(pads)
    for axis, start, _, step in bounds:
        behind = shape[axis] - kept[axis]
        place, end = axis - FIRST_SPATIAL, axis - FIRST_SPATIAL + len(pads) // 2
        if place < 0 or step != 1 or not isinstance(start, int) or not isinstance(behind, int):
            return Refusal("the Slice takes no stretch of positions", culprit=m.root)
        stride = (attribute(conv, "strides") or [1] * (len(pads) // 2))[place]
        if stride != 1 or not 0 <= start <= left[place] or not 0 <= behind - start <= left[end]:
            return Refusal("the Slice leaves out more than padding", culprit=m.root)
        left[place] -= start
        left[end] -= behind - start
    return b.copy_of(conv, conv.inputs, auto_pad=None, pads=left)[0]


@register_pass
class FusePadding(RulePass):
    """Let Conv, AveragePool and MaxPool do the padding of a Pad before them, merge chains of Pads, and drop padding of convolutions
    that is cropped.

    Refused: modes other than constant; amounts that are not constant, or negative; padded batch or channels; values
    other than 0 (other than minus infinity for MaxPool, where 0 will do for what is never negative); auto_pad SAME;
    poolings that round sizes up, that give indices, whose windows would lie in padding alone, or that leave padding of
    their own out of averages.
    """

    name = "fuse_padding"
    phase = "simplify"
    rules = RuleSet([fuse_pad, merge_pads, drop_cropped_padding])
