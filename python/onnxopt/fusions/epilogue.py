"""Element-wise regions that become the epilogue of the op whose result they read.

The region moves into the kernel that makes its input, block by block while the block is in the cache; what the op's node becomes has a
body of its own: that of the op, and then the region's original ops.
"""

from __future__ import annotations

import dataclasses

from onnxopt import ir
from onnxopt.fusions import fused_elementwise as regions
from onnxopt.ops import (
    fused_conv,
    fused_conv_transpose,
    fused_gemm,
    fused_norm,
    fused_resize,
    fused_softmax,
    fused_squeeze_excite,
    qconv,
    qgemm,
)
from onnxopt.ops import fused_elementwise as elementwise
from onnxopt.ops.base import BodyBuilder, OpSpec, overload_of, prepare_model
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal

OPS: dict[str, OpSpec] = {
    spec.name: spec
    for spec in (
        fused_conv.SPEC,
        fused_conv_transpose.SPEC,
        fused_gemm.SPEC,
        fused_norm.SPEC,
        fused_resize.SPEC,
        fused_softmax.SPEC,
        fused_squeeze_excite.SPEC,
        qconv.SPEC,
        qgemm.SPEC,
    )
}
"""The ops with an attribute `epilogue`, whose first output is the raw result."""

ONE_OUTPUT = (
    fused_conv.SPEC,
    fused_conv_transpose.SPEC,
    fused_resize.SPEC,
    fused_squeeze_excite.SPEC,
    qconv.SPEC,
)
"""Those whose epilogue has to make one tensor of float32, since its memory holds the raw result."""


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """A node that can take an epilogue, and its function."""

    node: ir.Node
    function: ir.Function

    @property
    def result(self) -> ir.Value:
        return self.node.outputs[0]


def find_host(nodes: list[ir.Node], ctx: Context) -> Host | None:
    """The last node among those that the region reads that can take all of it as its epilogue."""
    inside = set(nodes)
    found: Host | None = None
    for value in dict.fromkeys(value for node in nodes for value in node.inputs if value is not None):
        producer = value.producer()
        if producer is None or producer in inside or producer.domain != fused_gemm.SPEC.domain:
            continue
        refusal = _refuse(producer, nodes, inside, ctx)
        if refusal is not None:
            ctx.log.refused("fuse_epilogue", producer, refusal, 2)
            continue
        found = Host(producer, ctx.model.functions[producer.op_identifier()])
    return found


def _refuse(node: ir.Node, nodes: list[ir.Node], inside: set[ir.Node], ctx: Context) -> Refusal | None:
    if node.op_type not in OPS or node.op_identifier() not in ctx.model.functions:
        return Refusal("{} takes no epilogue", node.op_type, culprit=node)
    if node.graph is not nodes[0].graph:
        return Refusal("{} is outside of the branch or body of the region", node.op_type, culprit=node)
    if node.attributes.keys() & {"epilogue", "output_dtype"} or len(node.outputs) != 1:
        return Refusal("{} has an epilogue already", node.op_type, culprit=node)
    result = node.outputs[0]
    if result.is_graph_output() or any(user not in inside for user, _ in result.uses()):
        return Refusal("'{}' is also used elsewhere", result.name, culprit=result)
    if ctx.shapes.same_shape(result, nodes[0].outputs[0]) is not True:
        return Refusal("'{}' may be broadcast", result.name, culprit=result)
    return None


def build(host: Host, nodes: list[ir.Node], ctx: Context) -> Patch | Refusal:
    """The patch that lets `host` compute the region, which is given in topological order."""
    outputs = regions.outputs_of(nodes)
    nodes = regions.needed(nodes, outputs)
    compiled = elementwise.compile_region(nodes, outputs, ctx.shapes, first=[host.result])
    if isinstance(compiled, Refusal):
        return compiled
    spec = OPS[host.node.op_type]
    if spec in ONE_OUTPUT and (len(outputs) != 1 or ctx.shapes.dtype(outputs[0]) is not ir.DataType.FLOAT):
        return Refusal("{} has one output, of float32", spec.name, culprit=host.node)
    overload = overload_of(f"{host.node.overload}|{compiled.text}|{regions.structure(nodes, compiled)}")
    builder = Builder(ctx, nodes[-1])
    attributes = dict(host.node.attributes) | {"epilogue": compiled.text}
    inputs = [*host.node.inputs, *compiled.inputs[1:]]
    results = builder.op(
        spec.name,
        inputs,
        attributes,
        domain=spec.domain,
        outputs=len(outputs),
        overload=overload,
        name=host.node.name or spec.name,
    )
    for old, new in zip(outputs, results, strict=True):
        ctx.shapes.set(new, ctx.shapes.dtype(old), ctx.shapes.shape(old))
        new.type = old.type or ir.TensorType(ctx.shapes.dtype(old))  # type: ignore[arg-type]
    if (spec.domain, spec.name, overload) not in ctx.model.functions:
        builder.functions.append(_body(host, nodes, compiled, overload, ctx.opset))
    prepare_model(ctx.model)
    return builder.patch("fuse_epilogue", dict(zip(outputs, results, strict=True)))


def _body(host: Host, nodes: list[ir.Node], compiled: elementwise.Compiled, overload: str, opset: int) -> ir.Function:
    own = len(host.function.inputs)
    builder = BodyBuilder(own + len(compiled.inputs) - 1, opset)
    known = dict(zip(host.function.inputs, builder.inputs[:own], strict=True))
    builder.copy(host.function, known)
    region = {host.result: known[host.function.outputs[0]]}
    region.update(zip(compiled.inputs[1:], builder.inputs[own:], strict=True))
    builder.copy(nodes, region)
    return builder.function(OPS[host.node.op_type], overload, [region[value] for value in compiled.outputs])
