"""A Conv and its activation become one FusedConv, which carries both as its body."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.fusions.quantized import is_rounded
from onnxopt.ops.base import FUNCTIONS_IR_VERSION, overload_of
from onnxopt.passes.base import Context, PassResult, RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, attribute, rule

DOMAIN = "com.microsoft"
OP_TYPE = "FusedConv"

FLOAT_MAX = float(np.finfo(np.float32).max)
"""Where Clip has no bound, the standard takes the largest finite number."""

ACTIVATIONS = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": (("alpha", 0.01),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "Clip": (("min", -FLOAT_MAX), ("max", FLOAT_MAX)),
}
"""What onnxruntime's kernel applies to the result: parameters in the kernel's order, with their defaults."""


def parameters(node: ir.Node) -> list[float] | Refusal:
    """The parameters of an activation, from attributes or (Clip since opset 11) constant inputs."""
    found: list[float] = []
    for index, (name, default) in enumerate(ACTIVATIONS[node.op_type], start=1):
        operand = ir.input_at(node, index) if node.op_type == "Clip" else None
        number = attribute(node, name, default) if operand is None else ir.scalar(operand)
        if number is None:
            return Refusal("its {} is not constant", name, culprit=node)
        found.append(float(number))
    return found


@pattern
def _activation_of_conv(p, x, w):  # type: ignore[no-untyped-def]
    conv = p.Conv(x, w, p.optional("bias"), as_="conv")
    return p.op(tuple(ACTIVATIONS), conv, p.optional("low"), p.optional("high"))


def _in_kernel(m: Match) -> bool | Refusal:
    if m.ctx.target.name != "cpu":
        return Refusal("only onnxruntime's CPU provider has the kernel", culprit=m.root)
    if is_rounded(m.node("conv")):
        return Refusal("onnxruntime computes it in 8 bits", culprit=m.root)
    return m.dtype("x") is ir.DataType.FLOAT or Refusal("the kernel computes float32", culprit=m.root)


@rule(_activation_of_conv, where=_in_kernel)
def fuse_conv_activation(b: Builder, m: Match) -> ir.Value | Refusal:
    """Conv and the activation that alone uses it are one FusedConv."""
    conv = m.node("conv")
    numbers = parameters(m.root)
    if isinstance(numbers, Refusal):
        return numbers
    attributes = {name: attr.value for name, attr in conv.attributes.items()}
    own = sorted(attributes.items())
    inputs = [value for value in (m["x"], m["w"], m.get("bias")) if value is not None]
    overload = overload_of(f"{m.ctx.opset}|{len(inputs)}|{own}|{m.root.op_type}|{numbers}")
    if (DOMAIN, OP_TYPE, overload) not in m.ctx.model.functions:
        b.functions.append(_body(conv, m.root, len(inputs), overload, m.ctx.opset))
    attributes |= {"activation": m.root.op_type, "activation_params": numbers or None}
    (result,) = b.op(OP_TYPE, inputs, attributes, domain=DOMAIN, overload=overload, name=conv.name)
    m.ctx.shapes.set(result, m.dtype("x"), m.ctx.shapes.shape(m.output))
    return result


def _body(conv: ir.Node, activation: ir.Node, inputs: int, overload: str, opset: int) -> ir.Function:
    """The standard ops that the node stands for, for runtimes without the kernel."""
    formals = [ir.Value(name=name) for name in ("x", "w", "b")[:inputs]]
    product = _node("Conv", formals, conv)
    nodes = [product]
    operands: list[ir.Value | None] = [product.outputs[0]]
    for value in activation.inputs[1:]:
        tensor = ir.constant(value)
        if tensor is not None:
            nodes.append(ir.Node("", "Constant", [], [ir.Attr("value", ir.AttributeType.TENSOR, tensor)]))
        operands.append(None if tensor is None else nodes[-1].outputs[0])
    nodes.append(_node(activation.op_type, operands, activation))
    for number, node in enumerate(nodes):
        node.name, node.outputs[0].name = f"n{number}", f"v{number}"
    graph = ir.Graph(formals, nodes[-1].outputs, nodes=nodes, opset_imports={"": opset}, name=OP_TYPE)
    return ir.Function(DOMAIN, OP_TYPE, overload, graph=graph, attributes=[])


def _node(op_type: str, inputs: Sequence[ir.Value | None], like: ir.Node) -> ir.Node:
    return ir.Node("", op_type, inputs, list(like.attributes.values()))


@register_pass
class FuseConvActivations(RulePass):
    """Turn Conv and Relu, Sigmoid, Tanh, LeakyRelu, HardSigmoid or Clip into one `com.microsoft.FusedConv`.

    The node carries a model-local function of the same domain and name: onnxruntime runs its own kernel, any other
    runtime the body. Refused: convolutions that others use as well, element types other than float32, bounds that are
    not constant, and targets other than the CPU.
    """

    name = "fuse_conv_activations"
    phase = "fuse"
    rules = RuleSet([fuse_conv_activation])

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        result = super().run(model, ctx)
        if result.modified:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
            model.ir_version = max(model.ir_version, FUNCTIONS_IR_VERSION)
        return result
