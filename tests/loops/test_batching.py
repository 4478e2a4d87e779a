"""Ops over all iterations at once: each rule against the op in a Scan."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from helpers import assert_same, model, run_passes
from onnxopt.loops.batching import RULES

RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (5, 2, 3, 4)).astype(np.float32)
Y = RNG.normal(0, 1, (5, 3, 4)).astype(np.float32)
X[1, 0, 1, 2], X[2, 1, 0, 0], X[3, 0, 0, 3] = np.nan, np.inf, -np.inf
CONSTANTS = {
    "w": RNG.normal(0, 1, (4, 6)).astype(np.float32),
    "w2": RNG.normal(0, 1, (6, 4)).astype(np.float32),
    "v": RNG.normal(0, 1, 4).astype(np.float32),
    "b": RNG.normal(0, 1, (2, 4, 2)).astype(np.float32),
    "left": RNG.normal(0, 1, (7, 3)).astype(np.float32),
    "bias": RNG.normal(0, 1, 6).astype(np.float32),
    "kernel": RNG.normal(0, 1, (5, 3, 3)).astype(np.float32),
    "zero": np.array([0]),
    "one": np.array([1]),
    "last": np.array([-1]),
    "two": np.array([2, 1]),
    "flat": np.array([2, -1]),
    "halves": np.array([1, 3]),
    "table": RNG.normal(0, 1, (9, 2)).astype(np.float32),
    "scalar": np.array(0.5, np.float32),
}
"""What bodies may take from outside. Each element of x is [2, 3, 4], of y [3, 4], of k [2] whole numbers."""

BODIES = {
    "unary": "r = Tanh(x)",
    "broadcast of a lower rank": "r = Add(x, y)",
    "broadcast with a constant": "r = Mul(v, x)",
    "constant of a higher rank": "r = Mul(y, big)",
    "where": "c = Less(y, scalar) r = Where(c, x, y)",
    "clip": "r = Clip(x, scalar)",
    "cast": "r = Cast<to = 7>(y)",
    "product with a matrix": "r = MatMul(x, w)",
    "product of a vector": "e = Gather<axis = 0>(y, first) r = MatMul(e, w)",
    "product with a stack": "r = MatMul(x, b)",
    "product from the left": "r = MatMul(left, y)",
    "product of elements": "t = Transpose<perm = [0, 2, 1]>(x) r = MatMul(y, t)",
    "gemm": "r = Gemm(y, w, bias)",
    "gemm of transposes": "t = Transpose<perm = [1, 0]>(y) r = Gemm<transA = 1, transB = 1, alpha = 0.5, beta = 2.0>(t, w2, bias)",
    "gemm without a bias": "r = Gemm(y, w)",
    "gemm with an element as bias": "e = MatMul(y, w) r = Gemm(y, w, e)",
    "unsqueeze": "r = Unsqueeze(y, one)",
    "unsqueeze at the end": "r = Unsqueeze(y, last)",
    "squeeze": "e = Slice(x, zero, one, one) r = Squeeze(e, one)",
    "squeeze of all unit dims": "e = Slice(x, zero, one, zero) r = Squeeze(e)",
    "transpose": "r = Transpose<perm = [2, 0, 1]>(x)",
    "transpose that reverses": "r = Transpose(x)",
    "reshape": "r = Reshape(x, flat)",
    "flatten": "r = Flatten<axis = 2>(x)",
    "gather of the element": "r = Gather<axis = -1>(x, two)",
    "gather by the element": "r = Gather(table, k)",
    "gather by the element along another axis": "r = Gather<axis = 1>(table9, k)",
    "slice": "r = Slice(x, one, two1, last)",
    "slice without axes": "r = Slice(x, zero, one)",
    "slice with steps": "r = Slice(y, last, least, zero, last)",
    "slice by int32": "r = Slice(x, one32, two32, last32)",
    "slice by int32 without axes": "r = Slice(x, one32, two32)",
    "concat": "r = Concat<axis = -2>(x, x)",
    "split": "p, q = Split<axis = 2>(x, halves) r = Concat<axis = 2>(q, p)",
    "softmax": "r = Softmax<axis = 1>(x)",
    "log softmax": "r = LogSoftmax(x)",
    "layer norm": "r = LayerNormalization<axis = 2>(x, v, v)",
    "argmax": "r = ArgMax<axis = 1, keepdims = 0>(y)",
    "sum": "r = ReduceSum<keepdims = 0>(x, one)",
    "sum of all": "r = ReduceSum<keepdims = 0>(x)",
    "mean": "r = ReduceMean<axes = [-1]>(x)",
    "largest": "r = ReduceMax<axes = [0, 2], keepdims = 0>(x)",
    "convolution": "r = Conv(x, kernel)",
    "chain": "a = MatMul(x, w) c = Add(a, bias) d = Relu(c) r = ReduceMean<axes = [2], keepdims = 0>(d)",
}
RESULTS = {"cast": "int64", "argmax": "int64"}
MORE = {
    "big": RNG.normal(0, 1, (2, 3, 4)).astype(np.float32),
    "first": np.array(0),
    "table9": RNG.normal(0, 1, (3, 9)).astype(np.float32),
    "two1": np.array([3]),
    "least": np.array([-9]),
    "one32": np.array([1], np.int32),
    "two32": np.array([2], np.int32),
    "last32": np.array([-1], np.int32),
}


def scan(body: str, kind: str, rank: int | None = None) -> onnx.ModelProto:
    """A Scan whose iterations compute `body`; x, y and k are its sequences."""
    shape = ",".join("abcd"[:rank]) if rank else ""
    inside = "float[2,3,4] x, float[3,4] y, int64[2] k"
    text = f"z = Scan <num_scan_inputs = 3, body = g1 ({inside}) => ({kind}[{shape}] r) {{ {body} }}> (xs, ys, ks)"
    outer = f"g (float[5,2,3,4] xs, float[5,3,4] ys, int64[5,2] ks) => ({kind}[{','.join('tuvwz'[: (rank or 0) + 1])}] z) {{ {text} }}"
    return model(outer, **CONSTANTS, **MORE)


def rank_of(body: str, kind: str) -> int:
    """The rank of `r`, by onnxruntime."""
    text = f"g (float[2,3,4] x, float[3,4] y, int64[2] k) => ({kind} r) {{ {body} }}"
    proto = model(text, **CONSTANTS, **MORE)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": X[0], "y": Y[0], "k": np.array([3, 0])})
    return int(result.ndim)


@pytest.mark.parametrize("name", BODIES)
def test_batched_form_equals_the_op_in_each_iteration(name: str) -> None:
    kind = RESULTS.get(name, "float")
    before = scan(BODIES[name], kind, rank_of(BODIES[name], kind))
    after, _ = run_passes(before, "batch_loop_inputs", "vectorize_loops", "eliminate_dead_code")
    assert not any(node.op_type == "Scan" for node in after.graph.node)
    indices = RNG.integers(0, 9, (5, 2))
    assert_same(before, after, {"xs": X, "ys": Y, "ks": indices})


def test_every_rule_for_other_than_element_wise_ops_has_a_body() -> None:
    text = " ".join(BODIES.values())
    special = {op for op, rule in RULES.items() if rule.__name__ != "_elementwise"}
    covered = {op for op in special if f"{op}(" in text or f"{op}<" in text}
    like_another = {"ArgMin", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"}
    assert special - covered == like_another


@pytest.mark.parametrize("body", ["m = ReduceMax<keepdims = 0>(y) r = Clip(x, m)", "m = Abs(y) r = PRelu(w23, m)"])
def test_elements_must_not_enlarge_what_they_bound_or_scale(body: str) -> None:
    before = scan(body, "float", 3)
    before.graph.initializer.append(onnx.numpy_helper.from_array(X[0], "w23"))
    after, _ = run_passes(before, "batch_loop_inputs", "vectorize_loops", "eliminate_dead_code")
    assert_same(before, after, {"xs": X, "ys": Y, "ks": RNG.integers(0, 9, (5, 2))})


@pytest.mark.parametrize("body", ["r = MatMul(v, x)", "r = CumSum(x, axis)"], ids=["vector from the left", "no rule"])
def test_ops_without_a_batched_form_stay(body: str) -> None:
    before = scan(body, "float", 2 if "MatMul" in body else 3)
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "axis"))
    after, _ = run_passes(before, "batch_loop_inputs", "vectorize_loops")
    assert any(node.op_type == "Scan" for node in after.graph.node)
