"""A short name for a model: equal for equal graphs and weights, however it is stored and handed over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from onnx_ir import Attr, AttributeType, DataType, Graph, Model, Node, TensorProtocol

from onnxopt.ir.mapped import MappedTensor
from onnxopt.ir.statistics import walk_graphs


def fingerprint(model: Model) -> str:
    """SHA-256 over opsets, functions, inputs, outputs, nodes and weights in their order, in hexadecimal.

    Doc strings and metadata do not count, nor where weights lie; mapped weights are read once and let go of.
    """
    digest = hashlib.sha256()
    for part in _of_model(model):
        digest.update(part)
    return digest.hexdigest()


def _of_model(model: Model) -> Iterator[bytes]:
    yield _text(sorted(model.graph.opset_imports.items()))
    for key in sorted(model.functions):
        yield _text(key)
        for graph in walk_graphs(model.functions[key].graph):
            yield from _of_graph(graph)
    for graph in walk_graphs(model.graph):
        yield from _of_graph(graph)


def _of_graph(graph: Graph) -> Iterator[bytes]:
    for value in (*graph.inputs, *graph.outputs):
        yield _text(value.name, str(value.type), None if value.shape is None else [str(dim) for dim in value.shape])
    for node in graph:
        yield from _of_node(node)
    for name in sorted(graph.initializers):
        tensor = graph.initializers[name].const_value
        if tensor is not None:
            yield _text(name)
            yield from _of_tensor(tensor)


def _of_node(node: Node) -> Iterator[bytes]:
    names = [[value and value.name for value in values] for values in (node.inputs, node.outputs)]
    yield _text(node.name, node.domain, node.op_type, node.overload, names)
    for name in sorted(node.attributes):
        yield from _of_attribute(node.attributes[name])


def _of_attribute(attribute: Attr) -> Iterator[bytes]:
    yield _text(attribute.name, attribute.type.name, attribute.ref_attr_name)
    if attribute.is_ref() or attribute.type in (AttributeType.GRAPH, AttributeType.GRAPHS):
        return  # the nodes of inner graphs have their turn
    if attribute.type is AttributeType.TENSOR:
        yield from _of_tensor(attribute.value)
    elif attribute.type is AttributeType.TENSORS:
        for tensor in attribute.value:
            yield from _of_tensor(tensor)
    else:
        yield _text(attribute.value)


def _of_tensor(tensor: TensorProtocol) -> Iterator[bytes]:
    yield _text(tensor.dtype.name, tensor.shape.numpy())
    if tensor.dtype is DataType.STRING:
        yield _text(tensor.numpy().tolist())
        return
    yield tensor.tobytes()
    if isinstance(tensor, MappedTensor):
        tensor.release()


def _text(*parts: object) -> bytes:
    return repr(parts).encode()
