"""The kernels of FusedElementwise, every variant that this machine runs, against numpy and float64 references.

The code of the CUDA kernel is tested on any machine, where the host runs it one thread after the other, and on the device where there is
one.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from variants import variant_fixture

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

Array = np.ndarray[Any, Any]
DTYPES = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "i64": np.int64, "bool": np.bool_}
NUMBERS, FLOATS, INTEGERS = ("f32", "f16", "i32", "i64"), ("f32", "f16"), ("i32", "i64")
(OP,) = [op for op in native.ops() if op["op"] == "FusedElementwise"]
VARIANTS = OP["variants"]
EMULATED = "elementwise__cuda_emulated"
CPU = [v["name"] for v in VARIANTS if v["usable"] and v["device"] == "cpu"]
DEVICE = "elementwise__cuda"
SUPPORTED = [*(v["name"] for v in VARIANTS if v["usable"]), EMULATED]
INF, NAN = math.inf, math.nan


def run(expr: str, *inputs: Array, variant: str | None = None, threads: int = 1) -> list[Array]:
    results: list[Array] = native.run(
        "FusedElementwise", list(inputs), {"expr": expr}, variant=variant, threads=threads
    )
    return results


def run_one(
    op: str, *inputs: Array, parameters: str = "", result: str | None = None, variant: str | None = None
) -> Array:
    """One operation over arrays; `parameters` follow the operands."""
    names = [name_of(array) for array in inputs]
    declared = " ".join(f"i{k}:{name}" for k, name in enumerate(names))
    operands = ",".join([f"i{k}" for k in range(len(inputs))] + ([parameters] if parameters else []))
    expr = f"{declared} | t0={op}({operands}) | t0:{result or names[-1]}"
    return run(expr, *inputs, variant=variant)[0]


def name_of(array: Array) -> str:
    return next(name for name, dtype in DTYPES.items() if array.dtype == dtype)


def bits(array: Array) -> Array:
    """The bits, with one pattern for every NaN."""
    if array.dtype.kind != "f":
        return array
    view = array.view(f"u{array.dtype.itemsize}").copy()
    view[np.isnan(array)] = 0x7E00 if array.dtype.itemsize == 2 else 0x7FC00000
    return view


def assert_same_bits(actual: Array, expected: Array) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    wrong = np.flatnonzero(bits(actual) != bits(expected))
    assert wrong.size == 0, (
        f"{wrong.size} differ, first at {wrong[0]}: {actual.flat[wrong[0]]!r}, not {expected.flat[wrong[0]]!r}"
    )


def assert_same_values(actual: Array, expected: Array) -> None:
    """Equal, where the two zeros are one value and NaN equals NaN."""
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


variant = variant_fixture(OP, EMULATED)


# --- accuracy ---
def whole_range() -> Array:
    """Floats of every exponent and sign, subnormal and not finite ones too, and neighbours of borders in formulas."""
    spread = np.arange(0, 1 << 32, 16381, dtype=np.uint64).astype(np.uint32).view(np.float32)
    usual = np.linspace(-120, 120, 60001, dtype=np.float32)
    borders = np.array([0, 1, 0.92, 10, 20, 60, 88.722839, 89, 103.97208, 104, 2**-126, math.sqrt(0.5)], np.float32)
    near = np.concatenate([np.nextafter(borders, np.float32(to)) for to in (-INF, INF)] + [borders])
    special = np.array([INF, NAN, 3.4028235e38, 1e-45, 0.0], np.float32)
    return np.concatenate([spread, usual, near, -near, special, -special])


SAMPLE = whole_range()


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


F32 = np.float32
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


def f32(*values: float) -> Array:
    return np.array(values, F32)


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


# --- exact operations, against numpy ---
def samples(name: str, rng: np.random.Generator, count: int) -> Array:
    """Values of a type with its extremes among them."""
    dtype = np.dtype(DTYPES[name])
    if name == "bool":
        return rng.integers(0, 2, count).astype(np.bool_)
    if dtype.kind == "i":
        info = np.iinfo(dtype)
        small = rng.integers(-9, 10, count).astype(dtype)
        wide = rng.integers(info.min, info.max, count, dtype=dtype, endpoint=True)
        edges = np.array([info.min, info.max, -1, 0, 1], dtype)
        return np.where(
            rng.random(count) < 0.5, small, np.where(rng.random(count) < 0.5, wide, rng.choice(edges, count))
        )
    small = rng.normal(0, 4, count)
    wide = rng.normal(0, 1, count) * 10.0 ** rng.uniform(-9, 9, count)
    edges = np.array([INF, -INF, NAN, 0.0, -0.0, 1.0, -1.0, float(np.finfo(dtype).max), float(np.finfo(dtype).tiny)])
    mixed = np.where(rng.random(count) < 0.6, small, np.where(rng.random(count) < 0.6, wide, rng.choice(edges, count)))
    with np.errstate(over="ignore"):
        return mixed.astype(dtype)


def divide(a: Array, b: Array) -> Array:
    """Integers are truncated as in C; x / 0 is 0, and the lowest integer / -1 wraps."""
    if a.dtype.kind == "f":
        return a / b
    a, b = np.broadcast_arrays(a, b)
    wide, divisor = a.astype(object), np.where(b == 0, 1, b).astype(object)
    quotient = np.abs(wide) // np.abs(divisor) * np.where((a < 0) == (b < 0), 1, -1)
    return np.where((b == 0) | (b == -1), np.where(b == 0, 0, np.negative(a)), np.where(b == -1, 0, quotient)).astype(
        a.dtype
    )


def minimum(a: Array, b: Array) -> Array:
    """NaN of either operand; the second one of two equal zeros, which IEEE leaves open."""
    return np.where((a != a) | (a < b), a, b)


def maximum(a: Array, b: Array) -> Array:
    return np.where((a != a) | (a > b), a, b)


def sign(x: Array) -> Array:
    return np.where(x > 0, x.dtype.type(1), np.where(x < 0, x.dtype.type(-1), x))


def clip(x: Array, low: Array, high: Array) -> Array:
    if x.dtype.kind != "f":
        return np.minimum(np.maximum(x, low), high)
    raised = np.where(low > x, low, x)
    return np.where(high < raised, high, raised)


BINARY: dict[str, tuple[Callable[[Array, Array], Array], tuple[str, ...], str | None]] = {
    "add": (np.add, NUMBERS, None),
    "sub": (np.subtract, NUMBERS, None),
    "mul": (np.multiply, NUMBERS, None),
    "div": (divide, NUMBERS, None),
    "min": (minimum, NUMBERS, None),
    "max": (maximum, NUMBERS, None),
    "equal": (np.equal, (*NUMBERS, "bool"), "bool"),
    "less": (np.less, NUMBERS, "bool"),
    "less_equal": (np.less_equal, NUMBERS, "bool"),
    "greater": (np.greater, NUMBERS, "bool"),
    "greater_equal": (np.greater_equal, NUMBERS, "bool"),
    "and": (np.logical_and, ("bool",), None),
    "or": (np.logical_or, ("bool",), None),
    "xor": (np.logical_xor, ("bool",), None),
}
UNARY: dict[str, tuple[Callable[[Array], Array], tuple[str, ...], str | None]] = {
    "neg": (np.negative, NUMBERS, None),
    "abs": (np.abs, NUMBERS, None),
    "sign": (sign, NUMBERS, None),
    "sqrt": (np.sqrt, FLOATS, None),
    "reciprocal": (lambda x: x.dtype.type(1) / x, FLOATS, None),
    "relu": (lambda x: maximum(x.dtype.type(0), x), FLOATS, None),
    "floor": (np.floor, FLOATS, None),
    "ceil": (np.ceil, FLOATS, None),
    "round": (np.rint, FLOATS, None),
    "isnan": (np.isnan, FLOATS, "bool"),
    "isinf": (np.isinf, FLOATS, "bool"),
    "not": (np.logical_not, ("bool",), None),
}


def cases(table: dict[str, tuple[Any, tuple[str, ...], str | None]]) -> list[tuple[str, str]]:
    return [(op, name) for op, (_, names, _) in table.items() for name in names]


@pytest.mark.parametrize(("op", "name"), cases(BINARY))
def test_binary(op: str, name: str, variant: str) -> None:
    reference, _, result = BINARY[op]
    rng = np.random.default_rng(1)
    a, b = samples(name, rng, 1543), samples(name, rng, 1543)
    with np.errstate(all="ignore"):
        expected = reference(a, b)
    assert_same_bits(run_one(op, a, b, result=result, variant=variant), expected)


@pytest.mark.parametrize(("op", "name"), cases(UNARY))
def test_unary(op: str, name: str, variant: str) -> None:
    reference, _, result = UNARY[op]
    x = samples(name, np.random.default_rng(2), 1543)
    with np.errstate(all="ignore"):
        expected = reference(x).astype(DTYPES[result or name])
    assert_same_bits(run_one(op, x, result=result, variant=variant), expected)


@pytest.mark.parametrize("name", DTYPES)
def test_where(name: str, variant: str) -> None:
    rng = np.random.default_rng(3)
    c, a, b = samples("bool", rng, 771), samples(name, rng, 771), samples(name, rng, 771)
    assert_same_bits(run_one("where", c, a, b, variant=variant), np.where(c, a, b))


@pytest.mark.parametrize("name", NUMBERS)
def test_clip(name: str, variant: str) -> None:
    rng = np.random.default_rng(4)
    x, low, high = (samples(name, rng, 771) for _ in range(3))
    low, high = np.nan_to_num(low), np.nan_to_num(high)
    assert_same_values(run_one("clip", x, low, high, variant=variant), clip(x, low, high))


def cast(x: Array, target: str) -> Array:
    """As the hardware casts: truncation, and the lowest integer for what does not fit."""
    dtype = np.dtype(DTYPES[target])
    with np.errstate(all="ignore"):
        if dtype.kind != "i" or x.dtype.kind != "f":
            return x.astype(dtype)
        limit = 2.0 ** (8 * dtype.itemsize - 1)
        fits = (x.astype(np.float64) >= -limit) & (x.astype(np.float64) < limit)
        return np.where(fits, np.where(fits, x, 0).astype(dtype), np.iinfo(dtype).min).astype(dtype)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(DTYPES, DTYPES)))
def test_cast(source: str, target: str, variant: str) -> None:
    x = samples(source, np.random.default_rng(6), 1543)
    assert_same_bits(run_one(f"cast_{target}", x, result=target, variant=variant), cast(x, target))


@pytest.mark.parametrize(
    ("op", "parameters", "reference"),
    [
        ("leaky_relu", "#0x1p-3:f32", lambda x: np.where(x < 0, x * F32(0.125), x)),
        ("hard_sigmoid", "#0x1p-2:f32,#0x1p-1:f32", lambda x: np.clip(x * F32(0.25) + F32(0.5), F32(0), F32(1))),
        ("thresholded_relu", "#0x1p+0:f32", lambda x: np.where(x > 1, x, F32(0))),
    ],
)
def test_parameters(op: str, parameters: str, reference: Callable[[Array], Array], variant: str) -> None:
    with np.errstate(all="ignore"):
        expected = reference(SAMPLE)
    if op == "thresholded_relu":
        expected[np.isnan(SAMPLE)] = 0  # as ONNX defines it: not greater than alpha
    assert_same_values(run_one(op, SAMPLE, parameters=parameters, variant=variant), expected.astype(F32))


@pytest.mark.parametrize(
    "op", ["exp", "log", "tanh", "sigmoid", "erf", "silu", "gelu", "hard_swish", "sqrt", "reciprocal", "softplus"]
)
def test_all_half_floats(op: str, variant: str) -> None:
    """A float16 result is the float32 result rounded once."""
    halves = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        expected = run_one(op, halves.astype(F32), variant=variant).astype(np.float16)
    assert_same_bits(run_one(op, halves, variant=variant), expected)


def test_all_half_floats_pass_unchanged(variant: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    assert_same_bits(run_one("cast_f32", halves, result="f32", variant=variant), halves.astype(F32))
    assert_same_bits(run_one("cast_f16", halves.astype(F32), result="f16", variant=variant), halves)


def test_float_to_half_rounds_to_nearest_even(variant: str) -> None:
    with np.errstate(over="ignore"):
        expected = SAMPLE.astype(np.float16)
    assert_same_bits(run_one("cast_f16", SAMPLE, result="f16", variant=variant), expected)


# --- variants, threads, tiles ---
FLOAT_OPS = [
    (name, operands, literals)
    for name, operands, literals, domain, _ in native.elementwise_ops()
    if domain in ("F", "N", "FF") and name not in ("clip", "where")
]


def parameters_of(count: int) -> str:
    return ",".join(["#0x1.8p+0:f32", "#0x1.4p+0:f32"][:count])


def result_of(name: str) -> str:
    return next(
        result if result in DTYPES else {"boolean": "bool"}.get(result, "f32")
        for op, _, _, _, result in native.elementwise_ops()
        if op == name
    )


DIVIDING = ("sigmoid", "tanh", "silu", "mish", "gelu_tanh")
"""Where a variant may divide by an estimated reciprocal; each is within the bounds above."""


@pytest.mark.parametrize(("op", "operands", "literals"), FLOAT_OPS)
def test_vector_variants_give_the_same_bits(op: str, operands: int, literals: int) -> None:
    vectors = [name for name in CPU if not name.endswith("scalar")]
    if len(vectors) < 2:
        pytest.skip("this machine runs fewer than two vector variants")
    inputs = [SAMPLE, np.roll(SAMPLE, 7919)][:operands]
    first, *others = (
        run_one(op, *inputs, parameters=parameters_of(literals), result=result_of(op), variant=v) for v in vectors
    )
    for other in others:
        if op in DIVIDING:
            with np.errstate(over="ignore"):
                np.testing.assert_array_almost_equal_nulp(np.nan_to_num(other), np.nan_to_num(first), 4)
        else:
            assert_same_bits(other, first)


@pytest.mark.parametrize("op", ["exp", "tanh", "erf", "log", "gelu", "softplus", "pow"])
def test_position_in_the_tensor_does_not_matter(op: str, variant: str) -> None:
    """Tails are computed as whole vectors are: a shifted or shortened tensor gives the same bits."""
    x = SAMPLE[:: len(SAMPLE) // 3000][:2000]
    inputs = [x, x[::-1].copy()][: 2 if op == "pow" else 1]
    whole = run_one(op, *inputs, variant=variant)
    for begin, end in [(1, 2000), (3, 1030), (15, 16), (511, 514), (5, 517)]:
        assert_same_bits(run_one(op, *(array[begin:end].copy() for array in inputs), variant=variant), whole[begin:end])


LONG = (
    "i0:f32 i1:f32 i2:f32 | t0=sigmoid(i0) t1=mul(t0,i1) t2=gelu(t1) t3=add(t2,i2) t4=tanh(t3) t5=greater(t4,i1) "
    "| t4:f32 t5:bool t1:f32"
)


@pytest.mark.parametrize(
    "shapes",
    [
        ((97, 1031), (97, 1), (1031,)),
        ((300000,), (1,), (300000,)),
        ((61, 7, 129), (61, 1, 129), (7, 1)),
        ((40000, 5), (40000, 1), (5,)),
    ],
)
def test_threads_give_the_same_bits(shapes: tuple[tuple[int, ...], ...], variant: str) -> None:
    rng = np.random.default_rng(8)
    inputs = [rng.normal(0, 3, shape).astype(F32) for shape in shapes]
    one = run(LONG, *inputs, variant=variant)
    for threads in (2, 4):
        for actual, expected in zip(run(LONG, *inputs, variant=variant, threads=threads), one, strict=True):
            assert_same_bits(actual, expected)


# --- shapes ---
@settings(max_examples=150, deadline=None)
@given(
    hnp.mutually_broadcastable_shapes(num_shapes=3, min_dims=0, max_dims=8, max_side=5, min_side=0),
    st.sampled_from(["f32", "f16", "i32", "i64"]),
    st.integers(0, 1 << 20),
    st.sampled_from(SUPPORTED),
)
def test_broadcasting(shapes: hnp.BroadcastableShapes, name: str, seed: int, chosen: str) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (np.reshape(samples(name, rng, math.prod(shape)), shape) for shape in shapes.input_shapes)
    expr = (
        f"i0:{name} i1:{name} i2:{name} | t0=add(i0,i1) t1=less(i0,i1) t2=where(t1,t0,i2) | t0:{name} t1:bool t2:{name}"
    )
    with np.errstate(all="ignore"):
        expected = [a + b, a < b, np.where(a < b, a + b, c)]
    for actual, wanted in zip(run(expr, a, b, c, variant=chosen), expected, strict=True):
        assert_same_values(actual, np.asarray(wanted))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((), ()),
        ((1,), ()),
        ((0,), (1,)),
        ((3, 0, 5), (1, 5)),
        ((513,), ()),
        ((2, 63), (2, 1)),
        ((2, 64), (64,)),
        ((5, 1, 7), (1, 6, 1)),
        ((1,) * 8, (2,) * 8),
        ((2,) * 8, (1,) * 9),
        ((1,) * 12, (2, 1, 2)),
        ((4096, 3), (3,)),
        ((3, 4096), (3, 1)),
        ((2, 1, 3, 1, 2, 1, 3, 1, 2, 1), (1, 2, 1, 3, 1, 2, 1, 3, 1, 2)),
    ],
)
def test_shapes(first: tuple[int, ...], second: tuple[int, ...], variant: str) -> None:
    rng = np.random.default_rng(9)
    a, b = rng.normal(size=first).astype(F32), rng.normal(size=second).astype(F32)
    assert_same_bits(run_one("mul", a, b, variant=variant), np.asarray(a * b))


def test_outputs_keep_the_shapes_of_what_they_depend_on(variant: str) -> None:
    row, matrix = np.arange(7, dtype=F32), np.ones((5, 7), F32)
    expr = (
        "i0:f32 i1:f32 | t0=exp(i0) t1=add(t0,i1) t2=neg(i1) t3=neg(#0x1p+0:f32) | t0:f32 t1:f32 t2:f32 t3:f32 t0:f32"
    )
    shapes = [result.shape for result in run(expr, row, matrix, variant=variant)]
    assert shapes == [(7,), (5, 7), (5, 7), (), (7,)]


def test_inputs_that_are_not_contiguous(variant: str) -> None:
    x = np.arange(120, dtype=F32).reshape(10, 12)
    assert_same_bits(run_one("neg", x.T, variant=variant), -x.T)
    assert_same_bits(run_one("neg", x[::2, ::3], variant=variant), -x[::2, ::3])


@pytest.mark.parametrize("shape", [(7,), (3, 5)])
def test_refuses_shapes_that_do_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Input 1 of shape .* cannot be broadcast"):
        run_one("add", np.zeros((2, 4), F32), np.zeros(shape, F32))


# --- whole programs ---
Statement = tuple[str, Callable[..., Array], tuple[str, ...], str]


def statements() -> list[Statement]:
    """Exact operations with the types of their operands and result."""
    found: list[Statement] = []
    for op, (binary, names, result) in BINARY.items():
        found += [(op, binary, (name, name), result or name) for name in names]
    for op, (unary, names, result) in UNARY.items():
        found += [(op, unary, (name,), result or name) for name in names]
    found += [("where", np.where, ("bool", name, name), name) for name in DTYPES]
    found += [
        (f"cast_{target}", lambda x, target=target: cast(x, target), (source,), target)
        for source, target in itertools.product(DTYPES, DTYPES)
    ]
    return found


STATEMENTS = statements()


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[str], list[tuple[int, list[int]]], list[int]]:
    """Types of the inputs; statements as indices into `STATEMENTS` and into the values so far; outputs."""
    inputs = draw(st.lists(st.sampled_from(list(DTYPES)), min_size=1, max_size=6))
    types, body = list(inputs), []
    for _ in range(draw(st.integers(1, 24))):
        possible = [k for k, (_, _, operands, _) in enumerate(STATEMENTS) if set(operands) <= set(types)]
        chosen = draw(st.sampled_from(possible))
        _, _, operands, result = STATEMENTS[chosen]
        picks = [draw(st.sampled_from([k for k, name in enumerate(types) if name == wanted])) for wanted in operands]
        body.append((chosen, picks))
        types.append(result)
    made = list(range(len(inputs), len(types)))
    return inputs, body, [made[-1], *draw(st.lists(st.sampled_from(made), max_size=4))]


@settings(max_examples=200, deadline=None)
@given(programs(), st.integers(0, 1 << 20), st.sampled_from([1, 5, 16, 64, 513, 1100]), st.sampled_from(SUPPORTED))
def test_random_programs(
    program: tuple[list[str], list[tuple[int, list[int]]], list[int]], seed: int, length: int, chosen: str
) -> None:
    inputs, body, outputs = program
    rng = np.random.default_rng(seed)
    values = [samples(name, rng, length) if k % 3 else samples(name, rng, 1) for k, name in enumerate(inputs)]
    arguments = list(values)
    types = list(inputs)

    def operand(index: int) -> str:
        return f"i{index}" if index < len(inputs) else f"t{index - len(inputs)}"

    lines = []
    with np.errstate(all="ignore"):
        for number, (which, picks) in enumerate(body):
            op, reference, _, result = STATEMENTS[which]
            lines.append(f"t{number}={op}({','.join(operand(k) for k in picks)})")
            values.append(np.asarray(reference(*(values[k] for k in picks))).astype(DTYPES[result]))
            types.append(result)
    declared = " ".join(f"i{k}:{name}" for k, name in enumerate(inputs))
    expr = f"{declared} | {' '.join(lines)} | {' '.join(f'{operand(k)}:{types[k]}' for k in outputs)}"
    for actual, index in zip(run(expr, *arguments, variant=chosen), outputs, strict=True):
        assert_same_bits(actual, values[index])


def test_literals(variant: str) -> None:
    expr = (
        "i0:f32 i1:i64 i2:bool | t0=add(i0,#0x1.99999ap-4:f32) t1=mul(i1,#-9223372036854775808:i64) "
        "t2=and(i2,#true:bool) t3=max(i0,#-inf:f32) t4=less(i0,#nan:f32) t5=cast_f16(i0) t6=add(t5,#0x1p-1:f16) "
        "| t0:f32 t1:i64 t2:bool t3:f32 t4:bool t6:f16"
    )
    x, n, b = f32(1, 2, 3), np.array([1, 2, 3]), np.array([True, False, True])
    actual = run(expr, x, n, b, variant=variant)
    expected = [x + F32(0.1), n * np.iinfo(np.int64).min, b, x, np.zeros(3, bool), (x + F32(0.5)).astype(np.float16)]
    for one, wanted in zip(actual, expected, strict=True):
        assert_same_bits(one, wanted)


def test_as_many_statements_inputs_and_outputs_as_allowed(variant: str) -> None:
    inputs = [np.full(33, k, F32) for k in range(32)]
    lines = ["t0=add(i0,i1)"] + [f"t{k}=add(t{k - 1},i{k % 32})" for k in range(1, 256)]
    declared = " ".join(f"i{k}:f32" for k in range(32))
    expr = f"{declared} | {' '.join(lines)} | {' '.join(f't{k}:f32' for k in range(240, 256))}"
    results = run(expr, *inputs, variant=variant)
    expected = 1 + sum(k % 32 for k in range(1, 256))
    assert len(results) == 16
    assert_same_bits(results[-1], np.full(33, expected, F32))


MALFORMED = {
    "": "section",
    "i0:f32": "section",
    "i0:f32 | t0=neg(i0)": "section",
    "i0:f32 | | t0:f32": "no statement",
    "i0:f32 | t0=neg(i0) |": "no output",
    "i0:f64 | t0=neg(i0) | t0:f32": "'i0:f64'",
    "i1:f32 | t0=neg(i0) | t0:f32": "'i1:f32'",
    "i0:f32 | t1=neg(i0) | t1:f32": "'t1=neg(i0)'",
    "i0:f32 | t0=nega(i0) | t0:f32": "'nega'",
    "i0:f32 | t0=neg(i1) | t0:f32": "'i1'",
    "i0:f32 | t0=neg(t0) | t0:f32": "'t0'",
    "i0:f32 | t0=neg(i0,i0) | t0:f32": "2 operands",
    "i0:f32 | t0=add(i0) | t0:f32": "1 operands",
    "i0:f32 i1:i32 | t0=add(i0,i1) | t0:f32": "different types",
    "i0:bool | t0=neg(i0) | t0:bool": "not defined for bool",
    "i0:i32 | t0=exp(i0) | t0:i32": "not defined for i32",
    "i0:f32 | t0=where(i0,i0,i0) | t0:f32": "condition",
    "i0:f32 | t0=leaky_relu(i0,i0) | t0:f32": "literal",
    "i0:f32 | t0=leaky_relu(i0,#1:i32) | t0:f32": "float",
    "i0:f32 | t0=add(i0,#x:f32) | t0:f32": "'#x:f32'",
    "i0:f32 | t0=add(i0,#1:f64) | t0:f32": "'#1:f64'",
    "i0:i64 | t0=add(i0,#99999999999999999999:i64) | t0:i64": "not a number",
    "i0:i32 | t0=add(i0,#2147483648:i32) | t0:i32": "not a number",
    "i0:f32 | t0=neg(i0) | t1:f32": "'t1:f32'",
    "i0:f32 | t0=neg(i0) | t0:f16": "'t0:f16'",
    "i0:f32 | t0=neg(i0) | i0:f32": "'i0:f32'",
    "i0:f32 | t0=neg(i0) | t0:f32 | x": "follows",
}


@pytest.mark.parametrize(("expr", "sentence"), MALFORMED.items())
def test_malformed_expression(expr: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run(expr, f32(1))


@settings(max_examples=400, deadline=None)
@given(
    st.text(alphabet="it01239=(),#:|. -xpfbandegmulsrt", max_size=80), st.integers(0, len(LONG) - 1), st.integers(0, 12)
)
def test_damaged_expressions_never_crash(text: str, position: int, length: int) -> None:
    for expr in (text, LONG[:position] + text[:length] + LONG[position + length :]):
        inputs = [np.ones(5, F32)] * expr.split("|", 1)[0].count(":f32")
        try:
            run(expr, *inputs)
        except ValueError as error:
            assert str(error).endswith((".", "'")), error


def test_refuses_inputs_of_another_type_or_number() -> None:
    expr = "i0:f32 | t0=neg(i0) | t0:f32"
    with pytest.raises(ValueError, match="Input 0 is of type double and should be f32"):
        run(expr, np.zeros(3, np.float64))
    with pytest.raises(ValueError, match="got 2 inputs and its expression has 1"):
        run(expr, f32(1), f32(1))
    with pytest.raises(ValueError, match="no variant 'fast'"):
        run(expr, f32(1), variant="fast")


def test_highest_isa_can_be_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_MAX_ISA", "scalar")
    chosen = [v["isa"] for op in native.ops() for v in op["variants"] if v["chosen"]]
    assert chosen == ["scalar"] * len(native.ops())
    monkeypatch.setenv("ONNXOPT_MAX_ISA", "sse9")
    with pytest.raises(ValueError, match="'sse9'"):
        native.ops()
