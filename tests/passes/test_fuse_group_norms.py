"""Normalizations of groups of channels, alone and between convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from tests.helpers import assert_same, model, op_list, run_passes

PASS = "fuse_group_norms"
REGION = (
    "lift_constants",
    PASS,
    "convolutions_channels_last",
    "fuse_epilogues",
    "fuse_prologues",
    "eliminate_dead_code",
)


def draw(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


def attributes(proto: onnx.ModelProto, op_type: str) -> list[dict[str, Any]]:
    return [
        {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        for node in proto.graph.node
        if node.op_type == op_type
    ]


WEIGHTS = {"w": draw(32, 32, 3, 3), "v": draw(32, 32, 3, 3, seed=1), "s": draw(32, seed=2), "t": draw(32, seed=3)}
RESHAPED = {
    "ones": np.ones(8, np.float32), "zeros": np.zeros(8, np.float32), "rows": np.array([0, 8, -1]),
    "s1": draw(32, 1, 1, seed=2), "t1": draw(32, 1, 1, seed=3),
}  # fmt: skip
NORMS = {
    "GroupNormalization": (21, "n = GroupNormalization<num_groups=8>(c, s, t)", {}),
    "InstanceNormalization": (17, "n = InstanceNormalization(c, s, t)", {}),
    "written out": (
        17,
        "r = Reshape(c, rows) i = InstanceNormalization(r, ones, zeros) z = Shape(c) b = Reshape(i, z) m = Mul(b, s1) n = Add(m, t1)",
        RESHAPED,
    ),
}


def between_convolutions(name: str, after: str = "g = Sigmoid(n) a = Mul(n, g)", height: str = "H") -> onnx.ModelProto:
    opset, norm, constants = NORMS[name]
    conv = "Conv<kernel_shape=[3,3], pads=[1,1,1,1]>"
    text = f"g (float[N,32,{height},W] x) => (float[N,32,A,B] y) {{ c = {conv}(x, w) {norm} {after} y = {conv}(a, v) }}"
    return model(text, opset=opset, ir_version=10, **WEIGHTS, **constants)


@pytest.mark.parametrize("name", NORMS)
def test_becomes_one_node(name: str) -> None:
    before = between_convolutions(name)
    after, _ = run_passes(before, "lift_constants", PASS, "eliminate_dead_code", target="cpu")
    assert [op for op in op_list(after) if op not in ("Conv", "Sigmoid", "Mul")] == ["FusedNorm"]
    for library in (True, False):
        assert_same(before, after, [{"x": draw(2, 32, 5, 7)}], library=library, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 32, 1, 1), (2, 32, 5, 7), (1, 32, 40, 33)])
@pytest.mark.parametrize("name", NORMS)
def test_channels_lie_last_between_convolutions_that_have_them_last(name: str, shape: tuple[int, ...]) -> None:
    before = between_convolutions(name)
    after, _ = run_passes(before, *REGION, target="cpu")
    assert op_list(after) == ["Transpose", "FusedConv", "FusedNorm", "FusedConv", "Transpose"]
    (found,) = attributes(after, "FusedNorm")
    assert found["channels_last"] == 1
    assert "silu" in found["epilogue"].decode()
    for library in (True, False):
        assert_same(before, after, [{"x": draw(*shape)}], library=library, rtol=1e-4, atol=1e-4)


def test_sequences() -> None:
    text = """g (float[N,32,L] x) => (float[N,32,M] y) {
        c = Conv<kernel_shape=[3], pads=[1,1]>(x, w) n = GroupNormalization<num_groups=1>(c, s, t) a = Relu(n)
        y = Conv<kernel_shape=[3], pads=[1,1]>(a, v)
    }"""
    before = model(
        text, opset=21, ir_version=10, w=draw(32, 32, 3), v=draw(32, 32, 3, seed=1), s=WEIGHTS["s"], t=WEIGHTS["t"]
    )
    after, _ = run_passes(before, *REGION, target="cpu")
    assert op_list(after) == ["Transpose", "FusedConv", "FusedNorm", "FusedConv", "Transpose"]
    for library in (True, False):
        assert_same(before, after, [{"x": draw(2, 32, 50)}], library=library, rtol=1e-4, atol=1e-4)


def test_what_is_added_before_stays_before() -> None:
    """The kernel reads its tensor twice: there is no prologue."""
    before = between_convolutions("InstanceNormalization").SerializeToString()
    proto = onnx.ModelProto.FromString(before)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("r", 1, ["N", 32, "A", "B"]))
    conv = proto.graph.node[0]
    conv.output[0] = "d"
    proto.graph.node.insert(1, onnx.helper.make_node("Sin", ["d"], ["e"]))
    proto.graph.node.insert(2, onnx.helper.make_node("Mul", ["e", "r"], ["c"]))
    after, _ = run_passes(proto, *REGION, target="cpu")
    (found,) = attributes(after, "FusedNorm")
    assert "prologue" not in found
    assert_same(
        proto, after, [{"x": draw(1, 32, 6, 6), "r": draw(1, 32, 6, 6, seed=5)}], library=True, rtol=1e-4, atol=1e-4
    )


def test_refuses_unknown_channels() -> None:
    text = "g (float[N,C,L] x, float[C] p) => (float[N,C,L] y) { y = InstanceNormalization(x, p, p) }"
    before = model(text, opset=17, ir_version=10)
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["InstanceNormalization"]
