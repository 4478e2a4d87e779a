"""How far the functions of FusedElementwise are from float64, in every variant, and what they make of special values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from expressions import (
    DEVICE,
    EMULATED,
    F32,
    INF,
    NAN,
    OP,
    SAMPLE,
    Array,
    assert_same_values,
    f32,
    run_one,
)
from variants import variant_fixture

variant = variant_fixture(OP, EMULATED)


def errors_in_ulp(actual: Array, exact: Array) -> Array:
    """Distance to the exact value in units of the spacing of float32 there; infinite and NaN results must match."""
    largest = float(np.finfo(np.float32).max)
    with np.errstate(all="ignore"):
        rounded = exact.astype(np.float32)
        overflow = (
            (np.abs(exact) > largest * (1 - 2**-22)) & (np.abs(actual) >= np.float32(largest)) & (actual * exact > 0)
        )
        error = np.abs(actual.astype(np.float64) - exact) / np.spacing(np.minimum(np.abs(rounded), np.float32(3.4e38)))
    finite = np.isfinite(rounded) & np.isfinite(actual)
    agree = (np.isnan(rounded) & np.isnan(actual)) | (actual == rounded)
    return np.where(finite, error, np.where(agree | overflow, 0.0, INF))


def erf64(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def erfc64(x: Array) -> Array:
    return np.vectorize(math.erfc, otypes=[np.float64])(x)


def sigmoid64(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e) + 0 * np.where(np.isnan(x), x, 0)


def softplus64(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def elu64(x: Array, alpha: float) -> Array:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


ALPHA, GAMMA = float(F32(1.6732632)), float(F32(1.050701))


ACCURATE: dict[str, tuple[str, Callable[[Array], Array], float]] = {
    "exp": ("", np.exp, 2),
    "log": ("", np.log, 2),
    "tanh": ("", np.tanh, 2),
    "erf": ("", erf64, 2),
    "sigmoid": ("", sigmoid64, 2),
    "sqrt": ("", np.sqrt, 0.5),
    "reciprocal": ("", lambda x: 1.0 / x, 0.5),
    "softplus": ("", softplus64, 4),
    "softsign": ("", lambda x: x / (1 + np.abs(x)), 4),
    "silu": ("", lambda x: x * sigmoid64(x), 4),
    "mish": ("", lambda x: x * np.tanh(softplus64(x)), 4),
    "elu": ("#0x1.8p+0:f32", lambda x: elu64(x, 1.5), 4),
    "celu": ("#0x1.8p+0:f32", lambda x: np.maximum(x, 0) + np.minimum(0, 1.5 * np.expm1(np.minimum(x, 0) / 1.5)), 4),
    "selu": (f"#{ALPHA.hex()}:f32,#{GAMMA.hex()}:f32", lambda x: GAMMA * elu64(x, ALPHA), 4),
}
"""Parameters, float64 reference, and the largest error allowed, in ulp."""


def slack(variant: str, allowed: float) -> float:
    """What CUDA's own functions may err more, by their documentation; single operations are exact there as well."""
    return 3 if variant == DEVICE and allowed > 0.5 else 0


@pytest.mark.parametrize("op", ACCURATE)
def test_error_over_the_whole_range(op: str, variant: str) -> None:
    parameters, reference, allowed = ACCURATE[op]
    with np.errstate(all="ignore"):
        exact = reference(SAMPLE.astype(np.float64))
    actual = run_one(op, SAMPLE, parameters=parameters, variant=variant)
    errors = errors_in_ulp(actual, exact)
    if op in ("silu", "mish"):
        # A product with a subnormal factor is as good as that factor; where it vanished, inf * 0 has its own test.
        with np.errstate(all="ignore"):
            vanishing = (np.abs(exact) < 1e-34) & (np.abs(actual - exact) <= np.abs(SAMPLE) * 2.0**-149)
        errors = np.where(vanishing | ~np.isfinite(SAMPLE), 0, errors)
    if op == "softsign":
        errors = np.where(np.isfinite(SAMPLE), errors, 0)  # inf / inf
    worst = int(np.argmax(errors))
    assert errors[worst] <= allowed + slack(variant, allowed), (
        f"{op}({SAMPLE[worst]!r}) = {actual[worst]!r}, exact {exact[worst]!r}, {errors[worst]} ulp"
    )


@pytest.mark.parametrize("op", ["gelu", "gelu_tanh"])
def test_error_of_gelu_is_relative_to_its_operand(op: str, variant: str) -> None:
    """In the left tail 1 + erf cancels in the ONNX definition; the error is measured against x there."""
    finite = SAMPLE[np.isfinite(SAMPLE) & (np.abs(SAMPLE) < 1e10)]
    x = finite.astype(np.float64)
    if op == "gelu":
        exact = 0.5 * x * erfc64(-x / math.sqrt(2))
    else:
        exact = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    actual = run_one(op, finite, variant=variant)
    error = np.abs(actual.astype(np.float64) - exact)
    allowed = 4 * np.spacing(np.abs(exact).astype(F32)) + 2e-7 * np.abs(x)
    worst = int(np.argmax(error - allowed))
    assert error[worst] <= allowed[worst], f"{op}({finite[worst]!r}) = {actual[worst]!r}, exact {exact[worst]!r}"


def test_error_of_pow(variant: str) -> None:
    rng = np.random.default_rng(5)
    base = np.exp(rng.uniform(-40, 40, 20000)).astype(F32) * rng.choice([1, 1, 1, -1], 20000).astype(F32)
    exponent = rng.uniform(-4, 4, 20000).astype(F32)
    exponent[::3] = np.round(exponent[::3])
    with np.errstate(all="ignore"):
        exact = np.power(base.astype(np.float64), exponent.astype(np.float64))
    assert errors_in_ulp(run_one("pow", base, exponent, variant=variant), exact).max() <= 1 + slack(variant, 1)


SPECIAL: list[tuple[str, Array, Array]] = [
    ("exp", f32(-INF, INF, NAN, -0.0, 89, -104), f32(0, INF, NAN, 1, INF, 0)),
    ("log", f32(0, -0.0, -1, -INF, INF, NAN, 1), f32(-INF, -INF, NAN, NAN, INF, NAN, 0)),
    ("sigmoid", f32(-INF, INF, NAN, 0), f32(0, 1, NAN, 0.5)),
    ("tanh", f32(-INF, INF, NAN, -0.0, 0.0), f32(-1, 1, NAN, -0.0, 0.0)),
    ("erf", f32(-INF, INF, NAN, -0.0, 0.0), f32(-1, 1, NAN, -0.0, 0.0)),
    ("sqrt", f32(-1, -0.0, INF, -INF, NAN), f32(NAN, -0.0, INF, NAN, NAN)),
    ("reciprocal", f32(0, -0.0, INF, -INF, NAN), f32(INF, -INF, 0, -0.0, NAN)),
    ("relu", f32(-INF, INF, NAN, -1, 2), f32(0, INF, NAN, 0, 2)),
    ("softplus", f32(-INF, INF, NAN), f32(0, INF, NAN)),
    ("silu", f32(-INF, INF, NAN), f32(NAN, INF, NAN)),
    ("mish", f32(-INF, INF, NAN), f32(NAN, INF, NAN)),
    ("gelu", f32(-INF, INF, NAN), f32(NAN, INF, NAN)),
    ("gelu_tanh", f32(-INF, INF, NAN), f32(NAN, INF, NAN)),
    ("hard_swish", f32(-INF, INF, NAN, -3, 3), f32(NAN, INF, NAN, 0, 3)),
    ("round", f32(0.5, 1.5, 2.5, -0.5, -1.5, INF, NAN), f32(0, 2, 2, -0.0, -2, INF, NAN)),
    ("floor", f32(-0.5, 0.5, -INF, NAN), f32(-1, 0, -INF, NAN)),
    ("ceil", f32(-0.5, 0.5, INF, NAN), f32(-0.0, 1, INF, NAN)),
    ("sign", f32(-INF, INF, NAN, 0, -1e-45), f32(-1, 1, NAN, 0, -1)),
    ("abs", f32(-INF, -0.0, NAN), f32(INF, 0, NAN)),
    ("neg", f32(-INF, 0.0, NAN), f32(INF, -0.0, NAN)),
]


@pytest.mark.parametrize(("op", "x", "expected"), SPECIAL, ids=[entry[0] for entry in SPECIAL])
def test_special_values(op: str, x: Array, expected: Array, variant: str) -> None:
    for length in (1, 17):  # in a padded tail, and in whole vectors
        repeated = np.repeat(x, length)
        assert_same_values(run_one(op, repeated, variant=variant), np.repeat(expected, length))
