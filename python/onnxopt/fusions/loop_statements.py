"""The statements of FusedLoop that stand for single nodes: which nodes have them, and how they read.

The language is described in kernels/cpu/recurrence/loop.h.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from onnxopt import ir
from onnxopt.ir.dims import Dim
from onnxopt.loops.rules import filing
from onnxopt.ops import fused_loop as op
from onnxopt.rewrite.patch import AXES_INPUT_OPSET
from onnxopt.rewrite.rules import Refusal, attribute

MOST_WORK = 1 << 22
"""Multiplications of a step's product up to which it is not worth more than the graph that onnxruntime runs around it."""
OPEN_DIM = 16
"""What a dim counts as that is not known: a batch, or a few tokens."""

FARTHEST = 2**62
"""A bound of a slice that lies beyond every tensor."""


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """The line of the node's list that made a value which no node has as its output."""

    index: int


Word = str | int | ir.Value | Line
"""A value is written as its number."""


@dataclasses.dataclass(frozen=True, slots=True)
class Statements:
    """What stands for one node: each line makes one value, the last ones the node's outputs."""

    node: ir.Node
    lines: Sequence[tuple[Word, ...]]

    @property
    def operands(self) -> list[ir.Value]:
        return [word for line in self.lines for word in line if isinstance(word, ir.Value)]


@dataclasses.dataclass(frozen=True, slots=True)
class _Node:
    """A node whose operands are read through Identity nodes."""

    node: ir.Node
    operands: Sequence[ir.Value | None]
    shapes: ir.ShapeEnv
    opset: int

    def __getitem__(self, index: int) -> ir.Value:
        value = self.operands[index]
        assert value is not None
        return value

    def get(self, index: int) -> ir.Value | None:
        return self.operands[index] if index < len(self.operands) else None

    def rank(self, index: int = 0) -> int:
        rank = self.shapes.rank(self[index])
        assert rank is not None
        return rank

    def axis(self, default: int) -> int:
        return int(attribute(self.node, "axis", default)) % max(self.rank(), 1)

    def numbers(self, name: str, index: int) -> tuple[int, ...] | None:
        """An attribute or an input of constant numbers; None where it is neither."""
        if self.get(index) is not None:
            return self.shapes.integers(self.get(index))
        found = attribute(self.node, name)
        return None if found is None else tuple(found)


Rule = Callable[[_Node], "list[tuple[Word, ...]] | Refusal"]
RULES: dict[str, Rule] = {}


def statements_of(
    node: ir.Node, operands: Sequence[ir.Value | None], shapes: ir.ShapeEnv, opset: int
) -> Statements | Refusal | None:
    """How a node reads, why it cannot be written, or None where it is of a kind that has no statement."""
    rule = None if node.domain else RULES.get(node.op_type)
    if rule is None:
        return None
    if operands[:1] in ([], [None]) or any(one is not None and shapes.rank(one) is None for one in operands):
        return Refusal("the rank of an operand of '{}' is unknown", node.op_type, culprit=node)
    types = TYPES.get(node.op_type, FLOATS)
    data = operands if node.op_type in ("MatMul", "LayerNormalization", "Conv") else operands[:1]
    if any(one is not None and shapes.dtype(one) not in types for one in data):
        return Refusal("'{}' is not of a type that the kernel has", node.op_type, culprit=node)
    lines = rule(_Node(node, operands, shapes, opset))
    return lines if isinstance(lines, Refusal) else Statements(node, lines)


_on = filing(RULES)
FLOATS = frozenset({ir.DataType.FLOAT})
NUMBERS = FLOATS | {ir.DataType.INT32, ir.DataType.INT64}
MOVES = (
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Slice",
    "Split",
    "Concat",
    "Gather",
    "Expand",
    "ScatterND",
)
TYPES = {
    **dict.fromkeys(MOVES, frozenset(op.SPEC.dtypes)),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd"), NUMBERS),
}
"""The types of an op's operands; float32 of those not named."""


def multiplications(*dims: Dim) -> int:
    """The product of dims, as far as they are known."""
    return math.prod(dim if isinstance(dim, int) else OPEN_DIM for dim in dims)


@_on(*op.REDUCTIONS)
def _reduce(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    axes = n.numbers("axes", 1)
    if n.get(1) is not None and axes is None:
        return Refusal("its axes are not constant", culprit=n.node)
    if not axes and attribute(n.node, "noop_with_empty_axes", 0):
        return Refusal("it reduces nothing", culprit=n.node)
    named = sorted({axis % n.rank() for axis in axes or ()})
    if named and named != list(range(named[0], named[-1] + 1)):
        return Refusal("it reduces axes that are no neighbours", culprit=n.node)
    return [(op.REDUCTIONS[n.node.op_type], n[0], int(attribute(n.node, "keepdims", 1)), *named)]


@_on("ArgMax", "ArgMin")
def _argument(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    if attribute(n.node, "select_last_index", 0) or not n.rank():
        return Refusal("it asks for the last of equal elements", culprit=n.node)
    return [(n.node.op_type.lower(), n[0], int(attribute(n.node, "keepdims", 1)), n.axis(0))]


@_on("TopK")
def _sorted(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    count = n.shapes.integers(n.get(1)) if n.get(1) is not None else None
    if count is None or len(count) != 1 or count[0] < 0:
        return Refusal("the number of elements that it asks for is not constant", culprit=n.node)
    rest = (n[0], count[0], n.axis(-1), int(attribute(n.node, "largest", 1)))
    return [("topk", *rest), ("topkplace", *rest)]


@_on("Softmax", "LogSoftmax")
def _softmax(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    axis, rank = n.axis(-1 if n.opset >= AXES_INPUT_OPSET else 1), n.rank()
    if not rank or (n.opset < AXES_INPUT_OPSET and axis != rank - 1):
        return Refusal("it is taken over several axes", culprit=n.node)
    return [(n.node.op_type.lower(), n[0], axis)]


@_on("LayerNormalization")
def _layer(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    axis, rank = n.axis(-1), n.rank()
    if axis != rank - 1 or len(n.node.outputs) != 1:
        return Refusal("it normalizes several axes, or gives its statistics", culprit=n.node)
    affine = [one for one in n.operands[1:] if one is not None]
    if any(n.shapes.same_shape(one, affine[0]) is not True or n.shapes.rank(one) != 1 for one in affine):
        return Refusal("its scale is no vector", culprit=n.node)
    return [("layer", n[0], axis, repr(float(attribute(n.node, "epsilon", 1e-5))), *affine)]


@_on("MatMul")
def _matmul(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    rows, made = n.shapes.shape(n[0]), n.shapes.shape(n.node.outputs[0])
    if not rows or made is None or multiplications(*made, rows[-1]) > MOST_WORK:
        return Refusal(
            "the product of '{}' and '{}' is large, or of unknown shape", n[0].name, n[1].name, culprit=n.node
        )
    return [("matmul", n[0], n[1])]


@_on("Reshape")
def _reshape(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    if attribute(n.node, "allowzero", 0):
        return Refusal("it may ask for empty dims", culprit=n.node)
    dims = n.shapes.integers(n.get(1))
    return [("reshape_as", n[0], n[1])] if dims is None else [("reshape", n[0], *dims)]


@_on("Expand")
def _expand(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    dims = n.shapes.integers(n.get(1))
    return [("expand_as", n[0], n[1])] if dims is None else [("expand", n[0], *dims)]


@_on("Flatten")
def _flatten(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    if n.axis(1) != 1:
        return Refusal("it flattens from another axis than 1 on", culprit=n.node)
    return [("reshape", n[0], 0, -1)]


@_on("Squeeze", "Unsqueeze")
def _unit_dims(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    axes, shape = n.numbers("axes", 1), n.shapes.static_shape(n[0])
    if axes is None and n.get(1) is None and shape is not None:
        axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    if axes is None:
        return Refusal("its axes are not constant", culprit=n.node)
    return [(n.node.op_type.lower(), n[0], *axes)]


@_on("Transpose")
def _transpose(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    return [("transpose", n[0], *(attribute(n.node, "perm") or reversed(range(n.rank()))))]


@_on("Slice")
def _slice(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    starts, ends, named = n.numbers("starts", 1), n.numbers("ends", 2), n.numbers("axes", 3)
    count = _count(n, starts, ends, named)
    axes = named or (None if n.get(3) is not None else tuple(range(count or 0)))
    steps = n.numbers("steps", 4) or (None if n.get(4) is not None else (1,) * (count or 0))
    if axes is None or steps is None or len(axes) != count or len(steps) != count:
        return Refusal("its axes or steps are not constant", culprit=n.node)
    if starts is None or ends is None:
        return _slice_at(n, axes, steps)
    lines: list[tuple[Word, ...]] = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        bounds = (min(max(number, -FARTHEST), FARTHEST) for number in (start, end))
        lines.append(("slice", Line(len(lines) - 1) if lines else n[0], axis, *bounds, step))
    return lines or [("reshape", n[0], *(0 for _ in range(n.rank())))]


def _count(n: _Node, *known: tuple[int, ...] | None) -> int | None:
    """How many axes a Slice names; None where that is not known."""
    sizes = {len(one) for one in known if one is not None}
    for index in (1, 2):
        shape = () if n.get(index) is None else n.shapes.static_shape(n[index])
        sizes |= set(shape or ())
    return sizes.pop() if len(sizes) == 1 else None


def _slice_at(n: _Node, axes: Sequence[int], steps: Sequence[int]) -> list[tuple[Word, ...]] | Refusal:
    if any(n.shapes.dtype(one) is not ir.DataType.INT64 for one in (n[1], n[2])):
        return Refusal("its bounds are not int64", culprit=n.node)
    if len(axes) == 1:
        return [("slice_at", n[0], axes[0], n[1], n[2], steps[0])]
    parts = [("slice", bounds, 0, place, place + 1, 1) for bounds in (n[1], n[2]) for place in range(len(axes))]
    lines: list[tuple[Word, ...]] = [*parts]
    for place, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        data = Line(len(lines) - 1) if place else n[0]
        lines.append(("slice_at", data, axis, Line(place), Line(len(axes) + place), step))
    return lines


def bounds_of(node: ir.Node, shapes: ir.ShapeEnv) -> list[ir.Value]:
    """The computed bounds of a Slice, which a step must know before it is planned; none where all are constant."""
    if node.op_type != "Slice" or node.domain or "starts" in node.attributes:
        return []
    bounds = [value for value in node.inputs[1:3] if value is not None]
    return [] if all(shapes.integers(value) is not None for value in bounds) else bounds


@_on("Conv")
def _convolution(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    weights, made = n.shapes.static_shape(n[1]), n.shapes.shape(n.node.outputs[0])
    dims = n.rank(1) - 2
    if dims not in (1, 2) or n.rank() != dims + 2:
        return Refusal("it convolves images of more than two dims", culprit=n.node)
    if weights is None or 0 in weights or made is None or multiplications(*made, *weights[1:]) > MOST_WORK:
        return Refusal("its convolution is large, or of unknown shape", culprit=n.node)
    strides = attribute(n.node, "strides", (1,) * dims)
    dilations = attribute(n.node, "dilations", (1,) * dims)
    pads = _pads(n, weights[2:], strides, dilations)
    if pads is None:
        return Refusal("its padding is not known", culprit=n.node)
    geometry = (attribute(n.node, "group", 1), *strides, *dilations, *pads)
    bias = n.get(2)
    return [("conv", dims, *(int(one) for one in geometry), n[0], n[1], *(() if bias is None else (bias,)))]


def _pads(n: _Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Sequence[int] | None:
    """What is put before and behind each dim."""
    kind = attribute(n.node, "auto_pad", "NOTSET")
    if kind in ("NOTSET", "VALID"):
        none = (0,) * (2 * len(kernel))
        return none if kind == "VALID" else attribute(n.node, "pads", none)
    shape = n.shapes.shape(n[0]) or ()
    before: list[int] = []
    behind: list[int] = []
    for size, length, stride, dilation in zip(shape[2:], kernel, strides, dilations, strict=True):
        if not isinstance(size, int):
            return None
        missing = max((-(-size // stride) - 1) * stride + (length - 1) * dilation + 1 - size, 0)
        before.append(missing // 2 if kind == "SAME_UPPER" else missing - missing // 2)
        behind.append(missing - before[-1])
    return [*before, *behind]


@_on("Split")
def _split(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    axis = n.axis(0)
    size = (n.shapes.shape(n[0]) or (None,))[axis]
    parts = n.numbers("split", 1)
    if parts is None:
        count = len(n.node.outputs)
        if n.get(1) is not None or not isinstance(size, int):
            return Refusal("the sizes of its parts are not known", culprit=n.node)
        part = -(-size // count)
        parts = tuple(max(0, min(part, size - part * index)) for index in range(count))
    ends = [sum(parts[: index + 1]) for index in range(len(parts))]
    return [("slice", n[0], axis, end - part, end, 1) for part, end in zip(parts, ends, strict=True)]


@_on("Concat")
def _concat(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    parts = [one for one in n.operands if one is not None]
    if any(n.shapes.dtype(one) is not n.shapes.dtype(parts[0]) for one in parts):
        return Refusal("it concatenates several types", culprit=n.node)
    return [("concat", n.axis(0), *parts)]


@_on("Gather")
def _gather(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    if n.shapes.dtype(n[1]) is not ir.DataType.INT64:
        return Refusal("its indices are not int64", culprit=n.node)
    return [("gather", n[0], n.axis(0), n[1])]


@_on("ScatterND")
def _scatter(n: _Node) -> list[tuple[Word, ...]] | Refusal:
    if attribute(n.node, "reduction", "none") != "none":
        return Refusal("it adds up what it scatters", culprit=n.node)
    if n.shapes.dtype(n[1]) is not ir.DataType.INT64 or n.shapes.dtype(n[2]) is not n.shapes.dtype(n[0]):
        return Refusal("its indices are not int64", culprit=n.node)
    return [("scatter", n[0], n[1], n[2])]
