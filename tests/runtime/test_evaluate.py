"""Evaluating pieces of graphs: batches, failures that cost no other results, types, and bodies."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import helpers
from onnxopt import ir
from onnxopt.runtime import evaluate as module
from onnxopt.runtime.evaluate import EMBEDDED_BYTES, evaluate


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of nodes of every session that is made."""
    made: list[int] = []
    run = module._run

    def counted(batch: list[ir.Node], *arguments: object) -> object:
        made.append(len(batch))
        return run(batch, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_run", counted)
    return made


def found(proto: onnx.ModelProto, *names: str) -> dict[str, np.ndarray]:
    """What `evaluate` gives for the named values of a model whose nodes read constants only."""
    model = ir.load(proto)
    wanted = [value for node in model.graph for value in node.outputs if value.name in names]
    results = evaluate(list(model.graph), wanted, model.graph.opset_imports, model.ir_version)
    return {value.name or "": array for value, array in results.items()}


def constant_model(body: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model without inputs whose values all are constant."""
    weights = weights or {"w": np.array([1, 4, 9], np.float32)}
    return helpers.model(f"g () => (float[N] y) {{ {body} }}", opset=20, ir_version=9, **weights)


def test_chain_is_one_session(sessions: list[int]) -> None:
    results = found(constant_model("a = Sqrt (w) b = Neg (a) y = Add (b, w)"), "y")
    np.testing.assert_array_equal(results["y"], np.float32([0, 2, 6]))
    assert sessions == [3]


def test_thousand_small_nodes_are_one_session(sessions: list[int]) -> None:
    body = " ".join(f"v{index} = Add (w, w)" for index in range(1000)) + " y = Neg (w)"
    results = found(constant_model(body), *(f"v{index}" for index in range(1000)))
    assert len(results) == 1000 and sessions == [1001]


def test_inner_values_can_be_wanted_too() -> None:
    results = found(constant_model("a = Sqrt (w) y = Neg (a)"), "a", "y")
    np.testing.assert_array_equal(results["a"], -results["y"])


def test_only_what_is_wanted_is_given() -> None:
    assert list(found(constant_model("a = Sqrt (w) y = Neg (a)"), "y")) == ["y"]


def test_nothing_wanted_costs_nothing(sessions: list[int]) -> None:
    assert found(constant_model("y = Neg (w)")) == {}
    assert sessions == []


BAD = "s{0} = Constant <value = int64[1] {{77}}> () r{0} = Reshape (w, s{0})"
"""A node that onnxruntime fails on: three elements do not make 77."""


@pytest.mark.parametrize("position", range(4))
def test_a_node_that_fails_costs_no_other_results(position: int) -> None:
    parts = [f"g{index} = Neg (w)" for index in range(4)]
    parts.insert(position, BAD.format(0))
    results = found(constant_model(" ".join(parts) + " y = Identity (w)"), "g0", "g1", "g2", "g3", "r0")
    assert sorted(results) == ["g0", "g1", "g2", "g3"]


def test_what_depends_on_a_failure_fails_too() -> None:
    body = f"a = Neg (w) {BAD.format(0)} b = Abs (r0) c = Exp (b) y = Abs (a)"
    assert sorted(found(constant_model(body), "a", "b", "c", "y")) == ["a", "y"]


def test_values_that_cross_a_split_are_kept() -> None:
    body = f"a = Neg (w) b = Exp (a) {BAD.format(0)} c = Add (a, b) y = Mul (c, b)"
    results = found(constant_model(body), "y")
    a = -np.array([1, 4, 9], np.float32)
    np.testing.assert_allclose(results["y"], (a + np.exp(a)) * np.exp(a), rtol=1e-6)


def test_failures_cost_a_bounded_number_of_sessions(sessions: list[int]) -> None:
    body = " ".join(BAD.format(index) for index in range(200)) + " y = Neg (w)"
    found(constant_model(body), *(f"r{index}" for index in range(200)))
    assert len(sessions) <= module.MAX_SPLITS


def test_ops_that_onnxruntime_does_not_know_are_left_out() -> None:
    assert sorted(found(constant_model("a = NoSuchOp (w) y = Neg (w)"), "a", "y")) == ["y"]


def test_inputs_that_are_not_constant_are_left_out() -> None:
    proto = helpers.model("g (float[3] x) => (float[3] y) { a = Neg (w) y = Add (x, a) }", w=np.ones(3, np.float32))
    assert sorted(found(proto, "a", "y")) == ["a"]


@pytest.mark.parametrize("count", [EMBEDDED_BYTES // 4, EMBEDDED_BYTES // 4 + 1])
def test_small_and_large_constants(count: int) -> None:
    weights = np.arange(count, dtype=np.float32)
    np.testing.assert_array_equal(found(constant_model("y = Neg (w)", w=weights), "y")["y"], -weights)


@pytest.mark.parametrize(
    "array",
    [
        np.array([1.5, -2], np.float16),
        np.array([1.5, -2], np.float64),
        np.array([-1, 1 << 62], np.int64),
        np.array([0, 255], np.uint8),
        np.array([True, False]),
        np.zeros((0, 3), np.float32),
        np.array(7, np.int32),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_types_and_shapes(array: np.ndarray) -> None:
    (result,) = found(constant_model("y = Identity (w)", w=array), "y").values()
    assert result.shape == array.shape
    np.testing.assert_array_equal(result, array)


def test_types_that_numpy_does_not_have() -> None:
    proto = helpers.model("g () => (float[2] y) { y = Cast <to = 1> (w) }", opset=21, ir_version=10)
    bits = np.array([0x3FC0, 0xC000], np.uint16)
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.BFLOAT16, dims=[2], raw_data=bits.tobytes())
    proto.graph.initializer.append(tensor)
    np.testing.assert_array_equal(found(proto, "y")["y"], np.float32([1.5, -2]))


def test_bodies_read_constants_from_outside() -> None:
    body = """
        c = Constant <value = bool {1}> ()
        y = If (c) < then_branch = t () => (float[3] p) { p = Neg (w) }, else_branch = e () => (float[3] q) { q = Abs (w) } >
    """
    np.testing.assert_array_equal(found(constant_model(body), "y")["y"], -np.float32([1, 4, 9]))


def test_strings_are_read_and_not_made() -> None:
    words = {"w": np.array(["a", "bc"], object), "v": np.array(["a", "b"], object)}
    results = found(constant_model("e = Equal (w, v) c = StringConcat (w, v) y = Not (e)", **words), "e", "c", "y")
    assert sorted(results) == ["e", "y"] and results["e"].tolist() == [True, False]


def test_results_that_are_no_tensors_are_left_out() -> None:
    assert sorted(found(constant_model("s = SequenceConstruct (w, w) y = Neg (w)"), "s", "y")) == ["y"]


@pytest.mark.parametrize("ir_version", [3, 8, 10])
def test_old_models_are_evaluated(ir_version: int) -> None:
    proto = constant_model("y = Neg (w)")
    proto.ir_version = ir_version
    assert "y" in found(proto, "y")
