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


def joined(
    body: str, shape: tuple[int, ...], *, dtype: str = "float", declared: str = "2,3,4", outputs: str = "y"
) -> onnx.ModelProto:
    table = np.random.default_rng(2).standard_normal(shape).astype(np.float16 if dtype == "float16" else np.float32)
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({dtype}[{declared}] x) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(table, "table"))
    return proto


def changed(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.load(onnx.ModelProto.FromString(proto.SerializeToString()))
    PassManager("generic", ["fold_signs"], strict=True).run(model)
    return ir.to_proto(model)


PAIR = "n = Neg(x)\n r = Concat<axis={0}>(n, x)\n y = Mul({1})"


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("operands", ["r, table", "table, r"])
@pytest.mark.parametrize(
    ("axis", "shape"), [(-1, (8,)), (2, (3, 8)), (1, (6, 1)), (-2, (2, 6, 4)), (0, (4, 1, 1)), (-1, (5, 1, 1, 8))]
)
def test_tables(axis: int, shape: tuple[int, ...], operands: str, dtype: str) -> None:
    before = joined(PAIR.format(axis, operands), shape, dtype=dtype)
    after = changed(before)
    assert [node.op_type for node in after.graph.node] == ["Concat", "Mul"]
    x = np.random.default_rng(3).standard_normal((2, 3, 4)).astype(np.float16 if dtype == "float16" else np.float32)
    np.testing.assert_array_equal(run(before, x)[0], run(after, x)[0])


@pytest.mark.parametrize(
    ("body", "shape", "declared", "outputs"),
    [
        (PAIR.format(-1, "r, table"), (1,), "2,3,4", "y"),
        (PAIR.format(-1, "r, table"), (), "2,3,4", "y"),
        (PAIR.format(0, "r, table"), (8,), "2,3,4", "y"),
        (PAIR.format(0, "r, table"), (4, 1, 1), "N,3,4", "float[a,b,c] y"),
        ("n = Neg(x)\n r = Concat<axis=-1>(n, n)\n y = Mul(r, table)", (8,), "2,3,4", "y"),
        ("n = Abs(x)\n r = Concat<axis=-1>(n, x)\n y = Mul(r, table)", (8,), "2,3,4", "y"),
        (PAIR.format(-1, "r, table"), (8,), "2,3,4", "y, r"),
    ],
    ids=["one element", "scalar", "another axis", "symbolic part", "joined twice", "another op", "joined is an output"],
)
def test_refuses(body: str, shape: tuple[int, ...], declared: str, outputs: str) -> None:
    before = joined(body, shape, declared=declared, outputs=outputs)
    after = changed(before)
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]


def test_two_of_three_parts() -> None:
    body = "n = Neg(x)\n m = Neg(x)\n r = Concat<axis=1>(n, x, m)\n y = Mul(r, table)"
    before = joined(body, (9, 4))
    after = changed(before)
    assert [node.op_type for node in after.graph.node] == ["Concat", "Mul"]
    x = np.random.default_rng(3).standard_normal((2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(before, x)[0], run(after, x)[0])
