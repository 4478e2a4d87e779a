"""Scans that become FusedRecurrence."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, evaluate, model, op_list, run_emulated, run_passes

PASS = "fuse_recurrences"
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (6, 2, 8)).astype(np.float32)
H = RNG.normal(0, 1, (2, 8)).astype(np.float32)
WEIGHTS = {
    "w": RNG.normal(0, 0.3, (8, 8)).astype(np.float32),
    "u": RNG.normal(0, 0.3, (8, 8)).astype(np.float32),
    "narrow": RNG.normal(0, 0.3, (8, 4)).astype(np.float32),
    "back": RNG.normal(0, 0.3, (4, 8)).astype(np.float32),
    "b": RNG.normal(0, 1, 8).astype(np.float32),
    "m": RNG.normal(0, 1, (2, 8)).astype(np.float32),
    "k": np.array(0.9, np.float32),
    "axis": np.array([1]),
}


def scan(
    body: str,
    *,
    results: str = "float[2,8] s2, float[2,8] z",
    inside: str = "float[2,8] s, float[2,8] e",
    inputs: str = "h, x",
    left: str = "y, u1",
    outputs: str = "float[2,8] y, float[t,2,8] u1",
    attributes: str = "",
    opset: int = 17,
) -> onnx.ModelProto:
    """A Scan over x that carries s from h."""
    text = (
        f"{left} = Scan <num_scan_inputs = 1{attributes}, body = g1 ({inside}) => ({results}) {{ {body} }}> ({inputs})"
    )
    return model(f"g (float[T,2,8] x, float[2,8] h) => ({outputs}) {{ {text} }}", opset=opset, **WEIGHTS)


FUSED = {
    "moving average": "p = Mul(s, k) s2 = Add(p, e) z = Identity(s2)",
    "output that is computed besides": "p = Mul(s, k) s2 = Add(p, e) z = Exp(p)",
    "tanh cell": "p = MatMul(s, w) q = Add(p, e) s2 = Tanh(q) z = Identity(s2)",
    "cell with a bias": "p = Gemm(s, w, b) q = Add(p, e) s2 = Tanh(q) z = Mul(s2, m)",
    "transposed matrix": "p = Gemm<transB = 1>(s, w, b) q = Add(p, e) s2 = Tanh(q) z = Neg(s2)",
    "two products": "p = MatMul(s, w) v = MatMul(s, u) g = Sigmoid(v) q = Mul(p, g) s2 = Add(q, e) z = Identity(g)",
    "two phases": "r = MatMul(s, u) g = Sigmoid(r) p = Mul(g, s) q = MatMul(p, w) t = Add(q, e) s2 = Tanh(t) z = Identity(p)",
    "three phases": "a = MatMul(s, u) c = Tanh(a) d = MatMul(c, w) f = Add(d, e) l = MatMul(f, u) s2 = Add(l, c) z = Relu(f)",
    "comparison within a phase": "c = Greater(e, s) p = Where(c, e, s) s2 = Mul(p, k) z = Identity(s2)",
    "element that goes out": "p = Mul(s, k) s2 = Add(p, e) z = Identity(e)",
    "value before the step that goes out": "p = Mul(s, k) s2 = Add(p, e) z = Identity(s)",
}


@pytest.mark.parametrize("name", FUSED)
def test_fused(name: str) -> None:
    before = scan(FUSED[name])
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["FusedRecurrence"]
    for feed in ({"x": X, "h": H}, {"x": X[:1], "h": H}):
        assert_same(before, after, feed, library=False)
        assert_same(before, after, feed, library=True)


@pytest.mark.parametrize("name", FUSED)
def test_kernel_for_devices_takes_what_is_made_for_it(name: str) -> None:
    before = scan(FUSED[name])
    after, _ = run_passes(before, PASS, target="cuda")
    assert op_list(after) == ["FusedRecurrence"]
    for wanted, found in zip(evaluate(before, {"x": X, "h": H}), run_emulated(after, {"x": X, "h": H}), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("products", "fused"), [(7, True), (8, False)])
def test_phases_beyond_what_a_device_takes(products: int, fused: bool) -> None:
    steps = " ".join(f"p{k} = MatMul(a{k}, w) a{k + 1} = Tanh(p{k})" for k in range(products))
    before = scan(f"a0 = Mul(s, k) {steps} s2 = Add(a{products}, e) z = Identity(s2)")
    for target, expected in (("cpu", True), ("cuda", fused)):
        assert ("FusedRecurrence" in op_list(run_passes(before, PASS, target=target)[0])) is expected


@pytest.mark.parametrize(("width", "fused"), [(600, True), (9000, False)])
def test_rows_beyond_a_device_s_shared_memory(width: int, fused: bool) -> None:
    body = "p = Mul(s, e) s2 = Add(p, e) z = ReduceSum<keepdims = 0>(s2, axis)"
    text = f"""g (float[T,2,{width}] x, float[2,{width}] h) => (float[2,{width}] y, float[T,2] u1) {{
        y, u1 = Scan <num_scan_inputs = 1, body = g1 (float[2,{width}] s, float[2,{width}] e) => (float[2,{width}] s2, float[2] z)
        {{ {body} }}> (h, x) }}"""
    before = model(text, axis=WEIGHTS["axis"])
    for target, expected in (("cpu", True), ("cuda", fused)):
        assert ("FusedRecurrence" in op_list(run_passes(before, PASS, target=target)[0])) is expected


@pytest.mark.parametrize("opset", [9, 11, 13, 21])
def test_opsets(opset: int) -> None:
    before = scan(FUSED["cell with a bias"], opset=opset)
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["FusedRecurrence"]
    for library in (False, True):
        assert_same(before, after, {"x": X, "h": H}, library=library)


def test_values_that_are_not_finite() -> None:
    x, h = X.copy(), H.copy()
    x[2, 0, 3], x[3, 1, 7], h[0, 0] = np.nan, np.inf, -np.inf
    before = scan(FUSED["moving average"])
    after, _ = run_passes(before, PASS, target="cpu")
    for library in (False, True):
        assert_same(before, after, {"x": x, "h": h}, library=library)


@pytest.mark.parametrize("attributes", [", scan_input_directions = [1]", ", scan_output_directions = [1]"])
def test_directions(attributes: str) -> None:
    before = scan(FUSED["tanh cell"], attributes=attributes)
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["FusedRecurrence"]
    for library in (False, True):
        assert_same(before, after, {"x": X, "h": H}, library=library)


def test_several_carried_values() -> None:
    before = scan(
        "p = Mul(s, k) s2 = Add(p, e) g = Sigmoid(e) c2 = Mul(c, g) z = Add(s2, c2)",
        inside="float[2,8] s, float[2,8] c, float[2,8] e",
        results="float[2,8] s2, float[2,8] c2, float[2,8] z",
        inputs="h, m, x",
        left="y, y2, u1",
        outputs="float[2,8] y, float[2,8] y2, float[t,2,8] u1",
    )
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["FusedRecurrence"]
    for library in (False, True):
        assert_same(before, after, {"x": X, "h": H}, library=library)


def test_steps_that_differ_in_an_attribute_have_bodies_of_their_own() -> None:
    step = "s2 = LeakyRelu<alpha = {}>(q)"
    first = f"p = Add(s, e) q = Neg(p) {step.format(0.5)} z = Identity(p)"
    second = f"p = Add(s, e) q = Neg(p) {step.format(0.25)} z = Identity(p)"
    texts = [
        f"y{i}, u{i} = Scan <num_scan_inputs = 1, body = g{i} (float[2,8] s, float[2,8] e) => (float[2,8] s2, float[2,8] z) {{ {body} }}> (h, x)"
        for i, body in ((1, first), (2, second))
    ]
    outputs = "float[2,8] y1, float[2,8] y2, float[t,2,8] u1, float[t,2,8] u2"
    before = model(f"g (float[T,2,8] x, float[2,8] h) => ({outputs}) {{ {' '.join(texts)} }}")
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["FusedRecurrence", "FusedRecurrence"]
    for library in (False, True):
        assert_same(before, after, {"x": X, "h": H}, library=library)


SUM = "m2 = Mul(s2, e) z = ReduceSum<keepdims = 0>(m2, axis)"


@pytest.mark.parametrize("attributes", ["", ", scan_input_directions = [1], scan_output_directions = [1]"])
def test_sums_in_the_loop(attributes: str) -> None:
    before = scan(
        f"p = Mul(s, k) s2 = Add(p, e) {SUM}",
        results="float[2,8] s2, float[2] z",
        outputs="float[2,8] y, float[t,2] u1",
        attributes=attributes,
    )
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["FusedRecurrence"]
    for library in (False, True):
        assert_same(before, after, {"x": X, "h": H}, library=library)


@pytest.mark.parametrize("opset", [11, 17])
def test_sums_behind_the_loop(opset: int) -> None:
    axes, given = ("axes = [-1], ", "") if opset < 13 else ("", ", last")
    text = (
        f"y, all = Scan <num_scan_inputs = 1, body = g1 (float[2,8] s, float[2,8] e) => (float[2,8] s2, float[2,8] z) "
        f"{{ {FUSED['output that is computed besides']} }}> (h, x) u1 = ReduceSum<{axes}keepdims = 0>(all{given})"
    )
    inputs = "float[T,2,8] x, float[2,8] h"
    before = model(
        f"g ({inputs}) => (float[2,8] y, float[T,2] u1) {{ {text} }}", opset=opset, **WEIGHTS, last=np.array([2])
    )
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["FusedRecurrence"]
    for library in (False, True):
        assert_same(before, after, {"x": X, "h": H}, library=library)


REFUSED = {
    "a matrix that is not square": "p = MatMul(s, narrow) q = MatMul(p, back) s2 = Add(q, e) z = Identity(s2)",
    "another op": "p = Softmax(s) s2 = Add(p, e) z = Identity(s2)",
    "a reduction": "p = ReduceMean<axes = [1]>(s) s2 = Add(p, e) z = Identity(s2)",
    "a scaled product": "p = Gemm<alpha = 0.5>(s, w, b) s2 = Add(p, e) z = Identity(s2)",
    "a product of an element": "p = MatMul(e, w) s2 = Add(p, s) z = Identity(s2)",
    "a product that goes on as it is": "s2 = MatMul(s, w) z = Add(s, e)",
    "an output of another shape": "s2 = Add(s, e) z = Unsqueeze(s2, axis)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_stays(name: str) -> None:
    shape = "t,2,1,8" if "shape" in name else "t,2,8"
    kind = "float[2,1,8] z" if "shape" in name else "float[2,8] z"
    before = scan(REFUSED[name], results=f"float[2,8] s2, {kind}", outputs=f"float[2,8] y, float[{shape}] u1")
    after, report = run_passes(before, PASS, target="cpu", explain=True)
    assert op_list(after) == ["Scan"]
    assert report.near_misses
    assert_same(before, after, {"x": X, "h": H}, rtol=0, atol=0)


def test_outputs_along_another_axis_stay() -> None:
    before = scan(
        FUSED["moving average"], attributes=", scan_output_axes = [1]", outputs="float[2,8] y, float[2,t,8] u1"
    )
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["Scan"]
