"""Cells that compute all gates by one wide product and split it: each gate becomes a product of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.loops import Loop, ScanInput, loops_of
from onnxopt.ops import fused_elementwise as elementwise
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import discard
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal, attribute

SIZES_INPUT_OPSET = 13
"""The opset from which Split takes the sizes as an input."""

PRODUCTS = ("MatMul", "Gemm")


@register_pass
class SplitGates(Pass):
    """Move the Split of gates in the step of a Scan up through element-wise ops into the matrices and sequences that they are made of.

    What is left are products and element-wise ops of one width, which FusedRecurrence can compute. A sequence that is split was made
    by a product in most cases; that one is split as well, rather than its result. Refused: steps with other ops, Splits along other axes
    than the last, and gates of carried values or of products that others read.
    """

    name = "split_gates"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for loop in loops_of(ctx):
            splits = [node for node in loop.body if _is_split(node)] if loop.is_scan else []
            if not splits:
                continue
            refusal = _refusal(loop, ctx) or _Division(loop, ctx).run(splits, self.name)
            if refusal is None:
                patches += 1
            elif isinstance(refusal, Refusal):
                ctx.log.refused(self.name, loop.node, refusal, 1)
        return PassResult(patches > 0, patches)


def _is_split(node: ir.Node) -> bool:
    return node.op_type == "Split" and not node.domain


def _refusal(loop: Loop, ctx: Context) -> Refusal | None:
    for node in loop.body:
        if not node.domain and node.op_type in ("Identity", "Split", *PRODUCTS):
            continue
        refusal = elementwise.refuse_node(node, ctx.shapes)
        if refusal is not None:
            return refusal
    if any(one.axis for one in loop.scan_inputs):
        return Refusal("its sequences are not along axis 0")
    return None


class _Division:
    """Builds the parts of what the Splits of one loop take apart; nothing is changed before all are found."""

    def __init__(self, loop: Loop, ctx: Context) -> None:
        self.loop, self.ctx = loop, ctx
        self.around = Builder(ctx, loop.node)
        self.elements: list[ScanInput] = []
        self._sequences = {one.element: one for one in loop.scan_inputs}
        self._known: dict[tuple[ir.Value, tuple[int, ...]], list[ir.Value]] = {}

    def run(self, splits: Sequence[ir.Node], rule: str) -> Refusal | bool | None:
        """None when the loop was changed, else why it was not, or False where no patch is left."""
        made: list[tuple[ir.Node, Builder, list[ir.Value]]] = []
        refusal: Refusal | bool | None = None
        for split in splits:
            builder = Builder(self.ctx, split)
            parts = self._gates(split, builder)
            if isinstance(parts, Refusal):
                refusal = parts
                break
            made.append((split, builder, parts))
        if refusal is None and not self.ctx.budget.take():
            refusal = False
        if refusal is not None:
            for _, builder, _ in made:
                discard(builder.nodes)
            discard(self.around.nodes)
            return refusal
        self._change(made, rule)
        return None

    def _change(self, made: list[tuple[ir.Node, Builder, list[ir.Value]]], rule: str) -> None:
        loop, ctx = self.loop, self.ctx
        for split, builder, parts in made:
            loop.body.insert_before(split, builder.nodes)
            for node in builder.nodes:
                ctx.shapes.infer_node(node)
            for old, new in zip(split.outputs, parts, strict=True):
                loop.replace(old, new)
        ctx.forget_nodes()
        ctx.editor.remove_unused([split for split, _, _ in made])
        results = [carry.after for carry in loop.carries] + [one.element for one in loop.scan_outputs]
        kept = [
            one
            for one in loop.scan_inputs
            if ir.use_count(one.element) or any(one.element is value for value in results)
        ]
        loop.scan_inputs = kept + self.elements or loop.scan_inputs[:1]
        loop.rebuild(rule, ctx, before=self.around)

    def _gates(self, split: ir.Node, builder: Builder) -> list[ir.Value] | Refusal:
        value, shapes = split.inputs[0], self.ctx.shapes
        rank = None if value is None else shapes.rank(value)
        sizes = [shapes.shape(one) for one in split.outputs]
        if value is None or rank is None or attribute(split, "axis", 0) % rank != rank - 1:
            return Refusal("it splits another axis than the last", culprit=split)
        widths = tuple(shape[-1] for shape in sizes if shape and isinstance(shape[-1], int))
        if len(widths) != len(sizes):
            return Refusal("the sizes of its gates are unknown", culprit=split)
        parts = self._parts(value, widths, builder)
        return Refusal("'{}' cannot be split into gates", value.name, culprit=value) if parts is None else parts

    def _parts(self, value: ir.Value, widths: tuple[int, ...], builder: Builder) -> list[ir.Value] | None:
        """The parts of a value along its last axis; the value itself for each where all parts share its only element."""
        shape = self.ctx.shapes.shape(value)
        if shape is None or (shape and shape[-1] not in (1, sum(widths))):
            return None
        if not shape or (shape[-1] == 1 != sum(widths)):
            return [value] * len(widths)
        found = self._known.get((value, widths))
        if found is None:
            found = self._made(value, widths, builder)
            if found is not None:
                self._known[value, widths] = found
        return found

    def _made(self, value: ir.Value, widths: tuple[int, ...], builder: Builder) -> list[ir.Value] | None:
        if ir.constant(value) is not None:
            return self._constants(value, widths, -1)
        if value in self._sequences:
            return self._elements_of(self._sequences[value], widths)
        inside = value.graph is self.loop.body
        builder = builder if inside else self.around
        node = value.producer()
        if node is not None and ir.use_count(value) == 1 and not value.is_graph_output():
            parts = self._of_node(node, widths, builder)
            if parts is not None:
                return parts
        if inside or value.graph is not self.loop.node.graph:
            return None
        return self._split(value, widths)

    def _of_node(self, node: ir.Node, widths: tuple[int, ...], builder: Builder) -> list[ir.Value] | None:
        if node.graph is not self.loop.body and node.graph is not self.loop.node.graph:
            return None
        if node.op_type == "Identity" and not node.domain and node.inputs[0] is not None:
            return self._parts(node.inputs[0], widths, builder)
        if node.op_type in PRODUCTS and not node.domain:
            return self._products(node, widths, builder)
        if elementwise.refuse_node(node, self.ctx.shapes) is not None:
            return None
        inputs: list[Sequence[ir.Value | None]] = []
        for value in node.inputs:
            parts = [None] * len(widths) if value is None else self._parts(value, widths, builder)
            if parts is None:
                return None
            inputs.append(parts)
        return [builder.copy_of(node, arguments)[0] for arguments in zip(*inputs, strict=True)]

    def _products(self, node: ir.Node, widths: tuple[int, ...], builder: Builder) -> list[ir.Value] | None:
        x, matrix, *rest = node.inputs
        if x is None or matrix is None or ir.constant(matrix) is None or self.ctx.shapes.rank(matrix) != 2:
            return None
        matrices = self._constants(matrix, widths, 0 if attribute(node, "transB", 0) else 1)
        biases = [self._parts(one, widths, builder) for one in rest if one is not None]
        if any(one is None for one in biases):
            return None
        columns = zip(matrices, *(one for one in biases if one), strict=True)
        return [builder.copy_of(node, [x, *one])[0] for one in columns]

    def _constants(self, value: ir.Value, widths: tuple[int, ...], axis: int) -> list[ir.Value]:
        tensor = ir.constant(value)
        assert tensor is not None
        parts = np.split(tensor.numpy(), np.cumsum(widths)[:-1], axis=axis)
        return [self.around.constant(np.ascontiguousarray(part), value.name or "gate") for part in parts]

    def _elements_of(self, given: ScanInput, widths: tuple[int, ...]) -> list[ir.Value] | None:
        sequences = self._parts(given.sequence, widths, self.around)
        if sequences is None:
            return None
        made: list[ir.Value] = []
        for sequence in sequences:
            element = ir.Value(name=self.ctx.names.value(given.element.name or "gate"), type=given.element.type)
            shape = self.ctx.shapes.shape(given.element)
            assert shape is not None
            self.ctx.shapes.set(element, self.ctx.shapes.dtype(given.element), (*shape[:-1], widths[len(made)]))
            self.elements.append(ScanInput(sequence, element, 0, given.reverse))
            made.append(element)
        return made

    def _split(self, value: ir.Value, widths: tuple[int, ...]) -> list[ir.Value]:
        if self.ctx.opset < SIZES_INPUT_OPSET:
            return list(self.around.op("Split", [value], {"axis": -1, "split": list(widths)}, outputs=len(widths)))
        sizes = self.around.constant(np.array(widths, np.int64), "split")
        return list(self.around.op("Split", [value, sizes], {"axis": -1}, outputs=len(widths)))
