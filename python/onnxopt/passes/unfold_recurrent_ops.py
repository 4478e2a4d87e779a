"""LSTM, GRU and RNN as products of whole sequences and Scans of what is left, which become FusedRecurrence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.ir.dims import Dim
from onnxopt.loops.recurrent_ops import GATES, Form, form_of
from onnxopt.loops.view import SCAN_OPSET
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import discard
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal, attribute

UNSQUEEZE_INPUT_OPSET = 13


@register_pass
class UnfoldRecurrentOps(Pass):
    """Write LSTM, GRU and RNN as products of the whole sequence with W, and a Scan of the step with R.

    Both directions of a bidirectional op become Scans of their own. Refused: sequences of different lengths, peepholes, clipping,
    coupled gates, activations other than Sigmoid, Tanh and Relu, weights that are not constant or not float32, layout 1, few steps, and sizes
    at which onnxruntime's kernels are as fast.
    """

    name = "unfold_recurrent_ops"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for node in ctx.nodes_of([("", name) for name in GATES]):
            form = _form_of(node, ctx)
            if isinstance(form, Refusal):
                ctx.log.refused(self.name, node, form, 1)
                continue
            writer = _Writer(form, ctx)
            if ctx.editor.apply(writer.builder.patch(self.name, writer.replacements())):
                writer.learn_shapes()
                ctx.editor.remove_unused([node])
                ctx.has_subgraphs = True
                patches += 1
            else:
                discard(writer.builder.nodes)
        return PassResult(patches > 0, patches)


def _form_of(node: ir.Node, ctx: Context) -> Form | Refusal:
    if ctx.opset < SCAN_OPSET:
        return Refusal("the model's opset {} has no Scan", ctx.opset, culprit=node)
    length = _length(node, ctx)
    if not ctx.shapes.bounds.prove_at_least(length, 1):
        return Refusal("its sequence may be empty", culprit=node)
    if isinstance(length, int) and length < ctx.target.costs.recurrent_steps:
        return Refusal("{} steps are too few", length, culprit=node)
    form = form_of(node, ctx)
    slow = _is_slow(node, form.hidden, ctx) if isinstance(form, Form) else None
    return form if slow is None else slow


def _length(node: ir.Node, ctx: Context) -> Dim:
    shape = None if node.inputs[0] is None else ctx.shapes.shape(node.inputs[0])
    return shape[0] if shape else 0


def pays(node: ir.Node, ctx: Context) -> bool:
    """Whether the pass writes a recurrent op as products and Scans, where the target has the kernel for them."""
    return ctx.target.custom_ops and isinstance(_form_of(node, ctx), Form)


def _is_slow(node: ir.Node, hidden: int, ctx: Context) -> Refusal | None:
    """Where onnxruntime's own kernel is as fast."""
    costs = ctx.target.costs
    least = {"LSTM": costs.lstm_hidden, "GRU": costs.gru_hidden}.get(node.op_type, 0)
    if hidden < least:
        return Refusal("{} hidden elements are too few", hidden, culprit=node)
    x = node.inputs[0]
    shape = None if x is None else ctx.shapes.shape(x)
    if least and node.op_type == "LSTM" and (shape is None or shape[1] != 1):
        return Refusal("it has several samples", culprit=node)
    return None


class _Writer:
    """Builds the nodes that stand for one op."""

    def __init__(self, form: Form, ctx: Context) -> None:
        self.form, self.ctx = form, ctx
        self.builder = Builder(ctx, form.node)
        self._initials: list[ir.Value] = []
        self._scans: list[ir.Node] = []

    def learn_shapes(self) -> None:
        """Initial states have as many rows as the sequence has samples: the op says so, and the Scan needs to know it."""
        shapes, x = self.ctx.shapes, self.form.node.inputs[0]
        shape = None if x is None else shapes.shape(x)
        if shape is not None:
            for value in self._initials:
                shapes.set(value, ir.DataType.FLOAT, (shape[1], self.form.hidden))
            for scan in self._scans:
                shapes.infer_node(scan)

    def replacements(self) -> dict[ir.Value, ir.Value]:
        form, b = self.form, self.builder
        finals: list[list[ir.Value]] = []
        stacks: list[ir.Value] = []
        for direction in range(len(form.reverse)):
            *states, stacked = self._direction(direction)
            finals.append(states)
            stacks.append(self._unsqueezed(stacked, 1))
        made = [stacks[0] if len(stacks) == 1 else b.Concat(*stacks, axis=1)]
        for same in zip(*finals, strict=True):
            rows = [self._unsqueezed(state, 0) for state in same]
            made.append(rows[0] if len(rows) == 1 else b.Concat(*rows, axis=0))
        pairs = zip(form.node.outputs, made, strict=False)
        return {old: new for old, new in pairs if ir.use_count(old) or old.is_graph_output()}

    def _unsqueezed(self, value: ir.Value, axis: int) -> ir.Value:
        if self.ctx.opset >= UNSQUEEZE_INPUT_OPSET:
            return self.builder.Unsqueeze(value, self.builder.constant(np.array([axis], np.int64), "axes"))
        return self.builder.Unsqueeze(value, axes=[axis])

    def _direction(self, direction: int) -> tuple[ir.Value, ...]:
        form, b = self.form, self.builder
        x = form.node.inputs[0]
        lbr = form.node.op_type == "GRU" and bool(attribute(form.node, "linear_before_reset", 0))
        sequences = []
        for gate in range(GATES[form.node.op_type]):
            # The reset gate lies between the product and its bias when it is applied after the product.
            apart = lbr and gate == 2
            bias = form.w_bias[direction, gate] + (0 if apart else form.r_bias[direction, gate])
            product = b.MatMul(x, b.constant(ir.array_tensor(form.w[direction, gate].T), "W"))
            sequences.append(b.Add(product, b.constant(bias.astype(np.float32), "bias")))
        step = _Step(form, direction, self.ctx, b)
        initial = [self._initial(index, direction) for index in step.initial_inputs]
        attributes = {
            "body": ir.Attr("body", ir.AttributeType.GRAPH, step.graph()),
            "num_scan_inputs": len(sequences),
            "scan_input_directions": [int(form.reverse[direction])] * len(sequences),
            "scan_output_directions": [int(form.reverse[direction])],
        }
        scanned = b.op("Scan", [*initial, *sequences], attributes, outputs=len(initial) + 1)
        self._initials += initial
        self._scans.append(b.nodes[-1])
        return scanned

    def _initial(self, index: int, direction: int) -> ir.Value:
        given = ir.input_at(self.form.node, index)
        b = self.builder
        known = None if given is None else ir.constant(given)
        if known is not None:
            return b.constant(np.ascontiguousarray(known.numpy()[direction]), "initial")
        if given is not None:
            return b.Gather(given, b.constant(np.array(direction, np.int64), "direction"), axis=0)
        x = self.form.node.inputs[0]
        assert x is not None
        shape = self.ctx.shapes.shape(x)
        if shape is not None and isinstance(shape[1], int):
            return b.constant(np.zeros((shape[1], self.form.hidden), np.float32), "initial")
        batch = b.Gather(b.Shape(x), b.constant(np.array([1], np.int64), "axis"), axis=0)
        size = b.Concat(batch, b.constant(np.array([self.form.hidden], np.int64), "hidden"), axis=0)
        return b.Expand(b.constant(np.zeros((1, 1), np.float32), "zero"), size)


class _Step:
    """Builds the body of the Scan: the standard's equations, with what depends on the sequence alone given as elements."""

    def __init__(self, form: Form, direction: int, ctx: Context, builder: Builder) -> None:
        self.form, self.direction, self.ctx, self.outer = form, direction, ctx, builder
        self.initial_inputs = (5, 6) if form.node.op_type == "LSTM" else (5,)
        self.activations = form.activations[direction]
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []

    def graph(self) -> ir.Graph:
        states = [self._input() for _ in self.initial_inputs]
        elements = [self._input() for _ in range(GATES[self.form.node.op_type])]
        after = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.form.node.op_type](states, elements)
        results = [*after, self._op("Identity", after[0])]
        imports = dict(self.ctx.model.graph.opset_imports)
        return ir.Graph(self._inputs, results, nodes=self._nodes, opset_imports=imports, name="step")

    def _lstm(self, states: Sequence[ir.Value], x: Sequence[ir.Value]) -> list[ir.Value]:
        h, c = states
        f, g, last = self.activations
        i, o, forget, cell = (self._op("Add", x[gate], self._product(h, gate)) for gate in range(4))
        kept = self._op("Mul", self._op(f, forget), c)
        taken = self._op("Mul", self._op(f, i), self._op(g, cell))
        state = self._op("Add", kept, taken)
        return [self._op("Mul", self._op(f, o), self._op(last, state)), state]

    def _gru(self, states: Sequence[ir.Value], x: Sequence[ir.Value]) -> list[ir.Value]:
        (h,) = states
        f, g = self.activations
        z, r = (self._op(f, self._op("Add", x[gate], self._product(h, gate))) for gate in (0, 1))
        if attribute(self.form.node, "linear_before_reset", 0):
            bias = self.outer.constant(self.form.r_bias[self.direction, 2].copy(), "bias")
            hidden = self._op("Mul", r, self._op("Add", self._product(h, 2), bias))
        else:
            hidden = self._product(self._op("Mul", r, h), 2)
        n = self._op(g, self._op("Add", x[2], hidden))
        one = self.outer.constant(np.array(1, np.float32), "one")
        return [self._op("Add", self._op("Mul", self._op("Sub", one, z), n), self._op("Mul", z, h))]

    def _rnn(self, states: Sequence[ir.Value], x: Sequence[ir.Value]) -> list[ir.Value]:
        (h,) = states
        return [self._op(self.activations[0], self._op("Add", x[0], self._product(h, 0)))]

    def _product(self, h: ir.Value, gate: int) -> ir.Value:
        weights = ir.array_tensor(self.form.r[self.direction, gate].T)  # which is packed of the order that it has
        return self._op("MatMul", h, self.outer.constant(weights, "R"))

    def _op(self, op_type: str, *inputs: ir.Value) -> ir.Value:
        node = ir.Node("", op_type, inputs, name=self.ctx.names.node(op_type))
        node.outputs[0].name = self.ctx.names.value("step")
        self._nodes.append(node)
        return node.outputs[0]

    def _input(self) -> ir.Value:
        value = ir.Value(name=self.ctx.names.value("step"), type=ir.TensorType(ir.DataType.FLOAT))
        self._inputs.append(value)
        return value
