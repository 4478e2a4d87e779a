"""QuantizeLinear goes before what only moves elements."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "quantize_before_moves"
RNG = np.random.default_rng(0)
SCALE, ZERO = np.array(0.02, np.float32), np.array(120, np.uint8)


def chain(
    moves: str, quantize: str = "y = QuantizeLinear(b, s, z)", more: str = "", **weights: np.ndarray
) -> onnx.ModelProto:
    text = f"g (float[N,3,4,5] x) => (uint8[N,P,Q] y{more}) {{ r = Tanh(x) {moves} {quantize} }}"
    return model(text, **{"s": SCALE, "z": ZERO, **weights})


def shape(*sizes: int) -> np.ndarray:
    return np.array(sizes, np.int64)


CASES = {
    "reshape": ("b = Reshape(r, t)", {"t": shape(0, 3, 20)}, 1),
    "transpose and reshape": (
        "a = Transpose<perm=[0,2,3,1]>(r) b = Reshape(a, t)",
        {"t": shape(0, 20, 3)},
        2,
    ),
    "an axis that comes and goes": (
        "a = Unsqueeze(r, i) c = Squeeze(a, i) b = Reshape(c, t)",
        {"i": shape(1), "t": shape(0, 3, 20)},
        3,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [(), (1,)])
def test_bytes_are_moved(case: str, scale: tuple[int, ...]) -> None:
    moves, weights, count = CASES[case]
    before = chain(moves, **weights, s=SCALE.reshape(scale), z=ZERO.reshape(scale))
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["Tanh", "QuantizeLinear", *op_list(before)[1 : 1 + count]]
    for batch in (0, 1, 3):
        x = RNG.standard_normal((batch, 3, 4, 5)).astype(np.float32)
        if batch:
            x.flat[:2] = np.inf, -np.inf
        assert_same(before, after, {"x": x}, rtol=0, atol=0)


MOVED = "b = Reshape(r, t)"
REFUSED = {
    "others read the floats": chain(MOVED + " w = Abs(b)", more=", float[N,P,Q] w", t=shape(0, 3, 20)),
    "the floats are an output": chain(MOVED, more=", float[N,P,Q] b", t=shape(0, 3, 20)),
    "scales along an axis": chain(MOVED, t=shape(0, 3, 20), s=np.full(3, 0.1, np.float32), z=np.zeros(3, np.uint8)),
    "nothing is moved": chain("b = Cos(r)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    after, _ = run_passes(REFUSED[case], PASS, target="cpu")
    assert op_list(after) == op_list(REFUSED[case])


def test_only_what_the_quantizer_alone_reads_is_moved_as_bytes() -> None:
    moves = "a = Transpose<perm=[0,2,3,1]>(r) w = Abs(a) b = Reshape(a, t)"
    before = chain(moves, more=", float[N,4,5,3] w", t=shape(0, 20, 3))
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after).index("QuantizeLinear") < op_list(after).index("Reshape")
    assert_same(before, after, {"x": RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)}, rtol=0, atol=0)
