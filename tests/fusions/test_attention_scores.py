"""What stands between the products of attention: scales, masks of all forms, limits."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from attention import CORE, LOWEST, RNG, Array, assert_same, core, fused, normal, operands, refusals
from helpers import model

pytest.importorskip("onnxopt._native", reason="the native library is not built")

BETWEEN = {
    "scaled": ("c = Constant<value_float = 0.25>() a = Mul(s, c) p = Softmax<axis = -1>(a)", {}),
    "divided": ("c = Constant<value_float = 4.0>() a = Div(s, c) p = Softmax<axis = -1>(a)", {}),
    "masked": ("a = Add(s, m) p = Softmax<axis = -1>(a)", {"m": (2, 1, 5, 7)}),
    "mask first": ("a = Add(m, s) p = Softmax<axis = 3>(a)", {"m": (1, 1, 1, 7)}),
    "two masks": ("a = Add(s, m) b = Add(a, n) p = Softmax<axis = -1>(b)", {"m": (1, 2, 5, 7), "n": (5, 7)}),
    "scaled and masked": (
        "c = Constant<value_float = 0.25>() a = Mul(c, s) b = Add(a, m) p = Softmax<axis = -1>(b)",
        {"m": (2, 1, 1, 7)},
    ),
    "masked and scaled": (
        "c = Constant<value_float = 0.25>() a = Add(s, m) b = Mul(a, c) p = Softmax<axis = -1>(b)",
        {"m": (2, 1, 5, 7)},
    ),
    "mask subtracted": ("a = Sub(s, m) p = Softmax<axis = -1>(a)", {"m": (2, 1, 1, 7)}),
    "mask subtracted and scaled": (
        "c = Constant<value_float = 4.0>() a = Sub(s, m) b = Add(a, n) d = Div(b, c) p = Softmax<axis = -1>(d)",
        {"m": (2, 2, 5, 7), "n": (5, 7)},
    ),
    "capped": (
        "c = Constant<value_float = 3.0>() a = Div(s, c) b = Tanh(a) d = Mul(b, c) p = Softmax<axis = -1>(d)",
        {},
    ),
    "NaNs cleared": (
        "z = Constant<value_float = 0.0>() e = Softmax<axis = -1>(s) n = IsNaN(e) p = Where(n, z, e)",
        {},
    ),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_takes_in_what_is_between(case: str) -> None:
    between, masks = BETWEEN[case]
    declared = "".join(f", float[{','.join(map(str, shape))}] {name}" for name, shape in masks.items())
    proto = core(
        between, declared.replace("[2,", "[B,").replace(",5,", ",S,").replace("[5,", "[S,").replace(",7]", ",T]")
    )
    assert_same(proto, operands() | {name: normal(*shape) for name, shape in masks.items()})


@pytest.mark.parametrize(("order", "word"), [("m, s, f", "keep"), ("m, f, s", "hide")])
@pytest.mark.parametrize("fill", ["-1e9", "-inf"])
def test_boolean_mask(order: str, word: str, fill: str) -> None:
    number = np.array(float(fill), np.float32)
    text = f"""g ({CORE}, bool[B,1,S,T] m) => (float[B,2,S,6] y) {{
        kt = Transpose<perm = [0, 1, 3, 2]>(k)  s = MatMul(q, kt)
        a = Where({order})  p = Softmax<axis = -1>(a)  y = MatMul(p, v)
    }}"""
    proto = model(text, f=number)
    assert fused(proto)["masks"] == f"{word}={float(number)!r}"
    mask = RNG.random((2, 1, 5, 7)) < 0.5
    mask[..., 0] = word == "keep"
    assert_same(proto, operands() | {"m": mask})


TRIANGLE = np.tril(np.ones((1, 1, 9, 9), np.float32))
SCALED = "c = Constant<value_float = 0.25>() d = Mul(s, c) "


HIDING = {
    "constants": (SCALED + "e = Mul(d, b) a = Add(e, f) p = Softmax<axis = -1>(a)", {"f": -1e4 * (1 - TRIANGLE)}),
    "in the other order": (
        SCALED + "e = Mul(b, d) a = Add(f, e) p = Softmax<axis = -1>(a)",
        {"f": -1e4 * (1 - TRIANGLE)},
    ),
    "another mask after it": (
        SCALED + "e = Mul(d, b) a = Add(e, f) g = Add(a, m) p = Softmax<axis = -1>(g)",
        {"f": -1e4 * (1 - TRIANGLE), "m": normal(1, 2, 9, 9)},
    ),
    "scaled after it": (
        "e = Mul(s, b) a = Add(e, f) " + SCALED.replace("(s,", "(a,") + "p = Softmax<axis = -1>(d)",
        {"f": -1e4 * (1 - TRIANGLE)},
    ),
    "computed": (
        "r = Sub(one, b) f = Mul(r, low) e = Mul(s, b) a = Add(e, f) p = Softmax<axis = -1>(a)",
        {"one": np.array(1, np.float32), "low": np.array(-1e4, np.float32)},
    ),
    "a part of a table": (
        """t = Slice(table, zero, size, two) b = Slice(t, zero, size, three) r = Sub(one, b) f = Mul(low, r)
        e = Mul(s, b) a = Add(e, f) p = Softmax<axis = -1>(a)""",
        {
            "one": np.array(1, np.float32),
            "low": np.array(-1e4, np.float32),
            "size": np.array([9]),
            "zero": np.array([0]),
            "two": np.array([2]),
            "three": np.array([3]),
            "table": np.tril(np.ones((1, 1, 20, 20), np.float32)),
        },
    ),
}


def square(between: str, weights: dict[str, Array], b: Array = TRIANGLE) -> onnx.ModelProto:
    """Nine rows and keys."""
    text = f"""g (float[2,2,9,8] q, float[2,2,9,8] k, float[2,2,9,6] v) => (float[2,2,9,6] y) {{
        kt = Transpose<perm = [0, 1, 3, 2]>(k)  s = MatMul(q, kt)  {between}  y = MatMul(p, v) }}"""
    return model(text, **weights, **({} if "b = " in between else {"b": b}))


@pytest.mark.parametrize("case", HIDING)
def test_scores_that_are_hidden_by_a_product_and_a_sum(case: str) -> None:
    proto = square(*HIDING[case])
    assert fused(proto)["masks"].split()[0] == f"keep={-2500.0 if case == 'scaled after it' else -10000.0}"
    assert_same(proto, operands(2, 9, 9))


@pytest.mark.parametrize(
    "f", [-1e4 * TRIANGLE, -1e4 * (1 - TRIANGLE) + 1, -1e4 * (1 - TRIANGLE[0]), np.linspace(-9, -8, 81)]
)
def test_refuses_sums_that_are_not_those_of_hidden_scores(f: Array) -> None:
    between = HIDING["constants"][0]
    proto = square(between, {"f": f.reshape((1, 1, 9, 9) if f.ndim == 1 else f.shape).astype(np.float32)})
    assert any("scaled by no constant" in one for one in refusals(proto))


def test_refuses_products_with_other_numbers_than_zero_and_one() -> None:
    proto = square(*HIDING["constants"], b=TRIANGLE / 2)
    assert any("scaled by no constant" in one for one in refusals(proto))


LIMITED = {
    "mask": "a = Add(s, m) x = Max(a, low) p = Softmax<axis = -1>(x)",
    "mask, the number first": "a = Add(m, s) x = Max(low, a) p = Softmax<axis = -1>(x)",
    "scaled mask": SCALED + "a = Add(d, m) x = Max(a, low) p = Softmax<axis = -1>(x)",
    "scores": "x = Max(s, low) p = Softmax<axis = -1>(x)",
    "a mask after it": "x = Max(s, low) a = Add(x, m) p = Softmax<axis = -1>(a)",
}


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("case", LIMITED)
def test_scores_that_are_limited_from_below(case: str, constant: bool) -> None:
    """Rows that are hidden whole take the mean of all values."""
    mask = np.where(RNG.random((2, 1, 5, 7)) < 0.5, LOWEST, 0).astype(np.float32)
    if case not in ("scores", "a mask after it"):
        mask[0, 0, 1], mask[1, 0, 3], mask[1, 0, 4, :3] = -np.inf, LOWEST, -np.inf
    between = LIMITED[case]
    weights = {"low": np.array(LOWEST, np.float32)} | ({"m": mask} if constant and "m" in between else {})
    declared = "" if constant or case == "scores" else ", float[B,1,S,T] m"
    proto = model(
        f"""g ({CORE.replace("B", "2").replace("S", "5").replace("T", "7") if constant else CORE}{declared}) => (float[?,2,?,6] y) {{
        kt = Transpose<perm = [0, 1, 3, 2]>(k)  s = MatMul(q, kt)  {between}  y = MatMul(p, v) }}""",
        **weights,
    )
    assert_same(proto, operands() | ({"m": mask} if declared else {}))


def test_mask_of_scores_whose_batches_are_written_as_windows() -> None:
    """Axes of size 1 that reshaped scores have, and the mask with them, are none of the op's."""
    text = f"""g ({CORE}, float[1,2,1,S,T] m) => (float[B,2,S,6] y) {{
        kt = Transpose<perm = [0, 1, 3, 2]>(k)  s = MatMul(q, kt)
        deep = Constant<value_ints = [1, 2, 2, 5, 7]>()  r = Reshape(s, deep)
        a = Add(r, m)
        flat = Constant<value_ints = [2, 2, 5, 7]>()  back = Reshape(a, flat)
        p = Softmax<axis = -1>(back)  y = MatMul(p, v)
    }}"""
    for name, size in {"B": 2, "S": 5, "T": 7}.items():
        text = re.sub(rf"\b{name}\b", str(size), text)
    proto = model(text)
    assert fused(proto)["masks"] == "add"
    assert_same(proto, operands() | {"m": normal(1, 2, 1, 5, 7)})


JOINED = "q3 = Reshape(q, rows)  k3 = Reshape(k, keys)  v3 = Reshape(v, keys)  kt = Transpose<perm = [0, 2, 1]>(k3)"


def joined(scores: str, inputs: str) -> onnx.ModelProto:
    """Products of three dims, batches and heads in one, around scores of whichever rank; S is 5, T is 7."""
    shapes = {"rows": [-1, 5, 8], "keys": [-1, 7, 8], "apart": [-1, 2, 5, 7], "together": [-1, 5, 7]}
    return model(
        f"""g (float[3,2,5,8] q, float[3,2,7,8] k, float[3,2,7,8] v, {inputs}) => (float[?,5,8] y) {{
        {JOINED}  s = MatMul(q3, kt)  {scores}  y = MatMul(p, v3) }}""",
        **{name: np.array(shape) for name, shape in shapes.items()},
    )


WITH_JOINED_HEADS = {
    "masks of both ranks": (
        "a = Add(s, n)  r = Reshape(a, apart)  b = Add(r, m)  e = Softmax<axis = -1>(b)  p = Reshape(e, together)",
        {"m": (3, 1, 5, 7), "n": (6, 1, 7)},
    ),
    "mask of joined heads": ("a = Add(s, n)  p = Softmax<axis = -1>(a)", {"n": (6, 5, 7)}),
    "mask of all heads": ("a = Add(s, n)  p = Softmax<axis = -1>(a)", {"n": (1, 5, 7)}),
}


@pytest.mark.parametrize("case", WITH_JOINED_HEADS)
def test_masks_of_batch_and_heads_in_one_dim(case: str) -> None:
    scores, masks = WITH_JOINED_HEADS[case]
    proto = joined(scores, ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in masks.items()))
    assert fused(proto)["heads"] == 2
    feeds = {name: normal(*shape) for name, shape in masks.items()}
    assert_same(proto, feeds | {"q": normal(3, 2, 5, 8), "k": normal(3, 2, 7, 8), "v": normal(3, 2, 7, 8)})


def test_masks_of_products_without_heads() -> None:
    text = """g (float[B,S,8] q, float[B,8,T] k, float[B,T,6] v, float[B,S,T] m) => (float[B,S,6] y) {
        s = MatMul(q, k)  a = Add(s, m)  p = Softmax<axis = -1>(a)  y = MatMul(p, v) }"""
    assert fused(model(text))["masks"] == "add"
    assert_same(model(text), {"q": normal(3, 5, 8), "k": normal(3, 8, 7), "v": normal(3, 7, 6), "m": normal(3, 5, 7)})
