"""Loops of many or unknown iterations do several in one, when asked to."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.loops import Loop, loops_of, trip_count
from onnxopt.loops.copies import copy_nodes
from onnxopt.loops.trips import condition_is_true
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.passes.unroll_loops import move_initializers
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal

ALLOWZERO_OPSET = 14
"""The opset from which Reshape can be told to take a 0 as a size."""

UNROLLED = "onnxopt.unrolled"
"""Marks bodies of loops that were unrolled, so that they are not again."""


@register_pass
class UnrollLoopsByFactor(Pass):
    """Let each iteration of a Loop do the work of `unroll_factor` ones, with a second Loop for the remainder.

    Only with the option `unroll_factor`. Refused: conditions that may end the loop, loops without a limit, stacked outputs whose shape is
    not known, and Scans.
    """

    name = "unroll_loops_by_factor"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        factor = ctx.options.unroll_factor
        if factor is None:
            return PassResult(False)
        patches = 0
        for loop in loops_of(ctx):
            refusal = _refusal(loop, factor, ctx)
            if refusal is not None:
                ctx.log.refused(self.name, loop.node, refusal, 1)
            elif ctx.budget.take():
                _Unrolling(loop, factor, ctx).run(self.name)
                patches += 1
        return PassResult(patches > 0, patches)


def _refusal(loop: Loop, factor: int, ctx: Context) -> Refusal | None:
    if loop.is_scan:
        return Refusal("a Scan takes one element at a time")
    if UNROLLED in loop.body.meta:
        return Refusal("it was unrolled already")
    if not condition_is_true(loop):
        return Refusal("its condition may end it")
    limit, iteration = loop.limit, loop.iteration
    if limit is None or iteration is None or ctx.shapes.shape(limit) not in ((), (1,)):
        return Refusal("its limit is not one number")
    if ctx.shapes.rank(iteration) != 0 or iteration.is_graph_output():
        return Refusal("the number of the iteration is a result, or not a scalar")
    trips = trip_count(loop, ctx)
    if isinstance(trips, int) and trips < 2 * factor:
        return Refusal("its {} iterations are too few for the factor {}", trips, factor)
    if any(ctx.shapes.static_shape(one.element) is None for one in loop.scan_outputs):
        return Refusal("the shape of a stacked output is not known")
    if loop.scan_outputs and ctx.opset < ALLOWZERO_OPSET:
        return Refusal("the opset {} cannot make stacked outputs of no element one", ctx.opset)
    return None


class _Unrolling:
    """Puts a Loop of `factor` iterations in one before a Loop, which is left with the rest of them."""

    def __init__(self, loop: Loop, factor: int, ctx: Context) -> None:
        self.loop = loop
        self.factor = factor
        self.ctx = ctx
        self.builder = Builder(ctx, loop.node)

    def run(self, rule: str) -> None:
        loop, builder = self.loop, self.builder
        move_initializers(loop.body, self.ctx)
        assert loop.limit is not None
        limit = loop.limit
        if self.ctx.shapes.shape(limit) == (1,):
            limit = builder.Reshape(limit, builder.constant(np.array([], np.int64), "scalar"))
        if loop.scan_outputs:  # their number is a size
            limit = builder.Max(limit, builder.constant(np.array(0, np.int64), "zero"))
        factor = builder.constant(np.array(self.factor, np.int64), "factor")
        rounds = builder.Div(limit, factor)
        done = builder.Mul(rounds, factor)
        loop.limit = builder.Sub(limit, done)
        finals = self._first_loop(rounds)
        stacks = [self._flat(final, index, done) for index, final in enumerate(finals[len(loop.carries) :])]
        for carry, value in zip(loop.carries, finals, strict=False):
            carry.initial = value
        self._number_on(done)
        results = [one.stacked for one in loop.scan_outputs]
        for one in loop.scan_outputs:
            one.stacked = None

        def joined(after: Builder) -> dict[ir.Value, ir.Value]:
            pairs = zip(results, stacks, loop.scan_outputs, strict=True)
            return {
                old: after.Concat(first, one.stacked, axis=0)
                for old, first, one in pairs
                if old is not None and one.stacked is not None
            }

        loop.body.meta[UNROLLED] = True
        loop.rebuild(rule, self.ctx, before=builder, after=joined)

    def _first_loop(self, rounds: ir.Value) -> tuple[ir.Value, ...]:
        """Build the loop over all whole groups of iterations; its outputs."""
        loop = self.loop
        true = self.builder.constant(np.array(True), "condition")
        return self.builder.op(
            "Loop",
            [rounds, true, *(carry.initial for carry in loop.carries)],
            {"body": ir.Attr("body", ir.AttributeType.GRAPH, self._body())},
            outputs=len(loop.carries) + len(loop.scan_outputs),
        )

    def _body(self) -> ir.Graph:
        loop, ctx = self.loop, self.ctx
        assert loop.iteration is not None and loop.condition_inside is not None
        inside = Builder(ctx, loop.node)
        inputs = [
            self._input(one) for one in (loop.iteration, loop.condition_inside, *(c.inside for c in loop.carries))
        ]
        number, condition, *carried = inputs
        base = inside.Mul(number, inside.constant(np.array(self.factor, np.int64), "factor"))
        stacks: list[list[ir.Value]] = [[] for _ in loop.scan_outputs]
        for step in range(self.factor):
            stands_for = {carry.inside: value for carry, value in zip(loop.carries, carried, strict=True)}
            stands_for[loop.condition_inside] = condition
            stands_for[loop.iteration] = inside.Add(base, inside.constant(np.array(step, np.int64), "step"))
            inside.nodes.extend(copy_nodes(loop.body, stands_for, ctx))
            carried = [stands_for.get(carry.after, carry.after) for carry in loop.carries]
            for stack, one in zip(stacks, loop.scan_outputs, strict=True):
                stack.append(stands_for.get(one.element, one.element))
        results = [inside.Identity(value) for value in (condition, *carried)]
        for stack in stacks:
            results.append(inside.Concat(*(inside.unsqueeze(one, 0) for one in stack), axis=0))
        imports = dict(loop.body.opset_imports)
        body = ir.Graph(inputs, results, nodes=inside.nodes, opset_imports=imports, name=f"{loop.body.name}_unrolled")
        body.meta[UNROLLED] = True
        return body

    def _input(self, like: ir.Value) -> ir.Value:
        return ir.Value(name=self.ctx.names.value(like.name or "input"), type=like.type, shape=like.shape)

    def _flat(self, stacked: ir.Value, index: int, done: ir.Value) -> ir.Value:
        """The stacked groups as stacked elements."""
        builder, element = self.builder, self.loop.scan_outputs[index].element
        shape = self.ctx.shapes.static_shape(element)
        assert shape is not None
        length = builder.Reshape(done, builder.constant(np.array([1], np.int64), "one"))
        whole = builder.Concat(length, builder.constant(np.array(shape, np.int64), "dims"), axis=0) if shape else length
        return builder.Reshape(stacked, whole, allowzero=1)

    def _number_on(self, done: ir.Value) -> None:
        """Let the loop for the rest count from where the first one ends."""
        loop = self.loop
        iteration = loop.iteration
        assert iteration is not None
        uses = list(iteration.uses())
        if not uses:
            return
        inside = Builder(self.ctx, loop.node)
        number = inside.Add(iteration, done)
        for user, index in uses:
            user.replace_input_with(index, number)
        first = next(iter(loop.body))
        loop.body.insert_before(first, inside.nodes)
        self.ctx.shapes.infer_node(inside.nodes[0])
