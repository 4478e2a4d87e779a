"""The graph in memory. Everything outside this package reaches onnx-ir, ONNX files and shapes through these names."""

# ruff: noqa: E402  (onnx-ir must be imported through the stand-in first)
from __future__ import annotations

from onnxopt.ir._lazy_sympy import import_onnx_ir

import_onnx_ir()

from onnx_ir import (
    Attr,
    AttributeType,
    AttrTensor,
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
    tensor,
)

from onnxopt.ir.body import Body, Step, graphs_of, is_graph_of, nodes_of, steps_of
from onnxopt.ir.constants import SMALL_ELEMENTS, constant, integers, scalar, small_array
from onnxopt.ir.equations import read_equation
from onnxopt.ir.fingerprint import fingerprint
from onnxopt.ir.graphsurgeon import apply_graphsurgeon, from_graphsurgeon, to_graphsurgeon
from onnxopt.ir.lazy import (
    ScaledTensor,
    StreamedTensor,
    TransposedTensor,
    can_stream_transpose,
    is_streamed,
    multiply_weights,
)
from onnxopt.ir.load import load, load_copy, without_collector
from onnxopt.ir.mapped import MappedTensor
from onnxopt.ir.nodes import (
    PlainAttr,
    PlainGraph,
    PlainValue,
    add_initializer,
    annotated,
    drop_inputs,
    make_node,
    set_input,
    take_notes,
    take_out,
)
from onnxopt.ir.packed import PANEL, PackedTensor, int4, pack, packed
from onnxopt.ir.packed_filters import PackedFilters, is_depthwise, is_lanewise, pack_filters, packed_filters
from onnxopt.ir.protos import (
    ArrayTensor,
    array_tensor,
    captures,
    function_to_proto,
    inputs_with_captures,
    make_attribute,
    node_to_proto,
    tensor_of,
    tensor_to_proto,
)
from onnxopt.ir.save import as_kind_of, check_output, rebuild, save, to_proto
from onnxopt.ir.shapes import ShapeEnv, given_name, is_open, open_dims, unknown_dims, unnamed_dim
from onnxopt.ir.statistics import (
    constant_tensors,
    count_nodes,
    count_ops,
    inner_graphs,
    node_name,
    op_name,
    walk_graphs,
    weight_bytes,
)
from onnxopt.ir.structure import check_structure, release_strays, sort_nodes
from onnxopt.ir.values import input_at, source_of, use_count

__all__ = [
    "PANEL",
    "SMALL_ELEMENTS",
    "ArrayTensor",
    "Attr",
    "AttrTensor",
    "AttributeType",
    "Body",
    "DataType",
    "ExternalTensor",
    "Function",
    "Graph",
    "MappedTensor",
    "Model",
    "Node",
    "PackedFilters",
    "PackedTensor",
    "PlainAttr",
    "PlainGraph",
    "PlainValue",
    "RefAttr",
    "ScaledTensor",
    "Shape",
    "ShapeEnv",
    "Step",
    "StreamedTensor",
    "SymbolicDim",
    "Tensor",
    "TensorProtocol",
    "TensorType",
    "TransposedTensor",
    "Value",
    "add_initializer",
    "annotated",
    "apply_graphsurgeon",
    "array_tensor",
    "as_kind_of",
    "can_stream_transpose",
    "captures",
    "check_output",
    "check_structure",
    "constant",
    "constant_tensors",
    "count_nodes",
    "count_ops",
    "drop_inputs",
    "fingerprint",
    "from_graphsurgeon",
    "function_to_proto",
    "given_name",
    "graphs_of",
    "inner_graphs",
    "input_at",
    "inputs_with_captures",
    "int4",
    "integers",
    "is_depthwise",
    "is_graph_of",
    "is_lanewise",
    "is_open",
    "is_streamed",
    "load",
    "load_copy",
    "make_attribute",
    "make_node",
    "multiply_weights",
    "node_name",
    "node_to_proto",
    "nodes_of",
    "op_name",
    "open_dims",
    "pack",
    "pack_filters",
    "packed",
    "packed_filters",
    "read_equation",
    "rebuild",
    "release_strays",
    "save",
    "scalar",
    "set_input",
    "small_array",
    "sort_nodes",
    "source_of",
    "steps_of",
    "take_notes",
    "take_out",
    "tensor",
    "tensor_of",
    "tensor_to_proto",
    "to_graphsurgeon",
    "to_proto",
    "unknown_dims",
    "unnamed_dim",
    "use_count",
    "walk_graphs",
    "weight_bytes",
    "without_collector",
]
