"""The border to onnx-graphsurgeon: models to and from `gs.Graph`, and users' functions over it, without its losses.

A `gs.Graph` has no place for metadata, doc strings of nodes, overloads, quantization annotations, overridable initializers, lists of
subgraphs and types other than tensors. What a user's function leaves alone is therefore taken from the model as it was, and
what it changes gets back what onnx-graphsurgeon dropped. Weights are not copied on either way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx_ir import DataType, ExternalTensor, Model, TensorProtocol, serde

from onnxopt.errors import ModelError, PassError, RuntimeMissingError
from onnxopt.ir import wire
from onnxopt.ir.load import from_proto
from onnxopt.ir.protos import tensor_to_proto
from onnxopt.ir.save import skeleton

_NATIVE_KINDS = "fiubc"
"""Kinds of numpy's own dtypes; onnx-graphsurgeon writes wrong bytes for others (4-bit integers are not packed)."""

HELD = "onnxopt:held"
"""The `location` by which an exported protobuf says that a tensor is an object of this process; its offset is the number."""


def from_graphsurgeon(graph: Any) -> Model:
    """A model of a `gs.Graph`, which is not changed. Constants share their arrays with it.

    Raises:
        ModelError: the graph cannot be exported, or is malformed.
    """
    weights = _Weights()
    return from_proto(_export(graph, weights), weights.resolve)


def to_graphsurgeon(model: Model) -> Any:
    """A `gs.Graph` of a model. Its constants read their values when they are asked for.

    Raises:
        ModelError: onnx-graphsurgeon cannot hold the model.
        RuntimeMissingError: onnx-graphsurgeon is not installed.
    """
    return _import(*skeleton(model))


def apply_graphsurgeon(model: Model, function: Callable[[Any], Any]) -> bool:
    """Run a function over the model's `gs.Graph` and take over what it changed.

    Args:
        model: changed in place.
        function: changes the graph that it is given, or returns another. Model-local functions with an overload, which
            onnx-graphsurgeon confuses, are not shown to it and stay as they are.

    Returns:
        Whether the function changed anything.

    Raises:
        PassError: the function fails, or returns something else than a graph.
        ModelError: onnx-graphsurgeon cannot hold the model, or the changed graph is malformed.
    """
    surgeon = _surgeon()
    name = getattr(function, "__name__", "function")
    proto, large = skeleton(model)
    hidden = [one for one in proto.functions if one.overload]
    _keep(proto.functions, lambda one: not one.overload)
    # onnx-graphsurgeon names tensors inside the protobuf that it was given.
    graph, weights = _import(onnx.ModelProto.FromString(proto.SerializeToString()), large), _Weights()
    outer = {one.name for one in proto.graph.initializer}
    before = _export(graph, weights, outer)
    memory = _Memory(graph, proto, before)
    try:
        result = function(graph)
    except Exception as error:
        raise PassError(f"The function '{name}' failed on the graph: {type(error).__name__}: {error}") from error
    result = graph if result is None else result
    if not isinstance(result, surgeon.Graph):
        raise PassError(f"The function '{name}' returned {type(result).__name__}, not an onnx_graphsurgeon.Graph.")
    after = _export(result, weights, outer)
    if after == before:
        return False
    memory.restore(result, after)
    after.functions.extend(hidden)
    _replace(model, from_proto(after, weights.resolve))
    return True


def _replace(model: Model, changed: Model) -> None:
    model.graph = changed.graph
    model.ir_version = changed.ir_version
    model.functions.clear()
    model.functions.update(changed.functions)


# --- weights that stay where they are --------------------------------------------------------------------------------
class _Weights:
    """Tensors that protobufs refer to by number: the same number whenever the same object holds the values."""

    def __init__(self) -> None:
        self.owners: list[Any] = []
        self.tensors: list[TensorProtocol] = []
        self.numbers: dict[int, int] = {}

    def stand_in(self, values: Any, dtype: Any) -> onnx.TensorProto | None:
        """A protobuf without bytes for the values of a constant; None for values that may as well be copied."""
        values = self._unread(values)
        number = self.numbers.get(id(values))
        if number is None:
            tensor = _as_tensor(values, dtype)
            if tensor is None:
                return None
            number = self.numbers[id(values)] = len(self.owners)
            self.owners.append(values)
            self.tensors.append(tensor)
        tensor = self.tensors[number]
        proto = onnx.TensorProto(data_type=tensor.dtype.value, dims=tensor.shape.numpy())
        proto.MergeFromString(wire.external_entries(HELD, number, tensor.nbytes))
        return proto

    def _unread(self, values: Any) -> Any:
        """What an array was read from, if it still holds the same bytes: reading a constant does not change a graph."""
        for owner in self.owners:
            if isinstance(owner, _held_values()) and owner.loaded is values:
                return owner if values.tobytes() == owner.held.numpy().tobytes() else values
        return values

    def resolve(self, tensor: ExternalTensor) -> TensorProtocol:
        """The tensor that a protobuf's reference stands for."""
        if tensor.location != HELD:
            raise ModelError(
                f"The tensor '{tensor.name}' keeps its data in '{tensor.location}': load the model from its file."
            )
        held = self.tensors[tensor.offset or 0]
        held.name = tensor.name
        return held


def _as_tensor(values: Any, dtype: Any) -> TensorProtocol | None:
    if isinstance(values, _held_values()):
        held: TensorProtocol = values.held
        return held
    if isinstance(values, np.ndarray) and dtype == values.dtype:
        if values.dtype.kind in "OUS" or (values.nbytes < wire.LARGE_BYTES and values.dtype.kind in _NATIVE_KINDS):
            return None
        return onnx_ir.Tensor(values, dtype=DataType.from_numpy(values.dtype))
    return None


@contextlib.contextmanager
def _without_weights(graph: Any, weights: _Weights) -> Iterator[None]:
    """While inside, large constants of the graph stand for no bytes."""
    restore: list[tuple[Any, Any]] = []
    try:
        for constant in _constants(graph):
            values = constant._values
            proto = weights.stand_in(values, constant.export_dtype)
            if proto is not None:
                restore.append((constant, values))
                constant._values = _lazy_values()(proto)
        yield
    finally:
        for constant, values in restore:
            constant._values = values


def _constants(graph: Any) -> Iterator[Any]:
    constant = _surgeon().Constant
    roots = [graph, *graph.functions]
    for one in [*roots, *(inner for root in roots for inner in root.subgraphs(recursive=True))]:
        yield from (tensor for tensor in one.tensors().values() if isinstance(tensor, constant))


def _surgeon() -> Any:
    try:
        return importlib.import_module("onnx_graphsurgeon")
    except ImportError as error:
        raise RuntimeMissingError("onnx-graphsurgeon is not installed: pip install onnx-graphsurgeon.") from error


def _lazy_values() -> Any:
    _surgeon()
    return importlib.import_module("onnx_graphsurgeon.ir.tensor").LazyValues


@functools.cache
def _held_values() -> type[Any]:
    """Lazily read values whose tensor is one of ours. A function, because its base class is imported when it is needed."""

    class HeldValues(_lazy_values()):  # type: ignore[misc]
        def __init__(self, header: onnx.TensorProto, held: TensorProtocol) -> None:
            self.held = held
            self.loaded: np.ndarray | None = None
            super().__init__(header)

        @property
        def tensor(self) -> onnx.TensorProto:
            return tensor_to_proto(self.held, self.header.name)

        @tensor.setter
        def tensor(self, header: onnx.TensorProto) -> None:
            self.header = header

        def load(self) -> np.ndarray:
            self.loaded = np.array(self.held.numpy())
            return self.loaded

    return HeldValues


# --- onnx-graphsurgeon's own importer and exporter -------------------------------------------------------------------
def _import(proto: onnx.ModelProto, large: Mapping[str, TensorProtocol]) -> Any:
    surgeon = _surgeon()
    held = dict(large)
    for initializer in proto.graph.initializer:
        if initializer.name not in held and initializer.data_type != onnx.TensorProto.STRING:
            held[initializer.name] = serde.deserialize_tensor(initializer)
    try:
        graph = surgeon.import_onnx(proto)
        for constant in _constants(graph):
            if constant.name in held and isinstance(constant._values, _lazy_values()):
                constant._values = _held_values()(constant._values.tensor, held[constant.name])
                constant.data_location = None
    except Exception as error:
        raise ModelError(f"onnx-graphsurgeon cannot hold the model: {type(error).__name__}: {error}") from error
    return graph


def _export(graph: Any, weights: _Weights, outer: Collection[str] = ()) -> onnx.ModelProto:
    """A protobuf of the graph; `outer` names the initializers that belong into the main graph wherever they are used."""
    try:
        with _without_weights(graph, weights):
            proto: onnx.ModelProto = _surgeon().export_onnx(graph)
    except Exception as error:
        raise ModelError(f"onnx-graphsurgeon cannot export the graph: {type(error).__name__}: {error}") from error
    for inner in _subgraphs(proto.graph):
        _move_outer_initializers(inner, proto.graph, outer)
    return proto


def _subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
                yield attribute.g
                yield from _subgraphs(attribute.g)


def _move_outer_initializers(graph: onnx.GraphProto, root: onnx.GraphProto, outer: Collection[str]) -> None:
    """The exporter puts initializers of the main graph into every subgraph that uses them, and only there."""
    present = {one.name for one in root.initializer}
    for one in graph.initializer:
        if one.name in outer and one.name not in present:
            root.initializer.append(one)
    _keep(graph.initializer, lambda one: one.name not in present and one.name not in outer)


def _keep(messages: Any, wanted: Callable[[Any], bool]) -> None:
    for index in reversed(range(len(messages))):
        if not wanted(messages[index]):
            del messages[index]


# --- what onnx-graphsurgeon drops ------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, slots=True)
class _Remembered:
    """Something of the graph, the protobuf that it was imported from, and what it was exported as before any change."""

    object: Any
    original: Any
    exported: Any


class _Memory:
    """A model as it was before a function over its `gs.Graph` ran."""

    def __init__(self, graph: Any, original: onnx.ModelProto, exported: onnx.ModelProto) -> None:
        self.root = _Remembered(graph, original.graph, exported.graph)
        self.graphs: dict[int, _Remembered] = {}
        self.nodes: dict[int, _Remembered] = {}
        self.by_outputs: dict[tuple[str, ...], _Remembered] = {}
        self.functions = {
            id(one): _Remembered(one, before, after)
            for one, before, after in zip(graph.functions, original.functions, exported.functions, strict=True)
        }
        self._remember_graph(self.root)
        for function in self.functions.values():
            self._remember_nodes(function)

    def _remember_graph(self, graph: _Remembered) -> None:
        self.graphs[id(graph.object)] = graph
        self._remember_nodes(graph)

    def _remember_nodes(self, graph: _Remembered) -> None:
        # A function's constants are exported as nodes in front of its own.
        exported = graph.exported.node[len(graph.exported.node) - len(graph.object.nodes) :]
        for node, before, after in zip(graph.object.nodes, graph.original.node, exported, strict=True):
            one = self.nodes[id(node)] = _Remembered(node, before, after)
            self.by_outputs[_outputs(node)] = one
            originals = {attribute.name: attribute.g for attribute in before.attribute}
            for attribute in after.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
                    self._remember_graph(
                        _Remembered(node.attrs[attribute.name], originals[attribute.name], attribute.g)
                    )

    def restore(self, graph: Any, proto: onnx.ModelProto) -> None:
        """Put back into the exported `proto` of the changed `graph` what the exporter dropped."""
        self._restore_graph(self.root, graph, proto.graph)
        for function, exported in zip(graph.functions, proto.functions, strict=True):
            known = self.functions.get(id(function))
            if known is None:
                continue
            if exported == known.exported:
                exported.CopyFrom(known.original)
                continue
            exported.metadata_props.extend(known.original.metadata_props)
            self._restore_nodes(function, exported)

    def _restore_graph(self, known: _Remembered | None, graph: Any, proto: onnx.GraphProto) -> None:
        self._restore_nodes(graph, proto)
        if known is None:
            return
        original, exported = known.original, known.exported
        proto.metadata_props.extend(original.metadata_props)
        for field in ("input", "output", "value_info"):
            _restore_values(getattr(original, field), getattr(exported, field), getattr(proto, field))
        _restore_defaults(original, proto)
        names = {name for node in proto.node for name in [*node.input, *node.output]}
        constants = {one.name for one in proto.initializer}
        known_infos = {one.name for one in [*proto.value_info, *proto.input, *proto.output]}
        exported_infos = {one.name for one in exported.value_info}
        proto.value_info.extend(
            one
            for one in original.value_info
            if one.name in names and one.name not in exported_infos | known_infos | constants
        )
        proto.quantization_annotation.extend(
            one
            for one in original.quantization_annotation
            if {one.tensor_name, *(entry.value for entry in one.quant_parameter_tensor_names)} <= names | constants
        )

    def _restore_nodes(self, graph: Any, proto: Any) -> None:
        exported = list(proto.node)[len(proto.node) - len(graph.nodes) :]
        for node, changed in zip(graph.nodes, exported, strict=True):
            known = self.nodes.get(id(node)) or self.by_outputs.get(_outputs(node))
            if known is None:
                self._restore_subgraphs(node, changed)
            elif changed == known.exported:
                changed.CopyFrom(known.original)
            else:
                self._restore_subgraphs(node, changed)
                _restore_node(known, changed)

    def _restore_subgraphs(self, node: Any, proto: onnx.NodeProto) -> None:
        for attribute in proto.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
                graph = node.attrs[attribute.name]
                self._restore_graph(self.graphs.get(id(graph)), graph, attribute.g)


def _outputs(node: Any) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in node.outputs)


def _restore_node(known: _Remembered, changed: onnx.NodeProto) -> None:
    original, exported = known.original, known.exported
    changed.doc_string = original.doc_string
    changed.metadata_props.extend(original.metadata_props)
    if (changed.op_type, changed.domain) != (exported.op_type, exported.domain):
        return
    changed.overload = original.overload
    present = {attribute.name for attribute in [*exported.attribute, *changed.attribute]}
    changed.attribute.extend(one for one in original.attribute if one.name not in present)


def _restore_values(
    original: Iterable[onnx.ValueInfoProto],
    exported: Iterable[onnx.ValueInfoProto],
    changed: Iterable[onnx.ValueInfoProto],
) -> None:
    """Values that are exported as they were before are as they were in the model."""
    originals = {one.name: one for one in original}
    before = {one.name: one for one in exported}
    for one in changed:
        if one == before.get(one.name) and one.name in originals:
            one.CopyFrom(originals[one.name])


def _restore_defaults(original: onnx.GraphProto, proto: onnx.GraphProto) -> None:
    """Initializers that were inputs as well, which a caller may override, become inputs again, in the original order."""
    constants = {one.name for one in proto.initializer}
    inputs = {one.name: one for one in proto.input}
    inputs |= {one.name: one for one in original.input if one.name in constants and one.name not in inputs}
    order = {one.name: index for index, one in enumerate(original.input)}
    copies = [onnx.ValueInfoProto.FromString(one.SerializeToString()) for one in inputs.values()]
    del proto.input[:]
    kept_order = [one.name for one in copies if one.name in order]
    if any(one.name in constants for one in copies) and kept_order != sorted(kept_order, key=order.__getitem__):
        copies.sort(key=lambda one: order.get(one.name, len(order)))
    proto.input.extend(copies)
