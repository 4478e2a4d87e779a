"""Moving scales of channels from an activation into the weights that it is multiplied with, where that lowers the error of rounding both.

An activation has one scale for all of its channels, so the largest channel decides how coarse all of them are; weights have one for each of their
results. Dividing a channel by a factor and multiplying its weights by it changes nothing but that.
G. Xiao et al., "SmoothQuant" (2022), for what norms and products make; M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction" (2019), section 4.1, for convolutions. Factors are chosen place by place: by the error that the layers have on calibration samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import Context
from onnxopt.quant.histogram import Histogram
from onnxopt.quant.layers import as_matrix
from onnxopt.quant.outliers import MOST_NOISE
from onnxopt.quant.placement import CONVOLUTIONS
from onnxopt.quant.ranges import estimate
from onnxopt.quant.samples import Sample
from onnxopt.quant.stepwise import (
    Step,
    Walk,
    own_range,
    relative_error,
    rounded_by_row,
    rounded_to,
    weights_as,
)
from onnxopt.quant.weights import quantize_columns
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import attribute

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""The parts of a channel's size that are moved to its weights: 1 makes all channels equally large."""

LEAST_GAIN = 0.9
"""Of the error before, which a place's error has to fall below: what is less may be chance."""

LEAST_GAIN_OF_NODE = 0.6
"""The same where one more Mul has to take the factors."""

LEAST_NOISE_OF_NODE = 4e-4
"""Of the energy of a layer's results, from which on it is worth a Mul: what a dozen layers add up to is noticed."""

LEAST_COLUMNS_OF_NODE = 256
"""Columns of all products that read an activation, from which on a Mul of it takes a small part of their time."""

LARGEST_FACTOR = 1e4
"""Between channels and their geometric mean: beyond, a channel that samples hardly show would be trusted too much."""

HOMOGENEOUS = ("Relu", "LeakyRelu", "Identity")
"""Functions of an element that let a positive factor pass."""

POOLING = ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
"""Those of the elements of a channel."""

NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
"""Their second input scales the last axis, the third one is added to it."""

DEPTH = 8
"""Nodes that are followed back from an activation to constants that can take its factors."""

Rounding = Literal["model", "sample", "row"]
"""What an operand has a range for."""

Edit = tuple[ir.Node, int, np.ndarray]
"""A node's input that becomes another constant."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """An activation, the layers that read it, and the edits that multiply its channels by factors; None where a Mul has to do that, since no
    constants can, or others read the activation too."""

    value: ir.Value
    readers: tuple[ir.Node, ...]
    channels: int
    edits: Callable[[np.ndarray], list[Edit]] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Migrated:
    """A place, its factors, and the error of its readers afterwards as a part of that before."""

    name: str
    factors: np.ndarray
    error: float


def places(ctx: Context, nodes: Sequence[ir.Node], *, insert: bool = False) -> list[Place]:
    """Where factors can go: before some of these layers, where constants that are vectors already take them, so that nothing more is computed.

    Args:
        insert: before products that are large enough, a Mul may take them too.
    """
    layers, found = set(nodes), []
    for value in dict.fromkeys(node.inputs[0] for node in nodes):
        assert value is not None
        users = list(value.uses())
        readers = tuple(dict.fromkeys(user for user, index in users if user in layers and index == 0))
        channels = _channels_of(readers, value, ctx)
        if channels is None:
            continue
        axis = 1 if readers[0].op_type in CONVOLUTIONS else -1
        ones = np.ones(channels, np.float32)
        alone = not value.is_graph_output() and all(user in layers and index == 0 for user, index in users)
        if alone and _absorbed(value, ones, axis, ctx, DEPTH) is not None:
            found.append(Place(value, readers, channels, _Absorb(value, axis, ctx)))
        elif insert and axis == -1 and sum(map(_width, readers)) >= LEAST_COLUMNS_OF_NODE:
            found.append(Place(value, readers, channels, None))
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Absorb:
    value: ir.Value
    axis: int
    ctx: Context

    def __call__(self, factors: np.ndarray) -> list[Edit]:
        edits = _absorbed(self.value, factors, self.axis, self.ctx, DEPTH)
        assert edits is not None  # whether there are any does not depend on the factors
        return edits


def _channels_of(readers: Sequence[ir.Node], value: ir.Value, ctx: Context) -> int | None:
    """How many channels all readers see; None where they differ, or see them along different axes."""
    rank = ctx.shapes.rank(value)
    kinds = {node.op_type in CONVOLUTIONS for node in readers}
    counts = {_depth(node) for node in readers}
    if rank is None or len(kinds) != 1 or len(counts) != 1:
        return None
    return counts.pop()


def _depth(node: ir.Node) -> int:
    shape = ir.constant(node.inputs[1]).shape.numpy()  # type: ignore[union-attr]
    if node.op_type in CONVOLUTIONS:
        return int(shape[1] * attribute(node, "group", 1))
    return int(shape[1] if attribute(node, "transB", 0) else shape[0])


def _width(node: ir.Node) -> int:
    """The columns of a product."""
    shape = ir.constant(node.inputs[1]).shape.numpy()  # type: ignore[union-attr]
    return int(shape[0] if attribute(node, "transB", 0) else shape[1])


def _absorbed(value: ir.Value, factors: np.ndarray, axis: int, ctx: Context, depth: int) -> list[Edit] | None:
    """The edits after which a value's channels are multiplied by positive factors; None where that takes more than other constants."""
    node = value.producer()
    if node is None or node.domain or depth == 0 or node.outputs[0] is not value:
        return None
    kind = node.op_type
    if kind in CONVOLUTIONS or kind in ("MatMul", "Gemm"):
        return _absorbed_by_layer(node, factors, axis)
    if kind in NORMS:
        return _absorbed_by_norm(node, factors, axis, ctx)
    if kind in HOMOGENEOUS or (kind in POOLING and axis == 1 and len(node.outputs) == 1):
        return _absorbed_by_operand(node, 0, factors, axis, ctx, depth)
    if kind in ("Mul", "Div", "Add", "Sub"):
        return _absorbed_by_arithmetic(node, factors, axis, ctx, depth)
    return None


def _absorbed_by_operand(
    node: ir.Node, index: int, factors: np.ndarray, axis: int, ctx: Context, depth: int
) -> list[Edit] | None:
    value = node.inputs[index]
    if value is None or ir.use_count(value) != 1 or value.is_graph_output():
        return None
    if ctx.shapes.rank(value) != ctx.shapes.rank(node.outputs[0]):
        return None
    return _absorbed(value, factors, axis, ctx, depth - 1)


def _floats(value: ir.Value | None) -> np.ndarray | None:
    tensor = ir.constant(value)
    if tensor is None or tensor.dtype is not ir.DataType.FLOAT:
        return None
    return np.asarray(tensor.numpy())


def _absorbed_by_layer(node: ir.Node, factors: np.ndarray, axis: int) -> list[Edit] | None:
    weights = _floats(node.inputs[1])
    if weights is None or (node.op_type in CONVOLUTIONS) != (axis == 1):
        return None
    first = node.op_type in CONVOLUTIONS or bool(attribute(node, "transB", 0))
    if node.op_type not in CONVOLUTIONS and weights.ndim != 2:
        return None
    if weights.shape[0 if first else 1] != len(factors):
        return None
    shaped = factors.reshape(-1, *[1] * (weights.ndim - 1)) if first else factors
    edits: list[Edit] = [(node, 1, weights * shaped)]
    if ir.input_at(node, 2) is not None:
        bias = _floats(node.inputs[2])
        if bias is None or bias.size != len(factors):
            return None
        edits.append((node, 2, bias * factors.reshape(bias.shape)))
    return edits


def _absorbed_by_norm(node: ir.Node, factors: np.ndarray, axis: int, ctx: Context) -> list[Edit] | None:
    rank = ctx.shapes.rank(node.outputs[0])
    last = attribute(node, "axis", -1) in (-1, None if rank is None else rank - 1)
    if axis != -1 or not last or any(ir.use_count(one) for one in node.outputs[1:]):
        return None
    edits: list[Edit] = []
    for index, value in enumerate(node.inputs[1:], 1):
        array = _floats(value)
        if value is not None and (array is None or array.shape != factors.shape):
            return None
        if array is not None:
            edits.append((node, index, array * factors))
    return edits


def _absorbed_by_arithmetic(
    node: ir.Node, factors: np.ndarray, axis: int, ctx: Context, depth: int
) -> list[Edit] | None:
    rank = ctx.shapes.rank(node.outputs[0])
    index = next((one for one in (1, 0) if ir.constant(node.inputs[one]) is not None), None)
    if index is None and node.op_type == "Mul":
        tried = (
            _absorbed_by_operand(node, one, factors, axis, ctx, depth)
            for one in (1, 0)
            if _has_channels(node, one, len(factors), axis, ctx)
        )
        return next((edits for edits in tried if edits is not None), None)
    if index is None or rank is None or (node.op_type == "Div" and index == 0):
        return None
    array = _floats(node.inputs[index])
    shaped = factors.reshape(-1, *[1] * (rank - 2)) if axis == 1 else factors
    if array is None or array.ndim > rank or rank < 2:
        return None
    if array.size == 1 and len(factors) > 1:
        return None  # a number that becomes a vector: activations that kernels compute in registers are written with numbers
    if not _has_channels(node, 1 - index, len(factors), axis, ctx):
        return None
    if node.op_type in ("Mul", "Div"):
        return [(node, index, array * shaped if node.op_type == "Mul" else array / shaped)]
    further = _absorbed_by_operand(node, 1 - index, factors, axis, ctx, depth)
    return None if further is None else [(node, index, array * shaped), *further]


def _has_channels(node: ir.Node, index: int, channels: int, axis: int, ctx: Context) -> bool:
    """Whether an operand is as wide as the result, so that nothing but it spreads over channels."""
    value = node.inputs[index]
    shape = None if value is None else ctx.shapes.shape(value)
    return shape is not None and len(shape) >= 2 and shape[axis] == channels


def times(node: ir.Node, factors: np.ndarray) -> np.ndarray:
    """The weights of a layer for an operand whose channels were divided by factors."""
    weights = _floats(node.inputs[1])
    assert weights is not None
    if node.op_type in CONVOLUTIONS:
        groups = factors.reshape(int(attribute(node, "group", 1)), 1, -1, *[1] * (weights.ndim - 2))
        split = weights.reshape(groups.shape[0], -1, *weights.shape[1:])
        return np.asarray((split * groups).reshape(weights.shape))
    return np.asarray(weights * (factors if attribute(node, "transB", 0) else factors[:, None]))


def migrate(
    model: ir.Model,
    ctx: Context,
    found: Sequence[Place],
    rounding: Callable[[ir.Node], Rounding],
    samples: Sequence[Sample],
    method: str,
) -> list[Migrated]:
    """Move scales at all places where it lowers the error of the layers on samples. The model is changed; what it computes is not.

    Args:
        found: of `places`.
        rounding: what a layer's operand has a range for.
        method: how ranges are chosen, see `ranges.estimate`.

    Returns:
        The places where scales were moved.

    Raises:
        CalibrationError: a part of the model cannot be run by itself.
    """
    readers = [node for place in found for node in place.readers]
    places_of = {node: place for place in found for node in place.readers}
    trials: dict[ir.Value, _Trials] = {}
    broken: set[ir.Value] = set()

    def finish(step: Step) -> tuple[list[np.ndarray], list[np.ndarray]]:
        place, wanted = places_of[step.node], step.outputs()
        if all(np.isfinite(one).all() for one in (*step.floats, *wanted)):
            if place.value not in trials:
                trials[place.value] = _Trials(place, step.floats, rounding(step.node), method)
            trials[place.value].add(step, wanted)
        else:
            broken.add(place.value)
        return wanted, []

    order = {node: number for number, node in enumerate(model.graph)}
    walk = Walk(model, sorted(readers, key=order.__getitem__), [], {}, samples, rounded=False)
    for _ in walk.steps(finish):
        pass
    tried = [trial.best() for value, trial in trials.items() if value not in broken]
    done = [one for one in tried if one is not None]
    by_name = {str(place.value.name): place for place in found}
    for one in done:
        _apply(by_name[one.name], one.factors, ctx)
    return done


class _Trials:
    """The errors of a place's readers with no factors, and with those of each strength.

    Factors are learned from every other sample, and errors are those on the samples between: channels that are large by chance gain nothing there.
    """

    def __init__(self, place: Place, operands: list[np.ndarray], rounding: Rounding, method: str) -> None:
        self._place, self._rounding = place, rounding
        self._axis = 1 if place.readers[0].op_type in CONVOLUTIONS else -1
        shape = [-1 if index == self._axis % operands[0].ndim else 1 for index in range(operands[0].ndim)]
        several = len(operands) > 1
        learned, self._tested = slice(0, None, 1 + several), slice(int(several), None, 1 + several)
        self._sizes = np.stack([_largest(one, self._axis) for one in operands])
        self._weights = np.max([_largest_weights(node) for node in place.readers], axis=0)
        factors = [self._factors(learned, strength) for strength in (None, *STRENGTHS)]
        self.factors, self.errors = factors, np.zeros(len(factors))
        self._shaped = [one.reshape(shape) for one in factors]
        self._limits = (
            [self._range(operands[learned], one, method if self._axis == 1 else "minmax") for one in self._shaped]
            if rounding == "model"
            else []
        )

    def _factors(self, samples: slice, strength: float | None) -> np.ndarray:
        if strength is None:
            return np.ones(self._place.channels, np.float32)
        return _factors(self._sizes[samples].max(axis=0), self._weights, strength)

    @staticmethod
    def _range(operands: list[np.ndarray], factors: np.ndarray, method: str) -> tuple[float, float]:
        histogram = Histogram()
        for one in operands:
            histogram.add(one / factors)
        return estimate(histogram, method)

    def add(self, step: Step, wanted: list[np.ndarray]) -> None:
        """Count the error of a reader, as a part of its results' energy in each sample; one that is worth no Mul is not tried further."""
        for index, factors in enumerate(self.factors):
            quantized, scales = quantize_columns(as_matrix(step.node, times(step.node, factors)))
            weights = weights_as(step.node, quantized * scales)
            operands = [self._rounded(one / self._shaped[index], index) for one in step.floats[self._tested]]
            found = step.computed(operands, weights, self._tested)
            error = relative_error(wanted[self._tested], found)
            self.errors[index] += error
            if index == 0 and self._place.edits is None and error <= LEAST_NOISE_OF_NODE:
                self.errors[1:] += error
                return

    def _rounded(self, array: np.ndarray, index: int) -> np.ndarray:
        if self._rounding == "row":
            return rounded_by_row(array)
        return rounded_to(array, self._limits[index] if self._limits else own_range(array))

    def best(self) -> Migrated | None:
        """The strength with the least error, where it gains enough, and its factors by all samples."""
        index, before = int(np.argmin(self.errors)), self.errors[0]
        if not (np.isfinite(self.errors).all() and self._is_better(self.errors[index], before)):
            return None
        factors = self._factors(slice(None), STRENGTHS[index - 1])
        return Migrated(str(self._place.value.name), factors, float(self.errors[index] / self.errors[0]))

    def _is_better(self, after: float, before: float) -> bool:
        if self._place.edits is not None:
            return after < LEAST_GAIN * before
        readers = len(self._place.readers)
        return before > LEAST_NOISE_OF_NODE * readers and after < min(LEAST_GAIN_OF_NODE * before, MOST_NOISE * readers)


def _largest(array: np.ndarray, axis: int) -> np.ndarray:
    moved = np.moveaxis(array, axis, 0)
    return np.asarray(np.abs(moved.reshape(len(moved), -1)).max(axis=1, initial=0.0))


def _largest_weights(node: ir.Node) -> np.ndarray:
    """By channel of the operand. A channel that a depthwise layer sees alone has a scale of its own and is no coarser for being large."""
    weights = _floats(node.inputs[1])
    assert weights is not None
    if node.op_type not in CONVOLUTIONS:
        return np.asarray(np.abs(weights).max(axis=0 if attribute(node, "transB", 0) else 1))
    group = int(attribute(node, "group", 1))
    split = np.abs(weights).reshape(group, -1, *weights.shape[1:])
    return np.asarray(split.max(axis=(1, *range(3, split.ndim))).reshape(-1))


def _factors(sizes: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """max|x|^a / max|w|^(1-a) of each channel, around 1; channels without anything keep theirs."""
    known = (sizes > 0) & (weights > 0)
    logs = np.zeros(len(sizes))
    logs[known] = strength * np.log(sizes[known]) - (1 - strength) * np.log(weights[known])
    if known.any():
        logs[known] -= logs[known].mean()
    bound = np.log(LARGEST_FACTOR)
    return np.exp(np.clip(logs, -bound, bound)).astype(np.float32)


def _apply(place: Place, factors: np.ndarray, ctx: Context) -> None:
    edits: list[Edit] = [(node, 1, times(node, factors)) for node in place.readers]
    if place.edits is None:
        _insert(place, 1 / factors, ctx)
    else:
        edits += place.edits(1 / factors)
    for node, index, array in edits:
        name = str(node.inputs[index].name)  # type: ignore[union-attr]
        node.replace_input_with(index, ctx.constant(array.astype(np.float32), name, node))


def _insert(place: Place, factors: np.ndarray, ctx: Context) -> None:
    """A Mul between an activation and the layers that read it."""
    value, graph = place.value, ctx.model.graph
    first = min(place.readers, key=list(graph).index)
    builder = Builder(ctx, first)
    scaled = builder.Mul(value, builder.constant(factors.astype(np.float32), f"{value.name}_factors"))
    graph.insert_before(first, builder.nodes)
    ctx.shapes.set(scaled, ctx.shapes.dtype(value), ctx.shapes.shape(value))
    for node in place.readers:
        node.replace_input_with(0, scaled)
