"""float16 norms and Softmax: on a CUDA device Casts become a part of the kernel, on a processor they stay as they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxopt._native", reason="the native module is not built")

import onnxopt

NORM = "y = LayerNormalization<epsilon=0.00001>(x, s, b)"
RMS = "n = LayerNormalization<axis=-1>(x, s)\n y = Add(n, x)"
SOFTMAX = "a = Add(x, m)\n y = Softmax<axis=-1>(a)"


def model(body: str, width: int) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 21]> g (float16[N,16,{width}] x) => (float16[N,16,{width}] y) {{ {body} }}'
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name in "sbm":
        if f", {name}" in body:
            array = rng.normal(size=width).astype(np.float16)
            made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return made


def samples(*shape: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 4, shape)
    values[0, 3, 5], values[0, 4, 1] = math.nan, math.inf
    return values.astype(np.float16)


@pytest.mark.parametrize("library", [True, False], ids=["kernel", "body"])
@pytest.mark.parametrize(
    ("body", "op"), [(NORM, "FusedNorm"), (RMS, "FusedNorm"), (SOFTMAX, "FusedSoftmax")], ids=["norm", "rms", "softmax"]
)
def test_target_cuda_has_casts_inside(body: str, op: str, library: bool) -> None:
    before = model(body, 768)
    after = onnxopt.optimize(before, target="cuda")
    assert [node.op_type for node in after.graph.node] == [op]
    prologue = next(one.s.decode() for one in after.graph.node[0].attribute if one.name == "prologue")
    assert prologue.startswith("i0:f16") and prologue.endswith(":f32")
    x = samples(2, 16, 768)
    (actual,) = onnxopt.session(after, library=library).run(None, {"x": x})
    (expected,) = onnxopt.session(before, library=False).run(None, {"x": x})
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("body", [NORM, SOFTMAX], ids=["norm", "softmax"])
def test_target_cpu_leaves_them(body: str) -> None:
    ops = [node.op_type for node in onnxopt.optimize(model(body, 768), target="cpu").graph.node]
    assert not {"FusedNorm", "FusedSoftmax", "Cast"} & set(ops)


def test_double_is_not_taken() -> None:
    before = model(NORM, 768)
    for value in (*before.graph.input, *before.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for at, one in enumerate(before.graph.initializer):
        array = onnx.numpy_helper.to_array(one).astype(np.float64)
        before.graph.initializer[at].CopyFrom(onnx.numpy_helper.from_array(array, one.name))
    assert [node.op_type for node in onnxopt.optimize(before, target="cuda").graph.node] == ["LayerNormalization"]
