"""Sequences and optional values of known structure."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "simplify_sequences"
FEEDS = {"x": np.array([[1, -2, np.nan], [np.inf, 3, -0.0]], np.float32), "y": np.full((2, 3), 5, np.float32), "at": np.array(0)}  # fmt: skip
NUMBERS = {"zero": np.array(0), "one": np.array(1), "last": np.array(-1), "front": np.array(-2), "parts": np.array([2, 1]), "two": np.array(2)}  # fmt: skip

LISTS = {
    "constructed": "s = SequenceConstruct(x, y, x)",
    "inserted": "e = SequenceEmpty() a = SequenceInsert(e, x) b = SequenceInsert(a, y) s = SequenceInsert(b, x)",
    "inserted at places": "e = SequenceEmpty() a = SequenceInsert(e, x) b = SequenceInsert(a, y, zero) s = SequenceInsert(b, x, last)",
    "inserted from the back": "a = SequenceConstruct(x, y) s = SequenceInsert(a, y, front)",
    "erased": "a = SequenceConstruct(x, y, y, x) s = SequenceErase(a, front)",
    "erased last": "a = SequenceConstruct(y, x, x) b = SequenceErase(a) s = SequenceInsert(b, y)",
    "passed on": "a = SequenceConstruct(x, y) s = Identity(a)",
    "split": "s = SplitToSequence<axis = 1>(x)",
    "split by a length": "s = SplitToSequence<axis = 1>(x, two)",
    "split into parts": "s = SplitToSequence<axis = -1>(x, parts)",
}
READS = {
    "first": ("r = SequenceAt(s, zero)", "float[a, b]"),
    "last": ("r = SequenceAt(s, last)", "float[a, b]"),
    "length": ("r = SequenceLength(s)", "int64"),
    "concat": ("r = ConcatFromSequence<axis = -1>(s)", "float[a, b]"),
}


def text(body: str, result: str = "float[a, b]") -> str:
    return f"g (float[2, 3] x, float[2, 3] y, int64 at) => ({result} r) {{ {body} }}"


@pytest.mark.parametrize("made", LISTS)
@pytest.mark.parametrize("read", READS)
def test_sequence_disappears(made: str, read: str) -> None:
    reading, result = READS[read]
    before = model(text(f"{LISTS[made]} {reading}", result), opset=18, **NUMBERS)
    after, _ = run_passes(before, PASS)
    assert not any("Sequence" in op for op in op_list(after))
    assert_same(before, after, FEEDS, rtol=0, atol=0)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_new_axis_of_a_concat(axis: int, opset: int) -> None:
    body = f"s = SequenceConstruct(x, y, x) r = ConcatFromSequence<axis = {axis}, new_axis = 1>(s)"
    before = model(text(body, "float[a, b, c]"), opset=opset)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Unsqueeze"] * 3 + ["Concat"]
    assert_same(before, after, FEEDS)


def test_elements_without_the_split_dim() -> None:
    before = model(
        text("s = SplitToSequence<axis = 1, keepdims = 0>(x) r = SequenceAt(s, last)", "float[a]"), **NUMBERS
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Gather"]
    assert_same(before, after, FEEDS)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(
    ("split", "result"),
    [("axis = 1>(x)", "float[a, b]"), ("axis = -1, keepdims = 0>(x)", "float[a]"), ("axis = 1>(x, one)", "float[a, b]")],
    ids=["parts of one", "elements", "a length of one"],
)  # fmt: skip
def test_places_of_run_time_in_what_was_split_into_ones(split: str, result: str, opset: int) -> None:
    body = f"s = SplitToSequence<{split} r = SequenceAt(s, at) n = SequenceLength(s)"
    before = model(f"g (float[t, u] x, int64 at) => ({result} r, int64 n) {{ {body} }}", opset=opset, **NUMBERS)
    after, _ = run_passes(before, PASS)
    assert not any("Sequence" in op for op in op_list(after))
    for place in (0, 1, -1):
        assert_same(before, after, {"x": FEEDS["x"], "at": np.array(place)}, rtol=0, atol=0)


@pytest.mark.parametrize(
    "body",
    ["s = SequenceConstruct(x, y) r = SequenceAt(s, at)", "a = SequenceConstruct(x, y) s = SequenceInsert(a, x, at) r = SequenceAt(s, last)", "s = SplitToSequence<axis = 1>(x, two) r = SequenceAt(s, at)", "s = SplitToSequence<axis = 0, keepdims = 0>(x, one) r = SequenceAt(s, at)"],
    ids=["read", "inserted", "longer parts", "dims that are understood differently"],
)  # fmt: skip
def test_refuses_places_of_run_time(body: str) -> None:
    before = model(text(body), **NUMBERS)
    after, _ = run_passes(before, PASS)
    assert op_list(after)[-1] == "SequenceAt"
    assert_same(before, after, FEEDS)


@pytest.mark.parametrize("place", [2, -3, 100])
def test_refuses_places_outside(place: int) -> None:
    before = model(text("s = SequenceConstruct(x, y) r = SequenceAt(s, place)"), place=np.array(place))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["SequenceConstruct", "SequenceAt"]


def test_empty_sequence_has_no_concat_and_a_length() -> None:
    before = model(text("s = SequenceEmpty() r = SequenceLength(s)", "int64"))
    assert op_list(run_passes(before, PASS)[0]) in ([], ["Identity"])


def test_optional_that_holds_a_value_is_that_value() -> None:
    before = model(text("o = Optional(x) p = OptionalGetElement(o) r = Neg(p)"), opset=18)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Neg"]
    assert_same(before, after, FEEDS)


def test_optional_that_holds_a_value_is_there() -> None:
    before = model(text("o = Optional(x) p = OptionalHasElement(o) r = Not(p)", "bool"), opset=18)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Not"]
    assert_same(before, after, FEEDS)
