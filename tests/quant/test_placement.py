"""Which activations become bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import model
from onnxopt import ir
from onnxopt.quant.placement import place, share_ranges

RNG = np.random.default_rng(0)


def everywhere(body: str, *, epilogues: bool, results: str = "float[N,8,H,W] y", **more: Any) -> list[str]:
    weights = {"w": RNG.standard_normal((8, 8, 1, 1)).astype(np.float32), **more}
    loaded = ir.load(model(f"g (float[N,8,H,W] x) => ({results}) {{ {body} }}", **weights))
    shapes = ir.ShapeEnv(loaded)
    shapes.infer_model()
    return [str(value.name) for value in place(loaded, shapes, epilogues=epilogues).everywhere]


SWISH = "a = Conv(x, w) s = Sigmoid(a) m = Mul(a, s) "


def test_an_activation_is_computed_before_its_argument_is_rounded() -> None:
    text = SWISH + "y = Conv(m, w)"
    assert everywhere(text, epilogues=True) == ["x", "m"]
    assert everywhere(text, epilogues=False) == ["x", "a", "m"]


def test_constants_of_channels_belong_to_the_function() -> None:
    constants = {"k": np.array([2], np.float32), "c": np.ones((8, 1, 1), np.float32)}
    assert everywhere(SWISH + "p = Mul(m, k) q = Add(p, c) y = Conv(q, w)", epilogues=True, **constants) == ["x", "q"]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("a = Conv(x, w) s = Sigmoid(a) m = Mul(a, s) t = Tanh(a) b = Add(m, t) y = Conv(b, w)", ["x", "b"]),
        ("a = Conv(x, w) s = Sigmoid(x) m = Mul(a, s) y = Conv(m, w)", ["x", "m"]),
        ("a = Conv(x, w) s = Sigmoid(a) y = Conv(s, w) z = Conv(a, w)", ["x", "a", "s"]),
        ("a = Conv(x, w) b = AveragePool<kernel_shape=[2,2]>(a) c = Sigmoid(b) y = Conv(c, w)", ["x", "c"]),
    ],
)
def test_the_function_ends_where_something_else_is_read(body: str, found: list[str]) -> None:
    results = "float[N,8,H,W] y, float[N,8,H,W] z" if "z =" in body else "float[N,8,H,W] y"
    assert sorted(everywhere(body, epilogues=True, results=results)) == sorted(found)


def test_an_output_in_between_ends_it() -> None:
    body, results = SWISH + "y = Conv(m, w)", "float[N,8,H,W] y, float[N,8,H,W] s"
    assert everywhere(body, epilogues=True, results=results) == ["x", "m"]


def test_a_constant_that_makes_the_result_larger_is_none_of_it() -> None:
    weights = {"k": np.ones((3, 1, 8, 1, 1), np.float32), "i": np.array(0)}
    body = "a = Conv(x, w) b = Mul(a, k) c = Gather(b, i) y = Conv(c, w)"
    assert everywhere(body, epilogues=True, **weights) == ["x", "c"]


def test_what_floats_alone_read_stays_in_floats() -> None:
    body = "a = Conv(x, w) r = ReduceMean<keepdims=1>(a) y = Mul(a, r)"
    assert everywhere(body, epilogues=True) == ["x"]
    assert everywhere(body, epilogues=False) == ["x", "a"]


def test_moves_and_sums_of_bytes_are_followed() -> None:
    body = "a = Conv(x, w) p = MaxPool<kernel_shape=[1,1]>(a) t = Identity(p) b = Conv(x, w) s = Add(a, b) z = Conv(t, w) y = Add(s, z)"
    assert everywhere(body, epilogues=True) == ["x", "a", "b", "t", "z", "s"] or set(
        everywhere(body, epilogues=True)
    ) == {"x", "a", "b", "s", "t", "z"}


@pytest.mark.parametrize(("channels", "pooled", "count"), [(8, True, 1), (8, False, 3), (512, True, 3)])
def test_convolutions_of_a_pixel_stay_in_float_where_their_filters_are_few(
    channels: int, pooled: bool, count: int
) -> None:
    weights = RNG.standard_normal((channels, channels, 1, 1)).astype(np.float32)
    text = f"""g (float[N,{channels},H,W] x) => (float[N,{channels},P,Q] y) {{
        a = Conv(x, w) b = {"GlobalAveragePool" if pooled else "Relu"}(a) c = Conv(b, w) d = Relu(c) y = Conv(d, w) }}"""
    loaded = ir.load(model(text, w=weights))
    shapes = ir.ShapeEnv(loaded)
    shapes.infer_model()
    assert len(place(loaded, shapes).nodes) == count


def test_maxima_have_the_range_of_what_they_are_taken_of() -> None:
    body = "a = MaxPool<kernel_shape=[2,2]>(x) b = MaxPool<kernel_shape=[2,2]>(a) c = Relu(b) y = MaxPool<kernel_shape=[2,2]>(c)"
    loaded = ir.load(model(f"g (float[N,8,H,W] x) => (float[N,8,D,E] y) {{ {body} }}"))
    ranges = {"x": (-1.0, 2.0), "a": (-0.5, 2.0), "b": (0.0, 1.5), "y": (0.0, 1.0)}
    assert share_ranges(loaded, ranges) == {"x": (-1.0, 2.0), "a": (-1.0, 2.0), "b": (-1.0, 2.0), "y": (0.0, 1.0)}


def test_parts_have_the_range_of_what_they_are_of() -> None:
    loaded = ir.load(model("g (float[N,8] x) => (float[N,4] y, float[N,4] b) { y, b = Split<axis=1>(x) }"))
    ranges = {"x": (-1.0, 2.0), "y": (0.0, 0.5)}
    assert share_ranges(loaded, ranges) == {"x": (-1.0, 2.0), "y": (-1.0, 2.0)}
    assert share_ranges(loaded, {"y": (0.0, 0.5)}) == {"y": (0.0, 0.5)}


@pytest.mark.parametrize(
    ("after", "count"),
    [
        ("r = Relu(d) m = GlobalAveragePool(r) g = Sigmoid(m) s = Mul(r, g) y = Conv(s, w)", 2),
        ("r = Relu(d) y = Conv(r, w)", 3),
        ("s = Sigmoid(d) m = Mul(d, s) p = MaxPool<kernel_shape=[1,1]>(m) y = Conv(p, w)", 3),
        ("s = Add(d, a) y = Conv(s, w)", 3),
        ("y = Softmax<axis=1>(d)", 1),
    ],
)
def test_depthwise_convolutions_stay_in_float_where_floats_alone_read_them(after: str, count: int) -> None:
    weights = {"w": RNG.standard_normal((8, 8, 1, 1)), "k": RNG.standard_normal((8, 1, 3, 3))}
    text = f"""g (float[N,8,H,W] x) => (float[N,8,H,W] y) {{
        a = Conv(x, w) d = Conv<group=8,pads=[1,1,1,1]>(a, k) {after} }}"""
    loaded = ir.load(model(text, **{name: one.astype(np.float32) for name, one in weights.items()}))
    shapes = ir.ShapeEnv(loaded)
    shapes.infer_model()
    assert len(place(loaded, shapes, epilogues=True).nodes) == count
    assert len(place(loaded, shapes).nodes) == 1 + after.count("Conv") + 1
