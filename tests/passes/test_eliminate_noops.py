"""Nodes that change nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASSES = ("eliminate_noops", "eliminate_dead_code")
RNG = np.random.default_rng(0)
TYPES = {"float": np.float32, "float16": np.float16, "double": np.float64, "int64": np.int64, "int32": np.int32}


def graph(
    body: str, *, outputs: str = "y", shape: str = "3,5", dtype: str = "float", opset: int = 17, **weights: np.ndarray
) -> onnx.ModelProto:
    return model(f"g ({dtype}[{shape}] x) => ({outputs}) {{ {body} }}", opset=opset, **weights)


def number(value: float, dtype: type = np.float32, shape: tuple[int, ...] = ()) -> np.ndarray:
    return np.full(shape, value, dtype)


def feed(dtype: type = np.float32, shape: tuple[int, ...] = (3, 5)) -> dict[str, np.ndarray]:
    x = RNG.uniform(-9, 9, shape)
    if np.dtype(dtype).kind == "f" and x.size > 4:
        x.reshape(-1)[:4] = np.nan, np.inf, -np.inf, 0.5
    return {"x": x.astype(dtype)}


def booleans() -> dict[str, np.ndarray]:
    return {"x": RNG.integers(0, 2, (3, 5)).astype(bool)}


NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1}


# --- neutral operands ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("op", NEUTRAL)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 1), (3, 5)])
def test_neutral_operand(op: str, dtype: str, shape: tuple[int, ...]) -> None:
    before = graph(f"y = {op}(x, c)", dtype=dtype, c=number(NEUTRAL[op], TYPES[dtype], shape))
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == ["Identity"]
    if not (op == "Pow" and dtype == "float16"):  # onnxruntime has no kernel of this type
        assert_same(before, after, feed(TYPES[dtype]), rtol=0, atol=0)


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_neutral_first_operand(op: str) -> None:
    before = graph(f"y = {op}(c, x)", c=number(NEUTRAL[op]))
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == ["Identity"]
    assert_same(before, after, feed(), rtol=0, atol=0)


@pytest.mark.parametrize(("op", "neutral"), [("Max", -np.inf), ("Min", np.inf)])
def test_neutral_bound(op: str, neutral: float) -> None:
    before = graph(f"y = {op}(x, c)", c=number(neutral))
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == ["Identity"]
    assert_same(before, after, feed(), rtol=0, atol=0)


@pytest.mark.parametrize(("op", "neutral"), [("And", True), ("Or", False), ("Xor", False)])
def test_neutral_boolean(op: str, neutral: bool) -> None:
    before = graph(f"y = {op}(x, c)", dtype="bool", c=np.array(neutral))
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == ["Identity"]
    assert_same(before, after, booleans())


@pytest.mark.parametrize(
    "before",
    [
        graph("y = Sub(c, x)", c=number(0)),
        graph("y = Div(c, x)", c=number(1)),
        graph("y = Pow(c, x)", c=number(1)),
        graph("y = Mul(x, c)", c=number(1.00001)),
        graph("y = Add(x, c)", c=number(1e-30)),
        graph("y = Mul(x, c)", c=np.array([1, 1, 1, 1, 2], np.float32)),
        graph("y = Mul(x, c)", c=number(np.nan)),
        graph("y = Add(x, c)", c=number(0, shape=(2, 1, 1))),
        graph("y = Add(x, c)", c=number(0, shape=(1, 1, 1))),
        graph("y = Max(x, c)", c=number(np.inf)),
        graph("y = Max(x, c, d)", c=number(-np.inf), d=number(1)),
        graph("y = Pow(x, c)", c=number(0)),
    ],
)
def test_refuses_what_is_not_neutral(before: onnx.ModelProto) -> None:
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == op_list(before)
    assert_same(before, after, feed())


@pytest.mark.parametrize("size", [1, 4])
def test_refuses_an_operand_that_may_broadcast(size: int) -> None:
    before = graph("y = Add(x, c)", shape="N", c=number(0, shape=(4,)))
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == ["Add"]
    assert_same(before, after, feed(shape=(size,)))


@pytest.mark.parametrize(("shape", "constant"), [("0,5", (5,)), ("1,5", (0, 5)), ("1", (0,))])
def test_empty_tensors(shape: str, constant: tuple[int, ...]) -> None:
    before = graph("y = Add(x, c)", shape=shape, c=number(0, shape=constant))
    after, _ = run_passes(before, *PASSES)
    assert_same(before, after, feed(shape=tuple(map(int, shape.split(",")))))


def test_refuses_a_zero_that_the_caller_gives() -> None:
    before = model("g (float[3] x, float c) => (float[3] y) { y = Add(x, c) }", c=number(0))
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == ["Add"]
    assert_same(before, after, {"x": feed(shape=(3,))["x"], "c": np.array(2, np.float32)})


def test_exponent_of_another_type() -> None:
    before = graph("y = Pow(x, c)", dtype="int64", c=number(1))
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == ["Identity"]
    assert_same(before, after, feed(np.int64))


# --- ops that change nothing ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("before", "left"),
    [
        (graph("a = Neg(x)\n b = Identity(a)\n y = Abs(b)"), ["Neg", "Abs"]),
        (graph("a = Neg(x)\n y = Identity(a)"), ["Neg"]),
        (graph("a = Neg(x)\n y = Identity(a)\n z = Identity(a)", outputs="y, z"), ["Neg", "Identity"]),
        (graph("y = Cast<to=1>(x)"), ["Identity"]),
        (graph("y = Cast<to=11>(x)"), ["Cast"]),
        (graph("y = CastLike(x, c)", c=number(1)), ["Identity"]),
        (graph("y = CastLike(x, c)", c=number(1, np.int64)), ["CastLike"]),
        (graph("y = Tile(x, c)", c=np.array([1, 1])), ["Identity"]),
        (graph("y = Tile(x, c)", c=np.array([1, 2])), ["Tile"]),
        (graph("y = Expand(x, c)", c=np.array([5])), ["Identity"]),
        (graph("y = Expand(x, c)", c=np.array([2, 1, 1])), ["Expand"]),
        (graph("s = Shape(x)\n y = Expand(x, s)", shape="N,5"), ["Identity"]),
        (graph("y = Expand(x, c)", shape="N,5", c=np.array([3, 1])), ["Expand"]),
        (graph("e = Expand(c, k)\n y = Sub(e, x)", c=number(2), k=np.array([5])), ["Sub"]),
        (graph("e = Expand(c, k)\n y = Mul(x, e)", c=number(2), k=np.array([4, 1, 1, 5])), ["Expand", "Mul"]),
        (graph("e = Expand(x, k)\n y = Mul(e, e)", k=np.array([4, 1, 1, 5])), ["Expand", "Mul"]),
        (graph("s = Shape(x)\n e = Expand(c, s)\n y = Max(x, e)", shape="N,5", c=number(2)), ["Max"]),
        (
            graph("e = Expand(c, k)\n b = Cast<to=9>(e)\n y = Where(b, x, e)", c=number(0), k=np.array([1, 5])),
            ["Cast", "Expand", "Where"],
        ),
        (
            graph("b = Cast<to=9>(x)\n e = Expand(c, k)\n y = Where(b, x, e)", c=number(2), k=np.array([1, 5])),
            ["Cast", "Where"],
        ),
        (
            graph("b = Cast<to=9>(x)\n e = Expand(b, k)\n y = Where(e, x, c)", c=number(2), k=np.array([3, 1, 1])),
            ["Cast", "Expand", "Where"],
        ),
        (graph("y = Sum(x)"), ["Identity"]),
        (graph("y = Mean(x)"), ["Identity"]),
        (graph("y = Max(x)"), ["Identity"]),
        (graph("y = Concat<axis=0>(x)"), ["Identity"]),
        (graph("y = Sum(x, x)"), ["Sum"]),
        (graph("a = Neg(x)\n y = Neg(a)"), ["Identity"]),
        (graph("a = Neg(x)\n y = Neg(a)", outputs="y, a"), ["Neg", "Identity"]),
        (graph("a = Neg(x)\n y = Abs(a)"), ["Neg", "Abs"]),
    ],
)
def test_single_nodes(before: onnx.ModelProto, left: list[str]) -> None:
    after, _ = run_passes(before, *PASSES)
    assert sorted(op_list(after)) == sorted(left)
    assert_same(before, after, feed(), rtol=0, atol=0)


@pytest.mark.parametrize("user", ["d = Sub(x, e)", "b = Cast<to=9>(x)\n d = Where(b, x, e)"])
@pytest.mark.parametrize("other", ["y = Concat<axis=-1>(d, e)", "y = Mul(d, e)"])
def test_an_expand_goes_for_all_or_for_none(user: str, other: str) -> None:
    before = graph(f"e = Expand(c, k)\n {user}\n {other}", c=number(2, shape=(1, 5)), k=np.array([3, 5]))
    after, _ = run_passes(before, *PASSES)
    expanded = [node.output[0] for node in after.graph.node if node.op_type == "Expand"]
    readers = [node.op_type for node in after.graph.node if set(expanded) & set(node.input)]
    assert len(readers) == (2 if "Concat" in other else 0)
    assert_same(before, after, feed())


@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (3, 3), (0, 1)])
@pytest.mark.parametrize(
    "body", ["e = Expand(z, s)\n y = Sub(x, e)", "b = Cast<to=9>(z)\n e = Expand(b, s)\n y = Where(e, x, c)"]
)
def test_expand_to_the_shape_of_an_operand_that_may_itself_be_broadcast(body: str, sizes: tuple[int, int]) -> None:
    """Of the two lengths nothing is known: the operand has to be broadcast after the Expand is gone."""
    first, second = sizes
    weights = {"c": number(2)} if "c)" in body else {}
    before = model(f"g (float[N,5] x, float[M,5] z) => (float[K,5] y) {{ s = Shape(x)\n {body} }}", **weights)
    after, _ = run_passes(before, *PASSES)
    assert "Expand" not in op_list(after)
    assert_same(before, after, {"x": feed(shape=(first, 5))["x"], "z": feed(shape=(second, 5))["x"]}, rtol=0, atol=0)


@pytest.mark.parametrize("op", ["Abs", "Ceil", "Floor", "Relu", "Round", "Sign"])
@pytest.mark.parametrize("outputs", ["y", "y, a"])
def test_repeated_idempotent_ops(op: str, outputs: str) -> None:
    before = graph(f"a = {op}(x)\n y = {op}(a)", outputs=outputs)
    after, _ = run_passes(before, *PASSES)
    assert op_list(after).count(op) == 1
    assert_same(before, after, feed(), rtol=0, atol=0)


@pytest.mark.parametrize("op", ["Exp", "Sigmoid", "Softplus", "Sqrt"])
def test_other_ops_are_repeated(op: str) -> None:
    before = graph(f"a = {op}(x)\n y = {op}(a)")
    assert op_list(run_passes(before, *PASSES)[0]) == [op, op]


def test_double_not() -> None:
    before = graph("a = Not(x)\n y = Not(a)", dtype="bool")
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == ["Identity"]
    assert_same(before, after, booleans())


def test_smallest_integer_twice_negated() -> None:
    before = graph("a = Neg(x)\n y = Neg(a)", dtype="int64")
    after, _ = run_passes(before, *PASSES)
    assert_same(before, after, {"x": np.full((3, 5), np.iinfo(np.int64).min)})


# --- Dropout -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("opset", [7, 10, 12, 13])
@pytest.mark.parametrize("outputs", ["y", "y, m"])
def test_dropout_passes_through(opset: int, outputs: str) -> None:
    before = graph(f"{outputs} = Dropout(x)", opset=opset)
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == ["Identity"]
    assert_same(before, after, feed(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("inputs", "left"),
    [
        ("x, half", ["Identity"]),
        ("x, half, no", ["Identity"]),
        ("x, , no", ["Identity"]),
        ("x, half, yes", ["Dropout"]),
        ("x, , yes", ["Dropout"]),
        ("x, half, flag", ["Dropout"]),
    ],
)
def test_dropout_that_may_train_stays(inputs: str, left: list[str]) -> None:
    weights = {"half": number(0.5), "no": np.array(False), "yes": np.array(True)}
    used = {name: array for name, array in weights.items() if name in inputs}
    before = model(f"g (float[3,5] x, bool flag) => (float[3,5] y) {{ y = Dropout({inputs}) }}", **used)
    assert op_list(run_passes(before, *PASSES)[0]) == left


@pytest.mark.parametrize("outputs", ["y, m", "m", "y, z"])
def test_dropout_with_a_mask_that_is_used_stays(outputs: str) -> None:
    before = graph("y, m = Dropout(x)\n z = Not(m)", outputs=outputs)
    after, _ = run_passes(before, *PASSES)
    assert "Dropout" in op_list(after)
    assert_same(before, after, feed())


def test_dropout_inside_branches() -> None:
    branches = "then_branch = a () => (float[3,5] t) { d = Dropout(x) t = Neg(d) }"
    branches += ", else_branch = b () => (float[3,5] e) { e = Dropout(x) }"
    before = model(f"g (float[3,5] x, bool flag) => (float[3,5] y) {{ y = If(flag) <{branches}> }}")
    after, _ = run_passes(before, *PASSES)
    inner = [[node.op_type for node in one.g.node] for one in after.graph.node[0].attribute]
    assert inner == [["Neg"], ["Identity"]]
    for flag in (True, False):
        assert_same(before, after, {**feed(), "flag": np.array(flag)})


# --- Where, Clip ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("condition", "left"),
    [
        (np.array(True), ["Neg"]),
        (np.array([False]), ["Abs"]),
        (np.full((3, 5), True), ["Neg"]),
        (np.full((2, 1, 1), True), ["Neg", "Abs", "Where"]),
        (np.array([True, True, True, True, False]), ["Neg", "Abs", "Where"]),
    ],
)
def test_where_of_a_constant(condition: np.ndarray, left: list[str]) -> None:
    before = graph("a = Neg(x)\n b = Abs(x)\n y = Where(c, a, b)", c=condition)
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == left
    assert_same(before, after, feed())


def test_where_of_a_branch_that_broadcasts_stays() -> None:
    before = graph("y = Where(c, one, x)", c=np.array(True), one=number(1))
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == ["Where"]
    assert_same(before, after, feed())


@pytest.mark.parametrize(("shape", "left"), [("3,5", ["Identity"]), ("2,3,5", ["Where"]), ("0,5", ["Where"])])
def test_where_of_equal_branches(shape: str, left: list[str]) -> None:
    rows = "1,5" if shape.startswith("0") else "3,5"
    before = model(f"g (float[{rows}] x, bool[{shape}] c) => (y) {{ y = Where(c, x, x) }}")
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == left
    dims = tuple(map(int, shape.split(",")))
    x = feed(shape=tuple(map(int, rows.split(","))))
    assert_same(before, after, {**x, "c": RNG.integers(0, 2, dims).astype(bool)})


@pytest.mark.parametrize("outputs", ["y", "y, n"])
def test_where_of_the_opposite(outputs: str) -> None:
    before = model(f"g (float[3] x, bool[3] c) => ({outputs}) {{ n = Not(c)\n a = Neg(x)\n y = Where(n, x, a) }}")
    after, _ = run_passes(before, *PASSES)
    assert [node.input[0] for node in after.graph.node if node.op_type == "Where"] == ["c"]
    assert_same(before, after, {"x": feed(shape=(3,))["x"], "c": np.array([True, False, True])})


@pytest.mark.parametrize(
    ("clip", "left"),
    [
        ("Clip(a, zero, six)", ["Clip"]),
        ("Clip(a, one)", ["Clip"]),
        ("Clip(a, minus, six)", ["Relu", "Clip"]),
        ("Clip(a, , six)", ["Relu", "Clip"]),
        ("Clip(a, low, six)", ["Relu", "Clip"]),
    ],
)
def test_relu_before_clip(clip: str, left: list[str]) -> None:
    numbers = {"zero": 0, "six": 6, "one": 1, "minus": -1}
    weights = {name: number(value) for name, value in numbers.items() if name in clip}
    before = model(f"g (float[3,5] x, float low) => (float[3,5] y) {{ a = Relu(x)\n y = {clip} }}", **weights)
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == left
    assert_same(before, after, {**feed(), "low": np.array(-2, np.float32)})


@pytest.mark.parametrize(("lowest", "left"), [("0.0", ["Clip"]), ("-1.0", ["Relu", "Clip"])])
def test_relu_before_clip_of_old_opsets(lowest: str, left: list[str]) -> None:
    before = graph(f"a = Relu(x)\n y = Clip<min={lowest}, max=6.0>(a)", opset=10)
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == left
    assert_same(before, after, feed())


# --- outputs of the graph ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("y = Identity(x)", "y"),
        ("y = Identity(x)\n z = Identity(x)", "y, z"),
        ("y = Add(x, zero)\n z = Neg(y)", "y, z"),
        ("a = Neg(x)\n y = Identity(a)\n z = Identity(y)", "a, y, z"),
        ("y = Identity(one)\n z = Add(x, y)", "y, z"),
    ],
)
def test_names_of_outputs_stay(body: str, outputs: str) -> None:
    weights = {name: number(value) for name, value in {"zero": 0, "one": 1}.items() if name in body}
    before = graph(body, outputs=outputs, **weights)
    after, _ = run_passes(before, *PASSES)
    assert [one.name for one in after.graph.output] == outputs.split(", ")
    assert_same(before, after, feed(), rtol=0, atol=0)


def test_refuses_ops_of_other_domains() -> None:
    before = graph("y = Identity(x)", outputs="float[3,5] y")
    before.graph.node[0].domain = "custom"
    before.graph.node[0].op_type = "Dropout"
    before.opset_import.add(domain="custom", version=1)
    assert op_list(run_passes(before, *PASSES)[0]) == ["Dropout"]
