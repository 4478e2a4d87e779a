"""The kernels of FusedGemm: every variant against float64, and its epilogues against FusedElementwise.

Matrices of small whole numbers have exact products in float32, in whatever order they are summed: there results must be equal, so that
no element can be missed or read twice.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panels import pack
from variants import variant_fixture

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

Array = np.ndarray[Any, Any]
(OP,) = [op for op in native.ops() if op["op"] == "FusedGemm"]
ISAS = {one["name"]: one["isa"] for one in OP["variants"] if not one["name"].endswith("_tf32")}  # see test_gemm_cuda.py
EMULATED = "gemm__cuda_emulated"
"""The kernel for CUDA devices, run by the host."""
ISAS[EMULATED] = "cuda_emulated"
USABLE = [*(one["name"] for one in OP["variants"] if one["usable"] and one["name"] in ISAS), EMULATED]
DTYPES = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "i64": np.int64, "bool": np.bool_}
INF, NAN = math.inf, math.nan

RELU, CLIP = "i0:f32 | t0=relu(i0) | t0:f32", "i0:f32 | t0=clip(i0,#-0x1.8p+0:f32,#0x1p+2:f32) | t0:f32"
GELU = "i0:f32 | t0=gelu(i0) | t0:f32"


variant = variant_fixture(OP, names=ISAS)


def skip_if_slow(variant: str, rows: int, depth: int, columns: int) -> None:
    """Blocks of the CUDA kernel always compute whole tiles."""
    if variant == EMULATED and -(-rows // 128) * 128 * depth * columns > 1 << 25:
        pytest.skip("on the host, the kernel for CUDA devices is tested with small shapes")


def gemm(
    x: Array,
    matrices: list[Array],
    biases: list[Array] | None = None,
    extra: list[Array] | None = None,
    *,
    epilogue: str | None = None,
    variant: str | None = None,
    threads: int = 1,
) -> list[Array]:
    attributes: dict[str, Any] = {"columns": matrices[0].shape[1], "products": len(matrices)}
    if biases:
        attributes["biased"] = 1
    if epilogue is not None:
        attributes["epilogue"] = epilogue
    inputs = [x, *map(pack, matrices), *(biases or []), *(extra or [])]
    results: list[Array] = native.run("FusedGemm", inputs, attributes, variant=variant, threads=threads)
    return results


def whole(rng: np.random.Generator, *shape: int) -> Array:
    """Whole numbers, of whose products float32 holds any sum of these tests exactly."""
    return rng.integers(-8, 9, shape).astype(np.float32)


def exact(x: Array, matrix: Array, bias: Array | None = None) -> Array:
    product = x.astype(np.float64) @ matrix.astype(np.float64)
    return (product if bias is None else product + bias).astype(np.float32)


def bits(array: Array) -> Array:
    """The bits, with one pattern for every NaN."""
    if array.dtype.kind != "f":
        return array
    view = array.view(f"u{array.dtype.itemsize}").copy()
    view[np.isnan(array)] = 0
    return view


def assert_same_bits(actual: list[Array], expected: list[Array]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        np.testing.assert_array_equal(bits(one), bits(other))


# --- products ---
ROWS = (0, 1, 2, 3, 5, 11, 12, 13, 25, 130)
DEPTHS = (0, 1, 7, 16, 1023, 1024, 1500, 3000)
COLUMNS = (1, 8, 15, 16, 17, 31, 32, 33, 48, 70, 300)


@functools.cache
def operands(rows: int, depth: int) -> tuple[Array, Array, Array, Array]:
    """A, a matrix of the most columns, a bias, and the product of both."""
    rng = np.random.default_rng([rows, depth])
    x, matrix, bias = whole(rng, rows, depth), whole(rng, depth, COLUMNS[-1]), whole(rng, COLUMNS[-1])
    return x, matrix, bias, exact(x, matrix)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_product_of_any_size(rows: int, depth: int, variant: str) -> None:
    skip_if_slow(variant, rows, depth, COLUMNS[-1])
    x, matrix, bias, product = operands(rows, depth)
    for columns in COLUMNS:
        (plain,) = gemm(x, [matrix[:, :columns]], variant=variant)
        np.testing.assert_array_equal(plain, product[:, :columns])
    for columns in (7, 47, 300):
        (biased,) = gemm(x, [matrix[:, :columns]], [bias[:columns]], variant=variant)
        np.testing.assert_array_equal(biased, product[:, :columns] + bias[:columns])


@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (1, 2, 3), (2, 1, 3, 2), (0, 3), (3, 0), (2, 0, 1, 2)])
def test_any_number_of_leading_dims(leading: tuple[int, ...], variant: str) -> None:
    rng = np.random.default_rng(1)
    x, matrix = whole(rng, *leading, 9), whole(rng, 9, 21)
    (result,) = gemm(x, [matrix], variant=variant)
    np.testing.assert_array_equal(result, exact(x, matrix))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 40, 17), (13, 7, 33), (130, 1024, 300)])
def test_several_products(rows: int, depth: int, columns: int, count: int, biased: bool, variant: str) -> None:
    skip_if_slow(variant, rows, depth, columns)
    rng = np.random.default_rng(count)
    x, matrices = whole(rng, rows, depth), [whole(rng, depth, columns) for _ in range(count)]
    biases = [whole(rng, columns) for _ in range(count)] if biased else None
    results = gemm(x, matrices, biases, variant=variant)
    expected = [exact(x, matrix, biases[i] if biases else None) for i, matrix in enumerate(matrices)]
    assert_same_bits(results, expected)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("depth", [1, 64, 3000])
def test_rounding_of_sums(depth: int, magnitude: float, variant: str) -> None:
    """N. Higham, "Accuracy and Stability of Numerical Algorithms": K roundings of at most the sum of absolute values."""
    rng = np.random.default_rng(depth)
    x = (rng.normal(0, 1, (14, depth)) * magnitude).astype(np.float32)
    matrix, bias = rng.normal(0, 1, (depth, 50)).astype(np.float32), rng.normal(0, 1, 50).astype(np.float32)
    (result,) = gemm(x, [matrix], [bias], variant=variant)
    error = np.abs(result - (x.astype(np.float64) @ matrix + bias))
    assert (error <= (depth + 1) * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(matrix) + np.abs(bias))).all()


def test_rows_are_computed_alike_alone_and_together(variant: str) -> None:
    rng = np.random.default_rng(2)
    x, matrix = rng.normal(0, 1, (40, 1500)).astype(np.float32), rng.normal(0, 1, (1500, 70)).astype(np.float32)
    (together,) = gemm(x, [matrix], variant=variant)
    for row in (0, 11, 12, 39):
        assert_same_bits(gemm(x[row : row + 1], [matrix], variant=variant), [together[row : row + 1]])


@pytest.mark.parametrize("special", [INF, -INF, NAN])
def test_weights_that_are_not_finite_concern_their_columns_alone(special: float, variant: str) -> None:
    rng = np.random.default_rng(3)
    x, matrix = np.abs(whole(rng, 13, 20)) + 1, whole(rng, 20, 50)
    expected = exact(x, matrix)
    for column in (0, 15, 16, 49):
        matrix[7, column] = expected[:, column] = special
    (result,) = gemm(x, [matrix], variant=variant)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("special", [INF, -INF, NAN])
def test_rows_that_are_not_finite_concern_themselves_alone(special: float, variant: str) -> None:
    rng = np.random.default_rng(4)
    x, matrix = whole(rng, 26, 20), np.abs(whole(rng, 20, 37)) + 1
    expected = exact(x, matrix)
    for row in (0, 11, 12, 25):
        x[row, 3], expected[row] = special, special
    (result,) = gemm(x, [matrix], variant=variant)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("epilogue", [None, RELU, GELU, CLIP], ids=["none", "relu", "gelu", "clip"])
@pytest.mark.parametrize(
    ("rows", "depth", "columns"), [(1, 768, 3000), (130, 1024, 300), (700, 64, 64), (50, 3000, 100)]
)
def test_same_bits_for_any_number_of_threads(
    rows: int, depth: int, columns: int, epilogue: str | None, variant: str
) -> None:
    skip_if_slow(variant, rows, depth, columns)
    rng = np.random.default_rng(5)
    x, matrix = (
        rng.normal(0, 1, (rows, depth)).astype(np.float32),
        rng.normal(0, 1, (depth, columns)).astype(np.float32),
    )
    one, *others = (gemm(x, [matrix], epilogue=epilogue, variant=variant, threads=threads) for threads in (1, 2, 4))
    for other in others:
        assert_same_bits(other, one)


# --- clipping in registers ---
EDGES = np.array([0.0, -0.0, INF, -INF, NAN, 1.0, -1.0, 1e-45, -1e-45, 3e38, -3e38, 4.0, -1.5, 7.0], np.float32)
BOUNDS = {
    "relu": RELU,
    "clip": CLIP,
    "clip of one side": "i0:f32 | t0=clip(i0,#0x0p+0:f32,#inf:f32) | t0:f32",
    "clip of the other side": "i0:f32 | t0=clip(i0,#-inf:f32,#0x1.8p+2:f32) | t0:f32",
    "crossed bounds": "i0:f32 | t0=clip(i0,#0x1p+2:f32,#-0x1p+0:f32) | t0:f32",
    "bounds of zeros": "i0:f32 | t0=clip(i0,#-0x0p+0:f32,#0x0p+0:f32) | t0:f32",
}


@pytest.mark.parametrize("case", BOUNDS)
def test_clipping_of_special_values(case: str, variant: str) -> None:
    """Sums begin with the bias, so a bias of -0 and products that are -0 make every value reach the epilogue as it is."""
    x, matrix = np.full((14, 1), -0.0, np.float32), np.ones((1, len(EDGES)), np.float32)
    (raw,) = gemm(x, [matrix], [EDGES], variant=variant)
    assert_same_bits([raw], [np.tile(EDGES, (14, 1))])
    assert_same_bits(
        gemm(x, [matrix], [EDGES], epilogue=BOUNDS[case], variant=variant), apply(BOUNDS[case], [raw], variant)
    )


@pytest.mark.parametrize("depth", [7, 3000])
def test_sums_are_clipped_when_they_are_complete(depth: int, variant: str) -> None:
    rng = np.random.default_rng(6)
    x, matrix = whole(rng, 25, depth), whole(rng, depth, 70)
    (result,) = gemm(x, [matrix], epilogue=RELU, variant=variant)
    np.testing.assert_array_equal(result, np.maximum(exact(x, matrix), 0))


# --- epilogues ---
def apply(program: str, inputs: list[Array], variant: str) -> list[Array]:
    """What a program computes of whole tensors."""
    results: list[Array] = native.run(
        "FusedElementwise", inputs, {"expr": program}, variant=f"elementwise__{ISAS[variant]}"
    )
    return results


PROGRAMS: dict[str, tuple[str, list[str]]] = {
    "one input": ("i0:f32 | t0=silu(i0) | t0:f32", []),
    "square": ("i0:f32 | t0=mul(i0,i0) | t0:f32", []),
    "residual": ("i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32", ["B S N"]),
    "residual first, clipped": ("i0:f32 i1:f32 | t0=add(i1,i0) t1=relu(t0) | t1:f32", ["B S N"]),
    "difference": ("i0:f32 i1:f32 | t0=sub(i1,i0) | t0:f32", ["B S N"]),
    "per row": ("i0:f32 i1:f32 | t0=mul(i0,i1) | t0:f32", ["B S 1"]),
    "per position": ("i0:f32 i1:f32 | t0=mul(i0,i1) | t0:f32", ["S 1"]),
    "per batch": ("i0:f32 i1:f32 | t0=mul(i0,i1) | t0:f32", ["B 1 1"]),
    "per column": ("i0:f32 i1:f32 | t0=add(i0,i1) t1=gelu(t0) | t1:f32", ["N"]),
    "per column, all dims": ("i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32", ["1 1 N"]),
    "residual of each batch": ("i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32", ["1 S N"]),
    "residual of less rank": ("i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32", ["S N"]),
    "residual of each position": ("i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32", ["B 1 N"]),
    "scalars": ("i0:f32 i1:f32 i2:f32 | t0=mul(i0,i1) t1=add(t0,i2) | t1:f32", ["", "1"]),
    "broadcast each way": (
        "i0:f32 i1:f32 i2:f32 i3:f32 i4:f32 | t0=add(i0,i1) t1=mul(t0,i2) t2=add(t1,i3) t3=add(t2,i4) | t3:f32",
        ["B 1 N", "S 1", "1 S N", "N"],
    ),
    "bool": ("i0:f32 i1:bool | t0=where(i1,i0,#-0x1p+3:f32) | t0:f32", ["B S N"]),
    "bool per row": ("i0:f32 i1:bool | t0=where(i1,i0,#-0x1p+3:f32) | t0:f32", ["S 1"]),
    "int64": ("i0:f32 i1:i64 | t0=cast_f32(i1) t1=add(i0,t0) | t1:f32", ["B 1 N"]),
    "half": ("i0:f32 i1:f16 | t0=cast_f32(i1) t1=add(i0,t0) | t1:f32", ["N"]),
    "int32 of one element": ("i0:f32 i1:i32 | t0=cast_f32(i1) t1=add(i0,t0) | t1:f32", [""]),
    "input that is not read": ("i0:f32 i1:f32 i2:f32 | t0=add(i0,i2) | t0:f32", ["B S N", "N"]),
    "two outputs": ("i0:f32 i1:f32 | t0=add(i0,i1) t1=silu(t0) | t0:f32 t1:f32", ["B S N"]),
    "one output twice": ("i0:f32 | t0=silu(i0) | t0:f32 t0:f32", []),
    "raw result and another": ("i0:f32 | t0=mul(i0,#0x1p+0:f32) t1=silu(i0) | t1:f32 t0:f32", []),
    "bool output": ("i0:f32 | t0=greater(i0,#0x1p+1:f32) | t0:bool", []),
    "half output": ("i0:f32 | t0=relu(i0) t1=cast_f16(t0) | t1:f16", []),
    "int64 output": ("i0:f32 i1:i64 | t0=cast_i64(i0) t1=add(t0,i1) | t1:i64", ["S N"]),
    "outputs of all types": (
        "i0:f32 | t0=cast_f16(i0) t1=cast_i32(i0) t2=cast_i64(i0) t3=cast_bool(i0) t4=neg(i0) | t0:f16 t1:i32 t2:i64 t3:bool t4:f32",
        [],
    ),
    "raw result read at the end": (
        "i0:f32 i1:f32 | t0=silu(i0) t1=mul(t0,i1) t2=gelu(t1) t3=add(t2,i0) t4=add(t3,i0) | t4:f32",
        ["N"],
    ),
}
SIZES = {
    "small": (2, 3, 20, 9),
    "rows that end within a block": (3, 13, 40, 16),
    "several blocks of rows": (3, 70, 40, 300),
    "several blocks of columns": (2, 5, 300, 400),
    "several blocks of depth": (2, 13, 33, 1030),
    "one row": (1, 1, 70, 30),
    "one column": (2, 30, 1, 30),
    "empty": (2, 0, 20, 9),
    "no batch": (0, 4, 20, 9),
}


def draw(rng: np.random.Generator, program: str, shapes: list[tuple[int, ...]], products: int) -> list[Array]:
    """The further inputs of an epilogue, of the types that it declares."""
    types = [one.split(":")[1] for one in program.split("|")[0].split()[products:]]
    return [rng.integers(-5, 6, shape).astype(DTYPES[name]) for name, shape in zip(types, shapes, strict=True)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("case", PROGRAMS)
def test_epilogue(case: str, sizes: str, variant: str) -> None:
    program, templates = PROGRAMS[case]
    batch, rows, columns, depth = SIZES[sizes]
    dims = {"B": batch, "S": rows, "N": columns, "1": 1}
    rng = np.random.default_rng(7)
    x, matrix, bias = whole(rng, batch, rows, depth), whole(rng, depth, columns), whole(rng, columns)
    extra = draw(rng, program, [tuple(dims[name] for name in one.split()) for one in templates], 1)
    for biases in (None, [bias]):
        raw = exact(x, matrix, biases[0] if biases else None)
        result = gemm(x, [matrix], biases, extra, epilogue=program, variant=variant)
        assert_same_bits(result, apply(program, [raw, *extra], variant))


def test_epilogue_against_numpy(variant: str) -> None:
    rng = np.random.default_rng(8)
    x, matrix, bias = whole(rng, 3, 13, 30), whole(rng, 30, 40), whole(rng, 40)
    residual, scale, mask = whole(rng, 1, 13, 40), whole(rng, 3, 1, 1), rng.random((13, 1)) < 0.5
    program = "i0:f32 i1:f32 i2:f32 i3:bool | t0=mul(i0,i2) t1=add(t0,i1) t2=where(i3,t1,#-0x1p+0:f32) | t2:f32"
    (result,) = gemm(x, [matrix], [bias], [residual, scale, mask], epilogue=program, variant=variant)
    np.testing.assert_array_equal(result, np.where(mask, exact(x, matrix, bias) * scale + residual, np.float32(-1)))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("sizes", ["small", "several blocks of rows", "several blocks of columns", "one row", "empty"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_epilogue_of_several_products(count: int, sizes: str, biased: bool, variant: str) -> None:
    batch, rows, columns, depth = SIZES[sizes]
    rng = np.random.default_rng(count)
    x, matrices = whole(rng, batch, rows, depth), [whole(rng, depth, columns) for _ in range(count)]
    biases = [whole(rng, columns) for _ in range(count)] if biased else None
    names = [f"i{index}" for index in range(count + 1)]
    statements = ["t0=silu(i0)", *(f"t{k}=mul(t{k - 1},{name})" for k, name in enumerate(names[1:], 1))]
    program = f"{' '.join(f'{name}:f32' for name in names)} | {' '.join(statements)} | t{count}:f32 t1:f32"
    extra = [whole(rng, batch, 1, columns)]
    raw = [exact(x, matrix, biases[i] if biases else None) for i, matrix in enumerate(matrices)]
    result = gemm(x, matrices, biases, extra, epilogue=program, variant=variant)
    assert_same_bits(result, apply(program, [*raw, *extra], variant))


def test_epilogue_that_reads_one_of_two_products(variant: str) -> None:
    rng = np.random.default_rng(9)
    x, matrices = whole(rng, 14, 20), [whole(rng, 20, 33) for _ in range(2)]
    program = "i0:f32 i1:f32 | t0=neg(i1) | t0:f32"
    assert_same_bits(gemm(x, matrices, epilogue=program, variant=variant), [-exact(x, matrices[1])])


@pytest.mark.parametrize("leading", [(), (4,), (2, 3, 2), (2, 1, 3, 2)])
def test_epilogue_of_any_rank(leading: tuple[int, ...], variant: str) -> None:
    rng = np.random.default_rng(10)
    x, matrix, residual = whole(rng, *leading, 9), whole(rng, 9, 21), whole(rng, *leading, 21)
    program = "i0:f32 i1:f32 | t0=add(i0,i1) t1=silu(t0) | t1:f32"
    expected = apply(program, [exact(x, matrix), residual], variant)
    assert_same_bits(gemm(x, [matrix], None, [residual], epilogue=program, variant=variant), expected)


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize(
    "case", ["broadcast each way", "outputs of all types", "residual of each batch", "two outputs"]
)
def test_epilogues_give_the_same_bits_for_any_number_of_threads(case: str, threads: int, variant: str) -> None:
    program, templates = PROGRAMS[case]
    dims = {"B": 5, "S": 37, "N": 130, "1": 1}
    rng = np.random.default_rng(11)
    x, matrix = rng.normal(0, 1, (5, 37, 200)).astype(np.float32), rng.normal(0, 1, (200, 130)).astype(np.float32)
    extra = draw(rng, program, [tuple(dims[name] for name in one.split()) for one in templates], 1)
    one = gemm(x, [matrix], None, extra, epilogue=program, variant=variant)
    assert_same_bits(gemm(x, [matrix], None, extra, epilogue=program, variant=variant, threads=threads), one)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_shapes(data: st.DataObject) -> None:
    leading = data.draw(st.lists(st.sampled_from([1, 2, 3, 7, 14]), max_size=4), "leading dims")
    depth, columns = data.draw(st.integers(0, 40), "depth"), data.draw(st.integers(1, 70), "columns")
    products, biased = data.draw(st.integers(1, 4), "products"), data.draw(st.booleans(), "biased")
    domain = (*leading, columns)
    shapes = []
    for _ in range(data.draw(st.integers(0, 3), "inputs")):
        kept = domain[data.draw(st.integers(0, len(domain))) :]
        shapes.append(tuple(data.draw(st.sampled_from([1, dim])) for dim in kept))
    rng = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    count = products + len(shapes)
    statements = ["t0=silu(i0)", *(f"t{k}={'add' if k % 2 else 'mul'}(t{k - 1},i{k})" for k in range(1, count))]
    program = f"{' '.join(f'i{k}:f32' for k in range(count))} | {' '.join(statements)} | t{count - 1}:f32"
    x, matrices = whole(rng, *leading, depth), [whole(rng, depth, columns) for _ in range(products)]
    biases = [whole(rng, columns) for _ in range(products)] if biased else None
    extra = [whole(rng, *shape) for shape in shapes]
    raw = [exact(x, matrix, biases[i] if biases else None) for i, matrix in enumerate(matrices)]
    variant, threads = data.draw(st.sampled_from(USABLE), "variant"), data.draw(st.sampled_from([1, 2]), "threads")
    result = gemm(x, matrices, biases, extra, epilogue=program, variant=variant, threads=threads)
    assert_same_bits(result, apply(program, [*raw, *extra], variant))
