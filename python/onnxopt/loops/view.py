"""One view of the standard's two loops.

A Loop has a trip count, a condition and the number of the iteration; a Scan has sequences, an element of which each iteration gets.
Both carry values from one iteration to the next and stack values of all iterations. A `Loop` says all this of a node in terms of
values inside and outside of its body; passes change the lists and let `rebuild` make the node anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxopt import ir
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import attribute

if TYPE_CHECKING:
    from onnxopt.passes.base import Context

SCAN_OPSET = 9
"""The opset from which Scan has axes and no batch dim."""


@dataclasses.dataclass(slots=True)
class Carry:
    """A value carried from iteration to iteration.

    Attributes:
        initial: outside, before the first iteration.
        inside: the body's input.
        after: the body's output: what the next iteration gets.
        final: the node's output; None where it has none yet.
    """

    initial: ir.Value
    inside: ir.Value
    after: ir.Value
    final: ir.Value | None


@dataclasses.dataclass(slots=True)
class ScanInput:
    """A sequence, an element of which each iteration gets: `sequence` without dim `axis`, from the back when `reverse`."""

    sequence: ir.Value
    element: ir.Value
    axis: int = 0
    reverse: bool = False


@dataclasses.dataclass(slots=True)
class ScanOutput:
    """A value of each iteration, stacked along a new dim `axis`, the last first when `reverse`."""

    element: ir.Value
    stacked: ir.Value | None
    axis: int = 0
    reverse: bool = False


@dataclasses.dataclass(slots=True)
class Loop:
    """A Loop or Scan node: `node` holds `body`. A Scan has no limit, condition and iteration; a Loop has no scan inputs."""

    node: ir.Node
    body: ir.Graph
    carries: list[Carry]
    scan_inputs: list[ScanInput]
    scan_outputs: list[ScanOutput]
    limit: ir.Value | None = None
    condition: ir.Value | None = None
    iteration: ir.Value | None = None
    condition_inside: ir.Value | None = None
    condition_after: ir.Value | None = None

    @property
    def is_scan(self) -> bool:
        return self.iteration is None

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let another value stand for one of the body: for its users, and for what is carried and stacked."""
        for user, index in old.uses():
            user.replace_input_with(index, new)
        for carry in self.carries:
            carry.after = new if carry.after is old else carry.after
        for one in self.scan_outputs:
            one.element = new if one.element is old else one.element
        self.body.outputs[:] = [new if value is old else value for value in self.body.outputs]

    def rebuild(
        self,
        rule: str,
        ctx: Context,
        before: Builder | None = None,
        after: Callable[[Builder], Mapping[ir.Value, ir.Value]] | None = None,
    ) -> ir.Node | None:
        """Put a node with the same body in the node's place, as the lists say now; the caller has taken the patch from the budget.

        Args:
            rule: the name under which the patch counts.
            ctx: the model's context.
            before: nodes that new inputs come from.
            after: builds nodes behind the loop and returns what stands for outputs of the old node that no part of the lists names.

        Returns:
            The new node, None where nothing is left that it could give. Its outputs stand for those that the carries and scan outputs
            name as `final` and `stacked`, which are set anew.
        """
        old = self.node
        graph = old.graph
        assert graph is not None
        if before is not None:
            graph.insert_before(old, before.nodes)
            for one in before.nodes:
                ctx.shapes.infer_node(one)
        ctx.forget_nodes()
        stands_for: dict[ir.Value, ir.Value] = {}
        node = None
        if self.carries or self.scan_outputs:
            node = self._make(ctx)
            graph.insert_before(old, node)
            ctx.shapes.infer_node(node)
            stands_for = self._take_over(node, ctx)
        if after is not None:
            builder = Builder(ctx, old)
            stands_for.update(after(builder))
            graph.insert_before(old, builder.nodes)
            for one in builder.nodes:
                ctx.shapes.infer_node(one)
        for value, new in stands_for.items():
            ctx.editor.replace(value, new)
        ctx.log.applied(rule, old)
        ctx.editor.remove_unused([old])
        if node is not None:
            self.node = node
        return node

    def _make(self, ctx: Context) -> ir.Node:
        self._own_results(ctx)
        inputs, attributes = self._inputs(), self._attributes()
        _set(self.body.inputs, self._body_inputs())
        _set(self.body.outputs, self._body_outputs())
        _detach(self.node, self.body)
        return ir.Node(
            "",
            "Scan" if self.is_scan else "Loop",
            inputs,
            [*attributes, ir.Attr("body", ir.AttributeType.GRAPH, self.body)],
            num_outputs=len(self.carries) + len(self.scan_outputs),
            name=ctx.names.node(self.node.name or self.node.op_type),
        )

    def _own_results(self, ctx: Context) -> None:
        """Let a node of the body make each of its results, once: onnxruntime returns nothing useful for inputs and values from outside."""
        own: set[ir.Value] = set()

        def result(value: ir.Value) -> ir.Value:
            node = value.producer()
            if node is None or node.graph is not self.body or value in own:
                node = ir.Node("", "Identity", [value], name=ctx.names.node("result"))
                node.outputs[0].name = ctx.names.value(value.name or "result")
                self.body.append(node)
                ctx.shapes.infer_node(node)
                value = node.outputs[0]
            own.add(value)
            return value

        if self.is_scan:
            for carry in self.carries:
                carry.after = result(carry.after)
            for one in self.scan_outputs:
                one.element = result(one.element)

    def _take_over(self, node: ir.Node, ctx: Context) -> dict[ir.Value, ir.Value]:
        """Let the parts name the outputs of a new node; what stands for the outputs that they named before."""
        stands_for: dict[ir.Value, ir.Value] = {}
        for carry, output in zip(self.carries, node.outputs, strict=False):
            _name(output, carry.final, carry.after, ctx)
            if carry.final is not None:
                stands_for[carry.final] = output
            carry.final = output
        for part, output in zip(self.scan_outputs, node.outputs[len(self.carries) :], strict=True):
            _name(output, part.stacked, part.element, ctx)
            if part.stacked is not None:
                stands_for[part.stacked] = output
            part.stacked = output
        return stands_for

    def _inputs(self) -> list[ir.Value | None]:
        carried: list[ir.Value | None] = [carry.initial for carry in self.carries]
        if self.is_scan:
            return [*carried, *(one.sequence for one in self.scan_inputs)]
        return [self.limit, self.condition, *carried]

    def _body_inputs(self) -> list[ir.Value]:
        carried = [carry.inside for carry in self.carries]
        if self.is_scan:
            return [*carried, *(one.element for one in self.scan_inputs)]
        assert self.iteration is not None and self.condition_inside is not None
        return [self.iteration, self.condition_inside, *carried]

    def _body_outputs(self) -> list[ir.Value]:
        results = [carry.after for carry in self.carries] + [one.element for one in self.scan_outputs]
        if self.is_scan:
            return results
        assert self.condition_after is not None
        return [self.condition_after, *results]

    def _attributes(self) -> list[ir.Attr]:
        if not self.is_scan:
            return []
        lists = {
            "scan_input_axes": [one.axis for one in self.scan_inputs],
            "scan_input_directions": [int(one.reverse) for one in self.scan_inputs],
            "scan_output_axes": [one.axis for one in self.scan_outputs],
            "scan_output_directions": [int(one.reverse) for one in self.scan_outputs],
        }
        made = [ir.make_attribute(name, numbers) for name, numbers in lists.items() if any(numbers)]
        return [ir.make_attribute("num_scan_inputs", len(self.scan_inputs)), *made]


def _name(output: ir.Value, before: ir.Value | None, inside: ir.Value, ctx: Context) -> None:
    """Name an output after the one that it stands for, or after the value of the body."""
    output.name = ctx.names.value((before and before.name) or inside.name or "loop")
    output.type = None if before is None else before.type


def _set(values: MutableSequence[ir.Value], wanted: Sequence[ir.Value]) -> None:
    """Let a graph's inputs or outputs be these."""
    if list(values) != list(wanted):
        values.clear()
        values.extend(wanted)


def _detach(node: ir.Node, body: ir.Graph) -> None:
    """Take the body out of a node, which is going to be removed."""
    empty = ir.Graph([], [], nodes=[], opset_imports=dict(body.opset_imports), name=body.name)
    node.attributes["body"] = ir.Attr("body", ir.AttributeType.GRAPH, empty)


def loops_of(ctx: Context) -> Iterator[Loop]:
    """All loops of the model that `view` understands, inner ones before those around them."""
    kinds = ("Loop", "Scan") if ctx.opset >= SCAN_OPSET else ("Loop",)
    for node in reversed(ctx.nodes_of([("", kind) for kind in kinds]) if ctx.has_subgraphs else []):
        seen = view(node) if node.graph is not None else None
        if seen is not None:
            yield seen


def state_of(formal: Sequence[ir.Value], number: int, node: ir.Node, ctx: Context) -> tuple[ir.Value, ir.Value]:
    """Constants for the first two inputs of a Loop's body: the number of the iteration, and that the condition holds.

    They are scalars, but for bodies that declare one dim: onnxruntime gives both the rank that the body declares.
    """
    arrays = np.array(number, np.int64), np.array(True)
    shaped = (
        array.reshape(1) if ctx.shapes.rank(value) == 1 else array for value, array in zip(formal, arrays, strict=False)
    )
    first, second = (
        ctx.constant(array, name, node) for array, name in zip(shaped, ("number", "condition"), strict=True)
    )
    return first, second


def view(node: ir.Node) -> Loop | None:
    """A Loop, or a Scan of opset 9 or later, of the default domain; None for other nodes."""
    if node.domain or node.graph is None:
        return None
    if node.op_type == "Loop":
        return _view_loop(node)
    return _view_scan(node) if node.op_type == "Scan" else None


def _view_loop(node: ir.Node) -> Loop | None:
    body = node.attributes["body"].as_graph()
    carried = len(node.inputs) - 2
    if carried < 0 or len(body.inputs) != carried + 2 or len(body.outputs) != len(node.outputs) + 1:
        return None
    carries = _carries(node.inputs[2:], body.inputs[2:], body.outputs[1 : carried + 1], node.outputs[:carried])
    if carries is None:
        return None
    stacked = zip(body.outputs[carried + 1 :], node.outputs[carried:], strict=True)
    return Loop(
        node,
        body,
        carries,
        [],
        [ScanOutput(element, value) for element, value in stacked],
        limit=node.inputs[0],
        condition=node.inputs[1],
        iteration=body.inputs[0],
        condition_inside=body.inputs[1],
        condition_after=body.outputs[0],
    )


def _view_scan(node: ir.Node) -> Loop | None:
    body = node.attributes["body"].as_graph()
    count = attribute(node, "num_scan_inputs")
    if not isinstance(count, int):
        return None
    carried = len(node.inputs) - count
    if carried < 0 or len(body.inputs) != len(node.inputs) or len(body.outputs) != len(node.outputs):
        return None
    carries = _carries(node.inputs[:carried], body.inputs[:carried], body.outputs[:carried], node.outputs[:carried])
    sequences = [value for value in node.inputs[carried:] if value is not None]
    if carries is None or len(sequences) != count:
        return None
    axes, directions = _numbers(node, "scan_input_axes", count), _numbers(node, "scan_input_directions", count)
    inputs = zip(sequences, body.inputs[carried:], axes, directions, strict=True)
    stacked = len(node.outputs) - carried
    axes, directions = _numbers(node, "scan_output_axes", stacked), _numbers(node, "scan_output_directions", stacked)
    outputs = zip(body.outputs[carried:], node.outputs[carried:], axes, directions, strict=True)
    return Loop(
        node,
        body,
        carries,
        [ScanInput(sequence, element, axis, bool(way)) for sequence, element, axis, way in inputs],
        [ScanOutput(element, value, axis, bool(way)) for element, value, axis, way in outputs],
    )


def _carries(
    initial: Sequence[ir.Value | None], inside: Sequence[ir.Value], after: Sequence[ir.Value], final: Sequence[ir.Value]
) -> list[Carry] | None:
    carries = [Carry(one, *rest) for one, *rest in zip(initial, inside, after, final, strict=True) if one is not None]
    return carries if len(carries) == len(initial) else None


def _numbers(node: ir.Node, name: str, count: int) -> list[int]:
    return list(attribute(node, name) or [0] * count)
