"""Gemms of loops are taken apart where they do more than multiply with a constant matrix and add a vector."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxopt
from helpers import assert_same, model, op_list, run_passes
from onnxopt import ir

PASS = "split_loop_gemms"
RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.normal(0, 0.3, (8, 8)).astype(np.float32),
    "row": RNG.normal(0, 1, 8).astype(np.float32),
    "column": RNG.normal(0, 1, (3, 1)).astype(np.float32),
}
FEEDS = {"a": RNG.normal(0, 1, (3, 8)).astype(np.float32), "x": RNG.normal(0, 1, (5, 3, 8)).astype(np.float32)}


def scan(step: str) -> onnx.ModelProto:
    body = (
        f"g1 (float[3,8] s, float[3,8] e) => (float[3,8] s2, float[3,8] z) {{ {step} s2 = Tanh(p) z = Identity(s2) }}"
    )
    text = f"y, u = Scan <num_scan_inputs = 1, body = {body}> (a, x)"
    return model(f"g (float[3,8] a, float[5,3,8] x) => (float[3,8] y, float[5,3,8] u) {{ {text} }}", **WEIGHTS)


def step_ops(made: onnx.ModelProto) -> list[str]:
    body = next(attr.g for node in made.graph.node for attr in node.attribute if attr.HasField("g"))
    return [node.op_type for node in body.node if node.op_type not in ("Tanh", "Identity")]


SPLIT = {
    "an element is added": ("p = Gemm(s, w, e)", ["MatMul", "Add"]),
    "an element is added to a product with a transpose": ("p = Gemm<transB = 1>(s, w, e)", ["Gemm", "Add"]),
    "a column is added": ("p = Gemm(s, w, column)", ["MatMul", "Add"]),
    "a scaled product": ("p = Gemm<alpha = 0.5>(s, w, row)", ["MatMul", "Mul", "Add"]),
    "a scaled sum": ("p = Gemm<beta = 2.0>(s, w, e)", ["MatMul", "Mul", "Add"]),
    "a sum of nothing": ("p = Gemm<beta = 0.0>(s, w, e)", ["MatMul"]),
    "a computed matrix": ("q = Gemm<transA = 1>(s, e) p = Gemm<transB = 1>(e, q)", ["Transpose", "MatMul", "Transpose", "MatMul"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLIT)
def test_splits(name: str) -> None:
    step, expected = SPLIT[name]
    before = scan(step)
    after, _ = run_passes(before, PASS, target="cpu")
    assert step_ops(after) == expected
    assert_same(before, after, FEEDS)


@pytest.mark.parametrize("step", ["p = Gemm(s, w)", "p = Gemm(s, w, row)", "p = Gemm<transB = 1>(s, w, row)"])
def test_leaves_what_a_kernel_multiplies(step: str) -> None:
    _, report = run_passes(scan(step), PASS, target="cpu")
    assert not report.patches


def test_leaves_gemms_outside_of_loops() -> None:
    before = model("g (float[3,8] a, float[3,8] c) => (float[3,8] y) { y = Gemm(a, w, c) }", **WEIGHTS)
    _, report = run_passes(before, PASS, target="cpu")
    assert not report.patches


def test_whole_pipeline_makes_one_kernel_of_an_elman_cell() -> None:
    before = scan("q = MatMul(s, w) p = Add(q, e)")
    after = ir.to_proto(onnxopt.optimize(ir.load_copy(before)))
    assert op_list(after) in (["FusedRecurrence"], ["RNN"])
    for library in (False, True):
        assert_same(before, after, FEEDS, library=library)
