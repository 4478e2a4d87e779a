"""A model run layer by layer in two streams: as it is, and with the integers of the layers before.

What corrects a layer has to see its inputs as earlier layers leave them. Each node runs once for each sample and stream, and a value is kept until its last
reader has run, so that memory grows with the samples of a walk but not with the depth of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnxopt import ir
from onnxopt.errors import CalibrationError, first_line
from onnxopt.quant.placement import CONVOLUTIONS
from onnxopt.quant.ranges import LEVELS, Range, scale_and_zero
from onnxopt.quant.samples import Sample
from onnxopt.quant.weights import QuantizedMatrix, unit_of_sums
from onnxopt.rewrite.rules import attribute
from onnxopt.runtime.library import session

if TYPE_CHECKING:
    import onnxruntime

Values = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A layer that is about to run.

    Attributes:
        node: the layer.
        floats: its left operand in the float model, by sample.
        rounded: the same as the integers of earlier layers leave it, and as this layer rounds it, by sample.
        scale: of the rounded operands; None where each row has its own.
    """

    node: ir.Node
    floats: list[np.ndarray]
    rounded: list[np.ndarray]
    scale: np.float32 | None
    _walk: Walk

    def outputs(self) -> list[np.ndarray]:
        """What the layer computes in the float model, by sample."""
        return [self._walk.computed(self.node, values, None, None) for values in self._walk.floats]

    def sums(self, matrix: QuantizedMatrix) -> list[np.ndarray]:
        """What it computes of rounded operands and weights without its constant bias, by sample.

        Integers are multiplied as such where all operands have one scale, as kernels do. In an area of one colour a value that lies between two
        bytes is rounded alike everywhere, so that the last bit of a sum decides about a whole area of the next layer's.
        """
        walk, node, biased = self._walk, self.node, bias_of(self.node) is not None
        # A bias of another kind stays in the results, whose unit is then that of floats.
        scale = self.scale if biased or not has_bias(node) else None
        if scale is None:
            weights, operands = weights_as(node, matrix.floats()), self.rounded
        else:
            weights = weights_as(node, matrix.array.astype(np.float32))
            operands = [np.rint(one / scale) for one in self.rounded]
        pairs = zip(walk.rounded, operands, strict=True)
        found = [walk.computed(node, values, x, weights, biased=not biased) for values, x in pairs]
        if scale is None:
            return found
        unit = along_channels(node, unit_of_sums(scale, matrix.scales), found[0].ndim)
        return [one * unit for one in found]

    def computed(
        self, operands: Sequence[np.ndarray], weights: np.ndarray, which: slice = slice(None)
    ) -> list[np.ndarray]:
        """What it computes of left operands, one for each sample of a part of them, and weights."""
        pairs = zip(self._walk.floats[which], operands, strict=True)
        return [self._walk.computed(self.node, values, x, weights) for values, x in pairs]


class Walk:
    """The pieces of a model between its layers, and the values that are alive in both streams.

    Args:
        model: whose main graph is in topological order.
        layers: nodes with constant weights as their second input, in 8 bits in the second stream.
        everywhere: values that all readers see rounded to 8 bits there.
        ranges: of activations by name; a product's left operand without one is rounded row by row, a convolution's sample by sample.
        samples: of the inputs.
        dynamic: names of layers whose operand has a range of its own for each sample.
        rounded: whether there is a second stream.
    """

    def __init__(
        self,
        model: ir.Model,
        layers: Sequence[ir.Node],
        everywhere: Sequence[ir.Value],
        ranges: Mapping[str, Range],
        samples: Sequence[Sample],
        *,
        dynamic: frozenset[str] = frozenset(),
        rounded: bool = True,
    ) -> None:
        self._model, self._ranges, self._dynamic = model, ranges, dynamic
        self._everywhere = {str(value.name) for value in everywhere if value.name in ranges and value.producer()}
        self._pieces = _pieces(model.graph, set(layers), self._everywhere)
        self._layers = set(layers)
        self.floats: list[Values] = [dict(sample) for sample in samples]
        self.rounded: list[Values] = [dict(sample) for sample in samples if rounded]
        self._runners: dict[ir.Node, _Runner] = {}

    def steps(self, finish: Callable[[Step], tuple[list[np.ndarray], list[np.ndarray]]]) -> Iterator[str]:
        """Run everything; `finish` gives a layer's results of both streams. Yields the layers' names as they are done.

        Raises:
            CalibrationError: onnxruntime cannot run a piece, or a value between pieces is no tensor.
        """
        last = _last_readers(self._model.graph, self._pieces)
        for number, piece in enumerate(self._pieces):
            if piece.is_layer:
                (node,) = piece.nodes
                floats, rounded = finish(self._step(node))
                name = str(node.outputs[0].name)
                for stream, results in ((self.floats, floats), (self.rounded, rounded)):
                    for values, result in zip(stream, results, strict=True):
                        values[name] = result
            else:
                runner = _Runner(self._model, piece)
                for values in (*self.floats, *self.rounded):
                    values.update(runner.run(values))
            for name in piece.makes:
                if name in self._everywhere:
                    for values in self.rounded:
                        values[name] = rounded_to(values[name], self._ranges[name])
            for values in (*self.floats, *self.rounded):
                for name in last.get(number, ()):
                    values.pop(name, None)
            if piece.is_layer:
                yield ir.node_name(piece.nodes[0])

    def _step(self, node: ir.Node) -> Step:
        name = str(node.inputs[0].name)  # type: ignore[union-attr]
        limits = None if ir.node_name(node) in self._dynamic else self._ranges.get(name)
        whole = node.op_type in CONVOLUTIONS
        rounded = [
            rounded_to(x, limits or own_range(x)) if whole or limits else rounded_by_row(x)
            for x in (values[name] for values in self.rounded)
        ]
        self._runners = {node: _Runner(self._model, _Piece([node], [str(node.outputs[0].name)], True))}
        scale = None if limits is None else scale_and_zero(limits)[0]
        return Step(node, [values[name] for values in self.floats], rounded, scale, self)

    def computed(
        self,
        node: ir.Node,
        values: Values,
        x: np.ndarray | None,
        weights: np.ndarray | None,
        *,
        biased: bool = True,
    ) -> np.ndarray:
        """A layer's result, of another left operand and other weights where they are given, with or without its bias."""
        left, right = (str(value.name) for value in node.inputs[:2])  # type: ignore[union-attr]
        given = dict(values)
        if x is not None:
            given[left] = x
        if weights is not None:
            given[right] = weights
        if not biased:
            bias = node.inputs[2]
            given[str(bias.name)] = np.zeros_like(ir.constant(bias).numpy())  # type: ignore[union-attr]
        (result,) = self._runners[node].run(given).values()
        return result


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """Nodes that run in one session, and the names of what they make for others."""

    nodes: list[ir.Node]
    makes: list[str]
    is_layer: bool


def _pieces(graph: ir.Graph, layers: set[ir.Node], everywhere: set[str]) -> list[_Piece]:
    """The nodes of a graph in order, cut around layers and behind values that are rounded; pieces that nothing reads are left out."""
    groups: list[tuple[list[ir.Node], bool]] = [([], False)]
    for node in graph:
        if node in layers:
            groups += [([node], True), ([], False)]
            continue
        groups[-1][0].append(node)
        if any(value.name in everywhere for value in node.outputs):
            groups.append(([], False))
    needed = {str(value.name) for value in graph.outputs}
    pieces: list[_Piece] = []
    for nodes, is_layer in reversed(groups):
        made = [str(value.name) for node in nodes for value in node.outputs if value.name]
        makes = [name for name in made if name in needed]
        if makes:
            pieces.append(_Piece(nodes, makes, is_layer))
            needed |= {str(value.name) for node in nodes for value in ir.inputs_with_captures(node)}
    return pieces[::-1]


def _last_readers(graph: ir.Graph, pieces: Sequence[_Piece]) -> dict[int, list[str]]:
    """The names that nothing reads after a piece, by its number."""
    last: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        for name in piece.makes:
            last[name] = number
        for node in piece.nodes:
            for value in ir.inputs_with_captures(node):
                last[str(value.name)] = number
    found: dict[int, list[str]] = {}
    for name, number in last.items():
        found.setdefault(number, []).append(name)
    return found


EMBEDDED_BYTES = 1 << 16
"""Constants up to this size travel inside a piece; larger ones are fed as arrays, so that mapped weights are not copied."""


class _Runner:
    """A session of a piece, made when the first values show the types of what it reads."""

    def __init__(self, model: ir.Model, piece: _Piece) -> None:
        self._model, self._piece = model, piece
        made = {value for node in piece.nodes for value in node.outputs}
        self._reads = {
            str(value.name): value
            for node in piece.nodes
            for value in ir.inputs_with_captures(node)
            if value not in made and value.name
        }
        self._feeds: Values = {}
        self._session: onnxruntime.InferenceSession | None = None

    def run(self, values: Values) -> Values:
        try:
            if self._session is None:
                self._session = session(self._proto(values), library=False)
            feeds = {one.name: values.get(one.name, self._feeds.get(one.name)) for one in self._session.get_inputs()}
            found = self._session.run(self._piece.makes, feeds)
        except Exception as error:  # onnxruntime's own kinds of errors
            first = self._piece.nodes[0]
            raise CalibrationError(f"'{ir.node_name(first)}' cannot be run by itself: {first_line(error)}") from error
        if not all(isinstance(one, np.ndarray) for one in found):
            raise CalibrationError(f"'{ir.node_name(self._piece.nodes[0])}' makes what is no tensor.")
        return dict(zip(self._piece.makes, found, strict=True))

    def _proto(self, values: Values) -> onnx.ModelProto:
        graph = onnx.GraphProto(name="piece", node=[ir.node_to_proto(node) for node in self._piece.nodes])
        for name, value in self._reads.items():
            tensor = None if name in values else ir.constant(value)
            if tensor is not None and not self._piece.is_layer and tensor.nbytes <= EMBEDDED_BYTES:
                graph.initializer.append(ir.tensor_to_proto(tensor, name))
                continue
            if tensor is not None:
                self._feeds[name] = np.asarray(tensor.numpy())
            array = values[name] if tensor is None else self._feeds[name]
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * array.ndim))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._piece.makes)
        functions = [ir.function_to_proto(one) for one in self._model.functions.values()]
        version = min(max(self._model.ir_version, 8), onnx.IR_VERSION)
        proto = onnx.ModelProto(ir_version=version, graph=graph, functions=functions)
        for domain, opset in self._model.graph.opset_imports.items():
            proto.opset_import.add(domain=domain, version=opset)
        return proto


def rounded_to(array: np.ndarray, limits: Range) -> np.ndarray:
    """What bytes make of floats: rounded to uint8 over a range, and back."""
    scale, zero = scale_and_zero(limits)
    middle = np.float32(zero)
    return np.asarray((np.clip(np.rint(array / scale) + middle, 0, LEVELS) - middle) * scale)


def own_range(array: np.ndarray) -> Range:
    """The range that DynamicQuantizeLinear finds."""
    return float(array.min(initial=0.0)), float(array.max(initial=0.0))


def rounded_by_row(array: np.ndarray) -> np.ndarray:
    """The same with each row over its own range, as QGemm rounds them."""
    low = np.minimum(array.min(axis=-1, keepdims=True, initial=0.0), 0)
    high = np.maximum(array.max(axis=-1, keepdims=True, initial=0.0), 0)
    scale = np.maximum((high - low) / np.float32(LEVELS), np.finfo(np.float32).tiny)
    middle = np.rint(-low / scale)
    return np.asarray((np.clip(np.rint(array / scale) + middle, 0, LEVELS) - middle) * scale)


def relative_error(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """The mean over samples of the error's part of the energy: each sample counts as much as any other."""
    parts = []
    for a, b in zip(wanted, found, strict=True):
        energy = float(np.square(a, dtype=np.float64).sum())
        parts.append(float(np.square(a.astype(np.float64) - b).sum()) / energy if energy else 0.0)
    return float(np.mean(parts))


def weights_as(node: ir.Node, matrix: np.ndarray) -> np.ndarray:
    """A matrix [K, N] of a layer's weights (`layers.matrix_of`) as float32 in the layout of the node."""
    tensor = ir.constant(node.inputs[1])
    assert tensor is not None
    turned = node.op_type in CONVOLUTIONS or bool(attribute(node, "transB", 0))
    array = matrix.T if turned else matrix
    return np.ascontiguousarray(array, np.float32).reshape(tensor.shape.numpy())


def has_bias(node: ir.Node) -> bool:
    return ir.input_at(node, 2) is not None


def bias_of(node: ir.Node) -> np.ndarray | None:
    """The constant bias of a layer that has a number for each channel [N]."""
    tensor = ir.constant(ir.input_at(node, 2))
    weights = ir.constant(node.inputs[1])
    if tensor is None or weights is None or tensor.dtype is not ir.DataType.FLOAT:
        return None
    first = node.op_type in CONVOLUTIONS or bool(attribute(node, "transB", 0))
    channels = weights.shape.numpy()[0 if first else 1]
    fits = tensor.shape.numpy() in ((channels,), (1, channels))
    return np.asarray(tensor.numpy()).reshape(-1) if fits else None


def along_channels(node: ir.Node, vector: np.ndarray, rank: int) -> np.ndarray:
    """Numbers of channels in a shape that spreads over a layer's result."""
    axis = channel_axis(node) % rank
    return vector.reshape([-1 if index == axis else 1 for index in range(rank)])


def channel_axis(node: ir.Node) -> int:
    """Of a layer's result: the axis that its weights have a scale for."""
    return 1 if node.op_type in CONVOLUTIONS else -1
