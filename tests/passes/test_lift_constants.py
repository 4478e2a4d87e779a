"""Constant nodes, and initializers of subgraphs, become initializers of the main graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "lift_constants"
FEEDS = [{"x": np.arange(6, dtype=np.float32).reshape(2, 3), "flag": np.array(flag)} for flag in (True, False)]


def graph(body: str, *, outputs: str = "y", opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    return model(f"g (float[2,3] x, bool flag) => ({outputs}) {{ {body} }}", opset=opset, **weights)


def choice(then_body: str, else_body: str) -> str:
    return (
        f"If(flag) <then_branch = t () => (float[2,3] p) {then_body}, else_branch = e () => (float[2,3] q) {else_body}>"
    )


def constants(proto: onnx.ModelProto) -> list[np.ndarray]:
    return [onnx.numpy_helper.to_array(one) for one in proto.graph.initializer]


def branches(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    return next([one.g for one in node.attribute] for node in proto.graph.node if node.attribute)


@pytest.mark.parametrize(
    ("attribute", "dtype", "shape"),
    [
        ("value = float[2, 3] {1, 2, 3, 4, 5, 6}", np.float32, (2, 3)),
        ("value = float16[1] {1}", np.float16, (1,)),
        ("value = double {1.5}", np.float64, ()),
        ("value = bool[3] {1, 0, 1}", np.bool_, (3,)),
        ("value = uint8[3] {1, 0, 255}", np.uint8, (3,)),
        ("value = int64[0] {}", np.int64, (0,)),
        ("value_float = 2.5", np.float32, ()),
        ("value_floats = [2.5, 3.5, 4.5]", np.float32, (3,)),
        ("value_int = 9223372036854775807", np.int64, ()),
        ("value_ints = [1, 2, -3]", np.int64, (3,)),
    ],
)
def test_forms_of_constants(attribute: str, dtype: type, shape: tuple[int, ...]) -> None:
    size = "c = Size(k)" if 0 in shape else "c = Identity(k)"
    before = graph(f"k = Constant<{attribute}>()\n {size}\n d = Cast<to=1>(c)\n y = Add(x, d)")
    after, _ = run_passes(before, PASS)
    assert "Constant" not in op_list(after)
    (array,) = constants(after)
    assert (array.dtype, array.shape) == (dtype, shape)
    assert_same(before, after, FEEDS, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("value_float = 0.0", "value_float = -0.0"),
        ("value_float = 1.0", "value_floats = [1.0]"),
        ("value_float = 1.0", "value = double {1}"),
        ("value_int = 1", "value = int32 {1}"),
    ],
)
def test_constants_that_differ_stay_two(first: str, second: str) -> None:
    body = f"a = Constant<{first}>()\n b = Constant<{second}>()\n c = Cast<to=1>(a)\n d = Cast<to=1>(b)\n e = Div(x, c)\n y = Div(e, d)"
    before = graph(body)
    after, _ = run_passes(before, PASS)
    assert len(constants(after)) == 2
    assert_same(before, after, FEEDS, rtol=0, atol=0)


def test_large_constants_are_not_compared() -> None:
    wide = np.zeros(2000, np.float32)
    nodes = [onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(wide)) for name in "ab"]
    before = graph("s = ReduceSum<keepdims=0>(a)\n t = ReduceSum<keepdims=0>(b)\n e = Add(x, s)\n y = Add(e, t)")
    before.graph.node.insert(0, nodes[0])
    before.graph.node.insert(0, nodes[1])
    after, _ = run_passes(before, PASS)
    assert len(constants(after)) == 2
    assert_same(before, after, FEEDS, rtol=0, atol=0)


@pytest.mark.parametrize("opset", [9, 11, 13, 21])
def test_opsets(opset: int) -> None:
    before = graph("a = Constant<value = float[3] {1, 2, 3}>()\n y = Add(x, a)", opset=opset)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Add"]
    assert_same(before, after, FEEDS, rtol=0, atol=0)


def test_a_constant_that_is_an_output_keeps_its_name() -> None:
    before = graph("c = Constant<value_float=2.5>()\n y = Add(x, c)", outputs="y, c")
    after, _ = run_passes(before, PASS)
    assert [one.name for one in after.graph.output] == ["y", "c"]
    assert_same(before, after, FEEDS, rtol=0, atol=0)


def test_constants_of_branches() -> None:
    then_body = "{ c = Constant<value = float[3] {1, 2, 3}>() p = Add(x, c) }"
    else_body = (
        "{ c = Constant<value = float[3] {1, 2, 3}>() d = Constant<value_float = 4.0>() r = Mul(x, c) q = Add(r, d) }"
    )
    before = graph(f"y = {choice(then_body, else_body)}")
    after, _ = run_passes(before, PASS)
    assert [[node.op_type for node in one.node] for one in branches(after)] == [["Add"], ["Mul", "Add"]]
    assert len(constants(after)) == 2, "the two branches share one"
    assert_same(before, after, FEEDS, rtol=0, atol=0)


def test_equal_names_in_two_branches() -> None:
    then_body = "<float[3] w = {1, 2, 3}> { p = Add(x, w) }"
    else_body = "<float[3] w = {4, 5, 6}> { q = Add(x, w) }"
    before = graph(f"y = {choice(then_body, else_body)}")
    after, _ = run_passes(before, PASS)
    assert sorted(array.tolist() for array in constants(after)) == [[1, 2, 3], [4, 5, 6]]
    assert all(not one.initializer for one in branches(after))
    assert_same(before, after, FEEDS, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("{ p = Constant<value = float[2, 3] {1, 2, 3, 4, 5, 6}>() }", (["Constant"], [])),
        ("<float[2, 3] p = {1, 2, 3, 4, 5, 6}> { }", ([], ["p"])),
    ],
    ids=["node", "initializer"],
)
def test_a_result_of_a_branch_stays_in_it(body: str, left: tuple[list[str], list[str]]) -> None:
    before = graph(f"y = {choice(body, '{ q = Neg(x) }')}")
    after, _ = run_passes(before, PASS)
    branch = branches(after)[0]
    assert ([node.op_type for node in branch.node], [one.name for one in branch.initializer]) == left
    assert_same(before, after, FEEDS, rtol=0, atol=0)


def test_nested_bodies() -> None:
    inner = "If(k) <then_branch = t () => (float[2,3] p) { c = Constant<value_float=3.0>() p = Add(s, c) }, else_branch = e () => (float[2,3] q) { q = Neg(s) }>"
    loop = f"""y = Loop (n, , x) <body = b (int64 i, bool k, float[2,3] s) => (bool ko, float[2,3] so) {{
        ko = Identity(k)
        so = {inner}
    }}>"""
    before = graph(f"n = Constant<value_int=3>()\n {loop}", outputs="float[2,3] y")
    after, _ = run_passes(before, PASS)
    assert sorted(array.item() for array in constants(after)) == [3, 3.0]
    assert "Constant" not in after.SerializeToString().decode("latin-1")
    assert_same(before, after, FEEDS, rtol=0, atol=0)


def test_sparse_constants_stay() -> None:
    before = graph("y = Add(x, c)", outputs="float[2,3] y")
    values = onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [1], [5.0])
    indices = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [1], [1])
    sparse = onnx.helper.make_sparse_tensor(values, indices, [3])
    before.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Constant", "Add"]


def test_attributes_of_functions_stay() -> None:
    before = graph("y = Scaled<factor=3.0>(x)", outputs="float[2,3] y")
    before.graph.node[0].domain = "local"
    before.opset_import.add(domain="local", version=1)
    factor = onnx.helper.make_node("Constant", [], ["c"])
    factor.attribute.add(name="value_float", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT)
    nodes = [factor, onnx.helper.make_node("Mul", ["a", "c"], ["b"])]
    opsets = [onnx.helper.make_opsetid("", 17)]
    before.functions.append(onnx.helper.make_function("local", "Scaled", ["a"], ["b"], nodes, opsets, ["factor"]))
    after, _ = run_passes(before, PASS)
    assert [node.op_type for node in after.functions[0].node] == ["Constant", "Mul"]
    assert_same(before, after, FEEDS, rtol=0, atol=0)


def test_nothing_to_lift_is_no_change() -> None:
    _, report = run_passes(graph("y = Neg(x)"), PASS)
    assert not report.records[0].modified
