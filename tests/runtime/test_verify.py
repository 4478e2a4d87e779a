"""Verification: equal models pass, different ones are named, what cannot be compared is said to be so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import helpers
import onnxopt
from onnxopt import ir
from onnxopt.errors import ModelError, VerificationError
from onnxopt.passes.base import Context, Pass, PassResult
from onnxopt.runtime.verify import compare, draw_inputs, random_inputs, verify

GRAPH = "g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y) {{ a = Add (x, z) y = {op} (a) }}"


def _model(op: str = "Tanh") -> onnx.ModelProto:
    return helpers.model(GRAPH.format(op=op))


def test_equal_models_pass() -> None:
    report = verify(_model(), _model())
    assert report.equal
    assert len(report.samples) == 3
    assert "Verified: 3 comparisons" in report.sentence()
    json.dumps(report.to_json())


def test_named_dims_vary_and_agree() -> None:
    shapes = [sample.shapes for sample in verify(_model(), _model()).samples]
    assert all(one["x"] == one["z"] for one in shapes)
    assert len({one["x"] for one in shapes}) > 1


def test_stated_dims_are_kept() -> None:
    shapes = [sample.shapes["x"] for sample in verify(_model(), _model(), dims={"N": (7, 9)}).samples]
    assert all(7 <= one[0] <= 9 for one in shapes)
    assert verify(_model(), _model(), dims={"N": 5}).samples[0].shapes["x"] == (5, 4)


def test_same_seed_same_inputs() -> None:
    first, second = (random_inputs(_model(), dims={}, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first["x"], second["x"])


def test_difference_is_named() -> None:
    report = verify(_model(), _model("Sigmoid"))
    assert not report.equal
    assert "'y'" in report.sentence()


def test_custom_ops_are_compared_with_and_without_kernels() -> None:
    proto = helpers.model(
        "g (float[N, 64] x) => (float[N, 64] y) { a = Tanh (x) b = Mul (a, x) c = Add (b, a) y = Exp (c) }"
    )
    optimized = onnxopt.optimize(proto)
    assert [node.domain for node in optimized.graph.node] == ["ai.onnxopt"]
    report = verify(proto, optimized)
    assert report.equal
    assert {sample.ran for sample in report.samples} == {"kernels", "bodies"}


def test_model_that_fails_itself_is_not_called_equal() -> None:
    proto = helpers.model("g (float[N, 4] x, int64[2] s) => (float[A, B] y) { y = Reshape (x, s) }")
    report = verify(proto, proto)
    assert not report.equal
    assert "the original model itself fails" in report.sentence()


def test_optimized_model_that_fails_is_a_difference() -> None:
    good = helpers.model("g (float[N, 4] x) => (float[A, B] y) { y = Identity (x) }")
    bad = helpers.model(
        "g (float[N, 4] x) => (float[A, B] y) { s = Constant <value = int64[2] {1000, 7}> () y = Reshape (x, s) }"
    )
    report = verify(good, bad)
    assert not report.equal
    assert "the optimized model fails" in report.sentence()


def test_model_that_does_not_load_itself_is_not_verifiable(tmp_path: Path) -> None:
    proto = helpers.model("g (float[2] x) => (float[2] y) { y = NoSuchOp (x) }")
    report = verify(proto, proto)
    assert not report.equal
    assert (
        report.sentence().startswith("Not verified: onnxruntime cannot load the model: ")
        and "NoSuchOp" in report.sentence()
    )
    reports = []
    onnxopt.optimize(proto, tmp_path / "out.onnx", verify=True, report=reports.append)
    assert not reports[0].verification.equal and (tmp_path / "out.onnx").exists()


def test_optimized_model_that_does_not_load_is_an_error() -> None:
    bad = helpers.model("g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { y = NoSuchOp (x, z) }")
    with pytest.raises(ModelError, match="NoSuchOp"):
        verify(_model(), bad)


def test_inputs_that_cannot_be_made_are_not_verifiable() -> None:
    proto = helpers.model("g (seq(float[N]) x) => (float[M] y) { y = ConcatFromSequence <axis = 0> (x) }")
    report = verify(proto, proto)
    assert not report.equal
    assert report.sentence() == (
        "Not verified: The input 'x' is no tensor of known rank, so no random input can be made for it."
    )


@pytest.mark.parametrize("least", [40, 300])
def test_larger_last_dims_are_tried_alone(least: int) -> None:
    """As models of sound want them: a batch of one, and many samples."""
    body = 'y = Pad <mode = "reflect"> (x, pads) s = Reshape (state, batch_of_one)'
    proto = helpers.model(
        f"g (float[?, ?] x, float[2, ?, 3] state) => (float[A, B] y, float[2, 1, 3] s) {{ {body} }}",
        pads=np.array([0, 0, 0, least]),
        batch_of_one=np.array([2, 1, 3]),
    )
    report = verify(proto, proto)
    assert report.equal, report.sentence()
    assert all(sample.shapes["x"][0] == 1 and sample.shapes["x"][1] > least for sample in report.samples)


def test_dims_without_a_name_are_stated_by_input_and_axis() -> None:
    proto = helpers.model("g (float[?, 4] x) => (float[?, 4] y) { y = Tanh (x) }")
    assert verify(proto, proto, dims={"x_0": 9}).samples[0].shapes["x"] == (9, 4)


def test_negative_dims_are_open() -> None:
    proto = helpers.model("g (float[?, 4] x) => (float[?, 4] y) { y = Tanh (x) }")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert verify(proto, proto, dims={"x_0": 9}).samples[0].shapes["x"] == (9, 4)


def test_random_models_are_not_verifiable() -> None:
    proto = helpers.model("g (float[2] x) => (float[2] y) { r = RandomNormal <shape = [2]> () y = Add (x, r) }")
    report = verify(proto, proto)
    assert not report.equal
    assert "RandomNormal" in report.sentence()


def test_indices_stay_inside_of_tables() -> None:
    table = np.zeros((5, 3), np.float32)
    proto = helpers.model("g (int64[N] i) => (float[N, 3] y) { y = Gather (table, i) }", table=table)
    for seed in range(5):
        drawn = draw_inputs(ir.load(proto), {}, np.random.default_rng(seed), 100)["i"]
        assert 0 <= drawn.min() <= drawn.max() < 5
    assert verify(proto, proto).equal


def test_external_data_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    proto = helpers.model("g (float[N, 64] x) => (float[N, 64] y) { y = Add (x, w) }", w=np.ones(64, np.float32))
    onnx.save(proto, path, save_as_external_data=True, location="w.data", size_threshold=0)
    onnxopt.optimize(path, tmp_path / "out.onnx")
    assert verify(path, tmp_path / "out.onnx").equal


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        (np.float32([1, NAN, INF, -INF]), np.float32([1, NAN, INF, -INF]), True),
        (np.float32([1, NAN]), np.float32([1, 2]), False),
        (np.float32([1, 2]), np.float32([1, NAN]), False),
        (np.float32([INF]), np.float32([-INF]), False),
        (np.float32([1000, 1e-6]), np.float32([1000, 2e-6]), True),
        (np.float32([1.0]), np.float32([1.01]), False),
        (np.float32([1.0]), np.float64([1.0]), False),
        (np.float32([1.0]), np.float32([[1.0]]), False),
        (np.int64([1, 2]), np.int64([1, 2]), True),
        (np.int64([1 << 60]), np.int64([(1 << 60) + 1]), False),
        (np.array(["a"], object), np.array(["b"], object), False),
        (np.float32([]), np.float32([]), True),
        ([{0: 0.5, 1: 0.25}], [{0: 0.5000001, 1: 0.25}], True),
        ([{0: 0.5, 1: 0.25}], [{0: 0.51, 1: 0.25}], False),
        ([{0: 0.5}], [{1: 0.5}], False),
        ({"a": NAN}, {"a": NAN}, True),
        ({"a": "b"}, {"a": "c"}, False),
    ],
)
def test_comparison(expected: Any, actual: Any, same: bool) -> None:
    assert (not compare(["y"], [expected], [actual])[1]) == same


def test_number_of_outputs_counts() -> None:
    assert compare(["y"], [np.zeros(1)], [])[1]


def test_wrong_pass_is_blamed() -> None:
    class Wrong(Pass):
        """Replaces Tanh by Sigmoid, which it must not."""

        name = "wrong"
        phase = "simplify"

        def run(self, model: ir.Model, ctx: Context) -> PassResult:
            for node in model.graph:
                if node.op_type == "Tanh":
                    node.op_type = "Sigmoid"
                    return PassResult(True)
            return PassResult(False)

    with pytest.raises(VerificationError, match="'y'"):
        onnxopt.optimize(_model(), passes=[Wrong()], verify=True)


def test_optimize_with_verify_reports() -> None:
    reports = []
    onnxopt.optimize(_model(), verify=True, report=reports.append)
    assert reports[0].verification.equal
