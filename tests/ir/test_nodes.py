"""Nodes that are made without checks are those that onnx-ir makes."""

from __future__ import annotations

from typing import Any

import onnx_ir
import pytest
from onnx_ir import Attr, AttributeType, Node, Value

from onnxopt import ir

OF_THEIR_OWN = {"_attributes", "_outputs", "_inputs"}


def _slots(item: Any, cls: type) -> dict[str, object]:
    return {name: getattr(item, name) for name in cls.__slots__ if name not in OF_THEIR_OWN}  # type: ignore[attr-defined]


@pytest.mark.parametrize("outputs", [0, 1, 3])
def test_is_like_a_node_of_onnx_ir(outputs: int) -> None:
    attributes = [Attr("axis", AttributeType.INT, 1), Attr("axes", AttributeType.INTS, (1, 2))]
    x = Value(name="x")
    made = ir.make_node("d", "Op", [x, None, x], attributes, outputs=outputs, overload="o", name="n")
    uses = [(user, index) for user, index in x.uses()]
    like = Node("d", "Op", [x, None, x], attributes, num_outputs=outputs, overload="o", name="n")
    assert _slots(made, Node) == _slots(like, Node)
    assert made.inputs == like.inputs
    assert uses == [(made, 0), (made, 2)]
    assert dict(made.attributes) == dict(like.attributes)
    assert made.attributes._owner is made
    assert [(one.producer(), one.index()) for one in made.outputs] == [(made, index) for index in range(outputs)]


def test_takes_values_as_outputs() -> None:
    values = [Value(name="a"), Value(name="b")]
    made = ir.make_node("", "Split", [None], outputs=values)
    assert made.outputs == tuple(values)
    assert [(one.producer(), one.index()) for one in values] == [(made, 0), (made, 1)]


def test_can_be_edited_in_a_graph() -> None:
    x = Value(name="x")
    made = ir.make_node("", "Abs", [x])
    graph = onnx_ir.Graph([x], made.outputs, nodes=[made])
    made.replace_input_with(0, None)
    assert not x.uses()
    assert made.graph is graph


def test_attribute_is_like_one_of_onnx_ir() -> None:
    made, like = (
        ir.PlainAttr("axes", AttributeType.INTS, (1, 2), "why"),
        Attr("axes", AttributeType.INTS, [1, 2], doc_string="why"),
    )
    assert _slots(made, Attr) == _slots(like, Attr)
    assert (made.name, made.type, made.value, made.is_ref()) == (like.name, like.type, like.value, False)
    assert made == like


def test_attribute_gives_the_graphs_that_it_holds_and_no_others() -> None:
    graph = ir.PlainGraph([], [], nodes=[])
    assert ir.PlainAttr("body", AttributeType.GRAPH, graph).as_graph() is graph
    assert ir.PlainAttr("bodies", AttributeType.GRAPHS, (graph,)).as_graphs() == (graph,)
    with pytest.raises(TypeError):
        ir.PlainAttr("axis", AttributeType.INT, 1).as_graph()


def _chain(kind: type[onnx_ir.Graph], *names: str | None) -> tuple[onnx_ir.Graph, list[Node]]:
    x = Value(name="x")
    nodes = [ir.make_node("", "Abs", [x], name=name) for name in names]
    return kind([x], nodes[-1].outputs, nodes=nodes), nodes


@pytest.mark.parametrize("kind", [onnx_ir.Graph, ir.PlainGraph])
class TestGraph:
    def test_names_what_has_no_name(self, kind: type[onnx_ir.Graph]) -> None:
        graph, nodes = _chain(kind, "node_Abs_0", None)
        assert [node.name for node in graph] == ["node_Abs_0", "node_Abs_1"]
        assert [node.outputs[0].name for node in nodes] == ["val_0", "val_1"]

    def test_is_edited_while_it_is_followed(self, kind: type[onnx_ir.Graph]) -> None:
        graph, nodes = _chain(kind, "a", "b", "c", "d")
        seen = []
        for node in graph:
            seen.append(node.name)
            if node.name == "b":
                graph.remove(nodes[2])
                graph.insert_before(nodes[3], [ir.make_node("", "Abs", [None], name=name) for name in ("e", "f")])
                graph.insert_before(nodes[0], ir.make_node("", "Abs", [None], name="g"))
                graph.remove(node)
        assert seen == ["a", "b", "e", "f", "d"]
        assert [node.name for node in graph] == ["g", "a", "e", "f", "d"]
        assert (len(graph), nodes[1].graph) == (5, None)

    def test_moves_a_node_that_it_has(self, kind: type[onnx_ir.Graph]) -> None:
        graph, nodes = _chain(kind, "a", "b", "c")
        graph.insert_before(nodes[0], [nodes[2]])
        assert [node.name for node in graph] == ["c", "a", "b"]

    def test_refuses_what_is_elsewhere(self, kind: type[onnx_ir.Graph]) -> None:
        graph, nodes = _chain(kind, "a")
        other, _ = _chain(kind, "b")
        with pytest.raises(ValueError, match="belongs to another graph"):
            other.append(nodes[0])
        ir.take_out(nodes[0])
        with pytest.raises(ValueError, match="not in the list"):
            graph._nodes.remove(nodes[0])


def test_initializer_is_one_of_the_graph() -> None:
    graph, _ = _chain(ir.PlainGraph, "a")
    value = ir.PlainValue(name="w", const_value=ir.tensor(1.0))
    ir.add_initializer(graph, value)
    assert graph.initializers["w"] is value and value.is_initializer() and value.graph is graph
