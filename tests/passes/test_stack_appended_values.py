"""Tensors and lists that Loops append to become stacked outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "stack_appended_values"
X = np.random.default_rng(0).normal(0, 1, (6, 3)).astype(np.float32)
CONSTANTS = {"zero": np.array([0]), "one": np.array([1]), "half": np.array(0.5, np.float32), "number": np.array(1)}


def feeds(*limits: int) -> list[dict[str, np.ndarray]]:
    return [{"n": np.array(limit), "x": X} for limit in limits]


def body_inputs(made: onnx.ModelProto) -> int:
    """How many values the first loop carries."""
    loop = next(node for node in made.graph.node if node.op_type == "Loop")
    return len(loop.input) - 2


def growing(step: str, start: str = "a0", kind: str = "float[t,3]", outputs: str = "float[v,3] y") -> onnx.ModelProto:
    """A loop that runs at most n times, and as long as the elements' sum is positive, and appends to `a`."""
    text = f"""y = Loop (n, , {start}) <body = g1 (int64 i, bool k, {kind} a) => (bool k2, float[u,w] a2) {{
        e = Gather(x, i) m = ReduceSum<keepdims = 0>(e) k2 = Less(m, far) {step} }}>"""
    return model(
        f"g (int64 n, float[6,3] x) => ({outputs}) {{ {text} }}",
        a0=np.full((2, 3), 7, np.float32),
        none=np.zeros((0, 3), np.float32),
        wide=np.zeros((3, 0), np.float32),
        far=np.array(X[4].sum(), np.float32),
        **CONSTANTS,
    )


GROWN = {
    "behind": growing("u = Unsqueeze(e, zero) a2 = Concat<axis = 0>(a, u)"),
    "in front": growing("u = Unsqueeze(e, zero) a2 = Concat<axis = 0>(u, a)"),
    "from nothing": growing("u = Unsqueeze(e, zero) a2 = Concat<axis = -2>(a, u)", start="none"),
    "along the last axis": growing(
        "u = Unsqueeze(e, one) a2 = Concat<axis = 1>(a, u)", start="wide", kind="float[3,t]", outputs="float[3,v] y"
    ),
    "in front, along the last axis": growing(
        "u = Unsqueeze(e, one) a2 = Concat<axis = -1>(u, a)", start="wide", kind="float[3,t]", outputs="float[3,v] y"
    ),
}


@pytest.mark.parametrize("name", GROWN)
def test_tensor_that_grows(name: str) -> None:
    before = GROWN[name]
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert body_inputs(after) == 0
    assert_same(before, after, feeds(0, 1, 4, 6), rtol=0, atol=0)


def test_tensor_that_is_read_while_it_grows_stays() -> None:
    before = growing("u = ReduceMax<axes = [0], keepdims = 1>(a) a2 = Concat<axis = 0>(a, u)")
    _, report = run_passes(before, PASS)
    assert not report.patches


LIST = """l0 = SequenceEmpty<dtype = 1>() l = Loop (n, , l0) <body = g1 (int64 i, bool k, seq(float[3]) a) => (bool k2, seq(float[3]) a2) {
    k2 = Identity(k) e = Gather(x, i) f = Mul(e, half) a2 = SequenceInsert(a, f) }> """
USES = {
    "stacked": ("y = ConcatFromSequence<axis = 0, new_axis = 1>(l)", "float[v,3] y"),
    "concatenated": ("y = ConcatFromSequence<axis = 0>(l)", "float[v] y"),
    "read by number": ("y = SequenceAt(l, number)", "float[3] y"),
    "counted": ("y = SequenceLength(l)", "int64 y"),
    "read by another loop": (
        """m = SequenceLength(l) y = Loop (m, , a0) <body = g2 (int64 j, bool o, float[3] s) => (bool o2, float[3] s2) {
            o2 = Identity(o) b = SequenceAt(l, j) c = Sub(s, b) s2 = Mul(c, half) }>""",
        "float[3] y",
    ),
}


@pytest.mark.parametrize("name", USES)
def test_list(name: str) -> None:
    use, output = USES[name]
    before = model(f"g (int64 n, float[6,3] x) => ({output}) {{ {LIST} {use} }}", a0=X[0].copy(), **CONSTANTS)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert not {"SequenceEmpty", "ConcatFromSequence", "SequenceAt", "SequenceLength"} & set(op_list(after))
    assert body_inputs(after) == 0
    # onnxruntime concatenates no empty list.
    assert_same(
        before, after, feeds(2, 6) + (feeds(0) if name in ("counted", "read by another loop") else []), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", USES)
def test_list_that_begins_with_elements(name: str) -> None:
    use, output = USES[name]
    text = LIST.replace("SequenceEmpty<dtype = 1>()", "SequenceConstruct(a0, a1)")
    rows = {"a0": X[0].copy(), "a1": X[2].copy()}
    before = model(f"g (int64 n, float[6,3] x) => ({output}) {{ {text} {use} }}", **rows, **CONSTANTS)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert not {"SequenceConstruct", "ConcatFromSequence", "SequenceAt", "SequenceLength"} & set(op_list(after))
    assert body_inputs(after) == 0
    assert_same(before, after, feeds(0, 2, 4), rtol=0, atol=0)


def test_list_that_begins_with_an_element_of_another_shape_stays() -> None:
    text = LIST.replace("SequenceEmpty<dtype = 1>()", "SequenceConstruct(a0)").replace("seq(float[3])", "seq(float[t])")
    before = model(
        f"g (int64 n, float[6,3] x) => (float[v] y) {{ {text} y = ConcatFromSequence<axis = 0>(l) }}",
        a0=np.ones(2, np.float32),
        **CONSTANTS,
    )
    _, report = run_passes(before, PASS)
    assert not report.patches


def test_element_from_outside() -> None:
    text = LIST.replace("SequenceInsert(a, f)", "SequenceInsert(a, row)")
    before = model(
        f"g (int64 n, float[6,3] x) => (float[v,3] y) {{ {text} y = ConcatFromSequence<axis = 0, new_axis = 1>(l) }}",
        row=X[1].copy(),
        **CONSTANTS,
    )
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert body_inputs(after) == 0
    assert_same(before, after, feeds(1, 3), rtol=0, atol=0)


def test_elements_of_unknown_shape_stay_where_the_loop_may_not_run() -> None:
    text = LIST.replace("Gather(x, i)", "Gather(z, i)").replace("[3]", "[r]")
    before = model(
        f"g (int64 n, float[6,r] z) => (float[v,r] y) {{ {text} y = ConcatFromSequence<axis = 0, new_axis = 1>(l) }}",
        **CONSTANTS,
    )
    _, report = run_passes(before, PASS)
    assert not report.patches
