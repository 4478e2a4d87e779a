"""Scans along other axes than the first."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "move_scan_axes"
X = np.random.default_rng(0).normal(0, 1, (3, 5, 4)).astype(np.float32)


def scan(attributes: str, elements: str, outputs: str) -> onnx.ModelProto:
    text = f"""y, u = Scan <num_scan_inputs = 1, {attributes}, body = g1 (float s, float[{elements}] e) => (float s2, float[{elements}] z) {{
        m = ReduceSum<keepdims = 0>(e) h = Mul(s, half) s2 = Add(h, m) z = Sub(e, s2) }}> (start, x)"""
    return model(
        f"g (float[3,5,4] x) => (float y, float[{outputs}] u) {{ {text} }}",
        start=np.array(1, np.float32),
        half=np.array(0.5, np.float32),
    )


CASES = {
    "inputs": (scan("scan_input_axes = [1]", "3,4", "5,3,4"), ["Transpose", "Scan"]),
    "outputs": (scan("scan_output_axes = [1]", "5,4", "5,3,4"), ["Scan", "Transpose"]),
    "both, counted from the back": (
        scan("scan_input_axes = [-1], scan_output_axes = [-1]", "3,5", "3,5,4"),
        ["Transpose", "Scan", "Transpose"],
    ),
    "from the back": (
        scan(
            "scan_input_axes = [1], scan_output_axes = [2], scan_input_directions = [1], scan_output_directions = [1]",
            "3,4",
            "3,4,5",
        ),
        ["Transpose", "Scan", "Transpose"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_moves(name: str) -> None:
    before, expected = CASES[name]
    after, _ = run_passes(before, PASS)
    assert op_list(after) == expected
    assert_same(before, after, {"x": X}, rtol=0, atol=0)


def test_leaves_the_first_axis() -> None:
    _, report = run_passes(scan("scan_input_axes = [-3], scan_output_axes = [0]", "5,4", "3,5,4"), PASS)
    assert not report.patches
