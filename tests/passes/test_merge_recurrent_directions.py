"""Recurrent ops over turned sequences, and pairs of both directions."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes, set_costs
from onnxopt.loops.recurrent_ops import GATES

PASSES = ("merge_recurrent_directions", "eliminate_dead_code")
STEPS, BATCH, WIDTH, HIDDEN = 5, 2, 3, 4
LAST = np.array([np.iinfo(np.int64).min])
NUMBERS = {"m1": np.array([-1]), "min": LAST, "a0": np.array([0]), "a1": np.array([1])}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(0, 0.7, shape).astype(np.float32)


def weights(op: str, hidden: int = HIDDEN, tag: str = "", seed: int = 0) -> dict[str, np.ndarray]:
    rows = GATES[op] * hidden
    return {
        f"w{tag}": normal(1, rows, WIDTH, seed=seed),
        f"r{tag}": normal(1, rows, hidden, seed=seed + 1),
        f"b{tag}": normal(1, 2 * rows, seed=seed + 2),
        f"h{tag}": normal(1, BATCH, hidden, seed=seed + 3),
    }


def graph(text: str, outputs: str, *, sizes: str = "5, 2", opset: int = 17, **given: np.ndarray) -> onnx.ModelProto:
    return model(f"g (float[{sizes},3] x) => ({outputs}) {{ {text} }}", opset=opset, **NUMBERS, **given)


def check(before: onnx.ModelProto, *expected: str) -> onnx.ModelProto:
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == list(expected)
    for steps, batch in ((STEPS, BATCH), (1, BATCH)):
        if steps == STEPS or "T" in str(before.graph.input[0].type):
            assert_same(before, after, {"x": normal(steps, batch, WIDTH)}, rtol=1e-5, atol=1e-6)
    return after


def direction(after: onnx.ModelProto) -> bytes:
    node = next(node for node in after.graph.node if node.op_type in GATES)
    return next((one.s for one in node.attribute if one.name == "direction"), b"forward")


TURNS = {
    "slice": "t = Slice(x, m1, min, a0, m1)",
    "indices": "t = Gather(x, down)",
    "indices that a Range gives": "d = Shape(x) n = Gather(d, zero) l = Sub(n, one) i = Range(zero, n, one) j = Sub(l, i) t = Gather(x, j)",
}
SCALARS = {"zero": np.array(0), "one": np.array(1), "down": np.arange(STEPS)[::-1].copy()}


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("turn", TURNS)
def test_turned_sequence(turn: str, op: str) -> None:
    text = f"{TURNS[turn]} s, f = {op} <hidden_size = 4> (t, w, r, b, , h) q = Squeeze(s, a1) y = Slice(q, m1, min, a0, m1)"
    sizes = "5, 2" if turn == "indices" else "T, 2"
    after = check(graph(text, "float[t,2,4] y, float[1,2,4] f", sizes=sizes, **weights(op), **SCALARS), op, "Squeeze")
    assert direction(after) == b"reverse"


def test_turned_sequence_with_the_batch_first() -> None:
    text = (
        "v = Slice(x, m1, min, a1, m1) t = Transpose<perm = [1, 0, 2]>(v) s = GRU <hidden_size = 4> (t, w, r, b) "
        "q = Squeeze(s, a1) y = Gather(q, down)"
    )
    before = graph(text, "float[5,2,4] y", sizes="2, 5", **weights("GRU"), **SCALARS)
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == ["Transpose", "GRU", "Squeeze"]
    assert_same(before, after, {"x": normal(BATCH, STEPS, WIDTH)})


@pytest.mark.parametrize("op", GATES)
def test_final_state_alone(op: str) -> None:
    text = f"{TURNS['slice']} s, f = {op} <hidden_size = 4> (t, w, r, b)"
    assert direction(check(graph(text, "float[1,2,4] f", sizes="T, 2", **weights(op)), op)) == b"reverse"


KEPT = {
    "not turned back": ("s = GRU <hidden_size = 4> (t, w, r, b) y = Squeeze(s, a1)", "slice"),
    "another axis is turned": ("s, f = GRU <hidden_size = 4> (t, w, r, b) y = Squeeze(f, a0)", "axis"),
    "not the whole sequence": ("s, f = GRU <hidden_size = 4> (t, w, r, b) y = Squeeze(f, a0)", "part"),
    "reverse already": ('s, f = GRU <hidden_size = 4, direction = "reverse"> (t, w, r, b) y = Squeeze(f, a0)', "slice"),
}
OTHER_TURNS = {
    "axis": "t = Slice(x, m1, min, a1, m1)",
    "part": "t = Slice(x, m2, min, a0, m1)",
    "slice": TURNS["slice"],
}


@pytest.mark.parametrize("name", KEPT)
def test_sequence_stays_turned(name: str) -> None:
    text, turn = KEPT[name]
    before = graph(f"{OTHER_TURNS[turn]} {text}", "float y", m2=np.array([-2]), **weights("GRU"))
    before.graph.output[0].type.tensor_type.ClearField("shape")
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == op_list(before)


def pair(
    op: str, *, first: str = "forward", attributes: str = "", states: str = "none", tail: str = "", hidden: int = HIDDEN
) -> str:
    """A forward and a reverse op over x, joined."""
    given = {"none": ("", ""), "own": (", , ha", ", , hb"), "one": (", , ha", "")}[states]
    other = "reverse" if first == "forward" else "forward"
    return (
        f'p, pf = {op} <hidden_size = 4, direction = "{first}"{attributes}> (x, wa, ra, ba{given[0]}) '
        f'q, qf = {op} <hidden_size = {hidden}, direction = "{other}"{attributes}> (x, wb, rb, bb{given[1]}) '
        f"ps = Squeeze(p, a1) qs = Squeeze(q, a1) y = Concat<axis = 2>(ps, qs) {tail}"
    )


def both(op: str, hidden: int = HIDDEN) -> dict[str, np.ndarray]:
    return {**weights(op, HIDDEN, "a"), **weights(op, hidden, "b", seed=7)}


@pytest.mark.parametrize(("op", "states", "opset"), [*itertools.product(GATES, ("none", "own"), (11, 17))])
def test_pair(op: str, states: str, opset: int) -> None:
    text = pair(op, states=states)
    if opset < 13:
        text = text.replace("Squeeze(p, a1)", "Squeeze<axes = [1]>(p)").replace(
            "Squeeze(q, a1)", "Squeeze<axes = [1]>(q)"
        )
    before = graph(text, "float[t,2,8] y", sizes="T, 2", opset=opset, **both(op))
    assert direction(check(before, op, "Transpose", "Reshape")) == b"bidirectional"


def test_pair_whose_other_results_are_read() -> None:
    before = graph(
        pair("GRU", tail="z = Neg(ps) e = Exp(pf)"),
        "float[t,2,8] y, float[t,2,4] z, float[1,2,4] e, float[1,2,4] qf",
        sizes="T, 2",
        **both("GRU"),
    )
    after, _ = run_passes(before, *PASSES)
    assert op_list(after).count("GRU") == 1
    assert_same(before, after, {"x": normal(STEPS, BATCH, WIDTH)})


@pytest.mark.parametrize("attributes", [', activations = ["Relu", "Tanh"]', ", linear_before_reset = 1"])
def test_attributes_that_both_have(attributes: str) -> None:
    before = graph(pair("GRU", attributes=attributes), "float[t,2,8] y", sizes="T, 2", **both("GRU"))
    check(before, "GRU", "Transpose", "Reshape")


def test_state_that_the_other_direction_starts_from() -> None:
    """The reverse op needs what the forward one computes."""
    text = pair("GRU", states="own").replace("hb)", "pf)")
    before = graph(text, "float[t,2,8] y", sizes="T, 2", **both("GRU"))
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == op_list(before)
    assert_same(before, after, {"x": normal(STEPS, BATCH, WIDTH)})


SEPARATE = {
    "reverse first": pair("GRU", first="reverse"),
    "one has a state": pair("GRU", states="one"),
    "another size": pair("GRU", hidden=6),
    "another sequence": pair("GRU").replace("(x, wb", "(v, wb").replace("p, pf", "v = Neg(x) p, pf", 1),
    "another attribute": pair("GRU").replace(
        '<hidden_size = 4, direction = "reverse"', '<hidden_size = 4, linear_before_reset = 1, direction = "reverse"'
    ),
}


@pytest.mark.parametrize("name", SEPARATE)
def test_pair_stays(name: str) -> None:
    width = 10 if "size" in name else 8
    before = graph(
        SEPARATE[name], f"float[t,2,{width}] y", sizes="T, 2", **both("GRU", 6 if "size" in name else HIDDEN)
    )
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == op_list(before)


def test_pair_stays_where_each_becomes_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    set_costs(monkeypatch, gru_hidden=0, recurrent_steps=2)
    before = graph(pair("GRU"), "float[5,2,8] y", **both("GRU"))
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert op_list(after) == op_list(before)
