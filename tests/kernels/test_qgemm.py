"""The kernels of QGemm: every variant against exact integer arithmetic, and against each other bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.ops.qgemm import column_sums, pack
from variants import variant_fixture

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

Array = np.ndarray[Any, Any]
(OP,) = [op for op in native.ops() if op["op"] == "QGemm"]
EMULATED = "qgemm__cuda_emulated"
"""The kernel for CUDA devices, run by the host."""
USABLE = [*(one["name"] for one in OP["variants"] if one["usable"]), EMULATED]
ON_PROCESSORS = [one["name"] for one in OP["variants"] if one["usable"] and one["device"] == "cpu"]
GELU, ADD = "i0:f32 | t0=gelu(i0) | t0:f32", "i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"
RELU = "i0:f32 | t0=relu(i0) | t0:f32"


variant = variant_fixture(OP, EMULATED)


def product(
    x: Array,
    matrix: Array,
    scales: Array,
    quantization: tuple[float, Any] | None = None,
    bias: Array | None = None,
    extra: list[Array] | None = None,
    *,
    epilogue: str | None = None,
    output: tuple[float, Any] | None = None,
    variant: str | None = None,
    threads: int = 1,
) -> Array:
    """`quantization` is scale and zero point of x; without it rows are quantized over their own ranges.
    `output` is scale and zero point of the result, where that is bytes."""
    attributes: dict[str, Any] = {"columns": matrix.shape[1]}
    inputs = [x, pack(matrix), scales, column_sums(matrix)]
    if quantization is None:
        attributes["by_row"] = 1
    else:
        inputs += [np.array(quantization[0], np.float32), np.asarray(quantization[1])]
    if bias is not None:
        attributes["biased"] = 1
        inputs.append(bias)
    if epilogue is not None:
        attributes["epilogue"] = epilogue
    inputs += extra or []
    if output is not None:
        attributes["output_dtype"] = {np.dtype(np.uint8): 2, np.dtype(np.int8): 3}[np.asarray(output[1]).dtype]
        inputs += [np.array(output[0], np.float32), np.asarray(output[1])]
    (result,) = native.run("QGemm", inputs, attributes, variant=variant, threads=threads)
    return np.asarray(result)


def exact(x: Array, zero: int, matrix: Array, scale: float, scales: Array) -> Array:
    """The sums in integers, scaled in float32 as the kernel does."""
    sums = (x.astype(np.int64) - zero) @ matrix.astype(np.int64)
    return sums.astype(np.float32) * (np.float32(scale) * scales)


def draw(rng: np.random.Generator, rows: int, depth: int, columns: int, dtype: type) -> tuple[Array, Array, Array]:
    limits = np.iinfo(dtype)
    x = rng.integers(limits.min, limits.max + 1, (rows, depth)).astype(dtype)
    matrix = rng.integers(-127, 128, (depth, columns)).astype(np.int8)
    return x, matrix, rng.uniform(0.01, 1.0, columns).astype(np.float32)


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 32, 33, 100])
@pytest.mark.parametrize("depth", [0, 1, 3, 4, 7, 64, 255, 1024])
@pytest.mark.parametrize("rows", [0, 1, 3, 11, 12, 13, 50])
def test_bytes_of_any_size(rows: int, depth: int, columns: int, variant: str) -> None:
    rng = np.random.default_rng([rows, depth, columns])
    for dtype, zero in ((np.uint8, np.uint8(77)), (np.int8, np.int8(-5))):
        x, matrix, scales = draw(rng, rows, depth, columns, dtype)
        found = product(x, matrix, scales, (0.5, zero), variant=variant)
        np.testing.assert_array_equal(found, exact(x, int(zero), matrix, 0.5, scales))


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("zero", [0, 255])
def test_extremes_do_not_saturate(value: int, weight: int, zero: int, variant: str) -> None:
    x, matrix = np.full((7, 3000), value, np.uint8), np.full((3000, 40), weight, np.int8)
    ones = np.ones(40, np.float32)
    found = product(x, matrix, ones, (1.0, np.uint8(zero)), variant=variant)
    np.testing.assert_array_equal(found, exact(x, zero, matrix, 1.0, ones))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_floats_are_quantized_to_nearest_even_and_saturate(dtype: type, variant: str) -> None:
    x = np.array([[-1e9, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.25, 31.0, 1e9, np.inf, -np.inf]], np.float32)
    zero, limits = dtype(3), np.iinfo(dtype)
    wanted = np.clip(np.rint(x.astype(np.float64) / 0.5) + 3, limits.min, limits.max) - 3
    identity = np.eye(x.shape[1], dtype=np.int8)
    found = product(x, identity, np.ones(x.shape[1], np.float32), (0.5, zero), variant=variant)
    np.testing.assert_array_equal(found, wanted * 0.5)


def test_rows_over_their_own_ranges(variant: str) -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((9, 200)) * np.logspace(-30, 30, 9)[:, None]).astype(np.float32)
    matrix, scales = rng.integers(-127, 128, (200, 20)).astype(np.int8), rng.uniform(0.1, 1, 20).astype(np.float32)
    found = product(x, matrix, scales, variant=variant).astype(np.float64)
    wanted = x.astype(np.float64) @ (matrix * scales.astype(np.float64))
    assert (np.abs(found - wanted).max(axis=1) < 0.02 * np.abs(wanted).max(axis=1)).all()


def test_rows_that_are_zero_constant_or_not_finite(variant: str) -> None:
    x = np.zeros((6, 33), np.float32)
    x[1], x[2], x[3, 5], x[4, 32], x[5] = 2.0, -3.0, np.nan, np.inf, np.float32(1e-44)
    matrix, ones = np.ones((33, 18), np.int8), np.ones(18, np.float32)
    found = product(x, matrix, ones, variant=variant)
    np.testing.assert_allclose(found[:3], np.outer([0, 66, -99], ones), rtol=1e-6)
    assert np.isnan(found[3:5]).all()
    np.testing.assert_array_equal(found[5], 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_variants_and_threads_agree_bit_for_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, depth, columns = (int(rng.integers(1, most)) for most in (150, 400, 200))
    _, matrix, scales = draw(rng, rows, depth, columns, np.uint8)
    x = rng.standard_normal((rows, depth)).astype(np.float32)
    quantization = (0.02, np.uint8(rng.integers(0, 256))) if seed % 2 else None
    bias = rng.standard_normal(columns).astype(np.float32)
    epilogue, names = (GELU, ON_PROCESSORS) if seed % 3 else (RELU, USABLE)  # Gelu is exact on CUDA devices
    results = [
        product(x, matrix, scales, quantization, bias, epilogue=epilogue, variant=name, threads=threads)
        for name in names
        for threads in (1, 2, 4)
    ]
    for one in results[1:]:
        np.testing.assert_array_equal(one, results[0])


def quantized(y: Array, scale: float, zero: Any) -> Array:
    """As QuantizeLinear, by the reciprocal of the scale as the kernel does."""
    limits = np.iinfo(zero.dtype)
    whole = np.rint(y * (np.float32(1) / np.float32(scale))) + np.float32(zero)
    return np.clip(whole, limits.min, limits.max).astype(zero.dtype)


PROGRAMS = {"none": None, "relu": RELU, "gelu": GELU, "residual": ADD}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(131), np.uint8(255), np.int8(-128), np.int8(7), np.int8(127)])
@pytest.mark.parametrize("columns", [1, 7, 16, 33, 100])
def test_results_as_bytes(columns: int, zero: Any, program: str, variant: str) -> None:
    """Of results of every size, to beyond the range of bytes, exactly what is made of the float result."""
    rng = np.random.default_rng(columns)
    for rows, depth, threads in ((0, 3, 1), (1, 9, 1), (30, 64, 2), (130, 20, 4)):
        x, matrix, scales = draw(rng, rows, depth, columns, np.uint8)
        extra = [rng.standard_normal((rows, columns)).astype(np.float32)] if program == "residual" else []
        bias = rng.standard_normal(columns).astype(np.float32)
        arguments = (x, matrix, scales * 1e-3, (0.1, np.uint8(99)), bias, extra)
        floats = product(*arguments, epilogue=PROGRAMS[program], variant=variant)
        found = product(*arguments, epilogue=PROGRAMS[program], output=(0.11, zero), variant=variant, threads=threads)
        assert found.dtype == zero.dtype
        np.testing.assert_array_equal(found, quantized(floats, 0.11, zero))


@pytest.mark.parametrize("zero", [np.uint8(3), np.int8(3)])
def test_results_as_bytes_round_half_to_even_and_saturate(zero: Any, variant: str) -> None:
    sums = np.array([[-1e4, -5, -3, -1, 0, 1, 3, 5, 7, 1e4]], np.float32)
    x, identity = np.ones((1, 1), np.uint8), np.ones((1, sums.size), np.int8)
    none = np.zeros(sums.size, np.float32)
    found = product(x, identity, none, (1.0, np.uint8(0)), sums[0], output=(2.0, zero), variant=variant)
    limits = np.iinfo(zero.dtype)
    wanted = np.clip(np.array([[-5e3, -2, -2, 0, 0, 0, 2, 2, 4, 5e3]]) + 3, limits.min, limits.max)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_results_that_are_not_finite_become_bytes(special: float, variant: str) -> None:
    x, ones = np.ones((3, 4), np.uint8), np.ones(20, np.float32)
    bias = np.full(20, special, np.float32)
    output = (0.5, np.uint8(10))
    found = product(x, np.ones((4, 20), np.int8), ones, (1.0, np.uint8(0)), bias, output=output, variant=variant)
    np.testing.assert_array_equal(found, 10 if np.isnan(special) else 255 if special > 0 else 0)


def test_epilogues_read_biased_results(variant: str) -> None:
    rng = np.random.default_rng(2)
    x, matrix, scales = draw(rng, 30, 64, 70, np.uint8)
    bias, residual = (rng.standard_normal(shape).astype(np.float32) for shape in ((70,), (30, 70)))
    scales /= 1e4
    plain = product(x, matrix, scales, (0.1, np.uint8(100)), variant=variant)
    added = product(x, matrix, scales, (0.1, np.uint8(100)), bias, [residual], epilogue=ADD, variant=variant)
    np.testing.assert_array_equal(added, plain + bias + residual)


def test_gelu_is_good_to_a_part_of_its_operand(variant: str) -> None:
    operand = np.concatenate([np.linspace(-12, 12, 4001), [0, 4.2, -4.2, 1e30, -1e30, np.nan]]).astype(np.float32)
    nothing = np.zeros((1, 4), np.uint8), np.zeros((4, operand.size), np.int8), np.ones(operand.size, np.float32)
    found = product(*nothing, (1.0, np.uint8(0)), operand, epilogue=GELU, variant=variant).astype(np.float64)[0]
    (wanted,) = native.run("FusedElementwise", [operand.astype(np.float32)], {"expr": GELU})
    assert np.isnan(found[-1])
    assert (np.abs(found - wanted)[:-1] <= 1.1e-5 * np.abs(operand[:-1])).all()


@pytest.mark.parametrize("leading", [(), (2, 3), (0, 3), (2, 1, 3)])
def test_any_number_of_leading_dims(leading: tuple[int, ...], variant: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (*leading, 9)).astype(np.uint8)
    matrix, ones = rng.integers(-127, 128, (9, 21)).astype(np.int8), np.ones(21, np.float32)
    np.testing.assert_array_equal(
        product(x, matrix, ones, (1.0, np.uint8(9)), variant=variant), exact(x, 9, matrix, 1.0, ones)
    )


def test_loop_of_registers_counts_products(variant: str) -> None:
    assert native.occupy("QGemm", 3, variant) == 3 * native.occupy("QGemm", 1, variant)
    assert (native.occupy("QGemm", 1, variant) > 0) == variant.endswith("vnni")
    with pytest.raises(ValueError, match="rounds should be positive"):
        native.occupy("QGemm", 0, variant)


def test_ops_without_a_loop_of_registers_say_so() -> None:
    with pytest.raises(ValueError, match="FusedGemm has no loop of registers alone"):
        native.occupy("FusedGemm", 1)


X, SCALES = np.zeros((2, 8), np.float32), np.ones(5, np.float32)
MATRIX = np.zeros((8, 5), np.int8)
WRONG: dict[str, tuple[int, Array, str]] = {
    "x": (0, X.astype(np.float64), "Input 0 is of type double and should be float, uint8 or int8."),
    "scalar": (0, np.array(1, np.float32), "Input 0 is a scalar and should have rows."),
    "weights": (1, pack(MATRIX)[:, :1], r"Input 1 has the shape \[1,1,16,4\] and should have \[1,2,16,4\]."),
    "weight type": (1, pack(MATRIX).astype(np.uint8), "Input 1 is of type uint8 and should be int8."),
    "scales": (2, SCALES[:4], r"Input 2 has the shape \[4\] and should have \[5\]."),
    "sums": (3, SCALES, "Input 3 is of type float and should be int32."),
    "scale": (4, SCALES, r"Input 4 has the shape \[5\] and should have \[\]."),
    "zero": (5, np.array(0, np.int32), "Input 5 is of type int32 and should be uint8 or int8."),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_get_a_sentence(case: str) -> None:
    index, wrong, sentence = WRONG[case]
    inputs = [X, pack(MATRIX), SCALES, column_sums(MATRIX), np.array(1, np.float32), np.array(0, np.uint8)]
    inputs[index] = wrong
    with pytest.raises(ValueError, match=sentence):
        native.run("QGemm", inputs, {"columns": 5})


WRONG_OUTPUTS: dict[str, tuple[dict[str, Any], list[Array], str]] = {
    "type": ({"output_dtype": 6}, [], r"'output_dtype' is 6 and should be 2 \(uint8\) or 3 \(int8\)"),
    "missing": ({"output_dtype": 2}, [], "It got 6 inputs and needs at least 8."),
    "zero": (
        {"output_dtype": 3},
        [np.array(1, np.float32), np.array(0, np.uint8)],
        "Input 7 is of type uint8 and should be int8.",
    ),
    "two results": (
        {"output_dtype": 2, "epilogue": "i0:f32 | t0=relu(i0) t1=neg(i0) | t0:f32 t1:f32"},
        [np.array(1, np.float32), np.array(0, np.uint8)],
        "other results than one float",
    ),
}


@pytest.mark.parametrize("case", WRONG_OUTPUTS)
def test_wrong_outputs_get_a_sentence(case: str) -> None:
    attributes, more, sentence = WRONG_OUTPUTS[case]
    inputs = [X, pack(MATRIX), SCALES, column_sums(MATRIX), np.array(1, np.float32), np.array(0, np.uint8)]
    with pytest.raises(ValueError, match=sentence):
        native.run("QGemm", [*inputs, *more], {"columns": 5} | attributes)


def test_zero_point_has_the_type_of_bytes() -> None:
    inputs = [
        X.astype(np.int8),
        pack(MATRIX),
        SCALES,
        column_sums(MATRIX),
        np.array(1, np.float32),
        np.array(0, np.uint8),
    ]
    with pytest.raises(ValueError, match="Input 5 is of type uint8 and should be int8"):
        native.run("QGemm", inputs, {"columns": 5})
