"""Custom ops go back to standard ops, and a model that was optimized can be optimized again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxopt
from helpers import assert_same, model, ops, run_passes, set_costs
from onnxopt import ir
from onnxopt.fusions import fused_elementwise as fusion
from onnxopt.pipeline import PassManager

MODELS = {
    "one region": "g (float[N,4] x, float[4] b) => (float[N,4] y) { a = Add(x, b) s = Sigmoid(a) y = Mul(a, s) }",
    "constants": "g (float[N,4] x) => (float[N,4] y) { a = Mul(x, half) s = Erf(a) t = Add(s, row) y = Neg(t) }",
    "several outputs": "g (float[N,4] x) => (float[N,4] y, float[N,4] a, float[N,4] s) { a = Exp(x) y = Neg(a) s = Softmax(a) }",
    "shared body": """g (float[N,4] x, float[4,4] w) => (float[N,4] y) {
        a = Tanh(x) b = Neg(a) m = MatMul(b, w) c = Tanh(m) y = Neg(c) }""",
    "in a branch": """g (bool c, float[N,4] x) => (float[N,4] y) {
        y = If(c) < then_branch = t () => (float[N,4] p) { a = Mul(x, half) p = Neg(a) },
                    else_branch = e () => (float[N,4] q) { b = Neg(x) q = Tanh(b) } > }""",
    "activation of a convolution": """g (float[N,4,5,5] x, float[4,4,1,1] k) => (float[N,4,5,5] y) {
        c = Conv(x, k) y = Relu(c) }""",
}


@pytest.fixture(autouse=True)
def fuse_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests use small tensors, and regions of any size."""
    set_costs(monkeypatch, small_region_nodes=fusion.MIN_NODES)


def make(case: str) -> onnx.ModelProto:
    return model(MODELS[case], half=np.array(0.5, np.float32), row=np.arange(4, dtype=np.float32))


def feeds(proto: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    made = {}
    for value in proto.graph.input:
        shape = [dim.dim_value or 3 for dim in value.type.tensor_type.shape.dim]
        made[value.name] = rng.normal(0, 2, shape).astype(np.float32)
    return [{**made, "c": np.array(condition)} if "c" in made else made for condition in (True, False)]


def all_domains(proto: onnx.ModelProto) -> set[str]:
    return {node.domain for graph in ir.walk_graphs(ir.load(proto).graph) for node in graph}


@pytest.mark.parametrize("case", MODELS)
def test_inlines(case: str) -> None:
    before = make(case)
    fused, _ = run_passes(before, "fuse_conv_activations", "fuse_elementwise", target="cpu")
    assert all_domains(fused) & {"ai.onnxopt", "com.microsoft"}
    after, report = run_passes(fused, "inline_custom_ops")
    assert report.patches
    assert all_domains(after) == {""}
    assert not after.functions
    assert "ai.onnxopt" not in {entry.domain for entry in after.opset_import}
    assert ops(after) == ops(before)
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    assert_same(before, after, feeds(before))


def test_model_that_was_optimized_is_optimized_for_another_target() -> None:
    before = make("one region")
    loaded = ir.load(before)
    PassManager("cpu").run(loaded)
    again = ir.load(ir.to_proto(loaded))
    PassManager("generic").run(again)
    after = ir.to_proto(again)
    assert all_domains(after) == {""}
    assert_same(before, after, feeds(before))


def test_optimizing_again_changes_nothing() -> None:
    loaded = ir.load(make("one region"))
    PassManager("cpu").run(loaded)
    once = ir.to_proto(loaded)
    again = ir.load(once)
    PassManager("cpu").run(again)
    assert [f.overload for f in ir.to_proto(again).functions] == [f.overload for f in once.functions]
    assert ops(ir.to_proto(again)) == ops(once)


INTEGERS = """g (float[N,64] x) => (float[N,64] y) {
    a = MatMul(x, w) b = Gelu(a) c = MatMul(b, w) d = Add(c, x) y = Softmax<axis = -1>(d) }"""


@pytest.mark.parametrize("weights", [None, "int8", "int4"])
def test_model_of_integers_stays_for_a_processor_alone(weights: str | None) -> None:
    matrix = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    once = onnxopt.quantize(model(INTEGERS, opset=21, ir_version=10, w=matrix), weights=weights)
    again, standard = onnxopt.optimize(once), onnxopt.optimize(once, target="generic")
    assert ops(again) == ops(once) and all_domains(again) != {""} and all_domains(standard) == {""}
    x = {"x": np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)}
    assert_same(once, again, x)
    assert_same(once, standard, x, rtol=1e-4, atol=1e-4)


def test_leaves_functions_that_the_model_came_with() -> None:
    proto = model("g (float[N] x) => (float[N] y) { a = Exp(x) y = Neg(a) }")
    proto.functions.append(
        helper.make_function(
            "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
        )
    )
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "Twice", "own"
    after, report = run_passes(proto, "inline_custom_ops")
    assert not report.patches
    assert len(after.functions) == 1


def refusals(proto: onnx.ModelProto) -> list[str]:
    loaded = ir.load(proto)
    report = PassManager("generic", ["inline_custom_ops"], strict=True, explain=True).run(loaded)
    assert not report.patches
    return [str(miss.refusal) for miss in report.near_misses]


def test_refuses_node_without_body() -> None:
    fused, _ = run_passes(make("shared body"), "fuse_elementwise", target="cpu")
    for node in fused.graph.node:
        if node.domain:
            node.overload = "another"
    assert "no body" in refusals(fused)[0]


def test_refuses_body_of_another_opset() -> None:
    fused, _ = run_passes(make("one region"), "fuse_elementwise", target="cpu")
    fused.functions[0].opset_import[0].version = 13
    assert "opset" in refusals(fused)[0]
