"""Models that are quantized for CUDA devices: their convolutions and products stay integers, and kernels take every op of ours in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import emulated_variant, evaluate, model, op_list
from onnxopt import ir
from onnxopt.ops.base import DOMAIN
from onnxopt.quant import quantize
from onnxopt.runtime.library import native

pytest.importorskip("onnxopt._native", reason="the native library is not built")
pytestmark = pytest.mark.usefixtures("fuse_small_products")

Array = np.ndarray[Any, Any]


def normal(*shape: int) -> Array:
    rng = np.random.default_rng([*shape])
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


NETWORK = """g (float[N,3,24,24] x) => (float[N,10] y) {
    a = Conv<pads=[1, 1, 1, 1], strides=[2, 2]>(x, w1, b1) r = Relu(a)
    m = MaxPool<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]>(r)
    c = Conv<pads=[1, 1, 1, 1]>(m, w2, b2) h = HardSwish(c)
    d = Conv<group=16, pads=[1, 1, 1, 1]>(h, w3, b3) k = Clip(d, zero, six)
    e = Conv(k, w4, b4) s = Add(e, m) t = Relu(s) j = Concat<axis=1>(t, m)
    f = Conv<strides=[2, 2]>(j, w5, b5) g1 = Sigmoid(f) g2 = Mul(g1, f)
    p = GlobalAveragePool(g2) q = Flatten(p) y = Gemm<transB=1>(q, w6, b6) }"""


def network() -> onnx.ModelProto:
    shapes = {
        "w1": (16, 3, 3, 3),
        "w2": (16, 16, 3, 3),
        "w3": (16, 1, 3, 3),
        "w4": (16, 16, 1, 1),
        "w5": (24, 32, 1, 1),
    }
    shapes["w6"] = (10, 24)
    weights = {name: normal(*shape) for name, shape in shapes.items()}
    weights |= {f"b{name[1]}": normal(shape[0], 1)[:, 0] for name, shape in shapes.items()}
    return model(NETWORK, **weights, zero=np.array(0, np.float32), six=np.array(6, np.float32))


PERCEPTRON = """g (float[N,T,32] x) => (float[N,T,32] y) {
    n = LayerNormalization(x, s) a = MatMul(n, w) b = Add(a, c) d = Gelu(b) e = MatMul(d, v) y = Add(e, x) }"""


def perceptron() -> onnx.ModelProto:
    weights = {"s": normal(32, 1)[:, 0], "w": normal(64, 32).T, "c": normal(64, 1)[:, 0], "v": normal(32, 64).T}
    return model(PERCEPTRON, opset=20, **{name: np.ascontiguousarray(array) for name, array in weights.items()})


def refusals(proto: onnx.ModelProto) -> list[str]:
    """What kernels for CUDA devices say against the nodes of a model."""
    nodes = [node for node in ir.load(proto).graph if node.domain == DOMAIN]
    assert nodes
    variants = {node: emulated_variant(node.op_type) for node in nodes}
    made = {node: {name: attr.value for name, attr in node.attributes.items()} for node in nodes}
    return [said for node in nodes if (said := native().refusal(node.op_type, made[node], variants[node]))]


def test_convolutions_read_and_write_bytes() -> None:
    proto, shape = network(), (2, 3, 24, 24)
    samples = [{"x": normal(*shape)} for _ in range(3)]
    after, for_processors = (quantize(proto, calibration=samples, target=target) for target in ("cuda", "cpu"))
    assert refusals(after) == []
    assert op_list(after)[:10] == [
        *("QuantizeLinear", "Transpose", "QConv", "Transpose", "DequantizeLinear", "MaxPool", "QuantizeLinear"),
        *("Transpose", "QConv", "QConv"),
    ]
    flags = [{one.name for one in node.attribute} for node in after.graph.node if node.op_type == "QConv"]
    assert [sorted(one & {"added", "output_dtype"}) for one in flags] == [
        *[["output_dtype"]] * 3,
        ["added", "output_dtype"],
        [],
    ]
    (wanted,), (found,) = evaluate(for_processors, samples[0], library=True), evaluate(after, samples[0], library=True)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("calibrated", [True, False], ids=["static", "dynamic"])
def test_products_are_of_integers(calibrated: bool) -> None:
    proto, feeds = perceptron(), {"x": normal(2, 5, 32)}
    after = quantize(proto, calibration=[feeds] if calibrated else None, target="cuda")
    assert op_list(after).count("QGemm") == 2
    assert refusals(after) == []
    (wanted,), (found,) = evaluate(proto, feeds), evaluate(after, feeds, library=True)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
