"""Activations with a range, and the weights beside them, are written as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.quant.placement import CONVOLUTIONS, place
from onnxopt.quant.ranges import scale_and_zero
from onnxopt.quant.weights import HIGHEST, SMALLEST_SCALE, quantize_columns
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import attribute

RULE = "write_qdq"

LARGEST_BIAS = 1 << 30
"""Of a convolution, in steps of its sums: half of what 32 bits hold, the other half is for the sums."""


@register_pass
class WriteQdq(Pass):
    """Let convolutions and products read what DequantizeLinear makes of 8-bit integers: activations of uint8, weights of int8 per channel.

    Runs only where activations have ranges (`Options.ranges`, from `onnxopt.quantize`). A convolution's bias becomes int32 at the scale of
    its sums, as engines need it. Refused: nodes whose activation has no range, and those that are to stay
    in float.
    """

    name = "write_qdq"
    phase = "quantize"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        ranges = ctx.options.ranges
        if not ranges:
            return PassResult(False)
        placement = place(model, ctx.shapes, keep=ctx.options.keep_float)
        applied = sum(self._write_everywhere(value, ctx) for value in placement.everywhere if value.name in ranges)
        applied += sum(self._write_node(node, ctx) for node in placement.nodes)
        return PassResult(applied > 0, applied)

    def _write_everywhere(self, value: ir.Value, ctx: Context) -> bool:
        """Let everyone read the value as what bytes make of it."""
        producer = value.producer()
        if producer is None:
            return False
        builder = Builder(ctx, producer)
        rounded = _rounded(builder, value, ctx)
        return ctx.editor.wrap(RULE, value, builder.nodes, rounded)

    def _write_node(self, node: ir.Node, ctx: Context) -> bool:
        x = node.inputs[0]
        assert x is not None
        builder = Builder(ctx, node)
        given = _scale_of(x)
        if given is None:
            if x.name not in ctx.options.ranges:
                return False
            given = scale_and_zero(ctx.options.ranges[str(x.name)])[0]
            x = _rounded(builder, x, ctx)
        inputs: list[ir.Value | None] = [x, *_weights(builder, node, given, ctx)]
        (result,) = builder.copy_of(node, inputs)
        ctx.shapes.set(result, ctx.shapes.dtype(node.outputs[0]), ctx.shapes.shape(node.outputs[0]))
        if not ctx.editor.apply(builder.patch(RULE, {node.outputs[0]: result})):
            return False
        ctx.editor.remove_unused([node])
        return True

    def rule_names(self) -> list[str]:
        return [RULE]


def _rounded(builder: Builder, value: ir.Value, ctx: Context) -> ir.Value:
    scale, zero = scale_and_zero(ctx.options.ranges[str(value.name)])
    parameters = [builder.constant(np.array(scale), "scale"), builder.constant(np.array(zero), "zero_point")]
    quantized = builder.QuantizeLinear(value, *parameters)
    return builder.DequantizeLinear(quantized, *parameters)


def _scale_of(value: ir.Value) -> np.float32 | None:
    """The scale of a value that DequantizeLinear makes."""
    node = value.producer()
    found = None if node is None or node.op_type != "DequantizeLinear" else ir.scalar(node.inputs[1])
    return None if found is None else np.float32(found)


def _coarse_enough(
    columns: np.ndarray, quantized: np.ndarray, scales: np.ndarray, least: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The integers of columns with scales of at least `least`: weights so small that their bias would not fit 32 bits count for nothing."""
    fine = scales < least
    if not fine.any():
        return quantized, scales
    raised = np.where(fine, least, scales).astype(np.float32)
    rounded = np.clip(np.rint(columns / raised), -HIGHEST, HIGHEST).astype(np.int8)
    return np.where(fine, rounded, quantized), raised


def _weights(builder: Builder, node: ir.Node, x_scale: np.float32, ctx: Context) -> Iterable[ir.Value | None]:
    """The further inputs of a node, of constants in 8 bits (weights) and 32 bits (a convolution's bias)."""
    weights = node.inputs[1]
    tensor = None if weights is None else ir.constant(weights)
    assert weights is not None and tensor is not None
    array, name = np.asarray(tensor.numpy()), weights.name or "weights"
    first = node.op_type in CONVOLUTIONS or bool(attribute(node, "transB", 0))
    columns = array.reshape(array.shape[0], -1).T if first else array
    matrix = ctx.options.matrices.get(ir.node_name(node))
    quantized, scales = quantize_columns(columns) if matrix is None else (matrix.array, matrix.scales)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    held = None if bias is None or node.op_type not in CONVOLUTIONS else ir.constant(bias)
    added = None if held is None else np.asarray(held.numpy(), np.float64)
    if added is not None:
        quantized, scales = _coarse_enough(columns, quantized, scales, np.abs(added) / (x_scale * LARGEST_BIAS))
    restored = np.ascontiguousarray(quantized.T).reshape(array.shape) if first else quantized
    axis = 0 if first else 1
    yield builder.DequantizeLinear(
        builder.constant(restored, name),
        builder.constant(scales, f"{name}_scales"),
        builder.constant(np.zeros(scales.shape, np.int8), f"{name}_zero_points"),
        axis=axis,
    )
    if bias is None:
        return
    if added is None:
        yield bias
        return
    limits, step = np.iinfo(np.int32), np.maximum(x_scale * scales, SMALLEST_SCALE)
    whole = np.clip(np.rint(added / step), limits.min, limits.max).astype(np.int32)
    yield builder.DequantizeLinear(
        builder.constant(whole, f"{name}_bias"),
        builder.constant(step.astype(np.float32), f"{name}_bias_scales"),
        axis=0,
    )
