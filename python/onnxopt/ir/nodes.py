"""Making graphs of what onnxopt knows to fit: the same objects that onnx-ir makes, without the checks that it owes to everybody.

Passes ask each node for its type a hundred times, and a property is a call: the plain kinds of nodes, values and attributes are read
where their fields lie.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Sequence, ValuesView
from typing import Any

from onnx_ir import Attr, AttributeType, Function, Graph, Node, Value
from onnx_ir._core import Usage
from onnx_ir._graph_containers import Attributes
from onnx_ir._linked_list import DoublyLinkedSet, _LinkBox


class PlainValue(Value):
    """A value whose fields are read where they lie."""

    __slots__ = ()
    type = Value._type  # type: ignore[assignment, misc]
    const_value = Value._const_value  # type: ignore[assignment, misc]


class PlainAttr(Attr):
    """An attribute whose fields are read where they lie. Its value is of the very type that `kind` says, lists being tuples."""

    __slots__ = ()
    name = Attr._name  # type: ignore[assignment, misc]
    type = Attr._type  # type: ignore[assignment, misc]
    value = Attr._value  # type: ignore[assignment, misc]
    ref_attr_name = Attr._ref_attr_name  # type: ignore[assignment, misc]

    def __init__(self, name: str, kind: AttributeType, value: Any, doc_string: str | None = None) -> None:
        self._name = name
        self._type = kind
        self._value = value
        self._ref_attr_name = self._metadata = None
        self.doc_string = doc_string

    def as_graph(self) -> Graph:
        held: Graph = self._value if self._type is AttributeType.GRAPH else super().as_graph()
        return held

    def as_graphs(self) -> tuple[Graph, ...]:
        held: tuple[Graph, ...] = self._value if self._type is AttributeType.GRAPHS else super().as_graphs()
        return held


class PlainAttributes(Attributes):
    """Attributes of a node that are looked up as a dict's items are."""

    def get(self, key: str, default: Any = None) -> Any:
        return self.data.get(key, default)

    def keys(self) -> KeysView[str]:
        return self.data.keys()

    def values(self) -> ValuesView[Attr]:
        return self.data.values()

    def items(self) -> ItemsView[str, Attr]:
        return self.data.items()


def no_attributes(owner: Node | Function) -> Attributes:
    """The attributes of what has none yet."""
    found: Attributes = PlainAttributes.__new__(PlainAttributes)
    found._owner = owner
    found.data = {}
    return found


ANNOTATION = "quant_parameter_tensor_names"
"""What onnx-ir calls the quantization annotation of a value."""


class PlainNode(Node):
    """A node whose fields are read where they lie."""

    __slots__ = ()
    name = Node._name  # type: ignore[assignment, misc]
    domain = Node._domain  # type: ignore[assignment, misc]
    op_type = Node._op_type  # type: ignore[assignment, misc]
    overload = Node._overload  # type: ignore[assignment, misc]
    inputs = Node._inputs  # type: ignore[assignment, misc]
    outputs = Node._outputs  # type: ignore[assignment, misc]
    attributes = Node._attributes  # type: ignore[assignment, misc]
    graph = Node._graph  # type: ignore[assignment, misc]


class _NodeList(DoublyLinkedSet[Node]):
    """The nodes of a graph, in order: all passes follow it."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Node]:
        root = self._root
        box = root.next
        while box is not root:
            node = box.value
            if node is not None:  # it may have been removed meanwhile
                yield node
            box = box.next

    def _insert_one_after(self, box: _LinkBox[Node], new_value: Node) -> _LinkBox[Node]:
        known = self._value_ids_to_boxes
        if id(new_value) in known:
            return super()._insert_one_after(box, new_value)
        made = known[id(new_value)] = _LinkBox(self, new_value)
        after = box.next
        made.prev, made.next = box, after
        box.next = after.prev = made
        self._length += 1
        return made

    def remove(self, value: Node) -> None:
        box = self._value_ids_to_boxes.pop(id(value), None)
        if box is None:
            raise ValueError(f"The node {value!r} is not in the list.")
        box.prev.next, box.next.prev = box.next, box.prev
        box.value = None
        self._length -= 1


class PlainGraph(Graph):
    """A graph that takes nodes without looking for names where they have them."""

    __slots__ = ()

    def __init__(
        self, inputs: Sequence[Value], outputs: Sequence[Value], *, nodes: Iterable[Node], **options: Any
    ) -> None:
        super().__init__(inputs, outputs, nodes=(), **options)
        self._nodes = _NodeList()
        self.extend(nodes)

    def __iter__(self) -> Iterator[Node]:
        return self._nodes.__iter__()

    def insert_before(self, node: Node, new_nodes: Iterable[Node] | Node, /) -> None:  # type: ignore[override]
        if not isinstance(new_nodes, list):
            super().insert_before(node, new_nodes)
            return
        for one in new_nodes:
            self._set_node_graph_to_self_and_assign_names(one)
        self._nodes.insert_before(node, new_nodes)

    def _set_node_graph_to_self_and_assign_names(self, node: Node) -> Node:
        names = self._name_authority
        if node._graph is not None or node._name is None:
            return super()._set_node_graph_to_self_and_assign_names(node)
        names._node_names.add(node._name)
        for value in node._outputs:
            if value._name is None:
                names.register_or_name_value(value)
            else:
                names._value_names.add(value._name)
        node._graph = self
        return node


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
    node._outputs = (PlainValue(node, index=0),) if outputs == 1 else _owned(node, outputs)
    node._attributes = no_attributes(node)
    node._attributes.data = {one._name: one for one in attributes}
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
        return tuple(PlainValue(node, index=index) for index in range(outputs))
    for index, value in enumerate(outputs):
        value._producer, value._index = node, index
    return tuple(outputs)


def add_initializer(graph: Graph, value: Value) -> None:
    """Let a graph have an initializer of a name that it does not have."""
    value._is_initializer = True
    value._graph = graph
    graph._initializers.data[value._name] = value  # type: ignore[index]


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


def annotated(value: Value) -> Iterable[str]:
    """The names of the tensors that the quantization annotation of a value tells; none where it has none."""
    return value._metadata.data.get(ANNOTATION, {}).values() if value._metadata else ()


def take_notes(new: Value, old: Value) -> None:
    """Let `new` have the documentation, metadata and quantization annotation of `old`, whose name it takes."""
    new.doc_string = old.doc_string
    if old._metadata_props:
        new.metadata_props.update(old._metadata_props)
    if old._metadata and ANNOTATION in old._metadata:
        new.meta[ANNOTATION] = old.meta[ANNOTATION]
