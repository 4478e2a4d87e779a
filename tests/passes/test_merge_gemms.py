"""Products of the same rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

pytest.importorskip("onnxopt._native", reason="the native library is not built")

BEFORE = ("fuse_gemms", "fuse_epilogues")
RNG = np.random.default_rng(0)


def weights(columns: int = 40, depth: int = 24) -> np.ndarray:
    return RNG.standard_normal((depth, columns)).astype(np.float32)


def rows(body: str, outputs: str = "y", **constants: np.ndarray) -> onnx.ModelProto:
    names = ", ".join(f"float[] {name}" for name in outputs.split(", "))
    made = model(f"g (float[B,S,24] x) => ({names}) {{ {body} }}", opset=20, **constants)
    for output in made.graph.output:
        output.type.tensor_type.ClearField("shape")
    return made


def feeds() -> list[dict[str, np.ndarray]]:
    x = RNG.standard_normal((2, 7, 24)).astype(np.float32)
    wild = x.copy()
    wild[0, 0, 0], wild[1, 3, 5] = np.inf, np.nan
    return [{"x": x}, {"x": wild}, {"x": x[:, :0]}, {"x": np.zeros((1, 40, 24), np.float32)}]


def merged(before: onnx.ModelProto) -> onnx.ModelProto:
    after, _ = run_passes(before, *BEFORE, "merge_gemms")
    assert_same(before, after, feeds())
    again, _ = run_passes(after, "merge_gemms")
    assert op_list(again) == op_list(after)
    return after


@pytest.mark.parametrize(
    "body",
    [
        "g = MatMul(x, w)\n u = MatMul(x, v)\n s = Sigmoid(g)\n a = Mul(g, s)\n y = Mul(a, u)",
        "u = MatMul(x, v)\n g = MatMul(x, w)\n a = Gelu(g)\n y = Mul(u, a)",
        "g = MatMul(x, w)\n u = MatMul(x, v)\n d = Sub(g, u)\n t = Tanh(d)\n y = Div(t, u)",
    ],
    ids=["SwiGLU", "GeGLU", "not commutative"],
)
def test_a_gated_pair_is_one_node(body: str) -> None:
    after = merged(rows(body, w=weights(), v=weights()))
    assert op_list(after) == ["FusedGemm"]


def test_biases_and_other_operands_keep_their_places() -> None:
    body = """p = MatMul(x, w)\n g = Add(p, b)\n q = MatMul(x, v)\n u = Add(q, c)
    a = Gelu(g)\n m = Mul(a, u)\n r = Mul(m, d)\n y = Sub(r, u)"""
    after = merged(
        rows(body, w=weights(), v=weights(), b=weights()[0], c=weights()[0], d=weights()[0].reshape(1, 1, -1))
    )
    assert op_list(after) == ["FusedGemm"]


def test_projections_are_outputs_of_one_node() -> None:
    body = "q = MatMul(x, w)\n k = MatMul(x, v)\n t = MatMul(x, u)"
    after = merged(rows(body, "q, k, t", w=weights(), v=weights(), u=weights()))
    assert op_list(after) == ["FusedGemm"] and len(after.graph.node[0].output) == 3


def test_at_most_four_products_share_a_node() -> None:
    body = "\n".join(f"y{number} = MatMul(x, w{number})" for number in range(6))
    names = {f"w{number}": weights() for number in range(6)}
    after = merged(rows(body, ", ".join(f"y{number}" for number in range(6)), **names))
    assert [len(node.output) for node in after.graph.node] == [4, 2]


@pytest.mark.parametrize(
    ("body", "outputs", "columns"),
    [
        ("q = MatMul(x, w)\n k = MatMul(x, v)", "q, k", 24),
        ("z = Tanh(x)\n q = MatMul(x, w)\n k = MatMul(z, v)", "q, k", 40),
        ("p = MatMul(x, w)\n q = Add(p, b)\n k = MatMul(x, v)", "q, k", 40),
    ],
    ids=["other columns", "other rows", "one has a bias"],
)
def test_refuses(body: str, outputs: str, columns: int) -> None:
    after = merged(rows(body, outputs, w=weights(), v=weights(columns), b=weights()[0]))
    assert op_list(after).count("FusedGemm") == 2


def test_a_gate_that_others_read_stays() -> None:
    body = "g = MatMul(x, w)\n u = MatMul(x, v)\n a = Gelu(u)\n y = Mul(a, g)"
    after = merged(rows(body, "y, g", w=weights(), v=weights()))
    assert op_list(after).count("FusedGemm") == 2
