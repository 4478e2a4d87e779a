"""Convolutions that expand, filter and project channels: which become one node, and that it computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.helpers import model, op_list, run_passes
from tests.passes.test_convolutions_channels_last import assert_equal, convert_all, weights  # noqa: F401

PASSES = (
    "convolutions_channels_last",
    "sink_transposes",
    "fuse_epilogues",
    "fuse_inverted_residuals",
    "fuse_separable_convs",
)
HELD = weights(
    w=(12, 3, 3, 3),
    e=(60, 12, 1, 1),
    d=(60, 1, 3, 3),
    p=(12, 60, 1, 1),
    q=(9, 12, 3, 3),
    b=(12,),
    c=(60,),
    o=(9,),
    i=(12, 12, 1, 1),
    k=(12, 1, 3, 3),
)
DW = "Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=60>"


def network(middle: str, size: str = "40,40", batch: str = "1") -> onnx.ModelProto:
    """A convolution of an image, then `middle`, which makes r of a."""
    text = f"""g (float[{batch},3,{size}] x) => (float[{batch},9,H,W] y) {{
      a = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x, w, b)
      {middle}
      y = Conv <kernel_shape=[3,3]> (r, q, o)
    }}"""
    return model(text, **HELD)


def convert(before: onnx.ModelProto) -> onnx.ModelProto:
    return run_passes(before, *PASSES, target="cpu")[0]


def image(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


BLOCKS = {
    "plain": f"s = Conv (a, e, c)  t = {DW} (s, d, c)  r = Conv (t, p, b)",
    "relu6": f"""l = Constant<value_float=0.0>()  h = Constant<value_float=6.0>()  s = Conv (a, e, c)  u = Clip (s, l, h)
        t = {DW} (u, d, c)  v = Clip (t, l, h)  r = Conv (v, p, b)""",
    "hard-swish": f"s = Conv (a, e, c)  u = HardSwish (s)  t = {DW} (u, d, c)  v = HardSwish (t)  f = Conv (v, p, b)  r = Relu (f)",
    "silu": f"""s = Conv (a, e, c)  m = Sigmoid (s)  u = Mul (s, m)  t = {DW} (u, d, c)  n = Sigmoid (t)  v = Mul (t, n)
        r = Conv (v, p, b)""",
    "tanh, residual": f"s = Conv (a, e, c)  u = Tanh (s)  t = {DW} (u, d, c)  f = Conv (t, p, b)  r = Add (f, a)",
    "strided": """s = Conv (a, e, c)  u = Relu (s)  t = Conv <kernel_shape=[3,3], pads=[0,0,1,1], strides=[2,2], group=60> (u, d, c)
        r = Conv (t, p, b)""",
    "auto_pad": """s = Conv (a, e, c)  t = Conv <kernel_shape=[3,3], auto_pad="SAME_UPPER", strides=[2,1], group=60> (s, d, c)
        r = Conv (t, p, b)""",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_one_node(name: str) -> None:
    before = network(BLOCKS[name])
    after = convert(before)
    assert op_list(after) == ["FusedConv", "FusedInvertedResidual", "FusedConv", "Transpose"]
    assert_equal(before, after, image(1, 3, 40, 40))


def test_a_block_of_any_size_is_one_node() -> None:
    before = network(BLOCKS["tanh, residual"], size="H0,W0", batch="N")
    after = convert(before)
    assert op_list(after).count("FusedInvertedResidual") == 1
    for shape in ((1, 3, 33, 40), (2, 3, 6, 91), (0, 3, 8, 8)):
        assert_equal(before, after, image(*shape))


APART = {
    "the expanded tensor is used elsewhere": f"s = Conv (a, e, c)  t = {DW} (s, d, c)  u = Add (s, t)  r = Conv (u, p, b)",
    "the filtered tensor is used elsewhere": f"s = Conv (a, e, c)  t = {DW} (s, d, c)  u = Conv (t, p, b)  v = Conv (t, p, b)  r = Mul (u, v)",
    "the expansion has no bias": f"s = Conv (a, e)  t = {DW} (s, d, c)  r = Conv (t, p, b)",
    "the expansion is strided": f"s = Conv <strides=[2,2]> (a, e, c)  t = {DW} (s, d, c)  r = Conv (t, p, b)",
    "the expansion adds another tensor": f"s = Conv (a, e, c)  z = Conv (a, e, c)  u = Add (s, z)  t = {DW} (u, d, c)  r = Conv (t, p, b)",
    "the channels are not expanded": "s = Conv (a, i, b)  t = Conv <group=12> (s, k, b)  r = Conv (t, i, b)",
    "the projection is padded": f"s = Conv (a, e, c)  t = {DW} (s, d, c)  r = Conv <pads=[1,1,1,1]> (t, p, b)",
}


@pytest.mark.parametrize("name", APART)
def test_refuses_where(name: str) -> None:
    before = network(APART[name])
    after = convert(before)
    assert "FusedInvertedResidual" not in op_list(after)
    assert_equal(before, after, image(1, 3, 40, 40))


def test_refuses_sequences() -> None:
    held = weights(e=(60, 12, 1), d=(60, 1, 3), p=(12, 60, 1), q=(12, 12, 3), b=(12,), c=(60,))
    text = """g (float[1,12,80] x) => (float[1,12,L] y) {
      a = Conv (x, q, b)  s = Conv (a, e, c)  t = Conv <group=60> (s, d, c)  r = Conv (t, p, b)  y = Conv (r, q, b)
    }"""
    before = model(text, **held)
    after = convert(before)
    assert "FusedInvertedResidual" not in op_list(after)
    assert_equal(before, after, image(1, 12, 80))
