"""Small conversions between onnx-ir and protobuf, and what a node reads."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx_ir import Attr, AttributeType, DataType, Function, Graph, Node, Shape, TensorProtocol, Value, serde
from onnx_ir.convenience import convert_attribute

from onnxopt.ir.nodes import PlainAttr

_GRAPH_TYPES = frozenset({AttributeType.GRAPH, AttributeType.GRAPHS})


_LITTLE_ENDIAN = {
    dtype: dtype.numpy().newbyteorder("<")
    for dtype in (
        DataType.FLOAT,
        DataType.DOUBLE,
        DataType.FLOAT16,
        DataType.INT64,
        DataType.INT32,
        DataType.INT8,
        DataType.UINT8,
        DataType.BOOL,
    )
}
"""The types of nearly all constants, as their bytes lie in a protobuf."""


_DTYPES = {dtype.value: dtype for dtype in DataType}


@functools.lru_cache(maxsize=1024)
def _frozen(dims: tuple[int, ...]) -> Shape:
    """A shape that tensors share: most constants of a model have the same few."""
    return Shape(dims, frozen=True)


_PLAIN_FIELDS = {
    DataType.FLOAT: "float_data",
    DataType.DOUBLE: "double_data",
    DataType.INT64: "int64_data",
    DataType.INT32: "int32_data",
}
"""Where elements of these types lie one by one, if not as bytes."""


class ProtoTensor(serde.TensorProtoTensor):
    """A tensor that stays in its protobuf, whose type, shape and elements are read once: every pass asks for them, of every constant."""

    __slots__ = ("_array", "dtype", "nbytes", "shape", "size")
    dtype: DataType
    nbytes: int
    shape: Shape
    size: int

    def __init__(self, proto: onnx.TensorProto) -> None:
        super().__init__(proto)
        dims = tuple(proto.dims[:])
        self.dtype = _DTYPES[proto.data_type]
        self.shape = _frozen(dims)
        self.size = math.prod(dims)
        self.nbytes = math.ceil(self.dtype.itemsize * self.size)
        self._array: np.ndarray | None = None

    def numpy(self) -> np.ndarray:
        if self._array is None:
            self._array = self._read()
            self._array.flags.writeable = False
        return self._array

    def _read(self) -> np.ndarray:
        proto, kind = self.raw, _LITTLE_ENDIAN.get(self.dtype)
        if kind is not None and proto.HasField("raw_data"):
            return np.frombuffer(proto.raw_data, kind).reshape(proto.dims)
        field = _PLAIN_FIELDS.get(self.dtype)
        return super().numpy() if field is None else np.array(getattr(proto, field)[:], kind).reshape(proto.dims)

    def tobytes(self) -> bytes:
        if self.dtype not in _LITTLE_ENDIAN:
            return super().tobytes()
        return bytes(self.raw.raw_data) if self.raw.HasField("raw_data") else self.numpy().tobytes()


class ArrayTensor(onnx_ir.Tensor[np.ndarray]):
    """A tensor of an array of a type of numpy's own, whose sizes are computed once."""

    __slots__ = ("nbytes", "size")
    dtype = onnx_ir.Tensor._dtype  # type: ignore[assignment, misc]
    shape = onnx_ir.Tensor._shape  # type: ignore[assignment, misc]
    nbytes: int  # type: ignore[assignment]
    size: int  # type: ignore[assignment]

    def __init__(self, array: np.ndarray, dtype: DataType, name: str | None = None) -> None:
        self._raw = array
        self._dtype = dtype
        self._shape = _frozen(array.shape)
        self.size, self.nbytes = array.size, array.nbytes
        self._name = name
        self._metadata = self._metadata_props = self._doc_string = None

    def tobytes(self) -> bytes:
        return self._raw.tobytes() if sys.byteorder == "little" else super().tobytes()

    def view(self) -> memoryview:
        """The bytes, without a copy where they lie as they are written."""
        if sys.byteorder != "little" or not self._raw.flags.c_contiguous:
            return memoryview(self.tobytes())
        return self._raw.reshape(-1).view(np.uint8).data


_ARRAY_TYPES = {
    dtype.numpy(): dtype
    for dtype in (*_LITTLE_ENDIAN, DataType.INT16, DataType.UINT16, DataType.UINT32, DataType.UINT64)
}


def array_tensor(array: np.ndarray, name: str | None = None) -> TensorProtocol:
    """The tensor of an array, of the type that the array has."""
    dtype = _ARRAY_TYPES.get(array.dtype)
    return onnx_ir.Tensor(array, name=name) if dtype is None else ArrayTensor(array, dtype, name)


def raw_tensor(proto: onnx.TensorProto) -> ArrayTensor | None:
    """The tensor of a small protobuf that holds as many bytes of a common type as its shape says, and nothing but those and a name;
    None for others."""
    known = _RAW.get(proto.data_type)
    if known is None or proto.metadata_props or any(map(proto.HasField, _FURTHER)):
        return None
    kind, dtype = known
    dims, name = tuple(proto.dims[:]), proto.name
    size = math.prod(dims) * kind.itemsize
    if not 0 < size <= COPIED_BYTES or min(dims, default=1) < 0 or (not name and proto.HasField("name")):
        return None
    raw = proto.raw_data
    return ArrayTensor(np.frombuffer(raw, kind).reshape(dims), dtype, name) if len(raw) == size else None


COPIED_BYTES = 4096
"""Larger tensors stay in their protobuf: reading the field copies it."""

_RAW = {dtype.value: (kind, dtype) for dtype, kind in _LITTLE_ENDIAN.items()} if sys.byteorder == "little" else {}
_FURTHER = ("doc_string", "data_location", "segment")


_PLAIN = {int: AttributeType.INT, float: AttributeType.FLOAT, str: AttributeType.STRING}
_LISTS = {int: AttributeType.INTS, float: AttributeType.FLOATS, str: AttributeType.STRINGS}


def make_attribute(name: str, value: Any) -> Attr:
    """An attribute of a Python value; plain ones and lists of them without the checks that tensors and graphs need. An attribute is
    one already."""
    own = type(value)
    if own is PlainAttr or own is Attr:
        return value  # type: ignore[no-any-return]
    kind = _PLAIN.get(own)
    if kind is not None:
        return PlainAttr(name, kind, value)
    if isinstance(value, (list, tuple)) and value:
        kind = _LISTS.get(type(value[0]))
        if kind is not None and len(set(map(type, value))) == 1:
            return PlainAttr(name, kind, tuple(value))
    return convert_attribute(name, value)


def node_to_proto(node: Node) -> onnx.NodeProto:
    return serde.serialize_node(node)


def function_to_proto(function: Function) -> onnx.FunctionProto:
    return serde.serialize_function(function)


def tensor_to_proto(tensor: TensorProtocol, name: str) -> onnx.TensorProto:
    """A protobuf that holds the tensor's bytes, wherever they were, under `name`."""
    if tensor.dtype == DataType.STRING:
        proto = serde.serialize_tensor(tensor)
        proto.name = name
        return proto
    return onnx.TensorProto(
        name=name, data_type=tensor.dtype.value, dims=list(tensor.shape.numpy()), raw_data=tensor.tobytes()
    )


def tensor_of(array: np.ndarray, dtype: DataType | None = None) -> TensorProtocol:
    """A tensor of an array that onnxruntime returned; `dtype` tells what numpy has no type for."""
    if array.dtype.kind in "OUS":
        return onnx_ir.StringTensor(array, shape=onnx_ir.Shape(array.shape))
    if dtype is not None and dtype.numpy() != array.dtype and dtype.numpy().itemsize == array.dtype.itemsize:
        return onnx_ir.Tensor(array.view(dtype.numpy()), dtype=dtype)
    return array_tensor(np.ascontiguousarray(array).reshape(array.shape))


def inputs_with_captures(node: Node) -> Iterator[Value]:
    """The values that a node reads: its inputs, and what its subgraphs take from outside."""
    for value in node.inputs:
        if value is not None:
            yield value
    for attr in node.attributes.data.values():
        if attr.type in _GRAPH_TYPES and not attr.is_ref():
            for graph in [attr.as_graph()] if attr.type is AttributeType.GRAPH else attr.as_graphs():
                yield from captures(graph)


def captures(graph: Graph) -> Iterator[Value]:
    """The values of outer scopes that a subgraph, or one inside it, uses."""
    inside: set[Value] = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        inside.update(node.outputs)
        for value in inputs_with_captures(node):
            if value not in inside:
                yield value
    for value in graph.outputs:
        if value not in inside:
            yield value
