"""Products of the same rows with several matrices become one FusedGemm."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from onnxopt import ir
from onnxopt.ops import fused_gemm as op
from onnxopt.ops.base import BodyBuilder, overload_of
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import attribute


@register_pass
class MergeGemms(Pass):
    """Merge FusedGemm nodes that read the same rows and have as many columns.

    The gate and the value of a gated pair (SwiGLU, GeGLU) meet in the epilogue of one node, so that neither is written to memory;
    projections without an epilogue (query, key, value) become several outputs of one node. Refused: results that others read, other
    numbers of columns, and more than four matrices.
    """

    name = "merge_gemms"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = sum(self._merge_graph(graph, ctx) for graph in ctx.graphs_run_once())
        return PassResult(patches > 0, patches)

    def rule_names(self) -> list[str]:
        return ["merge_gated_pair", "merge_projections"]

    def _merge_graph(self, graph: ir.Graph, ctx: Context) -> int:
        patches = 0
        for node in list(graph):
            if _is_gemm(node) and "epilogue" in node.attributes:
                patches += self._merge_into_epilogue(node, ctx)
        siblings: dict[tuple[object, ...], list[ir.Node]] = defaultdict(list)
        for node in graph:
            if _is_gemm(node) and "epilogue" not in node.attributes and _products(node) == 1:
                siblings[node.inputs[0], *_kind(node)].append(node)
        for nodes in siblings.values():
            for start in range(0, len(nodes) - 1, op.MAX_PRODUCTS):
                patches += self._merge_siblings(nodes[start : start + op.MAX_PRODUCTS], ctx)
        if patches:
            ir.sort_nodes(graph)
        return patches

    def _merge_into_epilogue(self, node: ir.Node, ctx: Context) -> int:
        merged = 0
        while (found := _gate_of(node)) is not None:
            patch = _gated(node, found, ctx)
            if not ctx.editor.apply(patch):
                break
            gate = found.producer()
            assert gate is not None
            ctx.editor.remove_unused([node, gate])
            node, merged = patch.nodes[0], merged + 1
        return merged

    def _merge_siblings(self, nodes: list[ir.Node], ctx: Context) -> int:
        if len(nodes) < 2 or not ctx.editor.apply(_projections(nodes, ctx)):
            return 0
        ctx.editor.remove_unused(nodes)
        return 1


def _is_gemm(node: ir.Node) -> bool:
    return node.op_type == op.SPEC.name and node.domain == op.SPEC.domain


def _products(node: ir.Node) -> int:
    return int(attribute(node, "products", 1))


def _kind(node: ir.Node) -> tuple[object, ...]:
    """What is the same of all products of a node."""
    weights = node.inputs[1]
    dtype = None if weights is None else weights.dtype
    return attribute(node, "columns"), attribute(node, "biased", 0), attribute(node, "block", 0), dtype


def _operands(node: ir.Node) -> int:
    """How many inputs a product has: weights, scales of integers, biases."""
    return 1 + bool(attribute(node, "block", 0)) + bool(attribute(node, "biased", 0))


def _own_inputs(node: ir.Node) -> int:
    """How many inputs come before those of the epilogue."""
    return 1 + _products(node) * _operands(node)


def _gate_of(node: ir.Node) -> ir.Value | None:
    """What the epilogue reads and another product of the same rows makes for it alone."""
    if _products(node) == op.MAX_PRODUCTS:
        return None
    for value in node.inputs[_own_inputs(node) :]:
        maker = None if value is None else value.producer()
        if maker is None or value is None or not _is_gemm(maker) or "epilogue" in maker.attributes:
            continue
        same = maker.inputs[0] is node.inputs[0] and _kind(maker) == _kind(node) and _products(maker) == 1
        if same and ir.use_count(value) == 1 and not value.is_graph_output():
            return value
    return None


def _merged_inputs(nodes: list[ir.Node]) -> list[ir.Value | None]:
    """The rows, the weights of all, the scales of all, the biases of all."""
    merged: list[ir.Value | None] = [nodes[0].inputs[0]]
    for operand in range(_operands(nodes[0])):
        for node in nodes:
            first = 1 + operand * _products(node)
            merged += node.inputs[first : first + _products(node)]
    return merged


def _gated(node: ir.Node, gate: ir.Value, ctx: Context) -> Patch:
    """`node` with one more product, which its epilogue read as an input."""
    maker = gate.producer()
    assert maker is not None
    own, products = _own_inputs(node), _products(node)
    rest = list(node.inputs[own:])
    position = rest.index(gate)
    # The program's inputs: raw results, then the others. The gate moves from among the others to the end of the raw results.
    order = {number: number for number in range(products)}
    order[products + position] = products
    for index in range(len(rest)):
        if index != position:
            order[products + index] = products + index + (1 if index < position else 0)
    text = _renumbered(attribute(node, "epilogue"), order)
    inputs = [*_merged_inputs([node, maker]), *(value for value in rest if value is not gate)]
    builder = Builder(ctx, node)
    overload = overload_of(f"gated|{node.overload}|{maker.overload}|{text}")
    functions = ctx.model.functions
    first, second = functions[node.op_identifier()], functions[maker.op_identifier()]
    attributes = dict(node.attributes) | {"products": products + 1, "epilogue": text}
    results = builder.op(
        op.SPEC.name,
        inputs,
        attributes,
        domain=op.SPEC.domain,
        outputs=len(node.outputs),
        overload=overload,
        name=node.name or op.SPEC.name,
    )
    if (op.SPEC.domain, op.SPEC.name, overload) not in functions:
        body = BodyBuilder(len(inputs), ctx.opset)
        known = _arguments(second, maker, body, products, products + 1)
        body.copy(second, known)
        arguments = _arguments(first, node, body, 0, products + 1)
        others = iter(body.inputs[1 + (products + 1) * _operands(node) :])
        for formal, actual in zip(first.inputs[own:], rest, strict=True):
            arguments[formal] = known[second.outputs[0]] if actual is gate else next(others)
        body.copy(first, arguments)
        builder.functions.append(body.function(op.SPEC, overload, [arguments[one] for one in first.outputs]))
    return _finished(builder, "merge_gated_pair", node.outputs, results, ctx)


def _projections(nodes: list[ir.Node], ctx: Context) -> Patch:
    """One node with an output for each."""
    inputs = _merged_inputs(nodes)
    overload = overload_of("merged|" + "|".join(node.overload for node in nodes))
    builder = Builder(ctx, nodes[0])
    results = builder.op(
        op.SPEC.name,
        inputs,
        dict(nodes[0].attributes) | {"products": len(nodes)},
        domain=op.SPEC.domain,
        outputs=len(nodes),
        overload=overload,
        name=nodes[0].name or op.SPEC.name,
    )
    if (op.SPEC.domain, op.SPEC.name, overload) not in ctx.model.functions:
        body = BodyBuilder(len(inputs), ctx.opset)
        made = []
        for index, node in enumerate(nodes):
            function = ctx.model.functions[node.op_identifier()]
            known = _arguments(function, node, body, index, len(nodes))
            body.copy(function, known)
            made.append(known[function.outputs[0]])
        builder.functions.append(body.function(op.SPEC, overload, made))
    return _finished(builder, "merge_projections", [node.outputs[0] for node in nodes], results, ctx)


def _arguments(
    function: ir.Function, node: ir.Node, body: BodyBuilder, first: int, products: int
) -> dict[ir.Value, ir.Value]:
    """What stands in the merged body for the rows and operands of one node, whose products begin at `first` of `products`."""
    own = _products(node)
    begins = [1 + operand * products + first for operand in range(_operands(node))]
    places = [0, *(place for begin in begins for place in range(begin, begin + own))]
    return {formal: body.inputs[place] for formal, place in zip(function.inputs, places, strict=False)}


def _renumbered(text: str, order: dict[int, int]) -> str:
    """An expression with its inputs in another order."""
    declared, rest = re.sub(r"\bi(\d+)\b", lambda found: f"i{order[int(found[1])]}", text).split("|", 1)
    inputs = sorted(declared.split(), key=lambda one: int(one[1:].split(":")[0]))
    return f"{' '.join(inputs)} |{rest}"


def _finished(builder: Builder, rule: str, old: Sequence[ir.Value], new: Sequence[ir.Value], ctx: Context) -> Patch:
    pairs = dict(zip(old, new, strict=True))
    for before, after in pairs.items():
        ctx.shapes.set(after, ctx.shapes.dtype(before), ctx.shapes.shape(before))
        after.type = before.type
    return builder.patch(rule, pairs)
