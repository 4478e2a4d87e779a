"""Element-wise ops that broadcast a sequence of a Scan go into its body."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "broadcast_inside_loops"
RNG = np.random.default_rng(0)

STEP = "k = Mul(h, e)  g = Add(k, f)  s = Identity(g)"


def scanned(
    before: str, sequences: str, axes: str, *, more: str = "", outputs: str = "float[4,3] last, float[S,4,3] y"
) -> onnx.ModelProto:
    """A Scan over two sequences of [4, 3] per step, made of `d` [4, 6, 1], `n` [1, 6, 3] and `a` [4, 1, 3]."""
    text = f"""g (float[4,3] h0, float[4,6,1] d, float[1,6,3] n, float[4,1,3] a) => ({outputs}) {{
        {before}
        last, y = Scan<num_scan_inputs = 2, scan_input_axes = {axes},
            body = step (float[4,3] h, float[4,3] e, float[4,3] f) => (float[4,3] g, float[4,3] s) {{ {STEP} }}>(h0, {sequences})
        {more}
    }}"""
    return model(text)


def feeds() -> dict[str, np.ndarray]:
    shapes = {"h0": (4, 3), "d": (4, 6, 1), "n": (1, 6, 3), "a": (4, 1, 3)}
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def body_ops(proto: onnx.ModelProto) -> list[str]:
    (scan,) = (node for node in proto.graph.node if node.op_type == "Scan")
    (body,) = (attr.g for attr in scan.attribute if attr.name == "body")
    return sorted(node.op_type for node in body.node if node.op_type != "Identity")


def test_takes_in_what_broadcasts_and_what_follows_it() -> None:
    before = scanned("p = Mul(d, a)  e = Exp(p)  f = Mul(d, n)", "e, f", "[1, 1]")
    after, _ = run_passes(before, PASS, target="cpu")
    assert [op for op in op_list(after) if op != "Squeeze"] == ["Scan"]
    assert body_ops(after) == ["Add", "Exp", "Mul", "Mul", "Mul"]
    assert_same(before, after, feeds())


def test_leaves_what_comes_before_outside() -> None:
    before = scanned("c = Neg(d)  p = Mul(c, a)  e = Exp(p)  f = Mul(c, n)", "e, f", "[1, 1]")
    after, _ = run_passes(before, PASS, target="cpu")
    assert "Neg" in op_list(after) and "Neg" not in body_ops(after)
    assert_same(before, after, feeds())


def test_axis_from_the_back_and_other_rank() -> None:
    before = scanned("w = Squeeze(d, two)  t = Unsqueeze(w, two)  e = Mul(t, n)  f = Mul(d, n)", "e, f", "[-2, 1]")
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "two"))
    after, _ = run_passes(before, PASS, target="cpu")
    assert "Mul" not in op_list(after)
    assert_same(before, after, feeds())


@pytest.mark.parametrize(
    ("before", "more", "outputs"),
    [
        ("e = Expand(d, whole)  f = Expand(n, whole)", "", "float[4,3] last, float[S,4,3] y"),
        ("p = Expand(d, whole)  e = Exp(p)  f = Neg(p)", "", "float[4,3] last, float[S,4,3] y"),
        ("e = Mul(d, n)  f = Mul(d, a)", "z = Add(e, f)", "float[4,3] last, float[S,4,3] y, float[4,6,3] z"),
    ],
    ids=["no element-wise op", "nothing grows", "read by others"],
)
def test_leaves(before: str, more: str, outputs: str) -> None:
    proto = scanned(before, "e, f", "[1, 1]", more=more, outputs=outputs)
    if "whole" in before:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([4, 6, 3]), "whole"))
    assert body_ops(run_passes(proto, PASS, target="cpu")[0]) == ["Add", "Mul"]


def test_targets_without_kernels_keep_their_sequences() -> None:
    proto = scanned("e = Mul(d, n)  f = Mul(d, a)", "e, f", "[1, 1]")
    assert body_ops(run_passes(proto, PASS)[0]) == ["Add", "Mul"]
