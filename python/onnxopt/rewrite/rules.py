"""Rules as data: a name, a pattern, a condition, and what to build instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt import ir
from onnxopt.ir import constants

if TYPE_CHECKING:
    from onnxopt.passes.base import Context
    from onnxopt.rewrite.patch import Builder
    from onnxopt.rewrite.pattern import Op, Pattern


class Refusal:
    """Why a rule did not apply: a sentence, formatted only when someone asks, and the node or value to blame. It is falsy."""

    __slots__ = ("args", "culprit", "template")

    def __init__(self, template: str, *args: object, culprit: ir.Node | ir.Value | None = None) -> None:
        self.template, self.args, self.culprit = template, args, culprit

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return self.template.format(*map(_readable, self.args))


def _readable(argument: object) -> object:
    """Choices and shapes as people write them."""
    if argument is None:
        return "unknown"
    if not isinstance(argument, (tuple, list, frozenset, set)):
        return argument
    if all(isinstance(one, int) for one in argument):
        return f"[{', '.join(map(str, argument))}]"
    return " or ".join(sorted(map(str, argument)) if isinstance(argument, (set, frozenset)) else map(str, argument))


class Match:
    """What a pattern found: values and nodes by the names that the pattern gave them. Building reads it, nothing writes to it."""

    __slots__ = ("ctx", "matched", "nodes", "root", "values")

    def __init__(self, root: ir.Node, ctx: Context) -> None:
        self.root = root
        self.ctx = ctx
        self.values: dict[str, ir.Value | None] = {}
        self.nodes: dict[str, ir.Node] = {}
        self.matched: list[ir.Node] = []

    def __getitem__(self, name: str) -> ir.Value:
        value = self.values[name]
        assert value is not None, f"{name} was matched as an absent optional input"
        return value

    def get(self, name: str) -> ir.Value | None:
        return self.values.get(name)

    def node(self, name: str) -> ir.Node:
        return self.nodes[name]

    def scalar(self, name: str) -> float | int | bool | None:
        return constants.scalar(self.values.get(name))

    def array(self, name: str) -> np.ndarray | None:
        return constants.small_array(self.values.get(name))

    def integers(self, name: str) -> tuple[int, ...] | None:
        return constants.integers(self.values.get(name))

    def rank(self, name: str) -> int | None:
        return self.ctx.shapes.rank(self[name])

    def dtype(self, name: str) -> ir.DataType | None:
        return self.ctx.shapes.dtype(self[name])

    @property
    def output(self) -> ir.Value:
        return self.root.outputs[0]


Where = Callable[[Match], "bool | Refusal"]
Build = Callable[["Builder", Match], "ir.Value | Sequence[ir.Value | None] | Refusal | None"]


def always(_: Match) -> bool:
    return True


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """Replace what `pattern` matches, where `where` holds, by what `build` makes.

    `where` and `build` are pure: they read the match and return; only the driver edits the graph. `build` returns the replacement of
    the root's output (or one per output, None for an output without uses); it may return a Refusal when it finds out late. Rules
    with the same root are tried in falling `benefit`.
    """

    name: str
    pattern: Pattern
    build: Build
    where: Where = always
    benefit: int = 1


Candidate = tuple[Rule, tuple[int, ...]]
"""A rule and the numbers of its pattern's alternatives that are tried."""


ABSENT, NOT_COMPUTED = "", "="
"""Kinds of operands that no node makes: one that is left out, and an initializer or input."""


def kind_of(value: ir.Value | None) -> str:
    """What a pattern sees of an operand at first glance: the op type that makes it, or that none does."""
    if value is None:
        return ABSENT
    producer = value._producer
    return NOT_COMPUTED if producer is None else producer.op_type


class RuleSet:
    """Rules filed by the op type of their root, so that a rule costs nothing at other nodes. Sets are joined with `+`."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        names = [rule.name for rule in self.rules]
        assert len(names) == len(set(names)), f"rule names must be unique: {sorted(names)}"
        self.by_root: dict[tuple[str, str], list[Rule]] = {}
        for rule in sorted(self.rules, key=lambda rule: -rule.benefit):
            for root in rule.pattern.roots:
                self.by_root.setdefault(root, []).append(rule)
        self._alternatives: dict[tuple[str, str], list[tuple[Rule, list[tuple[int, Op]]]]] = {}
        self._candidates: dict[tuple[str, ...], tuple[Candidate, ...]] = {}

    def candidates(self, node: ir.Node) -> tuple[Candidate, ...]:
        """The rules that may apply at a node, as far as the op types of the node and of what makes its operands tell."""
        key = (node.domain, node.op_type, *[kind_of(value) for value in node.inputs])
        known = self._candidates.get(key)
        if known is None:
            known = self._candidates[key] = self._possible(key)
        return known

    def _possible(self, key: tuple[str, ...]) -> tuple[Candidate, ...]:
        domain, op_type, *kinds = key
        filed = self._alternatives.get((domain, op_type))
        if filed is None:
            rules = self.by_root[domain, op_type]
            filed = [(rule, rule.pattern.alternatives_of(domain, op_type)) for rule in rules]
            self._alternatives[domain, op_type] = filed
        found: list[Candidate] = []
        for rule, alternatives in filed:
            numbers = tuple([number for number, one in alternatives if one.may_match_inputs(op_type, kinds)])
            if numbers:
                found.append((rule, numbers))
        return tuple(found)

    def __add__(self, other: RuleSet) -> RuleSet:
        return RuleSet((*self.rules, *other.rules))

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)


def rule(
    pattern: Pattern, *, where: Where = always, benefit: int = 1, name: str | None = None
) -> Callable[[Build], Rule]:
    """Make a `Rule` out of its `build` function, which gives it name and doc string."""

    def decorate(build: Build) -> Rule:
        return Rule(name or str(getattr(build, "__name__", "rule")), pattern, build, where, benefit)

    return decorate


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The plain value of an attribute, or `default` where the node does not have it; a reference to a function's attribute counts as unknown: None."""
    found = node.attributes.get(name)
    if found is None:
        return default
    return None if found.ref_attr_name is not None else found.value
