"""Conv and activation in one node, with and without the kernel."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "fuse_conv_activations"
RNG = np.random.default_rng(0)


def randoms(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def convolution(activation: str, *, bias: bool = True, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    weights = {"w": randoms(6, 2, 3, 3), **({"b": randoms(6)} if bias else {})}
    operands = "x, w, b" if bias else "x, w"
    text = f"""g (float[N,4,H,W] x) => (float[N,6,h,k] y) {{
        c = Conv<group=2, pads=[1,0,1,1], strides=[1,2]>({operands})
        y = {activation}
    }}"""
    return model(text, opset=opset, **weights, **constants)


def feeds() -> list[dict[str, np.ndarray]]:
    return [{"x": randoms(2, 4, 9, 7) * 3}, {"x": randoms(1, 4, 5, 12)}]


def without_kernel(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model under a domain that onnxruntime has no kernels of, so that the bodies run."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    for item in [*copy.graph.node, *copy.functions, *copy.opset_import]:
        if item.domain == "com.microsoft":
            item.domain = "elsewhere"
    return copy


CASES = [
    ("Relu(c)", {}),
    ("Sigmoid(c)", {}),
    ("Tanh(c)", {}),
    ("LeakyRelu(c)", {}),
    ("LeakyRelu<alpha=0.3>(c)", {}),
    ("HardSigmoid(c)", {}),
    ("HardSigmoid<alpha=0.16666667, beta=0.4>(c)", {}),
    ("Clip(c, low, high)", {"low": np.float32(0), "high": np.float32(6)}),
    ("Clip(c, low)", {"low": np.float32(-0.5)}),
    ("Clip(c, , high)", {"high": np.float32(0.5)}),
]


@pytest.mark.parametrize(("activation", "constants"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("bias", [True, False])
def test_activation(activation: str, constants: dict[str, np.ndarray], bias: bool) -> None:
    before = convolution(activation, bias=bias, **constants)
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["FusedConv"]
    assert_same(before, after, feeds(), rtol=1e-4)
    assert_same(before, without_kernel(after), feeds(), rtol=0, atol=0)


def test_clip_by_attributes() -> None:
    before = convolution("Clip<min=-0.5, max=0.25>(c)", opset=9)
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["FusedConv"]
    assert_same(before, after, feeds())
    assert_same(before, without_kernel(after), feeds(), rtol=0, atol=0)


@pytest.mark.parametrize(("activation", "constants"), CASES, ids=[case[0] for case in CASES])
def test_non_finite_inputs_give_the_same(activation: str, constants: dict[str, np.ndarray]) -> None:
    before = convolution(activation, **constants)
    after, _ = run_passes(before, PASS, target="cpu")
    values = randoms(1, 4, 9, 9)
    values[0, 0, 0, 0], values[0, 2, 4, 4], values[0, 3, 8, 8] = np.inf, -np.inf, np.nan
    assert_same(before, after, {"x": values}, rtol=1e-4)


def test_equal_convolutions_share_one_body() -> None:
    before = model(
        "g (float[1,4,9,9] x) => (float[a,b,c,d] y) { c = Conv(x, w)\n r = Relu(c)\n d = Conv(r, w)\n y = Relu(d) }",
        w=randoms(4, 4, 3, 3),
    )
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["FusedConv", "FusedConv"]
    assert len(after.functions) == 1
    assert_same(before, after, {"x": randoms(1, 4, 9, 9)})


@pytest.mark.parametrize("target", ["generic", "cuda"])
def test_refuses_targets_without_the_kernel(target: str) -> None:
    assert op_list(run_passes(convolution("Relu(c)"), PASS, target=target)[0]) == ["Conv", "Relu"]


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, w)\n r = Relu(c)\n y = Add(r, c)",
        "c = Conv(x, w)\n r = Add(c, c)\n y = Relu(r)",
        "c = Conv(x, w)\n m = ReduceMax<keepdims=0>(x)\n y = Clip(c, m)",
    ],
)
def test_refuses(body: str) -> None:
    before = model(f"g (float[1,4,5,5] x) => (float[a,b,c,d] y) {{ {body} }}", w=randoms(4, 4, 3, 3))
    assert "FusedConv" not in op_list(run_passes(before, PASS, target="cpu")[0])
