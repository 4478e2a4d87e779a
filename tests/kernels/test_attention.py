"""The attention kernels: every variant against float64, and the same bits for any number of threads."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxopt import _native

RNG = np.random.default_rng(5)
OP = next(one for one in _native.ops() if one["op"] == "FusedAttention")
THREADED = [variant["name"] for variant in OP["variants"] if not variant["problem"]]
EMULATED = "attention__cuda_emulated"
"""The kernel for CUDA devices, run by the host."""
VARIANTS = [*THREADED, EMULATED]
HALVES = [f"{name} {dtype}" for name in (EMULATED, VARIANTS[0]) for dtype in ("float16", "bfloat16")]
"""The kernel for tensor cores, and that of a processor around which elements are converted, with the type of all tensors."""
TOLERANCES = {"float32": (5e-5, 1e-5), "float16": (3e-3, 3e-3), "bfloat16": (5e-2, 5e-2)}
INFINITY = float("inf")


@pytest.fixture(autouse=True)
def draw_the_same_numbers_in_any_order() -> None:
    RNG.bit_generator.state = np.random.PCG64(5).state


def normal(*shape: int) -> np.ndarray:
    """Numbers that all types hold."""
    return RNG.standard_normal(shape).astype(ml_dtypes.bfloat16).astype(np.float32)


def expected(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, masks: tuple[np.ndarray, ...] = (), **options: Any
) -> np.ndarray:
    """Attention of [B, H, S, D] in double precision, as [B, S, H * D]."""
    q, k, v = (one.astype(np.float64) for one in (q, k, v))
    shared = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, shared, 1), np.repeat(v, shared, 1)
    with np.errstate(all="ignore"):
        scores = q @ k.swapaxes(2, 3) * options.get("scale", 1.0)
        if cap := options.get("softcap"):
            scores = cap * np.tanh(scores / cap)
        for mask in masks:
            if mask.dtype == bool:
                hidden = mask == (options.get("kind") == "hide")
                scores = np.where(hidden, np.float64(options.get("fill", -INFINITY)), scores)
            else:
                times = scores.shape[0] // mask.shape[0] if mask.ndim == 4 and mask.shape[0] > 1 else 1
                scores = scores + np.tile(mask.astype(np.float64), (times, 1, 1, 1) if mask.ndim == 4 else 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        if options.get("nan_to_zero"):
            weights = np.where(np.isnan(weights), 0.0, weights)
        y = weights @ v
    return y.swapaxes(1, 2).reshape(y.shape[0], y.shape[2], -1)


def run(
    variant: str,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *more: np.ndarray,
    threads: int = 1,
    masks: str = "",
    **options: Any,
) -> np.ndarray:
    attributes = {"q": "b h s d", "k": "b h s d", "v": "b h s d", "y": "b s hd", "masks": masks}
    sizes = {"heads": q.shape[1], "kv_heads": k.shape[1], "head_size": q.shape[3], "value_size": v.shape[3]}
    variant, _, dtype = variant.partition(" ")
    tensors = [q, k, v, *more]
    if dtype:
        tensors = [one if one.dtype == bool else one.astype(dtype) for one in tensors]
    result = _native.run("FusedAttention", tensors, attributes | sizes | options, variant, threads)[0]
    assert isinstance(result, np.ndarray)
    return result


def near(actual: np.ndarray, wanted: np.ndarray) -> None:
    rtol, atol = TOLERANCES[str(actual.dtype)]
    np.testing.assert_allclose(actual.astype(np.float32), wanted, rtol=rtol, atol=atol)


SIZES = [  # batch, heads, heads of keys, rows, keys, head size, value size
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 3, 5, 7, 15, 15),
    (1, 2, 2, 17, 49, 32, 32),
    (2, 6, 2, 3, 33, 64, 64),
    (1, 4, 1, 1, 300, 64, 40),
    (1, 2, 2, 130, 257, 20, 72),
    (3, 1, 1, 49, 49, 33, 65),
    (1, 8, 8, 1, 513, 128, 128),
    (1, 1, 1, 300, 1, 8, 8),
    (1, 2, 1, 66, 70, 19, 200),
]


@pytest.mark.parametrize("variant", [*VARIANTS, *HALVES])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_matches_double_precision(variant: str, sizes: tuple[int, ...]) -> None:
    b, h, g, s, t, d, e = sizes
    q, k, v = normal(b, h, s, d), normal(b, g, t, d), normal(b, g, t, e)
    near(run(variant, q, k, v, scale=d**-0.5), expected(q, k, v, scale=d**-0.5))


@pytest.mark.parametrize("variant", [*VARIANTS, *HALVES])
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 20, 300), (1, 1, 1, 300), (2, 1, 1, 300), (20, 300), (300,), (3, 20, 1), (1,), (1, 3, 1, 1)],
    ids=str,
)
def test_adds_masks_of_any_shape(variant: str, shape: tuple[int, ...]) -> None:
    q, k, v, mask = normal(2, 3, 20, 16), normal(2, 3, 300, 16), normal(2, 3, 300, 16), normal(*shape)
    near(run(variant, q, k, v, mask, masks="add"), expected(q, k, v, (mask,)))


@pytest.mark.parametrize("variant", [*VARIANTS, *HALVES])
def test_begins_a_mask_over_again_along_the_batch(variant: str) -> None:
    q, k, v = normal(6, 2, 9, 8), normal(6, 2, 9, 8), normal(6, 2, 9, 8)
    masks = normal(1, 2, 9, 9), normal(3, 1, 9, 9)
    near(run(variant, q, k, v, *masks, masks="add repeat"), expected(q, k, v, masks))


@pytest.mark.parametrize("variant", [*VARIANTS, *HALVES])
@pytest.mark.parametrize("kind", ["keep", "hide"])
@pytest.mark.parametrize("fill", [-INFINITY, -1e9, -3.4e38, 0.5])
def test_replaces_scores_by_a_boolean_mask(variant: str, kind: str, fill: float) -> None:
    q, k, v = normal(1, 2, 40, 16), normal(1, 2, 600, 16), normal(1, 2, 600, 16)
    mask = RNG.random((1, 1, 40, 600)) < 0.5
    mask[..., 5] = kind == "keep"
    near(run(variant, q, k, v, mask, masks=f"{kind}={fill!r}"), expected(q, k, v, (mask,), kind=kind, fill=fill))


@pytest.mark.parametrize("variant", [*VARIANTS, *HALVES])
@pytest.mark.parametrize("hidden", [-INFINITY, float(np.finfo(np.float32).min), -1e30, -1e4])
@pytest.mark.parametrize("kind", ["causal", "window", "padding", "left padding"])
def test_leaves_hidden_tiles_out(variant: str, hidden: float, kind: str) -> None:
    if variant in HALVES and (hidden != -INFINITY or kind != "causal"):
        pytest.skip("the kernel for tensor cores leaves no tiles out, whatever hides them")
    s = 200 if variant.startswith(EMULATED) else 700  # several tiles of 64 keys, of which fibers take long
    row, column = np.arange(s)[:, None], np.arange(s)[None, :]
    seen = {
        "causal": column <= row,
        "window": (column <= row) & (column > row - 64),
        "padding": column < s // 7 + 0 * row,
        "left padding": column >= s - 50 + 0 * row,
    }[kind]
    mask = np.where(seen, np.float32(0), np.float32(hidden))[None, None]
    q, k, v = normal(1, 2, s, 16), normal(1, 2, s, 16), normal(1, 2, s, 16)
    near(run(variant, q, k, v, mask, masks="add"), expected(q, k, v, (mask,)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_that_see_nothing_take_the_mean_of_all_values(variant: str) -> None:
    q, k, v = normal(1, 1, 30, 16), normal(1, 1, 600, 16), normal(1, 1, 600, 16)
    mask = np.full((1, 1, 30, 600), np.finfo(np.float32).min, np.float32)
    mask[:, :, ::2, :300] = 0
    y = run(variant, q, k, v, mask, masks="add")
    near(y, expected(q, k, v, (mask,)))
    np.testing.assert_allclose(y[0, 1], v[0, 0].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", [*VARIANTS, *HALVES])
@pytest.mark.parametrize("to_zero", [0, 1])
@pytest.mark.parametrize("boolean", [False, True])
def test_rows_without_a_finite_score_are_nan_or_zero(variant: str, to_zero: int, boolean: bool) -> None:
    q, k, v = normal(1, 2, 10, 16), normal(1, 2, 300, 16), normal(1, 2, 300, 16)
    seen = np.ones((10, 300), bool)
    seen[3] = False
    seen[4, :299] = False
    mask = seen if boolean else np.where(seen, np.float32(0), np.float32(-INFINITY))
    y = run(variant, q, k, v, mask, masks="keep=-inf" if boolean else "add", nan_to_zero=to_zero)
    near(y, expected(q, k, v, (mask,), nan_to_zero=to_zero))
    assert (y[0, 3] == 0).all() if to_zero else np.isnan(y[0, 3]).all()


@pytest.mark.parametrize("variant", [*VARIANTS, *HALVES])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_lets_non_finite_values_through(variant: str, bad: float, where: str) -> None:
    tensors = {"q": normal(1, 2, 20, 16), "k": normal(1, 2, 50, 16), "v": normal(1, 2, 50, 16)}
    tensors[where][0, 1, 7, 3] = bad
    options = {"scale": 0.25}  # so that no weight is 0 in float16, times infinity
    near(run(variant, **tensors, **options), expected(**tensors, **options))


@pytest.mark.parametrize("variant", VARIANTS)
def test_large_scores_do_not_overflow(variant: str) -> None:
    q, k, v = 50 * normal(1, 1, 30, 64), 50 * normal(1, 1, 600, 64), normal(1, 1, 600, 64)
    np.testing.assert_allclose(run(variant, q, k, v), expected(q, k, v), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("variant", [*VARIANTS, *HALVES])
def test_caps_scores(variant: str) -> None:
    q, k, v = 5 * normal(1, 2, 20, 16), normal(1, 2, 50, 16), normal(1, 2, 50, 16)
    mask = normal(1, 1, 20, 50)
    near(run(variant, q, k, v, mask, masks="add", softcap=3.0), expected(q, k, v, (mask,), softcap=3.0))


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: int) -> np.ndarray:
    width = cos.shape[-1]
    columns = np.arange(width)
    partner = columns ^ 1 if interleaved else (columns + width // 2) % width
    part = x[..., :width].astype(np.float64)
    return np.concatenate([part * cos + part[..., partner] * sin, x[..., width:]], -1)


@pytest.mark.parametrize("variant", [*VARIANTS, *HALVES])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("width", [2, 24, 32])
@pytest.mark.parametrize("which", ["q", "k", "qk"])
def test_rotates_queries_and_keys(variant: str, interleaved: int, width: int, which: str) -> None:
    q, k, v = normal(2, 4, 40, 32), normal(2, 2, 40, 32), normal(2, 2, 40, 32)
    cos, sin = normal(2, 1, 40, width), normal(1, 1, 40, width)
    y = run(variant, q, k, v, cos, sin, rotary=which, interleaved=interleaved, scale=0.05)
    turned = (
        rotated(q, cos, sin, interleaved) if "q" in which else q,
        rotated(k, cos, sin, interleaved) if "k" in which else k,
    )
    near(y, expected(*turned, v, scale=0.05))


LAYOUTS = {
    "b s hd": lambda x: x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1),
    "b s h d": lambda x: x.transpose(0, 2, 1, 3),
    "b h d s": lambda x: x.transpose(0, 1, 3, 2),
    "bh s d": lambda x: x.reshape(-1, *x.shape[2:]),
    "s b hd": lambda x: x.transpose(2, 0, 1, 3).reshape(x.shape[2], x.shape[0], -1),
    "@1 b h s d": lambda x: np.stack([x * np.nan, x, x * np.nan]),
    "b s hd@7": lambda x: np.pad(LAYOUTS["b s hd"](x), ((0, 0), (0, 0), (7, 3)), constant_values=np.nan),
    "b s h d@5": lambda x: np.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, 0), (5, 0)), constant_values=np.nan),
}


@pytest.mark.parametrize("variant", [*VARIANTS, *HALVES])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_any_layout(variant: str, layout: str) -> None:
    q, k, v = normal(2, 3, 11, 20), normal(2, 3, 37, 20), normal(2, 3, 37, 20)
    moved = [np.ascontiguousarray(LAYOUTS[layout](one)) for one in (q, k, v)]
    attributes = {"q": layout, "k": layout, "v": layout, "heads": 3, "kv_heads": 3, "head_size": 20, "value_size": 20}
    variant, _, dtype = variant.partition(" ")
    moved = [one.astype(dtype or np.float32) for one in moved]
    near(_native.run("FusedAttention", moved, attributes, variant)[0], expected(q, k, v))


@pytest.mark.parametrize("layout", ["b s hd", "b h s d", "s b hd", "sb hd", "bh s d", "b s h d", "b hd s"])
@pytest.mark.parametrize("variant", [VARIANTS[0], EMULATED, *HALVES])
def test_writes_any_layout(variant: str, layout: str) -> None:
    q, k, v = normal(2, 3, 11, 20), normal(2, 3, 37, 20), normal(2, 3, 37, 20)
    wanted = expected(q, k, v).reshape(2, 11, 3, 20)
    axes = {"b": 0, "s": 1, "h": 2, "d": 3}
    moved = wanted.transpose([axes[letter] for letter in layout.replace(" ", "")])
    near(run(variant, q, k, v, y=layout).reshape(moved.shape), moved)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shift", range(8))
@pytest.mark.parametrize(("size", "width"), [(32, 72), (136, 20)])
def test_halves_of_any_alignment(size: int, width: int, shift: int, dtype: str) -> None:
    """Rows are copied by 16 bytes, by 4 or by single ones."""
    layout = {"q": f"b s h d@{shift}", "k": f"b s h d@{shift}", "v": f"b s h d@{shift}", "y": "b s hd"}
    q, k, v = normal(1, 2, 9, size), normal(1, 2, 70, size), normal(1, 2, 70, width)
    moved = [
        np.pad(one.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, 0), (shift, 8 - shift)), constant_values=np.nan).astype(
            dtype
        )
        for one in (q, k, v)
    ]
    sizes = {"heads": 2, "kv_heads": 2, "head_size": size, "value_size": width, "scale": size**-0.5}
    near(_native.run("FusedAttention", moved, layout | sizes, EMULATED)[0], expected(q, k, v, scale=size**-0.5))


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        (1, "Input 1 is of type float and should be float16"),
        (3, "Mask 0 is of type float and should be float16"),
        (4, "The cosines are of type float and should be float16"),
    ],
)
@pytest.mark.parametrize("variant", [VARIANTS[0], EMULATED])
def test_types_that_do_not_fit_get_a_sentence(variant: str, which: int, sentence: str) -> None:
    tensors = [
        normal(1, 1, 4, 8),
        *(normal(1, 1, 5, 8) for _ in "kv"),
        normal(4, 5),
        normal(1, 1, 1, 4),
        normal(1, 1, 1, 4),
    ]
    cast = [one if index == which else one.astype(np.float16) for index, one in enumerate(tensors)]
    with pytest.raises(ValueError, match=sentence):
        run(variant, *cast, masks="add", rotary="q")


@pytest.mark.parametrize("variant", THREADED)
@pytest.mark.parametrize("sizes", [(1, 6, 2, 300, 300, 64), (40, 3, 3, 49, 49, 32), (1, 2, 1, 1, 2000, 128)], ids=str)
def test_same_bits_for_any_number_of_threads(variant: str, sizes: tuple[int, ...]) -> None:
    b, h, g, s, t, d = sizes
    q, k, v, mask = normal(b, h, s, d), normal(b, g, t, d), normal(b, g, t, d), normal(1, 1, s, t)
    first = run(variant, q, k, v, mask, masks="add")
    for threads in (2, 4):
        np.testing.assert_array_equal(first, run(variant, q, k, v, mask, masks="add", threads=threads))


@pytest.mark.parametrize("variant", [VARIANTS[0], EMULATED, *HALVES])
@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (2, 2, 0, 8)], ids=str)
def test_makes_nothing_of_nothing(variant: str, shape: tuple[int, ...]) -> None:
    k = normal(shape[0], 2, 5, 8)
    assert run(variant, normal(*shape), k, k).shape == (shape[0], shape[2], 16)


@pytest.mark.parametrize("variant", [VARIANTS[0], EMULATED, *HALVES])
def test_a_sum_of_no_values_is_zero(variant: str) -> None:
    k = normal(2, 2, 0, 8)
    assert not run(variant, normal(2, 2, 5, 8), k, k).any()
