"""Ifs whose branch is certain."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "inline_ifs"
X = np.array([[1, -2, np.nan], [np.inf, -np.inf, -0.0]], np.float32)
FEEDS = [{"x": X, "flag": np.array(flag)} for flag in (True, False)]


def graph(
    body: str, *, outputs: str = "float[2,3] y", shape: str = "2,3", opset: int = 17, **weights: np.ndarray
) -> onnx.ModelProto:
    return model(f"g (float[{shape}] x, bool flag) => ({outputs}) {{ {body} }}", opset=opset, **weights)


def choice(condition: str, then_body: str, else_body: str) -> str:
    """An If with one result: `t` of the first branch, `e` of the second."""
    branches = f"then_branch = a () => (float[2,3] t) {{ {then_body} }}, else_branch = b () => (float[2,3] e) {{ {else_body} }}"
    return f"If({condition}) <{branches}>"


SIMPLE = choice("c", "t = Neg(x)", "e = Abs(x)")


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("condition", [np.array(True), np.array(False), np.array([True])])
def test_constant_condition(condition: np.ndarray, opset: int) -> None:
    before = graph(f"y = {SIMPLE}", opset=opset, c=condition)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Neg" if condition.all() else "Abs"]
    assert_same(before, after, FEEDS)


@pytest.mark.parametrize(
    ("condition", "shape", "left"),
    [
        ("s = Shape(x)\n f = Gather(s, zero)\n c = Equal(f, two)", "2,3", "Neg"),
        ("s = Shape(x)\n f = Gather(s, zero)\n c = Greater(f, two)", "2,3", "Abs"),
        ("n = Size(x)\n m = Mod(n, two)\n c = Cast<to=9>(m)", "2,3", "Abs"),
        ("s = Shape(x)\n r = Size(s)\n c = Equal(r, two)", "N,3", "Neg"),
    ],
)
def test_condition_on_shapes(condition: str, shape: str, left: str) -> None:
    before = graph(f"{condition}\n y = {SIMPLE}", shape=shape, zero=np.array(0), two=np.array(2))
    if "zero" not in condition:
        del before.graph.initializer[0]
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == [left]
    assert_same(before, after, FEEDS)


@pytest.mark.parametrize(
    "before",
    [
        graph("y = " + choice("flag", "t = Neg(x)", "e = Abs(x)")),
        graph(f"s = ReduceSum(x)\n z = Squeeze(s)\n c = Cast<to=9>(z)\n y = {SIMPLE}"),
        graph(f"s = Shape(x)\n f = Gather(s, zero)\n c = Equal(f, two)\n y = {SIMPLE}", shape="N,3", zero=np.array(0), two=np.array(2)),
    ],
    ids=["an input", "data", "a symbolic dim"],
)  # fmt: skip
def test_refuses_conditions_of_run_time(before: onnx.ModelProto) -> None:
    after, _ = run_passes(before, PASS)
    assert "If" in op_list(after)
    assert_same(before, after, FEEDS)


def test_refuses_a_default_of_the_caller() -> None:
    before = graph(f"y = {SIMPLE}", c=np.array(True))
    before.graph.input.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["If"]
    assert_same(before, after, [{**FEEDS[0], "c": np.array(False)}, FEEDS[0]])


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize(
    ("then_body", "results"),
    [
        ("t = Neg(x) u = Exp(t)", "float[2,3] t, float[2,3] u"),
        ("t = Identity(x) u = Identity(x)", "float[2,3] t, float[2,3] u"),
        ("u = Neg(x) t = Identity(u)", "float[2,3] t, float[2,3] u"),
    ],
)
def test_several_results(then_body: str, results: str, flag: bool) -> None:
    branches = f"then_branch = a () => ({results}) {{ {then_body} }}"
    branches += ", else_branch = b () => (float[2,3] e, float[2,3] f) { e = Abs(x) f = Identity(e) }"
    before = graph(f"y, z = If(c) <{branches}>", outputs="float[2,3] y, float[2,3] z", c=np.array(flag))
    after, _ = run_passes(before, PASS)
    assert "If" not in op_list(after)
    assert [one.name for one in after.graph.output] == ["y", "z"]
    assert_same(before, after, FEEDS)


def test_a_result_that_is_an_initializer_of_the_branch() -> None:
    branches = "then_branch = a () => (float[2,3] t) <float[2,3] t = {1,2,3,4,5,6}> { }"
    branches += ", else_branch = b () => (float[2,3] e) { e = Abs(x) }"
    before = graph(f"p = If(c) <{branches}>\n y = Add(p, x)", c=np.array(True))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Add"]
    assert_same(before, after, FEEDS)


def test_names_of_inner_values_do_not_clash() -> None:
    inner = choice("c", "p = Neg(x) t = Exp(p)", "e = Abs(x)")
    before = graph(f"p = Sqrt(x)\n a_ = {inner}\n b_ = {inner}\n q = Add(a_, b_)\n y = Add(p, q)", c=np.array(True))
    for index, node in enumerate(one for one in before.graph.node if one.op_type == "If"):
        for branch in node.attribute:
            for inner_node in branch.g.node:
                inner_node.output[0] = {"p": f"p{index}"}.get(inner_node.output[0], inner_node.output[0])
                inner_node.input[0] = {"p": f"p{index}"}.get(inner_node.input[0], inner_node.input[0])
    after, _ = run_passes(before, PASS)
    assert sorted(op_list(after)) == ["Add", "Add", "Exp", "Exp", "Neg", "Neg", "Sqrt"]
    assert_same(before, after, FEEDS)


def test_nested_ifs() -> None:
    inner = choice("d", "t = Neg(x)", "e = Abs(x)").replace("a ()", "a2 ()").replace("b ()", "b2 ()")
    inner = inner.replace("] t)", "] t2)").replace("] e)", "] e2)").replace("t =", "t2 =").replace("e =", "e2 =")
    inner = inner.replace("then2", "then").replace("else2", "else")
    before = graph("y = " + choice("c", f"t = {inner}", "e = Exp(x)"), c=np.array(True), d=np.array(False))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Abs"]
    assert_same(before, after, FEEDS)


def nested(condition: str, *, where: str) -> onnx.ModelProto:
    """An If within a branch of an If; both test `flag`, or the inner one another value."""
    inner = f"If({condition}) <then_branch = c () => (float[2,3] p) {{ p = Neg(x) }}, else_branch = d () => (float[2,3] q) {{ q = Abs(x) }}>"
    then_body, else_body = (f"t = {inner}", "e = Exp(x)") if where == "then" else ("t = Exp(x)", f"e = {inner}")
    return graph(f"n = Not(flag)\n y = {choice('flag', then_body, else_body)}")


@pytest.mark.parametrize("where", ["then", "else"])
def test_decided_by_the_if_around_it(where: str) -> None:
    before = nested("flag", where=where)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    inner = {one.name: [node.op_type for node in one.g.node] for one in after.graph.node[0].attribute}
    expected = {"then": (["Neg"], ["Exp"]), "else": (["Exp"], ["Abs"])}[where]
    assert (inner["then_branch"], inner["else_branch"]) == expected
    assert_same(before, after, FEEDS)


@pytest.mark.parametrize("where", ["then", "else"])
def test_decided_by_the_opposite_of_the_if_around_it(where: str) -> None:
    before = nested("n", where=where)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["If"]
    inner = {one.name: [node.op_type for node in one.g.node] for one in after.graph.node[0].attribute}
    expected = {"then": (["Abs"], ["Exp"]), "else": (["Exp"], ["Neg"])}[where]
    assert (inner["then_branch"], inner["else_branch"]) == expected
    assert_same(before, after, FEEDS)


@pytest.mark.parametrize("outputs", ["float[2,3] y", "float[2,3] y, bool n"])
def test_opposite_condition_swaps_the_branches(outputs: str) -> None:
    before = graph("n = Not(flag)\n y = " + choice("n", "t = Neg(x)", "e = Abs(x)"), outputs=outputs)
    after, _ = run_passes(before, PASS)
    node = after.graph.node[-1]
    assert node.input == ["flag"]
    assert {one.name: one.g.node[0].op_type for one in node.attribute} == {"then_branch": "Abs", "else_branch": "Neg"}
    assert_same(before, after, FEEDS)


def test_inside_a_loop() -> None:
    inner = "If(c) <then_branch = t () => (float[2,3] p) { r = Neg(s) p = Add(r, x) }, else_branch = e () => (float[2,3] q) { q = Abs(s) }>"
    body = f"""y = Loop (n, , x) <body = b (int64 i, bool k, float[2,3] s) => (bool ko, float[2,3] so) {{
        ko = Identity(k)
        so = {inner}
    }}>"""
    before = graph(body, n=np.array(3), c=np.array(True))
    after, _ = run_passes(before, PASS)
    assert [node.op_type for node in after.graph.node[0].attribute[0].g.node] == ["Identity", "Neg", "Add"]
    assert_same(before, after, FEEDS)


def test_a_condition_carried_by_a_loop_stays() -> None:
    inner = "If(k) <then_branch = t () => (float[2,3] p) { p = Neg(s) }, else_branch = e () => (float[2,3] q) { q = Abs(s) }>"
    body = f"""y = Loop (n, yes, x) <body = b (int64 i, bool k, float[2,3] s) => (bool ko, float[2,3] so) {{
        ko = Less(i, one)
        so = {inner}
    }}>"""
    before = graph(body, n=np.array(3), yes=np.array(True), one=np.array(1))
    after, _ = run_passes(before, PASS)
    assert [node.op_type for node in after.graph.node[0].attribute[0].g.node] == ["Less", "If"]
    assert_same(before, after, FEEDS)


def test_shapes_known_after_inlining_serve_what_follows() -> None:
    branches = "then_branch = a () => (float[p, q] t) { t = Transpose(x) }"
    branches += ", else_branch = b () => (float[p, q, r] e) { e = Unsqueeze(x, zero) }"
    body = f"v = If(c) <{branches}>\n s = Shape(v)\n f = Gather(s, zero)\n d = Cast<to=1>(f)\n y = Mul(x, d)"
    before = graph(body, c=np.array(True), zero=np.array([0]))
    after, _ = run_passes(before, PASS, "fold_shapes", "eliminate_dead_code", "fold_constants")
    assert op_list(after) == ["Mul"]
    assert_same(before, after, FEEDS)


def test_empty_condition_is_not_decided() -> None:
    before = graph(f"y = {SIMPLE}", c=np.zeros((0,), bool))
    assert op_list(run_passes(before, PASS)[0]) == ["If"]


def test_nodes_of_both_branches_keep_apart_by_name() -> None:
    """onnxruntime refuses two nodes of one name in a graph."""
    before = graph(f"a = {SIMPLE}\n y = {choice('d', 't = Neg(a)', 'e = Abs(a)')}", c=np.array(True), d=np.array(True))
    for node in before.graph.node:
        node.attribute[0].g.node[0].name = "same"
    after, _ = run_passes(before, PASS)
    assert len({node.name for node in after.graph.node}) == 2
    assert_same(before, after, FEEDS)


def inner_if(condition: str, result: str) -> str:
    """The nodes of a branch: an If on `c`, which `condition` makes."""
    made = condition.replace("c = ", f"{result}c = ")
    branches = [
        f"{name} = b () => (float[2,3] {result}{name[0]}) {{ {result}{name[0]} = {op}(x) }}"
        for name, op in (("then_branch", "Neg"), ("else_branch", "Abs"))
    ]
    return f"{made} {result} = If({result}c) <{', '.join(branches)}>"


@pytest.mark.parametrize(
    ("condition", "inner", "then_op", "else_op"),
    [
        ("o = Identity(flag)", "c = Not(flag)", "Abs", "Neg"),
        ("o = Not(flag)", "c = Not(o)", "Neg", "Abs"),
        ("o = And(flag, other)", "c = Identity(other)", "Neg", "If"),
        ("o = Or(flag, other)", "c = Identity(other)", "If", "Abs"),
        ("o = And(flag, other)", "c = Or(flag, third)", "Neg", "If"),
        ("o = Equal(flag, yes)", "c = Identity(flag)", "Neg", "Abs"),
        ("o = Equal(rate, eight)", "c = Equal(rate, sixteen)", "Abs", "If"),
        ("o = Equal(rate, eight)", "c = Less(rate, sixteen)", "Neg", "If"),
        ("o = Equal(flag, other)", "c = Identity(other)", "If", "If"),
        ("o = Less(rate, eight)", "c = Less(rate, sixteen)", "If", "If"),
    ],
)
def test_condition_that_follows_from_the_outer_one(condition: str, inner: str, then_op: str, else_op: str) -> None:
    inside = [f"() => (float[2,3] {one}) {{ {inner_if(inner, one)} }}" for one in "pq"]
    body = f"{condition} y = If(o) <then_branch = m {inside[0]}, else_branch = n {inside[1]}>"
    text = f"g (float[2,3] x, bool flag, bool other, bool third, int64 rate) => (float[2,3] y) {{ {body} }}"
    numbers = {"yes": np.array(True), "eight": np.array(8), "sixteen": np.array(16)}
    before = model(text, **{name: number for name, number in numbers.items() if name in body})
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    outer = next(node for node in after.graph.node if node.op_type == "If")
    by_name = {attr.name: [one.op_type for one in attr.g.node][-1] for attr in outer.attribute}
    assert (by_name["then_branch"], by_name["else_branch"]) == (then_op, else_op)
    for flag in range(8):
        bits = {name: np.array(bool(flag >> bit & 1)) for bit, name in enumerate(("flag", "other", "third"))}
        for rate in (7, 8, 16, 17):
            feeds = {"x": X, **bits, "rate": np.array(rate)}
            known = {one.name for one in before.graph.input}
            assert_same(before, after, {name: array for name, array in feeds.items() if name in known})
