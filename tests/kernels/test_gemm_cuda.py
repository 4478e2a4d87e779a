"""FusedGemm on the tensor cores of CUDA devices, run by the host: float16, bfloat16, and floats as tf32; and what processors make of the former.

Matrices of small whole numbers have exact products, so that no element can be missed or read twice; others are compared with float64.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panels import pack
from variants import skip_if_lacking

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "tf32": np.dtype(np.float32)}
BITS = {"f16": 11, "bf16": 8, "tf32": 11}
"""Of the numbers that are multiplied."""
EMULATED = {"f16": "gemm__cuda_emulated", "bf16": "gemm__cuda_emulated", "tf32": "gemm__cuda_tf32_emulated"}
DEVICE = {"f16": "gemm__cuda", "bf16": "gemm__cuda", "tf32": "gemm__cuda_tf32"}
PROCESSOR = "gemm__scalar"
HALF_GELU = "i0:f16 | t0=gelu(i0) | t0:f16"


def gemm(
    kind: str,
    x: Array,
    matrices: list[Array],
    biases: list[Array] | None = None,
    extra: list[Array] | None = None,
    *,
    epilogue: str | None = None,
    variant: str | None = None,
) -> list[Array]:
    attributes: dict[str, Any] = {"columns": matrices[0].shape[1], "products": len(matrices)}
    if biases:
        attributes["biased"] = 1
    if epilogue is not None:
        attributes["epilogue"] = epilogue
    inputs = [x, *map(pack, matrices), *(biases or [])]
    cast = [array.astype(DTYPES[kind]) for array in inputs]
    results: list[Array] = native.run(
        "FusedGemm", [*cast, *(extra or [])], attributes, variant=variant or EMULATED[kind]
    )
    return results


def whole(rng: np.random.Generator, *shape: int) -> Array:
    """Whole numbers, of whose products bfloat16 holds any sum of up to four exactly."""
    return rng.integers(-4, 5, shape).astype(np.float32)


def assert_near(kind: str, found: Array, x: Array, matrix: Array, bias: Array | None = None) -> None:
    """Results are rounded once, after sums that lose at most a bit of float32 for each product."""
    assert found.dtype == DTYPES[kind]
    a, b = (array.astype(DTYPES[kind]).astype(np.float64) for array in (x, matrix))
    added = np.zeros(1) if bias is None else bias.astype(DTYPES[kind]).astype(np.float64)
    exact, size = a @ b + added, np.abs(a) @ np.abs(b) + np.abs(added)
    unit = 2.0**-24 if kind == "tf32" else 2.0 ** -BITS[kind]
    operands = 2.0 ** (1 - BITS[kind]) if kind == "tf32" else 0.0
    bound = unit * np.abs(exact) + ((x.shape[-1] + 1) * 2.0**-23 + operands) * size
    assert (np.abs(found.astype(np.float64) - exact) <= bound + 1e-7).all()


@pytest.mark.parametrize("columns", [1, 70, 300])
@pytest.mark.parametrize("depth", [0, 1, 7, 33, 96, 260])
@pytest.mark.parametrize("rows", [0, 1, 17, 130])
@pytest.mark.parametrize("kind", DTYPES)
def test_products_of_any_size(kind: str, rows: int, depth: int, columns: int) -> None:
    rng = np.random.default_rng([rows, depth, columns])
    x, matrix, bias = (
        rng.normal(0, 1, shape).astype(np.float32) for shape in ((rows, depth), (depth, columns), columns)
    )
    (plain,) = gemm(kind, x, [matrix])
    assert_near(kind, plain, x, matrix)
    (biased,) = gemm(kind, x, [matrix], [bias])
    assert_near(kind, biased, x, matrix, bias)
    if kind != "tf32":
        (converted,) = gemm(kind, x, [matrix], [bias], variant=PROCESSOR)
        assert_near(kind, converted, x, matrix, bias)


@pytest.mark.parametrize("kind", DTYPES)
def test_elements_are_read_once(kind: str) -> None:
    """Powers of two have exact sums in any order."""
    x = np.eye(150, 200, dtype=np.float32) * 4
    matrix = 2.0 ** (np.arange(200 * 260).reshape(200, 260) % 7).astype(np.float32)
    (found,) = gemm(kind, x, [matrix])
    np.testing.assert_array_equal(found.astype(np.float32), 4 * matrix[:150])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(("rows", "columns"), [(1, 17), (70, 33), (140, 200)])
@pytest.mark.parametrize("kind", DTYPES)
def test_several_products(kind: str, rows: int, columns: int, count: int) -> None:
    rng = np.random.default_rng(count)
    x, matrices, biases = (
        whole(rng, rows, 4),
        [whole(rng, 4, columns) for _ in range(count)],
        [whole(rng, columns)] * count,
    )
    results = gemm(kind, x, matrices, biases)
    for found, matrix in zip(results, matrices, strict=True):
        np.testing.assert_array_equal(found.astype(np.float32), x @ matrix + biases[0])


@pytest.mark.parametrize("columns", [64, 70, 300])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_epilogues_of_two_bytes(kind: str, columns: int, count: int) -> None:
    """An expression reads products that were rounded to their type, as the ops that it stands for would."""
    rng = np.random.default_rng(columns)
    x, matrices = whole(rng, 2, 70, 4), [whole(rng, 4, columns) for _ in range(count)]
    residual, scale = whole(rng, 70, columns).astype(DTYPES[kind]), whole(rng, columns).astype(DTYPES[kind])
    names = [f"i{index}" for index in range(count + 2)]
    steps = ["t0=gelu(i0)", *(f"t{k}=mul(t{k - 1},{name})" for k, name in enumerate(names[1:], 1))]
    program = f"{' '.join(f'{name}:{kind}' for name in names)} | {' '.join(steps)} | t{count + 1}:{kind}"
    raw = [(x @ matrix).astype(DTYPES[kind]) for matrix in matrices]
    (wanted,) = native.run(
        "FusedElementwise", [*raw, residual, scale], {"expr": program}, variant="elementwise__cuda_emulated"
    )
    (found,) = gemm(kind, x, matrices, None, [residual, scale], epilogue=program)
    np.testing.assert_array_equal(found, wanted)
    if kind == "bf16":
        with pytest.raises(ValueError, match="It computes bfloat16, for which only CUDA devices have kernels"):
            gemm(kind, x, matrices, None, [residual, scale], epilogue=program, variant=PROCESSOR)
        return
    (converted,) = gemm("f16", x, matrices, None, [residual, scale], epilogue=program, variant=PROCESSOR)
    (by_processor,) = native.run("FusedElementwise", [*raw, residual, scale], {"expr": program})
    np.testing.assert_array_equal(converted, by_processor)


def test_epilogue_of_tf32_makes_other_types() -> None:
    rng = np.random.default_rng(1)
    x, matrix, offset = whole(rng, 70, 9), whole(rng, 9, 68), rng.integers(0, 9, (70, 68))
    program = "i0:f32 i1:i64 | t0=cast_i64(i0) t1=add(t0,i1) t2=cast_f16(i0) | t1:i64 t2:f16"
    integers, halves = gemm("tf32", x, [matrix], None, [offset], epilogue=program)
    np.testing.assert_array_equal(integers, (x @ matrix).astype(np.int64) + offset)
    np.testing.assert_array_equal(halves, (x @ matrix).astype(np.float16))


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_concerns_its_row_and_column_alone(special: float, kind: str) -> None:
    rng = np.random.default_rng(4)
    x, matrix = np.abs(whole(rng, 66, 20)) + 1, np.abs(whole(rng, 20, 37)) + 1
    clean = gemm(kind, x, [matrix])[0].astype(np.float32)
    x[65, 3] = matrix[7, 16] = special
    (found,) = gemm(kind, x, [matrix])
    hit = np.zeros(clean.shape, bool)
    hit[65], hit[:, 16] = True, True
    np.testing.assert_array_equal(found[hit].astype(np.float32), np.full(hit.sum(), special, np.float32))
    np.testing.assert_array_equal(found[~hit].astype(np.float32), clean[~hit])


def unaligned(array: Array) -> Array:
    memory = np.empty(array.size + 1, array.dtype)
    memory[1:] = array.ravel()
    return memory[1:].reshape(array.shape)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("kind", DTYPES)
def test_tensors_of_any_alignment(kind: str, which: int) -> None:
    rng = np.random.default_rng(5)
    inputs = [array.astype(DTYPES[kind]) for array in (whole(rng, 20, 64), pack(whole(rng, 64, 48)), whole(rng, 48))]
    attributes = {"columns": 48, "biased": 1}
    expected = native.run("FusedGemm", inputs, attributes, variant=EMULATED[kind])[0].astype(np.float32)
    inputs[which] = unaligned(inputs[which])
    (found,) = native.run("FusedGemm", inputs, attributes, variant=EMULATED[kind])
    np.testing.assert_array_equal(found.astype(np.float32), expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rows_are_computed_alike_alone_and_together(seed: int) -> None:
    """Whatever the tiles are."""
    rng = np.random.default_rng(seed)
    kind, rows = list(DTYPES)[seed % 3], int(rng.integers(129, 200))
    depth, columns = int(rng.integers(1, 80)), int(rng.integers(1, 260))
    x, matrix = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((rows, depth), (depth, columns)))
    (together,) = gemm(kind, x, [matrix])
    assert_near(kind, together, x, matrix)
    row = int(rng.integers(0, rows))
    (alone,) = gemm(kind, x[row : row + 1], [matrix])
    np.testing.assert_array_equal(alone.astype(np.float32), together[row : row + 1].astype(np.float32))


@pytest.mark.parametrize("kind", DTYPES)
def test_device_computes_the_same(kind: str) -> None:
    skip_if_lacking(native.cuda_problem())
    rng = np.random.default_rng(6)
    for rows, depth, columns in ((1, 64, 70), (300, 260, 300), (2000, 512, 1024)):
        x, matrix, bias = (
            rng.normal(0, 1, shape).astype(np.float32) for shape in ((rows, depth), (depth, columns), columns)
        )
        (found,) = gemm(kind, x, [matrix], [bias], variant=DEVICE[kind])
        assert_near(kind, found, x, matrix, bias)


@pytest.mark.parametrize(("value", "variant"), [("1", "gemm__cuda_tf32"), ("0", "gemm__cuda"), ("", "gemm__cuda")])
def test_floats_are_multiplied_exactly_unless_tf32_is_asked_for(
    value: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXOPT_TF32", value)
    assert native.cuda_choice("FusedGemm", 80) == variant
    assert native.cuda_choice("QGemm", 80) == "qgemm__cuda"


@pytest.mark.parametrize("variant", ["gemm__cuda", "gemm__cuda_tf32"])
@pytest.mark.parametrize("value", ["0", "1"])
def test_a_variant_that_was_tuned_comes_first(
    value: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tuned.toml").write_text(f'[variants]\nFusedGemm = "{variant}"\n')
    monkeypatch.setenv("ONNXOPT_TUNING", str(tmp_path / "tuned.toml"))
    monkeypatch.setenv("ONNXOPT_TF32", value)
    assert native.cuda_choice("FusedGemm", 80) == variant


REFUSED: dict[str, tuple[list[Array], dict[str, Any], str, str]] = {
    "weights of another type": (
        [np.ones((2, 3), np.float16), np.ones((1, 3, 16), np.float32)],
        {},
        EMULATED["f16"],
        "Input 1 is of type float and should be float16.",
    ),
    "program of another type": (
        [np.ones((2, 3), np.float32), np.ones((1, 3, 16), np.float32)],
        {"epilogue": HALF_GELU},
        EMULATED["f16"],
        "Its results are float, and input 0 of its epilogue is f16.",
    ),
    "program of float16 for bfloat16": (
        [np.ones((2, 3), ml_dtypes.bfloat16), np.ones((1, 3, 16), ml_dtypes.bfloat16)],
        {"epilogue": HALF_GELU},
        EMULATED["bf16"],
        "Its results are bfloat16, and input 0 of its epilogue is f16.",
    ),
    "doubles": ([np.ones((2, 3))], {"products": 0}, EMULATED["f16"], "'products' is 0"),
    "integers of halves": (
        [np.ones((2, 3), np.float16), np.ones((1, 3, 16), np.int8), np.ones((1, 1, 16), np.float32)],
        {"block": 3},
        "gemm__scalar",
        "Input 0 is of type float16 and should be float.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_sentences(case: str) -> None:
    inputs, attributes, variant, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        native.run("FusedGemm", inputs, {"columns": 16} | attributes, variant=variant)


def test_tiles_of_all_sizes() -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    source = ROOT / "tests" / "kernels" / "tensor_geometry_driver.cc"
    command = [compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}", str(source)]
    subprocess.run(command, check=True)
