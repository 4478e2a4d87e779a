"""Models with attention, and what the pass over them makes: shared by the tests of its parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from helpers import evaluate, model, run_passes
from onnxopt import ir
from onnxopt.ops import fused_attention as op
from onnxopt.pipeline import PassManager

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(1)
PASS = "fuse_attention"
LOWEST = float(np.finfo(np.float32).min)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def fuse(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.NodeProto]]:
    after, _ = run_passes(proto, PASS, target="cpu")
    return after, [node for node in after.graph.node if node.op_type == op.SPEC.name]


def fused(proto: onnx.ModelProto) -> dict[str, Any]:
    """The attributes of the only attention."""
    _, nodes = fuse(proto)
    (node,) = nodes
    found = {attr.name: onnx.helper.get_attribute_value(attr) for attr in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def assert_same(proto: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    """The kernel and the body compute what the model computed."""
    after, nodes = fuse(proto)
    assert nodes
    for library in (True, False):
        for wanted, found in zip(evaluate(proto, feeds), evaluate(after, feeds, library=library), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)


def refusals(proto: onnx.ModelProto) -> list[str]:
    loaded = ir.load(proto)
    report = PassManager("cpu", [PASS], explain=True).run(loaded)
    assert not any(node.op_type == op.SPEC.name for node in loaded.graph)
    return [str(near.refusal) for near in report.near_misses]


CORE = "float[B,2,S,8] q, float[B,2,T,8] k, float[B,2,T,6] v"


def core(
    between: str = "p = Softmax<axis = -1>(s)", inputs: str = "", outputs: str = "", opset: int = 17
) -> onnx.ModelProto:
    text = f"""g ({CORE}{inputs}) => (float[B,2,S,6] y{outputs}) {{
        kt = Transpose<perm = [0, 1, 3, 2]>(k)
        s = MatMul(q, kt)
        {between}
        y = MatMul(p, v)
    }}"""
    return model(text, opset=opset)


def operands(b: int = 2, s: int = 5, t: int = 7) -> dict[str, Array]:
    return {"q": normal(b, 2, s, 8), "k": normal(b, 2, t, 8), "v": normal(b, 2, t, 6)}
