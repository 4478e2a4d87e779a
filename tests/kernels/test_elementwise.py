"""The kernels of FusedElementwise, every variant that this machine runs, against numpy: operations, shapes, threads.

The code of the CUDA kernel is tested on any machine, where the host runs it one thread after the other, and on the device where there is
one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from expressions import (
    BINARY,
    CPU,
    DTYPES,
    EMULATED,
    F32,
    LONG,
    NUMBERS,
    OP,
    SAMPLE,
    SUPPORTED,
    UNARY,
    Array,
    assert_same_bits,
    assert_same_values,
    cast,
    clip,
    native,
    run,
    run_one,
    samples,
)
from variants import variant_fixture

variant = variant_fixture(OP, EMULATED)


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


APPROXIMATED = ("sigmoid", "tanh", "silu", "mish", "gelu_tanh", "erf")
"""Where a variant may divide by an estimated reciprocal or look coefficients up; `test_elementwise_accuracy` bounds each."""


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
        if op in APPROXIMATED:
            with np.errstate(over="ignore"):
                np.testing.assert_array_almost_equal_nulp(np.nan_to_num(other), np.nan_to_num(first), 4)
        elif op == "gelu":  # whose far tail is as good as its operand
            np.testing.assert_allclose(other, first, rtol=2**-22, atol=2**-24)
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
