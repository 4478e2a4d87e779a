"""What is computed twice is computed once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxopt
from helpers import assert_same, model, op_list, run_passes

PASS = "eliminate_common_subexpressions"
RNG = np.random.default_rng(0)
BRANCHES = "then_branch = yes () => (float[3, 5] t) {{ {0} }}, else_branch = no () => (float[3, 5] e) {{ {1} }}"


def graph(
    body: str, *, outputs: str = "float[3,5] y", inputs: str = "float[3,5] x, bool c", **weights: np.ndarray
) -> onnx.ModelProto:
    return model(f"g ({inputs}) => ({outputs}) {{ {body} }}", **weights)


def choice(then_body: str, else_body: str, condition: str = "c") -> str:
    return f"If ({condition}) <{BRANCHES.format(then_body, else_body)}>"


def feeds() -> list[dict[str, np.ndarray]]:
    x = RNG.standard_normal((3, 5)).astype(np.float32)
    x[0, 0], x[1, 1], x[2, 2], x[0, 3] = np.nan, np.inf, -np.inf, -0.0
    return [{"x": x, "c": np.array(flag)} for flag in (True, False)]


@pytest.mark.parametrize(
    ("before", "left"),
    [
        (graph("a = Exp(x)\n b = Exp(x)\n y = Add(a, b)"), ["Exp", "Add"]),
        (graph("a = Exp(x)\n b = Exp(x)\n p = Neg(a)\n q = Neg(b)\n y = Mul(p, q)"), ["Exp", "Neg", "Mul"]),
        (graph("y = Exp(x)\n b = Exp(x)\n z = Neg(b)", outputs="y, z"), ["Exp", "Neg"]),
        (graph("b = Exp(x)\n y = Exp(x)\n z = Neg(b)", outputs="y, z"), ["Exp", "Neg"]),
        (
            graph("a = LeakyRelu<alpha=0.5>(x)\n b = LeakyRelu<alpha=0.5>(x)\n y = Add(a, b)"),
            ["LeakyRelu", "Add"],
        ),
        (
            graph("a, i = TopK(x, k)\n b, j = TopK(x, k)\n p = Add(a, b)\n q = Cast<to=1>(i)\n y = Add(p, q)", k=np.array([5])),
            ["TopK", "Add", "Cast", "Add"],
        ),
        (graph("a = Clip(x, , high)\n b = Clip(x, , high)\n y = Add(a, b)", high=np.float32([1])[0]), ["Clip", "Add"]),
        (graph(f"a = {choice('t = Exp(x)', 'e = Neg(x)')}\n b = {choice('t = Exp(x)', 'e = Neg(x)')}\n y = Add(a, b)"), ["If", "Add"]),
    ],
    ids=["pair", "chain", "first is an output", "second is an output", "attributes", "several outputs", "absent input", "subgraphs"],
)  # fmt: skip
def test_merges(before: onnx.ModelProto, left: list[str]) -> None:
    after, _ = run_passes(before, PASS)
    assert op_list(after) == left
    assert_same(before, after, feeds(), rtol=0, atol=0)


def test_inner_names_do_not_tell_subgraphs_apart() -> None:
    first, second = choice("p = Exp(x)\n t = Abs(p)", "e = Neg(x)"), choice("q = Exp(x)\n t = Abs(q)", "e = Neg(x)")
    before = graph(f"a = {first}\n b = {second}\n y = Add(a, b)")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["If", "Add"]
    assert_same(before, after, feeds(), rtol=0, atol=0)


def test_a_branch_takes_the_value_of_the_outer_graph() -> None:
    before = graph(f"a = Exp(x)\n b = {choice('p = Exp(x) t = Neg(p)', 'e = Abs(x)')}\n y = Add(a, b)")
    after, _ = run_passes(before, PASS)
    branches = {one.name: [node.op_type for node in one.g.node] for one in after.graph.node[1].attribute}
    assert branches == {"then_branch": ["Neg"], "else_branch": ["Abs"]}
    assert_same(before, after, feeds(), rtol=0, atol=0)


def test_a_loop_body_takes_the_value_of_the_outer_graph() -> None:
    body = """a = Exp(x)
        b = Loop (n, , x) <body = b (int64 i, bool k, float[3, 5] s) => (bool ko, float[3, 5] so) {
            ko = Identity(k)
            e = Exp(x)
            so = Add(s, e)
        }>
        y = Add(a, b)"""
    before = graph(body, n=np.array(3))
    after, _ = run_passes(before, PASS)
    assert [node.op_type for node in after.graph.node[1].attribute[0].g.node] == ["Identity", "Add"]
    assert_same(before, after, feeds(), rtol=1e-6, atol=1e-6)


def test_equal_initializers_are_one_input_after_deduplication() -> None:
    before = graph("a = Add(x, v)\n b = Add(x, w)\n y = Mul(a, b)", v=np.ones(5, np.float32), w=np.ones(5, np.float32))
    after, _ = run_passes(before, "deduplicate_initializers", PASS)
    assert op_list(after) == ["Add", "Mul"]
    assert_same(before, after, feeds(), rtol=0, atol=0)


def test_the_pipeline_merges_nodes_of_equal_constants() -> None:
    body = """v = Constant<value_float=2.5>()
        w = Constant<value = float {2.5}>()
        a = PRelu(x, v)
        b = PRelu(x, w)
        t = Transpose(b)
        y = MatMul(a, t)"""
    before = graph(body, outputs="float[3,3] y")
    after = onnxopt.optimize(before, target="generic")
    assert op_list(after).count("PRelu") == 1
    assert_same(before, after, feeds())


@pytest.mark.parametrize(
    "before",
    [
        graph("y = Exp(x)\n z = Exp(x)", outputs="y, z"),
        graph("a = LeakyRelu<alpha=0.5>(x)\n b = LeakyRelu<alpha=0.25>(x)\n y = Add(a, b)"),
        graph("a = Sub(x, v)\n b = Sub(v, x)\n y = Add(a, b)", v=np.ones(5, np.float32)),
        graph("a = Clip(x, , v)\n b = Clip(x, v)\n y = Add(a, b)", v=np.float32([1])[0]),
        graph(f"a = {choice('t = Exp(x)', 'e = Neg(x)')}\n b = {choice('t = Exp(x)', 'e = Abs(x)')}\n y = Add(a, b)"),
        graph(f"a = {choice('t = Exp(x)', 'e = Neg(x)')}\n b = {choice('t = Neg(x)', 'e = Exp(x)')}\n y = Add(a, b)"),
        graph(f"y = {choice('t = Exp(x)', 'e = Exp(x)')}"),
    ],
    ids=["both outputs", "attribute", "operand order", "absent input", "subgraph", "swapped branches", "two branches"],
)
def test_refuses(before: onnx.ModelProto) -> None:
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)
    assert_same(before, after, feeds(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "op",
    [
        "RandomUniformLike(x)",
        "RandomNormalLike(x)",
        "RandomUniform<shape=[3, 5]>()",
        "Bernoulli(x)",
        "Multinomial(x)",
        "Dropout(x, half, c)",
        f"If (c) <{BRANCHES.format('t = RandomUniformLike(x)', 'e = Exp(x)')}>",
    ],
)
def test_merges_nothing_random(op: str) -> None:
    before = graph(
        f"a = {op}\n b = {op}\n p = Cast<to=1>(a)\n q = Cast<to=1>(b)\n y = Sub(p, q)", half=np.float32([0.5])[0]
    )
    after, _ = run_passes(before, PASS)
    assert len(after.graph.node) == len(before.graph.node)


def test_refuses_ops_of_unknown_domains() -> None:
    before = graph("a = Exp(x)\n b = Exp(x)\n y = Add(a, b)")
    for node in before.graph.node[:2]:
        node.domain = "custom"
    before.opset_import.add(domain="custom", version=1)
    assert op_list(run_passes(before, PASS)[0]) == ["Exp", "Exp", "Add"]


@pytest.mark.parametrize("first", ["p, q", "p", ", q"])
@pytest.mark.parametrize("second", ["r, s", "r", ", s"])
def test_optional_outputs_that_only_one_node_has(first: str, second: str) -> None:
    names = [name for name in (first + "," + second).replace(" ", "").split(",") if name]
    uses = "\n".join(f"{name}_out = Neg({name})" for name in names)
    before = graph(
        f"{first} = GRU<hidden_size=2>(x, w, r_)\n {second} = GRU<hidden_size=2>(x, w, r_)\n {uses}",
        outputs=", ".join(f"{name}_out" for name in names),
        inputs="float[3, 1, 5] x",
        w=RNG.standard_normal((1, 6, 5)).astype(np.float32),
        r_=RNG.standard_normal((1, 6, 2)).astype(np.float32),
    )
    after, _ = run_passes(before, PASS)
    assert_same(before, after, {"x": RNG.standard_normal((3, 1, 5)).astype(np.float32)}, rtol=0, atol=0)


@pytest.mark.parametrize("counts", [(3, 2), (2, 3)])
def test_splits_into_other_numbers_of_parts_are_two(counts: tuple[int, int]) -> None:
    first, second = (
        ", ".join(f"{name}{index}" for index in range(count)) for name, count in zip("pq", counts, strict=True)
    )
    before = graph(
        f"{first} = Split(x)\n {second} = Split(x)\n y = Neg(p0)\n z = Abs(q0)",
        outputs="float[A, 5] y, float[B, 5] z",
        inputs="float[N, 5] x",
    )
    after, _ = run_passes(before, PASS)
    assert_same(before, after, {"x": RNG.standard_normal((6, 5)).astype(np.float32)}, rtol=0, atol=0)


def test_an_output_of_a_branch_is_made_inside_of_it() -> None:
    before = graph(f"a = Exp(x)\n b = {choice('t = Exp(x)', 'e = Abs(x)')}\n y = Add(a, b)")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Exp", "If", "Add"]
    assert_same(before, after, feeds(), rtol=0, atol=0)
