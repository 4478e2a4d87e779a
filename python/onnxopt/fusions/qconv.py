"""Which convolutions of quantized tensors become QConv, and what else it computes.

A convolution is taken channels-last between two Transposes of bytes and sums; what is around it follows
(`convolutions_channels_last`, `sink_transposes`). The node grows by steps, each of which adds the original ops to its body: a residual sum, an epilogue, and the rounding at last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxopt import ir
from onnxopt.fusions import quantized
from onnxopt.fusions.channels_last import source_of
from onnxopt.fusions.fused_conv import RANKS, windows_of
from onnxopt.ops import qconv as op
from onnxopt.ops.base import BodyBuilder, overload_of, prepare_model
from onnxopt.ops.fused_conv import channels_first, channels_last
from onnxopt.ops.fused_elementwise import refuse_node
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal, attribute

CONVOLUTION, SUM, ROUNDING = "fuse_qconv", "fuse_qconv_sum", "fuse_qconv_rounding"
REQUANTIZATION = "fuse_requantization"


def build(node: ir.Node, ctx: Context) -> Patch | Refusal | None:
    """The patch for Conv `node`; None where its operands are not quantized."""
    filters = quantized.weights(node.inputs[1])
    given_x = node.inputs[0]
    x = None if filters is None else quantized.dequantized(given_x, ctx) or quantized.measured(given_x, ctx)
    if filters is None or x is None:
        return None
    shape, group = filters.array.shape, int(attribute(node, "group", 1))
    given = ir.input_at(node, 2)
    bias = quantized.bias(given)
    if ctx.opset < op.MIN_OPSET:
        return Refusal("opset {} has no scales per channel", ctx.opset, culprit=node)
    if len(shape) not in RANKS or 0 in shape:
        return Refusal("the kernel has one or two spatial dims", culprit=node)
    if filters.axis not in (None, 0):
        return Refusal("its filters have a scale along axis {}", filters.axis, culprit=node)
    if given is not None and bias is None:
        return Refusal("its bias '{}' is not constant", given.name, culprit=given)
    if any(attr.is_ref() for attr in node.attributes.values()):
        return Refusal("an attribute of it is not known here", culprit=node)
    windows = {"kernel_shape": list(shape[2:]), **windows_of(node)}
    variety = op.Variety(shape, windows, group, bias is not None)
    builder = Builder(ctx, node)
    builder.define(op.SPEC.domain, op.SPEC.name, variety.overload(ctx.opset), lambda: variety.body(ctx.opset))
    operands: dict[str, np.ndarray | ir.Value] = {
        "weights": op.pack(filters.array, group, windows),
        "weight_scales": np.broadcast_to(filters.scale, shape[:1]).astype(np.float32),
        "weight_sums": op.filter_sums(filters.array),
        "scale": x.scale,
        "zero_point": x.zero,
    }
    if bias is not None:
        operands["bias"] = bias
    data = source_of(x.value, ctx)
    if data is None:
        data = builder.Transpose(x.value, perm=channels_last(len(shape)))
        _know(ctx, data, x.value, channels_last(len(shape)), x.dtype)
    attributes = {**windows, "group": group, "filters": shape[0], "biased": 1 if bias is not None else None}
    prepare_model(ctx.model)
    (result,) = builder.op(
        op.SPEC.name,
        [data, *(one if isinstance(one, ir.Value) else builder.constant(one, name) for name, one in operands.items())],
        attributes,
        domain=op.SPEC.domain,
        overload=variety.overload(ctx.opset),
        name=node.name or op.SPEC.name,
    )
    old = node.outputs[0]
    _know(ctx, result, old, channels_last(len(shape)), ir.DataType.FLOAT)
    back = builder.Transpose(result, perm=channels_first(len(shape)))
    return builder.patch(CONVOLUTION, {old: back})


def _know(ctx: Context, new: ir.Value, old: ir.Value, perm: Sequence[int], dtype: ir.DataType) -> None:
    shape = ctx.shapes.shape(old)
    ctx.shapes.set(new, dtype, None if shape is None else tuple(shape[axis] for axis in perm))
    new.type = ir.TensorType(dtype)


def host_of(value: ir.Value | None, ctx: Context) -> ir.Node | None:
    """The QConv whose result a value is, where nothing else reads it and it is not of bytes yet."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != op.SPEC.name or node.domain != op.SPEC.domain or value is None:
        return None
    if ir.use_count(value) != 1 or value.is_graph_output() or "output_dtype" in node.attributes:
        return None
    return node if node.op_identifier() in ctx.model.functions else None


def build_sum(node: ir.Node, ctx: Context) -> Patch | None:
    """The patch for Add `node`: a convolution's result, perhaps rounded, and a tensor of bytes of the same shape."""
    if ctx.shapes.same_shape(node.inputs[0], node.inputs[1]) is not True:  # type: ignore[arg-type]
        return None
    # The operand that is computed last is the convolution: the other one is at hand by then.
    for index in (1, 0):
        result, other = node.inputs[index], node.inputs[1 - index]
        added = quantized.dequantized(other, ctx)
        rounding = _rounding(result, ctx)
        host = host_of(result if rounding is None else rounding[0].inputs[0], ctx)
        if added is None or host is None or result is other or host.attributes.keys() & {"epilogue", "added"}:
            continue
        if other is not None and _depends(other, host):
            continue
        if rounding is not None and ir.use_count(result) != 1:  # type: ignore[arg-type]
            continue
        inside = [] if rounding is None else list(rounding)
        constants: dict[str, np.ndarray] = {}
        if rounding is not None:
            found = quantized.quantization(rounding[0])
            assert found is not None
            constants = {"scale": found[0], "zero_point": found[1]}
        more: list[ir.Value | np.ndarray] = [*constants.values(), added.value, added.scale, added.zero]
        flags = {"added": 1, "rounded": 1 if rounding is not None else None}
        assert other is not None and other.producer() is not None
        return _grown(SUM, host, [*inside, other.producer(), node], more, flags, ctx)  # type: ignore[list-item]
    return None


def _rounding(value: ir.Value | None, ctx: Context) -> tuple[ir.Node, ir.Node] | None:
    """The QuantizeLinear and the DequantizeLinear that a value passed through, if nothing else reads what is between."""
    found = quantized.dequantized(value, ctx)
    if value is None or found is None or value.is_graph_output():
        return None
    first, second = found.value.producer(), value.producer()
    own = quantized.quantization(first)
    if first is None or second is None or own is None or ir.use_count(found.value) != 1:
        return None
    fits = own[0] == found.scale and own[1] == found.zero and own[1].dtype == found.zero.dtype
    return (first, second) if fits and not found.value.is_graph_output() else None


def build_rounding(node: ir.Node, ctx: Context) -> Patch | None:
    """The patch for DequantizeLinear `node`, where a convolution's result passed through bytes that nothing but element-wise ops reads."""
    value = node.outputs[0]
    pair = _rounding(value, ctx)
    host = None if pair is None else host_of(pair[0].inputs[0], ctx)
    if pair is None or host is None or host.attributes.keys() & {"epilogue", "added", "rounded"}:
        return None
    if any(refuse_node(user, ctx.shapes) is not None for user, _ in value.uses()):
        return None
    found = quantized.quantization(pair[0])
    assert found is not None
    return _grown(ROUNDING, host, list(pair), list(found), {"rounded": 1}, ctx)


SEARCH_LIMIT = 256
"""Nodes looked at to prove that a sum depends on itself nowhere; without a proof it stays apart."""


def _depends(value: ir.Value, node: ir.Node) -> bool:
    """Whether a value is made of the node's result; True also when that is not settled soon."""
    stack, seen = [value.producer()], set[ir.Node]()
    while stack:
        one = stack.pop()
        if one is node or len(seen) > SEARCH_LIMIT:
            return True
        if one is not None and one not in seen:
            seen.add(one)
            stack += [source.producer() for source in one.inputs if source is not None]
    return False


def build_requantization(node: ir.Node, ctx: Context) -> Patch | None:
    """The patch for QuantizeLinear `node` of a convolution's result."""
    host, found = host_of(node.inputs[0], ctx), quantized.quantization(node)
    if host is None or found is None:
        return None
    dtype = ir.DataType.from_numpy(found[1].dtype)
    return _grown(REQUANTIZATION, host, [node], list(found), {"output_dtype": int(dtype.value)}, ctx)


def _grown(
    rule: str,
    host: ir.Node,
    nodes: list[ir.Node],
    more: list[ir.Value | np.ndarray],
    attributes: Mapping[str, Any],
    ctx: Context,
) -> Patch:
    """The patch that lets `host` compute `nodes` too, which end a chain from its result; `more` are their tensors and constants."""
    function, old = ctx.model.functions[host.op_identifier()], nodes[-1].outputs[0]
    builder = Builder(ctx, nodes[-1])
    given = [builder.constant(one, "quantization") if isinstance(one, np.ndarray) else one for one in more]
    # The epilogue's further inputs are the last ones.
    at = len(host.inputs) - _epilogue_inputs(host)
    overload = overload_of(
        f"{host.overload}|{rule}|{[(one.op_type, one.inputs[0] is not None) for one in nodes]}|{dict(attributes)}"
    )
    if (op.SPEC.domain, op.SPEC.name, overload) not in ctx.model.functions:
        builder.functions.append(_body(function, rule, at, len(given), overload, ctx.opset))
    (result,) = builder.op(
        op.SPEC.name,
        [*host.inputs[:at], *given, *host.inputs[at:]],
        {**host.attributes, **attributes},
        domain=op.SPEC.domain,
        overload=overload,
        name=host.name or op.SPEC.name,
    )
    ctx.shapes.set(result, ctx.shapes.dtype(old), ctx.shapes.shape(old))
    new_type = ctx.shapes.dtype(old)
    result.type = old.type or (None if new_type is None else ir.TensorType(new_type))
    return builder.patch(rule, {old: result})


def _epilogue_inputs(node: ir.Node) -> int:
    text = attribute(node, "epilogue", "")
    return len(text.split("|")[0].split()) - 1 if text else 0


def _body(function: ir.Function, rule: str, at: int, count: int, overload: str, opset: int) -> ir.Function:
    builder = BodyBuilder(len(function.inputs) + count, opset)
    own = [*builder.inputs[:at], *builder.inputs[at + count :]]
    given = builder.inputs[at : at + count]
    known = dict(zip(function.inputs, own, strict=True))
    builder.copy(function, known)
    result = known[function.outputs[0]]
    if rule == REQUANTIZATION:
        return builder.function(op.SPEC, overload, [builder.op("QuantizeLinear", [result, *given])])
    rounding, rest = (given, []) if rule == ROUNDING else (given[:-3], given[-3:])
    if rounding:
        result = builder.op("QuantizeLinear", [result, *rounding])
        result = builder.op("DequantizeLinear", [result, *rounding])
    if rest:
        result = builder.op("Add", [result, builder.op("DequantizeLinear", rest)])
    return builder.function(op.SPEC, overload, [result])
