"""Loops that run a known number of times become Scans, whose sequences and results other passes can take out."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.ir.dims import Dim
from onnxopt.loops import Carry, Loop, ScanInput, ScanOutput, loops_of, runs_at_least_once, trip_count
from onnxopt.loops.appended import Grown, Listed, appended, finals, finish, stack
from onnxopt.loops.trips import MANY, condition_is_true, counter_of
from onnxopt.loops.view import SCAN_OPSET
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal, attribute

INTEGER_MAX_OPSET = 12
"""Since then Max takes integers."""


@register_pass
class ConvertLoops(Pass):
    """Turn Loops whose condition is always true into Scans.

    `Gather(x, i)` becomes a sequence of the Scan, a counter a sequence of numbers, and a carried value to which each iteration appends, by
    Concat or as a list that is concatenated in the end, becomes a stacked output. Refused: conditions that may end the loop, limits that may be 0 where no kernels run whole loops, carried values whose shape changes otherwise, values that
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
    if not (runs_at_least_once(loop, ctx) or _can_be_restored(loop, ctx)):
        return Refusal("it may not run at all, which onnxruntime's Scan cannot do")
    if ctx.shapes.shape(loop.limit) not in ((), (1,)):
        return Refusal("the shape {} of its limit is not that of one number", ctx.shapes.shape(loop.limit))
    if any(ctx.shapes.rank(value) == 1 for value in (loop.iteration, loop.condition_inside) if value is not None):
        return Refusal("the number of its iteration or its condition is no scalar")
    if not (loop.carries or loop.scan_outputs):
        return Refusal("it has no results")
    for carry in loop.carries:
        if appended(carry, loop, ctx) is None and not _keeps_shape(carry, ctx):
            return Refusal(
                "the shape of '{}' may change from one iteration to the next", carry.inside.name, culprit=carry.inside
            )
    if any(ctx.shapes.dtype(one.element) is None for one in loop.scan_outputs):
        return Refusal("a stacked output is no tensor of a known type")
    return None


def _can_be_restored(loop: Loop, ctx: Context) -> bool:
    """Whether a Scan that may not run can become a Loop again (`restore_loops`), where no kernel takes it."""
    grown = [found for carry in loop.carries if (found := appended(carry, loop, ctx))]
    known = all(ctx.shapes.static_shape(one.element) is not None for one in grown)
    return known and ctx.target.custom_ops and (ctx.opset >= INTEGER_MAX_OPSET or _is_positive(loop.limit, ctx))


def _is_positive(limit: ir.Value | None, ctx: Context) -> bool:
    elements = ctx.shapes.elements(limit)
    return elements is not None and all(ctx.shapes.bounds.prove_at_least(one, 0) is True for one in elements)


def _keeps_shape(carry: Carry, ctx: Context) -> bool:
    before, inside, after = (ctx.shapes.shape(value) for value in (carry.initial, carry.inside, carry.after))
    return before is not None and before == inside == after and ctx.shapes.dtype(carry.inside) is not None


class _Conversion:
    """Changes one Loop into a Scan."""

    def __init__(self, loop: Loop, ctx: Context) -> None:
        self.loop = loop
        self.ctx = ctx
        self.builder = Builder(ctx, loop.node)
        self.trips: Dim | None = trip_count(loop, ctx)
        self.stacks: list[tuple[Grown | Listed, ScanOutput]] = []
        self.counts: list[tuple[Carry, int]] = []
        assert loop.limit is not None
        self.limit = loop.limit

    def run(self, rule: str) -> None:
        loop = self.loop
        assert loop.iteration is not None and loop.condition_inside is not None
        if self.ctx.shapes.shape(self.limit) == (1,):
            self.limit = self.builder.Reshape(self.limit, self.builder.constant(np.array([], np.int64), "scalar"))
        if not _is_positive(self.limit, self.ctx):
            self.limit = self.builder.Max(self.limit, self.builder.constant(np.array(0, np.int64)))
        for carry in list(loop.carries):
            found = appended(carry, loop, self.ctx)
            if found is not None:
                self.stacks.append((found, stack(found, loop, self.ctx, as_scan=True)))
        for carry in list(loop.carries):
            self._count(carry)
        self._take_elements(loop.iteration)
        if ir.use_count(loop.iteration) or loop.iteration.is_graph_output() or not loop.scan_inputs:
            self._number(loop.iteration, self._range(1))
        self._replace_condition(loop.condition_inside)
        loop.iteration = loop.condition_inside = loop.condition_after = loop.limit = loop.condition = None
        loop.rebuild(rule, self.ctx, before=self.builder, after=self._finals)
        for found, output in self.stacks:
            finish(found, output, loop, self.ctx)

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
        self.loop.replace(inside, element)
        self.loop.scan_inputs.append(ScanInput(sequence, element))

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
            self.loop.replace(node.outputs[0], element)
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
        result: dict[ir.Value, ir.Value] = {}
        for found, output in self.stacks:
            result.update(finals(found, output, builder))
        for carry, step in self.counts:
            if carry.final is not None:
                amount = builder.Mul(self.limit, builder.constant(np.array(step, np.int64)))
                result[carry.final] = builder.Add(carry.initial, amount)
        return result
