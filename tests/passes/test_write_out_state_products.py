"""Products of a state with a column of each step, written out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, run_passes

PASS = "write_out_state_products"
RNG = np.random.default_rng(0)


def scanned(product: str, *, column: str = "3,1", result: str = "4,1", opset: int = 17) -> onnx.ModelProto:
    text = f"""g (float[4,3] h0, float[6,4,3] x, float[6,{column}] c, float[3,1] same) => (float[4,3] last, float[6,{result}] y) {{
        last, y = Scan<num_scan_inputs = 2,
            body = step (float[4,3] h, float[4,3] e, float[{column}] f) => (float[4,3] g, float[{result}] s) {{
                g = Add(h, e)  t = Tanh(g)  {product} }}>(h0, x, c)
    }}"""
    return model(text, opset=opset)


def body_ops(proto: onnx.ModelProto) -> list[str]:
    (body,) = (attr.g for attr in proto.graph.node[-1].attribute if attr.name == "body")
    return [node.op_type for node in body.node]


@pytest.mark.parametrize(("column", "result"), [("3,1", "4,1"), ("1,3,1", "1,4,1"), ("2,3,1", "2,4,1")])
@pytest.mark.parametrize("opset", [11, 17])
def test_writes_out(column: str, result: str, opset: int) -> None:
    before = scanned("s = MatMul(t, f)", column=column, result=result, opset=opset)
    after, _ = run_passes(before, PASS, target="cpu")
    assert body_ops(after) == ["Add", "Tanh", "Transpose", "Mul", "ReduceSum", "Unsqueeze"]
    shapes = {"h0": (4, 3), "x": (6, 4, 3), "c": (6, *map(int, column.split(","))), "same": (3, 1)}
    feeds = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    assert_same(before, after, feeds)


@pytest.mark.parametrize(
    ("product", "column", "result"),
    [
        ("s = MatMul(t, same)", "3,1", "4,1"),
        ("s = MatMul(t, f)", "3,2", "4,2"),
        ("s = MatMul(e, f)", "3,1", "4,1"),
    ],
    ids=["the same column", "several columns", "no state"],
)
def test_leaves(product: str, column: str, result: str) -> None:
    before = scanned(product, column=column, result=result)
    assert body_ops(run_passes(before, PASS, target="cpu")[0]) == ["Add", "Tanh", "MatMul"]


def test_targets_without_kernels_keep_products() -> None:
    assert "MatMul" in body_ops(run_passes(scanned("s = MatMul(t, f)"), PASS)[0])
