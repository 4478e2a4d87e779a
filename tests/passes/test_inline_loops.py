"""Loops that run no or one time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, evaluate, model, op_list, ops, run_passes

PASS = "inline_loops"
X = np.array([[1, -2, np.nan], [np.inf, -np.inf, -0.0]], np.float32)
FEED = {"x": X}
SCAN_OUTPUTS = "float[2,3] y, float[n,2,3] z"
BODY = "k2 = Identity(k) s2 = Add(s, x) c2 = Mul(x, x)"


def loop(
    trips: int | None,
    condition: bool | None = None,
    *,
    body: str = BODY,
    results: str = "bool k2, float[2,3] s2, float[2,3] c2",
    left: str = "y, z",
    outputs: str = SCAN_OUTPUTS,
    opset: int = 17,
    shape: str = "2,3",
    **weights: np.ndarray,
) -> onnx.ModelProto:
    """A Loop over one carried value `s`, which starts as `x`."""
    names = "M" if trips is not None else "", "C" if condition is not None else ""
    if trips is not None:
        weights["M"] = np.array(trips)
    if condition is not None:
        weights["C"] = np.array(condition)
    text = f"{left} = Loop ({names[0]}, {names[1]}, x) <body = b (int64 i, bool k, float[{shape}] s) => ({results}) {{ {body} }}>"
    return model(f"g (float[{shape}] x) => ({outputs}) {{ {text} }}", opset=opset, **weights)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("condition", [None, True])
def test_one_trip(condition: bool | None, opset: int) -> None:
    before = loop(1, condition, opset=opset)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Add", "Mul", "Unsqueeze"]
    assert_same(before, after, FEED, rtol=0, atol=0)


@pytest.mark.parametrize("trips", [0, 1])
def test_number_of_one_dim(trips: int) -> None:
    body = "k2 = Identity(k) f = Cast<to = 1>(i) s2 = Add(s, f) c2 = Identity(f)"
    before = loop(trips, body=body, results="bool k2, float[2,3] s2, float[1] c2", outputs="float[2,3] y, float[n,1] z")
    before.graph.node[0].attribute[0].g.input[0].type.tensor_type.shape.dim.add().dim_value = 1
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert "Loop" not in ops(after)
    assert_same(before, after, FEED, rtol=0, atol=0)


@pytest.mark.parametrize(("trips", "condition"), [(0, None), (0, True), (-3, None), (5, False), (None, False)])
def test_no_trip(trips: int | None, condition: bool | None) -> None:
    before = loop(trips, condition)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert "Loop" not in ops(after)
    assert_same(before, after, FEED, rtol=0, atol=0)


@pytest.mark.parametrize(("trips", "condition"), [(2, None), (2, True), (1 << 40, False)])
def test_other_counts(trips: int, condition: bool | None) -> None:
    before = loop(trips, condition)
    after, _ = run_passes(before, PASS)
    assert ("Loop" in ops(after)) == (condition is not False)
    assert_same(before, after, FEED, rtol=0, atol=0)


def test_do_once() -> None:
    before = loop(None, body="k2 = Constant<value = bool {0}>() s2 = Add(s, x) c2 = Mul(s, s)")
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert "Loop" not in ops(after)
    assert_same(before, after, FEED, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["M", "C"])
def test_refuses_what_the_caller_gives(name: str) -> None:
    before = loop(1, True)
    kind = onnx.TensorProto.INT64 if name == "M" else onnx.TensorProto.BOOL
    before.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, []))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Loop"]
    given = np.array(3) if name == "M" else np.array(False)
    assert_same(before, after, [FEED, {**FEED, name: given}], rtol=0, atol=0)


def test_one_trip_at_most_when_the_body_ends_the_loop() -> None:
    before = loop(1, True, body="k2 = Less(i, i) s2 = Add(s, x) c2 = Mul(s, s)")
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert "Loop" not in ops(after)
    assert_same(before, after, FEED, rtol=0, atol=0)


@pytest.mark.parametrize("trips", [0, 1])
@pytest.mark.parametrize(
    ("body", "results", "left", "outputs"),
    [
        ("k2 = Identity(k)", "bool k2, float[2,3] s", "y", "float[2,3] y"),
        ("k2 = Identity(k) c2 = Neg(x)", "bool k2, float[2,3] s, float[2,3] c2", "y, z", SCAN_OUTPUTS),
        ("k2 = Identity(k) s2 = Neg(x)", "bool k2, float[2,3] s2, float[2,3] s2", "y, z", SCAN_OUTPUTS),
        ("k2 = Identity(k) s2 = Neg(s) j = Identity(i)", "bool k2, float[2,3] s2, int64 j", "y, z", "float[2,3] y, int64[n] z"),
        ("k2 = Identity(k) s2 = Neg(s) j = Identity(k)", "bool k2, float[2,3] s2, bool j", "y, z", "float[2,3] y, bool[n] z"),
        ("k2 = Identity(k) s2 = Neg(s) w = Identity(one)", "bool k2, float[2,3] s2, float w", "y, z", "float[2,3] y, float[n] z"),
        ("k2 = Identity(k) s2 = Neg(s) c2 = Abs(s)", "bool k2, float[2,3] s2, float[2,3] c2", "y, unused", "float[2,3] y"),
    ],
    ids=["passed through", "passed and scanned", "carried and scanned", "counter", "condition", "constant", "unused scan"],
)  # fmt: skip
def test_results(body: str, results: str, left: str, outputs: str, trips: int) -> None:
    weights = {"one": np.array(1, np.float32)} if "one" in body else {}
    before = loop(trips, body=body, results=results, left=left, outputs=outputs, **weights)
    after, _ = run_passes(before, PASS, "eliminate_noops", "eliminate_dead_code")
    assert "Loop" not in ops(after)
    assert_same(before, after, FEED, rtol=0, atol=0)


@pytest.mark.parametrize("trips", [0, 1])
def test_carried_values_that_change_places(trips: int) -> None:
    text = """y, z = Loop (M, , a, b) <body = g (int64 i, bool k, float[2,3] p, float[2,3] q) => (bool k2, float[2,3] q, float[2,3] p) {
        k2 = Identity(k)
    }>"""
    before = model(f"g (float[2,3] a, float[2,3] b) => (float[2,3] y, float[2,3] z) {{ {text} }}", M=np.array(trips))
    after, _ = run_passes(before, PASS)
    assert "Loop" not in ops(after)
    found = evaluate(after, {"a": X, "b": np.abs(X)})
    expected = [X, np.abs(X)] if trips == 0 else [np.abs(X), X]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_trip_and_a_scanned_shape_that_is_unknown() -> None:
    before = loop(
        0, shape="N,3", outputs="float[m,3] y, float[n,m,3] z", results="bool k2, float[r,3] s2, float[r,3] c2"
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Loop"]


def test_a_carried_value_that_grows() -> None:
    before = loop(
        1, body="k2 = Identity(k) s2 = Concat<axis=0>(s, x)", results="bool k2, float[r,3] s2", left="y", outputs="float[m,3] y", shape="N,3"
    )  # fmt: skip
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Concat"]
    assert_same(before, after, FEED, rtol=0, atol=0)


def test_initializers_of_the_body() -> None:
    text = """y = Loop (M, , x) <body = b (int64 i, bool k, float[2,3] s) => (bool k2, float[2,3] s2) <float[3] w = {1, 2, 3}> {
        k2 = Identity(k)
        s2 = Add(s, w)
    }>"""
    before = model(f"g (float[2,3] x) => (float[2,3] y) {{ {text}\n }}", M=np.array(1))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Add"]
    assert_same(before, after, FEED, rtol=0, atol=0)


def test_names_of_inner_values_do_not_clash() -> None:
    text = """a = Exp(x)
        p = Loop (M, , x) <body = b (int64 i, bool k, float[2,3] s) => (bool k2, float[2,3] s2) {
            k2 = Identity(k)
            t = Neg(s)
            s2 = Abs(t)
        }>
        y = Add(a, p)"""
    before = model(f"g (float[2,3] x) => (float[2,3] y) {{ {text} }}", M=np.array(1))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Exp", "Neg", "Abs", "Add"]
    assert_same(before, after, FEED, rtol=0, atol=0)


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (1, 2), (2, 1), (0, 1), (1, 0)])
def test_nested_loops(outer: int, inner: int) -> None:
    text = """y = Loop (M, , x) <body = b (int64 i, bool k, float[2,3] s) => (bool k2, float[2,3] s2) {
        k2 = Identity(k)
        s2 = Loop (N, , s) <body = c (int64 j, bool l, float[2,3] r) => (bool l2, float[2,3] r2) {
            l2 = Identity(l)
            q = Add(r, x)
            r2 = Neg(q)
        }>
    }>"""
    before = model(f"g (float[2,3] x) => (float[2,3] y) {{ {text} }}", M=np.array(outer), N=np.array(inner))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert ("Loop" in ops(after)) == (2 in (outer, inner) and outer != 0)
    assert_same(before, after, FEED, rtol=0, atol=0)


def test_trip_count_from_shapes() -> None:
    text = """s0 = Shape(x)
        f = Gather(s0, zero)
        m = Sub(f, one)
        y = Loop (m, , x) <body = b (int64 i, bool k, float[2,3] s) => (bool k2, float[2,3] s2) {
            k2 = Identity(k)
            s2 = Neg(s)
        }>"""
    before = model(f"g (float[2,3] x) => (float[2,3] y) {{ {text} }}", zero=np.array(0), one=np.array(1))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Neg"]
    assert_same(before, after, FEED, rtol=0, atol=0)


def test_inside_a_branch() -> None:
    inner = "t = Loop (M, , x) <body = b (int64 i, bool k, float[2,3] s) => (bool k2, float[2,3] s2) { k2 = Identity(k) s2 = Neg(s) }>"
    branches = (
        f"then_branch = a () => (float[2,3] t) {{ {inner} }}, else_branch = c () => (float[2,3] e) {{ e = Abs(x) }}"
    )
    before = model(f"g (float[2,3] x, bool flag) => (float[2,3] y) {{ y = If(flag) <{branches}> }}", M=np.array(1))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert [[node.op_type for node in one.g.node] for one in after.graph.node[0].attribute] == [["Neg"], ["Abs"]]
    assert_same(before, after, [{**FEED, "flag": np.array(flag)} for flag in (True, False)])


def test_sequences_that_a_loop_carries() -> None:
    text = """q = SequenceEmpty<dtype=1>()
        r = Loop (M, , q) <body = b (int64 i, bool k, seq(float[2,3]) s) => (bool k2, seq(float[2,3]) s2) {
            k2 = Identity(k)
            s2 = SequenceInsert(s, x)
        }>
        y = SequenceAt(r, zero)"""
    before = model(f"g (float[2,3] x) => (float[2,3] y) {{ {text} }}", M=np.array(1), zero=np.array(0))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert "Loop" not in ops(after)
    assert_same(before, after, FEED, rtol=0, atol=0)
