"""What both branches of an If compute is computed once, before it; results that do not depend on the condition leave it."""

from __future__ import annotations

from collections.abc import Hashable

from onnxopt import ir
from onnxopt.loops.dependences import is_movable
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.passes.eliminate_common_subexpressions import expression_key
from onnxopt.rewrite.patch import Patch
from onnxopt.rewrite.rules import Refusal

PRODUCTS = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
"""Ops that become one with what follows them: before the If without their followers they would be slower."""

Pair = tuple[ir.Node, ir.Node]


@register_pass
class MergeBranches(Pass):
    """Move nodes that both branches of an If compute from the same values before it, and drop results that are equal or unused.

    An If whose branches are equal disappears. Refused: random ops, ops of unknown domains, and convolutions and products that would be
    parted from what follows them.
    """

    name = "merge_branches"
    phase = "simplify"

    def rule_names(self) -> list[str]:
        return ["hoist_common_node", "merge_branch_results", "drop_branch_results"]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for node in reversed(ctx.nodes_of([("", "If")])):
            if node.graph is None:
                continue
            patches += self._hoist(node, ctx)
            patches += self._merge_results(node, ctx)
            patches += self._drop_results(node, ctx)
        return PassResult(patches > 0, patches)

    def _hoist(self, node: ir.Node, ctx: Context) -> int:
        patches = 0
        for mine, other in _common_nodes(node, ctx):
            if not ctx.budget.take():
                break
            _move_before(mine, node, ctx)
            for kept, gone in zip(mine.outputs, other.outputs, strict=True):
                ctx.editor.replace(gone, kept)
            ctx.editor.remove_unused([other])
            ctx.log.applied("hoist_common_node", node)
            patches += 1
        return patches

    def _merge_results(self, node: ir.Node, ctx: Context) -> int:
        """Let outer values that both branches pass on stand for the results."""
        patches = 0
        for index, output in enumerate(node.outputs):
            sources = {ir.source_of(branch.outputs[index]) for branch in branches(node)}
            source = sources.pop()
            outside = source.graph not in branches(node) and not _is_used_up(output)
            if not sources and outside and ctx.editor.apply(Patch("merge_branch_results", node, [], {output: source})):
                patches += 1
        if patches:
            ctx.editor.remove_unused([node])
        return patches

    def _drop_results(self, node: ir.Node, ctx: Context) -> bool:
        if node.graph is None:
            return False
        kept = [index for index, output in enumerate(node.outputs) if not _is_used_up(output)]
        if len(kept) == len(node.outputs) or not kept or not ctx.budget.take():
            return False
        dropped = []
        for branch in branches(node):
            results = list(branch.outputs)
            branch.outputs.clear()
            branch.outputs.extend(results[index] for index in kept)
            dropped += [value.producer() for index, value in enumerate(results) if index not in kept]
        graph = node.graph
        attributes = list(node.attributes.values())
        smaller = ir.Node(
            "", "If", node.inputs, attributes, num_outputs=len(kept), name=ctx.names.node(node.name or "If")
        )
        node.attributes.clear()
        graph.insert_before(node, smaller)
        for index, new in zip(kept, smaller.outputs, strict=True):
            old = node.outputs[index]
            new.name = ctx.names.value(old.name or "result")
            new.type = old.type
        ctx.forget_nodes()
        ctx.shapes.infer_node(smaller)
        for index, new in zip(kept, smaller.outputs, strict=True):
            ctx.editor.replace(node.outputs[index], new)
        ctx.log.applied("drop_branch_results", node)
        graph.remove(node, safe=True)
        ctx.editor.remove_unused([one for one in dropped if one is not None])
        return True


def branches(node: ir.Node) -> tuple[ir.Graph, ir.Graph]:
    """The graphs of an If that run when its condition holds, and when not."""
    return node.attributes["then_branch"].as_graph(), node.attributes["else_branch"].as_graph()


def _common_nodes(node: ir.Node, ctx: Context) -> list[Pair]:
    """Pairs of nodes, one of each branch, that compute the same, producers first."""
    first, second = branches(node)
    others: dict[Hashable, list[ir.Node]] = {}
    for other in second:
        others.setdefault((other.domain, other.op_type), []).append(other)
    same: dict[ir.Value, ir.Value] = {}
    pairs: list[Pair] = []
    taken: set[ir.Node] = set()
    for mine in first:
        candidates = others.get((mine.domain, mine.op_type), []) if is_movable(mine) else []
        for other in candidates:
            if other not in taken and _same(mine, other, same):
                taken.add(other)
                pairs.append((mine, other))
                same.update(zip(mine.outputs, other.outputs, strict=True))
                break
    return _with_followers(pairs, node, ctx)


def _same(mine: ir.Node, other: ir.Node, same: dict[ir.Value, ir.Value]) -> bool:
    if len(mine.inputs) != len(other.inputs) or len(mine.outputs) != len(other.outputs):
        return False
    if mine.overload != other.overload or ir.inner_graphs(mine) or ir.inner_graphs(other):
        return False
    for one, two in zip(mine.inputs, other.inputs, strict=True):
        outside = one is two and (one is None or one.graph is not mine.graph)
        if not outside and (one is None or same.get(one) is not two):
            return False
    if any((one.name == "") != (two.name == "") for one, two in zip(mine.outputs, other.outputs, strict=True)):
        return False
    keys = expression_key(mine, inputs=False), expression_key(other, inputs=False)
    return keys[0] is not None and keys[0] == keys[1]


def _with_followers(pairs: list[Pair], node: ir.Node, ctx: Context) -> list[Pair]:
    """The pairs without products whose followers stay, and without what needs them."""
    moving = {mine for mine, _ in pairs}
    staying: set[ir.Node] = set()
    for mine, _ in reversed(pairs):
        stays = any(user not in moving or user in staying for value in mine.outputs for user, _ in value.uses())
        if mine.op_type in PRODUCTS and stays:
            staying.add(mine)
            ctx.log.refused(
                "hoist_common_node", node, Refusal("{} would be parted from its followers", mine.op_type), 1
            )
    for mine, _ in pairs:
        producers = (value.producer() for value in mine.inputs if value is not None)
        if any(producer in staying for producer in producers):
            staying.add(mine)
    return [pair for pair in pairs if pair[0] not in staying]


def _move_before(inner: ir.Node, node: ir.Node, ctx: Context) -> None:
    """Move a node of a branch before the If; results of the branch stay results of nodes of their own in it."""
    branch, graph = inner.graph, node.graph
    assert branch is not None and graph is not None
    for value in inner.outputs:
        if value.is_graph_output():
            _pass_on(value, branch, ctx)
    branch.remove(inner)
    inner.name = ctx.names.node(inner.name) if inner.name else None
    for value in inner.outputs:
        value.name = ctx.names.value(value.name) if value.name else value.name
    graph.insert_before(node, inner)
    ctx.forget_nodes()
    ctx.shapes.infer_node(inner)


def _pass_on(value: ir.Value, branch: ir.Graph, ctx: Context) -> None:
    copy = ir.Node("", "Identity", [value], name=ctx.names.node(value.name or "result"))
    copy.outputs[0].name = ctx.names.value(value.name or "result")
    copy.outputs[0].type = value.type
    branch.append(copy)
    ctx.shapes.infer_node(copy)
    results = list(branch.outputs)
    branch.outputs.clear()
    branch.outputs.extend(copy.outputs[0] if one is value else one for one in results)


def _is_used_up(output: ir.Value) -> bool:
    """Whether nothing uses a result."""
    return not ir.use_count(output) and not output.is_graph_output()
