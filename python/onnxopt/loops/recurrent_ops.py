"""The standard's recurrent ops, taken apart into directions and gates."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from onnxopt import ir
from onnxopt.rewrite.rules import Refusal, attribute

if TYPE_CHECKING:
    from onnxopt.passes.base import Context

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""How many products each op computes of its state: input, output, forget and cell; update, reset and hidden; one."""

ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
"""What each direction of the op applies unless it says otherwise."""

KNOWN_ACTIVATIONS = ("Sigmoid", "Tanh", "Relu")


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """A node as its directions and gates see it. `w` is [directions, gates, H, I], `r` [directions, gates, H, H], the biases [directions, gates, H]."""

    node: ir.Node
    hidden: int
    reverse: tuple[bool, ...]
    activations: tuple[tuple[str, ...], ...]
    w: np.ndarray
    r: np.ndarray
    w_bias: np.ndarray
    r_bias: np.ndarray


def form_of(node: ir.Node, ctx: Context) -> Form | Refusal:
    """What a node computes; refused where that is more than a cell of known functions for each sample and step."""
    refusal = _refuse(node, ctx)
    if refusal is not None:
        return refusal
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    direction = direction_of(node)
    if direction not in directions:
        return Refusal("its direction '{}' is unknown", direction, culprit=node)
    reverse, gates = directions[direction], GATES[node.op_type]
    w, r = (_weights(node, index) for index in (1, 2))
    if w is None or r is None or w.ndim != 3 or r.ndim != 3 or w.dtype != np.float32:
        return Refusal("its weights are not constant float32", culprit=node)
    hidden = r.shape[2]
    if r.shape[1] != gates * hidden or w.shape[:2] != r.shape[:2] or r.shape[0] != len(reverse):
        return Refusal("its weights do not fit each other", culprit=node)
    activations = _activations(node, len(reverse))
    if isinstance(activations, Refusal):
        return activations
    bias = _weights(node, 3)
    if bias is None:
        bias = np.zeros((len(reverse), 2 * gates * hidden), np.float32)
    halves = bias.reshape(len(reverse), 2, gates, hidden)
    return Form(
        node,
        hidden,
        reverse,
        activations,
        w.reshape(len(reverse), gates, hidden, w.shape[2]),
        r.reshape(len(reverse), gates, hidden, hidden),
        halves[:, 0],
        halves[:, 1],
    )


def _refuse(node: ir.Node, ctx: Context) -> Refusal | None:
    x = node.inputs[0]
    if x is None or ctx.shapes.dtype(x) is not ir.DataType.FLOAT or ctx.shapes.rank(x) != 3:
        return Refusal("its sequence is not float32 of three dims", culprit=node)
    if ir.input_at(node, 4) is not None or ir.input_at(node, 7) is not None:
        return Refusal("its sequences have lengths of their own, or it has peepholes", culprit=node)
    if ir.input_at(node, 3) is not None and ir.constant(ir.input_at(node, 3)) is None:
        return Refusal("its bias is not constant", culprit=node)
    if attribute(node, "clip") is not None or attribute(node, "input_forget", 0) or attribute(node, "layout", 0):
        return Refusal("it clips, couples gates or has the batch first", culprit=node)
    return None


def direction_of(node: ir.Node) -> str:
    """ "forward", "reverse" or "bidirectional"."""
    return _text(attribute(node, "direction", "forward"))


def _weights(node: ir.Node, index: int) -> np.ndarray | None:
    tensor = ir.constant(ir.input_at(node, index))
    return None if tensor is None else np.asarray(tensor.numpy())


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _activations(node: ir.Node, directions: int) -> tuple[tuple[str, ...], ...] | Refusal:
    default = ACTIVATIONS[node.op_type]
    given = [_text(one) for one in attribute(node, "activations") or default * directions]
    if len(given) != len(default) * directions or any(one not in KNOWN_ACTIVATIONS for one in given):
        return Refusal("its activations are {}", given, culprit=node)
    return tuple(tuple(given[start : start + len(default)]) for start in range(0, len(given), len(default)))
