"""Element-wise regions that become the prologue of the op that reads their result.

The kernel computes the region for a few rows at a time, right before it works on them. A result that others read too, such as the residual
stream of a transformer, becomes another output.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnxopt import ir
from onnxopt.fusions import fused_elementwise as regions
from onnxopt.ops import fused_elementwise as elementwise
from onnxopt.ops import fused_norm, fused_softmax
from onnxopt.ops.base import BodyBuilder, OpSpec, overload_of
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal, attribute

OPS: dict[str, OpSpec] = {spec.name: spec for spec in (fused_norm.SPEC, fused_softmax.SPEC)}
"""The ops with the attributes `prologue` and `kept`, whose first input is what they read."""

MAX_NODES = 16
"""Longer programs leave the first-level cache together with the rows."""


def grow(result: ir.Value, reader: ir.Node, ctx: Context) -> list[ir.Node]:
    """The nodes, in topological order, that make `result` and nothing else; empty where none may be moved into its reader."""
    root = result.producer()
    if root is None or not _fits(root, result, ctx) or root.graph is not reader.graph:
        return []
    inside = {root: None}
    stack = [root]
    while stack and len(inside) < MAX_NODES:
        for value in stack.pop().inputs:
            node = None if value is None else value.producer()
            if node is None or node in inside or node.graph is not reader.graph or not _fits(node, result, ctx):
                continue
            if all(user in inside for user, _ in value.uses()) and not value.is_graph_output():  # type: ignore[union-attr]
                inside[node] = None
                stack.append(node)
    return _sorted(inside)


def _fits(node: ir.Node, result: ir.Value, ctx: Context) -> bool:
    if elementwise.refuse_node(node, ctx.shapes, on_device=ctx.target.name == "cuda") is not None:
        return False
    if regions.leave_to_runtime(node, ctx) is not None:
        return False
    return ctx.shapes.same_shape(node.outputs[0], result) is True


def _sorted(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """In topological order."""
    left = dict.fromkeys(nodes)
    done: list[ir.Node] = []

    def visit(node: ir.Node) -> None:
        if left.pop(node, 0) == 0:
            return
        for value in node.inputs:
            if value is not None and value.producer() in left:
                visit(value.producer())  # type: ignore[arg-type]
        done.append(node)

    for node in list(left):
        visit(node)
    return done


def build(host: ir.Node, ctx: Context) -> tuple[Patch, list[ir.Node]] | Refusal:
    """The patch that lets `host` compute what makes its first input, and the nodes that it replaces."""
    x = host.inputs[0]
    assert x is not None
    if attribute(host, "channels_last", 0):
        return Refusal("its kernel reads the tensor twice", culprit=host)
    nodes = grow(x, host, ctx)
    if not nodes:
        return Refusal("nothing element-wise makes '{}' alone", x.name, culprit=host)
    kept = x.is_graph_output() or any(user is not host for user, _ in x.uses())
    others = [value for value in host.inputs[1:] if value is not None]
    if x in others or (kept and any(ir.constant(value) is None for value in others)):
        return Refusal("what it also reads may depend on '{}'", x.name, culprit=host)
    compiled = elementwise.compile_region(nodes, [x], ctx.shapes)
    if isinstance(compiled, Refusal):
        return compiled
    inside = {*nodes, host}
    if all(any(regions.is_cast(value, inside, ctx) for value in side) for side in (compiled.inputs, host.outputs)):
        return Refusal("onnxruntime computes it in float32 where it casts all around it", culprit=host)
    function = ctx.model.functions[host.op_identifier()]
    spec = OPS[host.op_type]
    overload = overload_of(f"{host.overload}|{kept}|{compiled.text}|{regions.structure(nodes, compiled)}")
    builder = Builder(ctx, host)
    attributes = dict(host.attributes) | {"prologue": compiled.text} | ({"kept": 1} if kept else {})
    results = builder.op(
        spec.name,
        [*compiled.inputs, *others],
        attributes,
        domain=spec.domain,
        outputs=len(host.outputs) + kept,
        overload=overload,
        name=host.name or spec.name,
    )
    replaced = [*host.outputs, x] if kept else list(host.outputs)
    for old, new in zip(replaced, results, strict=True):
        ctx.shapes.set(new, ctx.shapes.dtype(old), ctx.shapes.shape(old))
        new.type = old.type or ir.TensorType(ctx.shapes.dtype(old))  # type: ignore[arg-type]
    if (spec.domain, spec.name, overload) not in ctx.model.functions:
        builder.functions.append(_body(function, nodes, compiled, overload, ctx.opset, spec, kept=kept))
    return builder.patch("fuse_prologue", dict(zip(replaced, results, strict=True))), nodes


def _body(
    function: ir.Function,
    nodes: list[ir.Node],
    compiled: elementwise.Compiled,
    overload: str,
    opset: int,
    spec: OpSpec,
    *,
    kept: bool,
) -> ir.Function:
    own = len(compiled.inputs)
    builder = BodyBuilder(own + len(function.inputs) - 1, opset)
    known = dict(zip(compiled.inputs, builder.inputs[:own], strict=True))
    builder.copy(nodes, known)
    x = known[compiled.outputs[0]]
    inner = dict(zip(function.inputs, [x, *builder.inputs[own:]], strict=True))
    builder.copy(function, inner)
    outputs = [inner[value] for value in function.outputs]
    return builder.function(spec, overload, [*outputs, x] if kept else outputs)


def takes_prologue(node: ir.Node, ctx: Context) -> bool:
    """Whether a node is of an op with the attribute, and has none yet."""
    if node.op_type not in OPS or node.domain != OPS[node.op_type].domain:
        return False
    return attribute(node, "prologue") is None and node.op_identifier() in ctx.model.functions
