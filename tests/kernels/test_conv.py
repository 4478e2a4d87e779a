"""Every variant of the convolution and pooling kernels against float64."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from onnxopt import ir
from onnxopt.ops import fused_conv_transpose
from onnxopt.runtime.library import native

VARIANTS = [
    variant["name"]
    for op in native().ops()
    if op["op"] == "FusedConv"
    for variant in op["variants"]
    if variant["usable"]
]
WINOGRAD_ERROR = 2e-5
"""Of the largest result: its transformations lose some bits."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution of x [N, *size, C] by filters [M, C / group, *kernel]."""

    batch: int
    size: tuple[int, ...]
    channels: int
    filters: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1

    def attributes(self) -> dict[str, object]:
        rank = len(self.size)
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides or (1,) * rank),
            "pads": list(self.pads or (0,) * 2 * rank),
            "dilations": list(self.dilations or (1,) * rank),
            "group": self.group,
            "filters": self.filters,
        }

    def arrays(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((self.batch, *self.size, self.channels)).astype(np.float32)
        w = rng.standard_normal((self.filters, self.channels // self.group, *self.kernel)).astype(np.float32)
        return x, w, rng.standard_normal(self.filters).astype(np.float32)


CASES = [
    Case(1, (7, 9), 3, 16, (3, 3), (2, 2), (1, 1, 1, 1)),
    Case(2, (5, 6), 20, 33, (1, 1)),
    Case(1, (6, 5), 17, 18, (1, 1), (2, 2)),
    Case(1, (13, 17), 12, 7, (3, 3), (1, 1), (1, 1, 1, 1)),
    Case(1, (8, 8), 12, 20, (3, 3), (1, 1), (1, 1, 1, 1), group=4),
    Case(3, (8, 8), 3, 5, (1, 3), (1, 1), (0, 1, 0, 1)),
    Case(1, (14, 15), 5, 7, (7, 7), (2, 2), (3, 3, 3, 3)),
    Case(1, (9, 8), 40, 20, (3, 2), (1, 2), (0, 1, 2, 3), (2, 1)),
    Case(1, (3, 3), 300, 40, (3, 3), (1, 1), (1, 1, 1, 1)),
    Case(1, (1, 1), 96, 24, (1, 1)),
    Case(2, (50,), 10, 20, (3,), (2,), (1, 1)),
    Case(1, (4, 4), 1, 1, (4, 4)),
    # One and two windows.
    Case(1, (1, 1), 70, 200, (1, 1)),
    Case(2, (3, 3), 40, 150, (3, 3), (2, 2), (0, 0, 1, 1)),
    # Taps, and whole windows, that lie in the padding.
    Case(1, (6, 5), 20, 18, (3, 3), (1, 1), (7, 6, 7, 6), (7, 6)),
    Case(2, (14, 14), 300, 33, (3, 3), (1, 1), (12, 12, 12, 12), (12, 12)),
    Case(1, (2, 3), 4, 5, (3, 3), (2, 2), (9, 9, 9, 9), (2, 2)),
]
DEPTHWISE = [
    Case(1, (9, 9), 19, 19, (5, 5), (1, 1), (2, 2, 2, 2), group=19),
    Case(1, (9, 30), 35, 35, (3, 3), (2, 1), (1, 1, 0, 1), group=35),
    Case(2, (12, 12), 8, 8, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), group=8),
    Case(1, (3, 3), 70, 70, (7, 7), (1, 1), (3, 3, 3, 3), group=70),
    Case(1, (11, 2), 130, 130, (3, 3), (1, 1), (1, 1, 1, 1), group=130),
    Case(1, (6, 7), 5, 5, (2, 4), (3, 2), (1, 2, 0, 1), group=5),
    Case(2, (40,), 33, 33, (3,), (1,), (1, 1), group=33),
    Case(1, (5, 4), 20, 20, (2, 2), (1, 1), (6, 6, 6, 6), group=20),
    Case(1, (8, 9), 10, 10, (3, 5), (2, 2), (1, 2, 1, 2), group=10),
]
LANES = [
    Case(1, (9, 13), 24, 24, (3, 3), (1, 1), (1, 1, 1, 1), group=6),
    Case(2, (11, 10), 56, 56, (3, 3), (2, 2), (1, 1, 1, 1), group=7),
    Case(1, (7, 19), 96, 96, (3, 3), (1, 1), (1, 0, 2, 1), group=12),
    Case(1, (6, 5), 6, 6, (3, 3), (1, 1), (1, 1, 1, 1), group=3),
    Case(2, (9, 8), 40, 40, (5, 5), (1, 1), (2, 2, 2, 2), group=5),
    Case(1, (12, 12), 64, 64, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), group=16),
    Case(1, (6, 5), 64, 64, (1, 1), group=8),
    Case(2, (30,), 36, 36, (3,), (1,), (1, 1), group=9),
    Case(1, (3, 3), 24, 24, (7, 7), (1, 1), (3, 3, 3, 3), group=12),
    Case(1, (1, 1), 12, 12, (3, 3), (1, 1), (1, 1, 1, 1), group=3),
]
"""Groups that are lanes of a vector."""
LINEWISE = [
    Case(1, (9, 13), 48, 48, (3, 3), (2, 2), (1, 1, 1, 1), group=3),
    Case(2, (9, 18), 32, 32, (3, 3), (2, 2), (0, 0, 1, 1), group=2),
    Case(1, (7, 19), 144, 144, (5, 5), (1, 2), (2, 0, 1, 2), group=9),
    Case(1, (12, 12), 64, 64, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), group=4),
    Case(1, (3, 4), 32, 32, (7, 7), (1, 1), (3, 3, 3, 3), group=2),
    Case(1, (7, 7), 144, 144, (3, 3), (1, 1), (1, 1, 1, 1), group=9),
    Case(2, (30,), 48, 48, (4,), (1,), (1, 1), group=3),
    Case(1, (6, 5), 64, 64, (1, 1), group=4),
    # of other groups, whose windows lie in the image or cross its border, in some lines or in all
    Case(1, (13, 29), 36, 36, (3, 3), (2, 2), (1, 1, 1, 1), group=3),
    Case(2, (15, 9), 48, 120, (5, 3), (2, 1), (2, 1, 2, 0), group=2),
    Case(1, (28, 6), 60, 33, (3, 5), (1, 2), (0, 4, 1, 4), (2, 1), group=3),
    Case(1, (2, 3), 40, 40, (5, 5), (2, 2), (2, 2, 2, 2), group=2),
    Case(2, (33,), 80, 12, (4,), (3,), (0, 3), group=4),
    Case(2, (17, 25), 16, 30, (3, 3), (2, 2), (1, 1, 1, 1)),
    Case(1, (9, 31), 13, 40, (5, 3), (3, 1), (2, 1, 0, 3), (1, 2)),
    Case(1, (8, 8), 112, 112, (5, 5), (2, 2), (2, 2, 2, 2), group=2),
]
"""Few channels, or groups of them, that are multiplied line by line; groups of whole panels first."""
WINOGRAD = [
    Case(1, (40, 40), 32, 48, (3, 3), (1, 1), (1, 1, 1, 1)),
    Case(1, (31, 30), 64, 40, (3, 3), (1, 1), (0, 0, 0, 0)),
    Case(2, (22, 27), 19, 35, (3, 3), (1, 1), (1, 2, 0, 1)),
    Case(2, (25, 18), 64, 80, (3, 3), (1, 1), (1, 1, 1, 1), group=2),
    Case(1, (32, 32), 72, 111, (3, 3), (1, 1), (1, 2, 0, 1), group=3),
    # Fewer inputs than weights, which are transformed some channels at a time.
    Case(2, (13, 9), 150, 70, (3, 3), (1, 1), (1, 1, 1, 1)),
    Case(1, (14, 14), 262, 166, (3, 3), (1, 1), (1, 2, 0, 1), group=2),
    # Sequences, along either axis, whole and in parts; windows of 5; both.
    Case(2, (53,), 40, 50, (3,), (1,), (1, 1)),
    Case(1, (410,), 33, 35, (5,), (1,), (2, 1)),
    Case(2, (211, 1), 64, 48, (5, 1), (1, 1), (0, 0, 0, 0)),
    Case(1, (7, 30), 24, 40, (1, 3), (1, 1), (1, 1, 2, 1)),
    Case(1, (20,), 300, 200, (3,), (1,), (0, 2), group=2),
    Case(2, (13, 21), 32, 40, (5, 5), (1, 1), (2, 2, 1, 2)),
    Case(1, (9, 8), 160, 170, (5, 5), (1, 1), (2, 2, 2, 2)),
]


def convolve(case: Case, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The convolution in float64."""
    rank = len(case.size)
    attributes = case.attributes()
    strides, pads, dilations = (attributes[name] for name in ("strides", "pads", "dilations"))
    padded = np.pad(x.astype(np.float64), [(0, 0), *zip(pads[:rank], pads[rank:], strict=True), (0, 0)])
    outputs = [(padded.shape[1 + i] - (case.kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(rank)]
    depth, per_group = case.channels // case.group, case.filters // case.group
    y = np.zeros((case.batch, *outputs, case.filters))
    for tap in itertools.product(*map(range, case.kernel)):
        at = [
            slice(tap[i] * dilations[i], tap[i] * dilations[i] + (outputs[i] - 1) * strides[i] + 1, strides[i])
            for i in range(rank)
        ]
        for group in range(case.group):
            part = slice(group * per_group, (group + 1) * per_group)
            inputs = padded[(slice(None), *at, slice(group * depth, (group + 1) * depth))]
            y[..., part] += inputs @ w[(part, slice(None), *tap)].T.astype(np.float64)
    return y


def run(
    case: Case, x: np.ndarray, w: np.ndarray, *more: np.ndarray, variant: str, threads: int = 1, **attributes: object
) -> np.ndarray:
    inputs = [x, ir.pack_filters(w, case.group), *more]
    return native().run("FusedConv", inputs, case.attributes() | attributes, variant, threads)[0]


def assert_close(actual: np.ndarray, expected: np.ndarray, error: float) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=error * np.abs(expected).max(initial=1e-30))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES + DEPTHWISE + LANES + LINEWISE, ids=str)
def test_equals_float64(case: Case, variant: str) -> None:
    x, w, bias = case.arrays()
    assert_close(run(case, x, w, bias, variant=variant, biased=1), convolve(case, x, w) + bias, 2e-6)
    assert_close(run(case, x, w, variant=variant), convolve(case, x, w), 2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", WINOGRAD, ids=str)
def test_winograd_equals_float64(case: Case, variant: str) -> None:
    x, w, bias = case.arrays()
    assert_close(run(case, x, w, bias, variant=variant, biased=1), convolve(case, x, w) + bias, WINOGRAD_ERROR)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "case", [CASES[0], CASES[1], CASES[8], *CASES[-3:], *DEPTHWISE[:2], *LANES[:3], *LINEWISE[:3], *WINOGRAD], ids=str
)
def test_threads_do_not_change_a_bit(case: Case, variant: str) -> None:
    x, w, _ = case.arrays()
    once = run(case, x, w, variant=variant)
    for threads in (2, 4):
        np.testing.assert_array_equal(run(case, x, w, variant=variant, threads=threads), once)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize(
    "case", [CASES[3], DEPTHWISE[0], LANES[0], LINEWISE[0], *(WINOGRAD[i] for i in (0, 5, 8, 10, 12))], ids=str
)
def test_what_is_not_finite_reaches_its_windows_alone(case: Case, number: float, variant: str) -> None:
    x, w, _ = case.arrays()
    w = np.abs(w) + np.float32(0.1)
    x[(0, *(size // 2 for size in case.size), 1)] = number
    with np.errstate(all="ignore"):
        expected = convolve(case, x, w).astype(np.float32)
    actual = run(case, x, w, variant=variant)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(actual), np.isinf(expected))
    finite = np.isfinite(expected)
    scale = np.abs(convolve(case, np.where(np.abs(x) < 1e6, x, 0), w)).max()
    ordinary = finite & (np.abs(expected) < 1e6)
    np.testing.assert_allclose(actual[ordinary], expected[ordinary], rtol=0, atol=WINOGRAD_ERROR * scale)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "case", [CASES[1], DEPTHWISE[0], LANES[0], LINEWISE[0], WINOGRAD[0], Case(1, (14, 14), 40, 70, (3, 3))], ids=str
)
@pytest.mark.parametrize(
    "expression",
    [
        "i0:f32 | t0=relu(i0) | t0:f32",
        "i0:f32 | t0=clip(i0,#-0.5:f32,#0x1.8p+0:f32) | t0:f32",
        "i0:f32 i1:f32 | t0=add(i0,i1) t1=relu(t0) | t1:f32",
        "i0:f32 i1:f32 | t0=add(i1,i0) | t0:f32",
        "i0:f32 | t0=hard_swish(i0) | t0:f32",
        "i0:f32 | t0=hard_sigmoid(i0,#0.25:f32,#0.5:f32) t1=mul(t0,i0) t2=mul(#0.5:f32,t1) t3=add(t2,#2.0:f32) | t3:f32",
        "i0:f32 | t0=silu(i0) | t0:f32",
        "i0:f32 i1:f32 | t0=mul(i0,i1) t1=tanh(t0) | t1:f32",
        # Statements that nobody asks for.
        "i0:f32 | t0=hard_swish(i0) t1=mul(#2.0:f32,t0) | t0:f32",
        "i0:f32 i1:f32 | t0=add(i0,i1) t1=relu(t0) | t0:f32",
    ],
)
@pytest.mark.parametrize("shared", [False, True], ids=["one_each", "per_channel"])
def test_epilogue_equals_the_expression_on_the_result(case: Case, expression: str, shared: bool, variant: str) -> None:
    x, w, _ = case.arrays()
    raw = run(case, x, w, variant=variant)
    shape = raw.shape[-1:] if shared else raw.shape
    more = [np.random.default_rng(1).standard_normal(shape).astype(np.float32)] if "i1" in expression else []
    expected = native().run("FusedElementwise", [raw, *more], {"expr": expression})[0]
    for threads in (1, 3):
        actual = run(case, x, w, *more, variant=variant, threads=threads, epilogue=expression)
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("size", "batch"), [((0, 4), 1), ((4, 4), 0)])
def test_nothing_gives_nothing(size: tuple[int, int], batch: int, variant: str) -> None:
    case = Case(batch, size, 8, 9, (1, 1))
    x, w, _ = case.arrays()
    assert run(case, x, w, variant=variant).shape == (batch, *size, 9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [(1, {}), (3, {}), (3, {"dilations": [2, 2]}), (3, {"group": 5}), (3, {"planar": 1})],
    ids=str,
)
def test_no_channels_give_the_biases(kernel: int, attributes: dict[str, Any], variant: str) -> None:
    bias = np.arange(20, dtype=np.float32)
    groups = attributes.get("group", 1)
    x = np.ones((2, 0, 4, 5) if "planar" in attributes else (2, 4, 5, 0), np.float32)
    attributes = {"kernel_shape": [kernel] * 2, "pads": [3] * 4, "filters": 20, "biased": 1} | attributes
    panels = -(-20 // groups // 16)
    y = native().run("FusedConv", [x, np.ones((groups, panels, 0, 16), np.float32), bias], attributes, variant)[0]
    np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("op", ["FusedSeparableConv", "FusedSqueezeExcite"])
def test_products_of_no_channels(op: str, variant: str) -> None:
    bias = np.arange(20, dtype=np.float32)
    none, weights = np.ones(0, np.float32), np.ones((1, 2, 0, 16), np.float32)
    if op == "FusedSeparableConv":
        inputs = [np.ones((2, 4, 5, 0), np.float32), np.ones((9, 0), np.float32), none, weights, bias]
        y = native().run(op, inputs, {"kernel_shape": [3, 3], "filters": 20}, variant)[0]
    else:
        x = np.ones((2, 4, 5, 20), np.float32)
        y = native().run(op, [x, np.ones((1, 0, 20, 16), np.float32), none, weights, bias], {}, variant)[0]
    np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group", [1, 20])
def test_strides_beyond_the_input_take_no_time(group: int, variant: str) -> None:
    case = Case(1, (5, 6), 20, 20, (3, 2), (2**31, 2**31), group=group)
    x, w, _ = case.arrays()
    assert_close(run(case, x, w, variant=variant), convolve(case, x, w), 2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pad", ["VALID", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_auto_pad_is_that_of_onnx(pad: str, size: tuple[int, int], variant: str) -> None:
    case = Case(1, size, 6, 10, (3, 4), (2, 1))
    x, w, _ = case.arrays()
    totals = [
        0
        if pad == "VALID"
        else max((-(-size[i] // case.strides[i]) - 1) * case.strides[i] + case.kernel[i] - size[i], 0)
        for i in range(2)
    ]
    less = [total // 2 for total in totals]
    more = [total - part for total, part in zip(totals, less, strict=True)]
    pads = (*less, *more) if pad == "SAME_UPPER" else (*more, *less)
    expected = convolve(dataclasses.replace(case, pads=pads), x, w)
    attributes = {name: value for name, value in case.attributes().items() if name != "pads"}
    inputs = [x, ir.pack_filters(w, 1)]
    assert_close(native().run("FusedConv", inputs, attributes | {"auto_pad": pad}, variant)[0], expected, 2e-6)


def pool(x: np.ndarray, kind: str, kernel: tuple[int, int], strides: tuple[int, int], pads: list[int]) -> np.ndarray:
    """The pooling in float64."""
    fill = -np.inf if kind == "max" else 0.0
    around = [(0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)]
    padded = np.pad(x.astype(np.float64), around, constant_values=fill)
    inside = np.pad(np.ones(x.shape), around)
    rows = range(0, padded.shape[1] - kernel[0] + 1, strides[0])
    columns = range(0, padded.shape[2] - kernel[1] + 1, strides[1])
    y = np.empty((x.shape[0], len(rows), len(columns), x.shape[3]))
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        window = (slice(None), slice(row, row + kernel[0]), slice(column, column + kernel[1]))
        if kind == "max":
            y[:, i, j] = padded[window].max((1, 2))
        else:
            counted = inside[window].sum((1, 2)) if kind == "average" else float(np.prod(kernel))
            y[:, i, j] = padded[window].sum((1, 2)) / counted
    return y


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["max", "average", "average_with_pads"])
@pytest.mark.parametrize("channels", [1, 16, 37])
@pytest.mark.parametrize(
    ("kernel", "strides", "pads"),
    [((3, 3), (2, 2), [1, 1, 1, 1]), ((2, 4), (1, 3), [0, 1, 1, 2]), ((1, 1), (1, 1), [0] * 4)],
)
def test_pooling_equals_float64(
    kind: str, channels: int, kernel: tuple[int, int], strides: tuple[int, int], pads: list[int], variant: str
) -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 13, channels)).astype(np.float32)
    attributes = {"kind": kind, "kernel_shape": list(kernel), "strides": list(strides), "pads": pads}
    expected = pool(x, kind, kernel, strides, pads)
    for threads in (1, 3):
        actual = native().run("FusedPool", [x], attributes, variant, threads)[0]
        np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(2, 7, 9, 33), (1, 300, 130, 20), (1, 1, 1, 5), (3, 40, 8), (0, 4, 4, 3)])
def test_global_average_equals_float64(shape: tuple[int, ...], variant: str) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = x.astype(np.float64).mean(tuple(range(1, x.ndim - 1)), keepdims=True)
    once = native().run("FusedPool", [x], {"kind": "global_average"}, variant)[0]
    np.testing.assert_allclose(once, expected, rtol=1e-5, atol=1e-6)
    again = native().run("FusedPool", [x], {"kind": "global_average"}, variant, 4)[0]
    np.testing.assert_array_equal(again, once)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(
    ("kernel", "strides", "pads"),
    [((3, 3), (2, 2), [1, 1, 1, 1]), ((2, 4), (1, 3), [0, 1, 1, 2]), ((1, 1), (1, 1), [0] * 4)],
)
def test_maxima_of_bytes(
    kernel: tuple[int, int], strides: tuple[int, int], pads: list[int], dtype: Any, variant: str
) -> None:
    limits = np.iinfo(dtype)
    attributes = {"kind": "max", "kernel_shape": list(kernel), "strides": list(strides), "pads": pads}
    for channels, batch in ((1, 2), (16, 1), (37, 2), (70, 0)):
        x = np.random.default_rng(0).integers(limits.min, limits.max + 1, (batch, 9, 13, channels)).astype(dtype)
        for threads in (1, 3):
            actual = native().run("FusedPool", [x], attributes, variant, threads)[0]
            assert actual.dtype == dtype
            np.testing.assert_array_equal(actual, pool(x, "max", kernel, strides, pads))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float32])
def test_maxima_of_windows_in_the_padding(dtype: Any, variant: str) -> None:
    """Windows are as large as they can be: what lies in the padding takes no time."""
    attributes = {"kind": "max", "kernel_shape": [2**20, 2**11], "strides": [2**20, 2**11], "pads": [2**20, 2**11] * 2}
    x = np.arange(1, 13).reshape(1, 2, 2, 3).astype(dtype)
    y = native().run("FusedPool", [x], attributes, variant)[0]
    lowest = -np.inf if dtype == np.float32 else np.iinfo(dtype).min
    np.testing.assert_array_equal(y, [[[[lowest] * 3] * 2, [[lowest] * 3, [10, 11, 12]]]])


@pytest.mark.parametrize("kind", ["average", "average_with_pads", "global_average"])
def test_means_refuse_bytes(kind: str) -> None:
    with pytest.raises(ValueError, match="should be float"):
        native().run("FusedPool", [np.zeros((1, 4, 4, 2), np.uint8)], {"kind": kind, "kernel_shape": [2, 2]}, None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_maximum_keeps_nan(variant: str) -> None:
    x = np.zeros((1, 4, 4, 5), np.float32)
    x[0, 1, 1, 2] = np.nan
    y = native().run("FusedPool", [x], {"kind": "max", "kernel_shape": [2, 2], "strides": [2, 2]}, variant)[0]
    assert np.argwhere(np.isnan(y)).tolist() == [[0, 0, 0, 2]]


SEPARABLE = [
    Case(1, (9, 14), 19, 19, (3, 3), (1, 1), (1, 1, 1, 1), group=19),
    Case(2, (21, 30), 35, 35, (5, 5), (2, 1), (2, 2, 2, 2), group=35),
    Case(1, (2, 3), 64, 64, (3, 3), (2, 2), (1, 1, 1, 1), group=64),
    Case(3, (50,), 16, 16, (3,), (1,), (1, 1), group=16),
    Case(0, (8, 8), 16, 16, (3, 3), (1, 1), (1, 1, 1, 1), group=16),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", SEPARABLE, ids=str)
@pytest.mark.parametrize("between", [None, "relu(i0)", "hard_swish(i0)", "silu(i0)"])
@pytest.mark.parametrize("added", [False, True])
def test_separable_convolution_is_one_after_the_other(
    case: Case, between: str | None, added: bool, variant: str
) -> None:
    x, w, bias = case.arrays()
    pointwise = Case(case.batch, case.size, case.channels, 37, (1,) * len(case.size))
    _, matrix, second_bias = pointwise.arrays(1)
    text = {} if between is None else {"epilogue": f"i0:f32 | t0={between} | t0:f32"}
    middle = run(case, x, w, bias, variant=variant, biased=1, **text)
    expected = run(pointwise, middle, matrix, second_bias, variant=variant, biased=1)
    more = [np.random.default_rng(2).standard_normal(expected.shape).astype(np.float32)] if added else []
    attributes = case.attributes() | {"filters": 37, "between": text.get("epilogue", "")}
    if added:
        attributes["epilogue"] = "i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"
        expected = expected + more[0]
    inputs = [x, ir.pack_filters(w, case.group), bias, ir.pack_filters(matrix, 1), second_bias, *more]
    for threads in (1, 3):
        actual = native().run("FusedSeparableConv", inputs, attributes, variant, threads)[0]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def inverted(size: tuple[int, int], channels: int, expanded: int, filters: int, kernel: int, stride: int = 1) -> Case:
    """The depthwise convolution of an inverted residual, as large as its input but for strides."""
    sides = ((kernel, kernel), (stride, stride), (kernel // 2,) * 4)
    return Inverted(1, size, expanded, expanded, *sides, group=expanded, outer=channels, projected=filters)


@dataclasses.dataclass(frozen=True)
class Inverted(Case):
    """The depthwise convolution of an inverted residual of `outer` channels that gives `projected` ones."""

    outer: int = 1
    projected: int = 1

    def expansion(self) -> Case:
        return Case(self.batch, self.size, self.outer, self.channels, (1, 1))

    def projection(self) -> Case:
        return Case(self.batch, self.size, self.channels, self.projected, (1, 1))

    def inputs(self) -> list[np.ndarray]:
        """X, packed filters and biases of all three."""
        x, first, first_bias = self.expansion().arrays(1)
        _, w, bias = self.arrays()
        _, last, last_bias = self.projection().arrays(2)
        packed = [ir.pack_filters(one, group) for one, group in ((first, 1), (w, self.group), (last, 1))]
        return [x, packed[0], first_bias, packed[1], bias, packed[2], last_bias]

    def one_by_one(self, inputs: list[np.ndarray], texts: dict[str, str], variant: str) -> np.ndarray:
        """What three convolutions give one after the other, of whose results the programs `texts` are computed."""
        x, *weights = inputs
        for case, name in ((self.expansion(), "expansion"), (self, "between"), (self.projection(), "epilogue")):
            program = {"epilogue": texts[name]} if name in texts else {}
            given, weights = weights[:2], weights[2:]
            more, weights = (weights, []) if name == "epilogue" else ([], weights)
            attributes = case.attributes() | program | {"biased": 1}
            x = native().run("FusedConv", [x, *given, *more], attributes, variant)[0]
        return x


INVERTED = [
    inverted((14, 9), 7, 19, 37, 3),
    inverted((56, 57), 24, 144, 24, 3),
    inverted((60, 57), 16, 96, 24, 3, 2),
    inverted((30, 21), 12, 35, 5, 5),
    inverted((23, 23), 40, 120, 48, 5, 2),
    inverted((7, 7), 40, 200, 40, 7),
    inverted((13, 8), 20, 64, 33, 7, 2),
    inverted((1, 1), 16, 40, 16, 3),
    inverted((2, 3), 1, 64, 1, 3, 3),
    dataclasses.replace(inverted((21, 30), 12, 35, 20, 3), batch=3, strides=(2, 1)),
    dataclasses.replace(inverted((33, 9), 20, 64, 33, 3), dilations=(2, 1), pads=(2, 1, 2, 1)),
    dataclasses.replace(inverted((12, 10), 16, 48, 8, 1), strides=(4, 4)),
    dataclasses.replace(inverted((5, 4), 3, 2, 2, 2), pads=(6, 6, 6, 6)),
    dataclasses.replace(inverted((8, 8), 4, 16, 4, 3), batch=0),
]
PROGRAMS = {
    "none": {},
    "clipped": dict.fromkeys(("expansion", "between"), "i0:f32 | t0=clip(i0,#0x0p+0:f32,#0x1.8p+2:f32) | t0:f32"),
    "gated": dict.fromkeys(("expansion", "between", "epilogue"), "i0:f32 | t0=hard_swish(i0) | t0:f32"),
    "slow": dict.fromkeys(("expansion", "between", "epilogue"), "i0:f32 | t0=silu(i0) | t0:f32"),
    "residual": {"between": "i0:f32 | t0=relu(i0) | t0:f32", "epilogue": "i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"},
    "residual_and_slow": {"epilogue": "i0:f32 i1:f32 | t0=add(i0,i1) t1=softplus(t0) | t1:f32"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", INVERTED, ids=str)
@pytest.mark.parametrize("programs", PROGRAMS)
def test_inverted_residual_is_three_convolutions(case: Inverted, programs: str, variant: str) -> None:
    inputs, texts = case.inputs(), PROGRAMS[programs]
    attributes = case.attributes() | {"filters": case.projected, "expanded": case.channels} | texts
    if "i1" in texts.get("epilogue", ""):
        raw = case.one_by_one(inputs, {}, variant)
        inputs.append(np.random.default_rng(3).standard_normal(raw.shape).astype(np.float32))
    expected = case.one_by_one(inputs, texts, variant)
    once = native().run("FusedInvertedResidual", inputs, attributes, variant)[0]
    assert once.shape == expected.shape
    np.testing.assert_allclose(once, expected, rtol=1e-4, atol=2e-5 * max(np.abs(expected).max(initial=0), 1))
    for threads in (2, 4):
        np.testing.assert_array_equal(
            native().run("FusedInvertedResidual", inputs, attributes, variant, threads)[0], once
        )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_inverted_residual_keeps_what_is_not_finite_where_it_is(value: float, variant: str) -> None:
    case = inverted((20, 18), 6, 40, 5, 3)
    inputs = case.inputs()
    inputs[0][0, 9, 4, 2] = value
    attributes = case.attributes() | {"filters": case.projected, "expanded": case.channels}
    y = native().run("FusedInvertedResidual", inputs, attributes, variant, 2)[0]
    finite = np.isfinite(y).all(axis=(0, 3))
    assert not finite[8:11, 3:6].any()
    assert finite.sum() == finite.size - 9


def squeeze_excite(x: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """The block with Relu and HardSigmoid in float64."""
    squeeze, squeeze_bias, excite, excite_bias = (one.astype(np.float64) for one in weights)
    means = x.astype(np.float64).mean(axis=tuple(range(1, x.ndim - 1)))
    squeezed = np.maximum(means @ squeeze.T + squeeze_bias, 0)
    gates = np.clip((squeezed @ excite.T + excite_bias) * 0.2 + 0.5, 0, 1)
    return x * gates.reshape(x.shape[0], *(1,) * (x.ndim - 2), -1)


def excitation(channels: int, squeezed: int, seed: int = 1) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights and biases of both products, and the same as inputs of the op."""
    rng = np.random.default_rng(seed)
    shapes = [(squeezed, channels), (squeezed,), (channels, squeezed), (channels,)]
    plain = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    packed = [ir.pack_filters(one[:, :, None, None], 1) if one.ndim == 2 else one for one in plain]
    return plain, packed


EXCITATION = {
    "between": "i0:f32 | t0=relu(i0) | t0:f32",
    "gate": "i0:f32 | t0=hard_sigmoid(i0,#0x1.99999a0000000p-3:f32,#0x1.0000000000000p-1:f32) | t0:f32",
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("shape", "squeezed"),
    [
        *[((1, 7, 9, 8), 2), ((3, 5, 5, 33), 7), ((2, 50, 48), 12), ((1, 1, 1, 1), 1), ((2, 3, 1, 2, 130), 35)],
        *[((1, 40, 41, 96), 24), ((9, 3, 3, 19), 40), ((0, 4, 4, 16), 4), ((2, 0, 3, 5), 4)],
    ],
)
@pytest.mark.parametrize("epilogue", ["", "relu(i0)", "hard_swish(i0)", "tanh(i0)", "add(i0,i1)", "mul(i0,i1)"])
def test_squeeze_excite_equals_float64(shape: tuple[int, ...], squeezed: int, epilogue: str, variant: str) -> None:
    rng = np.random.default_rng(0)
    x, other = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    plain, packed = excitation(shape[-1], squeezed)
    expected = squeeze_excite(x, plain) if x.size else x
    finish = {
        "relu(i0)": lambda: np.maximum(expected, 0),
        "hard_swish(i0)": lambda: expected * np.clip(expected / 6 + 0.5, 0, 1),
        "tanh(i0)": lambda: np.tanh(expected),
        "add(i0,i1)": lambda: expected + other,
        "mul(i0,i1)": lambda: expected * other,
    }
    two = "i1" in epilogue
    text = f"i0:f32 {'i1:f32 ' if two else ''}| t0={epilogue} | t0:f32" if epilogue else ""
    wanted = finish[epilogue]() if epilogue else expected
    first = None
    for threads in (1, 2, 4):
        inputs = [x, *packed, *([other] if two else [])]
        actual = native().run("FusedSqueezeExcite", inputs, EXCITATION | {"epilogue": text}, variant, threads)[0]
        first = actual if first is None else first
        np.testing.assert_array_equal(actual, first)
        assert actual.shape == shape
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_squeeze_excite_of_what_is_not_finite(number: float, variant: str) -> None:
    """A number spoils the gates of its own image, by its weights' signs, and no other image."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 6, 20)).astype(np.float32)
    x[1, 2, 3, 4] = number
    plain, packed = excitation(20, 5)
    with np.errstate(invalid="ignore"):
        expected = squeeze_excite(x, plain)
    actual = native().run("FusedSqueezeExcite", [x, *packed], EXCITATION, variant)[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert np.isfinite(actual[0]).all() and not np.isfinite(actual[1]).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "case",
    [
        CASES[0],
        CASES[5],
        Case(2, (30, 17), 3, 40, (7, 5), (3, 2), (3, 0, 2, 4), (2, 1)),
        Case(2, (23, 1), 3, 40, (3, 1), (2, 1), (4, 0, 3, 0), (3, 1)),
    ],
    ids=str,
)
def test_planar_input_is_the_transposed_one(case: Case, variant: str) -> None:
    x, w, bias = case.arrays()
    planar = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    expected = convolve(case, x, w) + bias
    for threads in (1, 3):
        actual = run(case, planar, w, bias, variant=variant, threads=threads, biased=1, planar=1)
        assert_close(actual, expected, 2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("shape", "filters", "kernel"),
    [((2, 5, 7, 24), 24, (2, 2)), ((1, 30, 41, 3), 1, (2, 2)), ((1, 4, 4, 17), 9, (3, 4)), ((1, 0, 4, 3), 2, (2, 2))],
)
@pytest.mark.parametrize("epilogue", ["", "i0:f32 | t0=relu(i0) | t0:f32", "i0:f32 | t0=sigmoid(i0) | t0:f32"])
def test_transposed_convolution_equals_float64(
    shape: tuple[int, ...], filters: int, kernel: tuple[int, int], epilogue: str, variant: str
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    w = rng.standard_normal((shape[3], filters, *kernel)).astype(np.float32)
    bias = rng.standard_normal(filters).astype(np.float32)
    raw = np.einsum("nhwc,cmij->nhiwjm", x.astype(np.float64), w.astype(np.float64)) + bias
    expected = raw.reshape(shape[0], shape[1] * kernel[0], shape[2] * kernel[1], filters)
    if "relu" in epilogue:
        expected = np.maximum(expected, 0)
    elif epilogue:
        expected = 1 / (1 + np.exp(-expected))
    inputs = [x, fused_conv_transpose.pack(w), np.tile(bias, kernel[1])]
    attributes = {"kernel_shape": list(kernel), "filters": filters, "epilogue": epilogue}
    for threads in (1, 3):
        actual = native().run("FusedConvTranspose", inputs, attributes, variant, threads)[0]
        assert_close(actual, expected, 2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(2, 5, 7, 24), (1, 30, 41, 3), (1, 1, 1, 40), (0, 3, 3, 2)])
@pytest.mark.parametrize("factors", [(1, 1), (2, 3), (4, 4)])
@pytest.mark.parametrize("statement", ["", "add(i0,i1)", "mul(i0,i1)"])
def test_repeated_pixels(shape: tuple[int, ...], factors: tuple[int, int], statement: str, variant: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    x.flat[:1] = np.nan
    expected = x.repeat(factors[0], 1).repeat(factors[1], 2)
    attributes: dict[str, object] = {"factors": list(factors)}
    more = []
    if statement:
        more = [rng.standard_normal(expected.shape).astype(np.float32)]
        attributes["epilogue"] = f"i0:f32 i1:f32 | t0={statement} | t0:f32"
        expected = expected + more[0] if statement.startswith("add") else expected * more[0]
    for threads in (1, 3):
        actual = native().run("FusedResize", [x, *more], attributes, variant, threads)[0]
        np.testing.assert_array_equal(actual, expected)
