"""Products whose weights were rounded read what DequantizeLinear makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model, op_list
from onnxopt import ir
from onnxopt.passes.base import Options
from onnxopt.pipeline import PassManager
from onnxopt.quant.blocks import WeightFormat, quantize_blocks

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
FORMATS = pytest.mark.parametrize(
    "form", [WeightFormat("int8", None), WeightFormat("int8", 16), WeightFormat("int4", 16), WeightFormat("int4", None)]
)
WEIGHTS = {"w": RNG.standard_normal((40, 24)), "t": RNG.standard_normal((24, 40)), "b": RNG.standard_normal(24)}
CASES = {
    "product": "g (float[N,5,40] x) => (float[N,5,24] y) { [one] y = MatMul(x, w) }",
    "gemm": "g (float[N,40] x) => (float[N,24] y) { [one] y = Gemm(x, w, b) }",
    "transposed": "g (float[N,40] x) => (float[N,24] y) { [one] y = Gemm<transB=1>(x, t, b) }",
}


def write(proto: onnx.ModelProto, options: Options) -> onnx.ModelProto:
    loaded = ir.load(onnx.ModelProto.FromString(proto.SerializeToString()))
    PassManager("generic", ["write_weights", "eliminate_dead_code"], options=options, strict=True).run(loaded)
    again = PassManager("generic", ["write_weights"], options=options, strict=True).run(loaded)
    assert not again.patches
    after = ir.to_proto(loaded)
    onnx.checker.check_model(after)
    return after


def build(case: str) -> tuple[onnx.ModelProto, Array]:
    """The model, and its weights as the product reads them."""
    words = CASES[case].replace("(", " ").replace(")", " ").replace(",", " ").split()
    weights = {name: array.astype(np.float32) for name, array in WEIGHTS.items() if name in words}
    proto = model(CASES[case], opset=21, ir_version=10, **weights)
    return proto, weights["t"].T if "t" in weights else weights["w"]


@FORMATS
@pytest.mark.parametrize("case", CASES)
def test_writes_what_the_integers_stand_for(case: str, form: WeightFormat) -> None:
    proto, matrix = build(case)
    blocked = quantize_blocks(matrix, form)
    after = write(proto, Options(blocked={"one": blocked}))
    assert op_list(after) == ["DequantizeLinear", proto.graph.node[0].op_type]
    kind = onnx.TensorProto.INT8 if form.dtype == "int8" else onnx.TensorProto.INT4
    assert kind in {one.data_type for one in after.graph.initializer}
    shape = [dim.dim_value or 2 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    x = RNG.standard_normal(shape).astype(np.float32)
    restored = blocked.array * np.repeat(blocked.scales, blocked.block, axis=0)[: len(matrix)]
    bias = 0 if case == "product" else WEIGHTS["b"].astype(np.float32)
    np.testing.assert_allclose(evaluate(after, {"x": x})[0], x @ restored + bias, rtol=1e-4, atol=1e-4)


def test_leaves_the_others_alone() -> None:
    proto, matrix = build("product")
    blocked = {"one": quantize_blocks(matrix, WeightFormat("int8", None))}
    for options in (
        Options(),
        Options(blocked={"two": blocked["one"]}),
        Options(blocked=blocked, keep_float=frozenset({"one"})),
    ):
        assert op_list(write(proto, options)) == ["MatMul"]
