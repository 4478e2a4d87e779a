"""The kernels of QAttention: every variant against the same roundings in double precision, and the same bits for any number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

RNG = np.random.default_rng(7)
OP = next(one for one in native.ops() if one["op"] == "QAttention")
VARIANTS = [variant["name"] for variant in OP["variants"] if not variant["problem"]]
TILE = 256
"""Keys whose values have scales of their own."""


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def around_zero(x: np.ndarray, axis: int) -> np.ndarray:
    """As bytes around 0 with a scale along an axis, in floats again."""
    with np.errstate(all="ignore"):
        scale = np.abs(x).max(axis, keepdims=True) / 127.0
        return np.where(scale > 0, np.rint(x / np.where(scale > 0, scale, 1)) * scale, x * 0)


def expected(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | float = 0.0, *, scale: float = 1.0, cap: float = 0.0
) -> np.ndarray:
    """Attention of [B, H, S, D] as [B, S, H * D], weights as parts of the largest of their row rounded to 65535 steps."""
    q, k, v = (one.astype(np.float64) for one in (q, k, v))
    shared = q.shape[1] // k.shape[1]
    k, v = np.repeat(around_zero(k, -1), shared, 1), np.repeat(v, shared, 1)
    tiles = [around_zero(v[:, :, begin : begin + TILE], -2) for begin in range(0, v.shape[2], TILE)]
    with np.errstate(all="ignore"):
        scores = around_zero(q, -1) @ k.swapaxes(2, 3) * scale
        scores = (cap * np.tanh(scores / cap) if cap else scores) + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = np.rint(weights * 65535) / 65535 @ np.concatenate(tiles, 2) / weights.sum(-1, keepdims=True)
    return y.swapaxes(1, 2).reshape(y.shape[0], y.shape[2], -1)


def run(variant: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, *more: Any, threads: int = 1, **options: Any) -> Any:
    attributes = {"q": "b h s d", "k": "b h s d", "v": "b h s d", "y": "b s hd"}
    sizes = {"heads": q.shape[1], "kv_heads": k.shape[1], "head_size": q.shape[3], "value_size": v.shape[3]}
    return native.run("QAttention", [q, k, v, *more], attributes | sizes | options, variant, threads)[0]


def near(found: np.ndarray, wanted: np.ndarray, steps: float = 0.5) -> None:
    """A number between two bytes may become either; `steps` are those of the largest result."""
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=steps / 127 * np.nanmax(np.abs(wanted), initial=1e-6))


SIZES = [  # batch, heads, heads of keys, rows, keys, head size, value size
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 3, 5, 7, 15, 15),
    (1, 2, 2, 17, 49, 32, 32),
    (2, 6, 2, 3, 33, 64, 64),
    (1, 2, 2, 130, 128, 64, 40),
    (3, 1, 1, 49, 49, 33, 65),
    (1, 8, 8, 1, 255, 128, 128),
    (1, 1, 1, 300, 1, 8, 8),
    (1, 2, 1, 66, 70, 19, 200),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rounds_as_it_says(variant: str, sizes: tuple[int, ...]) -> None:
    b, h, g, s, t, d, e = sizes
    q, k, v = normal(b, h, s, d), normal(b, g, t, d), normal(b, g, t, e) + 0.5
    near(run(variant, q, k, v, scale=d**-0.5), expected(q, k, v, scale=d**-0.5))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("keys", [257, 600])
def test_values_of_each_tile_have_their_scales(variant: str, keys: int) -> None:
    q, k, v = normal(1, 2, 30, 16), normal(1, 2, keys, 16), normal(1, 2, keys, 16)
    v[:, :, TILE:] *= 1e3
    near(run(variant, q, k, v), expected(q, k, v))


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_and_cap(variant: str) -> None:
    q, k, v, mask = 3 * normal(2, 2, 20, 16), normal(2, 2, 90, 16), normal(2, 2, 90, 16), normal(2, 1, 20, 90)
    mask[..., 50:] = -np.inf
    near(run(variant, q, k, v, mask, masks="add", softcap=3.0), expected(q, k, v, mask, cap=3.0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_rotates_before_it_rounds(variant: str) -> None:
    q, k, v, angles = normal(1, 4, 40, 32), normal(1, 2, 40, 32), normal(1, 2, 40, 32), normal(1, 1, 40, 32)
    cos, sin = np.cos(angles), np.sin(angles)
    turned = [x * cos + np.roll(x, 16, -1) * sin for x in (q, k)]
    found = run(variant, q, k, v, cos, sin, rotary="qk", scale=0.2)
    near(found, expected(*turned, v, scale=0.2), 1.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_extremes_do_not_saturate(variant: str) -> None:
    """Scores are the largest sums of bytes, weights and values all the largest bytes."""
    for sign in (1, -1):
        q, k, v = np.ones((1, 1, 5, 256)), np.full((1, 1, 256, 256), sign), np.full((1, 1, 256, 40), 2.0)
        found = run(variant, *(one.astype(np.float32) for one in (q, k, v)), scale=1e-3)
        np.testing.assert_allclose(found, 2.0, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_operands_that_are_zero(variant: str) -> None:
    q, k, v = normal(1, 1, 4, 16), np.zeros((1, 1, 50, 16), np.float32), normal(1, 1, 50, 16)
    near(run(variant, q, k, v), expected(q, k, v))
    near(run(variant, 0 * q, k + 1, v), expected(0 * q, k + 1, v))
    assert not run(variant, q, k, 0 * v).any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_what_is_not_finite_makes_nan(variant: str, bad: float, where: str) -> None:
    """All results of a query, all of the head of a key, a column of values."""
    tensors = {"q": normal(1, 2, 20, 16), "k": normal(1, 2, 50, 16), "v": normal(1, 2, 50, 16)}
    wanted = expected(**tensors).reshape(1, 20, 2, 16)
    tensors[where][0, 1, 7, 3] = bad
    hit = {"q": np.s_[:, 7, 1], "k": np.s_[:, :, 1], "v": np.s_[:, :, 1, 3]}[where]
    wanted[hit] = np.nan
    near(run(variant, **tensors).reshape(wanted.shape), wanted)


@pytest.mark.parametrize("layout", ["b s hd", "b h d s"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_reads_columns_at_any_distance(variant: str, layout: str) -> None:
    q, k, v = normal(2, 3, 11, 20), normal(2, 3, 37, 20), normal(2, 3, 37, 20)
    order, shape = ((0, 2, 1, 3), (2, -1, 60)) if layout == "b s hd" else ((0, 1, 3, 2), (2, 3, 20, -1))
    moved = [np.ascontiguousarray(one.transpose(order)).reshape(shape) for one in (q, k, v)]
    attributes = {"q": layout, "k": layout, "v": layout, "heads": 3, "kv_heads": 3, "head_size": 20, "value_size": 20}
    near(native.run("QAttention", moved, attributes, variant)[0], expected(q, k, v))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", [(1, 6, 2, 300, 300, 64), (40, 3, 3, 49, 49, 32)], ids=str)
def test_same_bits_for_any_number_of_threads(variant: str, sizes: tuple[int, ...]) -> None:
    b, h, g, s, t, d = sizes
    q, k, v, mask = normal(b, h, s, d), normal(b, g, t, d), normal(b, g, t, d), normal(1, 1, s, t)
    first = run(variant, q, k, v, mask, masks="add")
    for threads in (2, 4):
        np.testing.assert_array_equal(first, run(variant, q, k, v, mask, masks="add", threads=threads))
