"""What is particular to the CUDA kernel of FusedRecurrence, run by the host; its results are tested in test_recurrence.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from panels import pack

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

Array = np.ndarray[Any, Any]
EMULATED = "recurrence__cuda_emulated"
DEFAULTS = {"carried": 1, "sequences": 1, "invariants": 0, "matrices": 0}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).normal(0, 1, shape).astype(np.float32)


def run(inputs: list[Array], **attributes: Any) -> list[Array]:
    results: list[Array] = native.run("FusedRecurrence", inputs, DEFAULTS | attributes, variant=EMULATED)
    return results


def assert_agrees(inputs: list[Array], **attributes: Any) -> None:
    """With the kernel of the CPU."""
    expected = native.run("FusedRecurrence", inputs, DEFAULTS | attributes)
    for actual, wanted in zip(run(inputs, **attributes), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("next_values", [[1, 0, 2], [1, 2, 0], [4, 0, 1], [3, 4, 4]])
def test_carried_values_that_become_one_another(next_values: list[int]) -> None:
    """Also those that become elements of the sequence as they are."""
    inputs = [normal(5, 3, seed=1), normal(5, 3, seed=2), normal(5, 3, seed=3), normal(4, 5, 3)]
    step = " ! 0 1 3 ! i0:f32 i1:f32 i2:f32 | t0=mul(i0,i1) t1=add(t0,i2) | t1:f32"
    assert_agrees(inputs, carried=3, step=step, next=next_values, stacked=[4, 0, 3])


@pytest.mark.parametrize("name", ["i64", "i32", "f16", "bool"])
def test_programs_that_compute_with_other_types(name: str) -> None:
    op = "and" if name == "bool" else "add"
    program = f"i0:f32 i1:f32 | t0=cast_{name}(i0) t1=cast_{name}(i1) t2={op}(t0,t1) t3=cast_f32(t2) | t3:f32"
    assert_agrees([normal(70) * 5, normal(6, 70, seed=1) * 5], step=f" ! 0 1 ! {program}", next=[2], stacked=[2])


@pytest.mark.parametrize(("width", "rows"), [(1, 1), (3, 200), (17, 5), (100, 2), (130, 3), (260, 1)])
def test_products_of_weights_that_shared_memory_holds_and_does_not(width: int, rows: int) -> None:
    """Two phases: r = sigmoid(h U + x), h = tanh((r h) W + b + x)."""
    u, w = (normal(width, width, seed=seed) / np.float32(np.sqrt(width)) for seed in (1, 2))
    inputs = [normal(rows, width), normal(3, rows, width, seed=3), normal(width, seed=4), pack(u), pack(w)]
    gate = "i0:f32 i1:f32 i2:f32 | t0=add(i0,i1) t1=sigmoid(t0) t2=mul(t1,i2) | t2:f32"
    cell = "i0:f32 i1:f32 | t0=add(i0,i1) t1=tanh(t0) | t1:f32"
    step = f"0@0 ! 3 1 0 ! {gate};4@1+2 ! 5 1 ! {cell}"
    assert_agrees(inputs, invariants=1, matrices=2, step=step, next=[6], stacked=[6, 3])


def test_a_product_of_elements_of_a_sequence() -> None:
    inputs = [normal(4, 20), normal(5, 4, 20, seed=1), pack(normal(20, 20, seed=2))]
    step = "1@0 ! 2 0 ! i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"
    assert_agrees(inputs, matrices=1, step=step, next=[3], stacked=[3], reverse=[1])


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("shape", [(70, 16), (3, 5), (2, 9, 40), (2, 300)])
def test_sums_beside_whole_values(shape: tuple[int, ...], reverse: int) -> None:
    inputs = [normal(*shape), normal(4, *shape[:-1], 1, seed=1), normal(shape[-1], seed=2)]
    step = " ! 0 1 2 ! i0:f32 i1:f32 i2:f32 | t0=mul(i0,i2) t1=add(t0,i1) t2=mul(t1,i2) | t1:f32 t2:f32"
    attributes = {"next": [3], "stacked": [4, 3], "summed": [1, 0], "reverse_stacked": [reverse, 0]}
    assert_agrees(inputs, invariants=1, step=step, **attributes)


def test_values_of_a_row_that_do_not_fit_are_a_sentence() -> None:
    width = 9000
    inputs = [np.zeros((1, width), np.float32), np.zeros((2, 1, width), np.float32)]
    step = " ! 0 1 ! i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"
    with pytest.raises(ValueError, match="do not fit into the shared memory of a CUDA device: 3 for each of 9000"):
        run([*inputs], step=step + " t0:f32", next=[2], stacked=[2], summed=[1])


def test_more_phases_than_the_kernel_takes_are_a_sentence() -> None:
    step = ";".join(f" ! {k if k else 0} 1 ! i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32" for k in range(10))
    with pytest.raises(ValueError, match="more values or phases than a CUDA kernel takes"):
        run([normal(3), normal(2, 3)], step=step, next=[2])


def test_more_operations_than_the_kernel_takes_are_a_sentence() -> None:
    lines = " ".join(f"t{k}=add({'i0' if k == 0 else f't{k - 1}'},i1)" for k in range(250))
    step = ";".join(f" ! {first} 1 ! i0:f32 i1:f32 | {lines} | t249:f32" for first in (0, 2))
    with pytest.raises(ValueError, match="more operations than a CUDA kernel takes"):
        run([normal(3), normal(2, 3)], step=step, next=[3])
