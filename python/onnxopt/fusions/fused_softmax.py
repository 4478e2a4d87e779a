"""Which Softmax become FusedSoftmax, and how."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import prologue
from onnxopt.ops import fused_elementwise as elementwise
from onnxopt.ops import fused_softmax as op
from onnxopt.ops.base import prepare_model
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op as single
from onnxopt.rewrite.rules import Match, Refusal, attribute, rule


@rule(single("Softmax", "LogSoftmax"))
def fuse_softmax(b: Builder, m: Match) -> ir.Value | Refusal:
    """Softmax over the last axis next to element-wise ops that its kernel can compute."""
    node, ctx = m.root, m.ctx
    x = node.inputs[0]
    rank = None if x is None else ctx.shapes.rank(x)
    if x is None or not rank or ctx.shapes.dtype(x) is not ir.DataType.FLOAT or node.graph is not ctx.model.graph:
        return Refusal("the kernel computes float32 of a known rank, in the main graph", culprit=node)
    axis = attribute(node, "axis", -1 if ctx.opset >= op.ANY_AXIS_OPSET else 1)
    if axis not in (-1, rank - 1):
        return Refusal("it is not along the last axis", culprit=node)
    if not (prologue.grow(x, node, ctx) or _has_epilogue(m)):
        return Refusal("onnxruntime computes it as fast where nothing element-wise is next to it", culprit=node)
    log = node.op_type == "LogSoftmax"
    overload = op.overload(rank, ctx.opset, log=log)
    if (op.SPEC.domain, op.SPEC.name, overload) not in ctx.model.functions:
        b.functions.append(op.body(rank, ctx.opset, log=log))
    prepare_model(ctx.model)
    (result,) = b.op(op.SPEC.name, [x], {"log": 1} if log else {}, domain=op.SPEC.domain, overload=overload)
    ctx.shapes.set(result, ctx.shapes.dtype(m.output), ctx.shapes.shape(m.output))
    return result


def _has_epilogue(m: Match) -> bool:
    """Whether the only thing that reads the result is an element-wise op of the same shape."""
    users = [user for user, _ in m.output.uses()]
    if len(users) != 1 or m.output.is_graph_output():
        return False
    user, shapes = users[0], m.ctx.shapes
    return elementwise.refuse_node(user, shapes) is None and shapes.same_shape(m.output, user.outputs[0]) is True
