"""Builders: what they make stands in no graph until the patch is applied."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import helpers
from onnxopt import ir
from onnxopt.rewrite.patch import Builder
from rewriting import context, node_of, op_types

MODEL = "g (float[2,1,3] x) => (y) { y = Softmax<axis=1>(x) }"


def builder(opset: int = 17) -> Builder:
    ctx = context(helpers.model(MODEL, opset=opset))
    return Builder(ctx, node_of(ctx, "Softmax"))


def test_nodes_wait_for_the_patch() -> None:
    b = builder()
    x = b.ctx.model.graph.inputs[0]
    result = b.Neg(b.Exp(x))
    patch = b.patch("rule", {b.anchor.outputs[0]: result})
    assert [node.op_type for node in patch.nodes] == ["Exp", "Neg"]
    assert all(node.graph is None for node in patch.nodes) and op_types(b.ctx) == ["Softmax"]


def test_names_are_new_and_say_where_they_come_from() -> None:
    b = builder()
    x = b.ctx.model.graph.inputs[0]
    first, second = b.Neg(x), b.Neg(x)
    assert {first.name, second.name} == {"y~1", "y~2"}


def test_attributes_that_are_none_are_left_out() -> None:
    b = builder()
    b.Softmax(b.ctx.model.graph.inputs[0], axis=None)
    b.Softmax(b.ctx.model.graph.inputs[0], axis=2)
    assert [dict(node.attributes).keys() for node in b.nodes] == [set(), {"axis"}]


def test_copy_keeps_and_replaces_attributes() -> None:
    b = builder()
    same, other, without = b.copy_of(b.anchor)[0], b.copy_of(b.anchor, axis=0)[0], b.copy_of(b.anchor, axis=None)[0]
    axes = [value.producer().attributes.get_int("axis", -9) for value in (same, other, without)]  # type: ignore[union-attr]
    assert axes == [1, 0, -9]
    assert same.producer().inputs[0] is b.anchor.inputs[0]  # type: ignore[union-attr]


def test_only_capitalized_names_are_ops() -> None:
    with pytest.raises(AttributeError):
        _ = builder().neg


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_axes_are_where_the_opset_has_them(opset: int) -> None:
    b = builder(opset)
    b.unsqueeze(b.squeeze(b.ctx.model.graph.inputs[0], 1), 1)
    for node in b.nodes:
        assert ("axes" in node.attributes) == (opset < 13)
        assert len(node.inputs) == (1 if opset < 13 else 2)


def test_equal_small_constants_are_one_initializer() -> None:
    b = builder()
    assert b.constant(np.ones(3)) is b.constant(np.ones(3))
    assert len(b.ctx.model.graph.initializers) == 1


def test_constants_of_a_function_are_nodes_in_it() -> None:
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("local", 1)]
    function = onnx.helper.make_function(
        "local", "F", ["x"], ["y"], [onnx.helper.make_node("Neg", ["x"], ["y"])], imports[:1]
    )
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("F", ["x"], ["y"], domain="local")], "g", [x], [y])
    ctx = context(onnx.helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8))
    (local,) = ctx.model.functions.values()
    (neg,) = local
    value = Builder(ctx, neg).constant(np.ones(2, np.float32))
    assert [node.op_type for node in local] == ["Constant", "Neg"]
    assert value.producer() is local[0] and not ctx.model.graph.initializers


def test_a_function_is_defined_once() -> None:
    b = builder()
    made: list[str] = []

    def make() -> ir.Function:
        made.append("F")
        body = ir.Graph([], [], nodes=[], opset_imports={"": 17})
        return ir.Function("local", "F", "", graph=body, attributes=[])

    b.define("local", "F", "", make)
    b.define("local", "F", "", make)
    assert made == ["F"] and len(b.patch("rule", {}).functions) == 1
