"""upgrade_opset and inline_functions: what is done only on request."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import helpers
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


def test_refuses_an_opset_that_does_not_exist() -> None:
    with pytest.raises(OptionError, match="There is no opset 100"):
        PassManager("generic", ["upgrade_opset"], options=Options(opset=100)).run(ir.load(softmax_model()))


@pytest.mark.parametrize("opset", [None, 11])
def test_nothing_to_do_is_no_change(opset: int | None) -> None:
    report = PassManager("generic", ["upgrade_opset"], options=Options(opset=opset), strict=True).run(
        ir.load(softmax_model())
    )
    assert not report.records[0].modified


@pytest.mark.parametrize(
    ("body", "opset", "wanted"),
    [
        ("y = Softmax<axis=1>(x)", 11, 13),
        ("a = Unsqueeze<axes=[0]>(x)\n y = Squeeze<axes=[0]>(a)", 12, 17),
        ("a, b = Split<axis=1, split=[1, 2]>(x)\n y = Concat<axis=1>(b, a)", 12, 18),
        ("a = ReduceMean<axes=[1]>(x)\n y = Sub(x, a)", 13, 18),
        ("a = Clip<min=-1.0, max=1.0>(x)\n y = Neg(a)", 10, 13),
        ("a = Pad<pads=[0, 0, 0, 0, 1, 0]>(x)\n y = Slice<axes=[1], starts=[0], ends=[3]>(a)", 9, 13),
        ("y = Dropout<ratio=0.5>(x)", 11, 13),
        (
            "s = ReduceSum<keepdims=0>(x)\n c = Cast<to=9>(s)\n y = If(c) <"
            "then_branch = a () => (float[2,3,4] t) { t = Softmax<axis=1>(x) }, "
            "else_branch = b () => (float[2,3,4] e) { e = Neg(x) }>",
            11,
            17,
        ),
    ],
    ids=["Softmax", "Unsqueeze", "Split", "ReduceMean", "Clip", "Pad", "Dropout", "branches"],
)
def test_results_stay_the_same(body: str, opset: int, wanted: int) -> None:
    before = helpers.model(f"g (float[2,3,4] x) => (float[2,3,4] y) {{ {body} }}", opset=opset)
    model = ir.load(onnx.ModelProto.FromString(before.SerializeToString()))
    PassManager("generic", ["upgrade_opset"], options=Options(opset=wanted), strict=True).run(model)
    after = ir.to_proto(model)
    assert [one.version for one in after.opset_import] == [wanted]
    helpers.assert_same(before, after, {"x": np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)})


def function_model() -> onnx.ModelProto:
    body = helper.make_function(
        "local", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    node = helper.make_node("Double", ["x"], ["y"], domain="local")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    graph = helper.make_graph([node], "g", info[:1], info[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=9)


def test_refuses_functions_that_the_converter_would_lose() -> None:
    with pytest.raises(OptionError, match=r"\(Double\): choose --inline-functions as well"):
        PassManager("generic", ["upgrade_opset"], options=Options(opset=18)).run(ir.load(function_model()))


def test_functions_are_inlined_before() -> None:
    model = ir.load(function_model())
    names = ["inline_functions", "upgrade_opset"]
    PassManager("generic", names, options=Options(opset=18, inline_functions=True), strict=True).run(model)
    assert model.graph.opset_imports[""] == 18
    assert verify(ir.load(function_model()), model, samples=1).equal


@pytest.mark.parametrize("asked", [True, False])
def test_functions_are_inlined_only_on_request(asked: bool) -> None:
    model = ir.load(function_model())
    PassManager("generic", ["inline_functions"], options=Options(inline_functions=asked), strict=True).run(model)
    assert [node.op_type for node in model.graph] == (["Add"] if asked else ["Double"])
    assert verify(ir.load(function_model()), model, samples=1).equal
