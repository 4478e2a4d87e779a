"""What `inspect` and `diff` say, against figures worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import helpers
import onnxopt
from onnxopt import ir
from onnxopt.inspection import diff, inspect


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


# --- operations: a multiply-add is two ---
FLOPS = {
    "MatMul": ("float[2, 3, 5] x) => (float[2, 3, 7] y) { y = MatMul (x, w) }", {"w": zeros(5, 7)}, 2 * (2 * 3 * 7) * 5),
    "MatMul of a vector": ("float[5] x) => (float[7] y) { y = MatMul (x, w) }", {"w": zeros(5, 7)}, 2 * 7 * 5),
    "Gemm": ("float[3, 5] x) => (float[3, 7] y) { y = Gemm (x, w) }", {"w": zeros(5, 7)}, 2 * (3 * 7) * 5),
    "Gemm of transposed operands": (
        "float[5, 3] x) => (float[3, 7] y) { y = Gemm <transA = 1, transB = 1> (x, w) }",
        {"w": zeros(7, 5)},
        2 * (3 * 7) * 5,
    ),
    "Conv": (
        "float[2, 3, 8, 9] x) => (float[2, 4, 6, 7] y) { y = Conv (x, w) }",
        {"w": zeros(4, 3, 3, 3)},
        2 * (2 * 4 * 6 * 7) * (3 * 3 * 3),
    ),
    "Conv of strides and groups": (
        "float[1, 6, 8, 8] x) => (float[1, 4, 4, 4] y) { y = Conv <group = 2, strides = [2, 2], pads = [1, 1, 1, 1]> (x, w) }",
        {"w": zeros(4, 3, 3, 3)},
        2 * (4 * 4 * 4) * (3 * 3 * 3),
    ),
    "ConvTranspose": (
        "float[1, 3, 4, 4] x) => (float[1, 5, 6, 6] y) { y = ConvTranspose (x, w) }",
        {"w": zeros(3, 5, 3, 3)},
        2 * (3 * 4 * 4) * (5 * 3 * 3),
    ),
    "LSTM": (
        "float[6, 2, 5] x) => (float[6, 1, 2, 4] y) { y = LSTM <hidden_size = 4> (x, w, r) }",
        {"w": zeros(1, 16, 5), "r": zeros(1, 16, 4)},
        2 * (6 * 2) * (16 * 5 + 16 * 4),
    ),
    "LSTM of both directions": (
        'float[6, 2, 5] x) => (float[6, 2, 2, 4] y) { y = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r) }',
        {"w": zeros(2, 16, 5), "r": zeros(2, 16, 4)},
        2 * 2 * (6 * 2) * (16 * 5 + 16 * 4),
    ),
    "GRU": (
        "float[6, 2, 5] x) => (float[6, 1, 2, 4] y) { y = GRU <hidden_size = 4> (x, w, r) }",
        {"w": zeros(1, 12, 5), "r": zeros(1, 12, 4)},
        2 * (6 * 2) * (12 * 5 + 12 * 4),
    ),
    "Softmax": ("float[3, 5] x) => (float[3, 5] y) { y = Softmax (x) }", {}, 15),
    "ReduceSum": ("float[3, 5] x) => (float[1, 1] y) { y = ReduceSum (x) }", {}, 15),
    "element-wise with broadcasting": ("float[3, 1] x) => (float[3, 7] y) { y = Add (x, w) }", {"w": zeros(7)}, 21),
    "moving data": ("float[3, 5] x) => (float[5, 3] y) { y = Transpose (x) }", {}, 0),
    "empty": ("float[0, 5] x) => (float[0, 5] y) { y = Relu (x) }", {}, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", FLOPS)
def test_operations(case: str) -> None:
    text, weights, expected = FLOPS[case]
    found = inspect(helpers.model(f"g ({text}", **weights))
    assert (found.flops, found.unknown_flops) == (expected, 0)


def test_fused_regions_count_their_statements() -> None:
    proto = helpers.model(
        "g (float[N, 64] x) => (float[N, 64] y) { a = Tanh (x) b = Mul (a, x) c = Add (b, a) y = Exp (c) }"
    )
    found = inspect(onnxopt.optimize(proto), {"N": 8})
    assert found.flops_by_op == {"ai.onnxopt::FusedElementwise": 4 * 8 * 64}
    assert found.flops == inspect(proto, {"N": 8}).flops


@pytest.mark.parametrize("columns", [64, 70])
def test_fused_products_count_what_they_stand_for(columns: int) -> None:
    proto = helpers.model(
        f"""g (float[N, 64] x, float[N, {columns}] r) => (float[N, {columns}] y, float[N, {columns}] z) {{
            p = MatMul (x, w) q = Add (p, b) s = Sigmoid (q) t = Mul (q, s) y = Add (t, r) z = MatMul (x, v) }}""",
        w=np.ones((64, columns), np.float32),
        v=np.full((64, columns), 2, np.float32),
        b=np.ones(columns, np.float32),
    )
    optimized = onnxopt.optimize(proto)
    for rows in (8, 100):
        found = inspect(optimized, {"N": rows})
        assert found.flops_by_op == {"ai.onnxopt::FusedGemm": 2 * (2 * rows * 64 * columns) + 4 * rows * columns}
        assert found.flops == inspect(proto, {"N": rows}).flops
    assert (inspect(optimized).flops, inspect(optimized).unknown_flops) == (0, 2)


def test_unknown_dims_are_counted_and_named() -> None:
    proto = helpers.model("g (float[N, 5] x) => (float[N, 7] y) { m = MatMul (x, w) y = Relu (m) }", w=zeros(5, 7))
    found = inspect(proto)
    assert (found.flops, found.unknown_flops, found.open_dims) == (0, 2, ["N"])
    assert found.unknown_flops_by_op == {"MatMul": 1, "Relu": 1}
    assert found.peak_activation_bytes is None
    assert inspect(proto, {"N": 3}).flops == 2 * 3 * 7 * 5 + 3 * 7


def test_dims_without_a_name_are_called_by_input_and_axis() -> None:
    proto = helpers.model("g (float[?, 5] x) => (float[?, 5] y) { y = Relu (x) }")
    found = inspect(proto)
    assert found.inputs[0].shape == found.outputs[0].shape == ("x_0", "5")
    assert inspect(proto, {"x_0": 3}).flops == 15


@pytest.mark.parametrize("placeholder", ["?", "None", "-1"])
def test_placeholders_are_no_names(placeholder: str) -> None:
    proto = helpers.model("g (float[A, B] x) => (float[A, B] y) { y = Relu (x) }")
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = placeholder
    assert inspect(proto).open_dims == ["x_0", "x_1"]
    assert inspect(proto, {"x_0": 2, "x_1": 3}).flops == 6


def test_dims_that_are_not_there_are_warned_of() -> None:
    proto = helpers.model("g (float[N, ?] x) => (float[N, ?] y) { y = Relu (x) }")
    assert inspect(proto, {"N": 1, "x_1": 2}).warnings == []
    (sentence,) = inspect(proto, {"batch": 1}).warnings
    assert "'batch'" in sentence and "N, x_1" in sentence


# --- sizes ---
def test_weights_are_counted_wherever_they_are() -> None:
    text = "g (float[4] x) => (float[4] y) { c = Constant <value = float[4] {1, 2, 3, 4}> () a = Add (x, c) y = Mul (a, w) }"
    found = inspect(helpers.model(text, w=np.zeros(4, np.float32)))
    assert (found.initializers, found.weight_bytes, found.weight_bytes_by_dtype) == (2, 32, {"float": 32})


def test_weights_inside_branches_are_counted() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] p) { k = Constant <value = float[2] {1, 2}> () p = Add (x, k) },
            else_branch = e () => (float[2] q) { q = Identity (x) }
        >
    }"""
    assert inspect(helpers.model(text)).weight_bytes == 8


@pytest.mark.parametrize(
    ("attribute", "size"),
    [("value_int = 3", 8), ("value_ints = [1, 2, 3]", 24), ("value_float = 1.5", 4), ("value_floats = [1.0, 2.0]", 8)],
)
def test_constants_in_attributes_have_a_size(attribute: str, size: int) -> None:
    proto = helpers.model(f"g (float[2] x) => (float[2] y) {{ k = Constant <{attribute}> () y = Identity (x) }}")
    assert ir.weight_bytes(ir.load(proto)) == size


@pytest.mark.parametrize(
    ("dtype", "size"), [(ir.DataType.INT4, 4), (ir.DataType.BFLOAT16, 14), (ir.DataType.FLOAT8E5M2, 7)]
)
def test_weights_of_small_types(dtype: ir.DataType, size: int) -> None:
    proto = helpers.model("g (float[2] x) => (float[2] y) { y = Identity (x) }", opset=21, ir_version=10)
    tensor = onnx.TensorProto(name="w", data_type=dtype.value, dims=[7], raw_data=bytes(size))
    proto.graph.initializer.append(tensor)
    assert inspect(proto).weight_bytes_by_dtype == {dtype.name.lower(): size}


def test_a_report_of_a_run_counts_weights_in_constants() -> None:
    text = "g (float[4] x) => (float[4] y) { c = Constant <value = float[4] {1, 2, 3, 4}> () y = Add (x, c) }"
    reports = []
    onnxopt.optimize(helpers.model(text), target="generic", report=reports.append)
    assert (reports[0].bytes_before, reports[0].bytes_after) == (16, 16)


def test_peak_of_activations() -> None:
    chain = helpers.model("g (float[10] x) => (float[10] y) { a = Exp (x) b = Neg (a) y = Abs (b) }")
    assert inspect(chain).peak_activation_bytes == 2 * 40
    long_lived = helpers.model(
        "g (float[10] x) => (float[10] y) { a = Exp (x) b = Neg (a) c = Abs (b) y = Add (a, c) }"
    )
    assert inspect(long_lived).peak_activation_bytes == 3 * 40


def test_values_that_branches_read_stay_alive() -> None:
    text = """g (bool c, float[10] x) => (float[10] y) {
        a = Exp (x)
        b = Neg (x)
        d = Abs (b)
        e = If (c) < then_branch = t () => (float[10] p) { p = Neg (a) }, else_branch = f () => (float[10] q) { q = Abs (a) } >
        y = Add (d, e)
    }"""
    assert inspect(helpers.model(text)).peak_activation_bytes == 3 * 40


def test_constants_are_no_activations() -> None:
    text = "g (float[2] x) => (float[2] y) { c = Constant <value = float[2] {1, 2}> () y = Add (x, c) }"
    assert inspect(helpers.model(text)).peak_activation_bytes == 8


# --- facts ---
def test_facts_of_a_model() -> None:
    proto = helpers.model("g (float[N, 4] x, float[4] w) => (float[N, 4] y) { y = Add (x, w) }", w=zeros(4))
    proto.producer_name, proto.producer_version = "maker", "7"
    proto.metadata_props.add(key="author", value="someone")
    found = inspect(proto)
    assert [port.name for port in found.inputs] == ["x"]
    assert (found.inputs[0].dtype, found.inputs[0].shape) == ("float", ("N", "4"))
    assert (found.opsets, found.ir_version, found.producer) == ({"": 17}, 8, "maker 7")
    assert (found.nodes, found.ops, found.functions) == (1, {"Add": 1}, 0)
    assert (found.values_with_shape, found.values) == (1, 1)
    assert found.metadata == {"author": "someone"}
    assert json.loads(json.dumps(found.to_json()))["weight_bytes"] == 16


def test_inspection_does_not_change_the_model() -> None:
    proto = helpers.model(
        "g (float[N, 4] x) => (float y) { a = Add (x, w) y = ReduceSum <keepdims = 0> (a) }", w=zeros(4)
    )
    before = proto.SerializeToString(deterministic=True)
    loaded = ir.load(proto)
    inspect(loaded, {"N": 2})
    assert proto.SerializeToString(deterministic=True) == before
    assert ir.to_proto(loaded).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


# --- differences ---
TANH = "g (float[N, 4] x) => (float[N, 4] y) { y = Tanh (x) }"


def test_equal_models_have_no_difference() -> None:
    found = diff(helpers.model(TANH), helpers.model(TANH))
    assert found.same and found.to_json()["same"]


@pytest.mark.parametrize("shape", ["?, ?", "N, ?"])
def test_dims_without_a_name_are_no_difference(shape: str) -> None:
    text = f"g (float[{shape}] x) => (float[{shape}] y) {{ n = NonZero (x) f = Cast <to = 1> (n) y = Identity (f) }}"
    assert diff(helpers.model(text), helpers.model(text)).same


CHANGES = {
    "ops": ("g (float[N, 4] x) => (float[N, 4] y) { y = Exp (x) }", {"ops": {"Exp": (0, 1), "Tanh": (1, 0)}}),
    "gone and new": (
        "g (float[N, 4] z) => (float[N, 4] y) { y = Tanh (z) }",
        {"ports": ["input 'x' is gone", "input 'z' is new"]},
    ),
    "shape": (
        "g (float[N, 5] x) => (float[N, 5] y) { y = Tanh (x) }",
        {"ports": ["input 'x' was float[N, 4] and is float[N, 5]", "output 'y' was float[N, 4] and is float[N, 5]"]},
    ),
    "type": (
        "g (double[N, 4] x) => (double[N, 4] y) { y = Tanh (x) }",
        {"ports": ["input 'x' was float[N, 4] and is double[N, 4]", "output 'y' was float[N, 4] and is double[N, 4]"]},
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_differences(case: str) -> None:
    text, expected = CHANGES[case]
    found = diff(helpers.model(TANH), helpers.model(text))
    assert not found.same
    assert {name: getattr(found, name) for name in expected} == expected


def test_difference_of_opsets_and_weights() -> None:
    newer = helpers.model(TANH, opset=18)
    newer.graph.initializer.append(onnx.numpy_helper.from_array(zeros(3), "w"))
    found = diff(helpers.model(TANH), newer)
    assert found.opsets == {"": (17, 18)}
    assert found.weight_bytes == (0, 12)


def test_operations_that_are_unknown_are_not_compared() -> None:
    assert diff(helpers.model(TANH), helpers.model(TANH)).flops == (None, None)
    assert diff(helpers.model(TANH), helpers.model(TANH), {"N": 2}).flops == (8, 8)


def test_padding_that_exporters_compute_is_followed() -> None:
    """PyTorch writes pads from the last axis to the first, and turns them around with Reshape, Slice and Transpose."""
    text = """g (float[N, 3, H, 8] x) => (float[N, 3, P, Q] y) {
        given = Concat <axis = 0> (four, zeros)
        pairs = Reshape (given, pair_shape)
        turned = Slice (pairs, minus_one, lowest, zero, minus_one)
        sides = Transpose <perm = [1, 0]> (turned)
        flat = Reshape (sides, minus_one)
        pads = Cast <to = 7> (flat)
        y = Pad (x, pads)
    }"""
    numbers = {
        "four": [1, 2, 3, 4],
        "zeros": [0] * 4,
        "pair_shape": [-1, 2],
        "minus_one": [-1],
        "lowest": [-(2**63) + 1],
        "zero": [0],
    }
    proto = helpers.model(text, **{name: np.array(one, np.int64) for name, one in numbers.items()})
    assert inspect(proto).outputs[0].shape == ("N", "3", "H + 7", "11")
    (y,) = helpers.evaluate(proto, {"x": np.zeros((2, 3, 5, 8), np.float32)})
    assert y.shape == (2, 3, 5 + 7, 11)
