"""Models into protobufs: what `onnx_ir.serde` writes, in less than half of its time. What is rare, it writes here too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx_ir import (
    Attr,
    AttributeType,
    DataType,
    Function,
    Graph,
    Model,
    Node,
    Tensor,
    TensorProtocol,
    TensorType,
    Value,
    serde,
)

from onnxopt.ir.body import Body, Step, step_name
from onnxopt.ir.mapped import is_external
from onnxopt.ir.protos import ArrayTensor, ProtoTensor


def serialize(model: Model, elsewhere: Mapping[str, bytes] | None = None) -> onnx.ModelProto:
    """The protobuf of a model. Type and shape of an initializer of the main graph are those of its tensor, and not written again.

    Args:
        model: what is written; it is not changed.
        elsewhere: by the names of initializers of the main graph, the fields that stand for their bytes.

    Raises:
        serde.SerdeError: a part of the model cannot be written.
    """
    proto = serde.serialize_model(_shell(model))
    writer = _Writer(model.ir_version)
    writer.graph(proto.graph, model.graph, {} if elsewhere is None else elsewhere)
    for function in model.functions.values():
        writer.function(proto.functions.add(), function)
        if model.ir_version < serde._FUNCTION_VALUE_INFO_SUPPORTED_VERSION:
            serde._serialize_experimental_value_info_for_function_ir9_into(proto.graph, function)
    return proto


def _shell(model: Model) -> Model:
    """The model without its graph and functions."""
    return Model(
        Graph([], [], nodes=[], opset_imports=model.graph.opset_imports),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        metadata_props=model.metadata_props,
        device_configurations=model.device_configurations,
    )


class _Writer:
    """Fills protobufs that were empty."""

    def __init__(self, ir_version: int) -> None:
        self._ir_version = ir_version

    def graph(self, proto: onnx.GraphProto, graph: Graph, elsewhere: Mapping[str, bytes] | None = None) -> None:
        """A subgraph, or with `elsewhere` the main graph."""
        _document(proto, graph)
        if graph.name:
            proto.name = graph.name
        names = set()
        for value in graph.inputs:
            names.add(value.name)
            self._value(proto.input.add(), value)
            if value.name not in graph.initializers.data:
                _annotate(proto, value)
        for value in graph.initializers.data.values():
            _annotate(proto, value)
            if value.name not in names and (elsewhere is None or not _says_nothing_else(value)):
                self._info(proto, value)
            self._initializer(proto, value, elsewhere)
        for node in graph:
            self._node(proto.node.add(), node)
            for value in node.outputs:
                if not value.is_graph_output():
                    _annotate(proto, value)
                    self._info(proto, value)
        for value in graph.outputs:
            self._value(proto.output.add(), value)
            _annotate(proto, value)

    def _initializer(self, proto: onnx.GraphProto, value: Value, elsewhere: Mapping[str, bytes] | None) -> None:
        tensor, name = value.const_value, value.name
        if tensor is None or name is None:
            return
        one = proto.initializer.add()
        if elsewhere is None:
            tensor = _in_memory(tensor)
        elif name in elsewhere:
            _write_header(one, tensor)
            one.name = name
            one.MergeFromString(elsewhere[name])
            return
        tensor.name = name
        _write_tensor(one, tensor)

    def function(self, proto: onnx.FunctionProto, function: Function) -> None:
        if type(function) is Body and (steps := function.steps) is not None:
            self._body(proto, function, steps)
            return
        _document(proto, function)
        proto.domain, proto.name = function.domain, function.name
        if function.overload:
            proto.overload = function.overload
        for domain, version in function.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        describes = self._ir_version >= serde._FUNCTION_VALUE_INFO_SUPPORTED_VERSION
        for attr in function.attributes.values():
            if attr.value is None:
                proto.attribute.append(attr.name)
            else:
                self._attribute(proto.attribute_proto.add(), attr)
        proto.input.extend([value.name for value in function.inputs])
        proto.output.extend([value.name for value in function.outputs])
        for value in function.inputs if describes else ():
            self._info(proto, value)
        for node in function:
            self._node(proto.node.add(), node)
            for value in node.outputs if describes else ():
                self._info(proto, value)

    def _body(self, proto: onnx.FunctionProto, body: Body, steps: Sequence[Step]) -> None:
        """A function of which no nodes were made: nothing is known of its values but their names."""
        proto.domain, proto.name = body.domain, body.name
        if body.overload:
            proto.overload = body.overload
        for domain, version in body.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        proto.input.extend([value._name for value in body.inputs])
        proto.output.extend([value._name for value in body.outputs])
        for number, (op_type, inputs, attributes, outputs) in enumerate(steps):
            node = proto.node.add()
            node.op_type, node.name = op_type, step_name(number)
            node.input.extend(["" if value is None else value._name for value in inputs])
            node.output.extend([value._name for value in outputs])
            for attr in attributes:
                self._attribute(node.attribute.add(), attr)

    def _node(self, proto: onnx.NodeProto, node: Node) -> None:
        if node.device_configurations:
            serde.serialize_node_into(proto, node, model_ir_version=self._ir_version)
            return
        _document(proto, node)
        proto.op_type = node.op_type
        if node.domain:
            proto.domain = node.domain
        if node.name:
            proto.name = node.name
        if node.overload:
            proto.overload = node.overload
        proto.input.extend(["" if value is None else value.name for value in node.inputs])
        outputs = [value.name for value in node.outputs]
        while outputs and not outputs[-1]:
            outputs.pop()
        proto.output.extend(outputs)
        for attr in node.attributes.data.values():
            self._attribute(proto.attribute.add(), attr)

    def _attribute(self, proto: onnx.AttributeProto, attr: Attr) -> None:
        if attr.is_ref():
            serde.serialize_reference_attribute_into(proto, attr)
            return
        kind, value = attr.type, attr.value
        if kind is AttributeType.TENSOR:
            _write_tensor(proto.t, _in_memory(value))
        elif kind is AttributeType.GRAPH:
            self.graph(proto.g, value)
        elif kind is AttributeType.GRAPHS:
            for graph in value:
                self.graph(proto.graphs.add(), graph)
        elif kind in _NUMBER:
            setattr(proto, _NUMBER[kind], value)
        elif kind in _NUMBERS:
            getattr(proto, _NUMBERS[kind]).extend(value)
        else:
            serde.serialize_attribute_into(proto, attr)
            return
        proto.name, proto.type = attr.name, kind  # type: ignore[assignment]
        if attr.doc_string:
            proto.doc_string = attr.doc_string

    def _info(self, proto: onnx.GraphProto | onnx.FunctionProto, value: Value) -> None:
        """Declare what is known of a value, if anything is."""
        if not value.name or (value.type is None and value.shape is None and _says_nothing_else(value)):
            return
        self._value(proto.value_info.add(), value)

    def _value(self, proto: onnx.ValueInfoProto, value: Value) -> None:
        kind, shape = value.type, value.shape
        if type(kind) is not TensorType or kind.denotation or (shape is not None and any(shape._denotations)):
            serde.serialize_value_into(proto, value)
            return
        assert value.name is not None
        proto.name = value.name
        tensor = proto.type.tensor_type
        tensor.elem_type = kind.dtype
        if shape is not None:
            tensor.shape.SetInParent()
            for dim in shape._dims:
                if isinstance(dim, int):
                    tensor.shape.dim.add(dim_value=dim)
                else:
                    tensor.shape.dim.add(dim_param=dim.value)
        if value._metadata_props:
            serde._serialize_metadata_props_into(proto.metadata_props, value._metadata_props)
        if value.doc_string:
            proto.doc_string = value.doc_string


_NUMBER: Mapping[AttributeType, str] = {AttributeType.INT: "i", AttributeType.FLOAT: "f"}
_NUMBERS: Mapping[AttributeType, str] = {AttributeType.INTS: "ints", AttributeType.FLOATS: "floats"}
"""The fields of attributes that are numbers."""

_CHECKED = frozenset({DataType.FLOAT6E2M3, DataType.FLOAT6E3M2})
"""Types of which onnx-ir checks the bytes before it writes them."""


def _in_memory(tensor: TensorProtocol) -> TensorProtocol:
    """The tensor, out of its file: what is no initializer of the main graph is small."""
    if not is_external(tensor):
        return tensor
    return Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)  # type: ignore[arg-type]


def _write_header(proto: onnx.TensorProto, tensor: TensorProtocol) -> None:
    """Everything but name and bytes."""
    proto.data_type = tensor.dtype
    proto.dims.extend(tensor.shape)
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    if tensor.metadata_props:
        serde._serialize_metadata_props_into(proto.metadata_props, tensor.metadata_props)


def _write_tensor(proto: onnx.TensorProto, tensor: TensorProtocol) -> None:
    if type(tensor) is ArrayTensor or type(tensor) is Tensor:
        _write_header(proto, tensor)
        proto.raw_data = tensor.tobytes()
        if tensor.name:
            proto.name = tensor.name
    elif type(tensor) is ProtoTensor and tensor.dtype not in _CHECKED:
        proto.CopyFrom(tensor.raw)
        known = {one.key: one.value for one in proto.metadata_props}
        if tensor.metadata_props != known:
            del proto.metadata_props[:]
            for key, value in {**known, **tensor.metadata_props}.items():
                proto.metadata_props.add(key=key, value=value)
    else:
        serde.serialize_tensor_into(proto, tensor)


_FUNCTIONS = (Function, Body)


def _document(proto: Any, item: Graph | Function | Node) -> None:
    if item.doc_string:
        proto.doc_string = item.doc_string
    metadata = item.metadata_props if type(item) in _FUNCTIONS else item._metadata_props  # type: ignore[union-attr]
    if metadata:
        serde._serialize_metadata_props_into(proto.metadata_props, metadata)


def _says_nothing_else(value: Value) -> bool:
    """Whether a value has neither documentation nor metadata."""
    return not value.doc_string and not value._metadata_props


def _annotate(proto: onnx.GraphProto, value: Value) -> None:
    if value._metadata:
        serde._maybe_add_quantization_annotation(proto, value)
