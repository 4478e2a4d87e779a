"""LSTM, GRU and RNN as products of whole sequences and Scans."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from helpers import assert_same, op_list, run_passes, set_costs
from onnxopt.loops.recurrent_ops import GATES


@pytest.fixture(autouse=True)
def any_size_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    set_costs(monkeypatch, lstm_hidden=0, gru_hidden=0)


PASSES = ("unfold_recurrent_ops", "fuse_recurrences")
STEPS, BATCH, WIDTH, HIDDEN = 9, 2, 3, 6
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).normal(0, 0.5, shape).astype(np.float32)


def recurrent(
    op: str,
    direction: str = "forward",
    *,
    bias: bool = True,
    initial: str = "none",
    outputs: int | None = None,
    opset: int = 17,
    batch: int | str = BATCH,
    steps: int | str = STEPS,
    lengths: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """One node. `initial` says whether its initial states are absent, constant or inputs of the model."""
    count, gates = DIRECTIONS[direction], GATES[op]
    weights = {"w": normal(count, gates * HIDDEN, WIDTH), "r": normal(count, gates * HIDDEN, HIDDEN)}
    names = ["x", "w", "r", "b" if bias else "", "lengths" if lengths else ""]
    if bias:
        weights["b"] = normal(count, 2 * gates * HIDDEN)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, batch, WIDTH])]
    if lengths:
        weights["lengths"] = np.array([STEPS, 3], np.int32)
    for name in ("h0", "c0")[: 2 if op == "LSTM" else 1] if initial != "none" else ():
        names.append(name)
        if initial == "constant":
            weights[name] = normal(count, BATCH, HIDDEN)
        else:
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [count, batch, HIDDEN]))
    made = ["y", "y_h", "y_c"][: outputs or (3 if op == "LSTM" else 2)]
    node = helper.make_node(op, names, made, hidden_size=HIDDEN, direction=direction, **attributes)
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made]
    graph = helper.make_graph([node], "g", inputs, results, [numpy_helper.from_array(a, n) for n, a in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def feeds(proto: onnx.ModelProto, steps: int = STEPS) -> dict[str, np.ndarray]:
    count = next(one.dims[0] for one in proto.graph.initializer if one.name == "w")
    return {
        one.name: normal(steps, BATCH, WIDTH) if one.name == "x" else normal(count, BATCH, HIDDEN)
        for one in proto.graph.input
    }


def check(before: onnx.ModelProto) -> list[str]:
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert not set(GATES) & set(op_list(after))
    assert "Scan" not in op_list(after)
    for library in (False, True):
        assert_same(before, after, feeds(before), rtol=1e-4, atol=1e-5, library=library)
    return op_list(after)


@pytest.mark.parametrize(
    ("op", "direction", "initial", "bias"),
    [*itertools.product(GATES, DIRECTIONS, ("none", "constant", "input"), (False, True))],
)
def test_forms(op: str, direction: str, initial: str, bias: bool) -> None:
    found = check(recurrent(op, direction, initial=initial, bias=bias))
    assert found.count("FusedRecurrence") == DIRECTIONS[direction]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_reset_after_the_product(bias: bool, direction: str) -> None:
    check(recurrent("GRU", direction, bias=bias, linear_before_reset=1))


@pytest.mark.parametrize(
    ("op", "activations"),
    [
        ("RNN", ["Relu"]),
        ("RNN", ["Sigmoid"]),
        ("GRU", ["Sigmoid", "Relu"]),
        ("LSTM", ["Sigmoid", "Relu", "Tanh"]),
        ("LSTM", ["Sigmoid", "Tanh", "Sigmoid"]),
    ],
)
def test_activations(op: str, activations: list[str]) -> None:
    check(recurrent(op, activations=activations))


def test_activations_of_each_direction() -> None:
    check(recurrent("RNN", "bidirectional", activations=["Tanh", "Relu"]))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("opset", [7, 11, 13, 14, 21])
def test_opsets(opset: int, op: str) -> None:
    before = recurrent(op, opset=opset)
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert ("FusedRecurrence" in op_list(after)) == (opset >= 9)
    for library in (False, True):
        assert_same(before, after, feeds(before), rtol=1e-4, atol=1e-5, library=library)


@pytest.mark.parametrize("initial", ["none", "input"])
@pytest.mark.parametrize("op", GATES)
def test_open_dims(op: str, initial: str) -> None:
    check(recurrent(op, initial=initial, batch="N", steps="T"))


@pytest.mark.parametrize("outputs", [1, 2])
def test_outputs_that_are_left_out(outputs: int) -> None:
    check(recurrent("LSTM", outputs=outputs))


def test_lstm_of_several_samples_stays_where_the_target_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    set_costs(monkeypatch, lstm_hidden=HIDDEN)
    for batch, found in ((1, "FusedRecurrence"), (BATCH, "LSTM")):
        after, _ = run_passes(recurrent("LSTM", batch=batch), *PASSES, target="cpu")
        assert found in op_list(after)


REFUSED = {
    "lengths of their own": {"lengths": True},
    "clips": {"clip": 3.0},
    "activations are": {"activations": ["Sigmoid", "Softsign", "Tanh"]},
    "couples gates": {"input_forget": 1},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_stays(sentence: str) -> None:
    before = recurrent("LSTM", **REFUSED[sentence])  # type: ignore[arg-type]
    after, report = run_passes(before, *PASSES, target="cpu", explain=True)
    assert op_list(after) == ["LSTM"]
    assert sentence in str(report.near_misses[0].refusal)
