"""upgrade_opset and inline_functions: what is done only on request."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt import ir
from onnxopt.errors import OptionError
from onnxopt.passes.base import Options
from onnxopt.pipeline import PassManager
from onnxopt.runtime.verify import verify


def softmax_model() -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)


def test_converts_to_the_opset_that_was_asked_for_and_keeps_large_weights() -> None:
    before = softmax_model()
    model = ir.load(before)
    PassManager("generic", ["upgrade_opset"], options=Options(opset=17), strict=True).run(model)
    assert model.graph.opset_imports[""] == 17
    assert verify(ir.load(before), model, samples=1).equal


def test_refuses_an_older_opset() -> None:
    with pytest.raises(OptionError, match="cannot be converted down"):
        PassManager("generic", ["upgrade_opset"], options=Options(opset=9)).run(ir.load(softmax_model()))


def function_model() -> onnx.ModelProto:
    body = helper.make_function(
        "local", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    node = helper.make_node("Double", ["x"], ["y"], domain="local")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    graph = helper.make_graph([node], "g", info[:1], info[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=9)


@pytest.mark.parametrize("asked", [True, False])
def test_functions_are_inlined_only_on_request(asked: bool) -> None:
    model = ir.load(function_model())
    PassManager("generic", ["inline_functions"], options=Options(inline_functions=asked), strict=True).run(model)
    assert [node.op_type for node in model.graph] == (["Add"] if asked else ["Double"])
    assert verify(ir.load(function_model()), model, samples=1).equal
