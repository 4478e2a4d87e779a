"""What iterations compute for stacked outputs alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes
from onnxopt.passes import sink_loop_outputs

PASS = "sink_loop_outputs"
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (5, 2, 3)).astype(np.float32)
X[1, 0, 1], X[4, 1, 2] = np.nan, np.inf
FEED = {"x": X, "h": np.ones((2, 3), np.float32)}
W = RNG.normal(0, 1, (3, 4)).astype(np.float32)


def scan(
    body: str, result: str = "float[2,4] z", attributes: str = "", *, dim: str = "5", stacked: str = "t,2,4"
) -> onnx.ModelProto:
    text = (
        f"y, u = Scan <num_scan_inputs = 1{attributes}, body = g1 (float[2,3] s, float[2,3] e) => (float[2,3] s2, {result}) "
        f"{{ {body} }}> (h, x)"
    )
    return model(f"g (float[{dim},2,3] x, float[2,3] h) => (float[2,3] y, float[{stacked}] u) {{ {text} }}", w=W)


def body_of(proto: onnx.ModelProto) -> list[str]:
    (node,) = [one for one in proto.graph.node if one.op_type == "Scan"]
    return [one.op_type for one in next(one.g for one in node.attribute if one.name == "body").node]


@pytest.mark.parametrize("dim", ["5", "T"])
def test_product_of_each_state_is_one_product(dim: str) -> None:
    before = scan("t = Mul(s, e) s2 = Tanh(t) p = MatMul(s2, w) z = Relu(p)", dim=dim)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Scan", "MatMul", "Relu"]
    assert body_of(after) == ["Mul", "Tanh", "Identity"]
    assert_same(before, after, FEED)


def test_state_before_the_step_and_element() -> None:
    before = scan("s2 = Add(s, e) p = Mul(s, e) z = MatMul(p, w)")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Scan", "MatMul"]
    assert_same(before, after, FEED)


def test_reduction_to_fewer_dims() -> None:
    before = scan("s2 = Add(s, e) z = ReduceSum<keepdims = 0>(s2, one)", "float[2] z", stacked="t,2")
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Scan", "ReduceSum"]
    assert_same(before, after, FEED)


def test_stacked_along_another_axis() -> None:
    before = scan("s2 = Add(s, e) z = MatMul(s2, w)", attributes=", scan_output_axes = [1]", stacked="2,t,4")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Scan", "MatMul", "Transpose"]
    assert_same(before, after, FEED)


@pytest.mark.parametrize(
    "body",
    ["s2 = Add(s, e) z = Mul(s2, s)", "p = MatMul(s, w) v = MatMul(p, wt) s2 = Add(v, e) z = Identity(p)"],
    ids=["element-wise ops", "what the next iteration needs"],
)
def test_stays(body: str) -> None:
    square = "z = Mul" in body
    before = scan(body, "float[2,3] z" if square else "float[2,4] z", stacked="t,2,3" if square else "t,2,4")
    before.graph.initializer.append(onnx.numpy_helper.from_array(W.T.copy(), "wt"))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Scan"]


@pytest.mark.parametrize("attributes", [", scan_input_directions = [1]", ", scan_output_directions = [1]"])
def test_from_the_back_stays(attributes: str) -> None:
    before = scan("s2 = Add(s, e) z = MatMul(s2, w)", attributes=attributes)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Scan"]


@pytest.mark.parametrize(("dim", "name", "limit"), [("5", "MOST_BYTES", 100), ("T", "MOST_GROWTH", 0.5)])
def test_stacks_that_would_be_too_large_are_not_made(
    dim: str, name: str, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_loop_outputs, name, limit)
    before = scan("s2 = Add(s, e) z = MatMul(s2, w)", dim=dim)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Scan"]


def test_reads_what_the_body_computes_alike_in_every_iteration() -> None:
    """A value that no iteration changes and that stays in the body, because it may fail where nothing runs."""
    before = scan("r = Slice(w, first, second) s2 = Add(s, e) p = MatMul(s2, w) z = Add(p, r)", dim="T")
    for name, number in (("first", 0), ("second", 1)):
        before.graph.initializer.append(onnx.numpy_helper.from_array(np.array([number]), name))
    after, _ = run_passes(before, PASS)
    assert "MatMul" in op_list(after)
    assert_same(before, after, FEED)
