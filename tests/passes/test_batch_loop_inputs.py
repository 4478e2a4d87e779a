"""What iterations compute from their elements alone. What each op becomes: tests/loops/test_batching.py."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes
from onnxopt.passes import batch_loop_inputs

PASS = "batch_loop_inputs"
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (5, 2, 4)).astype(np.float32)
X[1, 0, 1], X[4, 1, 3] = np.nan, np.inf
FEED = {"x": X, "h": np.ones((2, 3), np.float32)}
W = RNG.normal(0, 1, (4, 3)).astype(np.float32)


def scan(
    body: str, attributes: str = "", *, outputs: str = "float[2,3] y", results: str = "float[2,3] s2", dim: str = "5"
) -> onnx.ModelProto:
    """A Scan over x that carries s."""
    names = ", ".join(one.split()[-1] for one in outputs.replace(",", " ").split("float") if one.strip())
    text = f"{names} = Scan <num_scan_inputs = 1{attributes}, body = g1 (float[2,3] s, float[2,4] e) => ({results}) {{ {body} }}> (h, x)"
    return model(f"g (float[{dim},2,4] x, float[2,3] h) => ({outputs}) {{ {text} }}", w=W, b=np.ones(3, np.float32))


def body_of(proto: onnx.ModelProto) -> list[str]:
    (node,) = [one for one in proto.graph.node if one.op_type == "Scan"]
    return [one.op_type for one in next(one.g for one in node.attribute if one.name == "body").node]


@pytest.mark.parametrize("dim", ["5", "T"])
def test_product_of_each_element_is_one_product(dim: str) -> None:
    before = scan("p = MatMul(e, w) q = Add(p, b) t = Add(q, s) s2 = Tanh(t)", dim=dim)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["MatMul", "Add", "Scan"]
    assert body_of(after) == ["Add", "Tanh"]
    assert_same(before, after, FEED)


def test_from_the_back() -> None:
    before = scan("p = MatMul(e, w) t = Sub(p, s) s2 = Tanh(t)", ", scan_input_directions = [1]")
    after, _ = run_passes(before, PASS)
    assert body_of(after) == ["Sub", "Tanh"]
    assert_same(before, after, FEED)


def test_stacked_output_that_depends_on_elements_alone() -> None:
    before = scan(
        "p = MatMul(e, w) s2 = Add(p, s) z = Neg(p)",
        outputs="float[2,3] y, float[5,2,3] u",
        results="float[2,3] s2, float[2,3] z",
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after)[:2] == ["MatMul", "Neg"]
    assert_same(before, after, FEED)


def test_element_that_is_used_as_it_is_too_stays_a_sequence() -> None:
    before = scan(
        "p = MatMul(e, w) f = MatMul(e, w) m = ReduceMax<keepdims = 0>(e) t = Add(f, m) u = Add(t, s) s2 = Add(u, p)"
    )
    after, _ = run_passes(before, PASS)
    assert body_of(after) == ["Add", "Add"]
    assert_same(before, after, FEED)


def test_what_depends_on_a_carried_value_stays() -> None:
    before = scan("p = MatMul(e, w) q = Mul(p, s) s2 = Tanh(q)")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["MatMul", "Scan"]
    assert body_of(after) == ["Mul", "Tanh"]
    assert_same(before, after, FEED)


def test_random_numbers_stay() -> None:
    before = scan("r = RandomUniformLike(e) p = MatMul(r, w) s2 = Add(p, s)")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Scan"]


def test_another_axis_stays() -> None:
    text = (
        "y = Scan <num_scan_inputs = 1, scan_input_axes = [1], body = g1 (float[2,3] s, float[2,4] e) => (float[2,3] s2) "
        "{ p = MatMul(e, w) s2 = Add(p, s) }> (h, x)"
    )
    before = model(f"g (float[2,5,4] x, float[2,3] h) => (float[2,3] y) {{ {text} }}", w=W)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Scan"]


@pytest.mark.parametrize(("dim", "name", "limit"), [("5", "MOST_BYTES", 100), ("T", "MOST_GROWTH", 0.5)])
def test_sequences_that_would_be_too_large_are_not_made(
    dim: str, name: str, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_loop_inputs, name, limit)
    before = scan("p = MatMul(e, w) s2 = Add(p, s)", dim=dim)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Scan"]


@pytest.mark.parametrize(("target", "ops"), [("cpu", ["Scan"]), ("generic", ["Add", "Exp", "Scan"])])
def test_broadcast_to_more_than_is_read_stays_where_the_step_becomes_a_kernel(target: str, ops: list[str]) -> None:
    text = (
        "y = Scan <num_scan_inputs = 1, body = g1 (float[4,3] s, float[4,1] e) => (float[4,3] s2) "
        "{ p = Add(e, b) q = Exp(p) s2 = Mul(q, s) }> (h, x)"
    )
    before = model(f"g (float[5,4,1] x, float[4,3] h) => (float[4,3] y) {{ {text} }}", b=np.ones(3, np.float32))
    after, _ = run_passes(before, PASS, target=target)
    assert op_list(after) == ops
    assert_same(before, after, {"x": X[:, 0, :, None], "h": np.ones((4, 3), np.float32)})
