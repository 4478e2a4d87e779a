"""The only code that edits the graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from onnxopt import ir
from onnxopt.errors import PatchError
from onnxopt.rewrite.patch import Patch

if TYPE_CHECKING:
    from onnxopt.passes.base import Context
    from onnxopt.rewrite.rules import Refusal

SIDE_EFFECT_FREE_DOMAINS = frozenset({"", "ai.onnx.ml", "ai.onnxopt", "com.microsoft", "ai.onnx.preview.training"})
"""Unused nodes of other domains stay: what onnxopt does not know may have effects."""


class Editor:
    """Checks patches and applies them; keeps shapes up to date; counts, so that a run can be stopped after N patches."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def apply(self, patch: Patch, unused: Iterable[ir.Node] = ()) -> bool:
        """Apply a patch, then remove those nodes of `unused` that nothing uses any more, and what only they used.

        False, and nothing changed, when the budget of patches is spent or the patch does not fit.
        """
        ctx = self.ctx
        if _only_names_output(patch) or not ctx.budget.take():
            return False
        ctx.forget_nodes()
        graph = patch.anchor.graph
        assert graph is not None, f"{patch.rule}: the anchor is not in a graph"
        if patch.nodes:
            graph.insert_before(patch.anchor, patch.nodes)
        for node in patch.nodes:
            ctx.shapes.infer_new(node)
        problem = self._problem(patch)
        if problem is not None:
            self._take_back(graph, patch)
            ctx.budget.give_back()
            where = f"{patch.anchor.op_type} node '{ir.node_name(patch.anchor)}'"
            ctx.defect(PatchError(f"Rule {patch.rule} at {where}: {problem}."))
            return False
        for function in patch.functions:
            ctx.model.functions.setdefault(function.identifier(), function)
        ctx.log.applied(patch.rule, patch.anchor)  # while a node without a name still has its output's
        for old, new in patch.replacements.items():
            self.replace(old, new)
        self.remove_unused(unused)
        return True

    def lift(self, rule: str, node: ir.Node, constant: ir.Value) -> bool:
        """Let an initializer take over every use of a Constant node, whose tensor it has. False when the budget of patches is spent."""
        if not self.ctx.budget.take():
            return False
        self.ctx.log.applied(rule, node)
        old = node.outputs[0]
        self.ctx.shapes.learn(constant, old)
        for user, index in old.uses():
            ir.set_input(user, index, constant)
        return True

    def try_built(self, rule: str, node: ir.Node, built: Patch | Refusal | None, matched: int) -> bool:
        """Apply what was built for a node, which goes with the patch's anchor; log why nothing was.

        Args:
            rule: the name under which it is counted.
            node: what the rule was tried at.
            built: a patch, the reason why there is none, or None where there is nothing to say.
            matched: how many nodes fit before that reason: the more, the nearer the miss.
        """
        self.ctx.log.attempted(rule)
        if isinstance(built, Patch):
            return self.apply(built, unused=[built.anchor, node])
        if built is not None:
            self.ctx.log.refused(rule, node, built, matched)
        return False

    def wrap(self, rule: str, value: ir.Value, nodes: Sequence[ir.Node], result: ir.Value) -> bool:
        """Let `result`, which `nodes` make of `value`, take over every other use of it but graph outputs."""
        producer = value.producer()
        users = [(user, index) for user, index in value.uses() if user not in nodes]
        if not users or producer is None or producer.graph is None or not self.ctx.budget.take():
            return False
        self.ctx.forget_nodes()
        producer.graph.insert_after(producer, nodes)
        for node in nodes:
            self.ctx.shapes.infer_node(node)
        for user, index in users:
            user.replace_input_with(index, result)
        self.ctx.log.applied(rule, producer)
        return True

    def _problem(self, patch: Patch) -> str | None:
        shapes = self.ctx.shapes
        for old, new in patch.replacements.items():
            before, after = shapes.dtype(old), shapes.dtype(new)
            if before is not None and after is not None and before != after:
                return f"it replaces '{old.name}' of type {before.name} by a value of type {after.name}"
            if shapes.same_shape(old, new) is False:
                return f"it replaces '{old.name}' of shape {shapes.shape(old)} by a value of shape {shapes.shape(new)}"
        return None

    @staticmethod
    def _take_back(graph: ir.Graph, patch: Patch) -> None:
        for node in reversed(patch.nodes):
            graph.remove(node, safe=True)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` take over every use of `old`, graph outputs included, whose names stay."""
        if old is new:
            return
        more = self.ctx.shapes.knows_more(new, old)
        self.ctx.shapes.learn(new, old)
        if old.is_graph_output():
            self._replace_output(old, new)
        uses = old.uses()
        for user, index in uses:
            ir.set_input(user, index, new)
        if more and uses:
            self.ctx.shapes.propagate([user for user, _ in uses])

    def _replace_output(self, old: ir.Value, new: ir.Value) -> None:
        graph = old.graph
        assert graph is not None
        if not _can_take_name(new, graph):
            anchor = old.producer()
            node = ir.Node("", "Identity", [new], name=self.ctx.names.node(old.name or "output"))
            if anchor is not None and anchor.graph is graph:
                graph.insert_before(anchor, node)
            else:
                graph.append(node)
            new = node.outputs[0]
            self.ctx.shapes.infer_node(node)
        name, old.name = old.name, None
        new.name = name
        if old.type is not None:
            new.type = old.type
        if old.shape is not None:
            new.shape = old.shape
        ir.take_notes(new, old)
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new

    def inline_graph(
        self,
        rule: str,
        anchor: ir.Node,
        body: ir.Graph,
        arguments: Sequence[ir.Value],
        outputs: dict[ir.Value, ir.Value],
    ) -> bool:
        """Move the nodes of a subgraph of `anchor` before it.

        Args:
            rule: the name under which it counts.
            anchor: the If or Loop that holds the body.
            body: the subgraph; it is empty afterwards.
            arguments: what stands for the body's inputs.
            outputs: what stands for outputs of `anchor`, in terms of values of the body or outside of it.
        """
        if not self.ctx.budget.take():
            return False
        self.ctx.forget_nodes()
        graph = anchor.graph
        assert graph is not None
        stand_for = dict(zip(body.inputs, arguments, strict=True))
        for formal, actual in stand_for.items():
            for user, index in formal.uses():
                user.replace_input_with(index, actual)
        body.outputs.clear()
        nodes = list(body)
        body.remove(nodes)
        for node in nodes:
            node.name = None if not node.name else self.ctx.names.node(node.name)
            for value in node.outputs:
                value.name = None if not value.name else self.ctx.names.value(value.name)
        graph.insert_before(anchor, nodes)
        for name in list(body.initializers):
            value = body.initializers.pop(name)
            value.name = self.ctx.names.value(name)
            self.ctx.model.graph.register_initializer(value)
        for node in nodes:
            self.ctx.shapes.infer_node(node)
        for old, new in outputs.items():
            self.replace(old, stand_for.get(new, new))
        self.ctx.log.applied(rule, anchor)
        self.remove_unused([anchor])
        return True

    def remove_unused(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """Remove those of `nodes` that nothing uses, and then what only they used. Returns the producers that lost a use and stay."""
        stack = list(nodes)
        touched: dict[ir.Node, None] = {}
        while stack:
            node = stack.pop()
            if node.graph is None or not removable(node):
                continue
            inner = ir.inner_graphs(node)
            producers = [value._producer for value in node.inputs if value is not None]
            if inner:
                producers += [value.producer() for value in _captured(node)]
            ir.drop_inputs(node)
            ir.take_out(node)
            self.ctx.forget_nodes()
            if inner:
                _release_subgraphs(node)
            for producer in producers:
                if producer is None:
                    continue
                if removable(producer):
                    stack.append(producer)
                else:
                    touched[producer] = None
        return [node for node in touched if node.graph is not None]


def _can_take_name(value: ir.Value, graph: ir.Graph) -> bool:
    """Whether a value can become an output of the graph under the output's name: inputs, constants and other outputs cannot."""
    producer = value.producer()
    return producer is not None and producer.graph is graph and not value.is_graph_output()


def _only_names_output(patch: Patch) -> bool:
    """Whether the patch would replace an Identity, which gives an input or constant the name of a graph output, by such an Identity."""
    if patch.anchor.op_type != "Identity" or patch.nodes:
        return False
    return any(
        old.is_graph_output() and old.graph is not None and not _can_take_name(new, old.graph)
        for old, new in patch.replacements.items()
    )


def removable(node: ir.Node) -> bool:
    """Whether nothing uses the node and nothing but its outputs shows that it ran."""
    if node.domain not in SIDE_EFFECT_FREE_DOMAINS:
        return False
    outputs = node.outputs
    if len(outputs) == 1:  # as nearly all nodes, of which all passes ask
        return not (outputs[0]._is_graph_output or outputs[0]._uses)
    return not any(value.is_graph_output() or ir.use_count(value) for value in outputs)


def _captured(node: ir.Node) -> list[ir.Value]:
    values: list[ir.Value] = []
    for graph in subgraphs(node):
        for inner in graph:
            values.extend(value for value in inner.inputs if value is not None and value.graph is not graph)
            values.extend(_captured(inner))
    return values


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs that the node's attributes hold (branches of an If, the body of a Loop or Scan)."""
    return ir.inner_graphs(node)


def _release_subgraphs(node: ir.Node) -> None:
    """Take a removed node's subgraphs apart: their nodes use no outer values any more, and who still has them on a list sees it."""
    for graph in subgraphs(node):
        inside = list(graph)
        for inner in inside:
            ir.drop_inputs(inner)
            _release_subgraphs(inner)
        with contextlib.suppress(IndexError):
            graph.outputs.clear()
        graph.remove(inside)
