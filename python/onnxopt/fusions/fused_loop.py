"""Which Loops and Scans become FusedLoop, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.fusions.fused_recurrence import body_text
from onnxopt.fusions.loop_statements import (
    MOST_WORK,
    Line,
    Statements,
    Word,
    bounds_of,
    multiplications,
    statements_of,
)
from onnxopt.loops import Carry, Loop, arranged, length
from onnxopt.loops.trips import condition_is_true
from onnxopt.ops import fused_elementwise as elementwise
from onnxopt.ops import fused_loop as op
from onnxopt.ops.base import overload_of, prepare_model
from onnxopt.ops.fused_recurrence import Product
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal, attribute

RULE = "fuse_loop"

NO_LIMIT = 2**63 - 1


@dataclasses.dataclass(slots=True)
class _Map:
    """Element-wise nodes whose results have one shape, and those of the results that others need."""

    early: bool
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    outputs: list[ir.Value] = dataclasses.field(default_factory=list)


_Part = _Map | Product | Statements


class _Analysis:
    """Sorts the nodes of a loop's body into statements; `refuse` says why that cannot be done."""

    def __init__(self, loop: Loop, ctx: Context) -> None:
        self.loop, self.ctx = loop, ctx
        self.parts: list[_Part] = []
        self.aliases: dict[ir.Value, ir.Value] = {}
        self._map_of: dict[ir.Value, _Map] = {}
        self._early: set[ir.Node] = set()
        self.growing: list[int] = []
        self.keep: ir.Value | None = None

    def refuse(self) -> Refusal | None:
        refusal = self._refuse_form()
        if refusal is None:
            refusal = self._refuse_bounds()
        for node in self.loop.body if refusal is None else ():
            refusal = self._place(node)
            if refusal is not None:
                return refusal
        if refusal is None:
            refusal = self._refuse_results()
        return refusal

    def source(self, value: ir.Value) -> ir.Value:
        return self.aliases.get(value, value)

    def results(self) -> list[ir.Value]:
        """What the next step gets, what is stacked, and the condition."""
        loop = self.loop
        values = [carry.after for carry in loop.carries] + [one.element for one in loop.scan_outputs]
        return [self.source(value) for value in values] + ([] if self.keep is None else [self.keep])

    def _refuse_form(self) -> Refusal | None:
        loop, shapes = self.loop, self.ctx.shapes
        if not loop.carries:
            return Refusal("it carries nothing")
        for index, carry in enumerate(loop.carries):
            if shapes.dtype(carry.inside) not in op.SPEC.dtypes:
                return Refusal(
                    "'{}' is no tensor of a type that the kernel has", carry.inside.name, culprit=carry.inside
                )
            if self._keeps_shape(carry):
                continue
            if shapes.rank(carry.inside) is None:
                return Refusal("the shape of '{}' may change", carry.inside.name, culprit=carry.inside)
            self.growing.append(index)
        if loop.condition_inside is None:
            return self._refuse_sequences()
        if loop.iteration is not None and shapes.shape(loop.iteration) != ():
            return Refusal("the number of its iteration is no scalar", culprit=loop.iteration)
        if ir.use_count(loop.condition_inside) or any(value is loop.condition_inside for value in self._named()):
            return Refusal("it reads its condition", culprit=loop.condition_inside)
        if loop.condition is not None and shapes.shape(loop.condition) not in ((), (1,)):
            return Refusal("its condition may be no single bool", culprit=loop.condition)
        return None

    def _keeps_shape(self, carry: Carry) -> bool:
        return all(self.ctx.shapes.same_shape(carry.inside, one) is True for one in (carry.initial, carry.after))

    def _refuse_sequences(self) -> Refusal | None:
        if not self.loop.scan_inputs:
            return Refusal("it has no sequences")
        for one in self.loop.scan_inputs:
            if self.ctx.shapes.dtype(one.element) not in op.SPEC.dtypes or self.ctx.shapes.rank(one.sequence) is None:
                return Refusal(
                    "'{}' is no tensor of a type that the kernel has", one.sequence.name, culprit=one.sequence
                )
        return None

    def _refuse_bounds(self) -> Refusal | None:
        """Find the nodes that computed bounds of slices are made of: they run before the rest of the step is planned."""
        values = [value for node in self.loop.body for value in bounds_of(node, self.ctx.shapes)]
        growing = {self.loop.carries[index].inside for index in self.growing}
        while values:
            value = values.pop()
            node = value.producer()
            if value in growing:
                return Refusal("bounds of a slice depend on '{}', which may grow", value.name, culprit=value)
            if node is None or node.graph is not self.loop.body or node in self._early:
                continue
            if bounds_of(node, self.ctx.shapes):
                return Refusal("bounds of a slice depend on another one whose bounds are computed", culprit=node)
            self._early.add(node)
            values += [one for one in node.inputs if one is not None]
        return None

    def _named(self) -> list[ir.Value]:
        return [carry.after for carry in self.loop.carries] + [one.element for one in self.loop.scan_outputs]

    def _place(self, node: ir.Node) -> Refusal | None:
        if node.op_type == "Identity" and not node.domain and node.inputs[0] is not None:
            self.aliases[node.outputs[0]] = self.source(node.inputs[0])
            return None
        operands = [None if value is None else self.source(value) for value in node.inputs]
        if self._multiplies_by_constant(node):
            return self._place_product(node)
        made = statements_of(node, operands, self.ctx.shapes, self.ctx.opset)
        if made is not None:
            if isinstance(made, Refusal):
                return made
            self._need(node)
            self.parts.append(made)
            return None
        refusal = elementwise.refuse_node(node, self.ctx.shapes)
        if refusal is not None:
            return refusal
        self._need(node)
        last = self.parts[-1] if self.parts else None
        early = node in self._early
        if (
            not isinstance(last, _Map)
            or last.early is not early
            or not self.ctx.shapes.same_shape(last.nodes[0].outputs[0], node.outputs[0])
        ):
            last = _Map(early)
            self.parts.append(last)
        last.nodes.append(node)
        self._map_of[node.outputs[0]] = last
        return None

    def _need(self, node: ir.Node) -> None:
        """Let earlier maps give what a node that is about to join the last part, or to begin another, reads of them."""
        for value in node.inputs:
            if value is not None:
                self._give(self.source(value))

    def _give(self, value: ir.Value) -> None:
        """Every result that any other node reads is an output; `compile` drops those that the map alone reads."""
        made = self._map_of.get(value)
        if made is not None and value not in made.outputs:
            made.outputs.append(value)

    def _multiplies_by_constant(self, node: ir.Node) -> bool:
        if node.op_type not in ("MatMul", "Gemm") or node.domain or node.inputs[1] is None:
            return False
        matrix = self.source(node.inputs[1])
        return node.op_type == "Gemm" or (ir.constant(matrix) is not None and self.ctx.shapes.rank(matrix) == 2)

    def _place_product(self, node: ir.Node) -> Refusal | None:
        x, matrix, *bias = [self.source(value) for value in node.inputs if value is not None]
        shapes = self.ctx.shapes
        shape, rows = shapes.static_shape(matrix), shapes.shape(x)
        if ir.constant(matrix) is None or shape is None or len(shape) != 2 or 0 in shape:
            return Refusal("'{}' is no constant matrix", matrix.name, culprit=matrix)
        if not rows or multiplications(*rows[:-1], *shape) > MOST_WORK:
            return Refusal("the product with '{}' is large, or its rows are unknown", matrix.name, culprit=node)
        if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
            return Refusal("its product is scaled or transposed", culprit=node)
        transposed = bool(attribute(node, "transB", 0))
        if bias and (
            shapes.static_shape(bias[0]) != (shape[0 if transposed else 1],) or bias[0].graph is self.loop.body
        ):
            return Refusal("its bias '{}' is no vector from outside", bias[0].name, culprit=bias[0])
        if any(shapes.dtype(value) is not ir.DataType.FLOAT for value in (x, matrix, *bias)):
            return Refusal("its product is not of float32", culprit=node)
        self._need(node)
        self.parts.append(Product(node, x, matrix, bias[0] if bias else None, transposed))
        return None

    def _refuse_results(self) -> Refusal | None:
        loop, shapes = self.loop, self.ctx.shapes
        if not self.parts:
            return Refusal("it computes nothing")
        if not loop.is_scan and not condition_is_true(loop):
            assert loop.condition_after is not None
            self.keep = self.source(loop.condition_after)
            if shapes.dtype(self.keep) is not ir.DataType.BOOL or shapes.shape(self.keep) not in ((), (1,)):
                return Refusal("its condition is no single bool", culprit=self.keep)
            if self.keep is loop.condition_inside:
                return Refusal("it reads its condition", culprit=self.keep)
        for value in self.results():
            if shapes.dtype(value) not in op.SPEC.dtypes or shapes.rank(value) is None:
                return Refusal("'{}' is no tensor of a type that the kernel has", value.name, culprit=value)
            self._give(value)
        return None


def refuse(loop: Loop, ctx: Context) -> Refusal | None:
    """Why a loop cannot become a FusedLoop."""
    return _Analysis(loop, ctx).refuse()


def build(loop: Loop, ctx: Context) -> Patch | Refusal:
    """The patch that puts a FusedLoop in the place of a Loop or Scan."""
    analysis = _Analysis(loop, ctx)
    refusal = analysis.refuse()
    return _Writer(analysis, loop, ctx).patch() if refusal is None else refusal


class _Writer:
    """Numbers the values, writes the step down, and makes the node."""

    def __init__(self, analysis: _Analysis, loop: Loop, ctx: Context) -> None:
        self.analysis, self.loop, self.ctx = analysis, loop, ctx
        self.invariants = list(dict.fromkeys(one.sequence for one in loop.scan_inputs))
        self.products = [part for part in analysis.parts if isinstance(part, Product)]
        self.iteration = loop.iteration or ir.Value(name="iteration", type=ir.TensorType(ir.DataType.INT64))
        self.condition = loop.condition_inside or ir.Value(name="condition", type=ir.TensorType(ir.DataType.BOOL))
        self.inside = [self.iteration, *(carry.inside for carry in loop.carries)]

    def patch(self) -> Patch | Refusal:
        self._use_sources()
        maps: dict[int, elementwise.Compiled] = {}
        for index, part in enumerate(self.analysis.parts):
            if isinstance(part, _Map):
                needed = [value for value in part.outputs if self._leaves(value, part)]
                compiled = elementwise.compile_region(part.nodes, needed, self.ctx.shapes)
                if isinstance(compiled, Refusal):
                    return compiled
                maps[index] = compiled
        self._find_invariants(maps)
        for value in self.invariants:
            if self.ctx.shapes.dtype(value) not in op.SPEC.dtypes:
                return Refusal("'{}' is of a type that the kernel has not", value.name, culprit=value)
        numbers = {value: index for index, value in enumerate([*self.inside, *self.invariants])}
        return self._make(self._write(maps, numbers), numbers)

    def _use_sources(self) -> None:
        """Let nodes read what Identity nodes pass on."""
        for node in self.loop.body:
            for index, value in enumerate(node.inputs):
                if value is not None and self.analysis.source(value) is not value and node.op_type != "Identity":
                    node.replace_input_with(index, self.analysis.source(value))

    def _leaves(self, value: ir.Value, part: _Map) -> bool:
        """Whether something outside of a map reads one of its values."""
        readers = {user for user, _ in value.uses() if user.op_type != "Identity"}
        return value in self.analysis.results() or not readers <= set(part.nodes)

    def _find_invariants(self, maps: dict[int, elementwise.Compiled]) -> None:
        read: list[ir.Value] = []
        for index, part in enumerate(self.analysis.parts):
            if index in maps:
                read += maps[index].inputs
            elif isinstance(part, Product):
                read += [part.x] if part.bias is None else [part.x, part.bias]
            elif isinstance(part, Statements):
                read += part.operands
        for value in dict.fromkeys([*read, *self.analysis.results()]):
            if value.graph is not self.loop.body and value not in self.invariants:
                self.invariants.append(value)

    def _write(self, maps: dict[int, elementwise.Compiled], numbers: dict[ir.Value, int]) -> str:
        texts: list[str] = []
        matrix, count = 0, len(numbers)
        for one in self.loop.scan_inputs:
            texts.append(f"element {numbers[one.sequence]} {one.axis} {int(one.reverse)}")
            numbers[one.element] = count
            count += 1
        for index, part in enumerate(self.analysis.parts):
            if index in maps:
                made: Sequence[ir.Value] = maps[index].outputs
                texts.append(
                    f"map {' '.join(str(numbers[value]) for value in maps[index].inputs)} ! {maps[index].text}"
                )
                lines = len(made)
            elif isinstance(part, Product):
                made, lines = part.node.outputs, 1
                bias = "" if part.bias is None else f" {numbers[part.bias]}"
                texts.append(f"product {numbers[part.x]} {matrix}{bias}")
                matrix += 1
            else:
                assert isinstance(part, Statements)
                made, lines = part.node.outputs, len(part.lines)
                texts += [" ".join(_word(word, numbers, count) for word in line) for line in part.lines]
            count += lines
            numbers.update((value, count - len(made) + place) for place, value in enumerate(made))
        return ";".join(texts)

    def _make(self, text: str, numbers: dict[ir.Value, int]) -> Patch:
        loop, ctx, analysis = self.loop, self.ctx, self.analysis
        carried = len(loop.carries)
        results = analysis.results()
        stacked = results[carried : carried + len(loop.scan_outputs)]
        nodes = [node for node in loop.body if node.op_type != "Identity" or node.domain]
        step = op.Step(
            self.iteration,
            self.condition,
            self.inside[1:],
            self.invariants,
            [op.Element(one.element, one.sequence, one.axis, one.reverse) for one in loop.scan_inputs],
            self.products,
            nodes,
            results[:carried],
            stacked,
            analysis.keep,
        )
        attributes = {
            "carried": carried,
            "invariants": len(self.invariants),
            "columns": [op.sizes(product, ctx.shapes)[1] for product in self.products] or None,
            "step": text,
            "next": [numbers[value] for value in results[:carried]],
            "stacked": [numbers[value] for value in stacked] or None,
            "growing": analysis.growing or None,
            "keep": None if analysis.keep is None else numbers[analysis.keep],
        }
        known = [*self.inside, *self.invariants, *(one.element for one in loop.scan_inputs)]
        types = [str(ctx.shapes.dtype(value)) for value in known]
        overload = overload_of(f"{ctx.opset}|{attributes}|{types}|{body_text(nodes, known)}")
        builder = Builder(ctx, loop.node)
        builder.define(op.SPEC.domain, op.SPEC.name, overload, lambda: op.body(step, overload, ctx.opset, ctx.shapes))
        prepare_model(ctx.model)
        made = builder.op(
            op.SPEC.name,
            self._inputs(builder),
            attributes,
            domain=op.SPEC.domain,
            outputs=len(loop.node.outputs),
            overload=overload,
            name=loop.node.name or op.SPEC.name,
        )
        results = [*made[:carried]]
        for one, old, new in zip(loop.scan_outputs, loop.node.outputs[carried:], made[carried:], strict=True):
            results.append(arranged(new, one, ctx.shapes.rank(old), builder))
        for old, new, last in zip(loop.node.outputs, made, results, strict=True):
            dtype = ctx.shapes.dtype(old)
            ctx.shapes.set(new, dtype, ctx.shapes.shape(old) if new is last else None)
            new.type = old.type or (None if dtype is None else ir.TensorType(dtype))
        return builder.patch(RULE, dict(zip(loop.node.outputs, results, strict=True)))

    def _inputs(self, builder: Builder) -> list[ir.Value]:
        loop = self.loop
        limit = loop.limit
        if limit is None:
            limit = length(loop, builder) if loop.is_scan else builder.constant(np.array(NO_LIMIT, np.int64), "limit")
        condition = loop.condition or builder.constant(np.array(True), "condition")
        inputs = [limit, condition, *(carry.initial for carry in loop.carries), *self.invariants]
        for product in self.products:
            tensor = ir.constant(product.matrix)
            assert tensor is not None
            name = product.matrix.name or "weights"
            inputs.append(builder.constant(ir.packed(tensor, name, transposed=product.transposed), name))
        return inputs


def _word(word: Word, numbers: dict[ir.Value, int], first: int) -> str:
    """A word of a statement, the lines of whose node make values from `first` on."""
    if isinstance(word, Line):
        return str(first + word.index)
    return str(numbers[word]) if isinstance(word, ir.Value) else str(word)
