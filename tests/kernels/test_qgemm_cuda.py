"""What is particular to the CUDA kernel of QGemm, run by the host; its results are tested in test_qgemm.py as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt.ops.qgemm import column_sums, pack
from variants import skip_if_lacking

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

Array = np.ndarray[Any, Any]
EMULATED, DEVICE = "qgemm__cuda_emulated", "qgemm__cuda"
SOURCES = {"uint8": np.uint8, "int8": np.int8, "floats": np.float32, "rows of floats": np.float32}


def draw(source: str, rows: int, depth: int, columns: int, seed: int = 0) -> tuple[list[Array], dict[str, Any]]:
    """Inputs with a bias and results of bytes, and attributes."""
    rng = np.random.default_rng([rows, depth, columns, seed])
    x = (rng.normal(0, 60, (rows, depth))).clip(-128, 127).astype(SOURCES[source])
    matrix = rng.integers(-127, 128, (depth, columns)).astype(np.int8)
    inputs = [x, pack(matrix), rng.uniform(0.001, 0.01, columns).astype(np.float32), column_sums(matrix)]
    attributes: dict[str, Any] = {"columns": columns, "biased": 1, "output_dtype": 3}
    if source == "rows of floats":
        attributes["by_row"] = 1
    else:
        inputs += [np.array(0.5, np.float32), np.array(7, np.uint8 if source == "uint8" else np.int8)]
    inputs += [rng.normal(0, 50, columns).astype(np.float32), np.array(2.5, np.float32), np.array(-9, np.int8)]
    return inputs, attributes


def assert_agrees(inputs: list[Array], attributes: dict[str, Any], variant: str = EMULATED) -> None:
    """With the kernel of the processor, bit for bit."""
    (found,) = native.run("QGemm", inputs, attributes, variant=variant)
    (expected,) = native.run("QGemm", inputs, attributes, variant="qgemm__scalar")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(129, 70, 260), (260, 130, 300), (300, 64, 128)])
@pytest.mark.parametrize("source", SOURCES)
def test_large_tiles(source: str, rows: int, depth: int, columns: int) -> None:
    assert_agrees(*draw(source, rows, depth, columns))


@pytest.mark.parametrize("depth", [64, 68, 70])
@pytest.mark.parametrize("source", SOURCES)
def test_tensors_of_any_alignment(source: str, depth: int) -> None:
    inputs, attributes = draw(source, 70, depth, 64)
    for which in range(4):
        array = inputs[which]
        memory = np.empty(array.size + 1, array.dtype)
        memory[1:] = array.ravel()
        assert_agrees([*inputs[:which], memory[1:].reshape(array.shape), *inputs[which + 1 :]], attributes)


@pytest.mark.parametrize("columns", [64, 70])
def test_programs_with_values_of_all_widths(columns: int) -> None:
    """int64 values are held in wider registers, by small tiles alone."""
    inputs, attributes = draw("uint8", 150, 20, columns)
    program = (
        "i0:f32 i1:i64 i2:f16 | t0=cast_i64(i0) t1=add(t0,i1) t2=cast_f32(t1) t3=cast_f32(i2) t4=mul(t2,t3) | t4:f32"
    )
    offset, factor = np.arange(columns), np.full((150, 1), 0.5, np.float16)
    assert_agrees([*inputs[:-2], offset, factor, *inputs[-2:]], attributes | {"epilogue": program})
    attributes = attributes | {"epilogue": program.replace("t4:f32", "t1:i64 t4:f32")}
    del attributes["output_dtype"]
    found = native.run("QGemm", [*inputs[:-2], offset, factor], attributes, variant=EMULATED)
    expected = native.run("QGemm", [*inputs[:-2], offset, factor], attributes, variant="qgemm__scalar")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("source", SOURCES)
def test_device_makes_the_same_bits(source: str) -> None:
    skip_if_lacking(native.cuda_problem())
    for rows, depth, columns in ((1, 64, 70), (300, 260, 300), (3000, 1024, 2048)):
        assert_agrees(*draw(source, rows, depth, columns), DEVICE)


def test_registry_shows_the_cuda_variant() -> None:
    (shown,) = [v for op in native.ops() if op["op"] == "QGemm" for v in op["variants"] if v["device"] == "cuda"]
    assert (shown["name"], shown["problem"]) == (DEVICE, native.cuda_problem())
