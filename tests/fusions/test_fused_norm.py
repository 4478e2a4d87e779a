"""Normalizations and Softmax that become FusedNorm and FusedSoftmax, with what is element-wise before and after them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxopt
from helpers import assert_same, model, op_list, run_passes
from onnxopt.runtime.costs import Costs

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
PASSES = (
    "lift_constants",
    "fuse_group_norms",
    "fuse_norms",
    "fuse_softmax",
    "fuse_epilogues",
    "fuse_prologues",
    "eliminate_dead_code",
)


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


WEIGHTS: dict[str, Array] = {
    "scale": draw(16, seed=1),
    "bias": draw(16, seed=2),
    "channel_scale": draw(8, 1, 1, seed=3),
    "channel_bias": draw(8, 1, 1, seed=4),
    "ones": np.ones(16, np.float32),
    "zeros": np.zeros(16, np.float32),
    "group_ones": np.ones(4, np.float32),
    "group_zeros": np.zeros(4, np.float32),
    "in_groups": np.array([0, 4, -1]),
    "two": np.array(2, np.float32),
    "one": np.array(1, np.float32),
    "half": np.array(0.5, np.float32),
    "epsilon": np.array(1e-5, np.float32),
    "low": np.array(-1e9, np.float32),
}


def graph(
    body: str, inputs: str = "float[N,S,16] x", outputs: str = "float[N,S,16] y", *, opset: int = 17
) -> onnx.ModelProto:
    used = {name: array for name, array in WEIGHTS.items() if re.search(rf"[(,]\s*{name}\b", body)}
    return model(f"g ({inputs}) => ({outputs}) {{ {body} }}", opset=opset, ir_version=10, **used)


def feeds(proto: onnx.ModelProto, **sizes: int) -> dict[str, Array]:
    made: dict[str, Array] = {}
    for index, value in enumerate(proto.graph.input):
        tensor = value.type.tensor_type
        shape = [dim.dim_value or sizes[dim.dim_param] for dim in tensor.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        array = draw(*shape, seed=index)
        made[value.name] = array > 1 if kind == np.bool_ else array.astype(kind)
    return made


def attributes(proto: onnx.ModelProto, op: str = "FusedNorm") -> dict[str, Any]:
    (node,) = (node for node in proto.graph.node if node.op_type == op)
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def assert_becomes(
    before: onnx.ModelProto, expected: list[str], *, tolerance: float = 1e-5, **sizes: int
) -> onnx.ModelProto:
    """The passes make these ops, which compute the same with the library and by their bodies, also for numbers that are not finite."""
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert op_list(after) == expected
    given = feeds(before, **({"N": 3, "S": 45, "H": 5, "W": 9} | sizes))
    broken = {name: array.copy() for name, array in given.items()}
    for array in broken.values():
        if array.dtype.kind == "f" and array.size:
            array.flat[-1] = np.nan
            array.flat[0] = np.inf
    for library in (False, True):
        assert_same(before, after, [given, broken], library=library, rtol=tolerance, atol=tolerance)
    return after


LAYER_NORM = "y = LayerNormalization<epsilon=0.001>(x, scale, bias)"
RMS_NORM = """s = Mul(x, x)
    m = ReduceMean<axes=[-1]>(s)
    e = Add(m, epsilon)
    r = Sqrt(e)
    n = Div(x, r)
    y = Mul(n, scale)"""
DECOMPOSED = """m = ReduceMean<axes=[-1]>(x)
    c = Sub(x, m)
    s = Pow(c, two)
    v = ReduceMean<axes=[-1]>(s)
    e = Add(v, epsilon)
    r = Sqrt(e)
    n = Div(c, r)
    z = Mul(n, scale)
    y = Add(z, bias)"""
GROUP_NORM = """g = Reshape(x, in_groups)
    n = InstanceNormalization(g, group_ones, group_zeros)
    shape = Shape(x)
    u = Reshape(n, shape)
    z = Mul(u, channel_scale)
    y = Add(z, channel_bias)"""
IMAGE = ("float[N,8,H,W] x", "float[N,8,H,W] y")


# --- one node ---
def test_layer_norm() -> None:
    after = assert_becomes(graph(LAYER_NORM), ["FusedNorm"])
    assert attributes(after) == {"kind": b"layer", "axis": -1, "epsilon": pytest.approx(1e-3), "scaled": 1, "biased": 1}


@pytest.mark.parametrize("axis", [-2, 1])
def test_layer_norm_of_two_axes(axis: int) -> None:
    before = model(
        f"g (float[N,30,16] x) => (float[N,30,16] y) {{ y = LayerNormalization<axis={axis}>(x, w) }}",
        ir_version=10,
        w=draw(30, 16),
    )
    assert attributes(assert_becomes(before, ["FusedNorm"], N=3))["axis"] == -2


def test_scale_and_bias_that_change_nothing_go() -> None:
    after = assert_becomes(graph("y = LayerNormalization(x, ones, zeros)"), ["FusedNorm"])
    assert "scaled" not in attributes(after) and "biased" not in attributes(after)


@pytest.mark.parametrize("opset", [11, 13, 16])
def test_written_out_where_the_opset_has_no_op(opset: int) -> None:
    after = assert_becomes(graph(DECOMPOSED, opset=opset), ["FusedNorm"])
    assert attributes(after)["scaled"] == attributes(after)["biased"] == 1


@pytest.mark.parametrize("opset", [11, 17])
def test_rms_norm(opset: int) -> None:
    assert attributes(assert_becomes(graph(RMS_NORM, opset=opset), ["FusedNorm"]))["kind"] == b"rms"


def test_rms_norm_of_the_standard() -> None:
    assert_becomes(graph("y = RMSNormalization<epsilon=0.01>(x, scale)", opset=23), ["FusedNorm"])


@pytest.mark.parametrize("opset", [11, 17])
def test_axis_in_the_middle(opset: int) -> None:
    body = DECOMPOSED.replace("[-1]", "[1]").replace("scale", "channel_scale").replace("bias", "channel_bias")
    after = assert_becomes(graph(body, *IMAGE, opset=opset), ["FusedNorm"])
    assert (attributes(after)["axis"], attributes(after)["inner"]) == (-3, 2)


def test_moments_of_flax() -> None:
    body = """total = ReduceSum<keepdims=1>(x, axes)
        mean = Mul(total, share)
        q = Mul(x, x)
        squares = ReduceSum<keepdims=1>(q, axes)
        second = Mul(squares, share)
        first = Mul(mean, mean)
        d = Sub(second, first)
        v = Max(d, zero)
        e = Add(v, epsilon)
        r = Sqrt(e)
        i = Reciprocal(r)
        f = Mul(i, factor)
        c = Sub(x, mean)
        y = Mul(c, f)"""
    numbers = {"share": np.float32(1 / 40), "zero": np.float32(0), "epsilon": np.float32(1e-5)}
    before = model(
        f"g (float[N,40,S] x) => (float[N,40,S] y) {{ {body} }}", ir_version=10, axes=np.array([1]), factor=draw(40, 1),
        **{name: np.array(number) for name, number in numbers.items()},
    )  # fmt: skip
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert op_list(after) == ["FusedNorm"]
    assert_same(before, after, feeds(before, N=3, S=7), library=True, rtol=1e-4, atol=1e-5)
    wrong = onnx.ModelProto.FromString(before.SerializeToString())
    (share,) = (one for one in wrong.graph.initializer if one.name == "share")
    share.CopyFrom(onnx.numpy_helper.from_array(np.array(1 / 39, np.float32), "share"))
    assert "FusedNorm" not in op_list(run_passes(wrong, *PASSES, target="cpu")[0])


# --- groups ---
def test_group_norm() -> None:
    after = assert_becomes(graph(GROUP_NORM, *IMAGE), ["FusedNorm"])
    assert attributes(after)["groups"] == 4


def test_group_norm_of_the_standard() -> None:
    before = model(
        "g (float[N,8,H,W] x) => (float[N,8,H,W] y) { y = GroupNormalization<num_groups=2>(x, s, b) }", opset=21, ir_version=10,
        s=draw(8), b=draw(8, seed=1),
    )  # fmt: skip
    assert attributes(assert_becomes(before, ["FusedNorm"]))["groups"] == 2


def test_instance_norm() -> None:
    before = model(
        "g (float[N,8,S] x) => (float[N,8,S] y) { y = InstanceNormalization(x, s, b) }",
        ir_version=10,
        s=draw(8),
        b=draw(8, seed=1),
    )
    assert attributes(assert_becomes(before, ["FusedNorm"]))["groups"] == 8


def test_refuses_groups_of_another_reshape() -> None:
    body = GROUP_NORM.replace("shape = Shape(x)", "shape = Identity(other)")
    before = graph(body, f"{IMAGE[0]}, int64[4] other", "float[A,8,B,C] y")
    assert op_list(run_passes(before, *PASSES, target="cpu")[0]).count("Reshape") == 2


# --- before and after ---
def test_residual_that_others_read_is_kept() -> None:
    body = "a = Add(x, r)\n b = LayerNormalization(a, scale, bias)\n y = Mul(b, b)\n z = Neg(a)"
    before = graph(body, "float[N,S,16] x, float[N,S,16] r", "float[N,S,16] y, float[N,S,16] z")
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert sorted(op_list(after)) == ["FusedNorm", "Neg"]
    for library in (False, True):
        assert_same(before, after, feeds(before, N=2, S=7), library=library, atol=1e-5, rtol=1e-5)


def test_residual_that_is_an_output_is_kept() -> None:
    body = "a = Add(x, r)\n y = LayerNormalization(a, scale, bias)"
    before = graph(body, "float[N,S,16] x, float[N,S,16] r", "float[N,S,16] y, float[N,S,16] a")
    assert attributes(assert_becomes(before, ["FusedNorm"]))["kept"] == 1


def test_residual_and_activation() -> None:
    body = "h = Mul(x, half)\n a = Add(h, r)\n n = LayerNormalization(a, scale, bias)\n t = Tanh(n)\n y = Add(t, r)"
    after = assert_becomes(graph(body, "float[N,S,16] x, float[N,S,16] r"), ["FusedNorm"])
    assert "kept" not in attributes(after)


def test_residual_that_the_epilogue_reads_is_not_kept_by_the_same_node() -> None:
    """What the epilogue reads would depend on the node itself."""
    body = "a = Add(x, r)\n n = LayerNormalization(a, scale, bias)\n y = Add(n, a)"
    before = graph(body, "float[N,S,16] x, float[N,S,16] r")
    assert_becomes(before, ["Add", "FusedNorm"])


def test_epilogue_that_depends_on_the_residual() -> None:
    body = "a = Add(x, r)\n n = LayerNormalization(a, scale, bias)\n m = ReduceMax<axes=[-1]>(a)\n y = Add(n, m)"
    before = graph(body, "float[N,S,16] x, float[N,S,16] r")
    after, _ = run_passes(before, *PASSES, target="cpu")
    onnx.checker.check_model(after, full_check=False)
    for library in (False, True):
        assert_same(before, after, feeds(before, N=2, S=7), library=library, rtol=1e-5, atol=1e-5)


def test_half_precision_around_a_norm() -> None:
    body = "f = Cast<to=1>(x)\n n = LayerNormalization(f, scale, bias)\n y = Cast<to=10>(n)"
    before = graph(body, "float16[N,S,16] x", "float16[N,S,16] y")
    assert_becomes(before, ["FusedNorm"], tolerance=2e-3)


def test_group_norm_with_activation() -> None:
    body = GROUP_NORM.replace("y = Add", "a = Add") + "\n s = Sigmoid(a)\n y = Mul(a, s)"
    assert_becomes(graph(body, *IMAGE), ["FusedNorm"])


def test_masked_softmax() -> None:
    body = "h = Mul(x, half)\n a = Where(mask, h, low)\n y = Softmax<axis=-1>(a)"
    width = Costs.of("cpu").softmax_width
    before = graph(body, f"float[N,S,{width}] x, bool[S,{width}] mask", "float[N,S,D] y")
    assert_becomes(before, ["FusedSoftmax"])


def test_softmax_along_another_axis() -> None:
    after = assert_becomes(graph("y = Softmax<axis=1>(x)", *IMAGE), ["FusedSoftmax"])
    assert attributes(after, "FusedSoftmax") == {"axis": -3}


def test_softmax_then_activation() -> None:
    width = Costs.of("cpu").softmax_width
    before = graph("s = LogSoftmax<axis=2>(x)\n y = Neg(s)", f"float[N,S,{width}] x", f"float[N,S,{width}] y")
    assert attributes(assert_becomes(before, ["FusedSoftmax"]), "FusedSoftmax")["log"] == 1


# --- refusals ---
REFUSED: dict[str, tuple[onnx.ModelProto, str, str]] = {
    "double": (
        model("g (double[N,16] x) => (double[N,16] y) { y = LayerNormalization(x, w) }", w=np.ones(16)), "fuse_norm", "the kernel computes float32",
    ),
    "small": (graph(LAYER_NORM, "float[4,16] x", "float[4,16] y"), "fuse_norm", "its tensor is small"),
    "mean that is used": (
        graph("y, mean = LayerNormalization(x, scale, bias)", outputs="float[N,S,16] y, float[N,S,1] mean"), "fuse_norm", "its mean or deviation is used",
    ),
    "axes apart": (graph(DECOMPOSED.replace("[-1]", "[0, 2]"), opset=13), "fuse_decomposed_layer_norm", "the means are not over the same trailing axes"),
    "unknown rank": (model(
        "g (float[N,S,16] x, int64[R] s) => (float y) { r = Reshape(x, s) y = LayerNormalization(r, w) }", w=draw(16)), "fuse_norm", "the rank of 'r' is unknown"),
    "softmax alone": (graph("y = Softmax(x)"), "fuse_softmax", "onnxruntime computes it as fast where nothing element-wise is next to it"),
    "narrow softmax": (
        graph("h = Mul(x, half)\n a = Exp(h)\n y = Softmax(a)"), "fuse_softmax", "rows of 16 elements are too short",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    before, rule, reason = REFUSED[case]
    after, report = run_passes(before, "fuse_norms", "fuse_softmax", target="cpu", explain=True)
    assert not {"FusedNorm", "FusedSoftmax"} & set(op_list(after))
    assert reason in {str(one.refusal) for one in report.near_misses if one.rule == rule}


def test_target_generic_has_no_custom_ops() -> None:
    for body in (LAYER_NORM, DECOMPOSED, RMS_NORM):
        after = onnxopt.optimize(graph(body), target="generic")
        assert all(node.domain == "" for node in after.graph.node)


def test_limit_of_small_tensors() -> None:
    rows = -(-Costs.of("cpu").norm_elements // 16)
    for count, expected in ((rows, ["FusedNorm"]), (rows - 1, ["LayerNormalization"])):
        before = graph(LAYER_NORM, f"float[{count},16] x", f"float[{count},16] y")
        assert op_list(run_passes(before, *PASSES, target="cpu")[0]) == expected


# --- any shape ---
@given(n=st.integers(0, 4), s=st.integers(0, 70), opset=st.sampled_from([13, 17, 21]), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_optimized_equals_original(n: int, s: int, opset: int, seed: int) -> None:
    norm = (
        "b = LayerNormalization(a, scale, bias)"
        if opset >= 17
        else DECOMPOSED.replace("x,", "a,").replace("(x)", "(a)").replace("y =", "b =")
    )
    before = graph(
        f"a = Add(x, p)\n {norm}\n y = Sigmoid(b)",
        "float[N,S,16] x, float[S,16] p",
        "float[N,S,16] y, float[N,S,16] a",
        opset=opset,
    )
    after = onnxopt.optimize(before, strict=True)
    assert op_list(after) == ["FusedNorm"]
    given = {"x": draw(n, s, 16, seed=seed), "p": draw(s, 16, seed=seed + 1)}
    for library in (False, True):
        assert_same(before, after, given, library=library, rtol=1e-5, atol=1e-5)
