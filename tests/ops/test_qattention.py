"""QAttention: its kernel against its body, in onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import evaluate, model
from onnxopt import ir
from onnxopt.ops import qattention as op
from onnxopt.ops.base import DOMAIN, prepare_model

pytest.importorskip("onnxopt._native", reason="the native library is not built")

RNG = np.random.default_rng(2)


@pytest.mark.parametrize("opset", [13, 17, 18, 23])
@pytest.mark.parametrize("keys", [7, 128])
def test_kernel_and_body_agree(keys: int, opset: int) -> None:
    attention = op.QAttention("b s hd", "b s hd", "b s hd@48", "b s hd", 3, 3, 16, 16, 0.25, masks=("add",))
    shapes = {"q": (2, 9, 48), "k": (2, keys, 48), "v": (2, keys, 96), "mask": (2, 1, 1, keys)}
    feeds = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    inputs = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    text = f"g ({inputs}) => (float[2,9,48] y) {{ y = Sum({', '.join(shapes)}) }}"
    loaded = ir.load(model(text, opset=opset, ir_version=10))
    (node,) = loaded.graph
    node.domain, node.op_type, node.overload = DOMAIN, op.SPEC.name, attention.overload(opset)
    for name, value in attention.attributes().items():
        node.attributes[name] = ir.make_attribute(name, value)
    body = attention.body(opset)
    loaded.functions[body.identifier()] = body
    prepare_model(loaded)
    proto = ir.to_proto(loaded)
    kernel, by_body = (evaluate(proto, feeds, library=library)[0] for library in (True, False))
    assert np.abs(kernel - by_body).max() <= op.SPEC.tolerance[ir.DataType.FLOAT] * np.abs(by_body).max()
