"""What is particular to the CUDA kernel of FusedNorm and FusedSoftmax, run by the host; its results are tested in test_norm.py."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).resolve().parents[2]
EMULATED = "norm__cuda_emulated"
F32 = np.float32


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0.5, 2, shape).astype(F32)


def assert_agrees(op: str, inputs: list[Array], **attributes: Any) -> None:
    """With the kernel of the CPU."""
    actual = native.run(op, inputs, attributes, variant=EMULATED)
    expected = native.run(op, inputs, attributes)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        tolerance = 2e-3 if one.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(one.astype(np.float64), other.astype(np.float64), rtol=tolerance, atol=tolerance)


def unaligned(array: Array) -> Array:
    memory = np.empty(array.size + 1, array.dtype)
    memory[1:] = array.ravel()
    view = memory[1:].reshape(array.shape)
    assert view.ctypes.data % 16 != 0 or memory.ctypes.data % 16 != 0
    return view


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize(
    "prologue", [None, "i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32", "i0:f32 i1:f32 | t0=mul(i0,i1) | t0:f32"]
)
def test_tensors_of_any_alignment(which: int, prologue: str | None) -> None:
    inputs = [draw(5, 64), draw(5, 64, seed=1), draw(64, seed=2), draw(64, seed=3)]
    inputs[which] = unaligned(inputs[which])
    if prologue is None:
        del inputs[1]
    assert_agrees("FusedNorm", inputs, scaled=1, biased=1, **({"prologue": prologue, "kept": 1} if prologue else {}))


@pytest.mark.parametrize("shape", [(3, 40), (3, 4, 7)])
def test_programs_with_integers_and_halves(shape: tuple[int, ...]) -> None:
    """int64 values are held in wider registers; float16 and integers are read and written by programs alone."""
    numbers = np.arange(np.prod(shape)).reshape(shape).astype(np.int64) % 7
    halves = draw(shape[-1], seed=1).astype(np.float16)
    assert_agrees(
        "FusedNorm",
        [numbers, halves, halves],
        prologue="i0:i64 i1:f16 | t0=mul(i0,#3:i64) t1=cast_f32(t0) t2=cast_f32(i1) t3=add(t1,t2) | t3:f32",
        epilogue="i0:f32 i1:f16 | t0=cast_f16(i0) t1=mul(t0,i1) t2=mul(i0,#0x1.9p+6:f32) t3=cast_i64(t2) t4=cast_f32(t3) | t1:f16 t4:f32",
        axis=1 - len(shape),
        kept=1,
    )


@pytest.mark.parametrize("live", [30, 120])
def test_programs_with_many_values(live: int) -> None:
    """Their slots leave room for fewer threads, and at last only for blocks of one warp."""
    lines = ["t0=add(i0,i0)"] + [f"t{k}=add(t{k - 1},#0x1p+0:f32)" for k in range(1, live)]
    lines += [f"t{live}=add(t{live - 1},t{live - 2})"]
    lines += [f"t{k}=add(t{k - 1},t{2 * live - 2 - k})" for k in range(live + 1, 2 * live - 1)]
    program = f"i0:f32 | {' '.join(lines)} | t{2 * live - 2}:f32"
    assert_agrees("FusedSoftmax", [draw(3, 700)], prologue=program, epilogue=program)


def test_programs_with_many_inputs() -> None:
    inputs = [draw(4, 36, seed=k) for k in range(31)]
    lines = ["t0=add(i0,i1)"] + [f"t{k}=sub(t{k - 1},i{k + 1})" for k in range(1, 30)]
    declared = " ".join(f"i{k}:f32" for k in range(31))
    assert_agrees("FusedNorm", inputs, prologue=f"{declared} | {' '.join(lines)} | t29:f32", kept=1)


@given(
    sizes=st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 5, 8, 12, 31, 36, 130]), st.integers(1, 40)),
    groups=st.booleans(),
    programs=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_groups_of_any_size(sizes: tuple[int, int, int], groups: bool, programs: bool, seed: int) -> None:
    x, scale, bias = draw(*sizes, seed=seed), draw(sizes[1], seed=1), draw(sizes[1], seed=2)
    attributes: dict[str, Any] = {"groups": sizes[1] if groups or sizes[1] % 2 else sizes[1] // 2, "epsilon": 0.5}
    if programs:
        attributes["epilogue"] = "i0:f32 i1:f32 | t0=silu(i0) t1=add(t0,i1) | t1:f32"
    assert_agrees("FusedNorm", [x, scale, bias, *[x] * programs], scaled=1, biased=1, **attributes)


def test_geometry_of_launches() -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    source = ROOT / "tests" / "kernels" / "norm_geometry_driver.cc"
    subprocess.run(
        [compiler, "-std=c++20", "-fsyntax-only", "-fconstexpr-ops-limit=100000000", f"-I{ROOT}", source], check=True
    )


def test_says_why_there_is_no_device() -> None:
    problem = native.cuda_problem()
    if not problem:
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match=problem.split("(")[0]):
        native.run("FusedSoftmax", [draw(3, 4)], {}, variant="norm__cuda")


# --- float16 -----------------------------------------------------------------------------------------------------------
HALF = "i0:f16 | t0=cast_f32(i0) | t0:f32"
ROUNDED = "i0:f32 | t0=cast_f16(i0) | t0:f16"


@pytest.mark.parametrize(
    ("prologue", "shapes"),
    [
        (HALF, [(0, 0)]),
        ("i0:f16 i1:f16 | t0=cast_f32(i0) t1=cast_f32(i1) t2=add(t0,t1) | t2:f32", [(0, 0), (1, 0)]),
        ("i0:f16 i1:f32 | t0=cast_f32(i0) t1=mul(t0,#0.125:f32) t2=add(i1,t1) | t2:f32", [(0, 0), (0, 1)]),
        ("i0:f32 i1:f16 | t0=cast_f32(i1) t1=add(i0,t0) | t1:f32", [(0, 0), (1, 1)]),
        ("i0:f16 | t0=cast_f32(i0) t1=exp(t0) | t1:f32", [(0, 0)]),  # no sum
    ],
)
@pytest.mark.parametrize("epilogue", [None, ROUNDED])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 7), (3, 64), (4, 1000), (2, 1030)])
def test_float16_is_read_and_written(
    prologue: str, shapes: list[tuple[int, int]], epilogue: str | None, rows: int, width: int
) -> None:
    """Terms are broadcast over rows, over columns, or not at all."""
    kinds = [np.float16 if "f16" in item else F32 for item in prologue.split("|")[0].split()]
    inputs = [
        draw(1 if row else rows, 1 if column else width, seed=seed).astype(kind)
        for seed, ((row, column), kind) in enumerate(zip(shapes, kinds, strict=True))
    ]
    extra = {"epilogue": epilogue} if epilogue else {}
    affine = [draw(width, seed=8), draw(width, seed=9)]
    assert_agrees("FusedNorm", [*inputs, *affine], scaled=1, biased=1, prologue=prologue, **extra)
    assert_agrees("FusedSoftmax", inputs, prologue=prologue, **extra)


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_float16_of_any_alignment(offset: int) -> None:
    memory = draw(5 * 64 + offset).astype(np.float16)
    assert_agrees("FusedNorm", [memory[offset:].reshape(5, 64)], prologue=HALF, epilogue=ROUNDED)
