"""Applies a set of rules to a fixed point with a worklist: each node is looked at once, and again only when a patch touched it."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from onnxopt import ir
from onnxopt.rewrite.editor import Editor
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.pattern import Trace
from onnxopt.rewrite.rules import Refusal, Rule, RuleSet

if TYPE_CHECKING:
    from onnxopt.passes.base import Context

PATCHES_PER_NODE = 16
"""A rule set that needs more patches than this for each node it was given is taken to be cyclic; real models need less than two."""


class Driver:
    """Runs a `RuleSet` over a graph, subgraphs included. Linear in practice: the work is nodes plus patches."""

    def __init__(self, rules: RuleSet, ctx: Context) -> None:
        self.rules = rules
        self.ctx = ctx
        self.editor = Editor(ctx)
        self._queue: collections.deque[ir.Node] = collections.deque()
        self._queued: set[ir.Node] = set()
        self._roots = rules.by_root.keys()
        self._not_at = ctx.options.not_at

    def run(self, nodes: ir.Graph | Iterable[ir.Node]) -> int:
        """Rewrite until nothing matches, from all nodes of a graph or from these. Returns the number of patches applied."""
        given = isinstance(nodes, list)  # which is quicker to tell than that it is no graph
        self._push(walk(nodes) if not given and isinstance(nodes, ir.Graph) else nodes)
        limit = PATCHES_PER_NODE * max(len(self._queue), 64)
        applied = 0
        while self._queue and applied < limit:
            node = self._queue.popleft()
            self._queued.discard(node)
            if node.graph is not None and self._rewrite(node):
                applied += 1
        if applied >= limit:
            self.ctx.log.warn(
                f"Stopped after {applied} patches: the rules {sorted(r.name for r in self.rules)} do not settle."
            )
        return applied

    def _rewrite(self, node: ir.Node) -> bool:
        for rule, alternatives in self._candidates(node):
            if self._not_at and ir.node_name(node) in self._not_at.get(rule.name, ()):
                continue
            patch = self._attempt(rule, node, alternatives)
            if patch is not None and self._apply(patch):
                return True
        return False

    def _candidates(self, node: ir.Node) -> Iterable[tuple[Rule, Sequence[int] | None]]:
        if self.ctx.explain:  # near misses are told of all rules
            return [(rule, None) for rule in self.rules.by_root[node.domain, node.op_type]]
        return self.rules.candidates(node)

    def _attempt(self, rule: Rule, node: ir.Node, alternatives: Sequence[int] | None) -> Patch | None:
        log = self.ctx.log
        log.attempted(rule.name)
        trace = Trace() if self.ctx.explain else None
        match = rule.pattern.match(node, self.ctx, trace, alternatives)
        if match is None:
            if trace is not None and trace.refusal is not None and trace.depth > 1:
                log.refused(rule.name, node, trace.refusal, trace.depth)
            return None
        verdict = rule.where(match)
        if not verdict:
            if isinstance(verdict, Refusal):
                log.refused(rule.name, node, verdict, len(match.matched) + 1)
            return None
        builder = Builder(self.ctx, node)
        built = rule.build(builder, match)
        if built is None or isinstance(built, Refusal):
            discard(builder.nodes)
            if isinstance(built, Refusal):
                log.refused(rule.name, node, built, len(match.matched) + 1)
            return None
        replaced: Sequence[ir.Value | None] = built if isinstance(built, (list, tuple)) else [built]  # type: ignore[list-item]
        pairs = {old: new for old, new in zip(node.outputs, replaced, strict=True) if new is not None}
        return builder.patch(rule.name, pairs)

    def _apply(self, patch: Patch) -> bool:
        root = patch.anchor
        users = [user for value in patch.replacements for user, _ in value.uses()]
        if not self.editor.apply(patch):
            discard(patch.nodes)
            return False
        touched = self.editor.remove_unused([root])
        self._push(new.producer() for new in patch.replacements.values())
        self._push(users)
        self._push_first(patch.nodes)
        self._push(touched)
        # A producer that lost a use may now be the single-use inner node of a larger pattern rooted at its remaining user.
        self._push(
            user for node in touched for value in node.outputs if ir.use_count(value) == 1 for user, _ in value.uses()
        )
        return True

    def _push_first(self, nodes: list[ir.Node]) -> None:
        """What a patch made is looked at next. A node that moves along a chain then arrives before the next one starts, so that the two
        meet; were they all to move in turn, a chain would cost the square of its length."""
        for node in reversed(nodes):
            if node.graph is not None and (node.domain, node.op_type) in self._roots:
                self._queued.add(node)
                self._queue.appendleft(node)

    def _push(self, nodes: Iterable[ir.Node | None]) -> None:
        roots, queued = self._roots, self._queued
        for node in nodes:
            if node is None or (node.domain, node.op_type) not in roots or node in queued or node.graph is None:
                continue
            queued.add(node)
            self._queue.append(node)


def discard(nodes: Iterable[ir.Node]) -> None:
    """Forget nodes that were built and not used, so that they do not count as users of their inputs."""
    for node in nodes:
        ir.drop_inputs(node)


def walk(graph: ir.Graph) -> Iterator[ir.Node]:
    """All nodes of a graph in order, each followed by those of its subgraphs, without recursion."""
    stack: list[Iterator[ir.Node]] = [iter(graph)]
    while stack:
        for node in stack[-1]:
            yield node
            inner = ir.inner_graphs(node)
            if inner:
                stack.extend(iter(one) for one in reversed(inner))
                break
        else:
            stack.pop()
