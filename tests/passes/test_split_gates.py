"""Gates of cells that one product computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASSES = ["split_gates", "fuse_recurrences"]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.5, shape).astype(np.float32)


WEIGHTS = {
    "w": normal(5, 21),
    "wt": normal(21, 5),
    "u": normal(7, 21),
    "ut": normal(21, 7),
    "b": normal(21),
    "c": normal(21),
    "one": np.array(1, np.float32),
    "wide": normal(2, 21),
    "sizes": np.array([7, 7, 7]),
    "others": np.array([3, 11, 7]),
}
GATES = "f, i, g = Split<axis = -1>({}, sizes) fs = Sigmoid(f) is = Sigmoid(i) gt = Tanh(g) k = Mul(fs, s) n = Mul(is, gt) s2 = Add(k, n)"


def scan(body: str, *, sequence: str = "q", before: str = "", attributes: str = "", size: int = 21) -> onnx.ModelProto:
    text = (
        f"{before} y, z = Scan <num_scan_inputs = 1{attributes}, body = step (float[2,7] s, float[2,{size}] e) => "
        f"(float[2,7] s2, float[2,7] o) {{ {body} o = Identity(s2) }}> (h, {sequence})"
    )
    inputs = f"float[T,2,5] x, float[T,2,{size}] q, float[2,7] h"
    return model(f"g ({inputs}) => (float[2,7] y, float[T,2,7] z) {{ {text} }}", opset=17, **WEIGHTS)


def feeds(steps: int = 6, size: int = 21) -> dict[str, np.ndarray]:
    return {"x": normal(steps, 2, 5), "q": normal(steps, 2, size), "h": normal(2, 7)}


SPLIT = {
    "a product": "p = MatMul(s, u) a = Add(p, e) " + GATES.format("a"),
    "a product with a bias and a transposed matrix": "p = Gemm<transB = 1>(s, ut, b) a = Add(p, e) "
    + GATES.format("a"),
    "a bias added in the step": "p = MatMul(s, u) t = Add(p, b) a = Add(t, e) " + GATES.format("a"),
    "scales and values of all rows": "p = MatMul(s, u) t = Mul(p, one) r = Add(t, wide) a = Add(r, e) "
    + GATES.format("a"),
    "bounds before the split": "p = MatMul(s, u) a = Add(p, e) t = Clip(a, , one) " + GATES.format("t"),
    "activations before the split": "p = MatMul(s, u) a = Add(p, e) t = Tanh(a) " + GATES.format("t"),
}


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("attributes", ["", ", scan_input_directions = [1], scan_output_directions = [1]"])
def test_split(name: str, attributes: str) -> None:
    before = scan(SPLIT[name], attributes=attributes)
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert op_list(after) == ["Split", "FusedRecurrence"]
    for feed in (feeds(), feeds(1)):
        for library in (True, False):
            assert_same(before, after, feed, library=library)


@pytest.mark.parametrize("made", ["p0 = MatMul(x, w) v = Add(p0, c)", "p0 = MatMul(x, w) v = Identity(p0)"])
def test_the_product_that_makes_a_sequence_is_split(made: str) -> None:
    before = scan(SPLIT["a product"], sequence="v", before=made)
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert "Split" not in op_list(after)
    assert op_list(after).count("MatMul") == 3
    for library in (True, False):
        assert_same(before, after, feeds(), library=library)


def test_a_sequence_and_a_product_that_are_split_apart() -> None:
    """The reset gate of a GRU lies between the product and the element."""
    body = (
        "r0, z0, n0 = Split<axis = -1>(e, sizes) p = Gemm(s, u, b) r1, z1, n1 = Split<axis = 1>(p, sizes) ra = Add(r0, r1) r = Sigmoid(ra) "
        "za = Add(z0, z1) z = Sigmoid(za) rn = Mul(r, n1) na = Add(n0, rn) n = Tanh(na) d = Sub(s, n) k = Mul(z, d) s2 = Add(n, k)"
    )
    before = scan(body)
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert op_list(after) == ["Split", "FusedRecurrence"]
    for library in (True, False):
        assert_same(before, after, feeds(), library=library)


def test_values_that_are_not_finite() -> None:
    before = scan(SPLIT["a product"])
    after, _ = run_passes(before, *PASSES, target="cpu")
    feed = feeds()
    feed["q"][2, 0, 3], feed["q"][3, 1, 9] = np.nan, np.inf
    assert_same(before, after, feed, library=True)


STAYS = {
    "another op": "p = MatMul(s, u) t = Softmax(p) a = Add(t, e) " + GATES.format("a"),
    "gates of the carried value": "sl = Concat<axis = 1>(s, s, s) a = Add(sl, e) " + GATES.format("a"),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    before = scan(STAYS[name])
    after, report = run_passes(before, *PASSES, target="cpu", explain=True)
    assert op_list(after) == ["Scan"]
    assert any(one.rule == "split_gates" for one in report.near_misses)
    assert_same(before, after, feeds(), rtol=0, atol=0)


def test_a_second_run_changes_nothing() -> None:
    after, _ = run_passes(scan(SPLIT["a product"]), *PASSES, target="cpu")
    again, report = run_passes(after, *PASSES, target="cpu")
    assert not report.patches
    assert op_list(again) == op_list(after)
