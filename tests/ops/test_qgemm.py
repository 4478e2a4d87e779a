"""QGemm: its kernel against its body, in onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model
from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops import qgemm as op
from onnxopt.ops.base import DOMAIN, BodyBuilder, prepare_model

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
NAMES = {DataType.FLOAT: "float", DataType.UINT8: "uint8", DataType.INT8: "int8"}


def with_body(variety: op.Variety, zero: str, opset: int = 17) -> onnx.ModelProto:
    """One node over X and its weights, and the function that it stands for."""
    depth, columns = variety.depth, variety.columns
    panels, groups = -(-columns // ir.PANEL), -(-depth // op.GROUP)
    inputs = [
        f"{NAMES[variety.dtype]}[A,B,{depth}] x",
        f"int8[{panels},{groups},16,4] w",
        f"float[{columns}] scales",
        f"int32[{columns}] sums",
        *([] if variety.by_row else ["float scale", f"{zero} zero"]),
        *([f"float[{columns}] bias"] if variety.biased else []),
    ]
    names = ", ".join(one.split()[-1] for one in inputs)
    text = f"g ({', '.join(inputs)}) => (float[A,B,{columns}] y) {{ y = Sum({names}) }}"
    loaded = ir.load(model(text, opset=opset, ir_version=10))
    (node,) = loaded.graph
    node.domain, node.op_type, node.overload = DOMAIN, op.SPEC.name, variety.overload(opset)
    for name, value in {"columns": columns, "by_row": variety.by_row, "biased": variety.biased}.items():
        node.attributes[name] = ir.make_attribute(name, int(value))
    body = variety.body(opset)
    loaded.functions[body.identifier()] = body
    prepare_model(loaded)
    return ir.to_proto(loaded)


@pytest.mark.parametrize("opset", [13, 17, 18, 21, 23])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("dtype", "zero", "by_row"),
    [
        (DataType.FLOAT, "uint8", False),
        (DataType.FLOAT, "int8", False),
        (DataType.UINT8, "uint8", False),
        (DataType.INT8, "int8", False),
        (DataType.FLOAT, "uint8", True),
    ],
)
def test_kernel_and_body_agree(dtype: DataType, zero: str, by_row: bool, biased: bool, opset: int) -> None:
    rng = np.random.default_rng(0)
    for depth, columns in ((9, 5), (32, 48)):
        variety = op.Variety(depth, columns, dtype, by_row, biased)
        proto = with_body(variety, zero, opset)
        matrix = rng.integers(-127, 128, (depth, columns)).astype(np.int8)
        scales = rng.uniform(0.1, 1, columns).astype(np.float32)
        x = rng.standard_normal((2, 3, depth)).astype(np.float32)
        if dtype is not DataType.FLOAT:
            limits = np.iinfo(zero)
            x = rng.integers(limits.min, limits.max + 1, x.shape).astype(zero)
        feeds: dict[str, Array] = {"x": x, "w": op.pack(matrix), "scales": scales, "sums": op.column_sums(matrix)}
        if not by_row:
            feeds |= {"scale": np.array(0.03, np.float32), "zero": np.array(7, zero)}
        if biased:
            feeds["bias"] = rng.standard_normal(columns).astype(np.float32)
        kernel, body = (evaluate(proto, feeds, library=library)[0] for library in (True, False))
        assert np.abs(kernel - body).max() <= op.SPEC.tolerance[DataType.FLOAT] * np.abs(body).max()


@pytest.mark.parametrize("depth", [1, 4, 7, 33])
@pytest.mark.parametrize("columns", [1, 16, 40])
def test_unpacking_gives_the_matrix_back(depth: int, columns: int) -> None:
    matrix = np.random.default_rng(1).integers(-128, 128, (depth, columns)).astype(np.int8)
    builder = BodyBuilder(1, 17)
    function = builder.function(op.SPEC, "", [op.unpack(builder, builder.inputs[0], depth, columns)])
    held = ir.load(model(f"g (int8[A,B,C,D] i0) => (int8[{depth},{columns}] y) {{ y = Identity(i0) }}", ir_version=10))
    (node,) = held.graph
    node.domain, node.op_type = DOMAIN, op.SPEC.name
    held.functions[function.identifier()] = function
    prepare_model(held)
    (found,) = evaluate(ir.to_proto(held), {"i0": op.pack(matrix)}, library=False)
    np.testing.assert_array_equal(found, matrix)
