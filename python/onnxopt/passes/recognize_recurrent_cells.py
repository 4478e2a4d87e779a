"""Scans whose step is a recurrent cell, or several that read each other, become RNN, GRU and LSTM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.ir import dims
from onnxopt.ir.dims import Dim
from onnxopt.loops import Loop, loops_of, runs_at_least_once
from onnxopt.loops.cells import Cell, find_cells
from onnxopt.loops.expressions import Expression, Move, Origin, Permuted, Reshaped, Step
from onnxopt.loops.recurrent_ops import ACTIVATIONS
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import discard
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal

REVERSED = np.array([-1]), np.array([np.iinfo(np.int64).min]), np.array([0]), np.array([-1])
"""Starts, ends, axes and steps of a Slice that turns the first axis around."""


@register_pass
class RecognizeRecurrentCells(Pass):
    """Turn Scans whose step computes RNN, GRU or LSTM cells into these ops.

    The gates may come from one product or from several, in any order, of state and element apart or side by side, with biases anywhere in the
    sums; a GRU may reset before or after its product; an LSTM may have peepholes. Cells of one step that read each other become a
    chain of ops. (onnxruntime's LSTM and GRU lose NaN, which the standard keeps, in any model.) Refused: steps that compute or stack anything else than hidden states, cells whose element is not multiplied with a constant matrix,
    other activations than Sigmoid, Tanh and Relu, projections, loops that may not run at all, and states that are not float32 of two dims.
    """

    name = "recognize_recurrent_cells"
    phase = "simplify"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for loop in loops_of(ctx):
            if not loop.is_scan or not loop.carries:
                continue
            writer = _writer(loop, ctx)
            if isinstance(writer, Refusal):
                ctx.log.refused(self.name, loop.node, writer, 1)
            elif ctx.editor.apply(writer.builder.patch(self.name, writer.replacements())):
                ctx.editor.remove_unused([loop.node])
                patches += 1
            else:
                discard(writer.builder.nodes)
        return PassResult(patches > 0, patches)


def _writer(loop: Loop, ctx: Context) -> _Writer | Refusal:
    shapes = ctx.shapes
    for carry in loop.carries:
        if shapes.dtype(carry.inside) is not ir.DataType.FLOAT or shapes.rank(carry.inside) != 2:
            return Refusal("'{}' is not float32 of two dims", carry.inside.name, culprit=carry.inside)
    if any(one.axis for one in loop.scan_inputs) or any(one.axis for one in loop.scan_outputs):
        return Refusal("its sequences and outputs are not along axis 0")
    if not runs_at_least_once(loop, ctx):
        return Refusal("it may not run at all, which onnxruntime's RNN, GRU and LSTM cannot do")
    step = Step(loop, ctx)
    after = [step.of(carry.after) for carry in loop.carries]
    known = [one for one in after if one is not None]
    cells = find_cells(step.states, known) if len(known) == len(after) else None
    if cells is None:
        return Refusal("its step is no RNN, GRU or LSTM cell", culprit=step.culprit)
    hidden = [known[cell.states[0].index] for cell in cells]
    stacked = [step.of(one.element) for one in loop.scan_outputs]
    if any(all(one is not state for state in hidden) for one in stacked):
        return Refusal("it stacks other values than hidden states")
    writer = _Writer(loop, cells, hidden, stacked, ctx)
    return writer if all(writer.fits(cell) for cell in cells) else Refusal("its sequences do not fit its states")


class _Writer:
    """Builds the op of each cell. `hidden` are the cells' states at the end of a step, `stacked` those that the loop stacks."""

    def __init__(
        self,
        loop: Loop,
        cells: Sequence[Cell],
        hidden: Sequence[Expression],
        stacked: Sequence[Expression | None],
        ctx: Context,
    ) -> None:
        self.loop, self.cells, self.hidden, self.stacked, self.ctx = loop, cells, hidden, stacked, ctx
        self.builder = Builder(ctx, loop.node)
        self._results: dict[Expression, ir.Value] = {}  # of each hidden state, all of them, with a dim of directions
        self._sequences: dict[Expression, ir.Value] = {}
        origins = [cell.x for cell in cells if isinstance(cell.x, Origin)]
        self.reverse = origins[0].reverse

    def fits(self, cell: Cell) -> bool:
        """Whether what the cell reads has a row for each row of its states, all of one length and in one direction."""
        shapes = self.ctx.shapes
        state, first = (
            shapes.shape(value)
            for value in (self.loop.carries[cell.states[0].index].inside, self.loop.carries[0].inside)
        )
        if state is None or first is None or not shapes.equal(state[0], first[0]) or state[1] != cell.r.shape[2]:
            return False
        if not isinstance(cell.x, Origin):
            return True
        own = _dims(cell.x, self.ctx)
        sequence = shapes.shape(self.loop.scan_inputs[0].sequence)
        if own is not None and len(own) == 4 and own[1] == 1:
            own = (own[0], *own[2:])
        if own is None or len(own) != 3 or sequence is None or cell.x.reverse is not self.reverse:
            return False
        return bool(shapes.equal(own[0], sequence[0]) and shapes.equal(own[1], state[0]))

    def replacements(self) -> dict[ir.Value, ir.Value]:
        """What stands for the outputs of the loop."""
        made: dict[ir.Value, ir.Value] = {}
        for cell, hidden in zip(self.cells, self.hidden, strict=True):
            x = self._moved(cell.x) if isinstance(cell.x, Origin) else self._sequence(cell.x)
            self._results[hidden], *finals = self._op(cell, x)
            for state, final in zip(cell.states, finals, strict=True):
                old = self.loop.carries[state.index].final
                if old is not None and _is_used(old):
                    made[old] = self.builder.squeeze(final, 0)
        for one, expression in zip(self.loop.scan_outputs, self.stacked, strict=True):
            if one.stacked is not None and _is_used(one.stacked) and expression is not None:
                value = self._sequence(expression)
                made[one.stacked] = value if one.reverse is self.reverse else self._turned(value)
        return made

    def _sequence(self, hidden: Expression) -> ir.Value:
        """A hidden state of all steps."""
        if hidden not in self._sequences:
            self._sequences[hidden] = self.builder.squeeze(self._results[hidden], 1)
        return self._sequences[hidden]

    def _op(self, cell: Cell, x: ir.Value) -> tuple[ir.Value, ...]:
        b = self.builder
        weights = [_rows(one.transpose(0, 2, 1)) for one in (cell.w, cell.r)]
        biases = np.concatenate([cell.w_bias.reshape(1, -1), cell.r_bias.reshape(1, -1)], axis=1)
        inputs: list[ir.Value | None] = [x, b.constant(weights[0], "W"), b.constant(weights[1], "R")]
        inputs += [b.constant(biases, "B") if biases.any() else None, None]
        inputs += self._initials(cell)
        if cell.peepholes is not None:
            inputs += [None] * (7 - len(inputs)) + [b.constant(cell.peepholes.reshape(1, -1), "P")]
        while inputs[-1] is None:
            inputs.pop()
        attributes = {
            "hidden_size": cell.r.shape[2],
            "direction": "reverse" if self.reverse else None,
            "activations": list(cell.activations) if cell.activations != ACTIVATIONS[cell.op_type] else None,
            "linear_before_reset": 1 if cell.linear_before_reset else None,
        }
        return b.op(cell.op_type, inputs, attributes, outputs=1 + len(cell.states))

    def _initials(self, cell: Cell) -> list[ir.Value | None]:
        """Initial states; those that are zero may be left out."""
        values = [self.loop.carries[state.index].initial for state in cell.states]
        return [None if ir.scalar(value) == 0 else self.builder.unsqueeze(value, 0) for value in values]

    def _moved(self, origin: Origin) -> ir.Value:
        """The sequence that a cell reads; elements may have a leading dim of one element, as a sequence inside has."""
        value, shape = origin.value, self.ctx.shapes.shape(origin.value)
        for move in origin.moves:
            assert shape is not None
            before, shape = shape, _moved(shape, move)
            if isinstance(move, Permuted):
                value = self.builder.Transpose(value, perm=list(move.axes))
            else:
                target = np.array(_target(shape, before), np.int64)
                value = self.builder.Reshape(value, self.builder.constant(target, "shape"))
        return self.builder.squeeze(value, 1) if shape is not None and len(shape) == 4 else value

    def _turned(self, value: ir.Value) -> ir.Value:
        return self.builder.Slice(value, *(self.builder.constant(one.astype(np.int64)) for one in REVERSED))


def _is_used(value: ir.Value) -> bool:
    return ir.use_count(value) > 0 or value.is_graph_output()


def _rows(matrices: np.ndarray) -> np.ndarray:
    """Matrices of gates, one below the other, as one of the standard's ops takes them: [1, gates * H, I]."""
    return np.ascontiguousarray(matrices.reshape(1, -1, matrices.shape[2]))


def _moved(shape: Sequence[Dim], move: Move) -> tuple[Dim, ...]:
    if isinstance(move, Permuted):
        return tuple(shape[axis] for axis in move.axes)
    return (*move.leading, shape[-1])


def _dims(origin: Origin, ctx: Context) -> tuple[Dim, ...] | None:
    """The dims of a sequence after its moves; None where they are unknown, or a Reshape among them cannot be written down."""
    shape = ctx.shapes.shape(origin.value)
    for move in origin.moves:
        if shape is None:
            return None
        before, shape = shape, _moved(shape, move)
        if isinstance(move, Reshaped) and _target(shape, before) is None:
            return None
    return shape


def _target(shape: Sequence[Dim], before: Sequence[Dim]) -> list[int] | None:
    """The target of a Reshape from dims to others: sizes, 0 for dims that stay in place, at most one -1."""
    target: list[int] = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            target.append(dim)
        else:
            same = axis < len(before) and before[axis] == dim and not dims.is_fresh(dim)
            target.append(0 if same else -1)
    return target if target.count(-1) <= 1 and 0 not in shape else None
