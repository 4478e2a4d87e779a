"""Which Scans become FusedRecurrence, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from onnxopt import ir
from onnxopt.ir.dims import Dim
from onnxopt.loops import Loop, runs_at_least_once
from onnxopt.ops import fused_elementwise as elementwise
from onnxopt.ops import fused_recurrence as op
from onnxopt.ops.base import overload_of, prepare_model
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal, attribute

RULE = "fuse_recurrence"

MOST_ON_DEVICE = {
    "carried": 32,
    "sources": 32,
    "phases": 8,
    "products": 16,
    "operands": 128,
    "statements": 384,
    "literals": 256,
    "stacked": 32,
}
"""What the kernel for CUDA devices takes (`Code` in kernels/cuda/recurrence/plan.h)."""

SHARED_BYTES, THREADS = 96 * 1024, 256
"""Shared memory of its blocks, and the threads of one that takes whole rows (`kMostShared`, `kMostThreads`)."""


@dataclasses.dataclass(slots=True)
class _Phase:
    """The products that begin a phase, the element-wise nodes that follow, and those of their results that others need."""

    products: list[op.Product] = dataclasses.field(default_factory=list)
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    outputs: list[ir.Value] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class _Sum:
    """A stacked output that is summed over the last dim: what is summed, and the node around or in the loop that does it."""

    element: ir.Value
    node: ir.Node
    result: ir.Value


class _Analysis:
    """Sorts the nodes of a Scan's body into phases; `refusal` says why that cannot be done."""

    def __init__(self, loop: Loop, ctx: Context) -> None:
        self.loop = loop
        self.ctx = ctx
        self.carried = [carry.inside for carry in loop.carries]
        self.elements = [one.element for one in loop.scan_inputs]
        self.phases: list[_Phase] = []
        self.aliases: dict[ir.Value, ir.Value] = {}
        self.sums: dict[int, _Sum] = {}
        self._phase_of: dict[ir.Value, int] = {}
        self._made: dict[ir.Value, ir.Node] = {}

    def run(self) -> Refusal | None:
        refusal = self._refuse_form()
        if refusal is not None:
            return refusal
        for node in self.loop.body:
            refusal = self._place(node)
            if refusal is not None:
                return refusal
        return self._find_outputs()

    def _refuse_form(self) -> Refusal | None:
        shapes = self.ctx.shapes
        first = shapes.shape(self.carried[0]) if self.carried else None
        if first is None:
            return Refusal("it carries nothing, or values of unknown shape")
        for carry in self.loop.carries:
            same = shapes.same_shape(carry.inside, self.carried[0]) and shapes.same_shape(
                carry.initial, self.carried[0]
            )
            if not same or shapes.dtype(carry.inside) is not ir.DataType.FLOAT:
                return Refusal("'{}' is not float32 of the shape {}", carry.inside.name, first, culprit=carry.inside)
        if not self.elements or any(one.axis for one in self.loop.scan_inputs):
            return Refusal("its sequences are not along axis 0")
        if any(one.axis for one in self.loop.scan_outputs):
            return Refusal("its outputs are not stacked along axis 0")
        return None

    def source(self, value: ir.Value) -> ir.Value:
        return self.aliases.get(value, value)

    def _place(self, node: ir.Node) -> Refusal | None:
        if node.op_type == "Identity" and not node.domain and node.inputs[0] is not None:
            self.aliases[node.outputs[0]] = self.source(node.inputs[0])
            return None
        inputs = [self.source(value) for value in node.inputs if value is not None]
        if node.op_type in ("MatMul", "Gemm") and not node.domain:
            return self._place_product(node, inputs)
        if _sums_last_dim(node, self.ctx) and not ir.use_count(node.outputs[0]):
            return None  # a stacked output, which the kernel sums
        refusal = elementwise.refuse_node(node, self.ctx.shapes)
        if refusal is not None:
            return refusal
        phase = max((self._phase_of.get(value, 0) for value in inputs), default=0)
        self._phase(phase).nodes.append(node)
        self._phase_of[node.outputs[0]] = phase
        self._made[node.outputs[0]] = node
        return None

    def _place_product(self, node: ir.Node, inputs: list[ir.Value]) -> Refusal | None:
        x, matrix, *bias = inputs
        shapes = self.ctx.shapes
        width = (shapes.shape(self.carried[0]) or (0,))[-1]
        if ir.constant(matrix) is None or shapes.static_shape(matrix) != (width, width):
            return Refusal("'{}' is no constant matrix of {} rows and columns", matrix.name, width, culprit=matrix)
        if x not in self.carried and x not in self._made:
            return Refusal("'{}' is multiplied as no value of the step is", x.name, culprit=x)
        if shapes.same_shape(x, self.carried[0]) is not True or attribute(node, "transA", 0):
            return Refusal("'{}' has not the shape of the carried values", x.name, culprit=x)
        if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
            return Refusal("its product is scaled", culprit=node)
        if bias and (shapes.static_shape(bias[0]) != (width,) or bias[0].graph is self.loop.body):
            return Refusal("its bias '{}' is no vector from outside", bias[0].name, culprit=bias[0])
        phase = self._phase_of[x] + 1 if x in self._made else 0
        product = op.Product(node, x, matrix, bias[0] if bias else None, bool(attribute(node, "transB", 0)))
        self._phase(phase).products.append(product)
        self._phase_of[node.outputs[0]] = phase
        return None

    def _phase(self, index: int) -> _Phase:
        while len(self.phases) <= index:
            self.phases.append(_Phase())
        return self.phases[index]

    def _find_sums(self) -> None:
        """Outputs that the loop sums over the last dim, or that are read by nothing but a node that does."""
        if len(self.phases) != 1 or self.phases[0].products:
            return
        for index, one in enumerate(self.loop.scan_outputs):
            inner = self.source(one.element).producer()
            if one.stacked is None:
                continue
            if inner is not None and inner.graph is self.loop.body and _sums_last_dim(inner, self.ctx):
                assert inner.inputs[0] is not None
                self.sums[index] = _Sum(self.source(inner.inputs[0]), inner, one.stacked)
                continue
            users = [user for user, _ in one.stacked.uses()]
            alone = len(users) == 1 and not one.stacked.is_graph_output() and users[0].graph is self.loop.node.graph
            if alone and _sums_last_dim(users[0], self.ctx):
                self.sums[index] = _Sum(self.source(one.element), users[0], users[0].outputs[0])

    def stacked(self, index: int) -> ir.Value:
        """What an output stacks, or stacks the sums of."""
        if index in self.sums:
            return self.sums[index].element
        return self.source(self.loop.scan_outputs[index].element)

    def _find_outputs(self) -> Refusal | None:
        """What later phases, the next step and the outputs need."""
        shapes, first = self.ctx.shapes, self.carried[0]
        self._find_sums()
        results = [self.source(carry.after) for carry in self.loop.carries]
        results += [self.stacked(index) for index in range(len(self.loop.scan_outputs))]
        needed = dict.fromkeys(results)
        for index, phase in enumerate(self.phases):
            for product in phase.products:
                needed[product.x] = None
            for node in phase.nodes:
                inputs = [self.source(value) for value in node.inputs if value is not None]
                needed.update((one, None) for one in inputs if one in self._made and self._phase_of[one] < index)
        for value in needed:
            made = value in self._made
            if shapes.same_shape(value, first) is not True or shapes.dtype(value) is not ir.DataType.FLOAT:
                return Refusal("'{}' has not the shape of the carried values", value.name, culprit=value)
            if made:
                self.phases[self._phase_of[value]].outputs.append(value)
            elif value not in self.carried and value not in self.elements:
                return Refusal("'{}' goes on as it is", value.name, culprit=value)
        if not self.phases or not all(phase.outputs for phase in self.phases):
            return Refusal("a part of it computes nothing that is needed")
        return None


def _sums_last_dim(node: ir.Node, ctx: Context) -> bool:
    if node.op_type != "ReduceSum" or node.domain or node.inputs[0] is None or attribute(node, "keepdims", 1):
        return False
    if ctx.shapes.dtype(node.inputs[0]) is not ir.DataType.FLOAT:
        return False
    axes = ir.integers(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
    rank = ctx.shapes.rank(node.inputs[0])
    return rank is not None and axes is not None and [axis % rank for axis in axes] == [rank - 1]


def build(loop: Loop, ctx: Context) -> Patch | Refusal:
    """The patch that puts a FusedRecurrence in the place of a Scan."""
    analysis = _Analysis(loop, ctx)
    refusal = analysis.run()
    if refusal is not None:
        return refusal
    return _Writer(analysis, loop, ctx).patch()


class _Writer:
    """Numbers the values, writes the step down, and makes the node."""

    def __init__(self, analysis: _Analysis, loop: Loop, ctx: Context) -> None:
        self.analysis, self.loop, self.ctx = analysis, loop, ctx
        self.invariants: list[ir.Value] = []
        self.products = [product for phase in analysis.phases for product in phase.products]

    def patch(self) -> Patch | Refusal:
        analysis, ctx = self.analysis, self.ctx
        programs: list[elementwise.Compiled] = []
        for phase in analysis.phases:
            nodes = self._with_sources(phase.nodes)
            compiled = elementwise.compile_region(nodes, phase.outputs, ctx.shapes)
            if isinstance(compiled, Refusal):
                return compiled
            programs.append(compiled)
        refusal = self._collect(programs)
        if refusal is not None:
            return refusal
        return self._make(programs)

    def _with_sources(self, nodes: list[ir.Node]) -> list[ir.Node]:
        """Let nodes read what Identity nodes pass on."""
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value is not None and self.analysis.source(value) is not value:
                    node.replace_input_with(index, self.analysis.source(value))
        return nodes

    def _collect(self, programs: list[elementwise.Compiled]) -> Refusal | None:
        """Find the values from outside; what programs read must be float32."""
        for product in self.products:
            if product.bias is not None and product.bias not in self.invariants:
                self.invariants.append(product.bias)
        body = self.loop.body
        for program in programs:
            for value in program.inputs:
                if self.ctx.shapes.dtype(value) is not ir.DataType.FLOAT:
                    return Refusal("'{}' is not float32", value.name, culprit=value)
                if value.graph is not body and value not in self.invariants:
                    rank = self.ctx.shapes.rank(self.loop.carries[0].inside)
                    own = self.ctx.shapes.rank(value)
                    if own is None or rank is None or own > rank:
                        return Refusal("'{}' has more dims than the carried values", value.name, culprit=value)
                    self.invariants.append(value)
        return None

    def _make(self, programs: list[elementwise.Compiled]) -> Patch | Refusal:
        analysis, loop, ctx = self.analysis, self.loop, self.ctx
        outer = [*analysis.carried, *analysis.elements, *self.invariants]
        numbers = {value: index for index, value in enumerate(outer)}
        texts: list[str] = []
        count, matrix = len(outer), 0
        for phase, program in zip(analysis.phases, programs, strict=True):
            products = []
            for product in phase.products:
                bias = "" if product.bias is None else f"+{numbers[product.bias]}"
                products.append(f"{numbers[product.x]}@{matrix}{bias}")
                matrix += 1
            for value in [*(product.node.outputs[0] for product in phase.products), *program.outputs]:
                numbers[value] = count
                count += 1
            operands = " ".join(str(numbers[value]) for value in program.inputs)
            texts.append(f"{' '.join(products)} ! {operands} ! {program.text}")
        shape = ctx.shapes.shape(analysis.carried[0])
        assert shape is not None
        refusal = self._beyond_device(programs, count, shape) if ctx.target.name == "cuda" else None
        if refusal is not None:
            return refusal
        recurrence = op.Recurrence(
            analysis.carried,
            analysis.elements,
            self.invariants,
            self.products,
            self._nodes(),
            [analysis.source(carry.after) for carry in loop.carries],
            [analysis.stacked(index) for index in range(len(loop.scan_outputs))],
            [index in analysis.sums for index in range(len(loop.scan_outputs))],
            [one.reverse for one in loop.scan_inputs],
            [one.reverse for one in loop.scan_outputs],
            shape[-1] if self.products and isinstance(shape[-1], int) else 0,
            not runs_at_least_once(loop, ctx),
            [self._shape(index) for index in range(len(loop.scan_outputs))],
        )
        return self._patch(recurrence, ";".join(texts), numbers)

    def _shape(self, index: int) -> list[int | None] | None:
        """What is known of the shape that an output stacks."""
        shape = self.ctx.shapes.shape(self.analysis.stacked(index))
        if shape is None:
            return None
        kept = shape[:-1] if index in self.analysis.sums else shape
        return [dim if isinstance(dim, int) else None for dim in kept]

    def _beyond_device(self, programs: list[elementwise.Compiled], values: int, shape: Sequence[Dim]) -> Refusal | None:
        """Why the kernel for CUDA devices, which keeps all values of some rows in shared memory, does not take a step of so many values."""
        text = "".join(program.text for program in programs)
        operands, statements = sum(len(program.inputs) for program in programs), text.count("=")
        needed = {
            "carried": len(self.analysis.carried),
            "sources": len(self.analysis.elements) + len(self.invariants),
            "phases": len(programs),
            "products": len(self.products),
            "operands": operands,
            "statements": operands + statements,
            "literals": text.count("#"),
            "stacked": len(self.loop.scan_outputs),
        }
        for what, most in MOST_ON_DEVICE.items():
            if needed[what] > most:
                return Refusal("the kernel for CUDA devices takes up to {} {}, and it has {}", most, what, needed[what])
        if not self.products and not self.analysis.sums:
            return None
        width = shape[-1] if shape else 1
        word = 8 if "i64" in text else 4
        # At most so many columns of the table, and a slot for each statement.
        held = None if not isinstance(width, int) else 4 * width * (values + len(self.analysis.carried))
        if held is None or held + statements * word * THREADS > SHARED_BYTES:
            return Refusal("rows of {} elements may not fit into a CUDA device's shared memory", width)
        return None

    def _nodes(self) -> list[ir.Node]:
        """What the body of the function copies."""
        sums = {one.node for one in self.analysis.sums.values()}
        body = self.loop.body
        return [node for node in body if (node.op_type != "Identity" or node.domain) and node not in sums]

    def _patch(self, r: op.Recurrence, text: str, numbers: dict[ir.Value, int]) -> Patch:
        loop, ctx = self.loop, self.ctx
        attributes = {
            "carried": len(r.carried),
            "sequences": len(r.elements),
            "invariants": len(r.invariants),
            "matrices": len(r.products),
            "step": text,
            "next": [numbers[value] for value in r.after],
            "stacked": [numbers[value] for value in r.stacked] or None,
            "summed": [int(one) for one in r.summed] if any(r.summed) else None,
            "reverse": [int(one) for one in r.reverse] if any(r.reverse) else None,
            "reverse_stacked": [int(one) for one in r.reverse_stacked] if any(r.reverse_stacked) else None,
        }
        builder = Builder(ctx, loop.node)
        inputs = (
            [carry.initial for carry in loop.carries] + [one.sequence for one in loop.scan_inputs] + list(r.invariants)
        )
        for product in r.products:
            tensor = ir.constant(product.matrix)
            assert tensor is not None
            name = product.matrix.name or "weights"
            inputs.append(builder.constant(ir.packed(tensor, name, transposed=product.transposed), name))
        types = [ctx.shapes.dtype(value) or ir.DataType.FLOAT for value in r.elements]
        overload = overload_of(
            f"{ctx.opset}|{attributes}|{types}|{r.width}|{r.may_be_empty}|{body_text(r.nodes, [*r.carried, *r.elements, *r.invariants])}"
        )
        builder.define(op.SPEC.domain, op.SPEC.name, overload, lambda: op.body(r, overload, ctx.opset, types))
        prepare_model(ctx.model)
        results = builder.op(
            op.SPEC.name,
            inputs,
            attributes,
            domain=op.SPEC.domain,
            outputs=len(loop.node.outputs),
            overload=overload,
            name=loop.node.name or op.SPEC.name,
        )
        replaced = list(loop.node.outputs)
        for index, one in self.analysis.sums.items():
            replaced[len(r.carried) + index] = one.result
        for old, new in zip(replaced, results, strict=True):
            ctx.shapes.set(new, ctx.shapes.dtype(old), ctx.shapes.shape(old))
            new.type = old.type or ir.TensorType(ir.DataType.FLOAT)
        return builder.patch(RULE, dict(zip(replaced, results, strict=True)))


def body_text(nodes: Sequence[ir.Node], inputs: Sequence[ir.Value]) -> str:
    """What distinguishes bodies whose steps read alike: ops, attributes and constants."""
    known = {value: f"i{index}" for index, value in enumerate(inputs)}
    lines = []
    for number, node in enumerate(nodes):
        operands = []
        for value in node.inputs:
            if value is None or value in known:
                operands.append("" if value is None else known[value])
                continue
            array = ir.small_array(value)
            operands.append("matrix" if array is None else f"{array.dtype}{array.shape}{array.tobytes().hex()}")
        attrs = sorted((name, str(attr.value)) for name, attr in node.attributes.items())
        lines.append(f"{node.op_type}({','.join(operands)}){attrs}")
        known.update((value, f"n{number}_{index}") for index, value in enumerate(node.outputs))
    return ";".join(lines)
