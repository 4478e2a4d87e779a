"""Why did it not fuse? The rules that were tried on a model, and the near misses with their reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from onnxopt import ir
from onnxopt.errors import OptionError
from onnxopt.passes.base import NearMiss, Options
from onnxopt.pipeline import PassManager


@dataclasses.dataclass(frozen=True, slots=True)
class RuleSummary:
    """How often a rule was tried at a node of its root op, and how often it was applied."""

    rule: str
    pass_name: str
    attempts: int
    applied: int


@dataclasses.dataclass(frozen=True, slots=True)
class Reason:
    """One reason why a rule did not apply, at how many nodes, with the first of them and the node or value to blame.

    Nodes without a name are called by their first output.
    """

    rule: str
    reason: str
    op_type: str
    node: str
    culprit: str
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """What rules did on a model and where they nearly applied."""

    rules: list[RuleSummary]
    near_misses: list[Reason]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def explain(
    model: Any,
    *,
    target: str = "cpu",
    rule: str | None = None,
    dims: Mapping[str, int | tuple[int, int]] | None = None,
) -> Explanation:
    """Optimize a copy of `model` and tell what every rule did there.

    Args:
        model: a path, `onnx.ModelProto`, `onnx_ir.Model` or `onnx_graphsurgeon.Graph`; it is not changed.
        target: what the model would be optimized for.
        rule: tell only of this rule.
        dims: fixes or bounds named dimensions.

    Raises:
        ModelError: the model cannot be read.
        OptionError: there is no rule of that name.
    """
    manager = PassManager(target, options=Options(dims=dict(dims or {})), explain=True)
    if rule is not None and rule not in (known := manager.rule_names()):
        raise OptionError(f"There is no rule named '{rule}'. The rules are: {', '.join(sorted(known))}.")
    report = manager.run(ir.load_copy(model))
    summaries = [
        RuleSummary(name, pass_name, stats.attempts, stats.applied)
        for (pass_name, name), stats in report.rules.items()
        if rule in (None, name)
    ]
    misses = [miss for miss in report.near_misses if rule in (None, miss.rule)]
    return Explanation(summaries, group_near_misses(misses))


def group_near_misses(misses: list[NearMiss]) -> list[Reason]:
    """Near misses with equal rule and reason as one, most frequent first; of each node only the deepest attempt counts.

    A node that a later rewrite removed is left out: something else took care of it.
    """
    deepest: dict[tuple[str, ir.Node], NearMiss] = {}
    for miss in misses:
        if miss.node.graph is None:
            continue
        key = (miss.rule, miss.node)
        if key not in deepest or miss.depth >= deepest[key].depth:
            deepest[key] = miss
    groups: dict[tuple[str, str], list[NearMiss]] = {}
    for miss in deepest.values():
        groups.setdefault((miss.rule, str(miss.refusal)), []).append(miss)
    reasons = [
        Reason(
            name,
            reason,
            group[0].node.op_type,
            ir.node_name(group[0].node),
            _name_of(group[0].refusal.culprit),
            len(group),
        )
        for (name, reason), group in groups.items()
    ]
    return sorted(reasons, key=lambda one: (-one.count, one.rule, one.reason))


def _name_of(culprit: ir.Node | ir.Value | None) -> str:
    if isinstance(culprit, ir.Node):
        return ir.node_name(culprit)
    return "" if culprit is None else culprit.name or ""
