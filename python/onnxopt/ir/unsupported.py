"""What onnx-ir has no place for: sparse tensors and types of maps. They pass through a model in disguise.

A sparse attribute becomes a string, and a type becomes metadata of its value, each the hexadecimal form of the original protobuf, until
the model is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

from onnxopt.errors import ModelError

KEY = "onnxopt.unsupported"
"""Marks disguised attributes and values, and in `model.meta` a model that holds any."""

_MARK = KEY.encode() + b":"
_SPARSE = frozenset({onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS})
_NESTED = {"sequence_type": "elem_type", "optional_type": "elem_type"}


def disguise(model: onnx.ModelProto) -> None:
    """Replace in place what onnx-ir cannot read."""
    for graph in _graphs(model):
        _move_sparse_initializers(graph)
        for values in (graph.input, graph.output, graph.value_info):
            for value in values:
                if _holds_map(value.type):
                    value.metadata_props.add(key=KEY, value=value.type.SerializeToString().hex())
                    value.ClearField("type")
        _disguise_nodes(graph.node)
    for function in model.functions:
        _disguise_nodes(function.node)


def reveal(model: onnx.ModelProto) -> None:
    """Undo `disguise`."""
    for graph in _graphs(model):
        for values in (graph.input, graph.output, graph.value_info):
            for value in values:
                _reveal_type(value)
        _reveal_nodes(graph.node)
    for function in model.functions:
        _reveal_nodes(function.node)


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield from _inside(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _of_node(node)


def _inside(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    stack = [graph]
    while stack:
        one = stack.pop()
        yield one
        for node in one.node:
            stack.extend(_of_node(node))


def _of_node(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def _holds_map(kind: onnx.TypeProto) -> bool:
    while kind.WhichOneof("value") in _NESTED:
        name = kind.WhichOneof("value")
        kind = getattr(getattr(kind, name), _NESTED[name])
    return kind.WhichOneof("value") in ("map_type", "opaque_type")


def _move_sparse_initializers(graph: onnx.GraphProto) -> None:
    """Turn sparse initializers into Constant nodes of the same name."""
    nodes = []
    for sparse in graph.sparse_initializer:
        node = onnx.helper.make_node("Constant", [], [sparse.values.name], name=sparse.values.name)
        node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(sparse)
        nodes.append(node)
    if nodes:
        rest = [onnx.NodeProto.FromString(one.SerializeToString()) for one in graph.node]
        del graph.node[:], graph.sparse_initializer[:]
        graph.node.extend(nodes + rest)


def _disguise_nodes(nodes: Any) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type in _SPARSE and not attribute.ref_attr_name:
                text = _MARK + attribute.SerializeToString().hex().encode()
                attribute.CopyFrom(onnx.AttributeProto(name=attribute.name, type=onnx.AttributeProto.STRING, s=text))


def _reveal_nodes(nodes: Any) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.STRING and attribute.s.startswith(_MARK):
                attribute.CopyFrom(_parse(onnx.AttributeProto, attribute.s[len(_MARK) :].decode()))


def _reveal_type(value: onnx.ValueInfoProto) -> None:
    for index, entry in enumerate(value.metadata_props):
        if entry.key == KEY:
            value.type.CopyFrom(_parse(onnx.TypeProto, entry.value))
            del value.metadata_props[index]
            return


def _parse(kind: Any, text: str) -> Any:
    try:
        return kind.FromString(bytes.fromhex(text))
    except Exception as error:
        raise ModelError(f"The model holds a mark of onnxopt's own that cannot be read: {text[:40]}.") from error
