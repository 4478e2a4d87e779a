"""Loops whose iterations are independent of each other."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

X = np.random.default_rng(0).normal(0, 1, (5, 2, 3)).astype(np.float32)
X[1, 0, 1] = np.nan


def scan(
    body: str, attributes: str = "", *, dims: str = "5,2,3", element: str = "2,3", stacked: str = "t,2,3"
) -> onnx.ModelProto:
    text = f"y = Scan <num_scan_inputs = 1{attributes}, body = g1 (float[{element}] e) => (float[{element}] r) {{ {body} }}> (x)"
    return model(f"g (float[{dims}] x) => (float[{stacked}] y) {{ {text} }}")


@pytest.mark.parametrize("dims", ["5,2,3", "T,2,3"])
def test_scan_that_computes_from_elements_alone(dims: str) -> None:
    before = scan("a = Exp(e) r = Add(a, e)", dims=dims)
    after, _ = run_passes(before, "batch_loop_inputs", "vectorize_loops")
    assert op_list(after) == ["Exp", "Add"]
    assert_same(before, after, {"x": X})


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("into", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes_and_directions(axis: int, into: int, output: int) -> None:
    element = ",".join(size for index, size in enumerate("523") if index != axis)
    attributes = f", scan_input_axes = [{axis}], scan_input_directions = [{into}], scan_output_axes = [-1], scan_output_directions = [{output}]"
    before = scan("r = Identity(e)", attributes, element=element, stacked=f"{element},t")
    after, _ = run_passes(before, "vectorize_loops")
    assert "Scan" not in op_list(after)
    assert_same(before, after, {"x": X}, rtol=0, atol=0)


def test_loop_whose_iterations_are_independent() -> None:
    text = (
        "y = Loop (n, go) <body = g1 (int64 i, bool k) => (bool k2, float[3] r) "
        "{ k2 = Identity(k) e = Gather(x, i) f = Cast<to = 1>(i) m = Mul(e, f) r = Tanh(m) }>"
    )
    before = model(f"g (float[5,3] x) => (float[t,3] y) {{ {text} }}", n=np.array(5), go=np.array(True))
    after, _ = run_passes(before, "convert_loops", "batch_loop_inputs", "vectorize_loops", "eliminate_dead_code")
    assert not {"Loop", "Scan"} & set(op_list(after))
    assert_same(before, after, {"x": X[:, 0]})


def test_output_of_a_scan_that_carries_a_value_too() -> None:
    text = (
        "y, z, w = Scan <num_scan_inputs = 1, body = g1 (float[2,3] s, float[2,3] e) => (float[2,3] s2, float[2,3] r, float[2,3] q) "
        "{ s2 = Add(s, e) r = Identity(e) q = Identity(s) }> (h, x)"
    )
    before = model(f"g (float[5,2,3] x, float[2,3] h) => (float[2,3] y, float[t,2,3] z, float[u,2,3] w) {{ {text} }}")
    after, _ = run_passes(before, "vectorize_loops", "eliminate_dead_code")
    (node,) = [one for one in after.graph.node if one.op_type == "Scan"]
    assert len(node.output) == 2
    assert_same(before, after, {"x": X, "h": X[0]}, rtol=0, atol=0)
