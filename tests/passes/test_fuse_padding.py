"""Pads before convolutions and poolings."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "fuse_padding"
RNG = np.random.default_rng(0)
CONV = "Conv(p, w)"
AVERAGE = "AveragePool<kernel_shape=[3,3]>(p)"
MAXIMUM = "MaxPool<kernel_shape=[3,3]>(p)"
SIDES = np.array([0, 0, 1, 2, 0, 0, 2, 1])


def padded(window: str, *, before: str = "", **constants: np.ndarray) -> onnx.ModelProto:
    """Pad of x [2,3,5,6] (or of what `before` makes of it, s) and a window op."""
    operands = ", ".join(name for name in ("amounts", "value", "axes") if name in constants)
    if "axes" in constants and "value" not in constants:
        operands = "amounts, , axes"
    weights = {"w": RNG.standard_normal((4, 3, 3, 2)).astype(np.float32)} if "w)" in window else {}
    text = f"""g (float[2,3,5,6] x) => (float[a,b,c,d] y) {{
        {before}
        p = Pad({"s" if before else "x"}, {operands})
        y = {window}
    }}"""
    return model(text, opset=19, **weights, **constants)


def inputs() -> dict[str, np.ndarray]:
    return {"x": RNG.standard_normal((2, 3, 5, 6)).astype(np.float32)}


def with_non_finite() -> dict[str, np.ndarray]:
    feeds = inputs()
    feeds["x"][0, 0, 0, 0], feeds["x"][0, 1, 4, 5], feeds["x"][1, 2, 2, 2] = np.inf, -np.inf, np.nan
    return feeds


@pytest.mark.parametrize(
    "window",
    [
        CONV,
        "Conv<pads=[1,0,0,1]>(p, w)",
        'Conv<auto_pad="VALID">(p, w)',
        "Conv<strides=[2,1], dilations=[2,1]>(p, w)",
        AVERAGE,
        "AveragePool<kernel_shape=[3,4], strides=[2,3]>(p)",
        'AveragePool<kernel_shape=[3,3], auto_pad="VALID">(p)',
        "AveragePool<kernel_shape=[4,4], pads=[1,1,1,1], count_include_pad=1>(p)",
    ],
)
@pytest.mark.parametrize("value", [{}, {"value": np.float32(0)}], ids=["default", "zero"])
def test_zeros_before_window(window: str, value: dict[str, np.ndarray]) -> None:
    before = padded(window, amounts=SIDES, **value)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == [window.partition("<")[0].partition("(")[0]]
    assert_same(before, after, [inputs(), with_non_finite()])


def test_minus_infinity_before_maximum() -> None:
    before = padded(MAXIMUM, amounts=SIDES, value=np.float32(-np.inf))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["MaxPool"]
    assert_same(before, after, inputs())


@pytest.mark.parametrize("before", ["s = Relu(x)", "s = Clip(x, low)", "s = Sigmoid(x)"])
def test_zeros_before_maximum_of_what_is_never_negative(before: str) -> None:
    source = padded(MAXIMUM, before=before, amounts=SIDES, value=np.float32(0), low=np.float32(0.5))
    after, _ = run_passes(source, PASS)
    assert op_list(after)[1:] == ["MaxPool"]
    assert_same(source, after, inputs())


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3]])
def test_axes(axes: list[int]) -> None:
    before = padded(CONV, amounts=np.array([1, 2, 0, 3][: 2 * len(axes)]), axes=np.array(axes))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv"]
    assert_same(before, after, inputs())


@pytest.mark.parametrize("rank", [3, 5])
def test_other_ranks(rank: int) -> None:
    sizes = [2, 3, 5, 4, 3][:rank]
    amounts = np.array([0, 0, 1, 1, 2][:rank] + [0, 0, 2, 0, 1][:rank])
    text = f"g (float[{','.join(map(str, sizes))}] x) => (float[{','.join('abcde'[:rank])}] y) {{ p = Pad(x, amounts)\n y = Conv(p, w) }}"
    weights = RNG.standard_normal((4, 3, *([2] * (rank - 2)))).astype(np.float32)
    before = model(text, amounts=amounts, w=weights)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv"]
    assert_same(before, after, {"x": RNG.standard_normal(sizes).astype(np.float32)})


def test_attribute_form() -> None:
    before = model(
        "g (float[2,3,5,6] x) => (float[a,b,c,d] y) { p = Pad<pads=[0,0,1,2,0,0,2,1]>(x)\n y = Conv(p, w) }",
        opset=10,
        w=RNG.standard_normal((4, 3, 3, 2)).astype(np.float32),
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv"]
    assert_same(before, after, inputs())


def test_chain_of_pads() -> None:
    before = padded(CONV, before="s = Pad(x, first)", amounts=SIDES, first=np.array([0, 0, 0, 1, 0, 0, 1, 0]))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv"]
    assert_same(before, after, inputs())


@pytest.mark.parametrize("opset", [10, 13])
def test_merges_pads_of_one_value(opset: int) -> None:
    if opset < 11:
        body = "s = Pad<pads=[1,0,0,2], value=3.0>(x)\n y = Pad<pads=[0,1,1,0], value=3.0>(s)"
        before = model(f"g (float[2,3] x) => (float[a,b] y) {{ {body} }}", opset=opset)
    else:
        before = model(
            "g (float[2,3] x) => (float[a,b] y) { s = Pad(x, p, v)\n y = Pad(s, q, v) }",
            opset=opset,
            p=np.array([1, 0, 0, 2]),
            q=np.array([0, 1, 1, 0]),
            v=np.float32(3),
        )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Pad"]
    assert_same(before, after, {"x": RNG.standard_normal((2, 3)).astype(np.float32)})


def test_refuses_pads_of_two_values() -> None:
    before = padded("Pad(p, amounts, other)", amounts=SIDES, value=np.float32(1), other=np.float32(2))
    assert op_list(run_passes(before, PASS)[0]) == ["Pad", "Pad"]


@pytest.mark.parametrize(
    ("window", "constants", "reason"),
    [
        (CONV, {"value": np.float32(1)}, "pads with 1.0"),
        (CONV, {"amounts": np.array([1, 0, 1, 1, 0, 0, 1, 1])}, "batch"),
        (CONV, {"amounts": np.array([0, 0, -1, 1, 0, 0, 1, 1])}, "crops"),
        ('Conv<auto_pad="SAME_UPPER">(p, w)', {}, "auto_pad"),
        ("AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(p)", {}, "not counted"),
        ("AveragePool<kernel_shape=[3,3], ceil_mode=1, strides=[2,2]>(p)", {}, "ceil_mode"),
        ("AveragePool<kernel_shape=[2,2]>(p)", {}, "padding alone"),
        (MAXIMUM, {}, "may be a maximum"),
        ("MaxPool<kernel_shape=[3,3], dilations=[2,1]>(p)", {"value": np.float32(-np.inf)}, "gaps"),
        ("MaxPool<kernel_shape=[3,3], ceil_mode=1>(p)", {"value": np.float32(-np.inf)}, "ceil_mode"),
    ],
)
def test_refuses(window: str, constants: dict[str, np.ndarray], reason: str) -> None:
    amounts = constants.pop("amounts", SIDES)
    before = padded(window, amounts=amounts, **constants)
    after, report = run_passes(before, PASS, explain=True)
    assert op_list(after)[0] == "Pad"
    assert any(reason in str(miss.refusal) for miss in report.near_misses)
    assert_same(before, after, inputs())


def test_refuses_indices() -> None:
    before = model(
        "g (float[2,3,5,6] x) => (float[a,b,c,d] y, int64[a,b,c,d] i) { p = Pad(x, amounts, low)\n y, i = MaxPool<kernel_shape=[3,3]>(p) }",
        amounts=SIDES,
        low=np.float32(-np.inf),
    )
    assert op_list(run_passes(before, PASS)[0]) == ["Pad", "MaxPool"]


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_refuses_other_modes(mode: str) -> None:
    before = model(
        f'g (float[2,3,5,6] x) => (float[a,b,c,d] y) {{ p = Pad<mode="{mode}">(x, amounts)\n y = Conv(p, w) }}',
        amounts=SIDES,
        w=np.ones((4, 3, 3, 2), np.float32),
    )
    assert op_list(run_passes(before, PASS)[0]) == ["Pad", "Conv"]


def test_refuses_pad_that_others_use() -> None:
    before = model(
        "g (float[2,3,5,6] x) => (float[a,b,c,d] y, float[a,b,c,d] z) { p = Pad(x, amounts)\n y = Conv(p, w)\n z = Relu(p) }",
        amounts=SIDES,
        w=np.ones((4, 3, 3, 2), np.float32),
    )
    assert op_list(run_passes(before, PASS)[0]) == ["Pad", "Conv", "Relu"]


def test_refuses_weights_that_are_padded() -> None:
    before = model(
        "g (float[2,3,5,6] x, float[4,3,2,2] k) => (float[a,b,c,d] y) { w = Pad(k, amounts)\n y = Conv(x, w) }",
        amounts=np.array([0, 0, 0, 0, 0, 0, 1, 0]),
    )
    assert op_list(run_passes(before, PASS)[0]) == ["Pad", "Conv"]


def cropped(conv: str, bounds: dict[str, np.ndarray], *, size: str = "9", more: str = "") -> onnx.ModelProto:
    """A convolution of x [2,3,9] and a Slice of its results."""
    text = f"g (float[2,3,{size}] x) => (float[a,b,c] y{', float[a,b,d] z' if more else ''}) {{ p = {conv} y = Slice(p, starts, ends, axes) {more} }}"
    return model(text, opset=17, w=RNG.standard_normal((4, 3, 4)).astype(np.float32), **bounds)


def along(start: int, end: int, axis: int = 2) -> dict[str, np.ndarray]:
    return {"starts": np.array([start]), "ends": np.array([end]), "axes": np.array([axis])}


CROPPED = {
    "behind, as causal convolutions": ("Conv<pads=[3,3]>(x, w)", along(0, 9), [3, 0]),
    "a part of it": ("Conv<pads=[3,3]>(x, w)", along(0, -2), [3, 1]),
    "before": ("Conv<pads=[3,3]>(x, w)", along(3, 100), [0, 3]),
    "on both sides": ("Conv<pads=[3,3]>(x, w)", along(1, -1), [2, 2]),
    "with gaps": ("Conv<pads=[6,6], dilations=[2]>(x, w)", along(0, 9), [6, 0]),
}


@pytest.mark.parametrize("name", CROPPED)
def test_padding_that_is_cropped(name: str) -> None:
    conv, bounds, pads = CROPPED[name]
    before = cropped(conv, bounds)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Conv"]
    (made,) = (attribute for attribute in after.graph.node[0].attribute if attribute.name == "pads")
    assert list(made.ints) == pads
    x = RNG.standard_normal((2, 3, 9)).astype(np.float32)
    x[0, 1, 8], x[1, 0, 0] = np.inf, np.nan
    assert_same(before, after, {"x": x})


NOT_CROPPED = {
    "more than padding": ("Conv<pads=[3,3]>(x, w)", along(0, 7), ""),
    "strides": ("Conv<pads=[3,3], strides=[2]>(x, w)", along(0, 4), ""),
    "channels": ("Conv<pads=[3,3]>(x, w)", along(0, 2, axis=1), ""),
    "others read all": ("Conv<pads=[3,3]>(x, w)", along(0, 9), "z = Relu(p)"),
    "auto_pad": ('Conv<auto_pad="SAME_UPPER">(x, w)', along(0, 8), ""),
}


@pytest.mark.parametrize("name", NOT_CROPPED)
def test_slices_that_stay(name: str) -> None:
    conv, bounds, more = NOT_CROPPED[name]
    before = cropped(conv, bounds, more=more)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)
