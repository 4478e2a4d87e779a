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
