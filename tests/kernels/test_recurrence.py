"""The kernels of FusedRecurrence: every variant against steps computed in float64."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from panels import pack
from variants import variant_fixture

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

Array = np.ndarray[Any, Any]
(OP,) = [op for op in native.ops() if op["op"] == "FusedRecurrence"]
DECAY = 0.875  # exact in float32


EMULATED = "recurrence__cuda_emulated"


variant = variant_fixture(OP, EMULATED)


def run(inputs: list[Array], attributes: dict[str, Any], variant: str | None = None, threads: int = 1) -> list[Array]:
    defaults = {"carried": 1, "sequences": 1, "invariants": 0, "matrices": 0}
    results: list[Array] = native.run(
        "FusedRecurrence", inputs, defaults | attributes, variant=variant, threads=threads
    )
    return results


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).normal(0, 1, shape).astype(np.float32)


def average(x: Array, h: Array, *, reverse: bool = False) -> tuple[Array, Array]:
    """y = DECAY y + x for each element, and all of them stacked in the order of x."""
    state, made = h.astype(np.float64), []
    for element in x[::-1] if reverse else x:
        state = (DECAY * state + element).astype(np.float32).astype(np.float64)
        made.append(state)
    return state, np.array(made[::-1] if reverse else made).reshape(len(x), *h.shape)


AVERAGE = {
    "step": f" ! 0 1 ! i0:f32 i1:f32 | t0=mul(i0,#{DECAY.hex()}:f32) t1=add(t0,i1) | t1:f32",
    "next": [2],
    "stacked": [2],
}


@pytest.mark.parametrize("shape", [(), (1,), (5,), (64,), (385,), (3, 1000), (2, 3, 7)])
@pytest.mark.parametrize("steps", [0, 1, 2, 33])
def test_element_wise_step(steps: int, shape: tuple[int, ...], variant: str) -> None:
    x, h = normal(steps, *shape), normal(*shape, seed=1)
    final, stacked = run([h, x], AVERAGE, variant)
    expected_final, expected = average(x, h)
    np.testing.assert_allclose(final, expected_final, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stacked, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backwards", [[1, 0], [0, 1], [1, 1]])
def test_directions(backwards: list[int], variant: str) -> None:
    x, h = normal(9, 6), normal(6)
    into, out = backwards
    _, stacked = run([h, x], {**AVERAGE, "reverse": [into], "reverse_stacked": [out]}, variant)
    order = x[::-1] if into else x
    _, expected = average(order, h)
    np.testing.assert_allclose(stacked, expected[::-1] if out else expected, rtol=1e-6, atol=1e-6)


def test_values_that_are_not_finite_concern_their_elements_alone(variant: str) -> None:
    x, h = normal(7, 70), normal(70)
    x[2, 3], x[3, 65], h[69] = math.nan, math.inf, -math.inf
    final, stacked = run([h, x], AVERAGE, variant)
    expected_final, expected = average(x, h)
    np.testing.assert_allclose(final, expected_final, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stacked, expected, rtol=1e-6, atol=1e-6)


def test_broadcast_elements_and_invariants(variant: str) -> None:
    """A gated update as state-space models have it: h = exp(d a) h + d b x, y = h c."""
    program = (
        "i0:f32 i1:f32 i2:f32 i3:f32 i4:f32 i5:f32 | t0=mul(i1,i5) t1=exp(t0) t2=mul(t1,i0) t3=mul(i1,i2) t4=mul(t3,i3) t5=add(t2,t4) "
        "t6=mul(t5,i4) | t5:f32 t6:f32"
    )
    d, b, x, c = np.abs(normal(11, 30, 1)), normal(11, 1, 5), normal(11, 30, 1, seed=2), normal(11, 5, seed=3)
    a, h = -np.abs(normal(30, 5)), normal(30, 5, seed=4)
    attributes = {"sequences": 4, "invariants": 1, "step": f" ! 0 1 2 3 4 5 ! {program}", "next": [6], "stacked": [7]}
    final, stacked = run([h, d, b, x, c, a], attributes, variant)
    state, made = h.astype(np.float64), []
    for t in range(11):
        state = np.exp(d[t] * a) * state + d[t] * b[t] * x[t]
        made.append(state * c[t])
    np.testing.assert_allclose(final, state, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(stacked, made, rtol=2e-5, atol=1e-5)


STATE_SPACE = {
    "sequences": 4,
    "invariants": 1,
    "step": " ! 0 1 2 3 4 5 ! i0:f32 i1:f32 i2:f32 i3:f32 i4:f32 i5:f32 | t0=mul(i1,i5) t1=exp(t0) t2=mul(t1,i0) t3=mul(i1,i2) t4=mul(t3,i3) "
    "t5=add(t2,t4) t6=mul(t5,i4) | t5:f32 t6:f32",
    "next": [6],
    "stacked": [7, 6],
    "summed": [1, 0],
}
"""h = exp(d a) h + d b x, and the sums of h c over the states; h is stacked as well."""


def state_space(steps: int, batch: tuple[int, ...], channels: int, states: int) -> list[Array]:
    d = np.abs(normal(steps, *batch, channels, 1))
    b, c = (normal(steps, *batch, 1, states, seed=seed) for seed in (1, 2))
    x, a = normal(steps, *batch, channels, 1, seed=3), -np.abs(normal(channels, states, seed=4))
    return [normal(*batch, channels, states, seed=5), d, b, x, c, a]


def state_space_results(inputs: list[Array]) -> tuple[Array, Array, Array]:
    h, d, b, x, c, a = (one.astype(np.float64) for one in inputs)
    sums, states = [], []
    for t in range(len(d)):
        h = np.exp(d[t] * a) * h + d[t] * b[t] * x[t]
        sums.append((h * c[t]).sum(-1))
        states.append(h)
    return h, np.array(sums).reshape(len(d), *h.shape[:-1]), np.array(states).reshape(len(d), *h.shape)


@pytest.mark.parametrize("states", [1, 3, 16, 30, 130])
@pytest.mark.parametrize("channels", [1, 5, 16, 70])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 2)])
def test_sums_over_the_last_dim(batch: tuple[int, ...], channels: int, states: int, variant: str) -> None:
    inputs = state_space(5, batch, channels, states)
    results = run(inputs, STATE_SPACE, variant)
    for result, expected in zip(results, state_space_results(inputs), strict=True):
        np.testing.assert_allclose(result, expected, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("steps", [0, 1])
def test_sums_of_few_steps(steps: int, variant: str) -> None:
    inputs = state_space(steps, (2,), 20, 16)
    for result, expected in zip(run(inputs, STATE_SPACE, variant), state_space_results(inputs), strict=True):
        np.testing.assert_allclose(result, expected, rtol=5e-5, atol=5e-5)


def test_sums_of_no_elements_are_zero(variant: str) -> None:
    inputs = state_space(3, (2,), 20, 0)
    final, sums, _ = run(inputs, STATE_SPACE, variant)
    assert final.shape == (2, 20, 0)
    np.testing.assert_array_equal(sums, np.zeros((3, 2, 20), np.float32))


def test_sums_of_steps_from_the_back(variant: str) -> None:
    inputs = state_space(6, (), 33, 8)
    backwards = {"reverse": [1, 1, 1, 1], "reverse_stacked": [1, 0]}
    _, sums, states = run(inputs, {**STATE_SPACE, **backwards}, variant)
    _, expected, expected_states = state_space_results([one[::-1] if one.ndim == 3 else one for one in inputs])
    np.testing.assert_allclose(sums, expected[::-1], rtol=5e-5, atol=5e-5)
    np.testing.assert_allclose(states, expected_states, rtol=5e-5, atol=5e-5)


def test_sums_of_values_that_are_not_finite_concern_their_rows_alone(variant: str) -> None:
    inputs = state_space(6, (), 40, 8)
    inputs[3][2, 7], inputs[3][1, 39], inputs[0][4, 3] = math.nan, math.inf, -math.inf
    _, sums, _ = run(inputs, STATE_SPACE, variant)
    _, expected, _ = state_space_results(inputs)
    np.testing.assert_allclose(sums, expected, rtol=5e-5, atol=5e-5)


def test_sums_of_values_that_go_on_as_they_are(variant: str) -> None:
    """a gets the element, which has one number a row, and b what a was; sums of b and of the elements come out."""
    step = " ! 0 2 ! i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"
    x, a, b = normal(5, 21, 6), normal(21, 6), normal(21, 6, seed=1)
    attributes = {"carried": 2, "step": step, "next": [2, 0], "stacked": [1, 2, 3], "summed": [1, 1, 1]}
    *finals, of_b, of_x, of_both = run([a, b, x], attributes, variant)
    for t in range(5):
        for result, value in ((of_b, b), (of_x, x[t]), (of_both, a + x[t])):
            np.testing.assert_allclose(result[t], value.sum(-1), rtol=1e-5, atol=1e-5)
        a, b = x[t], a
    for final, expected in zip(finals, (a, b), strict=True):
        np.testing.assert_array_equal(final, expected)


@pytest.mark.parametrize("threads", [2, 4])
def test_same_sums_for_any_number_of_threads(threads: int, variant: str) -> None:
    inputs = state_space(30, (2,), 150, 16)
    results = (run(inputs, STATE_SPACE, variant, count) for count in (1, threads))
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


GATED = {
    "an exponential gate": "t0=mul(i1,i5) t1=exp(t0) t2=mul(t1,i0) t3=mul(i1,i2) t4=mul(t3,i3) t5=add(t2,t4) t6=mul(t5,i4)",
    "other orders": "t0=mul(i5,i1) t1=exp(t0) t2=mul(i0,t1) t3=mul(i3,i1) t4=mul(i2,t3) t5=add(t4,t2) t6=mul(i4,t5)",
    "a gate of one factor": "t0=exp(i5) t1=mul(t0,i0) t5=add(i3,t1) t6=mul(t5,i4)",
    "a plain gate": "t0=mul(i1,i4) t1=mul(t0,i0) t5=add(t1,i2) t6=mul(t5,i3)",
    "sums of several factors": "t0=mul(i1,i0) t1=mul(i2,i3) t5=add(t0,t1) t2=mul(t5,i5) t6=mul(t2,i4)",
}
"""Programs of the state (i0), a number of rows (i1, i3), of elements (i2, i4), and of both (i5)."""


def renumbered(program: str) -> str:
    """With the statements' names in order."""
    names: dict[str, str] = {}
    for name in re.findall(r"(t\d+)=", program):
        names[name] = f"t{len(names)}"
    return re.sub(r"t\d+", lambda found: names[found[0]], program)


@pytest.mark.parametrize("program", GATED.values(), ids=GATED.keys())
@pytest.mark.parametrize("states", [1, 3, 4, 16, 23])
@pytest.mark.parametrize("channels", [5, 32, 150])
def test_gated_updates_give_the_bits_of_their_operations(
    channels: int, states: int, program: str, variant: str
) -> None:
    """A product with 1 hides the form from the kernel."""
    inputs = state_space(9, (), channels, states)
    inputs[3][2, 3 % channels], inputs[0][4, 0], inputs[1][5, 1] = math.nan, math.inf, 60
    results = []
    for text, outputs in ((program, "t5:f32 t6:f32"), (program + " t7=mul(t6,#0x1p+0:f32)", "t5:f32 t7:f32")):
        step = f" ! 0 1 2 3 4 5 ! i0:f32 i1:f32 i2:f32 i3:f32 i4:f32 i5:f32 | {renumbered(text + ' | ' + outputs)}"
        attributes = {"sequences": 4, "invariants": 1, "step": step, "next": [6], "stacked": [7], "summed": [1]}
        results.append(run(inputs, attributes, variant))
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("backwards", [0, 1])
def test_gated_updates_of_one_row_and_one_element_for_all(backwards: int, variant: str) -> None:
    """d is one number for all rows and elements, the gate's factor one of each row."""
    d, x, c, a = normal(5, 1, 1), normal(5, 48, 1), normal(5, 1, 6), -np.abs(normal(48, 1))
    step = " ! 0 1 2 3 4 ! i0:f32 i1:f32 i2:f32 i3:f32 i4:f32 | t0=mul(i4,i1) t1=mul(t0,i0) t2=mul(i2,i1) t3=add(t1,t2) t4=mul(t3,i3) | t3:f32 t4:f32"
    attributes = {"sequences": 3, "invariants": 1, "step": step, "next": [5], "stacked": [6], "summed": [1]}
    h = normal(48, 6)
    final, sums = run([h, d, x, c, a], attributes | {"reverse": [backwards] * 3, "reverse_stacked": [0]}, variant)
    state = h.astype(np.float64)
    for index in range(5):
        t = 4 - index if backwards else index
        state = a * d[t] * state + x[t] * d[t]
        np.testing.assert_allclose(sums[index], (state * c[t]).sum(-1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(final, state, rtol=1e-4, atol=1e-4)


def tanh_cell(x: Array, h: Array, w: Array, b: Array) -> Array:
    state, made = h.astype(np.float64), []
    for element in x:
        state = np.tanh(element + state @ w.astype(np.float64) + b)
        made.append(state)
    return np.array(made).reshape(len(x), *h.shape)


CELL = {
    "invariants": 1,
    "matrices": 1,
    "step": "0@0+2 ! 1 3 ! i0:f32 i1:f32 | t0=add(i0,i1) t1=tanh(t0) | t1:f32",
    "next": [4],
    "stacked": [4],
}


@pytest.mark.parametrize("width", [1, 7, 16, 33, 64, 130, 256])
@pytest.mark.parametrize("rows", [(), (1,), (3,), (13,), (2, 9)])
def test_product_in_each_step(rows: tuple[int, ...], width: int, variant: str) -> None:
    x, h = normal(6, *rows, width), normal(*rows, width)
    w, b = normal(width, width) / np.float32(math.sqrt(width)), normal(width)
    final, stacked = run([h, x, b, pack(w)], CELL, variant)
    expected = tanh_cell(x, h, w, b)
    np.testing.assert_allclose(stacked, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(final, stacked[-1])


def test_product_of_what_the_step_computed(variant: str) -> None:
    """Two phases: r = sigmoid(h u); h = tanh((r h) w + x)."""
    step = (
        "0@0 ! 0 2 ! i0:f32 i1:f32 | t0=sigmoid(i1) t1=mul(t0,i0) | t1:f32;"
        "3@1 ! 1 4 ! i0:f32 i1:f32 | t0=add(i0,i1) t1=tanh(t0) | t1:f32"
    )
    x, h, u, w = normal(5, 2, 40), normal(2, 40), normal(40, 40) / 6, normal(40, 40, seed=1) / 6
    (final,) = run([h, x, pack(u), pack(w)], {"matrices": 2, "step": step, "next": [5]}, variant)
    state = h.astype(np.float64)
    for element in x:
        gate = 1 / (1 + np.exp(-(state @ u)))
        state = np.tanh((gate * state) @ w + element)
    np.testing.assert_allclose(final, state, rtol=1e-4, atol=1e-5)


def test_values_that_go_on_and_out_as_they_are(variant: str) -> None:
    """A delay line: c gets what b was, b what a was, a the element; c and the element come out."""
    step = " ! 0 3 ! i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"
    x, start = normal(7, 50), [normal(50, seed=seed) for seed in range(3)]
    attributes = {"carried": 3, "step": step, "next": [3, 0, 1], "stacked": [2, 3, 4]}
    *finals, c, passed, total = run([*start, x], attributes, variant)
    a, b, d = start
    for t in range(7):
        np.testing.assert_array_equal(c[t], d)
        np.testing.assert_array_equal(passed[t], x[t])
        np.testing.assert_array_equal(total[t], a + x[t])
        a, b, d = x[t], a, b
    for final, expected in zip(finals, (a, b, d), strict=True):
        np.testing.assert_array_equal(final, expected)


@pytest.mark.parametrize(("rows", "width"), [(1, 256), (5, 300), (40, 64), (1, 48)])
def test_same_bits_for_any_number_of_threads(rows: int, width: int, variant: str) -> None:
    x, h, b = normal(20, rows, width), normal(rows, width), normal(width)
    inputs = [h, x, b, pack(normal(width, width) / np.float32(math.sqrt(width)))]
    one, *others = (run(inputs, CELL, variant, threads) for threads in (1, 2, 4))
    for other in others:
        for first, second in zip(one, other, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("threads", [1, 2])
def test_products_that_go_on_and_out_as_they_are(threads: int, variant: str) -> None:
    """Two phases of shared columns, of which the second multiplies what the first made: h gets g w, where g = h u + x."""
    step = "0@0 ! 1 2 ! i0:f32 i1:f32 | t0=add(i1,i0) | t0:f32;3@1 ! 4 ! i0:f32 | t0=neg(i0) | t0:f32"
    x, h = normal(40, 1, 200), normal(1, 200)
    u, w = (np.linalg.qr(normal(200, 200, seed=seed))[0].astype(np.float32) / np.float32(1.1) for seed in (0, 1))
    attributes = {"matrices": 2, "step": step, "next": [4], "stacked": [2, 4, 5]}
    final, products, results, negated = run([h, x, pack(u), pack(w)], attributes, variant, threads)
    state = h.astype(np.float64)
    for t in range(40):
        product = state @ u
        state = (product + x[t]) @ w
        for made, expected in ((products, product), (results, state), (negated, -state)):
            np.testing.assert_allclose(made[t], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(final, results[-1])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_same_bits_of_many_elements_for_any_number_of_threads(threads: int, variant: str) -> None:
    x, h = normal(50, 5000), normal(5000)
    for first, second in zip(run([h, x], AVERAGE, variant), run([h, x], AVERAGE, variant, threads), strict=True):
        np.testing.assert_array_equal(first, second)


X, H, B, W = normal(3, 2, 8), normal(2, 8), normal(8), pack(normal(8, 8))
WRONG = {
    "carried' should be at least 1": ([H, X], {"carried": 0}),
    "sequences' should be at least 1": ([H], {"sequences": 0}),
    "has no three parts": ([H, X], {"step": "i0:f32 | t0=neg(i0) | t0:f32"}),
    "'0@3' is no product": ([H, X], {"step": "0@3 ! 0 ! i0:f32 | t0=neg(i0) | t0:f32"}),
    "'9' is no value": ([H, X], {"step": " ! 9 ! i0:f32 | t0=neg(i0) | t0:f32"}),
    "has no value 7": ([H, X], {"next": [7]}),
    "'next' has 2 numbers for 1": ([H, X], {"next": [2, 2]}),
    "2 inputs and is given 1": ([H, X], {"step": " ! 0 ! i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"}),
    "not f32": ([H, X], {"step": " ! 0 1 ! i0:f32 i1:f32 | t0=less(i0,i1) | t0:bool"}),
    "got 3 inputs and needs 2": ([H, X, X], {}),
    "is of type double": ([H, X.astype(np.float64)], {}),
    "cannot be broadcast to [2,8]": ([H, normal(3, 3, 8)], {}),
    "cannot be multiplied with a matrix": ([normal(), normal(3), W], {"matrices": 1}),
    "has no last dim to sum over": ([normal(), normal(3)], {"summed": [1]}),
    "has sums, and products": ([H, X, B, W], {**CELL, "summed": [1]}),
    "Input 1 is a scalar": ([H, np.array(1, np.float32)], {}),
    "and should have [1,8,16]": ([H, X, B, normal(1, 8, 8)], CELL),
    "and should have [8]": ([H, X, normal(1), W], CELL),
    "has 2 elements where input 1 has 3": ([H, X, X[:2]], {"sequences": 2, "next": [3], "stacked": [3]}),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_inputs_get_a_sentence(sentence: str) -> None:
    inputs, attributes = WRONG[sentence]
    with pytest.raises(ValueError) as caught:
        run(inputs, {**AVERAGE, **attributes})
    assert sentence in str(caught.value)
