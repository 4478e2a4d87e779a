"""Models out of protobufs: what `onnx_ir.serde` makes, in a third of its time. What is rare, it reads here too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx
from onnx_ir import (
    Attr,
    AttributeType,
    DataType,
    ExternalTensor,
    Function,
    Graph,
    Model,
    Node,
    Shape,
    SymbolicDim,
    TensorProtocol,
    TensorType,
    Value,
    serde,
)

from onnxopt.errors import ModelError
from onnxopt.ir.nodes import PlainAttr, PlainGraph, PlainValue, make_node
from onnxopt.ir.protos import ProtoTensor, raw_tensor

Resolve = Callable[[ExternalTensor], TensorProtocol]
"""Says what a tensor that keeps its data elsewhere stands for."""

Scope = dict[str, Value]


def deserialize(proto: onnx.ModelProto, resolve: Resolve) -> Model:
    """The model of a protobuf, training information left out.

    Raises:
        ModelError: a value is made twice, or a tensor has not as many elements as it says.
        serde.SerdeError: the protobuf holds what onnx-ir has no place for.
    """
    reader = _Reader(resolve)
    graph = reader.graph(proto.graph)
    graph.opset_imports.update(serde.deserialize_opset_import(proto.opset_import))
    model = Model(
        graph,
        ir_version=proto.ir_version,
        producer_name=_given(proto, "producer_name"),
        producer_version=_given(proto, "producer_version"),
        domain=_given(proto, "domain"),
        model_version=_given(proto, "model_version"),
        doc_string=_given(proto, "doc_string"),
        functions=[reader.function(one) for one in proto.functions],
        metadata_props=serde.deserialize_metadata_props(proto.metadata_props),
        device_configurations=tuple(serde.deserialize_model_configuration(one) for one in proto.configuration),
    )
    if model.ir_version < serde._FUNCTION_VALUE_INFO_SUPPORTED_VERSION:
        serde._deserialized_experimental_value_info_for_function_ir9(model.functions, proto.graph.value_info)
    serde._resolve_node_device_configurations(model)
    return model


def _given(proto: Any, field: str) -> Any:
    return getattr(proto, field) if proto.HasField(field) else None


class _Facts:
    """What a graph declares of its values, by their names."""

    def __init__(self, infos: Iterable[onnx.ValueInfoProto], annotations: Iterable[onnx.TensorAnnotation] = ()) -> None:
        self.infos = {info.name: info for info in infos}
        self.annotations = {one.tensor_name: one for one in annotations}

    def tell(self, value: Value) -> Value:
        info = self.infos.get(value._name)  # type: ignore[arg-type]
        if info is not None:
            _describe(value, info)
        return self.annotate(value)

    def annotate(self, value: Value) -> Value:
        if value._name in self.annotations:
            serde._deserialize_quantization_annotation(self.annotations[value._name], value)
        return value


class _Reader:
    """Follows a graph and its subgraphs with the values that are visible at each point."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._scopes: list[Scope] = []

    def graph(self, proto: onnx.GraphProto) -> Graph:
        facts = _Facts(proto.value_info, proto.quantization_annotation)
        inputs = [facts.annotate(_describe(PlainValue(name=info.name), info)) for info in proto.input]
        scope: Scope = {value._name: value for value in inputs}  # type: ignore[misc]
        initializers = [
            self._initializer(one, tensor, scope, facts)
            for one in proto.initializer
            if (tensor := self._tensor(one)).name
        ]
        nodes = self._nodes(proto.node, scope, facts)
        return PlainGraph(
            inputs,
            [_describe(scope.get(info.name) or PlainValue(name=info.name), info) for info in proto.output],
            nodes=nodes,
            initializers=initializers,
            doc_string=_given(proto, "doc_string"),
            name=_given(proto, "name"),
            metadata_props=serde.deserialize_metadata_props(proto.metadata_props),
        )

    def function(self, proto: onnx.FunctionProto) -> Function:
        inputs = [PlainValue(name=name) for name in proto.input]
        scope: Scope = {value._name: value for value in inputs}  # type: ignore[misc]
        nodes = self._nodes(proto.node, scope, _Facts(proto.value_info))
        graph = PlainGraph(
            inputs,
            [scope[name] for name in proto.output],
            nodes=nodes,
            doc_string=_given(proto, "doc_string"),
            opset_imports=serde.deserialize_opset_import(proto.opset_import),
            name=f"{proto.name}_{proto.domain}__{proto.overload}" if proto.overload else "",
            metadata_props=serde.deserialize_metadata_props(proto.metadata_props),
        )
        attributes = [self._attribute(one) for one in proto.attribute_proto]
        attributes += [Attr(name, AttributeType.UNDEFINED, None) for name in proto.attribute]
        return Function(proto.domain, proto.name, proto.overload, graph=graph, attributes=attributes)

    def _initializer(self, proto: onnx.TensorProto, tensor: TensorProtocol, scope: Scope, facts: _Facts) -> Value:
        value = scope.get(proto.name)
        if value is not None:  # the default of an input
            value._const_value = tensor
            return value
        value = scope[proto.name] = PlainValue(
            name=proto.name,
            type=TensorType(tensor.dtype),
            shape=tensor.shape,  # type: ignore[arg-type]
            const_value=tensor,
        )
        return facts.tell(value)

    def _nodes(self, protos: Sequence[onnx.NodeProto], scope: Scope, facts: _Facts) -> list[Node]:
        """The nodes of one graph, in order. Subgraphs may read what a later node of an outer graph makes."""
        for proto in protos:
            for name in proto.output[:]:  # copies of repeated fields are quicker to follow than the fields
                if name in scope:
                    raise ModelError(f"The value '{name}' is redeclared by the {proto.op_type} node '{proto.name}'.")
                if name:
                    scope[name] = facts.tell(PlainValue(name=name))
        self._scopes.append(scope)
        nodes = [self._node(proto, scope, facts) for proto in protos]
        self._scopes.pop()
        return nodes

    def _node(self, proto: onnx.NodeProto, scope: Scope, facts: _Facts) -> Node:
        node = make_node(
            proto.domain if proto.domain != "ai.onnx" else "",
            proto.op_type,
            [(scope.get(name) or self._outer(name, scope, facts)) if name else None for name in proto.input[:]],
            [self._attribute(one) for one in proto.attribute[:]],
            outputs=[scope[name] if name else PlainValue(name="") for name in proto.output[:]],
            overload=proto.overload,
            name=proto.name,
        )
        if proto.HasField("doc_string"):
            node.doc_string = proto.doc_string
        if proto.metadata_props:
            node._metadata_props = serde.deserialize_metadata_props(proto.metadata_props)
        if proto.device_configurations:
            visible = {name: value for one in self._scopes for name, value in one.items()}
            node.device_configurations = tuple(
                serde.deserialize_node_device_configuration(one, visible) for one in proto.device_configurations
            )
        return node

    def _outer(self, name: str, scope: Scope, facts: _Facts) -> Value:
        """A value of an outer graph; one that nothing makes, which the check of the structure refuses, belongs to this graph."""
        for outer in reversed(self._scopes[:-1]):
            if name in outer:
                return outer[name]
        return scope.setdefault(name, facts.tell(PlainValue(name=name)))

    def _attribute(self, proto: onnx.AttributeProto) -> Attr:
        read = _READ.get(proto.type)
        if read is None or proto.ref_attr_name:
            return serde.deserialize_attribute(proto)
        kind, value = read(self, proto)
        return PlainAttr(proto.name, kind, value, proto.doc_string or None)

    def _tensor(self, proto: onnx.TensorProto) -> TensorProtocol:
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            found = serde.deserialize_tensor(proto)
            assert isinstance(found, ExternalTensor)
            return self._resolve(found)
        if proto.data_type == onnx.TensorProto.STRING:
            return serde.deserialize_tensor(proto)
        plain = raw_tensor(proto)
        if plain is not None:
            return plain
        _check_size(proto)
        return ProtoTensor(proto)


_READ: Mapping[int, Callable[[_Reader, onnx.AttributeProto], tuple[AttributeType, Any]]] = {
    onnx.AttributeProto.INT: lambda _, proto: (AttributeType.INT, proto.i),
    onnx.AttributeProto.FLOAT: lambda _, proto: (AttributeType.FLOAT, proto.f),
    onnx.AttributeProto.INTS: lambda _, proto: (AttributeType.INTS, tuple(proto.ints[:])),
    onnx.AttributeProto.FLOATS: lambda _, proto: (AttributeType.FLOATS, tuple(proto.floats[:])),
    onnx.AttributeProto.TENSOR: lambda reader, proto: (AttributeType.TENSOR, reader._tensor(proto.t)),
    onnx.AttributeProto.GRAPH: lambda reader, proto: (AttributeType.GRAPH, reader.graph(proto.g)),
    onnx.AttributeProto.GRAPHS: lambda reader, proto: (
        AttributeType.GRAPHS,
        tuple(reader.graph(one) for one in proto.graphs),
    ),
}
"""How attributes of the common types are read."""


_DTYPES = {dtype.value: dtype for dtype in DataType}


def _describe(value: Value, info: onnx.ValueInfoProto) -> Value:
    """Let a value have the type, shape and documentation that are declared, and nothing else."""
    kind = info.type
    tensor = kind.tensor_type
    if not kind.HasField("tensor_type") or kind.denotation or any(dim.denotation for dim in tensor.shape.dim):
        return serde.deserialize_value_info_proto(info, value)
    known = tensor.HasField("elem_type")
    value._type = TensorType(_DTYPES.get(tensor.elem_type) or DataType(tensor.elem_type)) if known else None
    value._shape = Shape(map(_dim, tensor.shape.dim), frozen=True) if tensor.HasField("shape") else None
    if info.metadata_props:
        value.metadata_props.update(serde.deserialize_metadata_props(info.metadata_props) or {})
    value.doc_string = _given(info, "doc_string")
    return value


def _dim(proto: onnx.TensorShapeProto.Dimension) -> int | SymbolicDim:
    if proto.HasField("dim_value"):
        return proto.dim_value
    return SymbolicDim(_given(proto, "dim_param"))


# --- sizes of tensors ------------------------------------------------------------------------------------------------
_PER_BYTE = {4: 2, 2: 4}
"""Elements of so many bits that share one number of a typed field; wider ones have a number each."""

_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def _check_size(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == onnx.TensorProto.UNDEFINED:
        raise ModelError(f"The tensor '{tensor.name}' has no element type.")
    count, dtype = math.prod(tensor.dims), DataType(tensor.data_type)
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"The tensor '{tensor.name}' has the impossible shape {list(tensor.dims)}.")
    if tensor.HasField("raw_data") and dtype is not DataType.STRING:
        expected, found, unit = -(-count * dtype.bitwidth // 8), len(tensor.raw_data), "bytes"
    else:
        name = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        if any(len(getattr(tensor, other)) for other in _TYPED_FIELDS if other != name):
            raise ModelError(f"The tensor '{tensor.name}' keeps its elements in a field that is not for {dtype.name}.")
        numbers = getattr(tensor, name)
        per_number = 1 if dtype is DataType.STRING else _PER_BYTE.get(dtype.bitwidth, 1)
        parts = 2 if dtype in (DataType.COMPLEX64, DataType.COMPLEX128) else 1
        expected, found, unit = -(-count * parts // per_number), len(numbers), "elements"
    if expected != found:
        raise ModelError(f"The tensor '{tensor.name}' needs {expected} {unit} and has {found}.")
