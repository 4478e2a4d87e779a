"""Loops that run a known number of times become Scans, whose sequences and results other passes can take out."""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxopt import ir
from onnxopt.ir.dims import Dim
from onnxopt.loops import Carry, Loop, ScanInput, ScanOutput, loops_of, runs_at_least_once, trip_count
from onnxopt.loops.trips import MANY, condition_is_true, counter_of
from onnxopt.loops.view import SCAN_OPSET
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal, attribute

"""The opset from which Unsqueeze and Squeeze take their axes as an input."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Grown:
    """A carried value to which each iteration appends `element`, with a dim of 1 at `axis`; in front of it when `reverse`."""

    carry: Carry
    concat: ir.Node
    element: ir.Value
    axis: int
    reverse: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Listed:
    """A carried sequence to which each iteration appends `element`, and the nodes that concatenate what it holds in the end."""

    carry: Carry
    insert: ir.Node
    element: ir.Value
    users: tuple[ir.Node, ...]


@register_pass
class ConvertLoops(Pass):
    """Turn Loops whose condition is always true into Scans.

    `Gather(x, i)` becomes a sequence of the Scan, a counter a sequence of numbers, and a carried value to which each iteration appends, by
    Concat or as a list that is concatenated in the end, becomes a stacked output. Refused: conditions that may end the loop, limits that may be 0, carried values whose shape changes otherwise, values that
    are no tensors, and limits that are not given.
    """

    name = "convert_loops"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for loop in loops_of(ctx):
            if loop.is_scan:
                continue
            refusal = _refusal(loop, ctx)
            if refusal is not None:
                ctx.log.refused(self.name, loop.node, refusal, 1)
            elif ctx.budget.take():
                _Conversion(loop, ctx).run(self.name)
                patches += 1
        return PassResult(patches > 0, patches)


def _refusal(loop: Loop, ctx: Context) -> Refusal | None:
    if ctx.opset < SCAN_OPSET:
        return Refusal("the model's opset {} has no Scan", ctx.opset)
    if loop.limit is None or (ir.scalar(loop.limit) or 0) >= MANY:
        return Refusal("it has no limit")
    if not condition_is_true(loop):
        return Refusal("its condition may end it")
    if not runs_at_least_once(loop, ctx):
        return Refusal("it may not run at all, which onnxruntime's Scan cannot do")
    if ctx.shapes.shape(loop.limit) not in ((), (1,)):
        return Refusal("the shape {} of its limit is not that of one number", ctx.shapes.shape(loop.limit))
    if not (loop.carries or loop.scan_outputs):
        return Refusal("it has no results")
    for carry in loop.carries:
        appended = _grown(carry, loop, ctx) or _listed(carry, loop, ctx)
        if appended is None and not _keeps_shape(carry, ctx):
            return Refusal(
                "the shape of '{}' may change from one iteration to the next", carry.inside.name, culprit=carry.inside
            )
    if any(ctx.shapes.dtype(one.element) is None for one in loop.scan_outputs):
        return Refusal("a stacked output is no tensor of a known type")
    return None


def _keeps_shape(carry: Carry, ctx: Context) -> bool:
    before, inside, after = (ctx.shapes.shape(value) for value in (carry.initial, carry.inside, carry.after))
    return before is not None and before == inside == after and ctx.shapes.dtype(carry.inside) is not None


def _grown(carry: Carry, loop: Loop, ctx: Context) -> _Grown | None:
    node = carry.after.producer()
    if node is None or node.op_type != "Concat" or node.domain or len(node.inputs) != 2 or node.graph is not loop.body:
        return None
    first, second = node.inputs
    reverse = second is carry.inside
    element = first if reverse else second
    if element is None or (not reverse and first is not carry.inside) or element is carry.inside:
        return None
    if ir.use_count(carry.inside) != 1 or ir.use_count(carry.after) > 0 or _is_result_elsewhere(carry, loop):
        return None
    shape = ctx.shapes.shape(element)
    axis = attribute(node, "axis")
    if shape is None or not -len(shape) <= axis < len(shape) or shape[axis] != 1 or ctx.shapes.dtype(element) is None:
        return None
    return _Grown(carry, node, element, axis % len(shape), reverse)


def _listed(carry: Carry, loop: Loop, ctx: Context) -> _Listed | None:
    node, start = carry.after.producer(), carry.initial.producer()
    if start is None or start.op_type != "SequenceEmpty" or start.domain or carry.final is None:
        return None
    if node is None or node.op_type != "SequenceInsert" or node.domain or node.inputs[0] is not carry.inside:
        return None
    element = node.inputs[1]
    if (len(node.inputs) > 2 and node.inputs[2] is not None) or element is None or node.graph is not loop.body:
        return None
    if ir.use_count(carry.inside) != 1 or ir.use_count(carry.after) > 0 or _is_result_elsewhere(carry, loop):
        return None
    users = tuple(dict.fromkeys(user for user, _ in carry.final.uses()))
    known = ctx.shapes.dtype(element) is not None and ctx.shapes.rank(element) is not None
    fit = all(_can_concatenate(user, element, ctx) and user.graph is loop.node.graph for user in users)
    return _Listed(carry, node, element, users) if known and fit and not carry.final.is_graph_output() else None


def _can_concatenate(user: ir.Node, element: ir.Value, ctx: Context) -> bool:
    if user.op_type != "ConcatFromSequence" or user.domain:
        return False
    return bool(attribute(user, "new_axis", 0)) or ctx.shapes.static_shape(element) is not None


def _is_result_elsewhere(carry: Carry, loop: Loop) -> bool:
    results = [one.after for one in loop.carries if one is not carry] + [one.element for one in loop.scan_outputs]
    return any(value is carry.after or value is carry.inside for value in results)


class _Conversion:
    """Changes one Loop into a Scan."""

    def __init__(self, loop: Loop, ctx: Context) -> None:
        self.loop = loop
        self.ctx = ctx
        self.builder = Builder(ctx, loop.node)
        self.trips: Dim | None = trip_count(loop, ctx)
        self.stacks: list[tuple[_Grown, ScanOutput]] = []
        self.lists: list[tuple[_Listed, ScanOutput]] = []
        self.counts: list[tuple[Carry, int]] = []
        assert loop.limit is not None
        self.limit = loop.limit

    def run(self, rule: str) -> None:
        loop = self.loop
        assert loop.iteration is not None and loop.condition_inside is not None
        if self.ctx.shapes.shape(self.limit) == (1,):
            self.limit = self.builder.Reshape(self.limit, self.builder.constant(np.array([], np.int64), "scalar"))
        for carry in list(loop.carries):
            self._stack(carry)
        for carry in list(loop.carries):
            self._count(carry)
        self._take_elements(loop.iteration)
        if ir.use_count(loop.iteration) or loop.iteration.is_graph_output() or not loop.scan_inputs:
            self._number(loop.iteration, self._range(1))
        self._replace_condition(loop.condition_inside)
        loop.iteration = loop.condition_inside = loop.condition_after = loop.limit = loop.condition = None
        loop.rebuild(rule, self.ctx, before=self.builder, after=self._finals)
        for grown, _ in self.stacks:
            loop.body.remove(grown.concat, safe=True)
        for listed, _ in self.lists:
            loop.body.remove(listed.insert, safe=True)
            self.ctx.editor.remove_unused(listed.users)

    def _stack(self, carry: Carry) -> None:
        listed = _listed(carry, self.loop, self.ctx)
        if listed is not None:
            output = ScanOutput(listed.element, None)
            self.lists.append((listed, output))
            self.loop.carries.remove(carry)
            self.loop.scan_outputs.append(output)
            return
        grown = _grown(carry, self.loop, self.ctx)
        if grown is None:
            return
        inner = Builder(self.ctx, grown.concat)
        element = inner.squeeze(grown.element, grown.axis)
        self.loop.body.insert_before(grown.concat, inner.nodes)
        self.ctx.shapes.infer_node(inner.nodes[-1])
        output = ScanOutput(element, None, grown.axis, grown.reverse)
        self.stacks.append((grown, output))
        self.loop.carries.remove(carry)
        self.loop.scan_outputs.append(output)

    def _count(self, carry: Carry) -> None:
        """A counter is a sequence of numbers; its final value is computed from the limit."""
        counter = counter_of(carry, self.ctx)
        dtype = self.ctx.shapes.dtype(carry.inside)
        if counter is None or self.ctx.shapes.shape(carry.inside) != () or dtype != ir.DataType.INT64:
            return
        step = counter[1]
        sequence = self.builder.Add(self._range(step), carry.initial)
        self.loop.carries.remove(carry)
        self.counts.append((carry, step))
        self._number(carry.inside, sequence)

    def _number(self, inside: ir.Value, sequence: ir.Value) -> None:
        element = ir.Value(name=self.ctx.names.value(inside.name or "number"), type=ir.TensorType(ir.DataType.INT64))
        for user, index in inside.uses():
            user.replace_input_with(index, element)
        self._replace_result(inside, element)
        self.loop.scan_inputs.append(ScanInput(sequence, element))

    def _replace_result(self, old: ir.Value, new: ir.Value) -> None:
        for carry in self.loop.carries:
            carry.after = new if carry.after is old else carry.after
        for one in self.loop.scan_outputs:
            one.element = new if one.element is old else one.element

    def _range(self, step: int) -> ir.Value:
        """0, step, 2 step, ...: as many numbers as the loop has iterations."""
        number = self.builder.constant
        sequence = self.builder.Range(number(np.array(0, np.int64)), self.limit, number(np.array(1, np.int64)))
        return sequence if step == 1 else self.builder.Mul(sequence, number(np.array(step, np.int64)))

    def _take_elements(self, iteration: ir.Value) -> None:
        """Let elements that are gathered by the number of the iteration come as elements of a sequence."""
        taken: dict[tuple[ir.Value, int], ir.Value] = {}
        for node in {user: None for user, _ in iteration.uses()}:
            place = self._place(node, iteration)
            if place is None:
                continue
            sequence, axis = place
            element = taken.get(place)
            if element is None:
                element = ir.Value(
                    name=self.ctx.names.value(node.outputs[0].name or "element"), type=node.outputs[0].type
                )
                taken[place] = element
                self.loop.scan_inputs.append(ScanInput(self._first_axis(sequence, axis), element))
            for user, index in node.outputs[0].uses():
                user.replace_input_with(index, element)
            self._replace_result(node.outputs[0], element)
            self.loop.body.outputs[:] = [element if one is node.outputs[0] else one for one in self.loop.body.outputs]
            self.loop.body.remove(node, safe=True)

    def _place(self, node: ir.Node, iteration: ir.Value) -> tuple[ir.Value, int] | None:
        """The value outside, and its axis, of which a node takes the element of the iteration."""
        if (
            node.op_type != "Gather"
            or node.domain
            or node.graph is not self.loop.body
            or node.inputs[1] is not iteration
        ):
            return None
        data = node.inputs[0]
        shape = None if data is None else self.ctx.shapes.shape(data)
        if data is None or data.graph is self.loop.body or shape is None or self.trips is None:
            return None
        axis = attribute(node, "axis", 0)
        if not -len(shape) <= axis < len(shape):
            return None
        size = shape[axis]
        shorter = isinstance(size, int) and isinstance(self.trips, int) and 0 <= self.trips < size
        return (data, axis % len(shape)) if shorter or self.ctx.shapes.equal(size, self.trips) else None

    def _first_axis(self, data: ir.Value, axis: int) -> ir.Value:
        """The sequence with its axis in front, as long as the loop runs."""
        shape = self.ctx.shapes.shape(data)
        assert shape is not None
        if isinstance(self.trips, int) and shape[axis] != self.trips:
            bounds = [self.builder.constant(np.array([number], np.int64)) for number in (0, self.trips, axis)]
            data = self.builder.Slice(data, *bounds)
        if axis == 0:
            return data
        others = [one for one in range(len(shape)) if one != axis]
        return self.builder.Transpose(data, perm=[axis, *others])

    def _replace_condition(self, condition: ir.Value) -> None:
        true = self.ctx.constant(np.array(True), "condition", self.loop.node)
        for user, index in condition.uses():
            user.replace_input_with(index, true)

    def _finals(self, builder: Builder) -> dict[ir.Value, ir.Value]:
        finals: dict[ir.Value, ir.Value] = {}
        for grown, output in self.stacks:
            assert output.stacked is not None
            final, initial = grown.carry.final, grown.carry.initial
            shape = self.ctx.shapes.shape(initial)
            stacked = output.stacked
            if shape is None or shape[grown.axis] != 0:
                pair = [stacked, initial] if grown.reverse else [initial, stacked]
                stacked = builder.Concat(*pair, axis=grown.axis)
            if final is not None:
                finals[final] = stacked
        for listed, output in self.lists:
            assert output.stacked is not None
            finals.update(
                (user.outputs[0], self._concatenated(user, listed, output.stacked, builder)) for user in listed.users
            )
        for carry, step in self.counts:
            if carry.final is not None:
                amount = builder.Mul(self.limit, builder.constant(np.array(step, np.int64)))
                finals[carry.final] = builder.Add(carry.initial, amount)
        return finals

    def _concatenated(self, user: ir.Node, listed: _Listed, stacked: ir.Value, builder: Builder) -> ir.Value:
        """What a ConcatFromSequence makes of the elements, from the stacked ones."""
        rank = self.ctx.shapes.rank(listed.element)
        assert rank is not None
        stack = bool(attribute(user, "new_axis", 0))
        axis = attribute(user, "axis") % (rank + 1 if stack else rank)
        if axis:
            stacked = builder.Transpose(stacked, perm=[*range(1, axis + 1), 0, *range(axis + 1, rank + 1)])
        if stack:
            return stacked
        shape = self.ctx.shapes.static_shape(listed.element)
        assert shape is not None
        sizes = [*shape[:axis], -1, *shape[axis + 1 :]]
        return builder.Reshape(stacked, builder.constant(np.array(sizes, np.int64), "shape"))
