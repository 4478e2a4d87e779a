"""Rows of constant tables."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "simplify_lookups"
RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((7, 5)).astype(np.float32)


def one_hot(
    table: np.ndarray = TABLE,
    classes: np.ndarray | None = None,
    *,
    kind: str = "int32",
    shape: str = "B,3,1",
    opset: int = 18,
) -> onnx.ModelProto:
    if classes is None:
        classes = np.arange(len(table)).reshape(1, 1, -1)
    body = "e = Equal(x, k)\n c = Cast<to=1>(e)\n y = MatMul(c, w)"
    return model(f"g ({kind}[{shape}] x) => (y) {{ {body} }}", opset=opset, k=classes.astype(kind), w=table)


def indices(kind: str = "int32") -> list[dict[str, np.ndarray]]:
    inside = RNG.integers(0, 7, (2, 3, 1)).astype(kind)
    outside = np.array([-1, 7, 300, -300, 0, 6], kind).reshape(2, 3, 1)
    return [{"x": inside}, {"x": outside}, {"x": inside[:0]}]


@pytest.mark.parametrize("kind", ["int32", "int64"])
@pytest.mark.parametrize("opset", [12, 13, 18])
def test_a_one_hot_product_is_a_lookup(kind: str, opset: int) -> None:
    before = one_hot(kind=kind, opset=opset)
    after, _ = run_passes(before, PASS)
    assert "MatMul" not in op_list(after) and op_list(after)[-1] == "Gather"
    assert_same(before, after, indices(kind))


@pytest.mark.parametrize(
    "before",
    [
        one_hot(np.where(TABLE > 1, np.inf, TABLE).astype(np.float32)),
        one_hot(classes=np.arange(1, 8).reshape(1, 1, -1)),
        one_hot(classes=np.array([0, 1, 2, 3, 4, 6, 5]).reshape(1, 1, -1)),
        one_hot(classes=np.arange(7).reshape(1, 7, 1), shape="B,7,7"),
        one_hot(shape="B,3,7"),
        one_hot(kind="float"),
        one_hot(opset=11),
    ],
    ids=["infinite", "from one", "out of order", "other axis", "several indices", "floats", "old opset"],
)
def test_refuses_other_products(before: onnx.ModelProto) -> None:
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


def rows(body: str, *, table: np.ndarray = TABLE, **constants: np.ndarray) -> onnx.ModelProto:
    return model(f"g (int64[B,2] i, int64[B,2] j) => (y) {{ g = Gather(t, i)\n {body} }}", t=table, **constants)


FEEDS = [
    {"i": np.array([[0, -1], [6, 3]]), "j": np.array([[1, 2], [0, 0]])},
    {k: np.zeros((0, 2), np.int64) for k in "ij"},
]
ROW = RNG.standard_normal(5).astype(np.float32)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("y = Exp(g)", {}),
        ("y = Add(g, c)", {"c": ROW}),
        ("y = Sub(c, g)", {"c": ROW.reshape(1, 1, 5)}),
        ("y = Mul(g, c)", {"c": np.float32(3)}),
        ("y = Mul(g, c)", {"c": np.full((1, 1, 1), 3, np.float32)}),
        ("h = Add(g, c)\n s = Sigmoid(h)\n y = Mul(h, s)", {"c": ROW}),
        ("h = Gather(u, i)\n y = Add(g, h)", {"u": TABLE[::-1].copy()}),
        ("y = Clip(g, c)", {"c": np.float32(0.1)}),
    ],
)
def test_what_is_computed_of_rows_is_computed_of_the_table(body: str, constants: dict[str, np.ndarray]) -> None:
    before = rows(body, **constants)
    after, _ = run_passes(before, PASS, "fold_constants", "eliminate_dead_code")
    assert op_list(after) == ["Gather"]
    assert_same(before, after, FEEDS)


def test_a_row_may_grow() -> None:
    before = rows("y = Add(g, c)", table=TABLE[:, :1].copy(), c=ROW)
    after, _ = run_passes(before, PASS, "fold_constants", "eliminate_dead_code")
    assert op_list(after) == ["Gather"]
    assert_same(before, after, FEEDS)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("h = Gather(u, j)\n y = Add(g, h)", {"u": TABLE}),
        ("y = Add(g, c)", {"c": RNG.standard_normal((2, 5)).astype(np.float32)}),
        ("y = Add(g, c)", {"c": RNG.standard_normal((1, 2, 1)).astype(np.float32)}),
        ("y = Add(g, c)", {"c": ROW.reshape(1, 1, 1, 5)}),
        ("y = Cast<to=11>(g)", {}),
        ("h = Gather<axis=1>(u, j)\n y = Exp(h)", {"u": TABLE}),
    ],
    ids=["other indices", "rows that differ", "columns that differ", "more dims", "Cast", "other axis"],
)
def test_refuses_what_differs_from_row_to_row(body: str, constants: dict[str, np.ndarray]) -> None:
    before = rows(body, **constants)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    expected, _ = run_passes(before, "eliminate_dead_code")
    assert op_list(after) == op_list(expected)


@pytest.mark.parametrize(
    ("table", "constants"),
    [
        (TABLE[0], {"c": ROW}),
        (TABLE[0], {"c": ROW[:1]}),
        (TABLE[:, :1], {"c": ROW[:1]}),
        (TABLE[:5], {"u": TABLE[0]}),
        (TABLE[:5], {"u": TABLE}),
        (TABLE[:5], {"u": TABLE[:1]}),
    ],
    ids=["numbers by index", "one number", "rows of one", "numbers and rows", "other rows", "one row"],
)
@pytest.mark.parametrize("index", [[0, 1, 3, 4, 2], [-1, 0, 0, -1, 0]])
def test_tables_of_other_shapes_keep_their_values(
    table: np.ndarray, constants: dict[str, np.ndarray], index: list[int]
) -> None:
    other = "h = Gather(u, i)\n" if "u" in constants else ""
    body = f"g = Gather(t, i)\n {other} y = Add(g, {'h' if other else 'c'})"
    before = model(f"g (int64[5] i) => (y) {{ {body} }}", t=table.copy(), **constants)
    indices = np.array(index)
    if constants.get("u") is not None and len(constants["u"]) == 1:
        indices = np.minimum(indices, 0)
    after, _ = run_passes(before, PASS, "fold_constants", "eliminate_dead_code")
    assert_same(before, after, {"i": indices}, rtol=0, atol=0)


@pytest.mark.parametrize(
    "body", ["p = Mul(g, g)\n y = Add(p, x)\n z = Add(g, x)", "p = Exp(g)\n y = Add(p, g)\n z = Neg(p)"]
)
def test_rows_that_others_read_too_stay(body: str) -> None:
    before = model(f"g (int64[B,2] i, float[B,2,5] x) => (y, z) {{ g = Gather(t, i)\n {body} }}", t=TABLE)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


def test_large_tables_are_left_alone() -> None:
    before = rows("y = Exp(g)", table=np.ones((3000, 400), np.float32))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Gather", "Exp"]
