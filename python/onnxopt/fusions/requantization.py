"""Which QGemm makes the bytes that the ops after it read, and how."""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxopt import ir
from onnxopt.fusions import quantized
from onnxopt.ops import qgemm as op
from onnxopt.ops.base import BodyBuilder, overload_of
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal, attribute

RULE = "requantize_qgemm"
RULE_OF_READERS = "read_bytes"

X, SCALE, ZERO = 0, 4, 5
"""The places of QGemm's inputs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Quantization:
    """One scale and zero point for a tensor."""

    scale: np.ndarray
    zero: np.ndarray

    def same(self, other: Quantization) -> bool:
        return (
            self.scale.item() == other.scale.item()
            and self.zero.item() == other.zero.item()
            and self.zero.dtype == other.zero.dtype
        )


def is_host(node: ir.Node, ctx: Context) -> bool:
    """Whether a node is a QGemm that makes one tensor of floats."""
    return (
        is_qgemm(node)
        and node.op_identifier() in ctx.model.functions
        and len(node.outputs) == 1
        and "output_dtype" not in node.attributes
        and ctx.shapes.dtype(node.outputs[0]) is ir.DataType.FLOAT
    )


def is_qgemm(node: ir.Node) -> bool:
    return node.domain == op.SPEC.domain and node.op_type == op.SPEC.name


def agreed(node: ir.Node, ctx: Context) -> Quantization | Refusal:
    """What all readers of a node's result quantize it with."""
    result = node.outputs[0]
    if result.is_graph_output():
        return Refusal("'{}' is a result of the model", result.name, culprit=result)
    found: Quantization | None = None
    for reader, place in result.uses():
        own = _quantization_of(reader, place, ctx)
        if own is None:
            return Refusal("'{}' reads floats", reader.name, culprit=reader)
        if found is not None and not found.same(own):
            return Refusal("its readers quantize '{}' with different scales", result.name, culprit=result)
        found = own
    return found or Refusal("nothing reads '{}'", result.name, culprit=result)


def _quantization_of(reader: ir.Node, place: int, ctx: Context) -> Quantization | None:
    """What a reader quantizes the input at `place` with; None where it does not, or not with constants."""
    if place != X:
        return None
    if reader.op_type == "QuantizeLinear" and not reader.domain and not attribute(reader, "output_dtype", 0):
        found = quantized.quantization(reader)
        return None if found is None else Quantization(*found)
    if not is_qgemm(reader) or attribute(reader, "by_row", 0) or reader.op_identifier() not in ctx.model.functions:
        return None
    scale, zero = (ir.constant(reader.inputs[index]) for index in (SCALE, ZERO))
    return None if scale is None or zero is None else Quantization(np.asarray(scale.numpy()), np.asarray(zero.numpy()))


def build(node: ir.Node, quantization: Quantization, ctx: Context) -> Patch:
    """The patch that makes a QGemm quantize its result, which a DequantizeLinear makes floats of again."""
    result = node.outputs[0]
    dtype = ir.DataType.from_numpy(quantization.zero.dtype)
    overload = overload_of(f"{node.overload}|{dtype}|requantized")
    builder = Builder(ctx, node)
    builder.define(
        op.SPEC.domain, op.SPEC.name, overload, lambda: _quantizing(ctx.model.functions[node.op_identifier()], overload)
    )
    parameters = [builder.constant(quantization.scale, "scale"), builder.constant(quantization.zero, "zero_point")]
    attributes = dict(node.attributes) | {"output_dtype": int(dtype.value)}
    (bytes_,) = builder.op(
        op.SPEC.name,
        [*node.inputs, *parameters],
        attributes,
        domain=op.SPEC.domain,
        overload=overload,
        name=node.name or op.SPEC.name,
    )
    ctx.shapes.set(bytes_, dtype, ctx.shapes.shape(result))
    floats = builder.DequantizeLinear(bytes_, *parameters)
    ctx.shapes.set(floats, ir.DataType.FLOAT, ctx.shapes.shape(result))
    return builder.patch(RULE, {result: floats})


def read_bytes(reader: ir.Node, bytes_: ir.Value, ctx: Context) -> Patch:
    """The patch that lets a reader of the dequantized result read the bytes themselves."""
    builder = Builder(ctx, reader)
    old = reader.outputs[0]
    if reader.op_type == "QuantizeLinear":
        return builder.patch(RULE_OF_READERS, {old: bytes_})
    overload = overload_of(f"{reader.overload}|bytes")
    builder.define(
        op.SPEC.domain,
        op.SPEC.name,
        overload,
        lambda: _of_bytes(ctx.model.functions[reader.op_identifier()], overload),
    )
    made = builder.op(
        op.SPEC.name,
        [bytes_, *reader.inputs[1:]],
        dict(reader.attributes),
        domain=op.SPEC.domain,
        outputs=len(reader.outputs),
        overload=overload,
        name=reader.name or op.SPEC.name,
    )
    replaced = dict(zip(reader.outputs, made, strict=True))
    for before, after in replaced.items():
        ctx.shapes.set(after, ctx.shapes.dtype(before), ctx.shapes.shape(before))
    return builder.patch(RULE_OF_READERS, replaced)


def _quantizing(function: ir.Function, overload: str) -> ir.Function:
    """A body, and then QuantizeLinear."""
    own = len(function.inputs)
    builder = BodyBuilder(own + 2, function.opset_imports[""])
    known = dict(zip(function.inputs, builder.inputs[:own], strict=True))
    builder.copy(function, known)
    result = builder.op("QuantizeLinear", [known[function.outputs[0]], *builder.inputs[own:]])
    return builder.function(op.SPEC, overload, [result])


def _of_bytes(function: ir.Function, overload: str) -> ir.Function:
    """A body without the QuantizeLinear that it begins with."""
    builder = BodyBuilder(len(function.inputs), function.opset_imports[""])
    known = dict(zip(function.inputs, builder.inputs, strict=True))
    rest = []
    for node in function:
        if node.op_type == "QuantizeLinear" and node.inputs[0] is function.inputs[X]:
            known[node.outputs[0]] = builder.inputs[X]
        else:
            rest.append(node)
    builder.copy(rest, known)
    return builder.function(op.SPEC, overload, [known[value] for value in function.outputs])
