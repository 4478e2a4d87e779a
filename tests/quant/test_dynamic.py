"""Convolutions whose operand has a range of its own for each sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model, op_list
from onnxopt.quant import quantize

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
NORMED = """g (float[1,64,L] x) => (float[1,256,L] y) {
    m = Mul(x, s) n = Add(m, b) c = Conv<pads=[1,1]>(n, w, f) y = Relu(c)
}"""


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def normed() -> onnx.ModelProto:
    weights = {"s": np.ones(40, np.float32), "b": np.zeros(40, np.float32), "w": normal(256, 64, 3) / 14}
    return model(NORMED, **weights, f=normal(256))


def uneven(count: int, loudest: float) -> list[dict[str, Array]]:
    """Samples of which every fourth has an element far from all others."""
    data = [{"x": normal(1, 64, 40)} for _ in range(count)]
    for one in data[::4]:
        one["x"][0, :, 0] *= loudest
    return data


def noise(proto: onnx.ModelProto, after: onnx.ModelProto, sample: dict[str, Array], library: bool = True) -> float:
    wanted, found = evaluate(proto, sample)[0], evaluate(after, sample, library=library)[0]
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


@pytest.mark.parametrize("library", [True, False])
def test_samples_that_differ_have_ranges_of_their_own(library: bool) -> None:
    proto, data = normed(), uneven(8, 30)
    after = quantize(proto, calibration=data)
    assert {"DynamicQuantizeLinear", "QConv"} <= set(op_list(after))
    assert min(noise(proto, after, one, library) for one in uneven(8, 30)) > 24


def test_samples_that_are_alike_share_one() -> None:
    after = quantize(normed(), calibration=uneven(8, 1))
    assert "QConv" in op_list(after) and "DynamicQuantizeLinear" not in op_list(after)


def test_other_engines_get_one_range_for_all() -> None:
    after = quantize(normed(), calibration=uneven(8, 30), format="qdq")
    assert "DynamicQuantizeLinear" not in op_list(after)


def test_what_convolutions_make_stays_bytes() -> None:
    text = "g (float[1,64,L] x) => (float[1,128,L] y) { a = Conv(x, v) r = Relu(a) y = Conv(r, w) }"
    proto = model(text, v=normal(64, 64, 1) / 8, w=normal(128, 64, 3) / 14)
    after = quantize(proto, calibration=uneven(8, 30))
    assert op_list(after).count("DynamicQuantizeLinear") <= 1


def test_few_multiplications_do_not_pay_for_a_range() -> None:
    proto = model(
        NORMED.replace("256", "16"),
        s=np.ones(40, np.float32),
        b=np.zeros(40, np.float32),
        w=normal(16, 64, 3),
        f=normal(16),
    )
    assert "DynamicQuantizeLinear" not in op_list(quantize(proto, calibration=uneven(8, 30)))
