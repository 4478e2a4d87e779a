"""Scales and shifts per channel in convolutions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from helpers import assert_same, model, op_list, run_passes
from onnxopt.passes.fuse_into_convolutions import _sums_of_products

PASS = "fuse_into_convolutions"
RNG = np.random.default_rng(0)


def randoms(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def spatial(rank: int) -> list[int]:
    return [7, 6, 5][: rank - 2]


def case(
    after: str,
    *,
    op: str = "Conv",
    rank: int = 4,
    groups: int = 1,
    bias: bool = True,
    before: str = "",
    attributes: str = "",
    opset: int = 17,
    dtype: type = np.float32,
    **constants: np.ndarray,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A convolution of 4 to 6 channels with nodes before (x to a) and after (r to y)."""
    kernel = [3, 2, 2][: rank - 2]
    weights = {"w": randoms(*((6, 4 // groups) if op == "Conv" else (4, 6 // groups)), *kernel, dtype=dtype)}
    if bias:
        weights["b"] = randoms(6, dtype=dtype)
    source, result = ("a" if before else "x"), ("r" if after else "y")
    kind = {np.float32: "float", np.float16: "float16", np.float64: "double"}[dtype]
    shape = ",".join(str(dim) for dim in [2, 4, *spatial(rank)])
    text = f"""g ({kind}[{shape}] x) => ({kind}[{",".join("abcdef"[:rank])}] y) {{
        {before}
        {result} = {op}<group={groups} {attributes}>({source}, w{", b" if bias else ""})
        {after}
    }}"""
    return model(text, opset=opset, **weights, **constants), {"x": randoms(2, 4, *spatial(rank), dtype=dtype)}


def norm(channels: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {
        "scale": randoms(channels, dtype=dtype),
        "shift": randoms(channels, dtype=dtype),
        "mean": randoms(channels, dtype=dtype),
        "var": np.abs(randoms(channels, dtype=dtype)) + dtype(0.1),
    }


AFTER_NORM = "y = BatchNormalization<epsilon=0.01>(r, scale, shift, mean, var)"


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_becomes_weights(op: str, rank: int, groups: int, bias: bool) -> None:
    before, feeds = case(AFTER_NORM, op=op, rank=rank, groups=groups, bias=bias, **norm(6))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == [op]
    assert_same(before, after, feeds)


@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1), (1, 6, 1, 1), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize(
    "after",
    [
        "y = Mul(r, c)",
        "y = Mul(c, r)",
        "y = Div(r, c)",
        "y = Add(r, c)",
        "y = Add(c, r)",
        "y = Sub(r, c)",
        "y = Sub(c, r)",
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_constant_of_every_broadcast_shape(shape: tuple[int, ...], after: str, bias: bool) -> None:
    before, feeds = case(after, groups=2, bias=bias, c=randoms(*shape))
    result, _ = run_passes(before, PASS)
    assert op_list(result) == ["Conv"]
    assert_same(before, result, feeds)


def test_mul_alone_adds_no_bias() -> None:
    before, _ = case("y = Mul(r, c)", bias=False, c=randoms(6, 1, 1))
    after, _ = run_passes(before, PASS)
    assert len(after.graph.node[0].input) == 2


def test_chain_after_becomes_one_convolution() -> None:
    chain = "s = Mul(r, c)\n t = Add(s, d)\n y = BatchNormalization(t, scale, shift, mean, var)"
    before, feeds = case(chain, c=randoms(6, 1, 1), d=randoms(1, 6, 1, 1), **norm(6))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv"]
    assert_same(before, after, feeds)


def squeezed(axes: list[int], after: str, sizes: str = "7,1", **constants: np.ndarray) -> onnx.ModelProto:
    text = f"""g (float[2,4,{sizes}] x) => (float[a,b,c] y) {{ r = Conv<pads=[1,0,1,0]>(x, w, b) q = Squeeze(r, axes) {after} }}"""
    return model(text, w=randoms(6, 4, 3, 1), b=randoms(6), axes=np.array(axes, np.int64), **constants)


@pytest.mark.parametrize("axes", [[3], [-1]])
@pytest.mark.parametrize(
    ("after", "constants"),
    [
        ("y = Add(q, c)", {"c": randoms(1, 6, 1)}),
        ("s = Mul(q, c) y = Sub(s, d)", {"c": randoms(6, 1), "d": randoms(1)}),
        ("y = BatchNormalization(q, scale, shift, mean, var)", norm(6)),
    ],
)
def test_dims_of_size_1_may_go_between(axes: list[int], after: str, constants: dict[str, np.ndarray]) -> None:
    before = squeezed(axes, after, **constants)
    after_, _ = run_passes(before, PASS)
    assert op_list(after_) == ["Conv", "Squeeze"]
    assert_same(before, after_, {"x": randoms(2, 4, 7, 1)})


@pytest.mark.parametrize(
    ("before", "left"),
    [
        (squeezed([3], "y = Add(q, c)", c=randoms(6, 7)), ["Conv", "Squeeze", "Add"]),
        (squeezed([3], "s = Add(q, c) y = Mul(s, q)", c=randoms(6, 1)), ["Conv", "Squeeze", "Add", "Mul"]),
        (
            model(
                "g (float[1,4,7,5] x) => (float[a,b,c] y) { r = Conv(x, w) q = Squeeze(r, axes) y = Add(q, c) }",
                w=randoms(6, 4, 1, 1),
                axes=np.array([0], np.int64),
                c=randoms(6, 1, 1),
            ),
            ["Conv", "Squeeze", "Add"],
        ),
    ],
)
def test_refuses_behind_a_squeeze(before: onnx.ModelProto, left: list[str]) -> None:
    assert op_list(run_passes(before, PASS)[0]) == left


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [1, 2])
def test_scale_before_padded_convolution(op: str, groups: int) -> None:
    before, feeds = case(
        "", before="a = Mul(x, c)", op=op, groups=groups, attributes=", pads=[1,1,1,1]", c=randoms(4, 1, 1)
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == [op]
    assert_same(before, after, feeds)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("attributes", ["", ', auto_pad="VALID"'])
def test_norm_before_unpadded_convolution(bias: bool, groups: int, attributes: str) -> None:
    before, feeds = case(
        "",
        before="a = BatchNormalization(x, scale, shift, mean, var)",
        groups=groups,
        bias=bias,
        attributes=attributes,
        **norm(4),
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv"]
    assert_same(before, after, feeds, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attributes", [", pads=[1,0,0,0]", ', auto_pad="SAME_UPPER"'])
def test_refuses_shift_before_padded_convolution(attributes: str) -> None:
    before, _ = case("", before="a = Add(x, c)", attributes=attributes, c=randoms(4, 1, 1))
    after, report = run_passes(before, PASS, explain=True)
    assert op_list(after) == ["Add", "Conv"]
    assert any("padding" in str(miss.refusal) for miss in report.near_misses)


def test_refuses_shift_before_transposed_convolution() -> None:
    before, _ = case("", before="a = Add(x, c)", op="ConvTranspose", c=randoms(4, 1, 1))
    assert op_list(run_passes(before, PASS)[0]) == ["Add", "ConvTranspose"]


@pytest.mark.parametrize("shape", [(6,), (1, 5), (6, 1), (2, 1, 1, 1), (1, 1, 1, 1, 1), (6, 5, 5)], ids=str)
def test_refuses_constant_that_varies_elsewhere(shape: tuple[int, ...]) -> None:
    """Their right dims meet the spatial axes, the batch, or a dim that the convolution does not have."""
    kernel = randoms(6, 4, 3, 3)
    size = 6 if shape == (6,) else 5
    rank = max(4, len(shape))
    before = model(
        f"g (float[2,4,{size + 2},{size + 2}] x) => (float[{','.join('abcde'[:rank])}] y) {{ r = Conv(x, w)\n y = Mul(r, c) }}",
        w=kernel,
        c=randoms(*(size if dim == 5 else dim for dim in shape)) if shape != (1, 5) else randoms(1, 5),
    )
    assert op_list(run_passes(before, PASS)[0]) == ["Conv", "Mul"]


def test_refuses_constant_that_widens_one_channel() -> None:
    before = model(
        "g (float[1,4,5,5] x) => (float[a,b,c,d] y) { r = Conv(x, w)\n y = Mul(r, c) }",
        w=randoms(1, 4, 3, 3),
        c=randoms(6, 1, 1),
    )
    assert op_list(run_passes(before, PASS)[0]) == ["Conv", "Mul"]


def test_refuses_input_that_is_broadcast() -> None:
    before = model(
        "g (float[1,1,5,5] x) => (float[a,b,c,d] y) { a = Mul(x, c)\n y = Conv(a, w) }",
        w=randoms(2, 4, 3, 3),
        c=randoms(4, 1, 1),
    )
    assert op_list(run_passes(before, PASS)[0]) == ["Mul", "Conv"]


def test_refuses_result_that_others_use() -> None:
    before, _ = case("s = Mul(r, c)\n y = Add(s, r)", c=randoms(6, 1, 1))
    assert op_list(run_passes(before, PASS)[0]) == ["Conv", "Mul", "Add"]


def test_refuses_norm_in_training_mode() -> None:
    before, _ = case("y, m, v = BatchNormalization<training_mode=1>(r, scale, shift, mean, var)", **norm(6))
    assert op_list(run_passes(before, PASS)[0]) == ["Conv", "BatchNormalization"]


def test_refuses_weights_that_the_caller_may_override() -> None:
    before = model(
        "g (float[1,4,5,5] x, float[6,4,3,3] w) => (float[a,b,c,d] y) { r = Conv(x, w)\n y = Mul(r, c) }",
        w=randoms(6, 4, 3, 3),
        c=randoms(6, 1, 1),
    )
    assert op_list(run_passes(before, PASS)[0]) == ["Conv", "Mul"]


def test_bias_needs_no_constant_weights() -> None:
    before = model(
        "g (float[1,4,5,5] x, float[6,4,3,3] w) => (float[a,b,c,d] y) { r = Conv(x, w)\n y = Add(r, c) }",
        c=randoms(6, 1, 1),
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv"]
    assert_same(before, after, {"x": randoms(1, 4, 5, 5), "w": randoms(6, 4, 3, 3)})


@pytest.mark.parametrize("shared_channels", [64, 4], ids=["large", "small"])
def test_shared_weights_are_copied_only_when_small(shared_channels: int) -> None:
    before = model(
        f"""g (float[1,{shared_channels},5,5] x) => (float[a,b,c,d] y, float[a,b,c,d] z) {{
            r = Conv(x, w)
            y = Mul(r, c)
            z = Conv<strides=[2,2]>(x, w)
        }}""",
        w=randoms(64, shared_channels, 3, 3),
        c=randoms(64, 1, 1),
    )
    after, _ = run_passes(before, PASS)
    assert ("Mul" in op_list(after)) == (shared_channels == 64)
    assert_same(before, after, {"x": randoms(1, shared_channels, 5, 5)})


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_refuses_scale_that_is_not_finite(number: float) -> None:
    before, feeds = case("y = Mul(r, c)", c=np.float32(number))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv", "Mul"]
    assert_same(before, after, feeds)


def test_division_by_zero_stays() -> None:
    before, _ = case("y = Div(r, c)", c=np.float32(0))
    assert op_list(run_passes(before, PASS)[0]) == ["Conv", "Div"]


def test_non_finite_inputs_give_the_same() -> None:
    before, feeds = case(AFTER_NORM, attributes=", pads=[1,1,1,1]", **norm(6))
    feeds["x"][0, 1, 2, 3], feeds["x"][0, 2, 1, 1], feeds["x"][1, 3, 0, 0] = np.inf, -np.inf, np.nan
    after, _ = run_passes(before, PASS)
    assert_same(before, after, feeds)


def test_float16() -> None:
    before, feeds = case(AFTER_NORM, dtype=np.float16, **norm(6, np.float16))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv"]
    assert_same(before, after, feeds, rtol=0, atol=4e-3)


@pytest.mark.parametrize("number", [1e-6, 6e4])
def test_refuses_float16_weights_out_of_range(number: float) -> None:
    before, _ = case("y = Mul(r, c)", dtype=np.float16, c=np.float16(number))
    assert op_list(run_passes(before, PASS)[0]) == ["Conv", "Mul"]


def test_double_keeps_its_precision() -> None:
    """By onnx's own evaluator: onnxruntime has no convolution of doubles."""
    before, feeds = case(AFTER_NORM, dtype=np.float64, **norm(6, np.float64))
    after, _ = run_passes(before, PASS)
    expected, actual = (ReferenceEvaluator(one).run(None, feeds)[0] for one in (before, after))
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 20])
def test_every_form_of_batch_norm(opset: int) -> None:
    before, feeds = case(AFTER_NORM, opset=opset, **norm(6))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv"]
    assert_same(before, after, feeds)


def test_dynamic_sizes() -> None:
    before = model(
        "g (float[N,4,H,W] x) => (float[N,6,h,w] y) { a = Mul(x, c)\n r = Conv(a, w)\n y = Add(r, d) }",
        w=randoms(6, 4, 3, 3),
        c=randoms(4, 1, 1),
        d=randoms(6, 1, 1),
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv"]
    assert_same(before, after, [{"x": randoms(1, 4, 3, 9)}, {"x": randoms(3, 4, 5, 3)}])


def test_inside_a_branch() -> None:
    before = model(
        """g (float[1,4,5,5] x, bool c) => (float[1,6,3,3] y) {
            y = If(c) <
                then_branch = t () => (float[1,6,3,3] p) { r = Conv(x, w)
                    p = Mul(r, k) },
                else_branch = e () => (float[1,6,3,3] q) { q = Conv(x, w) }
            >
        }""",
        w=randoms(6, 4, 3, 3),
        k=randoms(6, 1, 1),
    )
    after, _ = run_passes(before, PASS)
    feeds = [{"x": randoms(1, 4, 5, 5), "c": np.array(flag)} for flag in (True, False)]
    assert_same(before, after, feeds)
    branch = next(attr.g for attr in after.graph.node[0].attribute if attr.name == "then_branch")
    assert [node.op_type for node in branch.node] == ["Conv"]


@pytest.mark.parametrize("shape", [(1, 300, 70, 9), (3, 129, 40, 1), (64, 1, 1, 25), (1, 2, 5000, 1)])
def test_sums_are_the_same_however_many_rows_are_taken_at_once(shape: tuple[int, ...]) -> None:
    blocks, factor = randoms(*shape), randoms(shape[0], 1, shape[2], 1).astype(np.float64)
    sums = (blocks * factor).sum(axis=(2, 3))
    assert np.allclose(_sums_of_products(blocks, factor).reshape(sums.shape), sums, rtol=1e-12, atol=1e-12)
