"""Convolution and activation as one node: onnxruntime's own FusedConv, carried with a standard body."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.ops.base import FUNCTIONS_IR_VERSION, overload_of
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import walk
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal

DOMAIN = "com.microsoft"
ACTIVATIONS = ("Relu", "Sigmoid", "Tanh")
"""Activations without parameters that the kernel applies."""


@register_pass
class FuseConvActivations(Pass):
    """Turn Conv and the Relu, Sigmoid or Tanh behind it into com.microsoft::FusedConv with a function body of the two standard ops.

    onnxruntime runs its kernel, which it would have fused itself; any other runtime runs the body. Refused: a Conv with other users,
    types other than float32, and a Conv whose result is added to something first.
    """

    name = "fuse_conv_activations"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for node in list(walk(model.graph)):
            if node.op_type not in ACTIVATIONS or node.domain or node.graph is None:
                continue
            conv = node.inputs[0].producer() if node.inputs[0] is not None else None
            if conv is None or conv.op_type != "Conv" or conv.domain:
                continue
            refusal = self._refuse(conv, node, ctx)
            if refusal is not None:
                ctx.log.refused(self.name, node, refusal, 2)
            elif self._fuse(conv, node, ctx):
                patches += 1
        return PassResult(patches > 0, patches)

    @staticmethod
    def _refuse(conv: ir.Node, node: ir.Node, ctx: Context) -> Refusal | None:
        value = conv.outputs[0]
        if ir.use_count(value) != 1 or value.is_graph_output():
            return Refusal("the Conv's result is also used elsewhere", culprit=conv)
        if conv.graph is not node.graph:
            return Refusal("the Conv is in another graph", culprit=conv)
        if ctx.shapes.dtype(node.outputs[0]) != ir.DataType.FLOAT:
            return Refusal("the kernel computes float32 only", culprit=conv)
        return None

    def _fuse(self, conv: ir.Node, node: ir.Node, ctx: Context) -> bool:
        inputs = list(conv.inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = {**conv.attributes, "activation": node.op_type}
        signature = ",".join(f"{name}={attr.value!r}" for name, attr in sorted(conv.attributes.items()))
        overload = overload_of(f"{ctx.opset}|{node.op_type}|{len(inputs)}|{signature}")
        builder = Builder(ctx, node)
        output = builder.op("FusedConv", inputs, attributes, domain=DOMAIN, overload=overload, name=conv.name)[0]
        ctx.shapes.set(output, ctx.shapes.dtype(node.outputs[0]), ctx.shapes.shape(node.outputs[0]))
        if (DOMAIN, "FusedConv", overload) not in ctx.model.functions:
            builder.functions.append(_body(conv, node, len(inputs), overload, ctx.opset))
        ctx.model.graph.opset_imports.setdefault(DOMAIN, 1)
        ctx.model.ir_version = max(ctx.model.ir_version, FUNCTIONS_IR_VERSION)
        if not ctx.editor.apply(builder.patch(self.name, {node.outputs[0]: output})):
            return False
        ctx.editor.remove_unused([node])
        return True


def _body(conv: ir.Node, node: ir.Node, inputs: int, overload: str, opset: int) -> ir.Function:
    formals = [ir.Value(name=f"i{index}") for index in range(inputs)]
    made = ir.Node("", "Conv", formals, list(conv.attributes.values()), num_outputs=1, name="conv")
    made.outputs[0].name = "c"
    active = ir.Node("", node.op_type, [made.outputs[0]], num_outputs=1, name="activation")
    active.outputs[0].name = "y"
    graph = ir.Graph(formals, [active.outputs[0]], nodes=[made, active], opset_imports={"": opset}, name="FusedConv")
    return ir.Function(DOMAIN, "FusedConv", overload, graph=graph, attributes=[])
