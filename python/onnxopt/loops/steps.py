"""Loops that are written out: the same nodes again and again, each time for the next element of a sequence and for what the step before
left.

Tracing exporters leave every loop of the model's source in this form. What is called a row is one value of each step. `stack_of` sees a row
in what is stacked in the end, `find_last_states` finds rows by following elements of a sequence forward, and `find_steps` goes back from a
row, through all steps abreast.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from onnxopt import ir
from onnxopt.rewrite.permutations import constant_axes
from onnxopt.rewrite.rules import Refusal, attribute

if TYPE_CHECKING:
    from onnxopt.passes.base import Context

Row = tuple[ir.Value, ...]
"""One value of each step, in order. A row that the last step has no use for is one shorter."""

MOST_NODES = 64
"""Nodes of a step, at most: more are hardly the step of a loop."""


@dataclasses.dataclass(frozen=True, slots=True)
class Element:
    """What step `i` reads of a sequence: index `first + i` along `axis`, from `first` down when `reverse`; `kept` leaves a dim of size 1."""

    sequence: ir.Value
    axis: int
    first: int
    reverse: bool
    kept: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
    """A Concat of one value of each step along `axis`, where each has size 1, which `unsqueezed` ones got for it. With `reverse` the last step's
    value comes first; the row is in the order of the steps."""

    node: ir.Node
    row: Row
    axis: int
    unsqueezed: bool
    reverse: bool = False

    def turned(self) -> Stack:
        """The stack if the steps run the other way round."""
        return dataclasses.replace(self, row=self.row[::-1], reverse=not self.reverse)


@dataclasses.dataclass(slots=True)
class Steps:
    """Steps that are alike.

    Attributes:
        count: how many.
        nodes: the nodes of all steps, those that read others' results behind them.
        elements: the rows that are elements of sequences.
        states: for each row that is the state before each step, the row that is the state after it.
        stacks: what is stacked of rows.
    """

    count: int
    nodes: list[tuple[ir.Node, ...]] = dataclasses.field(default_factory=list)
    elements: dict[Row, Element] = dataclasses.field(default_factory=dict)
    states: dict[Row, Row] = dataclasses.field(default_factory=dict)
    stacks: list[Stack] = dataclasses.field(default_factory=list)

    @property
    def updates_all(self) -> bool:
        """Whether the last step updates every state. Where a constant stands for what the first one computes of its state, what the others
        compute of theirs looks like a state that the last one leaves as it is."""
        return all(len(after) == self.count for after in self.states.values())


def stack_of(node: ir.Node, ctx: Context) -> Stack | None:
    """A Concat as a stack of steps; None where it is none."""
    rank = ctx.shapes.rank(node.outputs[0])
    if rank is None or any(value is None for value in node.inputs):
        return None
    axis = attribute(node, "axis") % rank
    given = tuple(value for value in node.inputs if value is not None)
    bare = [_before_unsqueeze(value, axis, rank, ctx) for value in given]
    if all(value is not None for value in bare):
        return Stack(node, tuple(value for value in bare if value is not None), axis, True)
    shapes = {ctx.shapes.shape(value) for value in given}
    shape = shapes.pop()
    return Stack(node, given, axis, False) if shape and not shapes and shape[axis] == 1 else None


def _before_unsqueeze(value: ir.Value, axis: int, rank: int, ctx: Context) -> ir.Value | None:
    """What gets a dim of size 1 there to be stacked."""
    node = value.producer()
    source = None if node is None or node.domain else ir.input_at(node, 0)
    if node is None or source is None:
        return None
    if node.op_type == "Unsqueeze":
        return source if constant_axes(node, 1, rank) == (axis,) else None
    before, after = ctx.shapes.static_shape(source), ctx.shapes.static_shape(value)
    added = node.op_type == "Reshape" and before is not None and after == (*before[:axis], 1, *before[axis:])
    return source if added else None


def find_last_states(least: int, ctx: Context) -> Iterator[Row]:
    """Rows of at least as many values, the last of which is read otherwise than those before: it may be the last state of steps.

    They are computed of elements of sequences; what is computed of others comes before those. The value of the first step is left out where
    that is made in another way. Nothing is certain of them but that their nodes are of one op.
    """
    for elements in _element_rows(least, ctx):
        for row in (elements, elements[::-1]):
            for made in _made_of(row, len(row), set()):
                if _uses(made[-1]).keys() != _uses(made[-2]).keys():
                    yield made


def _element_rows(least: int, ctx: Context) -> Iterator[Row]:
    """The elements of sequences that are read one by one, in their order."""
    read_by: dict[ir.Value, list[ir.Node]] = {}
    for node in ctx.nodes_of([("", op_type) for op_type in READERS]):
        if node.inputs[0] is not None:
            read_by.setdefault(node.inputs[0], []).append(node)
    for readers in read_by.values():
        values = [value for node in readers for value in node.outputs]
        if len(values) < least:
            continue
        places: dict[Element, dict[int, ir.Value]] = {}
        for value in values:
            element = read_element(value, ctx)
            if element is not None:
                places.setdefault(dataclasses.replace(element, first=0), {})[element.first] = value
        for found in places.values():
            row = [found[place] for place in sorted(found)]
            if len(row) >= least and max(found) - min(found) == len(row) - 1:
                yield tuple(row)


Use = tuple[object, ...]
"""How a value is read: by which op, as which operand, beside which constants, and as the how many-th of such."""


def _uses(value: ir.Value) -> dict[Use, ir.Node]:
    counts: collections.Counter[Use] = collections.Counter()
    found: dict[Use, ir.Node] = {}
    for node, index in value.uses():
        shared = (id(other) if other is not None and other.is_initializer() else None for other in node.inputs)
        use = (node.domain, node.op_type, index, *shared)
        found[*use, counts[use]] = node
        counts[use] += 1
    return found


def _made_of(row: Row, count: int, seen: set[ir.Node]) -> Iterator[Row]:
    """The rows that are computed of a row within each of `count` steps or all but the first, each behind those that are computed of it; the
    row itself is last."""
    first, *uses = (_uses(value) for value in row)
    for use, last in uses[-1].items():
        later = {node: None for each in uses if (node := each.get(use)) is not None}
        before = _counterpart(use, uses[0], first)
        fits = len(later) == len(row) - 1 and last not in seen and (before is not None or len(row) == count)
        if not fits or len(seen) >= MOST_NODES:
            continue
        seen.add(last)
        nodes = [*later] if before is None else [before, *later]
        for made in zip(*(node.outputs for node in nodes), strict=False):
            yield from _made_of(made, count, seen)
    yield row


def _counterpart(use: Use, uses: dict[Use, ir.Node], first: dict[Use, ir.Node]) -> ir.Node | None:
    """What reads a value in the first step as another one is read in the second; its state may be a constant."""
    alike = [[other for other in every if other[:3] == use[:3]] for every in (uses, first)]
    if use not in uses or len(alike[0]) != len(alike[1]):
        return None
    return first[alike[1][alike[0].index(use)]]


def find_steps(rows: Sequence[Row], ctx: Context) -> Steps | Refusal:
    """The steps that make rows of one length."""
    matcher = _Matcher(len(rows[0]), ctx)
    refusal = matcher.match(rows)
    return matcher.steps if refusal is None else refusal


class _Mismatch(Exception):
    """Why values of different steps do not correspond."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class _Matcher:
    """Finds what makes a row, and what that is made of, up to what all steps share."""

    def __init__(self, count: int, ctx: Context) -> None:
        self.ctx = ctx
        self.steps = Steps(count)
        self._known: dict[tuple[ir.Value, ir.Value], Row] = {}
        self._made: dict[ir.Value, Row] = {}
        self._waiting: list[tuple[Row, Refusal]] = []

    def match(self, rows: Iterable[Row]) -> Refusal | None:
        try:
            for row in rows:
                self._visit(row)
            while self._waiting:
                self._settle(*self._waiting.pop())
        except _Mismatch as mismatch:
            return mismatch.refusal
        return None

    def _settle(self, row: Row, refusal: Refusal) -> None:
        """A row whose first value is not made as the others are is a state, if those are results of the steps before."""
        if not self._is_state(row):
            if len(row) < self.steps.count:
                raise _Mismatch(refusal)
            self._visit(row[1:])
            if not self._is_state(row):
                raise _Mismatch(refusal)

    def _visit(self, row: Row) -> None:
        if len(set(row)) == 1:
            return
        known = self._known.get((row[0], row[1]))
        if known is not None:
            if not _agree(known, row):
                raise _Mismatch(Refusal("values of different steps are mixed", culprit=row[0]))
            return
        self._known[row[0], row[1]] = row
        element = _element(row, self.ctx)
        if element is not None:
            self.steps.elements[row] = element
        elif not self._is_state(row):
            self._visit_nodes(row)

    def _is_state(self, row: Row) -> bool:
        after = self._made.get(row[1])
        if after is None or not _agree(after, row[1:]):
            return False
        self.steps.states[row] = after
        return True

    def _visit_nodes(self, row: Row) -> None:
        nodes = [value.producer() for value in row]
        makers = tuple(node for node in nodes if node is not None)
        refusal = _difference(row, makers)
        if refusal is not None:
            later = [node for node in nodes[1:] if node is not None]
            if _difference(row[1:], tuple(later)) is None and len(row) == self.steps.count:
                self._waiting.append((row, refusal))
                return
            raise _Mismatch(refusal)
        if len(self.steps.nodes) >= MOST_NODES:
            raise _Mismatch(Refusal("a step has more than {} nodes", MOST_NODES, culprit=makers[0]))
        for results in zip(*(node.outputs for node in makers), strict=True):
            self._made[results[0]] = self._known[results[0], results[1]] = results
        for operands in zip(*(node.inputs for node in makers), strict=True):
            present = tuple(value for value in operands if value is not None)
            if len(present) == len(makers):
                self._visit(present)
            elif present:
                raise _Mismatch(Refusal("some steps leave an input out", culprit=makers[0]))
        self.steps.nodes.append(makers)


def _agree(known: Row, row: Row) -> bool:
    """Whether two rows are one, of which the last step may have no use."""
    return all(a is b for a, b in zip(known, row, strict=False)) and abs(len(known) - len(row)) <= 1


def _difference(row: Row, makers: tuple[ir.Node, ...]) -> Refusal | None:
    """Why the nodes that make a row are not one of each step, all alike."""
    if len(makers) != len(row) or len(set(makers)) != len(makers):
        return Refusal("its values come from elsewhere", culprit=row[0])
    first = makers[0]
    if any(value.index() != row[0].index() for value in row) or ir.inner_graphs(first):
        return Refusal("its values are made in different ways", culprit=first)
    form = node_form(first)
    unlike = next((node for node in makers if node_form(node) != form), None)
    return None if unlike is None else Refusal("nodes of different steps differ", culprit=unlike)


def node_form(node: ir.Node) -> tuple[object, ...]:
    """What nodes of different steps have in common."""
    attributes = sorted((name, _plain(attr.value)) for name, attr in node.attributes.items())
    return node.domain, node.op_type, node.overload, len(node.inputs), len(node.outputs), tuple(attributes)


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _element(row: Row, ctx: Context) -> Element | None:
    """The elements of a sequence, one after the other, or the other way round."""
    reads = [read_element(value, ctx) for value in row]
    first = reads[0]
    if first is None or any(read is None for read in reads):
        return None
    places = [read.first for read in reads if read is not None]
    step = places[1] - places[0]
    if abs(step) != 1 or places != list(range(places[0], places[0] + step * len(places), step)):
        return None
    if any(read is not None and dataclasses.replace(read, first=first.first) != first for read in reads):
        return None
    return dataclasses.replace(first, reverse=step < 0)


def read_element(value: ir.Value, ctx: Context) -> Element | None:
    """A value as one index of a sequence."""
    node = value.producer()
    source = None if node is None else ir.input_at(node, 0)
    shape = None if source is None else ctx.shapes.shape(source)
    if node is None or node.domain or source is None or not shape:
        return None
    reader = READERS.get(node.op_type)
    found = None if reader is None else reader(value, node, ctx)
    if found is None:
        return None
    axis, place, kept = found
    axis %= len(shape)
    size = shape[axis]
    if place < 0:
        place += size if isinstance(size, int) else place
    return Element(source, axis, place, False, kept) if place >= 0 else None


Place = tuple[int, int, bool]
"""An axis, an index along it, and whether the dim stays, with size 1."""


def _gathered(value: ir.Value, node: ir.Node, ctx: Context) -> Place | None:
    indices = ir.integers(node.inputs[1])
    rank = None if node.inputs[1] is None else ctx.shapes.rank(node.inputs[1])
    if indices is None or len(indices) != 1 or rank is None or rank > 1:
        return None
    return attribute(node, "axis", 0), indices[0], rank == 1


def _sliced(value: ir.Value, node: ir.Node, ctx: Context) -> Place | None:
    if len(node.inputs) < 4:
        return None
    starts, ends, axes = (ir.integers(ir.input_at(node, index)) for index in (1, 2, 3))
    steps = (1,) if ir.input_at(node, 4) is None else ir.integers(node.inputs[4])
    if starts is None or ends is None or axes is None or steps != (1,) or len(axes) != 1:
        return None
    shape = ctx.shapes.shape(value)
    one = shape is not None and shape[axes[0]] == 1
    return (axes[0], starts[0], True) if one and (ends[0] == starts[0] + 1 or starts[0] < 0) else None


def _part(value: ir.Value, node: ir.Node, ctx: Context) -> Place | None:
    axis = attribute(node, "axis", 0)
    shapes = [ctx.shapes.shape(one) for one in node.outputs]
    if any(shape is None or shape[axis] != 1 for shape in shapes):
        return None
    return axis, value.index() or 0, True


READERS: dict[str, Callable[[ir.Value, ir.Node, Context], Place | None]] = {
    "Gather": _gathered,
    "Slice": _sliced,
    "Split": _part,
}


def readers_outside(steps: Steps) -> Iterator[tuple[ir.Value, bool]]:
    """The results of steps that something else than the steps and their stacks reads, and whether each is the last state."""
    inside = set(itertools.chain.from_iterable(steps.nodes))
    stacked = {stack.node for stack in steps.stacks}
    for stack in steps.stacks:
        if stack.unsqueezed:
            stacked.update(maker for value in stack.node.inputs if value is not None and (maker := value.producer()))
    finals = {after[-1] for after in steps.states.values() if len(after) == steps.count}
    for node in itertools.chain.from_iterable(steps.nodes):
        for value in node.outputs:
            if value.is_graph_output() or any(user not in inside and user not in stacked for user, _ in value.uses()):
                yield value, value in finals


def needs_itself(steps: Steps) -> bool:
    """Whether what all steps share, or a sequence or first state of them, is computed from what a step makes: that is no loop."""
    inside = set(itertools.chain.from_iterable(steps.nodes))
    slots = [slot for nodes in steps.nodes for slot in zip(nodes[0].inputs, nodes[1].inputs, strict=True)]
    shared = [first for first, second in slots if first is not None and first is second]
    given = [element.sequence for element in steps.elements.values()] + [before[0] for before in steps.states]
    waiting = [value.producer() for value in (*shared, *given)]
    seen: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node in inside:
            return True
        seen.add(node)
        waiting += [value.producer() for value in ir.inputs_with_captures(node)]
    return False


def sequence_part(element: Element, count: int) -> tuple[int, int]:
    """From which index to which the steps read the sequence."""
    return (element.first - count + 1, element.first + 1) if element.reverse else (element.first, element.first + count)


def same_sequence(a: Element, b: Element) -> bool:
    """Whether two rows are the same elements, but for the dim that one of them keeps."""
    return dataclasses.replace(a, kept=b.kept) == b


__all__ = [
    "MOST_NODES",
    "Element",
    "Row",
    "Stack",
    "Steps",
    "find_last_states",
    "find_steps",
    "needs_itself",
    "node_form",
    "read_element",
    "readers_outside",
    "same_sequence",
    "sequence_part",
    "stack_of",
]
