"""Which convolutions are too small to be worth bytes."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import model
from onnxopt import ir
from onnxopt.quant.placement import place
from onnxopt.quant.regions import too_small
from onnxopt.runtime.costs import Costs

RNG = np.random.default_rng(0)


COSTS = Costs.of("cpu").replaced({"rounding_work": 1_000_000, "rounding_element_work": 7})


def found(body: str, channels: int, size: str = "16,16") -> list[str]:
    weights = {"w": RNG.standard_normal((channels, channels, 1, 1)).astype(np.float32)}
    loaded = ir.load(
        model(f"g (float[1,{channels},{size}] x) => (float[1,{channels},{size}] y) {{ {body} }}", **weights)
    )
    shapes = ir.ShapeEnv(loaded)
    shapes.infer_model()
    small = too_small(place(loaded, shapes, epilogues=True), shapes, COSTS)
    return [node.outputs[0].name or "" for node in loaded.graph if ir.node_name(node) in small]


@pytest.mark.parametrize(("channels", "small"), [(16, True), (64, True), (80, False), (256, False)])
def test_few_multiplications_do_not_pay(channels: int, small: bool) -> None:
    assert found("y = Conv(x, w)", channels) == (["y"] if small else [])


@pytest.mark.parametrize(
    ("body", "small"),
    [
        ("a = Conv(x, w) b = Relu(a) y = Conv(b, w)", []),
        ("a = Conv(x, w) m = MaxPool<kernel_shape=[1,1]>(a) y = Conv(m, w)", []),
        ("a = Conv(x, w) b = Conv(x, w) y = Add(a, b)", []),
        ("a = Conv(x, w) b = Softmax<axis=1>(a) y = Conv(b, w)", ["a", "y"]),
    ],
)
def test_regions_are_looked_at_as_a_whole(body: str, small: list[str]) -> None:
    assert found(body, 64) == small


def test_unknown_sizes_are_not_small() -> None:
    assert found("y = Conv(x, w)", 16, "H,W") == []
