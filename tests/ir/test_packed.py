"""Packed matrices: the same bytes from memory, from a mapped file and while a model is written, in little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from helpers import model
from onnxopt import ir
from onnxopt.ir import lazy

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
SHAPES = [(1, 1), (7, 16), (16, 7), (5, 17), (1, 300), (300, 1), (64, 48), (33, 31), (0, 20)]


def normal(*shape: int) -> Array:
    return RNG.normal(0, 1, shape).astype(np.float32)


def reference(matrix: Array) -> Array:
    """Element by element, as kernels/cpu/gemm/panel.h says."""
    depth, columns = matrix.shape
    expected = np.zeros((-(-columns // 16), depth, 16), matrix.dtype)
    for column in range(columns):
        expected[column // 16, :, column % 16] = matrix[:, column]
    return expected


def mapped(matrix: Array, folder: Path) -> ir.MappedTensor:
    """The matrix as a part of a file that is mapped."""
    (folder / "w.onnx").unlink(missing_ok=True)
    proto = model("g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }", w=matrix)
    onnx.save(proto, folder / "w.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    tensor = ir.load(folder / "w.onnx").graph.initializers["w"].const_value
    assert isinstance(tensor, ir.MappedTensor)
    return tensor


def written(tensor: Any, folder: Path) -> bytes:
    with (folder / "out.bin").open("wb", buffering=0) as file:
        tensor.copy_to(file)
    return (folder / "out.bin").read_bytes()


# --- arrays ---
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packs(shape: tuple[int, int], dtype: Any) -> None:
    matrix = (normal(*shape) * 50).astype(dtype)
    expected = reference(matrix)
    for actual in (ir.pack(matrix), ir.pack(np.ascontiguousarray(matrix.T), transposed=True)):
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("columns", [32, 35])
def test_packs_what_does_not_lie_together(columns: int) -> None:
    wide = normal(9, 2 * columns)
    for matrix in (wide[:, :columns], wide[:, ::2], wide[::2, columns:], wide[::-1, :columns], np.asfortranarray(wide)):
        np.testing.assert_array_equal(ir.pack(matrix), reference(matrix))
        np.testing.assert_array_equal(ir.pack(matrix.T, transposed=True), reference(matrix))


@settings(max_examples=60, deadline=None)
@given(depth=st.integers(0, 60), columns=st.integers(1, 130), transposed=st.booleans())
def test_packs_any_size(depth: int, columns: int, transposed: bool) -> None:
    matrix = np.arange(depth * columns, dtype=np.float32).reshape(depth, columns)
    given_matrix = np.ascontiguousarray(matrix.T) if transposed else matrix
    np.testing.assert_array_equal(ir.pack(given_matrix, transposed=transposed), reference(matrix))


def test_input_is_left_as_it_is() -> None:
    matrix = normal(20, 33)
    before = matrix.copy()
    ir.pack(matrix)[:] = 0
    np.testing.assert_array_equal(matrix, before)


# --- mapped ones ---
@pytest.fixture(params=[1, 1 << 12, 1 << 24], ids=["panel by panel", "small blocks", "one block"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 not in shape], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_mapped_matrix_is_packed_while_it_is_written(shape: tuple[int, int], transposed: bool, tmp_path: Path) -> None:
    matrix = normal(*shape)
    tensor = ir.packed(mapped(matrix, tmp_path), "packed", transposed=transposed)
    expected = reference(matrix.T if transposed else matrix)
    assert isinstance(tensor, ir.PackedTensor)
    assert (tuple(tensor.shape.numpy()), tensor.dtype) == (expected.shape, ir.DataType.FLOAT)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    assert written(tensor, tmp_path) == expected.tobytes() == tensor.tobytes()


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("transposed", [False, True])
def test_transposed_source_is_packed_from_what_is_mapped(transposed: bool, tmp_path: Path) -> None:
    matrix = normal(35, 52)
    source = ir.TransposedTensor(mapped(matrix, tmp_path), "t")
    tensor = ir.packed(source, "packed", transposed=transposed)
    expected = reference(matrix if transposed else matrix.T)
    assert isinstance(tensor, ir.PackedTensor) and isinstance(tensor.source, ir.MappedTensor)
    assert tensor.mapped is source.source
    assert written(tensor, tmp_path) == expected.tobytes() == tensor.tobytes()


@pytest.mark.parametrize("transposed", [False, True])
def test_scaled_source(transposed: bool, tmp_path: Path) -> None:
    matrix, factor = normal(35, 52), normal(52)
    tensor = ir.packed(ir.ScaledTensor(mapped(matrix, tmp_path), factor, "s"), "packed", transposed=transposed)
    scaled = (matrix * factor).astype(np.float32)
    assert written(tensor, tmp_path) == reference(scaled.T if transposed else scaled).tobytes()


def test_tensor_in_memory_is_packed_at_once() -> None:
    matrix = normal(10, 20)
    tensor = ir.packed(ir.tensor_of(matrix, ir.DataType.FLOAT), "packed")
    assert not isinstance(tensor, ir.StreamedTensor) and tensor.name == "packed"
    np.testing.assert_array_equal(tensor.numpy(), reference(matrix))


@pytest.mark.parametrize("transposed", [False, True])
def test_writing_takes_little_memory(transposed: bool, tmp_path: Path) -> None:
    matrix = normal(2000, 3000) if transposed else normal(3000, 2000)
    tensor = ir.packed(mapped(matrix, tmp_path), "packed", transposed=transposed)
    tracemalloc.start()
    with (tmp_path / "out.bin").open("wb", buffering=0) as file:
        tensor.copy_to(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * lazy.BLOCK_BYTES < matrix.nbytes / 4


@pytest.mark.parametrize("external", ["inside", "external"])
def test_saved_model_holds_the_same_bytes(external: str, tmp_path: Path) -> None:
    matrix = normal(300, 333)
    graph = "g (float[N,300] x) => (float[N,333] y) { y = MatMul(x, w) }"
    onnx.save(model(graph, w=matrix), tmp_path / "before.onnx")
    loaded = ir.load(tmp_path / "before.onnx")
    value = loaded.graph.initializers["w"]
    value.const_value = ir.packed(value.const_value, "w")  # type: ignore[arg-type]
    ir.save(loaded, tmp_path / "after.onnx", external_data=external)
    (after,) = onnx.load(tmp_path / "after.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(after), reference(matrix))


# --- filters ---
def packed_filter_by_filter(filters: Array, groups: int) -> Array:
    """Element by element, as `ir.pack_filters` says."""
    if ir.is_lanewise(filters.shape, groups):
        rows = filters.reshape(*filters.shape[:2], -1).transpose(2, 1, 0)
        return np.ascontiguousarray(rows.reshape(-1, len(filters)))
    count, depth = len(filters) // groups, filters.shape[1]
    taps = int(np.prod(filters.shape[2:]))
    expected = np.zeros((groups, -(-count // 16), taps, depth, 16), filters.dtype)
    for number, one in enumerate(filters.reshape(len(filters), depth, taps)):
        group, within = divmod(number, count)
        expected[group, within // 16, :, :, within % 16] = one.T
    return expected.reshape(groups, -(-count // 16), taps * depth, 16)


FILTERS = [
    ((20, 7, 3, 3), 1),
    ((16, 80, 1, 1), 1),
    ((35, 4, 5), 1),
    ((6, 2, 11, 9), 1),
    ((12, 3, 2, 2), 3),
    ((19, 1, 3, 3), 19),
    ((40, 1, 5, 5), 40),
    ((24, 4, 3, 3), 6),
    ((48, 8, 2), 6),
    ((48, 16, 2), 3),
]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("shape", "groups"), FILTERS, ids=str)
def test_filters(shape: tuple[int, ...], groups: int, tmp_path: Path) -> None:
    filters = normal(*shape)
    expected = packed_filter_by_filter(filters, groups)
    np.testing.assert_array_equal(ir.pack_filters(filters, groups), expected)
    tensor = ir.packed_filters(mapped(filters, tmp_path), "packed", groups)
    assert isinstance(tensor, ir.PackedFilters)
    assert tuple(tensor.shape.numpy()) == expected.shape
    assert written(tensor, tmp_path) == expected.tobytes() == tensor.tobytes()


def test_filters_in_other_orders() -> None:
    filters = normal(20, 7, 3, 3)
    for other in (np.asfortranarray(filters), normal(20, 14, 3, 3)[:, ::2], filters.astype(np.float16)):
        np.testing.assert_array_equal(ir.pack_filters(other, 1), packed_filter_by_filter(other, 1))


# --- transposed ones ---
@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 not in shape], ids=str)
def test_transposed_matrix(shape: tuple[int, int], tmp_path: Path) -> None:
    matrix = normal(*shape)
    tensor = ir.TransposedTensor(mapped(matrix, tmp_path), "t")
    np.testing.assert_array_equal(tensor.numpy(), matrix.T)
    assert written(tensor, tmp_path) == matrix.T.tobytes() == tensor.tobytes()


# --- what goes wrong ---
def test_full_disk_is_an_error(tmp_path: Path) -> None:
    tensor = ir.packed(mapped(normal(64, 48), tmp_path), "packed")
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        tensor.copy_to(file)  # type: ignore[attr-defined]


def test_file_that_is_not_open_for_writing_is_an_error(tmp_path: Path) -> None:
    tensor = ir.packed(mapped(normal(64, 48), tmp_path), "packed")
    (tmp_path / "read.bin").touch()
    with (tmp_path / "read.bin").open("rb", buffering=0) as file, pytest.raises(OSError, match="Bad file"):
        tensor.copy_to(file)  # type: ignore[attr-defined]
