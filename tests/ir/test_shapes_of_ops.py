"""Shapes that rules infer, against those of onnxruntime's results."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import helpers
from onnxopt import ir

NONE = np.zeros(0, np.int64)


def check(before: onnx.ModelProto, *shape: int) -> None:
    """What is inferred of the first output is what onnxruntime makes, or nothing."""
    loaded = ir.load(before)
    env = ir.ShapeEnv(loaded)
    env.infer_model()
    inferred = env.static_shape(loaded.graph.outputs[0])
    (found,) = helpers.evaluate(before, {"x": np.zeros(shape, np.float32)})
    assert inferred in (None, found.shape)


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.7, 0.9, 1.1, 1.3, 2.1, 1 / 3])
@pytest.mark.parametrize("op", ["Resize", "Upsample"])
def test_scaled_sizes_are_rounded_as_float32(op: str, scale: float) -> None:
    scales = np.array([1, 1, max(scale, 1 / scale) if op == "Upsample" else scale, 1], np.float32)
    call, opset = ("Resize(x, , s)", 17) if op == "Resize" else ("Upsample(x, s)", 9)
    for size in (3, 7, 10, 20, 30, 70):
        before = helpers.model(f"g (float[1, 1, {size}, 2] x) => (y) {{ y = {call} }}", opset=opset, s=scales)
        check(before, 1, 1, size, 2)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_pools_that_pad_by_themselves(op: str, dilation: int, mode: str) -> None:
    for stride, ceil in ((1, 0), (2, 0), (2, 1)):
        windows = f"kernel_shape = [3], strides = [{stride}], dilations = [{dilation}], ceil_mode = {ceil}"
        before = helpers.model(
            f'g (float[1, 2, 7] x) => (y) {{ y = {op} <auto_pad = "{mode}", {windows}> (x) }}', opset=22
        )
        check(before, 1, 2, 7)


@pytest.mark.parametrize(
    "call",
    ["Squeeze(x, none)", "Unsqueeze(x, none)", "ReduceSum(x, none)", "ReduceSum<noop_with_empty_axes=1>(x, none)"],
)
def test_no_axes_at_all(call: str) -> None:
    check(helpers.model(f"g (float[1, 3, 1] x) => (y) {{ y = {call} }}", none=NONE), 1, 3, 1)


@pytest.mark.parametrize("attributes", ["", "<onesided = 0>", "<onesided = 1>"])
def test_attributes_that_are_left_out_have_the_default_of_the_schema(attributes: str) -> None:
    before = helpers.model(
        f"g (float[1, 20, 1] x) => (y) {{ y = STFT {attributes} (x, step, , length) }}",
        step=np.array(3),
        length=np.array(6),
    )
    check(before, 1, 20, 1)


@pytest.mark.parametrize("call", ["Reshape(x, s)", "Expand(x, s)", "ConstantOfShape(s)"])
def test_as_many_dims_as_no_tensor_has_are_not_made(call: str) -> None:
    loaded = ir.load(helpers.model(f"g (float[1, 3] x, int64[2147483648] s) => (y) {{ y = {call} }}"))
    env = ir.ShapeEnv(loaded)
    env.infer_model()
    assert env.shape(loaded.graph.outputs[0]) is None


def test_sizes_that_no_file_has_bits_for_are_not_written() -> None:
    text = "g (float[1, 4] x) => (y) { r = Constant<value = int64[2] {1, 4611686018427387904}>() t = Tile(x, r) y = Abs(t) }"
    loaded = ir.load(helpers.model(text))
    env = ir.ShapeEnv(loaded)
    env.infer_model()
    env.write_back(loaded)
    (y,) = ir.to_proto(loaded).graph.output
    assert not y.type.tensor_type.HasField("shape")
