"""Counting what a model holds: nodes, ops, bytes. Subgraphs count, bodies of model-local functions do not."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator

from onnx_ir import AttributeType, Graph, Model, Node, TensorProtocol

from onnxopt.ir.constants import constant

_GRAPH_TYPES = frozenset({AttributeType.GRAPH, AttributeType.GRAPHS})

_NO_GRAPHS = frozenset(
    {
        "Add", "Cast", "Concat", "Constant", "Conv", "Div", "Expand", "Gather", "Gemm", "Identity", "MatMul",
        "Mul", "Pow", "ReduceMean", "Relu", "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Split",
        "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"
    }
)  # fmt: skip
"""Common ops that hold no graphs: most nodes of most models, whose attributes need not be looked at."""


def walk_graphs(graph: Graph) -> Iterator[Graph]:
    """The graph and all graphs inside its nodes, without recursion."""
    stack = [graph]
    while stack:
        one = stack.pop()
        yield one
        for node in one:
            stack.extend(inner_graphs(node))


def inner_graphs(node: Node) -> list[Graph]:
    """The graphs that the node's attributes hold (branches of an If, the body of a Loop or Scan)."""
    if node.op_type in _NO_GRAPHS:
        return []
    attributes = node.attributes.data
    if not attributes:
        return []
    found: list[Graph] = []
    for attr in attributes.values():
        if attr.type in _GRAPH_TYPES and not attr.is_ref():
            found.extend([attr.as_graph()] if attr.type is AttributeType.GRAPH else attr.as_graphs())
    return found


def count_nodes(model: Model) -> int:
    return sum(graph.num_nodes() for graph in walk_graphs(model.graph))


def op_name(node: Node) -> str:
    """What reports call a node's op: `Op`, or `domain::Op` outside the default domain."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def node_name(node: Node) -> str:
    """How people find a node: by its name, or by its first output where it has none."""
    name = node.name
    if not name:
        for value in node.outputs:
            name = value.name
            if name:
                break
    return name or ""


def count_ops(model: Model) -> dict[str, int]:
    """Nodes per op, most frequent first."""
    counter: collections.Counter[str] = collections.Counter()
    for graph in walk_graphs(model.graph):
        counter.update(map(op_name, graph))
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))


def constant_tensors(graphs: Iterable[Graph]) -> Iterator[TensorProtocol]:
    """The tensors that graphs hold: initializers (defaults of inputs too) and Constant nodes."""
    for graph in graphs:
        for value in graph.initializers.data.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            if node.op_type == "Constant" and node.outputs and (tensor := constant(node.outputs[0])) is not None:
                yield tensor


def weight_bytes(model: Model) -> int:
    """Bytes of all tensors that a model holds, whether as initializers or in Constant nodes."""
    return sum(tensor.nbytes for tensor in constant_tensors(walk_graphs(model.graph)))
