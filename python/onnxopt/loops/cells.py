"""Recurrent cells: which of the standard's RNN, GRU and LSTM the step of a Scan is, whatever order and form its gates are written in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from onnxopt.loops.expressions import (
    Activation,
    Applied,
    Difference,
    Element,
    Expression,
    Linear,
    Origin,
    State,
    Sum,
    Times,
    either_way,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One of the standard's recurrent ops.

    Attributes:
        op_type: RNN, GRU or LSTM.
        x: what it reads, an element of a sequence or the state of another cell.
        states: which carried values it has: its hidden state, and the cell state of an LSTM.
        w, r: the matrices [gates, I, H] and [gates, H, H] in the standard's order of gates.
        w_bias, r_bias: [gates, H]; the latter is added before a reset that comes after the product.
        peepholes: [3, H] of the input, output and forget gate, or None.
        activations: one for each function that the standard names.
        linear_before_reset: whether a GRU multiplies before it resets.
    """

    op_type: str
    x: Origin | Expression
    states: tuple[State, ...]
    w: np.ndarray
    r: np.ndarray
    w_bias: np.ndarray
    r_bias: np.ndarray
    activations: tuple[str, ...]
    peepholes: np.ndarray | None = None
    linear_before_reset: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Gate:
    """A sum taken apart: x @ w + hidden @ r + bias, and `peephole` times a cell state."""

    x: Origin | Expression
    w: np.ndarray
    r: np.ndarray
    bias: np.ndarray
    peephole: np.ndarray | None = None


def find_cells(states: Sequence[State], after: Sequence[Expression]) -> list[Cell] | None:
    """The cells that carried values belong to, those that another one reads before it; None where one belongs to none.

    Args:
        states: the carried values at the beginning of a step.
        after: what each of them is at its end.
    """
    found: list[Cell] = []
    outputs: list[Expression] = []
    left = {state.index for state in states}
    while left:
        cell = next(_cells(states, after, left, outputs), None)
        if cell is None:
            return None
        found.append(cell)
        outputs.append(after[cell.states[0].index])
        left -= {state.index for state in cell.states}
    return found


def _cells(
    states: Sequence[State], after: Sequence[Expression], left: set[int], outputs: Sequence[Expression]
) -> Iterator[Cell]:
    for index in sorted(left):
        reader = _Reader(states[index], outputs)
        cells = [reader.rnn(after[index]), reader.gru(after[index])]
        cells += [reader.lstm(after[index], states[one], after[one]) for one in sorted(left - {index})]
        yield from (cell for cell in cells if cell is not None)


class _Reader:
    """Reads what a hidden state is at the end of a step; `outputs` are the states of other cells, which it may read."""

    def __init__(self, hidden: State, outputs: Sequence[Expression]) -> None:
        self.hidden, self.outputs = hidden, outputs

    def rnn(self, after: Expression) -> Cell | None:
        """h = f(gate)"""
        if not isinstance(after, Activation) or after.complement:
            return None
        gate = self._gate(after.of)
        return None if gate is None else self._cell("RNN", [gate], (after.name,))

    def gru(self, after: Expression) -> Cell | None:
        """h = (1 - z) n + z h, n = g(gate of r h or with r times a product of h)"""
        for z, new in _mixed(after, self.hidden):
            if isinstance(new, Activation) and not new.complement:
                cell = self._reset_after(z, new) or self._reset_before(z, new)
                if cell is not None:
                    return cell
        return None

    def _reset_after(self, z: Activation, new: Activation) -> Cell | None:
        """n = g(x W + b + r (h R + b))"""
        if len(new.of.gated) != 1:
            return None
        ((reset, inner),) = new.of.gated
        product = _only_product(inner, self.hidden)
        gates = self._gate_of(z, z.name), self._gate_of(reset, z.name)
        hidden = self._gate(dataclasses.replace(new.of, gated=()), recurrent=False)
        if product is None or gates[0] is None or gates[1] is None or hidden is None:
            return None
        last = dataclasses.replace(hidden, r=product)
        return self._cell(
            "GRU", [gates[0], gates[1], last], (z.name, new.name), inner_bias=inner.bias, linear_before_reset=True
        )

    def _reset_before(self, z: Activation, new: Activation) -> Cell | None:
        """n = g(x W + (r h) R + b)"""
        for source, _ in new.of.products:
            pairs = either_way(source.left, source.right) if isinstance(source, Times) else ()
            for reset, other in pairs:
                if not isinstance(reset, Activation) or other is not self.hidden:
                    continue
                gates = self._gate_of(z, z.name), self._gate_of(reset, z.name), self._gate(new.of, hidden=source)
                if None not in gates:
                    return self._cell("GRU", [gate for gate in gates if gate is not None], (z.name, new.name))
        return None

    def lstm(self, after: Expression, state: State, state_after: Expression) -> Cell | None:
        """c = f c + i g, h = o l(c)"""
        if not isinstance(after, Times) or not isinstance(state_after, Sum):
            return None
        for output, last in either_way(after.left, after.right):
            if not isinstance(output, Activation) or not isinstance(last, Applied) or last.of is not state_after:
                continue
            for kept, taken in either_way(state_after.left, state_after.right):
                gates = _lstm_gates(kept, taken, state)
                for forget, first, cell in gates:
                    found = self._lstm((first, output, forget), cell, last.name, state, state_after)
                    if found is not None:
                        return found
        return None

    def _lstm(
        self, gates: tuple[Activation, ...], cell: Activation, last: str, state: State, after: Expression
    ) -> Cell | None:
        name = gates[0].name
        peeped = (state, after, state)
        made = [self._gate_of(gate, name, peeped=one) for gate, one in zip(gates, peeped, strict=True)]
        made.append(None if cell.complement else self._gate(cell.of))
        known = [gate for gate in made if gate is not None]
        if len(known) != len(made):
            return None
        return self._cell("LSTM", known, (name, cell.name, last), states=(self.hidden, state))

    def _gate_of(self, one: Activation, name: str, *, peeped: Expression | None = None) -> _Gate | None:
        """The gate under a function of that name. One minus a sigmoid is the sigmoid of the negated sum."""
        if one.name != name or (one.complement and name != "Sigmoid"):
            return None
        return self._gate(one.of.negated() if one.complement else one.of, peeped=peeped)

    def _gate(
        self,
        one: Linear,
        *,
        hidden: Expression | None = None,
        peeped: Expression | None = None,
        recurrent: bool = True,
    ) -> _Gate | None:
        """A sum taken apart; None where it has other terms than one product of x, one of `hidden`, and `peeped` times a vector."""
        hidden = hidden or self.hidden
        w = [(self._readable(x), matrix) for x, matrix in one.products if x is not hidden]
        r = [matrix for x, matrix in one.products if x is hidden]
        if one.gated or len(w) != 1 or len(r) != int(recurrent) or len(one.scaled) > 1:
            return None
        ((x, matrix),) = w
        if x is None or any(value is not peeped for value, _ in one.scaled):
            return None
        bias = np.zeros(one.width, np.float32) if one.bias is None else one.bias
        peephole = one.scaled[0][1] if one.scaled else None
        return _Gate(x, matrix, r[0] if r else np.zeros((0, one.width), np.float32), bias, peephole)

    def _readable(self, x: Expression) -> Origin | Expression | None:
        if isinstance(x, Element):
            return x.origin
        return x if any(x is one for one in self.outputs) else None

    def _cell(
        self,
        op_type: str,
        gates: Sequence[_Gate],
        activations: tuple[str, ...],
        *,
        states: tuple[State, ...] | None = None,
        inner_bias: np.ndarray | None = None,
        linear_before_reset: bool = False,
    ) -> Cell | None:
        """The cell of these gates, where they read the same and are of one size."""
        width = gates[0].r.shape[1]
        if any(gate.x != gates[0].x or gate.w.shape != gates[0].w.shape for gate in gates):
            return None
        if any(gate.r.shape != (width, width) or gate.w.shape[1] != width for gate in gates):
            return None
        zeros = np.zeros(width, np.float32)
        r_bias = [zeros] * len(gates)
        if inner_bias is not None:
            r_bias[-1] = inner_bias
        peepholes = None
        if any(gate.peephole is not None for gate in gates):
            peepholes = np.stack([zeros if gate.peephole is None else gate.peephole for gate in gates[:3]])
        return Cell(
            op_type,
            gates[0].x,
            states or (self.hidden,),
            np.stack([gate.w for gate in gates]),
            np.stack([gate.r for gate in gates]),
            np.stack([gate.bias for gate in gates]),
            np.stack(r_bias),
            activations,
            peepholes,
            linear_before_reset,
        )


def _only_product(one: Linear, hidden: Expression) -> np.ndarray | None:
    """The matrix of a sum that is one product of `hidden`, and a bias perhaps."""
    if len(one.products) != 1 or one.scaled or one.gated or one.products[0][0] is not hidden:
        return None
    return one.products[0][1]


def _lstm_gates(
    kept: Expression, taken: Expression, state: State
) -> Iterator[tuple[Activation, Activation, Activation]]:
    """Forget, input and cell gate of f c and i g, where these are products of that kind."""
    if not isinstance(kept, Times) or not isinstance(taken, Times):
        return
    for forget, carried in either_way(kept.left, kept.right):
        if carried is not state or not isinstance(forget, Activation):
            continue
        for first, cell in either_way(taken.left, taken.right):
            if isinstance(first, Activation) and isinstance(cell, Activation):
                yield forget, first, cell


def _mixed(one: Expression, kept: Expression) -> Iterator[tuple[Activation, Expression]]:
    """Gate z and value n of z kept + (1 - z) n, also written as n + z (kept - n) or kept + z (n - kept)."""
    if not isinstance(one, Sum):
        return
    for left, right in either_way(one.left, one.right):
        if isinstance(left, Times) and isinstance(right, Times):
            for z, same in either_way(left.left, left.right):
                for rest, new in either_way(right.left, right.right):
                    if same is kept and isinstance(z, Activation) and _sum_to_one(z, rest):
                        yield z, new
        for z, difference in either_way(right.left, right.right) if isinstance(right, Times) else ():
            if not isinstance(z, Activation) or not isinstance(difference, Difference):
                continue
            if difference.left is kept and difference.right is left:
                yield z, left
            if left is kept and difference.right is kept:
                yield dataclasses.replace(z, complement=not z.complement), difference.left


def _sum_to_one(z: Activation, rest: Expression) -> bool:
    return (
        isinstance(rest, Activation) and rest.of is z.of and rest.name == z.name and rest.complement is not z.complement
    )
