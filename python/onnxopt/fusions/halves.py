"""Elements of two bytes, which processors convert at a cost: products of them are for CUDA devices alone, and so are Casts around ops that
compute in float32, which become their prologue and epilogue."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.ops.fused_elementwise import TWO_BYTES
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder


def are_multiplied(ctx: Context, dtype: ir.DataType | None) -> bool:
    """Whether the target has products of elements of that type: of float32, and on CUDA devices of those of two bytes."""
    return dtype is ir.DataType.FLOAT or (ctx.target.name == "cuda" and dtype in TWO_BYTES)


def are_taken(ctx: Context, x: ir.Value) -> bool:
    """Whether elements of `x` have two bytes and the target reads and writes them as fast as memory goes: processors convert them at a cost."""
    return ctx.target.name == "cuda" and ctx.shapes.dtype(x) in TWO_BYTES


def widen(b: Builder, value: ir.Value) -> ir.Value:
    """`value` as float32."""
    shapes = b.ctx.shapes
    if shapes.dtype(value) is ir.DataType.FLOAT:
        return value
    tensor = ir.constant(value)
    if tensor is not None:
        return b.constant(tensor.numpy().astype(np.float32), value.name or "constant")
    return _cast(b, value, ir.DataType.FLOAT)


def like(b: Builder, x: ir.Value, result: ir.Value) -> ir.Value:
    """A float32 result in the type of `x`."""
    dtype = b.ctx.shapes.dtype(x)
    assert dtype is not None
    return result if dtype is ir.DataType.FLOAT else _cast(b, result, dtype)


def _cast(b: Builder, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    (result,) = b.op("Cast", [value], {"to": int(dtype)})
    b.ctx.shapes.set(result, dtype, b.ctx.shapes.shape(value))
    return result
