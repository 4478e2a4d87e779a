"""Which Softmax become FusedSoftmax, and how."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import halves, prologue
from onnxopt.ops import fused_elementwise as elementwise
from onnxopt.ops import fused_softmax as op
from onnxopt.ops.base import prepare_model
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op as single
from onnxopt.rewrite.rules import Match, Refusal, attribute, rule


@rule(single("Softmax", "LogSoftmax"))
def fuse_softmax(b: Builder, m: Match) -> ir.Value | Refusal:
    """Softmax next to element-wise ops that its kernel can compute, or over another axis than the last."""
    node, ctx = m.root, m.ctx
    x = node.inputs[0]
    rank = None if x is None else ctx.shapes.rank(x)
    is_taken = x is not None and (ctx.shapes.dtype(x) is ir.DataType.FLOAT or halves.are_taken(ctx, x))
    if x is None or not rank or not is_taken or not ctx.runs_once(node):
        return Refusal("the kernel computes float32 of a known rank, in no loop's body", culprit=node)
    axis = attribute(node, "axis", -1 if ctx.opset >= op.ANY_AXIS_OPSET else 1)
    axis = axis - rank if axis >= 0 else axis
    if axis != -1 and ctx.opset < op.ANY_AXIS_OPSET:
        return Refusal("before opset {} Softmax joins axes", op.ANY_AXIS_OPSET, culprit=node)
    if axis == -1 and not (prologue.grow(x, node, ctx) or _has_epilogue(m)):
        return Refusal("onnxruntime computes it as fast where nothing element-wise is next to it", culprit=node)
    width = ctx.shapes.shape(x)[-1]  # type: ignore[index]
    if axis == -1 and isinstance(width, int) and width < ctx.target.costs.softmax_width:
        return Refusal("rows of {} elements are too short", width, culprit=node)
    log = node.op_type == "LogSoftmax"
    overload = op.overload(axis, rank, ctx.opset, log=log)
    if (op.SPEC.domain, op.SPEC.name, overload) not in ctx.model.functions:
        b.functions.append(op.body(axis, rank, ctx.opset, log=log))
    prepare_model(ctx.model)
    attributes = {"axis": None if axis == -1 else axis, "log": 1 if log else None}
    (result,) = b.op(op.SPEC.name, [halves.widen(b, x)], attributes, domain=op.SPEC.domain, overload=overload)
    ctx.shapes.set(result, ir.DataType.FLOAT, ctx.shapes.shape(m.output))
    return halves.like(b, x, result)


def _has_epilogue(m: Match) -> bool:
    """Whether the only thing that reads the result is an element-wise op of the same shape."""
    users = [user for user, _ in m.output.uses()]
    if len(users) != 1 or m.output.is_graph_output():
        return False
    user, shapes = users[0], m.ctx.shapes
    refusal = elementwise.refuse_node(user, shapes, on_device=m.ctx.target.name == "cuda")
    return refusal is None and shapes.same_shape(m.output, user.outputs[0]) is True
