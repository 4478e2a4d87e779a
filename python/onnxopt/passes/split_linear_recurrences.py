"""Linear recurrences with few elements are computed in chunks of steps side by side (`fast_math`)."""

from __future__ import annotations

import math

import numpy as np

from onnxopt import ir
from onnxopt.loops import Loop, loops_of, trip_count
from onnxopt.loops.copies import copy_nodes
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal

LEAST_CHUNKS, MOST_CHUNKS = 8, 64
"""Numbers of chunks that are tried, the largest first: as many as fill vectors, and few enough for what joins them to be short."""


@register_pass
class SplitLinearRecurrences(Pass):
    """Compute h = a h + b in chunks of steps side by side, each from zero, and add what the chunks before hand on.

    Within a chunk the recurrence runs from 0 and the product of all `a` is kept; a recurrence over the chunks then gives each one its initial state, times whose
    product what it computed is corrected (G. Blelloch, "Prefix Sums and Their Applications", 1990). That changes the order of sums, so it is done with `fast_math` alone.
    Refused: steps that are not linear in the one carried value, outputs other than it, many elements, few steps, and numbers of steps
    that are unknown or no multiple of a number of chunks.
    """

    name = "split_linear_recurrences"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        if not ctx.options.fast_math or not ctx.target.custom_ops:
            return PassResult(False)
        for loop in loops_of(ctx):
            if not loop.is_scan:
                continue
            refusal = _refusal(loop, ctx)
            if refusal is not None:
                ctx.log.refused(self.name, loop.node, refusal, 1)
                continue
            writer = _Writer(loop, ctx)
            replacements = writer.replacements()
            if isinstance(replacements, Refusal):
                ctx.log.refused(self.name, loop.node, replacements, 2)
            elif ctx.editor.apply(writer.builder.patch(self.name, replacements)):
                ctx.editor.remove_unused([loop.node])
                patches += 1
        return PassResult(patches > 0, patches)


def _refusal(loop: Loop, ctx: Context) -> Refusal | None:
    steps = trip_count(loop, ctx)
    shape = ctx.shapes.static_shape(loop.carries[0].inside) if len(loop.carries) == 1 else None
    if shape is None or ctx.shapes.dtype(loop.carries[0].inside) is not ir.DataType.FLOAT:
        return Refusal("it does not carry one value, float32 of a known shape")
    if math.prod(shape) > ctx.target.costs.chunked_elements:
        return Refusal("it carries {} elements, enough for the threads", math.prod(shape))
    if not isinstance(steps, int) or steps < ctx.target.costs.chunked_steps:
        return Refusal("it has {} steps", steps)
    if _chunks(steps) is None:
        return Refusal("{} steps are no multiple of {} to {} chunks", steps, LEAST_CHUNKS, MOST_CHUNKS)
    if len({one.reverse for one in [*loop.scan_inputs, *loop.scan_outputs]}) != 1:  # type: ignore[attr-defined]
        return Refusal("its sequences and outputs run in different directions")
    if any(one.axis for one in loop.scan_inputs) or any(one.axis for one in loop.scan_outputs):
        return Refusal("its sequences and outputs are not along axis 0")
    after = ir.source_of(loop.carries[0].after)
    if any(ir.source_of(one.element) is not after for one in loop.scan_outputs):
        return Refusal("it stacks other values than the carried one")
    known = [ctx.shapes.rank(one.element) for one in loop.scan_inputs]
    if any(rank is None or rank > len(shape) for rank in known):
        return Refusal("its elements have more dims than what it carries")
    return None


def _chunks(steps: int) -> int | None:
    return next((count for count in range(MOST_CHUNKS, LEAST_CHUNKS - 1, -1) if steps % count == 0), None)


class _Writer:
    """Builds the recurrence within chunks, the one over chunks, and what joins them."""

    def __init__(self, loop: Loop, ctx: Context) -> None:
        self.loop, self.ctx = loop, ctx
        self.builder = Builder(ctx, loop.node)
        steps, shape = trip_count(loop, ctx), ctx.shapes.static_shape(loop.carries[0].inside)
        assert isinstance(steps, int) and shape is not None
        chunks = _chunks(steps)
        assert chunks is not None
        self.steps, self.shape, self.chunks = steps, shape, chunks
        self.reverse = int(loop.scan_inputs[0].reverse)

    def replacements(self) -> dict[ir.Value, ir.Value] | Refusal:
        b, carry = self.builder, self.loop.carries[0]
        body = self._chunk_body()
        if isinstance(body, Refusal):
            return body
        carried = len(body.outputs) // 2  # the state, and the product of the slopes where they are not 1
        state = (self.chunks, *self.shape)
        starts = [b.constant(np.full(state, number, np.float32)) for number in (0, 1)[:carried]]
        made = self._scan(body, [*starts, *self._sequences()], carried)
        ends, stacked = made[:carried], made[carried:]
        final, initials = self._scan(self._joining_body(carried), [carry.initial, *ends], 1)
        states = _joined(b, initials, *stacked)
        replacements = {carry.final: final}
        for one in self.loop.scan_outputs:
            perm = [1, 0, *range(2, len(state) + 1)]
            flat = b.constant(np.array([self.steps, *self.shape], np.int64), "shape")
            replacements[one.stacked] = b.Reshape(b.Transpose(states, perm=perm), flat)
        used = (old for old in replacements if old is not None and (ir.use_count(old) or old.is_graph_output()))
        return {old: replacements[old] for old in used}

    def _sequences(self) -> list[ir.Value]:
        """Each sequence as [steps of a chunk, chunks, ...], its elements with as many dims as the carried value."""
        made = []
        for one in self.loop.scan_inputs:
            shape = self.ctx.shapes.static_shape(one.element) or ()
            whole = [1] * (len(self.shape) - len(shape)) + list(shape)
            target = np.array([self.chunks, self.steps // self.chunks, *whole], np.int64)
            apart = self.builder.Reshape(one.sequence, self.builder.constant(target, "shape"))
            made.append(self.builder.Transpose(apart, perm=[1, 0, *range(2, len(target))]))
        return made

    def _chunk_body(self) -> ir.Graph | Refusal:
        """The step beside the product of the slopes."""
        inner = Builder(self.ctx, self.loop.node)
        state, product = self._input((self.chunks, *self.shape)), self._input((self.chunks, *self.shape))
        stands_for = {self.loop.carries[0].inside: state}
        for one in self.loop.scan_inputs:
            shape = self.ctx.shapes.static_shape(one.element) or ()
            stands_for[one.element] = self._input(
                (self.chunks, *[1] * (len(self.shape) - len(shape)), *shape), self.ctx.shapes.dtype(one.element)
            )
        inputs = [state, product, *list(stands_for.values())[1:]]
        inner.nodes.extend(copy_nodes(self.loop.body, stands_for, self.ctx))
        slopes = _Slopes(inner, state)
        refusal = slopes.run()
        after = stands_for[ir.source_of(self.loop.carries[0].after)]
        slope = slopes.of.get(after)
        if refusal is not None:
            return refusal
        if slope is None:
            return Refusal("its step does not depend on what it carries")
        results = [after]
        if slope is slopes.one:
            inputs.remove(product)
        else:
            results.append(inner.Mul(slope, product))
        results += [inner.Identity(value) for value in results]
        return self._graph(inputs, results, inner)

    def _joining_body(self, count: int) -> ir.Graph:
        """What a chunk hands on; it stacks what it is given."""
        inner = Builder(self.ctx, self.loop.node)
        state, *ends = (self._input(self.shape) for _ in range(count + 1))
        return self._graph([state, *ends], [_joined(inner, state, *ends), inner.Identity(state)], inner)

    def _scan(self, body: ir.Graph, inputs: list[ir.Value], carried: int) -> tuple[ir.Value, ...]:
        sequences, stacked = len(inputs) - carried, len(body.outputs) - carried
        attributes = {
            "body": ir.Attr("body", ir.AttributeType.GRAPH, body),
            "num_scan_inputs": sequences,
            "scan_input_directions": [self.reverse] * sequences if self.reverse else None,
            "scan_output_directions": [self.reverse] * stacked if self.reverse else None,
        }
        return self.builder.op("Scan", inputs, attributes, outputs=len(body.outputs))

    def _input(self, shape: tuple[int, ...], dtype: ir.DataType | None = ir.DataType.FLOAT) -> ir.Value:
        name = self.ctx.names.value("step")
        return ir.Value(name=name, type=ir.TensorType(dtype or ir.DataType.FLOAT), shape=ir.Shape(shape))

    def _graph(self, inputs: list[ir.Value], results: list[ir.Value], inner: Builder) -> ir.Graph:
        imports = dict(self.ctx.model.graph.opset_imports)
        return ir.Graph(inputs, results, nodes=inner.nodes, opset_imports=imports, name="step")


def _joined(b: Builder, initial: ir.Value, end: ir.Value, product: ir.Value | None = None) -> ir.Value:
    """What a chunk computes from an initial state. Nothing is added for 0, times which an overflown product would be no number."""
    if product is None:
        return b.Add(end, initial)
    zero = b.constant(np.array(0, np.float32), "zero")
    return b.Where(b.Equal(initial, zero), end, b.Add(end, b.Mul(product, initial)))


class _Slopes:
    """By how much each value of a step grows with the carried one, where that is the same for all its values."""

    def __init__(self, inner: Builder, state: ir.Value) -> None:
        self.inner = inner
        self.one = inner.constant(np.array(1, np.float32), "one")
        self.of: dict[ir.Value, ir.Value] = {state: self.one}

    def run(self) -> Refusal | None:
        for node in list(self.inner.nodes):
            slopes = [None if value is None else self.of.get(value) for value in ir.inputs_with_captures(node)]
            if not any(slope is not None for slope in slopes):
                continue
            rule = None if node.domain else getattr(self, f"_{node.op_type.lower()}", None)
            slope = None if rule is None else rule(node, *slopes)
            if slope is None:
                return Refusal("'{}' is not linear in what it carries", node.op_type, culprit=node)
            self.of[node.outputs[0]] = slope
        return None

    def _identity(self, _: ir.Node, slope: ir.Value) -> ir.Value:
        return slope

    def _neg(self, _: ir.Node, slope: ir.Value) -> ir.Value:
        return self.inner.Neg(slope)

    def _add(self, _: ir.Node, left: ir.Value | None, right: ir.Value | None) -> ir.Value | None:
        return (left or right) if left is None or right is None else self.inner.Add(left, right)

    def _sub(self, _: ir.Node, left: ir.Value | None, right: ir.Value | None) -> ir.Value | None:
        if right is None:
            return left
        return self.inner.Neg(right) if left is None else self.inner.Sub(left, right)

    def _mul(self, node: ir.Node, left: ir.Value | None, right: ir.Value | None) -> ir.Value | None:
        if left is not None and right is not None:
            return None
        slope, factor = (left, node.inputs[1]) if right is None else (right, node.inputs[0])
        return factor if slope is self.one else self.inner.Mul(slope, factor)

    def _div(self, node: ir.Node, left: ir.Value | None, right: ir.Value | None) -> ir.Value | None:
        return None if right is not None else self.inner.Div(left, node.inputs[1])
