"""QConv: its kernel against its body, in onnxruntime, and what it says of wrong inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model
from onnxopt import ir
from onnxopt.ops import qconv as op
from onnxopt.ops.base import DOMAIN, prepare_model

native = pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
WINDOWS: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "1x1": ((20, 12, 1, 1), 1, {}),
    "3x3 of odd channels": ((18, 5, 3, 3), 1, {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    "dilated": ((7, 6, 2, 3), 1, {"dilations": [1, 2], "pads": [0, 1, 1, 2]}),
    "groups": ((9, 4, 3, 3), 3, {"auto_pad": "SAME_LOWER"}),
    "depthwise": ((10, 1, 5, 3), 10, {"pads": [2, 1, 2, 1]}),
    "1-D": ((8, 6, 3), 1, {"pads": [1, 1]}),
    "1-D depthwise": ((6, 1, 4), 6, {}),
}


def operands(name: str, dtype: Any) -> tuple[dict[str, Array], op.Variety]:
    rng = np.random.default_rng(0)
    shape, group, more = WINDOWS[name]
    windows = {"kernel_shape": list(shape[2:]), **more}
    filters = rng.integers(-128, 128, shape).astype(np.int8)
    limits = np.iinfo(dtype)
    spatial = (9, 8)[: len(shape) - 2]
    inputs = {
        "x": rng.integers(limits.min, limits.max + 1, (2, *spatial, shape[1] * group)).astype(dtype),
        "w": op.pack(filters, group, windows),
        "scales": rng.uniform(0.001, 0.002, shape[0]).astype(np.float32),
        "sums": op.filter_sums(filters),
        "scale": np.array(0.02, np.float32),
        "zero": np.array(limits.min + 100, dtype),
        "bias": rng.standard_normal(shape[0]).astype(np.float32),
    }
    return inputs, op.Variety(shape, windows, group, biased=True)


def attributes(variety: op.Variety) -> dict[str, Any]:
    return {**variety.windows, "filters": variety.shape[0], "group": variety.group, "biased": 1}


def with_body(inputs: dict[str, Array], variety: op.Variety, opset: int) -> onnx.ModelProto:
    kinds = {"float32": "float"}
    texts = [f"{kinds.get(a.dtype.name, a.dtype.name)}{list(a.shape) if a.ndim else ''} {n}" for n, a in inputs.items()]
    dims = ",".join("ABCD"[: len(variety.shape)])
    text = f"g ({', '.join(texts)}) => (float[{dims}] y) {{ y = Sum({', '.join(inputs)}) }}"
    loaded = ir.load(model(text, opset=opset, ir_version=10))
    (node,) = loaded.graph
    node.domain, node.op_type, node.overload = DOMAIN, op.SPEC.name, variety.overload(opset)
    for name, value in attributes(variety).items():
        node.attributes[name] = ir.make_attribute(name, value)
    body = variety.body(opset)
    loaded.functions[body.identifier()] = body
    prepare_model(loaded)
    return ir.to_proto(loaded)


@pytest.mark.parametrize("opset", [13, 17, 21, 23])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("name", WINDOWS)
def test_kernel_and_body_agree(name: str, dtype: Any, opset: int) -> None:
    inputs, variety = operands(name, dtype)
    proto = with_body(inputs, variety, opset)
    kernel, body = (evaluate(proto, inputs, library=library)[0] for library in (True, False))
    assert kernel.shape == body.shape
    np.testing.assert_allclose(kernel, body, atol=1e-3)


WRONG: dict[str, tuple[str, Array, str]] = {
    "floats": ("x", np.zeros((1, 5, 5, 12), np.float32), "should be uint8 or int8"),
    "filters of another convolution": ("w", np.zeros((1, 1, 3, 16, 4), np.int8), "Input 1 has the shape"),
    "scales of another length": ("scales", np.zeros(3, np.float32), "Input 2 has the shape"),
    "sums of floats": ("sums", np.zeros(20, np.float32), "Input 3 is of type float"),
    "zero point of another type": ("zero", np.zeros((), np.int8), "Input 5 is of type int8"),
    "several scales": ("scale", np.zeros(2, np.float32), "Input 4 has the shape"),
    "bias of another length": ("bias", np.zeros(19, np.float32), "Input 6 has the shape"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_get_a_sentence(case: str) -> None:
    name, array, sentence = WRONG[case]
    inputs, variety = operands("1x1", np.uint8)
    with pytest.raises(Exception, match=sentence):
        native.run("QConv", list((inputs | {name: array}).values()), attributes(variety))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"filters": 0}, "positive attribute 'filters'"),
        ({"group": 3}, "should divide"),
        ({"output_dtype": 7}, "that of float, uint8 or int8"),
        ({"epilogue": "i0:f32 | t0=relu(i0) t1=exp(i0) | t0:f32 t1:f32"}, "one output"),
    ],
)
def test_wrong_attributes_get_a_sentence(change: dict[str, Any], sentence: str) -> None:
    inputs, variety = operands("1x1", np.uint8)
    with pytest.raises(Exception, match=sentence):
        native.run("QConv", list(inputs.values()), attributes(variety) | change)
