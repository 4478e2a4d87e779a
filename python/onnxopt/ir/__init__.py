"""The graph in memory. Everything outside this package reaches onnx-ir, ONNX files and shapes through these names."""

# ruff: noqa: E402  (onnx-ir must be imported through the stand-in first)
from __future__ import annotations

from onnxopt.ir._lazy_sympy import import_onnx_ir

import_onnx_ir()

from onnx_ir import (
    Attr,
    AttributeType,
    DataType,
    ExternalTensor,
    Function,
    Graph,
    Model,
    Node,
    RefAttr,
    Shape,
    SymbolicDim,
    Tensor,
    TensorProtocol,
    TensorType,
    Value,
)
from onnx_ir.convenience import convert_attribute

from onnxopt.ir.constants import SMALL_ELEMENTS, constant, integers, scalar, small_array, use_count
from onnxopt.ir.graphsurgeon import apply_graphsurgeon, from_graphsurgeon, to_graphsurgeon
from onnxopt.ir.lazy import ScaledTensor, StreamedTensor, TransposedTensor, can_stream_transpose
from onnxopt.ir.load import load, load_copy, without_collector
from onnxopt.ir.mapped import MappedTensor
from onnxopt.ir.protos import captures, inputs_with_captures, node_to_proto, tensor_of, tensor_to_proto
from onnxopt.ir.save import as_kind_of, save, to_proto
from onnxopt.ir.shapes import ShapeEnv
from onnxopt.ir.statistics import count_nodes, count_ops, initializer_bytes, walk_graphs
from onnxopt.ir.structure import check_structure

__all__ = [
    "apply_graphsurgeon",
    "as_kind_of",
    "check_structure",
    "from_graphsurgeon",
    "load",
    "load_copy",
    "save",
    "to_graphsurgeon",
    "to_proto",
    "captures",
    "inputs_with_captures",
    "node_to_proto",
    "tensor_of",
    "tensor_to_proto",
    "without_collector",
    "convert_attribute",
    "SMALL_ELEMENTS",
    "MappedTensor",
    "ScaledTensor",
    "StreamedTensor",
    "TransposedTensor",
    "can_stream_transpose",
    "ShapeEnv",
    "Attr",
    "AttributeType",
    "DataType",
    "ExternalTensor",
    "Function",
    "Graph",
    "Model",
    "Node",
    "RefAttr",
    "Shape",
    "SymbolicDim",
    "Tensor",
    "TensorProtocol",
    "TensorType",
    "Value",
    "constant",
    "count_nodes",
    "count_ops",
    "initializer_bytes",
    "integers",
    "scalar",
    "small_array",
    "use_count",
    "walk_graphs",
]
