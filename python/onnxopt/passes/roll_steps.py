"""Steps that an exporter wrote out become the Scan that they were."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.loops.dependences import is_recurrent
from onnxopt.loops.first_step import initial_states
from onnxopt.loops.steps import (
    MOST_NODES,
    Element,
    Row,
    Stack,
    Steps,
    find_last_states,
    find_steps,
    needs_itself,
    readers_outside,
    same_sequence,
    sequence_part,
    stack_of,
)
from onnxopt.loops.view import SCAN_OPSET
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.passes.unroll_loops import PAYING_TRIPS
from onnxopt.rewrite.driver import discard
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal

LEAST_STEPS = PAYING_TRIPS + 2
"""The first of which may be left out."""

SLICE_INPUTS_OPSET = 10
"""The opset from which Slice takes where it begins and ends as inputs."""


@register_pass
class RollSteps(Pass):
    """Put a Scan in the place of a recurrence whose steps are written out, as tracing exporters write every loop.

    Steps are found from a Concat of one result of each, or from the last state where that alone is read: all alike, each with the next element of
    the same sequences and with what the step before left. The first one may differ, as where its state is left out for being zero. Refused: few steps,
    steps without a state, with ops that no kernel runs step by step, with states whose shape changes, whose results are read elsewhere, and targets
    without such kernels.
    """

    name = "roll_steps"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not ctx.target.custom_ops or ctx.opset < max(SCAN_OPSET, SLICE_INPUTS_OPSET) or ctx.options.unroll_nodes:
            return PassResult(False)
        stacks: dict[ir.Node, Stack] = {}
        for node in ctx.nodes_of([("", "Concat")]):
            found = stack_of(node, ctx) if len(node.inputs) >= LEAST_STEPS else None
            if found is not None:
                stacks[node] = found
        patches = 0
        for stack in stacks.values():
            if stack.node.graph is not None:
                patches += self._roll((stack.row, stack.row[::-1]), stack.node, stacks, ctx)
        for row in find_last_states(LEAST_STEPS, ctx):
            graphs = {None if node is None else node.graph for node in (value.producer() for value in row)}
            anchor = row[-1].producer()
            if anchor is not None and len(graphs) == 1 and None not in graphs:
                patches += self._roll((row,), anchor, {}, ctx)
        return PassResult(patches > 0, patches)

    def _roll(self, orders: Sequence[Row], anchor: ir.Node, stacks: dict[ir.Node, Stack], ctx: Context) -> bool:
        """Roll what makes a row, in the first order of its values that is one of steps."""
        refusal: Refusal | None = None
        for row in orders:
            matches = [_match(row, 0, anchor, stacks, ctx)]
            if not (isinstance(matches[0], Steps) and matches[0].updates_all):
                matches.append(_match(row, 1, anchor, stacks, ctx))
            found = [(not one.updates_all, first, one) for first, one in enumerate(matches) if isinstance(one, Steps)]
            if found:
                _, first, steps = min(found, key=lambda one: one[:2])
                return self._apply(_writer(steps, first, anchor, ctx), ctx)
            if refusal is None and isinstance(matches[-1], Refusal):
                refusal = matches[-1]
        if refusal is not None:
            ctx.log.refused(self.name, anchor, refusal, 1)
        return False

    def _apply(self, writer: _Writer, ctx: Context) -> bool:
        patch = writer.patch(self.name)
        graph = patch.anchor.graph
        assert graph is not None
        if not ctx.editor.apply(patch):
            discard(patch.nodes)
            return False
        ctx.has_subgraphs = True
        ctx.rolled.update(inner for node in patch.nodes for inner in ir.inner_graphs(node))
        steps = writer.steps
        ctx.editor.remove_unused([*(nodes[-1] for nodes in steps.nodes), *(stack.node for stack in steps.stacks)])
        ir.sort_nodes(graph)  # what reads the last state may lie before what stacks the results
        return True


def _match(row: Row, first: int, anchor: ir.Node, stacks: dict[ir.Node, Stack], ctx: Context) -> Steps | Refusal:
    """The steps from the `first` on that make a row, and other stacks that read what they make, or why they are not rolled."""
    rows = [row]
    while True:
        steps = find_steps([one[first:] for one in rows], ctx)
        if isinstance(steps, Refusal):
            return steps
        present = [one for one in stacks.values() if one.node.graph is not None]
        steps.stacks = [one for one in (*present, *(one.turned() for one in present)) if _stacks(one, steps, first)]
        refusal = _refusal(steps, ctx)
        if refusal is not None:
            return refusal
        if anchor in stacks and anchor not in {one.node for one in steps.stacks}:
            return Refusal("the steps are no nodes")
        outside = next((value for value, final in readers_outside(steps) if not final), None)
        if outside is None:
            return Refusal("what all steps read is computed from a step") if needs_itself(steps) else steps
        near = [one.turned() if stacks[anchor].row != row else one for one in _stacks_of(outside, stacks)]
        more = [one.row for one in near if len(one.row) == len(row) and one.row not in rows]
        if not more:
            return Refusal("'{}' is read elsewhere", outside.name, culprit=outside)
        rows = [*more, *rows]


def _stacks_of(value: ir.Value, stacks: dict[ir.Node, Stack]) -> list[Stack]:
    """The stacks that a value is near to, on the way to which it goes through no more nodes than a step has."""
    values, seen, found = [value], set[ir.Node](), []
    for one in values:
        for node, _ in one.uses():
            if node in stacks:
                found.append(stacks[node])
            elif node not in seen and len(seen) < MOST_NODES:
                seen.add(node)
                values += node.outputs
    return found


def _stacks(stack: Stack, steps: Steps, first: int) -> bool:
    """Whether a stack is one of what nodes of the steps make, behind values from elsewhere before the first."""
    if len(stack.row) != steps.count + first:
        return False
    makers = tuple(value.producer() for value in stack.row[first:])
    return makers in steps.nodes


def _refusal(steps: Steps, ctx: Context) -> Refusal | None:
    """Why steps that are alike are not rolled, whatever reads them."""
    if not steps.states:
        return Refusal("the steps carry no state")
    if not steps.elements:
        return Refusal("the steps read no sequence")
    unfit = next((nodes[0] for nodes in steps.nodes if not is_recurrent(nodes[0])), None)
    if unfit is not None:
        return Refusal("{} does not run inside of a kernel", unfit.op_type, culprit=unfit)
    for before, after in steps.states.items():
        shapes = [ctx.shapes.shape(value) for value in (before[0], after[0])]
        if shapes[0] is None or shapes[0] != shapes[1] or ctx.shapes.dtype(after[0]) is None:
            return Refusal("the shape of a state changes or is not known", culprit=after[0])
    for row, element in steps.elements.items():
        shape = ctx.shapes.shape(element.sequence) or ()
        size = shape[element.axis]
        start, end = sequence_part(element, steps.count)
        if start < 0 or not isinstance(size, int) or end > size:
            return Refusal("the sequence has fewer elements than there are steps", culprit=row[0])
    return None


def _writer(steps: Steps, first: int, anchor: ir.Node, ctx: Context) -> _Writer:
    """What writes steps, and the first one as well where constants alone make it another one."""
    if steps.stacks and first == 0:
        return _Writer(steps, 0, None, ctx, anchor)
    results = [(stack.row[0], stack.row[1]) for stack in steps.stacks]
    return _Writer(steps, first, initial_states(steps, results, ctx), ctx, anchor)


class _Writer:
    """Builds the Scan that stands for steps, before the node of a stack.

    What the first step leaves comes from elsewhere where `first` is 1, but for `initial`: states before its step, which then is one more.
    """

    def __init__(
        self,
        steps: Steps,
        first: int,
        initial: dict[Row, ir.Value | np.ndarray] | None,
        ctx: Context,
        anchor: ir.Node,
    ) -> None:
        self.steps, self.ctx = steps, ctx
        self.first, self.initial = first, initial
        self.builder = Builder(ctx, anchor)
        self._inside: dict[tuple[ir.Value, ir.Value], ir.Value] = {}
        self._inputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._results: list[ir.Value] = []

    def patch(self, rule: str) -> Patch:
        """The Scan and what makes of its outputs what was there."""
        b, steps = self.builder, self.steps
        initials, states = self._take_states()
        sequences = self._take_elements()
        for nodes in steps.nodes:
            self._write(nodes)
        for after in states:
            self._give(after)
        for stack in steps.stacks:
            self._give(stack.row[self.first :])
        imports = dict(self.ctx.model.graph.opset_imports)
        body = ir.Graph(self._inputs, self._results, nodes=self._nodes, opset_imports=imports, name="step")
        attributes = {
            "body": ir.Attr("body", ir.AttributeType.GRAPH, body),
            "num_scan_inputs": len(sequences),
            "scan_input_axes": [element.axis for element, _ in sequences],
            "scan_input_directions": [int(element.reverse) for element, _ in sequences],
        }
        if steps.stacks:
            attributes["scan_output_axes"] = [stack.axis for stack in steps.stacks]
            attributes["scan_output_directions"] = [int(stack.reverse) for stack in steps.stacks]
        outputs = b.op("Scan", [*initials, *(value for _, value in sequences)], attributes, outputs=len(self._results))
        read = {value for value, _ in readers_outside(steps)}
        replaced = {after[-1]: final for after, final in zip(states, outputs, strict=False) if after[-1] in read}
        for stack, stacked in zip(steps.stacks, outputs[len(states) :], strict=True):
            whole = stacked if stack.unsqueezed else b.squeeze(stacked, stack.axis + 1)
            replaced[stack.node.outputs[0]] = self._with_first_step(whole, stack)
        return b.patch(rule, replaced)

    def _with_first_step(self, whole: ir.Value, stack: Stack) -> ir.Value:
        if self.first == 0 or self.initial is not None:
            return whole
        values = [value for value in stack.node.inputs if value is not None]
        parts = [whole, values[-1]] if stack.reverse else [values[0], whole]
        return self.builder.Concat(*parts, axis=stack.axis)

    def _take_states(self) -> tuple[list[ir.Value], list[Row]]:
        initials: list[ir.Value] = []
        for before, after in self.steps.states.items():
            initial = before[0] if self.initial is None else self.initial[before]
            initials.append(self.builder.constant(initial) if isinstance(initial, np.ndarray) else initial)
            self._inside[before[0], before[1]] = self._input(after[0])
        return initials, list(self.steps.states.values())

    def _take_elements(self) -> list[tuple[Element, ir.Value]]:
        taken: list[tuple[Element, ir.Value, ir.Value]] = []
        for row, element in self.steps.elements.items():
            inside = next((value for other, _, value in taken if same_sequence(other, element)), None)
            if inside is None:
                inside = self._input(row[0], None if not element.kept else element.axis)
                taken.append((element, self._sequence(element), inside))
            self._inside[row[0], row[1]] = self._unsqueezed(inside, element.axis) if element.kept else inside
        return [(element, sequence) for element, sequence, _ in taken]

    def _sequence(self, element: Element) -> ir.Value:
        start, end = sequence_part(element, self.steps.count)
        if self.initial is not None:
            start, end = (start, end + 1) if element.reverse else (start - 1, end)
        shape = self.ctx.shapes.shape(element.sequence) or ()
        if start == 0 and end == shape[element.axis]:
            return element.sequence
        places = (self.builder.constant(np.array([place], np.int64)) for place in (start, end, element.axis))
        return self.builder.Slice(element.sequence, *places)

    def _unsqueezed(self, value: ir.Value, axis: int) -> ir.Value:
        inner = Builder(self.ctx, self.builder.anchor)
        result = inner.unsqueeze(value, axis)
        self._nodes += inner.nodes
        return result

    def _write(self, nodes: tuple[ir.Node, ...]) -> None:
        rows = list(zip(*(node.inputs for node in nodes), strict=True))
        node = nodes[0]
        copy = ir.Node(
            node.domain,
            node.op_type,
            [self._operand(row) for row in rows],
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            overload=node.overload,
            name=self.ctx.names.node(node.name or node.op_type),
        )
        for new, old, second in zip(copy.outputs, node.outputs, nodes[1].outputs, strict=True):
            new.name = self.ctx.names.value(old.name) if old.name else old.name
            self._inside[old, second] = new
        self._nodes.append(copy)

    def _operand(self, row: tuple[ir.Value | None, ...]) -> ir.Value | None:
        first, second = row[:2]
        if first is None or second is None or all(value is first for value in row):
            return first
        return self._inside[first, second]

    def _give(self, row: Row) -> None:
        """Let a row be an output of the body, which must be of its own."""
        value = self._inside[row[0], row[1]]
        if value in self._results:
            node = ir.Node("", "Identity", [value], name=self.ctx.names.node("result"))
            node.outputs[0].name = self.ctx.names.value("result")
            self._nodes.append(node)
            value = node.outputs[0]
        self._results.append(value)

    def _input(self, like: ir.Value, without: int | None = None) -> ir.Value:
        """An input of the body like a value, without one dim."""
        shapes = self.ctx.shapes
        dtype, shape = shapes.dtype(like), shapes.shape(like)
        assert dtype is not None
        made = ir.Value(name=self.ctx.names.value("step"), type=ir.TensorType(dtype))
        if shape is not None:
            shapes.set(made, dtype, tuple(dim for axis, dim in enumerate(shape) if axis != without))
        self._inputs.append(made)
        return made
