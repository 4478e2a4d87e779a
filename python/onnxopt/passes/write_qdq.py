"""Activations with a range, and the weights beside them, are written as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxopt import ir
from onnxopt.fusions.qgemm import added_bias
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.quant.placement import CONVOLUTIONS, place
from onnxopt.quant.ranges import scale_and_zero
from onnxopt.quant.weights import coarse_enough, quantize_columns, unit_of_sums, whole_bias
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import attribute

RULE = "write_qdq"


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
        placement = place(
            model,
            ctx.shapes,
            epilogues=ctx.options.quantize_products,
            keep=ctx.options.keep_float,
            dynamic=ctx.options.dynamic,
        )
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
        builder = Builder(ctx, node)
        x, scale = _activation(builder, node, ctx)
        if x is None:
            return False
        (result,) = builder.copy_of(node, [x, *_weights(builder, node, scale, ctx)])
        last = node
        if node.op_type not in CONVOLUTIONS:
            result, last = _with_bias(builder, node, result, ctx)
        return ctx.editor.apply(builder.patch(RULE, {last.outputs[0]: result}), unused=[last, node])

    def rule_names(self) -> list[str]:
        return [RULE]


def _activation(builder: Builder, node: ir.Node, ctx: Context) -> tuple[ir.Value | None, np.float32 | None]:
    """What a node is to read in place of its activation, and its scale: unknown where the range is that of the sample.

    No value where the activation has no range.
    """
    x = node.inputs[0]
    assert x is not None
    given = _scale_of(x)
    if given is not None:
        return x, given
    if ir.node_name(node) in ctx.options.dynamic:
        return builder.DequantizeLinear(*builder.op("DynamicQuantizeLinear", [x], outputs=3)), None
    if x.name not in ctx.options.ranges:
        return None, None
    return _rounded(builder, x, ctx), scale_and_zero(ctx.options.ranges[str(x.name)])[0]


def _with_bias(builder: Builder, node: ir.Node, result: ir.Value, ctx: Context) -> tuple[ir.Value, ir.Node]:
    """A product's result with the bias that is added to it and its correction, and the node that it takes the place of."""
    matrix = ctx.options.matrices.get(ir.node_name(node))
    weights = ir.constant(node.inputs[1])
    assert weights is not None
    columns = int(weights.shape.numpy()[0 if attribute(node, "transB", 0) else 1])
    lacking = None if matrix is None or _vector(node, columns) is not None else matrix.correction
    bias, last = added_bias(node, columns)
    parts = [one for one in (bias, lacking) if one is not None]
    if not parts:
        return result, node
    total = np.sum(parts, axis=0)
    return builder.Add(result, builder.constant(_shaped(total, node, ctx).astype(np.float32), "bias")), last


def _shaped(bias: np.ndarray, node: ir.Node, ctx: Context) -> np.ndarray:
    """A vector, or a row where onnxruntime would make a Gemm of a product and a vector, between Reshapes that keep it from seeing integers:
    where sizes are known and there are more dims than two."""
    shape = ctx.shapes.static_shape(node.outputs[0])
    return bias.reshape(1, -1) if shape is not None and len(shape) > 2 else bias


def _vector(node: ir.Node, columns: int) -> np.ndarray | None:
    """The constant bias of a node itself, float64 [columns]; None where it has none, or one of another form."""
    tensor = ir.constant(ir.input_at(node, 2))
    fits = tensor is not None and tensor.shape.numpy() in ((columns,), (1, columns))
    return np.asarray(tensor.numpy(), np.float64).reshape(-1) if tensor is not None and fits else None


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


def _weights(builder: Builder, node: ir.Node, x_scale: np.float32 | None, ctx: Context) -> Iterable[ir.Value | None]:
    """The further inputs of a node, of constants in 8 bits (weights) and 32 bits (its bias; floats where X's scale is unknown)."""
    weights = node.inputs[1]
    tensor = None if weights is None else ir.constant(weights)
    assert weights is not None and tensor is not None
    array, name = np.asarray(tensor.numpy()), weights.name or "weights"
    first = node.op_type in CONVOLUTIONS or bool(attribute(node, "transB", 0))
    columns = array.reshape(array.shape[0], -1).T if first else array
    matrix = ctx.options.matrices.get(ir.node_name(node))
    quantized, scales = quantize_columns(columns) if matrix is None else (matrix.array, matrix.scales)
    bias = ir.input_at(node, 2)
    added, lacking = _vector(node, columns.shape[1]), None if matrix is None else matrix.correction
    if lacking is not None and (added is not None or (bias is None and node.op_type in CONVOLUTIONS)):
        added = lacking + (0.0 if added is None else added)
    if added is not None and x_scale is not None:
        quantized, scales = coarse_enough(columns, quantized, scales, added, x_scale)
    restored = np.ascontiguousarray(quantized.T).reshape(array.shape) if first else quantized
    axis = 0 if first else 1
    yield builder.DequantizeLinear(
        builder.constant(restored, name),
        builder.constant(scales, f"{name}_scales"),
        builder.constant(np.zeros(scales.shape, np.int8), f"{name}_zero_points"),
        axis=axis,
    )
    if added is None:
        if bias is not None:
            yield bias
        return
    if x_scale is None:
        yield builder.constant(added.astype(np.float32), f"{name}_bias")
        return
    unit = unit_of_sums(x_scale, scales)
    whole = whole_bias(added, unit)
    yield builder.DequantizeLinear(
        builder.constant(whole, f"{name}_bias"),
        builder.constant(unit, f"{name}_bias_scales"),
        axis=0,
    )
