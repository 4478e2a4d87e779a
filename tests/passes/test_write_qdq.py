"""What is written for an activation with a range; whole models are in tests/quant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from helpers import evaluate, model, op_list
from onnxopt import ir
from onnxopt.passes.base import Options
from onnxopt.pipeline import PassManager

RNG = np.random.default_rng(0)
CONV = model(
    "g (float[1,3,8,8] x) => (float[1,4,6,6] y) { z = Relu(x) y = Conv(z, w, b) }",
    w=RNG.standard_normal((4, 3, 3, 3)).astype(np.float32),
    b=RNG.standard_normal(4).astype(np.float32),
)


def written_with(proto: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> ir.Model:
    loaded = ir.load(proto)
    PassManager("generic", ["write_qdq", "eliminate_dead_code"], options=Options(ranges=ranges), strict=True).run(
        loaded
    )
    return loaded


def write(ranges: dict[str, tuple[float, float]]) -> ir.Model:
    return written_with(CONV, ranges)


def ops_in_onnxruntime(proto: onnx.ModelProto, folder: Path) -> list[str]:
    """What onnxruntime runs when it has optimized the model."""
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    settings.log_severity_level = 4
    onnxruntime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return op_list(onnx.load(folder / "optimized.onnx"))


def test_nothing_without_ranges() -> None:
    assert op_list(ir.to_proto(write({}))) == ["Relu", "Conv"]


def test_nodes_whose_activation_has_no_range_stay() -> None:
    assert op_list(ir.to_proto(write({"other": (0.0, 1.0)}))) == ["Relu", "Conv"]


def test_activation_weights_and_bias() -> None:
    proto = ir.to_proto(write({"z": (0.0, 2.55)}))
    assert op_list(proto) == [
        "Relu",
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "Conv",
    ]
    held = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    (weights,) = (array for array in held.values() if array.ndim == 4)
    assert weights.dtype == np.int8
    (bias,) = (array for array in held.values() if array.dtype == np.int32)
    (steps,) = (array for name, array in held.items() if "_bias_scales" in name)
    (original,) = (numpy_helper.to_array(one) for one in CONV.graph.initializer if one.name == "b")
    np.testing.assert_allclose(bias * steps, original, atol=float(steps.max()))


def test_biases_of_columns_with_tiny_weights_are_kept() -> None:
    weights, bias = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32), np.array([1, -2, 3, 4], np.float32)
    weights[:2] *= np.array([[[[0.0]]], [[[1e-12]]]], np.float32)
    proto = model("g (float[1,3,8,8] x) => (float[1,4,6,6] y) { z = Relu(x) y = Conv(z, w, b) }", w=weights, b=bias)
    loaded = ir.load(onnx.ModelProto.FromString(proto.SerializeToString()))
    PassManager("generic", ["write_qdq"], options=Options(ranges={"z": (0.0, 2.55)})).run(loaded)
    feeds = {"x": RNG.uniform(-1, 2.55, (1, 3, 8, 8)).astype(np.float32)}
    (wanted,), (found,) = evaluate(proto, feeds), evaluate(ir.to_proto(loaded), feeds)
    np.testing.assert_allclose(found, wanted, atol=0.3)
    np.testing.assert_allclose(found[:, :2], wanted[:, :2], rtol=1e-6)


def test_a_second_run_changes_nothing() -> None:
    loaded = write({"z": (0.0, 2.55)})
    before = len(list(loaded.graph))
    PassManager("generic", ["write_qdq"], options=Options(ranges={"z": (0.0, 2.55)})).run(loaded)
    assert len(list(loaded.graph)) == before


@pytest.mark.parametrize("shared", [1, 2])
def test_what_reads_an_activation_of_convolutions_reads_the_bytes_too(shared: int) -> None:
    users = (
        "a = Conv(z, w) y = Add(a, a)" if shared == 1 else "a = Conv(z, w) c = Sigmoid(z) d = Conv(c, w) y = Add(a, d)"
    )
    proto = model(
        f"g (float[1,3,8,8] x) => (float[1,4,6,6] y) {{ z = Relu(x) {users} }}",
        w=RNG.standard_normal((4, 3, 3, 3)).astype(np.float32),
    )
    loaded = ir.load(proto)
    PassManager("generic", ["write_qdq"], options=Options(ranges={"z": (0.0, 1.0), "c": (0.0, 1.0)})).run(loaded)
    readers = [user.op_type for node in loaded.graph if node.op_type == "Relu" for user, _ in node.outputs[0].uses()]
    assert readers == ["QuantizeLinear"]


@pytest.mark.parametrize(("sizes", "shape"), [("1,6", (1, 16)), ("N,6", (16,))])
@pytest.mark.parametrize("optimized", [True, False])
def test_products_of_known_sizes_and_their_biases_are_products_of_integers_in_onnxruntime(
    sizes: str, shape: tuple[int, ...], optimized: bool, tmp_path: Path
) -> None:
    proto = model(
        f"g (float[{sizes},32] x) => (float[{sizes},16] y) {{ a = Tanh(x) p = MatMul(a, w) y = Add(p, b) }}",
        w=RNG.standard_normal((32, 16)).astype(np.float32),
        b=RNG.standard_normal(16).astype(np.float32),
    )
    loaded = written_with(proto, {"a": (-1.0, 1.0)})
    written = ir.to_proto(loaded)
    held = {one.name: tuple(one.dims) for one in written.graph.initializer}
    (bias,) = (
        held[name] for node in written.graph.node if node.op_type == "Add" for name in node.input if name in held
    )
    assert bias == shape
    x = RNG.standard_normal((1, 6, 32)).astype(np.float32)
    np.testing.assert_allclose(evaluate(written, {"x": x})[0], evaluate(proto, {"x": x})[0], atol=0.1)
    if optimized:
        assert "MatMulIntegerToFloat" in ops_in_onnxruntime(written, tmp_path)
    else:
        PassManager("cpu", ["fuse_qgemms"], strict=True).run(loaded)
        assert op_list(ir.to_proto(loaded)) == ["Tanh", "QGemm"]


@pytest.mark.parametrize("shape", [(16,), (1, 16)])
@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_with_its_bias_is_a_product_of_integers_in_onnxruntime(
    shape: tuple[int, ...], turned: int, tmp_path: Path
) -> None:
    proto = model(
        f"g (float[N,32] x) => (float[N,16] y) {{ a = Tanh(x) y = Gemm<transB={turned}>(a, w, b) }}",
        w=RNG.standard_normal((16, 32) if turned else (32, 16)).astype(np.float32),
        b=RNG.standard_normal(shape).astype(np.float32),
    )
    written = ir.to_proto(written_with(proto, {"a": (-1.0, 1.0)}))
    x = RNG.standard_normal((5, 32)).astype(np.float32)
    np.testing.assert_allclose(evaluate(written, {"x": x})[0], evaluate(proto, {"x": x})[0], atol=0.1)
    assert "QGemm" in ops_in_onnxruntime(written, tmp_path)
    loaded = ir.load(written)
    PassManager("cpu", ["fuse_qgemms"], strict=True).run(loaded)
    assert op_list(ir.to_proto(loaded)) == ["Tanh", "QGemm"]
