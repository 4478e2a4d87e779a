"""Which axes of attention the dims of a tensor hold, followed through what only moves elements: Transpose, Reshape, Split, Slice, Gather, Expand."""

from __future__ import annotations

import dataclasses

from onnxopt import ir
from onnxopt.ir import dims
from onnxopt.ir.dims import Dim
from onnxopt.passes.base import Context
from onnxopt.rewrite.rules import attribute

Labels = tuple[str, ...]
"""For each dim the axes that it holds, outermost first: b, h, s and d, x for batch and heads together, and where heads share keys k for groups of
heads and g for the heads of a group."""

SPLITS = {"x": ("b", "h"), "h": ("k", "g")}


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """A value, the axes that its dims hold, where they begin in dims that hold more (None: they are all of it), and the sizes of axes."""

    value: ir.Value
    labels: Labels
    starts: tuple[int | None, ...]
    sizes: dict[str, Dim]

    @property
    def layout(self) -> str:
        """As the op's attributes have it."""
        return " ".join(
            letters if start is None and letters else f"{letters}@{start or 0}"
            for letters, start in zip(self.labels, self.starts, strict=True)
        )

    def renamed(self, **letters: str) -> Placed:
        """Other letters for some axes, also several for one."""
        table = str.maketrans(letters)
        return dataclasses.replace(self, labels=tuple(one.translate(table) for one in self.labels))

    def without(self, axis: str) -> Placed:
        """An axis of size 1 is left out."""
        labels = tuple(one.replace(axis, "") for one in self.labels)
        return dataclasses.replace(self, labels=labels, sizes={x: size for x, size in self.sizes.items() if x != axis})

    def moved(self, value: ir.Value, labels: Labels, starts: tuple[int | None, ...]) -> Placed:
        return Placed(value, labels, starts, self.sizes)


def place(value: ir.Value, labels: Labels, ctx: Context) -> Placed | None:
    """A value whose dims hold one axis each."""
    shape = ctx.shapes.shape(value)
    if shape is None or len(shape) != len(labels):
        return None
    return Placed(value, labels, (None,) * len(labels), dict(zip(labels, shape, strict=True)))


def sources(placed: Placed, ctx: Context) -> list[Placed]:
    """The value and those from which it came by moving elements, the nearest first."""
    found = [placed]
    while (node := found[-1].value.producer()) is not None and node.domain == "":
        step = BACKWARD.get(node.op_type)
        before = None if step is None else step(found[-1], node, ctx)
        if before is None:
            break
        found.append(before)
    return found


def _transpose(placed: Placed, node: ir.Node, ctx: Context) -> Placed | None:
    rank = len(placed.labels)
    perm = attribute(node, "perm", tuple(reversed(range(rank))))
    if node.inputs[0] is None or perm is None or len(perm) != rank:
        return None
    back = [perm.index(axis) for axis in range(rank)]
    return placed.moved(node.inputs[0], tuple(placed.labels[i] for i in back), tuple(placed.starts[i] for i in back))


def _reshape(placed: Placed, node: ir.Node, ctx: Context) -> Placed | None:
    source = node.inputs[0]
    shape = None if source is None else ctx.shapes.shape(source)
    if source is None or shape is None or any(start is not None for start in placed.starts):
        return None
    return regroup(placed, source, shape, ctx)


def regroup(placed: Placed, value: ir.Value, shape: tuple[Dim, ...], ctx: Context) -> Placed | None:
    """The same elements in the same order in another shape: axes may be joined, and those of `SPLITS` taken apart."""
    rest = list("".join(placed.labels))
    sizes, labels = dict(placed.sizes), []
    for dim in shape:
        word = _take(rest, dim, sizes, ctx)
        if word is None:
            return None
        labels.append(word)
    if any(sizes[letter] != 1 for letter in rest):
        return None
    return Placed(value, tuple(labels), (None,) * len(labels), sizes)


def _take(rest: list[str], dim: Dim, sizes: dict[str, Dim], ctx: Context) -> str | None:
    """The next axes whose sizes multiply to `dim`, taken off `rest`; None where there are none."""
    if dim == 1:
        return rest.pop(0) if rest and sizes[rest[0]] == 1 else ""
    product: Dim = 1
    for count, letter in enumerate(rest, 1):
        product = product * sizes[letter]
        if ctx.shapes.equal(product, dim):
            word = "".join(rest[:count])
            del rest[:count]
            return word
    if not rest or rest[0] not in SPLITS:
        return None
    outer, inner = SPLITS[rest[0]]
    size = dims.floordiv(sizes[rest[0]], dim)
    if not isinstance(size, int) or size == 0 or not ctx.shapes.equal(dim * size, sizes[rest[0]]):
        return None
    sizes[outer], sizes[inner] = dim, size
    rest[:1] = [inner]
    return outer


def _split(placed: Placed, node: ir.Node, ctx: Context) -> Placed | None:
    source = node.inputs[0]
    shape = None if source is None else ctx.shapes.shape(source)
    if source is None or shape is None:
        return None
    axis = attribute(node, "axis", 0) % len(shape)
    start: Dim = 0
    for output in node.outputs[: placed.value.index()]:
        before = ctx.shapes.shape(output)
        if before is None:
            return None
        start = start + before[axis]
    return _part(placed, source, axis, start)


def _slice(placed: Placed, node: ir.Node, ctx: Context) -> Placed | None:
    if len(node.inputs) < 4 or node.inputs[0] is None:
        return None
    starts, ends, axes, *_ = [ctx.shapes.integers(value) for value in node.inputs[1:4]]
    steps = ctx.shapes.integers(node.inputs[4]) if ir.input_at(node, 4) is not None else (1,)
    shape = ctx.shapes.shape(node.inputs[0])
    if starts is None or ends is None or axes is None or shape is None or len(axes) != 1 or steps != (1,):
        return None
    axis = axes[0] % len(shape)
    start, size = starts[0], shape[axis]
    if start < 0 and not isinstance(size, int):
        return None
    return _part(placed, node.inputs[0], axis, start + size if start < 0 else start)


def _part(placed: Placed, source: ir.Value, axis: int, start: Dim) -> Placed | None:
    """The axes of one dim begin at `start` in a larger one. Only those of known sizes may."""
    if not isinstance(start, int) or not all(
        isinstance(placed.sizes[letter], int) and letter in "hkd" for letter in placed.labels[axis]
    ):
        return None
    starts = list(placed.starts)
    starts[axis] = start + (starts[axis] or 0)
    return placed.moved(source, placed.labels, tuple(starts))


def _gather(placed: Placed, node: ir.Node, ctx: Context) -> Placed | None:
    source, index = node.inputs[0], ir.scalar(node.inputs[1])
    rank = None if source is None else ctx.shapes.rank(source)
    if source is None or rank is None or not isinstance(index, int) or index < 0:
        return None
    axis = attribute(node, "axis", 0) % rank
    if rank != len(placed.labels) + 1:
        return None
    labels, starts = list(placed.labels), list(placed.starts)
    labels.insert(axis, "")
    starts.insert(axis, index)
    return placed.moved(source, tuple(labels), tuple(starts))


def _squeeze(placed: Placed, node: ir.Node, ctx: Context) -> Placed | None:
    source = node.inputs[0]
    shape = None if source is None else ctx.shapes.shape(source)
    axes = _axes(node, ctx)
    if source is None or shape is None or axes is None:
        return None
    labels, starts = list(placed.labels), list(placed.starts)
    for axis in sorted(axis % len(shape) for axis in axes):
        labels.insert(axis, "")
        starts.insert(axis, None)
    return placed.moved(source, tuple(labels), tuple(starts)) if len(labels) == len(shape) else None


def _unsqueeze(placed: Placed, node: ir.Node, ctx: Context) -> Placed | None:
    source, axes = node.inputs[0], _axes(node, ctx)
    if source is None or axes is None:
        return None
    gone = {axis % len(placed.labels) for axis in axes}
    if any(placed.starts[axis] is not None or any(placed.sizes[x] != 1 for x in placed.labels[axis]) for axis in gone):
        return None
    kept = [axis for axis in range(len(placed.labels)) if axis not in gone]
    return placed.moved(source, tuple(placed.labels[i] for i in kept), tuple(placed.starts[i] for i in kept))


def _axes(node: ir.Node, ctx: Context) -> tuple[int, ...] | None:
    if ir.input_at(node, 1) is not None:
        return ctx.shapes.integers(node.inputs[1])
    found = attribute(node, "axes")
    return None if found is None else tuple(found)


def _expand(placed: Placed, node: ir.Node, ctx: Context) -> Placed | None:
    """Copies for the heads that share keys are not needed."""
    source = node.inputs[0]
    shape, result = (None if value is None else ctx.shapes.shape(value) for value in (source, placed.value))
    if source is None or shape is None or result is None or len(shape) != len(result):
        return None
    labels = list(placed.labels)
    for axis, (before, after) in enumerate(zip(shape, result, strict=True)):
        if ctx.shapes.equal(before, after):
            continue
        if before != 1 or labels[axis] not in ("g", "h"):
            return None
        labels[axis] = ""
    return placed.moved(source, tuple(labels), placed.starts)


BACKWARD = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
}


def users(placed: Placed, ctx: Context) -> list[Placed]:
    """The value and what its only users make of it by moving elements, the nearest first."""
    found = [placed]
    while True:
        last = found[-1]
        uses = list(last.value.uses())
        if len(uses) != 1 or last.value.is_graph_output():
            return found
        node = uses[0][0]
        after = _after(last, node, ctx) if node.domain == "" and node.inputs[0] is last.value else None
        if after is None:
            return found
        found.append(after)


def _after(placed: Placed, node: ir.Node, ctx: Context) -> Placed | None:
    value = node.outputs[0]
    shape = ctx.shapes.shape(value)
    if shape is None:
        return None
    if node.op_type == "Transpose":
        perm = attribute(node, "perm", tuple(reversed(range(len(shape)))))
        return placed.moved(value, tuple(placed.labels[i] for i in perm), tuple(placed.starts[i] for i in perm))
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return regroup(placed, value, shape, ctx)
    return None
