"""Where regions of element-wise ops are, and the node that each becomes.

Regions are grown in one pass in topological order. A region is convex: nothing outside of it lies between two of its nodes, or the
fused node would depend on itself. Dependences on regions are kept as bit sets, so that the pass stays near linear.
"""

from __future__ import annotations

import dataclasses

from onnxopt import ir
from onnxopt.ops import fused_elementwise as op
from onnxopt.ops.base import overload_of, prepare_model
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal

CONV_ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
"""What onnxruntime computes in the same kernel as the Conv before it; taking it out of there only adds a pass over memory."""

MIN_NODES = 2
"""A region of one node gains nothing: onnxruntime's own kernel makes the same single pass over memory."""


@dataclasses.dataclass(slots=True, eq=False)
class Region:
    """Nodes that become one. `bits` names it (and regions merged into it); `outer` are the regions that it depends on."""

    bits: int
    shape_of: ir.Value
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    outer: int = 0
    merged_into: Region | None = None

    def current(self) -> Region:
        region = self
        while region.merged_into is not None:
            region = region.merged_into
        return region


def find_regions(graph: ir.Graph, ctx: Context) -> list[Region]:
    """The maximal regions of one graph, each with its nodes in topological order."""
    finder = _Finder(ctx)
    for node in graph:
        finder.visit(node)
    found = [region for region in finder.regions if region.merged_into is None and len(region.nodes) >= MIN_NODES]
    for region in found:
        region.nodes.sort(key=finder.position.__getitem__)
    return found


class _Finder:
    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.regions: list[Region] = []
        self.position: dict[ir.Node, int] = {}
        self._region_of: dict[ir.Node, Region] = {}
        self._ancestors: dict[ir.Node, int] = {}

    def visit(self, node: ir.Node) -> None:
        self.position[node] = len(self.position)
        producers = [value.producer() for value in ir.inputs_with_captures(node)]
        region = self._choose(node, [producer for producer in producers if producer in self.position])
        ancestors = 0
        for producer in producers:
            if producer is not None and producer in self.position:
                own = self._region_of.get(producer)
                ancestors |= self._ancestors[producer] | (own.current().bits if own is not None else 0)
        if region is not None:
            self._region_of[node] = region
            region.nodes.append(node)
            region.outer |= self._outside(producers, region)
        self._ancestors[node] = ancestors

    def _outside(self, producers: list[ir.Node | None], region: Region) -> int:
        """The regions that the inputs from outside of `region` depend on."""
        outer = 0
        for producer in producers:
            if producer is None or producer not in self.position:
                continue
            own = self._region_of.get(producer)
            if own is None or own.current() is not region:
                outer |= self._ancestors[producer] | (own.current().bits if own is not None else 0)
        return outer

    def _choose(self, node: ir.Node, producers: list[ir.Node | None]) -> Region | None:
        """The region that the node belongs to: those of its operands, merged where that is allowed, or a new one."""
        refusal = op.refuse_node(node, self.ctx.shapes)
        if refusal is None:
            refusal = leave_to_runtime(node, self.ctx)
        if refusal is not None:
            if node.op_type in op.LOWERINGS:
                self.ctx.log.refused("fuse_elementwise", node, refusal, 1)
            return None
        chosen: Region | None = None
        for producer in producers:
            own = self._region_of.get(producer) if producer is not None else None
            if own is None:
                continue
            region = own.current()
            if region is chosen or not self._may_join(node, region, producers):
                continue
            if chosen is None:
                chosen = region
            elif self._may_merge(chosen, region):
                chosen = self._merge(chosen, region)
        if chosen is not None:
            return chosen
        fresh = Region(1 << len(self.regions), node.outputs[0])
        self.regions.append(fresh)
        return fresh

    def _may_join(self, node: ir.Node, region: Region, producers: list[ir.Node | None]) -> bool:
        shapes = self.ctx.shapes
        if len(region.nodes) >= op.MAX_STATEMENTS // 4 or shapes.same_shape(region.shape_of, node.outputs[0]) is not True:
            return False
        for producer in producers:
            own = self._region_of.get(producer) if producer is not None else None
            if own is not None and own.current() is region:
                continue
            assert producer is not None
            inside = self._ancestors[producer] | (own.current().bits if own is not None else 0)
            if inside & region.bits:
                return False
        return True

    def _may_merge(self, a: Region, b: Region) -> bool:
        if len(a.nodes) + len(b.nodes) >= op.MAX_STATEMENTS // 4:
            return False
        return not (a.outer & b.bits or b.outer & a.bits) and self.ctx.shapes.same_shape(a.shape_of, b.shape_of) is True

    def _merge(self, a: Region, b: Region) -> Region:
        a.bits |= b.bits
        a.outer |= b.outer
        a.nodes.extend(b.nodes)
        b.merged_into = a
        return a


def leave_to_runtime(node: ir.Node, ctx: Context) -> Refusal | None:
    """Why onnxruntime computes the node better itself; None when it does not."""
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is None or producer.op_type not in ("Conv", "FusedConv") or ir.use_count(value) != 1:  # type: ignore[arg-type]
            continue
        if node.op_type in CONV_ACTIVATIONS and len(node.inputs) == 1:
            return Refusal("onnxruntime computes {} in the kernel of the Conv before it", node.op_type, culprit=node)
        if node.op_type == "Add" and ctx.shapes.same_shape(*node.inputs) and _is_residual(node):  # type: ignore[arg-type]
            return Refusal("onnxruntime adds the residual in the kernel of the Conv before it", culprit=node)
    if node.op_type == "Relu" and (value := node.inputs[0]) is not None:
        producer = value.producer()
        if producer is not None and producer.op_type == "Add" and any(_made_by_conv(one) for one in producer.inputs):
            return Refusal("onnxruntime computes Relu in the kernel of the Conv before the Add", culprit=node)
    return None


def _made_by_conv(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "Conv"


def _is_residual(node: ir.Node) -> bool:
    """Whether both operands are tensors that a model computes."""
    return all(value is not None and ir.constant(value) is None for value in node.inputs)


def build(region: Region, ctx: Context) -> Patch | Refusal:
    """The patch that replaces a region by one node."""
    inside = set(region.nodes)
    outputs = [
        node.outputs[0]
        for node in region.nodes
        if node.outputs[0].is_graph_output() or any(user not in inside for user, _ in node.outputs[0].uses())
    ]
    compiled = op.compile_region(region.nodes, outputs, ctx.shapes)
    if isinstance(compiled, Refusal):
        return compiled
    anchor = region.nodes[-1]
    opset = ctx.opset
    overload = overload_of(f"{opset}|{compiled.text}|{_structure(region, compiled)}")
    builder = Builder(ctx, anchor)
    results = builder.op(
        op.SPEC.name,
        compiled.inputs,
        {"expr": compiled.text},
        domain=op.SPEC.domain,
        outputs=len(outputs),
        overload=overload,
        name=op.SPEC.name,
    )
    for old, new in zip(outputs, results, strict=True):
        ctx.shapes.set(new, ctx.shapes.dtype(old), ctx.shapes.shape(old))
        new.type = old.type or ir.TensorType(ctx.shapes.dtype(old))  # type: ignore[arg-type]
    key = (op.SPEC.domain, op.SPEC.name, overload)
    if key not in ctx.model.functions:
        builder.functions.append(op.body(region.nodes, compiled, overload, opset))
    prepare_model(ctx.model)
    return builder.patch("fuse_elementwise", dict(zip(outputs, results, strict=True)))


def _structure(region: Region, compiled: op.Compiled) -> str:
    """The original ops as text: two regions share a body only when these are equal too."""
    names: dict[ir.Value, str] = {value: f"i{index}" for index, value in enumerate(compiled.inputs)}
    lines = []
    for node in region.nodes:
        operands = []
        for value in node.inputs:
            assert value is not None
            if value not in names:
                tensor = ir.constant(value)
                assert tensor is not None
                names[value] = f"{tensor.dtype}{tensor.shape}{tensor.tobytes().hex()}"
            operands.append(names[value])
        names[node.outputs[0]] = f"v{len(lines)}"
        attributes = ",".join(f"{name}={attr.value!r}" for name, attr in sorted(node.attributes.items()))
        lines.append(f"{node.op_type}({','.join(operands)};{attributes})")
    return "\n".join(lines)
