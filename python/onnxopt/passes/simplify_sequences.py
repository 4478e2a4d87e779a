"""Sequences whose elements are known one by one disappear, and so do optional values that are known to be there."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import attribute

MAX_STEPS = 4096
"""Nodes that one question about a sequence looks back over, and elements that it may have: longer ones are lists of data."""

"""The opset from which Unsqueeze takes its axes as an input."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """An element of a tensor that was split: from `start` to `end` along `axis`, without that dim when `dropped`."""

    data: ir.Value
    axis: int
    start: int
    end: int
    dropped: bool

    def build(self, builder: Builder) -> ir.Value:
        if self.dropped:
            return builder.Gather(self.data, builder.constant(np.array(self.start, np.int64)), axis=self.axis)
        bounds = [builder.constant(np.array([number], np.int64)) for number in (self.start, self.end, self.axis)]
        return builder.Slice(self.data, *bounds)


Element = ir.Value | _Part


def elements_of(sequence: ir.Value | None, ctx: Context) -> list[Element] | None:
    """The elements of a sequence, in order; None where they are not known one by one."""
    steps: list[ir.Node] = []
    value = sequence
    while True:
        node = None if value is None else value.producer()
        if node is None or node.domain or len(steps) > MAX_STEPS:
            return None
        if node.op_type not in STEPS:
            break
        steps.append(node)
        value = node.inputs[0]
    start = STARTS.get(node.op_type)
    elements = None if start is None else start(node, ctx)
    for step in reversed(steps):
        if elements is None or not STEPS[step.op_type](step, elements):
            return None
    return elements


def _constructed(node: ir.Node, ctx: Context) -> list[Element] | None:
    given: list[Element] = [value for value in node.inputs if value is not None]
    return given if len(given) == len(node.inputs) else None


def _split(node: ir.Node, ctx: Context) -> list[Element] | None:
    data = node.inputs[0]
    shape = None if data is None else ctx.shapes.shape(data)
    axis = attribute(node, "axis", 0)
    if data is None or shape is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    if not isinstance(size, int) or size > MAX_STEPS:
        return None
    split = ir.input_at(node, 1)
    if _has_unclear_dims(node):
        return None
    if split is None:
        dropped = not attribute(node, "keepdims", 1)
        return [_Part(data, axis, place, place + 1, dropped) for place in range(size)]
    ends = _ends(split, size)
    return None if ends is None else [_Part(data, axis, *pair, False) for pair in itertools.pairwise([0, *ends])]


def _has_unclear_dims(node: ir.Node) -> bool:
    """Whether a split by given lengths asks for elements without the dim: the standard ignores that, onnxruntime does not."""
    return ir.input_at(node, 1) is not None and not attribute(node, "keepdims", 1)


@dataclasses.dataclass(frozen=True, slots=True)
class _Slices:
    """The elements of a tensor that was split into parts of one, however many there are along `axis`."""

    data: ir.Value
    axis: int
    kept: bool

    @staticmethod
    def of(sequence: ir.Value | None, ctx: Context) -> _Slices | None:
        source = ir.source_of(sequence)
        node = None if source is None else source.producer()
        if node is None or node.op_type != "SplitToSequence" or node.domain or node.inputs[0] is None:
            return None
        rank, axis, split = ctx.shapes.rank(node.inputs[0]), attribute(node, "axis", 0), ir.input_at(node, 1)
        if rank is None or not -rank <= axis < rank:
            return None
        tensor = ir.constant(split)
        if split is not None and (tensor is None or len(tensor.shape) != 0 or ir.scalar(split) != 1):
            return None
        if _has_unclear_dims(node):
            return None
        return _Slices(node.inputs[0], axis % rank, bool(attribute(node, "keepdims", 1)))

    def take(self, place: ir.Value, builder: Builder) -> ir.Value:
        element = builder.Gather(self.data, place, axis=self.axis)
        return builder.unsqueeze(element, self.axis) if self.kept else element

    def count(self, builder: Builder) -> ir.Value:
        return builder.Gather(builder.Shape(self.data), builder.constant(np.array(self.axis, np.int64)), axis=0)


def _ends(split: ir.Value, size: int) -> list[int] | None:
    """Where the parts end."""
    numbers = ir.integers(split)
    if numbers is None or any(number < 0 for number in numbers):
        return None
    tensor = ir.constant(split)
    if tensor is not None and len(tensor.shape) == 0:
        if numbers[0] == 0:
            return None
        return [min(start + numbers[0], size) for start in range(0, size, numbers[0])]
    ends = list(itertools.accumulate(numbers))
    return ends if ends and ends[-1] == size else None


def _insert(node: ir.Node, elements: list[Element]) -> bool:
    place = _place(node, 2, len(elements), len(elements))
    if place is None or node.inputs[1] is None or place > len(elements):
        return False
    elements.insert(place, node.inputs[1])
    return True


def _erase(node: ir.Node, elements: list[Element]) -> bool:
    place = _place(node, 1, len(elements), len(elements) - 1)
    if place is None or place >= len(elements):
        return False
    del elements[place]
    return True


def _place(node: ir.Node, index: int, length: int, missing: int) -> int | None:
    """The place that an input names, from the front; None where it is not known or before the first."""
    value = ir.input_at(node, index)
    number = missing if value is None else ir.scalar(value)
    if number is None:
        return None
    place = int(number) + length if number < 0 else int(number)
    return place if place >= 0 else None


STARTS: dict[str, Callable[[ir.Node, Context], list[Element] | None]] = {
    "SequenceEmpty": lambda node, ctx: [],
    "SequenceConstruct": _constructed,
    "SplitToSequence": _split,
}
STEPS: dict[str, Callable[[ir.Node, list[Element]], bool]] = {
    "Identity": lambda node, elements: True,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
}


@register_pass
class SimplifySequences(Pass):
    """Replace what is read from sequences and optional values by what was put into them.

    `SequenceAt` becomes the element, `SequenceLength` a constant, `ConcatFromSequence` a Concat; an optional value that was made from a
    value is that value. Of a tensor that was split into parts of one, elements are gathered by numbers that are computed. Refused: sequences
    that a loop or a branch gives, other places that are not constant, and those outside of the sequence, which fail in the original.
    """

    name = "simplify_sequences"
    phase = "simplify"

    def rule_names(self) -> list[str]:
        return ["take_element", "count_elements", "concat_elements", "take_optional", "know_optional"]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for node in ctx.nodes_of([("", kind) for kind in RULES]):
            if node.graph is None:
                continue
            builder = Builder(ctx, node)
            rule, build = RULES[node.op_type]
            value = build(node, builder)
            if value is not None and ctx.editor.apply(builder.patch(rule, {node.outputs[0]: value}), unused=[node]):
                patches += 1
        return PassResult(patches > 0, patches)


def _at(node: ir.Node, builder: Builder) -> ir.Value | None:
    elements = elements_of(node.inputs[0], builder.ctx)
    place = None if elements is None else _place(node, 1, len(elements), 0)
    if elements is not None and place is not None and place < len(elements):
        return _built(elements[place], builder)
    slices, index = _Slices.of(node.inputs[0], builder.ctx), ir.input_at(node, 1)
    if slices is None or index is None or ir.constant(index) is not None or builder.ctx.shapes.shape(index) != ():
        return None
    return slices.take(index, builder)


def _length(node: ir.Node, builder: Builder) -> ir.Value | None:
    elements = elements_of(node.inputs[0], builder.ctx)
    if elements is not None:
        return builder.constant(np.array(len(elements), np.int64), "length")
    slices = _Slices.of(node.inputs[0], builder.ctx)
    return None if slices is None else slices.count(builder)


def _concat(node: ir.Node, builder: Builder) -> ir.Value | None:
    elements = elements_of(node.inputs[0], builder.ctx)
    if not elements:
        return None
    axis = attribute(node, "axis")
    parts = [_built(one, builder) for one in elements]
    if attribute(node, "new_axis", 0):
        parts = [builder.unsqueeze(one, axis) for one in parts]
    return builder.Concat(*parts, axis=axis)


def _built(element: Element, builder: Builder) -> ir.Value:
    return element.build(builder) if isinstance(element, _Part) else element


def _optional(value: ir.Value | None) -> ir.Node | None:
    """The Optional node that made a value."""
    source = ir.source_of(value)
    node = None if source is None else source.producer()
    return node if node is not None and node.op_type == "Optional" and not node.domain else None


def _held(node: ir.Node, builder: Builder) -> ir.Value | None:
    made = _optional(node.inputs[0])
    return made.inputs[0] if made is not None and made.inputs else None


def _is_there(node: ir.Node, builder: Builder) -> ir.Value | None:
    made = _optional(node.inputs[0]) if node.inputs else None
    if made is None:
        return None
    there = bool(made.inputs) and made.inputs[0] is not None
    return builder.constant(np.array(there), "there")


RULES: dict[str, tuple[str, Callable[[ir.Node, Builder], ir.Value | None]]] = {
    "SequenceAt": ("take_element", _at),
    "SequenceLength": ("count_elements", _length),
    "ConcatFromSequence": ("concat_elements", _concat),
    "OptionalGetElement": ("take_optional", _held),
    "OptionalHasElement": ("know_optional", _is_there),
}
