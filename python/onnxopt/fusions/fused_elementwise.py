"""Where regions of element-wise ops are, and the node that each becomes.

Regions are grown in one pass in topological order. No region may depend on itself through others, or the fused nodes
would form a cycle: before a node joins a region, what it reads from elsewhere is followed backwards, regions as single
nodes, as far as the region reaches.
"""

from __future__ import annotations

import dataclasses

from onnxopt import ir
from onnxopt.fusions import quantized, sizes
from onnxopt.fusions.blocked_layout import BlockedLayout, is_convolution
from onnxopt.ops import fused_elementwise as op
from onnxopt.ops.base import overload_of, prepare_model
from onnxopt.passes.base import Context
from onnxopt.passes.recognize_norms import LAYER_NORM
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal

CONV_ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
"""What onnxruntime computes in the kernel of the Conv before it; taking it out of there only adds a pass over memory."""

MIN_NODES = 2
"""A region of one node gains nothing: onnxruntime's own kernel makes the same single pass over memory."""

SLOW_ALONE = frozenset({"Celu", "Elu", "Log", "Mish", "Selu", "Softplus"})
"""What onnxruntime computes element by element: one such node is a region, unless its tensor is small."""

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

MOVES = frozenset(
    {
        "Cast", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "SpaceToDepth", "Split",
        "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Ops that onnxruntime has kernels of for two-byte floats."""

MAX_NODES = 60
"""Nodes of one region. Longer programs gain nothing, their intermediate values fall out of the first-level cache."""

SEARCH_LIMIT = 512
"""Nodes and regions looked at to prove that joining makes no cycle; without a proof a node stays apart. This keeps the
pass linear."""


@dataclasses.dataclass(slots=True, eq=False)
class Region:
    """Nodes that become one, all of the shape of `shape_of`; `first` and `last` are positions of the outermost ones."""

    shape_of: ir.Value
    first: int
    last: int
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    merged_into: Region | None = None

    def current(self) -> Region:
        region = self
        while region.merged_into is not None:
            region = region.merged_into
        return region


def find_regions(graph: ir.Graph, ctx: Context) -> list[list[ir.Node]]:
    """The maximal regions of one graph that are worth a node of their own, each in topological order."""
    found = [nodes for nodes in all_regions(graph, ctx) if _has_least_nodes(nodes)]
    return [piece for nodes in found for piece in _pieces(nodes) if _is_worthwhile(piece, ctx)]


def all_regions(graph: ir.Graph, ctx: Context) -> list[list[ir.Node]]:
    """The maximal regions of one graph, single nodes too, each in topological order."""
    left = dict.fromkeys(_nodes_of_norms(graph, ctx), _WHOLE)
    left |= dict.fromkeys(BlockedLayout(graph, ctx).nodes_to_leave(), _BLOCKED)
    left |= dict.fromkeys(filter(quantized.is_rounded, graph), _ROUNDED)
    finder = _Finder(ctx, left)
    for node in graph:
        finder.visit(node)
    return [
        sorted(region.nodes, key=finder.position.__getitem__) for region in finder.regions if region.merged_into is None
    ]


def _is_worthwhile(nodes: list[ir.Node], ctx: Context) -> bool:
    count, costs = sizes.elements(nodes[0].outputs[0], ctx), ctx.target.costs
    # What a branch or a loop's body computes is one step's work: of unknown size, it is taken to be small.
    small = nodes[0].graph is not ctx.model.graph if count is None else count <= costs.small_region_elements
    casts = _casts(nodes, ctx)
    if casts and len(nodes) <= casts + 1:
        refusal = Refusal(
            "{} nodes gain less than {} casts to and from two bytes cost", len(nodes), casts, culprit=nodes[0]
        )
        ctx.log.refused("fuse_elementwise", nodes[0], refusal, len(nodes))
        return False
    if len(nodes) >= costs.small_region_nodes or (not small and _has_least_nodes(nodes)):
        return True
    shape = ctx.shapes.shape(nodes[0].outputs[0])
    refusal = Refusal("{} nodes over shape {} gain nothing", len(nodes), shape, culprit=nodes[0])
    ctx.log.refused("fuse_elementwise", nodes[0], refusal, len(nodes))
    return False


def _casts(nodes: list[ir.Node], ctx: Context) -> int:
    """How often values at the border of a region are cast for it: onnxruntime computes two-byte floats in float32 on processors, and
    leaves casts out between its own ops alone."""
    inside = set(nodes)
    entering = {
        value for node in nodes for value in node.inputs if value is not None and value.producer() not in inside
    }
    return sum(is_cast(value, inside, ctx) for value in (*entering, *outputs_of(nodes)))


def is_cast(value: ir.Value, inside: set[ir.Node], ctx: Context) -> bool:
    """Whether onnxruntime casts a value between these nodes and others: it is of two bytes, and they compute on a processor."""
    if ctx.target.name != "cpu" or ctx.shapes.dtype(value) not in HALVES or ir.constant(value) is not None:
        return False
    return any(
        other is not None and other not in inside and not other.domain and other.op_type not in MOVES
        for other in (value.producer(), *(user for user, _ in value.uses()))
    )


def _has_least_nodes(nodes: list[ir.Node]) -> bool:
    return len(nodes) >= MIN_NODES or nodes[0].op_type in SLOW_ALONE


def _nodes_of_norms(graph: ir.Graph, ctx: Context) -> set[ir.Node]:
    """The nodes of layer normalizations that the model's opset has no op for. onnxruntime runs each as one kernel of its own, which
    reads the tensor once; a region that takes a part of it out leaves three passes over memory."""
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type == "Add" and not node.domain:
            match = LAYER_NORM.match(node, ctx)
            found.update(match.matched if match is not None else ())
    return found


_WHOLE = "it belongs to a normalization that onnxruntime runs as one kernel"
_ROUNDED = "onnxruntime computes it in 8 bits"
_BLOCKED = "it is between convolutions, in whose blocked layout onnxruntime computes it"


class _Finder:
    def __init__(self, ctx: Context, left: dict[ir.Node, str]) -> None:
        self.ctx = ctx
        self.left = left
        self.regions: list[Region] = []
        self.position: dict[ir.Node, int] = {}
        self._producers: dict[ir.Node, list[ir.Node]] = {}
        self._region_of: dict[ir.Node, Region] = {}

    def visit(self, node: ir.Node) -> None:
        self.position[node] = position = len(self.position)
        made_by = dict.fromkeys(value.producer() for value in ir.inputs_with_captures(node))
        producers = self._producers[node] = [one for one in made_by if one is not None and one in self.position]
        if not self._is_wanted(node):
            return
        region = self._choose(node, producers)
        if region is None:
            region = Region(node.outputs[0], position, position)
            self.regions.append(region)
        region.nodes.append(node)
        region.last = position
        self._region_of[node] = region

    def _is_wanted(self, node: ir.Node) -> bool:
        refusal = op.refuse_node(node, self.ctx.shapes, on_device=self.ctx.target.name == "cuda")
        if refusal is None and node in self.left:
            refusal = Refusal(self.left[node], culprit=node)
        if refusal is None:
            refusal = leave_to_runtime(node, self.ctx)
        if refusal is not None and node.op_type in op.LOWERINGS:
            self.ctx.log.refused("fuse_elementwise", node, refusal, 1)
        return refusal is None

    def _region(self, node: ir.Node) -> Region | None:
        region = self._region_of.get(node)
        return None if region is None else region.current()

    def _choose(self, node: ir.Node, producers: list[ir.Node]) -> Region | None:
        """The region that the node joins: those of its operands, merged where that is allowed."""
        chosen: Region | None = None
        for producer in producers:
            region = self._region(producer)
            if region is None or region is chosen or not self._may_join(node, region, producers):
                continue
            if chosen is None:
                chosen = region
            elif self._may_merge(chosen, region):
                chosen = self._merge(chosen, region)
        return chosen

    def _may_join(self, node: ir.Node, region: Region, producers: list[ir.Node]) -> bool:
        if len(region.nodes) >= MAX_NODES or not self._same_shape(region.shape_of, node.outputs[0]):
            return False
        return not self._depends(producers, region)

    def _may_merge(self, a: Region, b: Region) -> bool:
        if len(a.nodes) + len(b.nodes) >= MAX_NODES or not self._same_shape(a.shape_of, b.shape_of):
            return False
        return not self._depends(self._inputs(a, b), b) and not self._depends(self._inputs(b, a), a)

    def _same_shape(self, a: ir.Value, b: ir.Value) -> bool:
        return self.ctx.shapes.same_shape(a, b) is True

    def _inputs(self, region: Region, other: Region | None = None) -> list[ir.Node]:
        """The nodes outside of the region (and of `other`) that it reads from."""
        inside = (region, other)
        made_by = (one for node in region.nodes for one in self._producers[node])
        return [one for one in made_by if one not in self._region_of or self._region(one) not in inside]

    def _depends(self, nodes: list[ir.Node], region: Region) -> bool:
        """Whether one of `nodes` that is not in `region` depends on it; True also when that is not settled."""
        stack = [node for node in nodes if self._region(node) is not region]
        seen: set[ir.Node | Region] = set()
        while stack:
            node = stack.pop()
            own = self._region(node)
            if own is region:
                return True
            item = own or node
            if item in seen or (own.last if own else self.position[node]) < region.first:
                continue
            if len(seen) == SEARCH_LIMIT:
                return True
            seen.add(item)
            stack += self._inputs(own) if own else self._producers[node]
        return False

    def _merge(self, a: Region, b: Region) -> Region:
        a.nodes += b.nodes
        a.first, a.last = min(a.first, b.first), max(a.last, b.last)
        b.merged_into = a
        return a


def _pieces(nodes: list[ir.Node]) -> list[list[ir.Node]]:
    """The region, cut in topological order into parts that the kernel's limits allow."""
    statements = sum(2 * len(node.inputs) + 1 for node in nodes)
    inside = set(nodes)
    inputs = {value for node in nodes for value in node.inputs if value is not None and value.producer() not in inside}
    if statements <= op.MAX_STATEMENTS and len(inputs) <= op.MAX_INPUTS and len(outputs_of(nodes)) <= op.MAX_OUTPUTS:
        return [nodes]
    half = len(nodes) // 2
    return _pieces(nodes[:half]) + _pieces(nodes[half:]) if half else [nodes]


def outputs_of(nodes: list[ir.Node]) -> list[ir.Value]:
    """The values of a region that something outside of it uses."""
    inside = set(nodes)
    return [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(user not in inside for user, _ in value.uses())
    ]


def leave_to_runtime(node: ir.Node, ctx: Context) -> Refusal | None:
    """Why onnxruntime computes the node better itself; None when it does not."""
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is None or not is_convolution(producer) or ir.use_count(value) != 1:  # type: ignore[arg-type]
            continue
        if node.op_type in CONV_ACTIVATIONS:
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


def needed(nodes: list[ir.Node], outputs: list[ir.Value]) -> list[ir.Node]:
    """The nodes of a region that the outputs depend on."""
    wanted = set(outputs)
    needed = []
    for node in reversed(nodes):
        if node.outputs[0] in wanted:
            wanted.update(value for value in node.inputs if value is not None)
            needed.append(node)
    return needed[::-1]


def build(nodes: list[ir.Node], ctx: Context) -> Patch | Refusal:
    """The patch that replaces a region, given in topological order, by one node."""
    outputs = outputs_of(nodes)
    nodes = needed(nodes, outputs)
    if not nodes:
        return Refusal("nothing uses the region")
    compiled = op.compile_region(nodes, outputs, ctx.shapes)
    if isinstance(compiled, Refusal):
        return compiled
    anchor = nodes[-1]
    opset = ctx.opset
    overload = overload_of(f"{opset}|{compiled.text}|{structure(nodes, compiled)}")
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
        builder.functions.append(op.body(nodes, compiled, overload, opset))
    prepare_model(ctx.model)
    return builder.patch("fuse_elementwise", dict(zip(outputs, results, strict=True)))


def structure(nodes: list[ir.Node], compiled: op.Compiled) -> str:
    """The original ops as text: two regions share a body only when these are equal too."""
    names: dict[ir.Value, str] = {value: f"i{index}" for index, value in enumerate(compiled.inputs)}
    lines: list[str] = []
    for node in nodes:
        operands = []
        for value in node.inputs:
            if value is not None and value not in names:
                tensor = ir.constant(value)
                assert tensor is not None
                names[value] = f"{tensor.dtype}{tensor.shape}{tensor.tobytes().hex()}"
            operands.append("" if value is None else names[value])
        names[node.outputs[0]] = f"v{len(lines)}"
        attributes = ",".join(f"{name}={attr.value!r}" for name, attr in sorted(node.attributes.items()))
        lines.append(f"{node.op_type}({','.join(operands)};{attributes})")
    return "\n".join(lines)
