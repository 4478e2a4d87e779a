"""The first of steps that are written out, where its state was a constant: what is computed of that alone has been folded into constants, so
that it is not made as the other steps are."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from onnxopt import ir
from onnxopt.loops.steps import Row, Steps, node_form, read_element
from onnxopt.rewrite.driver import discard
from onnxopt.runtime.evaluate import evaluate

if TYPE_CHECKING:
    from onnxopt.passes.base import Context


def initial_states(
    steps: Steps, results: list[tuple[ir.Value, ir.Value]], ctx: Context
) -> dict[Row, ir.Value | np.ndarray] | None:
    """The states before the step that comes before `steps`, if that is one more of them, beginning with states of these values.

    Args:
        steps: steps that are alike.
        results: pairs of a result of the step before and of the first of `steps`, which should be made in the same way.
        ctx: the pass's context.

    Returns:
        For each row of states its value, or zeros where nothing but folded constants was computed of it; None if the step is not alike.
    """
    finder = _Finder(steps, ctx)
    pairs = [*results, *((before[0], after[0]) for before, after in steps.states.items())]
    if not all(finder.match(earlier, later) for earlier, later in pairs):
        return None
    return finder.initial if finder.folded_is_right() else None


class _Finder:
    def __init__(self, steps: Steps, ctx: Context) -> None:
        self.steps, self.ctx = steps, ctx
        self.initial: dict[Row, ir.Value | np.ndarray] = {}
        self._states = {before[0]: before for before in steps.states}
        self._elements = {row[0]: element for row, element in steps.elements.items()}
        self._nodes = {nodes[0] for nodes in steps.nodes}
        self._known: dict[ir.Value, ir.Value] = {}
        self._folded: dict[ir.Value, np.ndarray] = {}

    def match(self, earlier: ir.Value | None, later: ir.Value | None) -> bool:
        """Whether a value of the step before is made as one of the first step is, or may have been folded."""
        if earlier is None or later is None:
            return earlier is later
        known = self._known.setdefault(later, earlier)
        if known is not earlier:
            return _same_constant(known, earlier)
        if later in self._states:
            self.initial[self._states[later]] = earlier
            return True
        if later in self._elements:
            return self._is_element_before(earlier, later)
        node, other = later.producer(), earlier.producer()
        if node not in self._nodes or node is None:
            return earlier is later
        if other is not None and node_form(other) == node_form(node) and earlier.index() == later.index():
            return all(self.match(*pair) for pair in zip(other.inputs, node.inputs, strict=True))
        constant = ir.constant(earlier)
        if constant is not None:
            self._folded[later] = np.asarray(constant.numpy())
        return constant is not None

    def _is_element_before(self, earlier: ir.Value, later: ir.Value) -> bool:
        element, read = self._elements[later], read_element(earlier, self.ctx)
        place = element.first + (1 if element.reverse else -1)
        return read is not None and dataclasses.replace(element, first=place) == dataclasses.replace(
            read, reverse=element.reverse
        )

    def folded_is_right(self) -> bool:
        """Whether constants are what the nodes of a step compute of the initial states, which are zeros where nothing says what they are."""
        for before, after in self.steps.states.items():
            if before not in self.initial:
                shape, dtype = self.ctx.shapes.static_shape(after[0]), self.ctx.shapes.dtype(after[0])
                if shape is None or dtype is None:
                    return False
                self.initial[before] = np.zeros(shape, dtype.numpy())
        if not self._folded:
            return True
        copies: dict[ir.Value, ir.Value] = {}
        nodes: list[ir.Node] = []
        try:
            if not all(self._copy(value, copies, nodes) for value in self._folded):
                return False
            model = self.ctx.model
            wanted = [copies[value] for value in self._folded]
            made = evaluate(nodes, wanted, model.graph.opset_imports, model.ir_version)
        finally:
            discard(nodes)
        return all(
            value in made and _same(made[value], array)
            for value, array in zip(wanted, self._folded.values(), strict=True)
        )

    def _copy(self, value: ir.Value, copies: dict[ir.Value, ir.Value], nodes: list[ir.Node]) -> bool:
        """Copies what makes a value of the first step, with the initial states in the place of its own; not if it needs more."""
        if value in copies:
            return True
        if value in self._states:
            given = self.initial[self._states[value]]
            array = given if isinstance(given, np.ndarray) else ir.constant(given)
            if array is None:
                return False
            state = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(np.asarray(array)))])
            state.outputs[0].name = self.ctx.names.value("state")
            copies[value] = state.outputs[0]
            return True
        if ir.constant(value) is not None:
            copies[value] = value
            return True
        node = value.producer()
        if (
            node is None
            or node not in self._nodes
            or not all(one is None or self._copy(one, copies, nodes) for one in node.inputs)
        ):
            return False
        inputs = [None if one is None else copies[one] for one in node.inputs]
        copy = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs))
        for new, old in zip(copy.outputs, node.outputs, strict=True):
            new.name = self.ctx.names.value("copy")
            copies[old] = new
        nodes.append(copy)
        return True


def _same_constant(a: ir.Value, b: ir.Value) -> bool:
    one, other = ir.constant(a), ir.constant(b)
    return one is not None and other is not None and _same(np.asarray(one), np.asarray(other))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


__all__ = ["initial_states"]
