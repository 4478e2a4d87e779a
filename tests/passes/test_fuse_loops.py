"""Loops that become FusedLoop: whatever ends them, they run as long as the original and compute the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes
from onnxopt import ir
from onnxopt.pipeline import PassManager

PASS = "fuse_loops"
RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.normal(0, 0.3, (8, 8)).astype(np.float32),
    "wide": RNG.normal(0, 0.3, (8, 20)).astype(np.float32),
    "back": RNG.normal(0, 0.3, (8, 20)).astype(np.float32),
    "bias": RNG.normal(0, 1, 20).astype(np.float32),
    "row": RNG.normal(0, 1, 8).astype(np.float32),
    "half": np.array(0.5, np.float32),
    "tolerance": np.array(1e-3, np.float32),
    "zero": np.array(0, np.int64),
    "one": np.array(1, np.int64),
    "seven": np.array(7, np.int64),
    "true": np.array(True),
    "false": np.array(False),
    "axes": np.array([0, 1]),
}
A = RNG.uniform(0.5, 9, (3, 8)).astype(np.float32)


def loop(
    body: str,
    results: str = "float[3,8] s2, float[3,8] z",
    *,
    inputs: str = "n, c, a",
    inside: str = "float[3,8] s",
    left: str = "y, u",
    outputs: str = "float[3,8] y, float[t,3,8] u",
    opset: int = 17,
) -> onnx.ModelProto:
    """A Loop that carries s from a; its body names its condition d."""
    text = f"{left} = Loop <body = g1 (int64 i, bool o, {inside}) => (bool d, {results}) {{ {body} }}> ({inputs})"
    return model(f"g (int64 n, bool c, float[3,8] a) => ({outputs}) {{ {text} }}", opset=opset, **WEIGHTS)


def fuse(before: onnx.ModelProto) -> onnx.ModelProto:
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["FusedLoop"]
    return after


def feeds(limit: int = 30, condition: bool = True, a: np.ndarray = A) -> dict[str, np.ndarray]:
    return {"n": np.array(limit), "c": np.array(condition), "a": a}


NEWTON = "q = Div(a, s) p = Add(s, q) s2 = Mul(p, half) e = Sub(s2, s) f = Abs(e) "
DIFFERENCE = {
    "largest": "r = ReduceMax<keepdims = 0>(f) d = Greater(r, tolerance) z = Identity(s2)",
    "largest of all dims by name": "r = ReduceMax<keepdims = 0, axes = [0, -1]>(f) d = Greater(r, tolerance) z = Neg(s2)",
    "sum": "r = ReduceSum<keepdims = 0>(f, axes) d = Greater(r, tolerance) z = Identity(e)",
    "mean": "r = ReduceMean<keepdims = 0>(f) d = Greater(r, tolerance) z = Identity(s)",
    "norm": "r = ReduceL2<keepdims = 0>(e) d = Greater(r, tolerance) z = Identity(a)",
    "sum of magnitudes": "r = ReduceL1<keepdims = 0>(e) d = Greater(r, tolerance) z = Identity(q)",
    "sum of squares": "r = ReduceSumSquare<keepdims = 0>(e) d = Greater(r, tolerance) z = Identity(f)",
    "least, and a count": "m = Neg(f) r0 = ReduceMin<keepdims = 0>(m) r = Abs(r0) k = Greater(r, tolerance) l = Less(i, seven) d = And(k, l) z = Identity(s2)",
    "count alone": "d = Less(i, seven) z = Identity(s2)",
    "passed on": "d = Identity(true) z = Identity(s2)",
    "false at once": "d = Identity(false) z = Identity(s2)",
}


@pytest.mark.parametrize("name", DIFFERENCE)
def test_ends_when_the_original_does(name: str) -> None:
    before = loop(NEWTON + DIFFERENCE[name])
    after = fuse(before)
    for one in (feeds(), feeds(3), feeds(0), feeds(-4), feeds(1), feeds(condition=False)):
        for library in (False, True):
            assert_same(before, after, one, library=library)


@pytest.mark.parametrize("limit", ["", "huge"])
def test_no_limit(limit: str) -> None:
    before = loop(NEWTON + DIFFERENCE["largest"], inputs=f"{limit}, c, a")
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2**63 - 1), "huge"))
    after = fuse(before)
    for library in (False, True):
        assert_same(before, after, feeds(), library=library)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("name", ["sum", "sum of magnitudes", "sum of squares", "norm"])
def test_conditions_that_are_not_finite(name: str, special: float) -> None:
    a = A.copy()
    a[1, 3] = special
    before = loop(NEWTON + DIFFERENCE[name])
    after = fuse(before)
    for library in (False, True):
        assert_same(before, after, feeds(9, a=a), library=library)


CARRIED = {
    "a counter and a sum of another shape": (
        "int64 k, float v, float[3,8] s",
        "int64 k2, float v2, float[3,8] s2",
        "s2 = Mul(s, half) r = ReduceSum<keepdims = 0>(s2, axes) v2 = Add(v, r) k2 = Add(k, one) d = Greater(r, tolerance)",
        "zero, half, a",
    ),
    "swapped": (
        "float[3,8] p, float[3,8] s",
        "float[3,8] s1, float[3,8] q",
        "s1 = Identity(s) q = Identity(p) x = Mul(s, half) r = ReduceMax<keepdims = 0>(x) d = Greater(r, tolerance)",
        "row3, a",
    ),
    "constants and values from outside": (
        "float v, float[3,8] s",
        "float v2, float[3,8] s2",
        "v2 = Identity(half) s2 = Identity(a) x = Add(s, v) r = ReduceMax<keepdims = 0>(x) d = Less(r, half)",
        "tolerance, a",
    ),
    "the number of the iteration": (
        "int64 k, float[3,8] s",
        "int64 k2, float[3,8] s2",
        "k2 = Identity(i) f = Cast<to = 1>(i) s2 = Add(s, f) d = Less(k, seven)",
        "seven, a",
    ),
    "kept dims": (
        "float[1,1] v, float[3,8] s",
        "float[1,1] v2, float[3,8] s2",
        "v2 = ReduceMax<keepdims = 1>(s) s2 = Div(s, v2) w0 = Sub(v2, v) r = ReduceL1<keepdims = 0>(w0) d = Greater(r, tolerance)",
        "pair, a",
    ),
    "a flag": (
        "bool b, float[3,8] s",
        "bool b2, float[3,8] s2",
        "x = Mul(s, half) s2 = Where(b, x, s) b2 = Not(b) r = ReduceMax<keepdims = 0>(s2) d = Greater(r, half)",
        "true, a",
    ),
}


@pytest.mark.parametrize("name", CARRIED)
def test_carries(name: str) -> None:
    inside, results, body, initial = CARRIED[name]
    left = [f"y{index}" for index in range(len(inside.split(" ")) // 2)]
    outputs = ", ".join(f"{one.strip().split()[0]} {out}" for one, out in zip(_items(inside), left, strict=True))
    text = f"{', '.join(left)} = Loop <body = g1 (int64 i, bool o, {inside}) => (bool d, {results}) {{ {body} }}> (n, c, {initial})"
    before = model(
        f"g (int64 n, bool c, float[3,8] a) => ({outputs}) {{ {text} }}",
        **WEIGHTS,
        row3=A[::-1].copy(),
        pair=np.ones((1, 1), np.float32),
    )
    after = fuse(before)
    for one in (feeds(), feeds(0), feeds(1), feeds(2), feeds(5)):
        for library in (False, True):
            assert_same(before, after, one, library=library)


def _items(text: str) -> list[str]:
    """The parts of a list of typed names; commas in shapes part nothing."""
    return [one for one in text.replace(", ", ";").split(";") if one]


PRODUCTS = {
    "square": "p = MatMul(s, w) q = Add(p, row) s2 = Tanh(q) z = Identity(s2)",
    "wide and back": "p = MatMul(s, wide) q = Add(p, bias) f0 = Tanh(q) b0 = Gemm<transB = 1>(f0, back) s2 = Tanh(b0) z = Mul(s2, half)",
    "wide with a bias": "p = Gemm(s, wide, bias) f0 = Relu(p) b0 = Gemm<transB = 1>(f0, back) s2 = Tanh(b0) z = Identity(b0)",
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    body = PRODUCTS[name] + " e = Sub(s2, s) r = ReduceL2<keepdims = 0>(e) d = Greater(r, tolerance)"
    before = loop(body)
    after = fuse(before)
    for one in (feeds(), feeds(0), feeds(1)):
        for library in (False, True):
            assert_same(before, after, one, library=library)


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_opsets(opset: int) -> None:
    reduced = "ReduceL1<keepdims = 0>(e)"
    before = loop(NEWTON + f"r = {reduced} d = Greater(r, tolerance) z = Identity(s2)", opset=opset)
    after = fuse(before)
    for library in (False, True):
        assert_same(before, after, feeds(), library=library)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 0), (5, 33), (40, 1700)])
def test_sizes(rows: int, width: int) -> None:
    text = """y, u = Loop <body = g1 (int64 i, bool o, float[M,N] s) => (bool d, float[M,N] s2, float[M,N] z) {
        q = Div(a, s) p = Add(s, q) s2 = Mul(p, half) z = Neg(q) e = Sub(s2, s) r = ReduceL1<keepdims = 0>(e) d = Greater(r, tolerance) }> (n, c, a)"""
    before = model(f"g (int64 n, bool c, float[M,N] a) => (float[M,N] y, float[t,M,N] u) {{ {text} }}", **WEIGHTS)
    after = fuse(before)
    a = RNG.uniform(0.5, 9, (rows, width)).astype(np.float32)
    for library in (False, True):
        assert_same(before, after, feeds(12, a=a), library=library)


STEPS = {
    "sums of rows": "r = ReduceSum<keepdims = 1>(s, last) s2 = Mul(s, r) z = Identity(s2)",
    "largest of columns": "r = ReduceMax<keepdims = 0, axes = [0]>(s) s2 = Sub(s, r) z = Neg(s2)",
    "logarithm of sums": "r = ReduceLogSumExp<keepdims = 1, axes = [-1]>(s) s2 = Sub(s, r) z = Add(r, a)",
    "softmax": "s2 = Softmax(s) z = LogSoftmax<axis = 0>(s2)",
    "a norm": "s2 = LayerNormalization(s, row, row) z = LayerNormalization<epsilon = 0.1>(s2, row)",
    "indices of the largest": "k = ArgMax<axis = 1, keepdims = 1>(s) f = Cast<to = 1>(k) s2 = Sub(s, f) j = ArgMin<axis = -1, keepdims = 1>(s2) h = Cast<to = 1>(j) z = Add(h, s)",
    "rows that are looked up": "k = ArgMax<axis = 1, keepdims = 0>(s) s2 = Gather(table, k) z = Tanh(s2)",
    "a row of the iteration": "r = Gather(table, i) s2 = Sub(s, r) z = Identity(s2)",
    "transposed": "t = Transpose(s) u0 = Neg(t) s2 = Transpose<perm = [1, 0]>(u0) z = Identity(s2)",
    "reshaped": "t = Reshape(s, dims) u0 = Tanh(t) v = Reshape(u0, dims38) s2 = Mul(v, half) z = Identity(v)",
    "flattened": "t = Unsqueeze(s, last) u0 = Flatten(t) v = Squeeze(t, last) s2 = Add(u0, v) z = Identity(s2)",
    "halves changed": "p, q = Split<axis = 1>(s) s2 = Concat<axis = 1>(q, p) z = Identity(s2)",
    "parts of given sizes": "p, q = Split<axis = -1>(s, sizes) s2 = Concat<axis = -1>(q, p) z = Sigmoid(s2)",
    "slices": "p = Slice(s, starts, ends, both, steps) q = Concat<axis = 0>(p, p, p) r = Concat<axis = 1>(q, q, q, q) t = Slice(r, starts, sizes38, both) s2 = Expand(t, dims38) z = Identity(s2)",
    "expanded": "r = ReduceMean<keepdims = 0>(s) e = Expand(r, dims38) s2 = Sub(s, e) z = Identity(e)",
    "rows that are written": "j = Reshape(i, one11) e = ReduceMax<axes = [0], keepdims = 1>(s) s2 = ScatterND(s, j, e) z = Neg(s2)",
    "the largest in order": "p, k = TopK(s, three) f = Cast<to = 1>(k) q = Add(p, f) r = ReduceSum<keepdims = 1>(q, last) s2 = Sub(s, r) z = Identity(s2)",
    "numbers added up": "k = ArgMax<axis = 1>(s) t = ReduceSum<keepdims = 0>(k) f = Cast<to = 1>(t) s2 = Sub(s, f) z = Identity(s2)",
    "a product of its own": "t = Transpose(s) m = MatMul(s, t) n0 = Softmax(m) s2 = MatMul(n0, s) z = Identity(s2)",
    "a window of the iteration": "l = Add(i, many) j = Unsqueeze(i, first) k = Unsqueeze(l, first) p = Slice(row, j, k, first) r = ReduceSum<keepdims = 1>(p, first) s2 = Mul(s, r) z = Neg(s2)",
    "rows and columns up to the iteration": "l = Add(i, many) m = Reshape(i, last) o2 = Reshape(l, last) b0 = Concat<axis = 0>(m, m) e0 = Concat<axis = 0>(o2, o2) p = Slice(s, b0, e0) r = ReduceMean<keepdims = 0>(p) s2 = Sub(s, r) z = Identity(s2)",
    "a convolution along rows": "t = Unsqueeze(s, first) p = Conv<pads = [1, 1]>(t, along, bias3) q = Squeeze(p, first) s2 = Tanh(q) z = Identity(q)",
    "a convolution of each row": "t = Unsqueeze(s, first) p = Conv<auto_pad = \"SAME_UPPER\", group = 3>(t, each) q = Squeeze(p, first) s2 = Tanh(q) z = Identity(q)",
    "a convolution of an image": "t = Unsqueeze(s, image) p = Conv<pads = [1, 0, 1, 2], strides = [1, 2], dilations = [1, 2]>(t, square33) r = ReduceMax<keepdims = 0>(p) s2 = Sub(s, r) z = Identity(s2)",
    "a product with a matrix that is given": "m = MatMul(square, s) s2 = Tanh(m) z = Identity(m)",
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_steps(name: str) -> None:
    before = loop(STEPS[name] + " d = Less(i, seven)")
    for key, value in STEP_WEIGHTS.items():
        before.graph.initializer.append(onnx.numpy_helper.from_array(value, key))
    after = fuse(before)
    for one in (feeds(3), feeds(0), feeds(1)):
        for library in (False, True):
            assert_same(before, after, one, library=library)


STEP_WEIGHTS = {
    "last": np.array([1]),
    "one11": np.array([1, 1]),
    "three": np.array([3]),
    "table": RNG.normal(0, 1, (8, 8)).astype(np.float32),
    "dims": np.array([2, -1, 4]),
    "sizes": np.array([2, 6]),
    "starts": np.array([0, 1]),
    "ends": np.array([1, 8]),
    "both": np.array([0, 1]),
    "steps": np.array([1, 2]),
    "sizes38": np.array([3, 9]),
    "dims38": np.array([3, 8]),
    "first": np.array([0]),
    "many": np.array(3),
    "image": np.array([0, 1]),
    "bias3": RNG.normal(0, 1, 3).astype(np.float32),
    "along": RNG.normal(0, 0.4, (3, 3, 3)).astype(np.float32),
    "each": RNG.normal(0, 0.4, (3, 1, 2)).astype(np.float32),
    "square33": RNG.normal(0, 0.4, (2, 1, 3, 3)).astype(np.float32),
    "square": RNG.normal(0, 0.4, (3, 3)).astype(np.float32),
}


SCANS = {
    "forwards": "num_scan_inputs = 1",
    "backwards": "num_scan_inputs = 1, scan_input_directions = [1]",
    "stacked backwards": "num_scan_inputs = 1, scan_output_directions = [1]",
    "stacked along another axis": "num_scan_inputs = 1, scan_output_axes = [1]",
    "along another axis, all backwards": "num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1], "
    "scan_output_axes = [-1], scan_output_directions = [1]",
}


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", SCANS)
def test_scans(name: str, steps: int) -> None:
    """A softmax of what is carried, plus the elements."""
    axis = 1 if "input_axes" in SCANS[name] else 0
    dims, x = ("3,T,8", (3, steps, 8)) if axis else ("T,3,8", (steps, 3, 8))
    text = f"""y, u = Scan <{SCANS[name]}, body = g1 (float[3,8] s, float[3,8] e) => (float[3,8] s2, float[3,8] z) {{
        p = Softmax(s) s2 = Add(p, e) z = Identity(e) }}> (a, x)"""
    before = model(f"g (float[3,8] a, float[{dims}] x) => (float[3,8] y, float[?,?,?] u) {{ {text} }}")
    after, _ = run_passes(before, PASS, target="cpu")
    assert "FusedLoop" in op_list(after) and "Scan" not in op_list(after)
    for library in (False, True):
        assert_same(before, after, {"a": A, "x": RNG.normal(0, 1, x).astype(np.float32)}, library=library)


GROWING = {
    "rows that are appended": ("1,8", "r = ReduceMean<axes = [0], keepdims = 1>(s) s2 = Concat<axis = 0>(s, r) z = Neg(r)"),
    "columns that are put before": ("3,1", "r = ReduceMax<axes = [1], keepdims = 1>(s) t = Neg(r) s2 = Concat<axis = 1>(t, s) z = Neg(r)"),
    "attention over earlier rows": ("1,8", "q = Slice(s, last, many, first) t = Transpose(s) m = MatMul(q, t) p = Softmax(m) v = MatMul(p, s) s2 = Concat<axis = 0>(s, v) z = Tanh(v)"),
    "doubled": ("1,1", "t = Mul(s, half) s2 = Concat<axis = 0>(s, t) z = ReduceSum<keepdims = 1>(t, both)"),
    "rows that are dropped": ("1,1", "s2 = Slice(s, unit, many, first) z = ReduceSum<keepdims = 1>(s, both)"),
    "rows that change as well": ("1,8", "r = ReduceMax<axes = [0], keepdims = 1>(s) t = Sub(s, r) w0 = Reshape(t, dims) v = Reshape(w0, dims8) s2 = Concat<axis = 0>(r, v) z = Neg(r)"),
}  # fmt: skip
GROWING_WEIGHTS = {
    "last": [-1],
    "many": [99],
    "first": [0],
    "unit": [1],
    "both": [0, 1],
    "dims": [-1, 4],
    "dims8": [-1, 8],
}


@pytest.mark.parametrize("name", GROWING)
def test_carried_values_that_grow_and_are_read(name: str) -> None:
    stacked, body = GROWING[name]
    before = loop(
        f"{body} d = Less(i, seven)",
        f"float[?,?] s2, float[{stacked}] z",
        inside="float[?,?] s",
        outputs=f"float[?,?] y, float[t,{stacked}] u",
    )
    for key, value in GROWING_WEIGHTS.items():
        before.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), key))
    after = fuse(before)
    for one in (feeds(3), feeds(0), feeds(1), feeds(2)):
        for library in (False, True):
            assert_same(before, after, one, library=library)


@pytest.mark.parametrize("limit", [0, 1, 2, 7])
def test_growing_values_that_change_places(limit: int) -> None:
    """Two lists of rows that are swapped while one of them grows, beside a value that does not."""
    before = loop(
        "p2 = Identity(s) r = ReduceMax<axes = [0], keepdims = 1>(p) s2 = Concat<axis = 0>(p, r) k2 = Add(k, r) d = Identity(true)",
        "float[?,8] p2, float[?,8] s2, float[1,8] k2",
        inputs="n, c, a, pair, pair",
        inside="float[?,8] p, float[?,8] s, float[1,8] k",
        left="x, y, u",
        outputs="float[?,8] x, float[?,8] y, float[1,8] u",
    )
    before.graph.initializer.append(onnx.numpy_helper.from_array(A[:1], "pair"))
    after = fuse(before)
    for library in (False, True):
        assert_same(before, after, feeds(limit), library=library)


REFUSED = {
    "a condition that is read": ("s2 = Where(o, s, a) z = Identity(s2) d = Identity(true)", "reads its condition"),
    "an op of another kind": ("s2 = Hardmax(s) z = Identity(s2) d = Identity(true)", "Hardmax is not element-wise"),
    "sums over axes that are no neighbours": (
        "t = Unsqueeze(s, one1) r = ReduceSum<keepdims = 0>(t, outer) s2 = Add(s, r) z = Identity(s2) d = Identity(true)", "no neighbours"),
    "the last of equal elements": (
        "k = ArgMax<keepdims = 0, select_last_index = 1>(s) f = Cast<to = 1>(k) s2 = Add(s, f) z = Identity(s2) d = Identity(true)", "last of equal"),
    "bounds that depend on a slice": (
        "j = Unsqueeze(i, zero1) p = Slice(a, j, one1) k = ArgMax<keepdims = 0>(p) l = ReduceMax<keepdims = 1>(k) q = Slice(s, zero1, l) r = ReduceMax<keepdims = 0>(q) s2 = Add(s, r) z = Identity(s2) d = Identity(true)", "another one whose bounds"),
    "images of three dims": (
        "t = Reshape(s, dims5) p = Conv(t, cube) s2 = Reshape(p, dims38) z = Identity(s2) d = Identity(true)", "more than two dims"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    body, reason = REFUSED[name]
    before = loop(body)
    weights = {"one1": [1], "zero1": [0], "outer": [0, 2], "dims5": [1, 3, 1, 2, 4], "dims38": [3, 8], "cube": np.ones((3, 3, 1, 1, 1), np.float32)}  # fmt: skip
    for key, value in weights.items():
        before.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), key))
    report = PassManager("cpu", [PASS], explain=True).run(ir.load(before))
    assert not report.patches
    assert any(reason in str(miss.refusal) for miss in report.near_misses)


def test_refuses_a_number_of_one_dim() -> None:
    before = loop("f = Cast<to = 1>(i) s2 = Add(s, f) z = Neg(s) d = Less(f, half)")
    before.graph.node[0].attribute[0].g.input[0].type.tensor_type.shape.dim.add().dim_value = 1
    report = PassManager("cpu", [PASS], explain=True).run(ir.load(before))
    assert "number of its iteration is no scalar" in str(report.near_misses[0].refusal)


def test_devices_have_no_kernel() -> None:
    before = loop(NEWTON + DIFFERENCE["largest"])
    after, report = run_passes(before, PASS, target="cuda", explain=True)
    assert op_list(after) == ["Loop"]
    assert [str(miss.refusal) for miss in report.near_misses] == ["there is no kernel for CUDA devices"]
