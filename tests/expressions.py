"""Expressions of FusedElementwise as tests run them: kernels on arrays, samples of every type, and what numpy says of operations.

`CPU` are the variants for processors that this machine runs, `SUPPORTED` all that it runs, the code of the CUDA kernel on the host
included; `SAMPLE` are floats of every exponent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")
Array = np.ndarray[Any, Any]
DTYPES = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "i64": np.int64, "bool": np.bool_}
F32 = np.float32
NUMBERS, FLOATS = ("f32", "f16", "i32", "i64"), ("f32", "f16")
(OP,) = [op for op in native.ops() if op["op"] == "FusedElementwise"]
EMULATED = "elementwise__cuda_emulated"
CPU = [v["name"] for v in OP["variants"] if v["usable"] and v["device"] == "cpu"]
DEVICE = "elementwise__cuda"
SUPPORTED = [*(v["name"] for v in OP["variants"] if v["usable"]), EMULATED]
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


def f32(*values: float) -> Array:
    return np.array(values, F32)


def whole_range() -> Array:
    """Floats of every exponent and sign, subnormal and not finite ones too, and neighbours of borders in formulas."""
    spread = np.arange(0, 1 << 32, 16381, dtype=np.uint64).astype(np.uint32).view(np.float32)
    usual = np.linspace(-120, 120, 60001, dtype=np.float32)
    borders = np.array([0, 1, 0.92, 10, 20, 60, 88.722839, 89, 103.97208, 104, 2**-126, math.sqrt(0.5)], np.float32)
    near = np.concatenate([np.nextafter(borders, np.float32(to)) for to in (-INF, INF)] + [borders])
    special = np.array([INF, NAN, 3.4028235e38, 1e-45, 0.0], np.float32)
    return np.concatenate([spread, usual, near, -near, special, -special])


SAMPLE = whole_range()


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


def cast(x: Array, target: str) -> Array:
    """As the hardware casts: truncation, and the lowest integer for what does not fit."""
    dtype = np.dtype(DTYPES[target])
    with np.errstate(all="ignore"):
        if dtype.kind != "i" or x.dtype.kind != "f":
            return x.astype(dtype)
        limit = 2.0 ** (8 * dtype.itemsize - 1)
        fits = (x.astype(np.float64) >= -limit) & (x.astype(np.float64) < limit)
        return np.where(fits, np.where(fits, x, 0).astype(dtype), np.iinfo(dtype).min).astype(dtype)


LONG = (
    "i0:f32 i1:f32 i2:f32 | t0=sigmoid(i0) t1=mul(t0,i1) t2=gelu(t1) t3=add(t2,i2) t4=tanh(t3) t5=greater(t4,i1) "
    "| t4:f32 t5:bool t1:f32"
)
