"""Depthwise and pointwise convolutions: which pairs become one node, and that it computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.helpers import model, op_list, run_passes
from tests.passes.test_convolutions_channels_last import assert_equal, convert_all, weights  # noqa: F401

PASSES = ("convolutions_channels_last", "sink_transposes", "fuse_epilogues", "fuse_separable_convs")
HELD = weights(w=(12, 3, 3, 3), d=(12, 1, 3, 3), g=(12, 4, 3, 3), p=(20, 12, 1, 1), q=(12, 20, 1, 1), b=(12,), c=(20,))


def network(middle: str, *, outputs: str = "float[1,12,H,W] y") -> onnx.ModelProto:
    """A convolution of an image, then `middle`, which makes r of a."""
    text = f"""g (float[1,3,40,40] x) => ({outputs}) {{
      a = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x, w, b)
      {middle}
      y = Conv <kernel_shape=[1,1]> (r, q, b)
    }}"""
    return model(text, **HELD)


def convert(before: onnx.ModelProto) -> onnx.ModelProto:
    return run_passes(before, *PASSES, target="cpu")[0]


DW = "Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=12>"
PAIRS = {
    "plain": f"s = {DW} (a, d, b)  r = Conv (s, p, c)",
    "activations": f"s = {DW} (a, d, b)  t = HardSwish (s)  u = Conv (t, p, c)  r = Relu (u)",
    "a slow activation": f"s = {DW} (a, d, b)  t = Tanh (s)  r = Conv (t, p, c)",
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_one_node(name: str) -> None:
    before = network(PAIRS[name])
    after = convert(before)
    assert op_list(after) == ["FusedConv", "FusedSeparableConv", "FusedConv", "Transpose"]
    x = np.random.default_rng(0).standard_normal((1, 3, 40, 40)).astype(np.float32)
    assert_equal(before, after, {"x": x})


def test_a_residual_is_added_at_the_end() -> None:
    before = network(f"t = Conv (a, p, c)  s = {DW} (a, d, b)  u = Conv (s, p, c)  r = Add (u, t)")
    after = convert(before)
    assert op_list(after).count("FusedSeparableConv") == 1
    x = np.random.default_rng(0).standard_normal((1, 3, 40, 40)).astype(np.float32)
    assert_equal(before, after, {"x": x})


APART = {
    "the result is used elsewhere": f"s = {DW} (a, d, b)  v = Conv (s, p, c)  u = Conv (s, p, c)  r = Add (u, v)",
    "no bias": f"s = {DW} (a, d)  r = Conv (s, p, c)",
    "not depthwise": "s = Conv (a, p, c)  r = Conv <kernel_shape=[1,1]> (s, m, c)",
    "groups of several channels": "s = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=3> (a, g, b)  r = Conv (s, p, c)",
    "not pointwise": f"s = {DW} (a, d, b)  r = Conv <pads=[1,1,1,1]> (s, p, c)",
}


@pytest.mark.parametrize("name", APART)
def test_refuses(name: str) -> None:
    before = network(APART[name])
    before.graph.initializer.extend([onnx.numpy_helper.from_array(np.ones((20, 20, 1, 1), np.float32), "m")])
    assert "FusedSeparableConv" not in op_list(convert(before))
