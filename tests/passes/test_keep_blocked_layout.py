"""What stands between convolutions stays in onnxruntime's blocked layout."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from helpers import assert_same, model, op_list, ops, run_passes
from onnxopt import ir
from onnxopt.fusions.blocked_layout import BlockedLayout, resizes_in_blocks
from onnxopt.passes.base import Context
from onnxopt.pipeline import PassManager
from onnxopt.runtime.target import Target

PASS = "keep_blocked_layout"
RNG = np.random.default_rng(0)


def randoms(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def between(middle: str, *, channels: int = 32, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    """A model whose padded convolution reads `y`, made by `middle` of the result `a` of another one."""
    text = f"""g (float[N,16,H,W] x) => (float[N,16,h,k] z) {{
        a = Conv<pads=[1,1,1,1]>(x, w)
        {middle}
        z = Conv<pads=[1,1,1,1]>(y, v)
    }}"""
    w, v = randoms(channels, 16, 3, 3) / 9, randoms(16, channels, 3, 3) / 9
    return model(text, opset=opset, w=w, v=v, **constants)


def feeds() -> list[dict[str, np.ndarray]]:
    return [{"x": randoms(2, 16, 7, 9)}, {"x": randoms(1, 16, 5, 5)}]


SCALARS = {"s": np.float32(0.7), "t": np.float32(-0.3)}
GATE = "h = HardSigmoid<alpha=0.16666667, beta=0.5>(a) b = Mul(a, h)"


@pytest.mark.parametrize(
    "middle",
    [
        "c = Mul(b, s) y = Add(c, t)",
        "c = Mul(s, b) y = Sub(c, t)",
        "c = Add(b, t) y = Div(c, s)",
        "y = Sub(t, b)",
        "c = Add(b, t) d = Mul(c, s) e = Add(d, s) y = Sub(e, t)",
    ],
)
def test_scales_and_shifts_become_one_normalization(middle: str) -> None:
    before = between(f"{GATE} {middle}", **SCALARS)
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["Conv", "HardSigmoid", "Mul", "BatchNormalization", "Conv"]
    assert_same(before, after, feeds())


def test_constants_per_channel() -> None:
    before = between(f"{GATE} c = Mul(b, scale) y = Add(c, shift)", scale=randoms(1, 32, 1, 1), shift=randoms(32, 1, 1))
    after, _ = run_passes(before, PASS, target="cpu")
    assert ops(after)["BatchNormalization"] == 1
    assert_same(before, after, feeds())


@pytest.mark.parametrize(
    ("middle", "constants"),
    [
        pytest.param("c = Add(b, row) y = Identity(c)", {"row": randoms(9)}, id="along another axis"),
        pytest.param("c = Add(b, t) y = Exp(c)", {}, id="no convolution reads it"),
        pytest.param("e = Exp(b) y = Add(e, t)", {}, id="not blocked before"),
        pytest.param("c = Div(t, b) y = Identity(c)", {}, id="divides by the tensor"),
    ],
)
def test_others_stay(middle: str, constants: dict[str, np.ndarray]) -> None:
    before = between(f"{GATE} {middle}", **SCALARS, **constants)
    after, _ = run_passes(before, PASS, target="cpu")
    assert "BatchNormalization" not in ops(after)


@pytest.mark.parametrize("target", ["generic", "cuda"])
def test_other_targets_keep_their_ops(target: str) -> None:
    before = between(f"{GATE} c = Mul(b, s) y = Add(c, t)", **SCALARS)
    after, _ = run_passes(before, PASS, target=target)
    assert op_list(after) == op_list(before)


def test_values_that_others_use_as_well_are_not_lost() -> None:
    before = between(f"{GATE} c = Mul(b, s) y = Add(c, t)", **SCALARS)
    before.graph.output.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, None))
    after, _ = run_passes(before, PASS, target="cpu")
    assert_same(before, after, feeds())


def blocked(proto: onnx.ModelProto) -> set[str]:
    loaded = ir.load(proto)
    layout = BlockedLayout(loaded.graph, Context(loaded, target=Target.named("cpu")))
    return {node.name or node.op_type for node in loaded.graph if layout.channels(node.outputs[0]) is not None}


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"),
    [
        *((3, 24, 1), (16, 8, 1), (24, 32, 1), (17, 16, 1), (32, 7, 1)),
        *((8, 8, 8), (24, 24, 24), (5, 5, 5), (24, 48, 24)),
        *((48, 48, 2), (48, 48, 3), (48, 48, 4)),
    ],
)
def test_convolutions_that_onnxruntime_blocks(inputs: int, outputs: int, groups: int) -> None:
    proto = model(
        f"g (float[N,{inputs},H,W] x) => (float[N,{outputs},H,W] y) {{ y = Conv<group={groups}>(x, w) }}",
        w=randoms(outputs, inputs // groups, 1, 1),
    )
    assert ("Conv" in blocked(proto)) is ("ReorderOutput" in by_onnxruntime(proto))


@pytest.mark.parametrize("channels", [24, 32])
@pytest.mark.parametrize(
    "op", ["MaxPool<kernel_shape=[3,3]>(a)", "AveragePool<kernel_shape=[3,3]>(a)", "Concat<axis=1>(a, a)"]
)
def test_others_that_onnxruntime_blocks(op: str, channels: int) -> None:
    proto = model(
        f"g (float[N,16,H,W] x) => (float[N,K,h,k] z) {{ a = Conv(x, w) y = {op} z = Relu(y) }}",
        w=randoms(channels, 16, 1, 1),
    )
    assert ("Relu" in blocked(proto)) is (by_onnxruntime(proto)[-1] == "ReorderOutput")


@pytest.mark.parametrize("factors", [(2.0, 2.0), (1.0, 3.0), (2.5, 2.0), (0.5, 0.5)], ids=str)
@pytest.mark.parametrize("given", ["scales", "sizes"])
@pytest.mark.parametrize(
    ("mode", "coordinates", "rounding"),
    [
        ("nearest", "asymmetric", "floor"),
        ("nearest", "half_pixel", "floor"),
        ("nearest", "asymmetric", "ceil"),
        ("linear", "asymmetric", "floor"),
        ("linear", "half_pixel", "floor"),
        ("linear", "align_corners", "floor"),
        ("linear", "pytorch_half_pixel", "floor"),
        ("cubic", "half_pixel", "floor"),
    ],
)
def test_resizes_that_onnxruntime_blocks(
    mode: str, coordinates: str, rounding: str, given: str, factors: tuple[float, float]
) -> None:
    numbers = {
        "scales": np.array([1, 1, *factors], np.float32),
        "sizes": np.array([1, 16, *(int(8 * factor) for factor in factors)], np.int64),
    }
    windows = f'mode="{mode}", coordinate_transformation_mode="{coordinates}", nearest_mode="{rounding}"'
    inputs = "a, , n" if given == "scales" else "a, , , n"
    proto = model(
        f"g (float[1,16,8,8] x) => (float[1,16,h,k] z) {{ a = Conv(x, w) y = Resize<{windows}>({inputs}) z = Conv(y, w) }}",
        w=randoms(16, 16, 1, 1),
        n=numbers[given],
    )
    loaded = ir.load(proto)
    (resize,) = (node for node in loaded.graph if node.op_type == "Resize")
    found = resizes_in_blocks(resize, Context(loaded, target=Target.named("cpu")))
    assert found is ("Upsample" in by_onnxruntime(proto))


def by_onnxruntime(proto: onnx.ModelProto) -> list[str]:
    """The ops that onnxruntime's own optimization leaves."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(path), 4
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return op_list(onnx.load(path))


@pytest.mark.parametrize(
    ("opset", "middle"),
    [
        (11, "b = Add(a, three) c = Clip(b, zero, six) d = Mul(a, c) y = Div(d, six)"),
        (17, "b = Add(a, three) c = Clip(b, zero, six) d = Mul(a, c) y = Div(d, six)"),
        (17, "h = Sigmoid(a) y = Mul(a, h)"),
        (20, "y = Gelu(a)"),
    ],
)
def test_activations_between_convolutions_are_left_in_the_layout(opset: int, middle: str) -> None:
    constants = {"zero": np.float32(0), "three": np.float32(3), "six": np.float32(6)}
    constants = {name: array for name, array in constants.items() if name in middle}
    before = between(middle, opset=opset, **constants)
    loaded = ir.load(onnx.ModelProto.FromString(before.SerializeToString()))
    PassManager("cpu").run(loaded)
    after = ir.to_proto(loaded)
    assert "FusedElementwise" not in ops(after)
    assert_same(before, after, feeds(), rtol=1e-4)


def test_activations_that_onnxruntime_computes_outside_the_layout_are_fused() -> None:
    before = between("p = Softplus(a) t = Tanh(p) y = Mul(a, t)", opset=17)
    after, _ = run_passes(before, "fuse_elementwise", target="cpu")
    assert ops(after)["FusedElementwise"] == 1
    assert_same(before, after, feeds(), rtol=1e-4)


@pytest.mark.parametrize("op", ["HardSwish(a)", "Mul(a, h)", "Mul(h, a)"])
def test_hard_swish_after_a_convolution_is_left_to_it(op: str) -> None:
    gate = "h = HardSigmoid<alpha=0.16666667, beta=0.5>(a)" if "h" in op.split("(")[1] else ""
    proto = model(
        f"g (float[N,16,H,W] x) => (float[N,16,H,W] z) {{ a = Conv<pads=[1,1,1,1]>(x, w) {gate} y = {op} e = Exp(y) z = Neg(e) }}",
        w=randoms(16, 16, 3, 3) / 9,
    )
    after, _ = run_passes(proto, "fuse_elementwise", target="cpu")
    assert ops(after)["FusedElementwise"] == 1
    assert ops(after)[op[: op.index("(")]] == 1
    assert_same(proto, after, feeds(), rtol=1e-4)


def test_other_gates_after_a_convolution_are_fused() -> None:
    proto = model(
        "g (float[N,16,H,W] x) => (float[N,16,H,W] z) { a = Conv(x, w) h = HardSigmoid(a) y = Mul(a, h) z = Neg(y) }",
        w=randoms(16, 16, 1, 1) / 9,
    )
    after, _ = run_passes(proto, "fuse_elementwise", target="cpu")
    assert op_list(after) == ["Conv", "FusedElementwise"]


def test_residual_after_the_last_convolution_is_fused() -> None:
    proto = model(
        "g (float[N,16,H,W] x) => (float[N,16,H,W] y) { a = Conv<pads=[1,1,1,1]>(x, w) b = Exp(a) y = Add(a, b) }",
        w=randoms(16, 16, 3, 3) / 9,
    )
    after, _ = run_passes(proto, "fuse_elementwise", target="cpu")
    assert ops(after)["FusedElementwise"] == 1
