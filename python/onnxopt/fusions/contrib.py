"""What becomes a contrib op of onnxruntime (domain com.microsoft), where the user allows models that need onnxruntime."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import fused_attention
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal

DOMAIN, VERSION = "com.microsoft", 1

RULE = "use_multi_head_attention"

LAYOUT = "b s hd"
"""How MultiHeadAttention reads queries, keys and values, and writes its result: [batch, rows, heads * columns]."""

MASK_RANK = 4


def build(node: ir.Node, ctx: Context) -> Patch | Refusal | None:
    """The patch that makes MultiHeadAttention of the product `node` and what belongs to it; None where it does not multiply weights.

    It is for float32, operands whose heads lie side by side, and at most one mask, which is added and has the rows and keys of the scores.
    """
    found = fused_attention.find(node, ctx)
    if not isinstance(found, fused_attention.Found):
        return found
    if found.made.dtype is not ir.DataType.FLOAT:
        return Refusal("it is of another type than float32", culprit=node)
    made, (q, k, v), masks = found.made, found.operands, [mask.value for mask in found.masks]
    if {made.q, made.k, made.v, made.y} != {LAYOUT} or made.heads != made.kv_heads:
        return Refusal("its heads are not side by side, or share keys", culprit=node)
    if found.rotation is not None or made.softcap or made.nan_to_zero or made.masks not in ((), ("add",)):
        return Refusal("it is rotated, capped, or has masks that are not added", culprit=node)
    if any(mask.factor != 1.0 or mask.order or mask.limited for mask in found.masks):
        return Refusal("its mask is scaled, transposed or limited", culprit=node)
    if masks and not _is_whole(masks[0], q, k, made.heads, ctx):
        return Refusal("its mask is not one number for every score", culprit=masks[0])
    anchor = found.result.producer()
    assert anchor is not None
    builder = Builder(ctx, anchor)
    inputs = [q, k, v, *((None, None, masks[0]) if masks else ())]
    attributes = {"num_heads": made.heads, "scale": made.scale}
    (result,) = builder.op("MultiHeadAttention", inputs, attributes, domain=DOMAIN, name=node.name or None)
    ctx.shapes.set(result, ir.DataType.FLOAT, ctx.shapes.shape(found.result))
    ctx.model.graph.opset_imports.setdefault(DOMAIN, VERSION)
    return builder.patch(RULE, {found.result: result})


def _is_whole(mask: ir.Value, q: ir.Value, k: ir.Value, heads: int, ctx: Context) -> bool:
    """Whether a mask has the rows and keys of the scores; it may be the same for all batches or heads."""
    shape, of_q, of_k = (ctx.shapes.shape(one) for one in (mask, q, k))
    if shape is None or of_q is None or of_k is None or len(shape) != MASK_RANK:
        return False
    batches, of_heads, rows, keys = shape
    return batches in (1, of_q[0]) and of_heads in (1, heads) and (rows, keys) == (of_q[1], of_k[1])
