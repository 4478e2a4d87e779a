"""Nodes, initializers, optional outputs and functions that nothing uses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "eliminate_dead_code"
RNG = np.random.default_rng(0)


def graph(body: str, *, outputs: str = "y", opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    return model(f"g (float[2,3,5] x, bool flag) => ({outputs}) {{ {body} }}", opset=opset, **weights)


def feed() -> dict[str, np.ndarray]:
    return {"x": RNG.standard_normal((2, 3, 5)).astype(np.float32), "flag": np.array(True)}


def outputs_of(proto: onnx.ModelProto, op_type: str) -> list[str]:
    return next(list(node.output) for node in proto.graph.node if node.op_type == op_type)


# --- nodes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = Neg(x)\n a = Abs(x)", ["Neg"]),
        ("y = Neg(x)\n a = Abs(x)\n b = Exp(a)\n c = Log(b)", ["Neg"]),
        ("a = Abs(x)\n b = Exp(a)\n y = Neg(a)", ["Abs", "Neg"]),
        ("y = Neg(x)\n a = RandomNormalLike(x)", ["Neg"]),
        ("a, b = TopK(x, k)\n y = Cast<to=1>(b)", ["TopK", "Cast"]),
        ("y = Neg(x)\n a = If(flag) <then_branch = t () => (p) { p = Abs(x) }, else_branch = e () => (q) { q = Exp(x) }>", ["Neg"]),
        ("y = Neg(x)\n s = Exp(x)\n a = If(flag) <then_branch = t () => (p) { p = Abs(s) }, else_branch = e () => (q) { q = Exp(s) }>", ["Neg"]),
    ],
    ids=["one", "chain", "one of two users", "random", "one of two outputs", "if", "captured by a dead if"],
)  # fmt: skip
def test_dead_nodes_go(body: str, left: list[str]) -> None:
    before = graph(body, **({"k": np.array([2])} if "TopK" in body else {}))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == left
    assert_same(before, after, feed(), rtol=0, atol=0)


def test_dead_nodes_of_a_branch_go() -> None:
    branches = "then_branch = t () => (float[2,3,5] p) { d = Exp(s) p = Abs(x) }"
    branches += ", else_branch = e () => (float[2,3,5] q) { q = Neg(x) }"
    before = graph(f"s = Sqrt(x)\n y = If(flag) <{branches}>")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["If"], "what only the dead node captured goes too"
    assert [len(one.g.node) for one in after.graph.node[0].attribute] == [1, 1]
    assert_same(before, after, feed(), rtol=0, atol=0)


def test_what_a_branch_captures_stays() -> None:
    branches = "then_branch = t () => (float[2,3,5] p) { p = Abs(s) }"
    branches += ", else_branch = e () => (float[2,3,5] q) { q = Add(x, w) }"
    before = graph(f"s = Exp(x)\n y = If(flag) <{branches}>", w=np.ones(5, np.float32))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Exp", "If"]
    assert [one.name for one in after.graph.initializer] == ["w"]
    assert_same(before, after, feed(), rtol=0, atol=0)


def test_carried_values_of_a_loop_stay() -> None:
    body = """y, last = Loop (n, , x, x) <body = b (int64 i, bool k, float[2,3,5] p, float[2,3,5] q) => (bool ko, float[2,3,5] po, float[2,3,5] qo) {
        ko = Identity(k)
        dead = Exp(p)
        po = Neg(p)
        qo = Neg(q)
    }>"""
    before = graph(body, outputs="float[2,3,5] y", n=np.array(3))
    after, _ = run_passes(before, PASS)
    assert [node.op_type for node in after.graph.node[0].attribute[0].g.node] == ["Identity", "Neg", "Neg"]
    assert_same(before, after, feed(), rtol=0, atol=0)


def test_nodes_of_unknown_domains_stay() -> None:
    before = graph("y = Neg(x)\n a = Print(x)")
    before.graph.node[1].domain = "custom"
    before.opset_import.add(domain="custom", version=1)
    assert op_list(run_passes(before, PASS)[0]) == ["Neg", "Print"]


def test_dead_nodes_of_known_domains_go() -> None:
    before = graph("y = Neg(x)\n a = Scaler<offset=[1.0], scale=[2.0]>(x)")
    before.graph.node[1].domain = "ai.onnx.ml"
    before.opset_import.add(domain="ai.onnx.ml", version=1)
    assert op_list(run_passes(before, PASS)[0]) == ["Neg"]


# --- initializers and inputs ---------------------------------------------------------------------------------------
def test_initializers() -> None:
    ones = np.ones(5, np.float32)
    before = graph(
        "y = Add(x, used)\n a = Mul(x, dead)", outputs="y, given", used=ones, dead=ones, free=ones, given=ones
    )
    after, _ = run_passes(before, PASS)
    assert sorted(one.name for one in after.graph.initializer) == ["given", "used"]
    assert_same(before, after, feed(), rtol=0, atol=0)


def test_initializers_that_an_annotation_tells_stay() -> None:
    before = model("g (float[3] x) => (y) { y = Neg(x) }", scale=np.ones(1, np.float32), free=np.ones(1, np.float32))
    before.graph.quantization_annotation.add(tensor_name="x").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="scale"
    )
    after, _ = run_passes(before, PASS)
    assert [one.name for one in after.graph.initializer] == ["scale"]


def test_inputs_stay_with_their_defaults() -> None:
    before = model(
        "g (float[3] x, float[3] unused, float[3] preset) => (y) { y = Neg(x) }", preset=np.ones(3, np.float32)
    )
    after, _ = run_passes(before, PASS)
    assert [one.name for one in after.graph.input] == ["x", "unused", "preset"]
    assert [one.name for one in after.graph.initializer] == ["preset"]


def test_initializers_of_a_branch() -> None:
    branches = "then_branch = t () => (float[5] p) <float[5] p = {1, 2, 3, 4, 5}, float[5] d = {1, 2, 3, 4, 5}> { }"
    branches += ", else_branch = e () => (float[5] q) <float[5] w = {1, 2, 3, 4, 5}> { q = Neg(w) }"
    before = graph(f"y = If(flag) <{branches}>")
    after, _ = run_passes(before, PASS)
    assert [[one.name for one in attr.g.initializer] for attr in after.graph.node[0].attribute] == [["p"], ["w"]]
    assert_same(before, after, [{**feed(), "flag": np.array(flag)} for flag in (True, False)])


# --- optional outputs ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("node", "kept"),
    [
        ("y, i = MaxPool<kernel_shape=[2]>(x)", ["y"]),
        ("y, m = Dropout(x)", ["y"]),
        ("y, m, d = LayerNormalization(x, w, w)", ["y"]),
    ],
)
def test_unused_optional_outputs_go(node: str, kept: list[str]) -> None:
    before = graph(node, **({"w": np.ones(5, np.float32)} if "w" in node else {}))
    after, _ = run_passes(before, PASS)
    assert list(after.graph.node[0].output) == kept
    assert_same(before, after, feed())


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("used", [0, 1])
def test_outputs_of_recurrences(op: str, used: int) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    names = ["a", "b", "c"] if op == "LSTM" else ["a", "b"]
    weights = {"w": np.ones((1, gates * 2, 5), np.float32), "r": np.ones((1, gates * 2, 2), np.float32)}
    before = graph(f"{', '.join(names)} = {op}<hidden_size=2>(x, w, r)\n y = Neg({names[used]})", **weights)
    after, _ = run_passes(before, PASS)
    assert outputs_of(after, op) == names[: used + 1]
    assert_same(before, after, feed(), rtol=0, atol=0)


def test_an_unused_output_before_a_used_one_stays() -> None:
    before = graph("a, b, c, d = Unique(x)\n y = Cast<to=1>(c)", outputs="float[n] y")
    after, _ = run_passes(before, PASS)
    assert outputs_of(after, "Unique") == ["a", "b", "c"]
    assert_same(before, after, feed())


@pytest.mark.parametrize("opset", [14, 17])
def test_batch_normalization_in_training_mode_keeps_its_outputs(opset: int) -> None:
    body = "y, m, v = BatchNormalization<training_mode=1>(x, w, w, w, w)"
    before = graph(body, opset=opset, w=np.ones(3, np.float32))
    after, _ = run_passes(before, PASS)
    assert outputs_of(after, "BatchNormalization") == ["y", "m", "v"]


def test_outputs_that_are_not_optional_stay() -> None:
    before = graph("y, b = TopK(x, k)\n", k=np.array([1]))
    assert outputs_of(run_passes(before, PASS)[0], "TopK") == ["y", "b"]


def test_outputs_of_an_op_of_another_domain_stay() -> None:
    before = graph("y, b = MaxPool(x)", outputs="float[2,3,5] y")
    before.graph.node[0].domain = "custom"
    before.opset_import.add(domain="custom", version=1)
    assert outputs_of(run_passes(before, PASS)[0], "MaxPool") == ["y", "b"]


def test_an_optional_output_that_a_branch_captures_stays() -> None:
    branches = "then_branch = t () => (float[2,3,4] p) { p = Cast<to=1>(i) }"
    branches += ", else_branch = e () => (float[2,3,4] q) { q = Neg(a) }"
    before = graph(f"a, i = MaxPool<kernel_shape=[2]>(x)\n y = If(flag) <{branches}>")
    after, _ = run_passes(before, PASS)
    assert outputs_of(after, "MaxPool") == ["a", "i"]
    assert_same(before, after, feed())


# --- functions -----------------------------------------------------------------------------------------------------
def function(domain: str, name: str, body_op: str, body_domain: str = "") -> onnx.FunctionProto:
    node = onnx.helper.make_node(body_op, ["a"], ["b"], domain=body_domain)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnxopt", 1)]
    return onnx.helper.make_function(domain, name, ["a"], ["b"], [node], opsets)


def test_functions() -> None:
    before = graph("y = Outer(x)")
    before.graph.node[0].domain = "ai.onnxopt"
    for domain in ("ai.onnxopt", "local"):
        before.opset_import.add(domain=domain, version=1)
    before.functions.extend(
        [
            function("ai.onnxopt", "Inner", "Neg"),
            function("ai.onnxopt", "Outer", "Inner", "ai.onnxopt"),
            function("ai.onnxopt", "Dead", "Abs"),
            function("local", "Theirs", "Abs"),
        ]
    )
    after, _ = run_passes(before, PASS)
    assert sorted(one.name for one in after.functions) == ["Inner", "Outer", "Theirs"]
    assert_same(before, after, feed(), rtol=0, atol=0)


def test_a_function_that_a_branch_in_a_function_calls() -> None:
    branches = [
        onnx.helper.make_graph(
            [onnx.helper.make_node("Inner", ["a"], [name], domain="ai.onnxopt")],
            name,
            [],
            [onnx.ValueInfoProto(name=name)],
        )
        for name in "pq"
    ]
    proto = function("local", "Outer", "Neg")
    del proto.node[:]
    proto.node.append(onnx.helper.make_node("ReduceMax", ["a"], ["m"], keepdims=0))
    proto.node.append(onnx.helper.make_node("Cast", ["m"], ["c"], to=onnx.TensorProto.BOOL))
    proto.node.append(onnx.helper.make_node("If", ["c"], ["b"], then_branch=branches[0], else_branch=branches[1]))
    before = graph("y = Outer(x)")
    before.graph.node[0].domain = "local"
    for domain in ("ai.onnxopt", "local"):
        before.opset_import.add(domain=domain, version=1)
    before.functions.extend([function("ai.onnxopt", "Inner", "Neg"), proto])
    after, _ = run_passes(before, PASS)
    assert sorted(one.name for one in after.functions) == ["Inner", "Outer"]
    assert_same(before, after, feed(), rtol=0, atol=0)


def test_nothing_dead_is_no_change() -> None:
    _, report = run_passes(graph("y = Neg(x)"), PASS)
    assert not report.records[0].modified
