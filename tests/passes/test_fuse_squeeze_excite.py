"""Squeeze-and-Excitation: which blocks become one node, and that it computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers import model, op_list, run_passes
from tests.passes.test_convolutions_channels_last import assert_equal, convert_all, weights  # noqa: F401

PASSES = ("convolutions_channels_last", "fuse_squeeze_excite", "sink_transposes", "fuse_epilogues")
HELD = weights(
    k=(12, 3, 3, 3), b=(12,), s=(5, 12, 1, 1), t=(5,), u=(12, 5, 1, 1), v=(12,), o=(7, 12, 1, 1),
    ms=(12, 5), mu=(5, 12), row=(1, 12), per_channel=(1, 12, 1, 1), half=(6, 5, 1, 1),
)  # fmt: skip
SHAPES = {
    "flat": np.array([0, 12]),
    "image": np.array([-1, 12, 1, 1]),
    "axes": np.array([2, 3]),
}


def network(middle: str, *, shape: str = "N,3,H,W") -> onnx.ModelProto:
    """A convolution of an image, then `middle`, which makes r of a."""
    text = f"""g (float[{shape}] x) => (float[N,7,C,D] y) {{
      c = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x, k, b)
      a = Relu (c)
      {middle}
      y = Conv (r, o)
    }}"""
    return model(text, **HELD, **SHAPES)


def convert(before: onnx.ModelProto) -> onnx.ModelProto:
    return run_passes(before, *PASSES, target="cpu")[0]


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


MEANS = {"pool": "m = GlobalAveragePool (a)", "mean": "m = ReduceMean <axes=[2,3]> (a)"}
PRODUCTS = {
    "convolutions": "p = Conv (m, s, t)  q = Relu (p)  e = Conv (q, u, v)  g = HardSigmoid (e)",
    "padding of nothing": 'p = Conv <auto_pad="SAME_UPPER"> (m, s, t)  q = Relu (p)  e = Conv (q, u, v)  g = Sigmoid (e)',
    "silu": "p = Conv (m, s, t)  i = Sigmoid (p)  q = Mul (p, i)  e = Conv (q, u, v)  g = Sigmoid (e)",
    "no biases": "p = Conv (m, s)  q = Relu (p)  e = Conv (q, u)  g = Sigmoid (e)",
    "no activations": "p = Conv (m, s, t)  g = Conv (p, u, v)",
    "Gemm": """f = Reshape (m, flat)  p = Gemm (f, ms, t)  q = Relu (p)  e = Gemm <transB=1> (q, mu_rows, row)
               h = Sigmoid (e)  g = Reshape (h, image)""",
    "MatMul": """f = Flatten (m)  p = MatMul (f, ms)  n = Add (t, p)  q = Relu (n)  e = MatMul (q, mu)
                 h = Add (e, v)  i = Sigmoid (h)  g = Unsqueeze (i, axes)""",
    "Squeeze": "f = Squeeze (m, axes)  p = MatMul (f, ms)  q = Tanh (p)  e = MatMul (q, mu)  i = Sigmoid (e)  g = Unsqueeze (i, axes)",
}  # fmt: skip


def with_rows(before: onnx.ModelProto) -> onnx.ModelProto:
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(HELD["mu"].T), "mu_rows"))
    return before


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_block_is_one_node(mean: str, product: str) -> None:
    before = with_rows(network(f"{MEANS[mean]}  {PRODUCTS[product]}  r = Mul (a, g)"))
    after = convert(before)
    assert op_list(after) == ["FusedConv", "FusedSqueezeExcite", "FusedConv", "Transpose"]
    assert_equal(before, after, {"x": image(2, 3, 14, 11)})


SQUEEZE = f"{MEANS['pool']}  {PRODUCTS['convolutions']}"
FINISHES = {
    "the other order": ("r = Mul (g, a)", False),
    "an activation": ("z = Mul (a, g)  r = HardSwish (z)", True),
    "its own input": ("z = Mul (a, g)  r = Add (a, z)", True),
    "a residual": ("w = Conv (a, square, b)  z = Mul (g, a)  l = Add (z, w)  r = Relu (l)", True),
}


@pytest.mark.parametrize("name", FINISHES)
def test_what_follows_is_its_epilogue(name: str) -> None:
    text, has_epilogue = FINISHES[name]
    before = network(f"{SQUEEZE}  {text}")
    before.graph.initializer.append(onnx.numpy_helper.from_array(image(12, 12, 1, 1), "square"))
    after = convert(before)
    (node,) = (node for node in after.graph.node if node.op_type == "FusedSqueezeExcite")
    assert not {"Mul", "Add", "Relu", "HardSwish"} & set(op_list(after))
    assert has_epilogue == any(attribute.name == "epilogue" for attribute in node.attribute) or name == "a residual"
    assert_equal(before, after, {"x": image(2, 3, 9, 9)})


READ_AGAIN = {
    "by another node": "w = MaxPool <kernel_shape=[1,1]> (a)  z = Mul (a, g)  v1 = Sigmoid (w)  v2 = Conv (v1, square)  r = Sub (z, v2)",
    "by its epilogue": "z = Mul (a, g)  h = Tanh (z)  r = Mul (h, a)",
}


@pytest.mark.parametrize("name", READ_AGAIN)
@pytest.mark.parametrize("shape", ["N,3,H,W", "2,3,30,30"])
def test_what_the_gates_scale_is_left_for_others(name: str, shape: str) -> None:
    """The result takes the memory of the tensor, where sizes are known, unless somebody reads that again."""
    before = network(f"{SQUEEZE}  {READ_AGAIN[name]}", shape=shape)
    before.graph.initializer.append(onnx.numpy_helper.from_array(image(12, 12, 1, 1), "square"))
    after = convert(before)
    assert op_list(after).count("FusedSqueezeExcite") == 1
    assert_equal(before, after, {"x": image(2, 3, 30, 30)})


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 3), st.integers(1, 30), st.integers(1, 30), st.sampled_from([0.0, np.nan, np.inf]))
def test_a_block_computes_the_same_for_any_size(batch: int, height: int, width: int, number: float) -> None:
    x = image(batch, 3, height, width)
    x[:1, :, :1, :1] += np.float32(number)
    before, after = BLOCK
    assert_equal(before, after, {"x": x})


BLOCK = (network(f"{SQUEEZE}  r = Mul (a, g)"), convert(network(f"{SQUEEZE}  r = Mul (a, g)")))

APART = {
    "gates used elsewhere": (f"{SQUEEZE}  z = Mul (a, g)  r = Sub (z, g)", "also used elsewhere"),
    "means used elsewhere": (f"{SQUEEZE}  z = Mul (a, g)  r = Sub (z, m)", "also used elsewhere"),
    "other means": (f"w = Neg (a)  m = GlobalAveragePool (w)  {PRODUCTS['convolutions']}  r = Mul (a, g)", "no mean of what"),
    "means of rows": (f"n = ReduceMean <axes=[2]> (a)  m = ReduceMax <axes=[3]> (n)  {PRODUCTS['convolutions']}  r = Mul (a, g)", "no mean"),
    "one product": (f"{MEANS['pool']}  e = Conv (m, per_channel_weights)  g = Sigmoid (e)  r = Mul (a, g)", "no two products"),
    "groups": (f"{MEANS['pool']}  p = Conv (m, s, t)  e = Conv <group=1, pads=[1,1,1,1]> (p, u, v)  n = GlobalAveragePool (e)  g = Sigmoid (n)  r = Mul (a, g)", None),
    "an activation per channel": (f"{MEANS['pool']}  p = Conv (m, s, t)  e = Conv (p, u, v)  h = Mul (e, per_channel)  g = Sigmoid (h)  r = Mul (a, g)", None),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_refuses(name: str) -> None:
    text, sentence = APART[name]
    before = network(text)
    before.graph.initializer.append(onnx.numpy_helper.from_array(image(12, 12, 1, 1), "per_channel_weights"))
    after, report = run_passes(before, *PASSES, target="cpu", explain=True)
    assert "FusedSqueezeExcite" not in op_list(after)
    told = [str(one.refusal) for one in report.near_misses if one.rule == "fuse_squeeze_excite"]
    assert sentence is None or any(sentence in one for one in told), told


def test_a_tensor_that_is_not_channels_last_stays() -> None:
    text = f"g (float[N,12,H,W] a) => (float[N,12,H,W] r) {{ {SQUEEZE}  r = Mul (a, g) }}"
    after, report = run_passes(model(text, **HELD), "fuse_squeeze_excite", target="cpu", explain=True)
    assert "FusedSqueezeExcite" not in op_list(after)
    assert any("not channels-last" in str(one.refusal) for one in report.near_misses)


def test_other_targets_stay_as_they_are() -> None:
    text = "g (float[N,H,W,12] a) => (float[N,H,W,12] r) { m = ReduceMean <axes=[1,2], keepdims=0> (a)  " + (
        "p = MatMul (m, ms)  q = Relu (p)  e = MatMul (q, mu)  g = Sigmoid (e)  w = Reshape (g, last)  r = Mul (a, w) }"
    )
    before = model(text, **HELD, last=np.array([-1, 1, 1, 12]))
    assert op_list(run_passes(before, "fuse_squeeze_excite", target="cpu")[0]) == ["FusedSqueezeExcite"]
    assert "FusedSqueezeExcite" not in op_list(run_passes(before, "fuse_squeeze_excite", target="cuda")[0])
