"""Loops that become Scans."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, ops, run_passes

PASS = "convert_loops"
X = np.random.default_rng(0).normal(0, 1, (4, 3)).astype(np.float32)
X[1, 2], X[2, 0] = np.nan, np.inf
H = np.array([0.5, -1.0, 2.0], np.float32)


def loop(
    body: str,
    *,
    limit: int | None = 4,
    start: str = "h",
    inside: str = "float[3] s",
    results: str = "float[3] s2",
    left: str = "y",
    outputs: str = "float[3] y",
    condition: str = "",
    opset: int = 17,
    **weights: np.ndarray,
) -> onnx.ModelProto:
    text = f"{left} = Loop (n, {condition}, {start}) <body = g1 (int64 i, bool k{', ' * bool(inside)}{inside}) => (bool k2, {results}) {{ {body} }}>"
    given = "" if limit is not None else ", int64 n"
    if limit is not None:
        weights["n"] = np.array(limit)
    return model(f"g (float[4,3] x, float[3] h{given}) => ({outputs}) {{ {text} }}", opset=opset, **weights)


def check(before: onnx.ModelProto, *, converted: bool = True) -> onnx.ModelProto:
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert ("Scan" in ops(after), "Loop" in ops(after)) == (converted, not converted)
    feed = {"x": X, "h": H}
    names = [one.name for one in before.graph.input]
    feeds = [{**feed, "n": np.array(trips)} for trips in (0, 1, 3)] if "n" in names else [feed]
    assert_same(before, after, feeds, rtol=0, atol=0)
    return after


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_gathered_element_is_a_sequence(opset: int) -> None:
    after = check(loop("k2 = Identity(k) e = Gather(x, i) s2 = Add(s, e)", opset=opset))
    assert op_list(after) == ["Scan"]
    assert list(after.graph.node[0].input) == ["h", "x"]


def test_sequence_along_another_axis_is_transposed() -> None:
    body = "k2 = Identity(k) e = Gather<axis = 1>(x, i) m = ReduceSum<keepdims = 0>(e) s2 = Add(s, m)"
    assert op_list(check(loop(body, limit=3))) == ["Transpose", "Scan"]


def test_sequence_longer_than_the_loop_is_cut() -> None:
    assert op_list(check(loop("k2 = Identity(k) e = Gather(x, i) s2 = Add(s, e)", limit=2))) == ["Slice", "Scan"]


def test_other_uses_of_the_iteration_get_a_sequence_of_numbers() -> None:
    after = check(loop("k2 = Identity(k) f = Cast<to = 1>(i) s2 = Add(s, f)"))
    assert op_list(after) == ["Range", "Scan"]


@pytest.mark.parametrize("limit", [1, 5])
def test_loop_without_elements(limit: int) -> None:
    check(loop("k2 = Identity(k) t = Mul(s, s) s2 = Add(t, h)", limit=limit))


@pytest.mark.parametrize("limit", [0, -2, None])
def test_loop_that_may_not_run_stays(limit: int | None) -> None:
    check(loop("k2 = Identity(k) t = Mul(s, s) s2 = Add(t, h)", limit=limit), converted=False)


@pytest.mark.parametrize("limit", [1, 3])
def test_stacked_outputs(limit: int) -> None:
    body = "k2 = Identity(k) s2 = Add(s, h) z = Mul(s, s2)"
    outputs = "float[3] y, float[t,3] w"
    before = loop(body, limit=limit, results="float[3] s2, float[3] z", left="y, w", outputs=outputs)
    check(before)


@pytest.mark.parametrize("reverse", [False, True], ids=["behind", "in front"])
@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("limit", [1, 4])
def test_value_that_grows_by_concat_is_stacked(limit: int, rows: int, reverse: bool) -> None:
    pair = "u, a" if reverse else "a, u"
    body = f"k2 = Identity(k) s2 = Add(s, h) u = Unsqueeze(s2, zero) a2 = Concat<axis = 0>({pair})"
    before = loop(
        body,
        limit=limit,
        start="h, a0",
        inside="float[3] s, float[t,3] a",
        results="float[3] s2, float[u,3] a2",
        left="y, w",
        outputs="float[3] y, float[v,3] w",
        zero=np.array([0]),
        a0=np.full((rows, 3), 7, np.float32),
    )
    check(before)


def test_value_that_grows_along_its_last_axis() -> None:
    body = "k2 = Identity(k) e = Gather(x, i) u = Unsqueeze(e, one) a2 = Concat<axis = -1>(a, u)"
    before = loop(
        body,
        start="a0",
        inside="float[3,t] a",
        results="float[3,u] a2",
        outputs="float[3,v] y",
        one=np.array([1]),
        a0=np.zeros((3, 0), np.float32),
    )
    check(before)


def test_value_that_grows_and_is_read_stays_a_loop() -> None:
    body = "k2 = Identity(k) m = ReduceMax<axes = [0], keepdims = 1>(a) a2 = Concat<axis = 0>(a, m)"
    before = loop(body, start="x", inside="float[t,3] a", results="float[u,3] a2", outputs="float[v,3] y")
    check(before, converted=False)


@pytest.mark.parametrize("step", [1, 3, -2])
def test_counter_is_a_sequence_of_numbers(step: int) -> None:
    body = "k2 = Identity(k) c2 = Add(c, st) f = Cast<to = 1>(c) s2 = Add(s, f)"
    before = loop(
        body,
        start="h, c0",
        inside="float[3] s, int64 c",
        results="float[3] s2, int64 c2",
        left="y, w",
        outputs="float[3] y, int64 w",
        st=np.array(step),
        c0=np.array(5),
    )
    after = check(before)
    (scan,) = [node for node in after.graph.node if node.op_type == "Scan"]
    assert len(scan.output) == 1


def test_result_from_outside_passes_through() -> None:
    body = "k2 = Identity(k) s2 = Identity(h) z = Identity(s)"
    check(loop(body, results="float[3] s2, float[3] z", left="y, w", outputs="float[3] y, float[t,3] w"))


def test_carried_value_that_is_the_element() -> None:
    check(loop("k2 = Identity(k) s2 = Gather(x, i)"))


def test_condition_that_is_read_inside_is_true() -> None:
    check(loop("k2 = Identity(k) z = Where(k, s, h) s2 = Add(z, h)"))


def test_trips_that_a_dim_gives() -> None:
    text = (
        "d = Shape(x) n = Gather(d, zero) y = Loop (n, , h) <body = g1 (int64 i, bool k, float[3] s) => (bool k2, float[3] s2) "
        "{ k2 = Identity(k) e = Gather(x, i) s2 = Add(s, e) }>"
    )
    before = model(f"g (float[N,3] x, float[3] h) => (float[3] y) {{ {text} }}", zero=np.array(0))
    after = check(before)
    (scan,) = [node for node in after.graph.node if node.op_type == "Scan"]
    body = next(one.g for one in scan.attribute if one.name == "body")
    assert op_list(onnx.ModelProto(graph=body)) == ["Add"]


def with_number_of_one_dim(before: onnx.ModelProto) -> onnx.ModelProto:
    before.graph.node[0].attribute[0].g.input[0].type.tensor_type.shape.dim.add().dim_value = 1
    return before


REFUSED = {
    "the number of its iteration or its condition is no scalar": with_number_of_one_dim(
        loop("k2 = Identity(k) f = Cast<to = 1>(i) s2 = Add(s, f)")
    ),
    "its condition may end it": loop(
        "m = ReduceMax<keepdims = 0>(s) k2 = Less(m, h1) s2 = Add(s, h)", h1=np.array(2.5, np.float32)
    ),
    "it has no limit": loop("k2 = Identity(k) s2 = Add(s, h)", limit=(1 << 63) - 1, condition="c0", c0=np.array(False)),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_says_why_not(sentence: str) -> None:
    after, report = run_passes(REFUSED[sentence], PASS, explain=True)
    assert "Loop" in ops(after)
    assert [str(miss.refusal) for miss in report.near_misses] == [sentence]


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize(("axis", "new_axis"), [(0, 1), (1, 1), (-1, 1), (0, 0), (1, 0), (-1, 0)])
def test_list_that_is_concatenated_in_the_end(axis: int, new_axis: int, opset: int) -> None:
    shape = "float[a,b,c]" if new_axis else "float[a,b]"
    text = (
        "l0 = SequenceEmpty<dtype = 1>() y, l = Loop (n, , h, l0) <body = g1 (int64 i, bool k, float[2,3] s, seq(float[2,3]) a) => "
        "(bool k2, float[2,3] s2, seq(float[2,3]) a2) { k2 = Identity(k) s2 = Add(s, h) z = Mul(s, s2) a2 = SequenceInsert(a, z) }> "
        f"w = ConcatFromSequence<axis = {axis}, new_axis = {new_axis}>(l)"
    )
    before = model(f"g (float[2,3] h) => (float[2,3] y, {shape} w) {{ {text} }}", opset=opset, n=np.array(4))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert not {"Loop", "SequenceEmpty", "ConcatFromSequence"} & set(op_list(after))
    assert_same(before, after, {"h": X[:2]}, rtol=0, atol=0)


@pytest.mark.parametrize(
    "use", ["w = SequenceLength(l)", "w = SequenceAt(l, n)", "m = SequenceErase(l) w = SequenceAt(m, n)"]
)
def test_list_that_is_read_in_the_end(use: str) -> None:
    """By number, or by its length; what else reads it keeps the list."""
    kept = "Erase" in use
    kind = "int64" if "Length" in use else "float[a,b]"
    text = (
        "l0 = SequenceEmpty<dtype = 1>() l = Loop (five, , l0) <body = g1 (int64 i, bool k, seq(float[2,3]) a) => "
        f"(bool k2, seq(float[2,3]) a2) {{ k2 = Identity(k) a2 = SequenceInsert(a, h) }}> {use}"
    )
    before = model(f"g (float[2,3] h) => ({kind} w) {{ {text} }}", n=np.array(2), five=np.array(5))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert ("Loop" in op_list(after)) == kept
    assert_same(before, after, {"h": X[:2]}, rtol=0, atol=0)
