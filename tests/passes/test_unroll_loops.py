"""Loops that are written out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxopt
from helpers import assert_same, model, op_list, run_passes
from onnxopt import ir
from onnxopt.pipeline import PassManager

PASS = "unroll_loops"
X = np.array([[1, -2, np.nan, 0.5], [np.inf, 3, -0.0, 0.1], [-4, 0.3, 7, 2]], np.float32)
START = np.array([0.5, -1, 2, 1e-30], np.float32)


def loop(
    body: str, *, trips: object = 3, keep: object = True, outputs: str = "y, z", opset: int = 17
) -> onnx.ModelProto:
    """A Loop over one carried row `h` and one stacked row `s`, of rows of `x` by the number of the iteration."""
    results = ", ".join(
        f"float[{'*' if one == 'z' else '4'}{', 4' if one == 'z' else ''}] {one}" for one in outputs.split(", ")
    )
    results = results.replace("[*, 4]", "[n, 4]")
    text = (
        f"g (float[3, 4] x, float[4] start, int64 many) => ({results}) {{"
        f"y, z = Loop (trips, keep, start) <body = b (int64 i, bool c, float[4] h) => (bool again, float[4] next, float[4] s) {{ {body} }}> }}"
    )
    return model(text, opset=opset, trips=np.array(trips), keep=np.array(keep))


FEEDS = {"x": X, "start": START, "many": np.array(3)}
STEP = "again = Identity(c) e = Gather<axis = 0>(x, i) next = Sub(e, h) s = Mul(next, e)"


def forced(before: onnx.ModelProto, nodes: int = 10_000) -> onnx.ModelProto:
    """The model after the pass alone, with a budget of nodes."""
    loaded = ir.load(onnx.ModelProto.FromString(before.SerializeToString()))
    options = onnxopt.Options(unroll_nodes=nodes)
    PassManager("generic", [PASS], options=options, strict=True).run(loaded)
    assert not PassManager("generic", [PASS], options=options, strict=True).run(loaded).patches
    return ir.to_proto(loaded)


def assert_bits(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    assert_same(before, after, feeds, rtol=0, atol=0)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("trips", [1, 2, 3])
def test_loop_becomes_its_iterations(trips: int, opset: int) -> None:
    before = loop(STEP, trips=trips, opset=opset)
    after = forced(before)
    assert "Loop" not in op_list(after) and op_list(after).count("Sub") == trips
    assert_bits(before, after, FEEDS)


def test_limit_of_one_dim_and_number_of_one_dim() -> None:
    body = "again = Identity(c) f = Cast<to = 1>(i) next = Add(h, f) s = Neg(h)"
    before = loop(body, trips=[3])
    before.graph.node[0].attribute[0].g.input[0].type.tensor_type.shape.dim.add().dim_value = 1
    after = forced(before)
    assert "Loop" not in op_list(after)
    assert_bits(before, after, FEEDS)


def test_condition_that_counts_vanishes() -> None:
    body = "again = Less(i, last) f = Cast<to = 1>(i) next = Add(h, f) s = Neg(h)"
    before = loop(body, trips=2**62)
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2), "last"))
    after = forced(before)
    assert "Loop" not in op_list(after)
    assert_bits(before, after, FEEDS)


@pytest.mark.parametrize(
    ("body", "trips", "keep"),
    [
        ("m = ReduceMax<keepdims = 0>(h) t = Abs(m) again = Less(t, m) next = Add(h, h) s = Neg(h)", 3, True),
        (STEP, 0, True),
        (STEP, -2, True),
        (STEP, 3, False),
    ],
    ids=["data ends it", "no iteration", "negative limit", "false at the start"],
)
def test_refuses_what_may_end_before_or_does_not_run(body: str, trips: int, keep: bool) -> None:
    before = loop(body, trips=trips, keep=keep)
    after = forced(before)
    assert op_list(after) == ["Loop"]
    assert_bits(before, after, FEEDS)


def test_refuses_a_limit_of_run_time_and_keeps_it_right() -> None:
    before = loop(STEP)
    before.graph.node[0].input[0] = "many"
    after = forced(before)
    assert op_list(after) == ["Loop"]
    for many in (0, 1, 3, -1):
        assert_bits(before, after, {**FEEDS, "many": np.array(many)})


def test_budget_of_nodes_is_kept() -> None:
    before = loop(STEP, trips=3)
    assert op_list(forced(before, nodes=11)) == ["Loop"]
    assert "Loop" not in op_list(forced(before, nodes=12))


def test_ten_thousand_iterations_stay_a_loop_unasked() -> None:
    before = loop("again = Identity(c) next = Add(h, h) s = Neg(h)", trips=10_000)
    after, report = run_passes(before, PASS, explain=True)
    assert op_list(after) == ["Loop"]
    assert any("nodes" in str(miss.refusal) for miss in report.near_misses)


def test_recurrence_is_left_to_one_kernel_unasked() -> None:
    after, _ = run_passes(loop(STEP), PASS)
    assert op_list(after) == ["Loop"]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("directions", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_scan_with_axes_and_directions(axis: int, directions: tuple[int, int]) -> None:
    length = X.shape[axis]
    width = X.size // length
    text = (
        f"g (float[3, 4] x, float[{width}] start) => (float[{width}] y, float[a, b] z) {{ y, z = Scan (start, x) <num_scan_inputs = 1, "
        f"scan_input_axes = [{axis}], scan_output_axes = [{axis}], scan_input_directions = [{directions[0]}], "
        f"scan_output_directions = [{directions[1]}], body = b (float[{width}] h, float[{width}] e) => "
        f"(float[{width}] next, float[{width}] s) {{ next = Sub(e, h) s = Mul(next, e) }}> }}"
    )
    before = model(text)
    after = forced(before)
    assert "Scan" not in op_list(after) and op_list(after).count("Sub") == length
    assert_bits(before, after, {"x": X, "start": START[:width]})


def test_nested_loop_in_an_if_in_a_scan_with_captures_and_equal_names() -> None:
    inner = "Loop (two, keep, e) <body = d (int64 i, bool c, float[4] k) => (bool again, float[4] q) { again = Identity(c) q = Add(k, h) }>"
    text = (
        "g (float[3, 4] x, float[4] start, bool flag) => (float[4] y, float[a, 4] z) { y, z = Scan (start, x) <num_scan_inputs = 1, "
        "body = b (float[4] h, float[4] e) => (float[4] next, float[4] s) { "
        f"next = If (flag) <then_branch = t () => (float[4] r) {{ r = {inner} }}, else_branch = o () => (float[4] u) {{ u = Neg(e) }}> "
        "s = Abs(next) }> }"
    )
    before = model(text, two=np.array(2), keep=np.array(True))
    after = forced(before)
    assert "Scan" not in op_list(after) and op_list(after).count("If") == 3
    for flag in (True, False):
        assert_bits(before, after, {"x": X, "start": START, "flag": np.array(flag)})
