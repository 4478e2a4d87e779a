"""Making nodes of what onnxopt knows to fit: the same objects that onnx-ir makes, without the checks that it owes to everybody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx_ir import Attr, Node, Value
from onnx_ir._core import Usage
from onnx_ir._graph_containers import Attributes


class PlainNode(Node):
    """A node whose fields are read where they lie: passes ask each node for its type a hundred times, and a property is a call."""

    __slots__ = ()
    domain = Node._domain  # type: ignore[assignment, misc]
    op_type = Node._op_type  # type: ignore[assignment, misc]
    inputs = Node._inputs  # type: ignore[assignment, misc]
    outputs = Node._outputs  # type: ignore[assignment, misc]
    attributes = Node._attributes  # type: ignore[assignment, misc]
    graph = Node._graph  # type: ignore[assignment, misc]


def make_node(
    domain: str,
    op_type: str,
    inputs: Iterable[Value | None],
    attributes: Iterable[Attr] = (),
    *,
    outputs: int | Sequence[Value] = 1,
    overload: str = "",
    name: str | None = None,
) -> Node:
    """A node that no graph holds yet: `onnx_ir.Node(...)` in less than half of its time.

    Args:
        domain: "" is the standard's; "ai.onnx", its other name, is not taken.
        outputs: how many values it makes, or those values, which nothing else makes.
    """
    node: Node = PlainNode.__new__(PlainNode)
    node._domain = domain
    node._op_type = op_type
    node._overload = overload
    node._name = name
    node._inputs = tuple(inputs)
    node._outputs = _owned(node, outputs)
    node._attributes = _attributes(node, attributes)
    node._version = node._metadata = node._metadata_props = node._graph = node.doc_string = None
    node.device_configurations = ()
    for index, value in enumerate(node._inputs):
        if value is not None:
            value._uses[_usage(Usage, (node, index))] = None
    return node


_usage = tuple.__new__
"""A named tuple's own constructor is a function of Python's."""


def _owned(node: Node, outputs: int | Sequence[Value]) -> tuple[Value, ...]:
    if isinstance(outputs, int):
        return (Value(node, index=0),) if outputs == 1 else tuple(Value(node, index=i) for i in range(outputs))
    for index, value in enumerate(outputs):
        value._producer, value._index = node, index
    return tuple(outputs)


def _attributes(node: Node, attributes: Iterable[Attr]) -> Attributes:
    found: Attributes = Attributes.__new__(Attributes)
    found._owner = node
    found.data = {one._name: one for one in attributes}
    return found


def set_input(node: Node, index: int, value: Value | None) -> None:
    """`node.replace_input_with(index, value)`."""
    if node.device_configurations:
        node.replace_input_with(index, value)
        return
    inputs = list(node._inputs)
    old, inputs[index] = inputs[index], value
    node._inputs = tuple(inputs)
    use = _usage(Usage, (node, index))
    if old is not None:
        del old._uses[use]
    if value is not None:
        value._uses[use] = None


def drop_inputs(node: Node) -> None:
    """Let a node that goes use nothing any more."""
    for index, value in enumerate(node._inputs):
        if value is not None:
            del value._uses[_usage(Usage, (node, index))]
    node._inputs = (None,) * len(node._inputs)


def take_out(node: Node) -> None:
    """Remove a node from the graph that holds it."""
    graph = node._graph
    assert graph is not None
    graph._nodes.remove(node)
    node._graph = None
