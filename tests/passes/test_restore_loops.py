"""Loops that may not run at all become Scans where kernels run whole loops, and Loops again where none does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxopt
from helpers import assert_same, model, op_list, run_passes
from onnxopt import ir
from onnxopt.pipeline import PassManager

X = np.random.default_rng(0).normal(0, 1, (6, 3)).astype(np.float32)


def loop(
    step: str,
    results: str = "float[3] s2",
    outputs: str = "float[3] y",
    left: str = "y",
    start: str = "h",
    inside: str = "float[3] s",
) -> onnx.ModelProto:
    text = f"{left} = Loop (n, , {start}) <body = g1 (int64 i, bool k, {inside}) => (bool k2, {results}) {{ k2 = Identity(k) {step} }}>"
    return model(
        f"g (int64 n, float[6,3] x, float[3] h) => ({outputs}) {{ {text} }}",
        zero=np.array([0]),
        one=np.array(1),
        none=np.zeros((0, 3), np.float32),
    )


STEPS = {
    "an element": loop("e = Gather(x, i) m = Hardmax(s) s2 = Add(m, e)"),
    "the number of the iteration": loop("f = Cast<to = 1>(i) m = Hardmax(s) s2 = Add(m, f)"),
    "stacked": loop(
        "e = Gather(x, i) m = Hardmax(s) s2 = Add(m, e) z = Neg(s2)",
        "float[3] s2, float[3] z",
        "float[3] y, float[t,3] u",
        "y, u",
    ),
    "a counter": loop(
        "e = Gather(x, i) m = Hardmax(s) s2 = Add(m, e) c2 = Add(c, one)",
        "float[3] s2, int64 c2",
        "float[3] y, int64 u",
        "y, u",
        "h, n",
        "float[3] s, int64 c",
    ),
    "grown in front": loop(
        "e = Gather(x, i) m = Hardmax(s) s2 = Add(m, e) r = Unsqueeze(s2, zero) g2 = Concat<axis = 0>(r, g)",
        "float[3] s2, float[u,3] g2",
        "float[3] y, float[t,3] u",
        "y, u",
        "h, none",
        "float[3] s, float[v,3] g",
    ),
}


def feeds() -> list[dict[str, np.ndarray]]:
    return [{"n": np.array(n), "x": X, "h": X[0]} for n in (0, 1, 5, -2)]


@pytest.mark.parametrize("name", STEPS)
def test_stays_a_loop_without_a_kernel(name: str) -> None:
    before = STEPS[name]
    converted, _ = run_passes(before, "convert_loops", target="cpu")
    assert "Scan" in op_list(converted)
    after, _ = run_passes(converted, "restore_loops", "eliminate_dead_code", target="cpu")
    assert "Loop" in op_list(after) and "Scan" not in op_list(after)
    assert_same(before, after, feeds(), rtol=0, atol=0)


@pytest.mark.parametrize("name", STEPS)
def test_a_kernel_takes_it(name: str) -> None:
    text = onnx.printer.to_text(STEPS[name]).replace("Hardmax", "Tanh")
    before = onnx.parser.parse_model(text)
    before.graph.initializer.extend(STEPS[name].graph.initializer[len(before.graph.initializer) :])
    after = ir.to_proto(ir.load(onnxopt.optimize(before)))
    assert {"FusedRecurrence", "FusedLoop"} & set(op_list(after))
    for library in (False, True):
        assert_same(before, after, feeds(), library=library)


def test_says_what_no_kernel_takes() -> None:
    report = PassManager("cpu", ["convert_loops", "restore_loops"], explain=True).run(ir.load(STEPS["an element"]))
    assert "Hardmax is not element-wise" in [str(miss.refusal) for miss in report.near_misses]


@pytest.mark.parametrize(
    ("directions", "axis"),
    [
        ("", 0),
        ("scan_input_directions = [1], scan_output_directions = [1],", 0),
        ("scan_input_axes = [1], scan_output_axes = [1],", 1),
    ],
)
def test_scans_along_any_axis_in_any_direction(directions: str, axis: int) -> None:
    dims = "3,T" if axis else "T,3"
    text = f"""r = Range(zero0, n, one) c = Cast<to = 1>(r) q = Unsqueeze(c, place) e3 = Expand(q, dims)
        y, u = Scan <num_scan_inputs = 1, {directions} body = g1 (float[3] s, float[3] e) => (float[3] s2, float[3] z) {{
        m = Hardmax(s) s2 = Add(m, e) z = Identity(s2) }}> (h, e3)"""
    before = model(
        f"g (int64 n, float[6,3] x, float[3] h) => (float[3] y, float[{dims}] u) {{ {text} }}",
        zero0=np.array(0),
        one=np.array(1),
        place=np.array([1 - axis]),
        dims=np.array([3, 1] if axis else [1, 3]),
    )
    after, _ = run_passes(before, "restore_loops", target="cpu")
    assert "Loop" in op_list(after)
    assert_same(before, after, [one for one in feeds() if one["n"] > 0], rtol=0, atol=0)


def test_scan_that_runs_stays() -> None:
    text = """y = Scan <num_scan_inputs = 1, body = g1 (float[3] s, float[3] e) => (float[3] s2) { m = Hardmax(s) s2 = Add(m, e) }> (h, x)"""
    _, report = run_passes(
        model(f"g (float[6,3] x, float[3] h) => (float[3] y) {{ {text} }}"), "restore_loops", target="cpu"
    )
    assert not report.patches
