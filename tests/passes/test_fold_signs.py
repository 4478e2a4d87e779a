"""fold_signs: negations that a constant factor takes over."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt import ir
from onnxopt.pipeline import PassManager


def rotary(shape: tuple[int, ...] = (1, 2, 3, 8), second_use: bool = False) -> onnx.ModelProto:
    """x * cos-like table after rotate-half, as exporters write it."""
    half = shape[-1] // 2
    table = np.random.default_rng(0).standard_normal(shape[-2:]).astype(np.float32)
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=-1, num_outputs=2),
        helper.make_node("Neg", ["b"], ["n"], name="neg"),
        helper.make_node("Concat", ["n", "a"], ["r"], axis=-1),
        helper.make_node("Mul", ["r", "table"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    if second_use:
        outputs.append(helper.make_tensor_value_info("n", TensorProto.FLOAT, (*shape[:-1], half)))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        outputs,
        [numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )


def test_moves_the_sign_into_the_table_exactly() -> None:
    before = rotary()
    model = ir.load(before)
    report = PassManager("generic", ["fold_signs"], strict=True).run(model)
    assert report.nodes_after == report.nodes_before - 1
    x = np.random.default_rng(1).standard_normal((1, 2, 3, 8)).astype(np.float32)
    x[0, 0, 0, :4] = [np.inf, -np.inf, np.nan, -0.0]
    for expected, actual in zip(run(before, x), run(ir.to_proto(model), x), strict=True):
        np.testing.assert_array_equal(expected, actual)


def test_changes_nothing_on_a_second_run() -> None:
    model = ir.load(rotary())
    PassManager("generic", ["fold_signs"], strict=True).run(model)
    assert not PassManager("generic", ["fold_signs"], strict=True).run(model).patches


@pytest.mark.parametrize("second_use", [True])
def test_refuses_a_negation_that_is_also_an_output(second_use: bool) -> None:
    model = ir.load(rotary(second_use=second_use))
    assert not PassManager("generic", ["fold_signs"], strict=True).run(model).patches
