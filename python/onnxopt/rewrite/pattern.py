"""Patterns, written as if building the graph.

    @pattern
    def silu(p, x):
        return p.Mul(x, p.Sigmoid(x))

The arguments after `p` are the free inputs; each call on `p` is a node. Commutative ops match in both orders. A node inside the
pattern must not be used outside of what was matched, since it is removed with the root.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from onnxopt import ir
from onnxopt.ir import constants
from onnxopt.rewrite.rules import ABSENT, NOT_COMPUTED, Match, Refusal, attribute, kind_of

if TYPE_CHECKING:
    from onnxopt.passes.base import Context

COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Max", "Min", "Equal", "Sum", "Mean"})

SCALAR_TOLERANCE = 1e-4
"""Relative: exporters print pi, sqrt(2) or 0.044715 with as little as four digits, and no two constants of one formula lie closer."""


class Term:
    """One input position of a pattern."""

    __slots__ = ()

    def may_match(self, kind: str) -> bool:
        """False only where no operand of that kind matches."""
        raise NotImplementedError

    def match(self, value: ir.Value | None, found: Match, trace: Trace | None) -> bool:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Free(Term):
    """Any value; the same name stands for the same value everywhere."""

    name: str
    optional: bool = False

    def may_match(self, kind: str) -> bool:
        return self.optional or kind != ABSENT

    def match(self, value: ir.Value | None, found: Match, trace: Trace | None) -> bool:
        if value is None and not self.optional:
            return _no(trace, found, None, "input {} is absent", self.name)
        if self.name in found.values:
            if found.values[self.name] is value:
                return True
            return _no(trace, found, value, "{} stands for two different values", self.name)
        found.values[self.name] = value
        return True


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Constant(Term):
    """A constant; with `number`, one whose elements all equal that number within `SCALAR_TOLERANCE`, or are what the type makes of it."""

    name: str | None = None
    number: float | None = None

    def may_match(self, kind: str) -> bool:
        return kind in (NOT_COMPUTED, "Constant")

    def match(self, value: ir.Value | None, found: Match, trace: Trace | None) -> bool:
        if value is None or constants.constant(value) is None:
            return _no(trace, found, value, "expected a constant")
        if self.number is not None:
            actual = constants.scalar(value)
            if actual is None or not (close(actual, self.number) or _rounded(actual, self.number, value)):
                return _no(trace, found, value, "expected the constant {}, found {}", self.number, actual)
        return self.name is None or Free(self.name).match(value, found, trace)


def _may_match(term: Term, kind: str) -> bool:
    return term.may_match(kind)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Op(Term):
    """A node: op types, inputs, required attributes (a value, or a predicate of the value, None where absent)."""

    op_types: tuple[str, ...]
    inputs: tuple[Term, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    name: str | None = None
    domain: str = ""
    output: int = 0
    shared: bool = False
    open_inputs: bool = False

    def may_match(self, kind: str) -> bool:
        return kind in self.op_types

    def may_match_inputs(self, op_type: str, kinds: Sequence[str]) -> bool:
        """False only where no node of that type with operands of these kinds matches."""
        terms, count = self.inputs, len(self.inputs)
        if not self.open_inputs and any(kinds[count:]):
            return False
        if len(kinds) < count:
            kinds = (*kinds, *(ABSENT,) * (count - len(kinds)))
        if count == 2 and op_type in COMMUTATIVE:
            (first, second), (a, b) = terms, kinds[:2]
            return (first.may_match(a) and second.may_match(b)) or (first.may_match(b) and second.may_match(a))
        return all(map(_may_match, terms, kinds))

    def match(self, value: ir.Value | None, found: Match, trace: Trace | None) -> bool:
        node = None if value is None else value.producer()
        if node is None:
            return _no(trace, found, value, "expected {}, found an input or constant", self.op_types)
        assert value is not None
        if value.index() != self.output:
            return _no(
                trace,
                found,
                value,
                "expected output {} of {}, found output {}",
                self.output,
                node.op_type,
                value.index(),
            )
        return self.match_node(node, found, trace)

    def match_node(self, node: ir.Node, found: Match, trace: Trace | None) -> bool:
        if node.op_type not in self.op_types or node.domain != self.domain:
            return _no(trace, found, node, "expected {}, found {}", self.op_types, node.op_type)
        if self.name is not None and found.nodes.setdefault(self.name, node) is not node:
            return _no(trace, found, node, "{} stands for two different nodes", self.name)
        found.matched.append(node)
        for name, wanted in self.attributes:
            actual = attribute(node, name)
            if not (wanted(actual) if callable(wanted) else actual == wanted):
                return _no(trace, found, node, "attribute {} is {}", name, actual)
        return self._match_inputs(node, found, trace)

    def _match_inputs(self, node: ir.Node, found: Match, trace: Trace | None) -> bool:
        actual: Sequence[ir.Value | None] = node.inputs
        terms = self.inputs
        count, wanted = len(actual), len(terms)
        if count > wanted:
            if not self.open_inputs and any(value is not None for value in actual[wanted:]):
                return _no(trace, found, node, "has {} inputs, expected {}", count, wanted)
        elif count < wanted:
            actual = (*actual, *(None,) * (wanted - count))
        if wanted == 2 and node.op_type in COMMUTATIVE:
            return self._match_pair(actual[0], actual[1], found, trace)
        return all(term.match(value, found, trace) for term, value in zip(terms, actual, strict=False))

    def _match_pair(self, a: ir.Value | None, b: ir.Value | None, found: Match, trace: Trace | None) -> bool:
        """Match the operands in both orders, as far as their kinds allow that; a trace tells of both."""
        first, second = self.inputs
        straight = crossed = True
        if trace is None:
            left, right = kind_of(a), kind_of(b)
            straight = first.may_match(left) and second.may_match(right)
            crossed = first.may_match(right) and second.may_match(left)
        if straight:
            mark = _mark(found) if crossed else None
            if first.match(a, found, trace) and second.match(b, found, trace):
                return True
            if mark is None:
                return False
            if len(found.matched) > mark[2] or len(found.values) > len(mark[0]):
                _rewind(found, mark)
        return crossed and first.match(b, found, trace) and second.match(a, found, trace)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Either(Term):
    """The first of several terms that matches."""

    terms: tuple[Term, ...]

    def may_match(self, kind: str) -> bool:
        return any(term.may_match(kind) for term in self.terms)

    def match(self, value: ir.Value | None, found: Match, trace: Trace | None) -> bool:
        mark = _mark(found)
        for term in self.terms:
            if term.match(value, found, trace):
                return True
            _rewind(found, mark)
        return False


class Trace:
    """Remembers the deepest failure of one attempt: the one nearest to a match is the one worth telling."""

    __slots__ = ("depth", "refusal")

    def __init__(self) -> None:
        self.depth = 0
        self.refusal: Refusal | None = None

    def failed(self, depth: int, refusal: Refusal) -> None:
        if depth >= self.depth:
            self.depth, self.refusal = depth, refusal


def _no(trace: Trace | None, found: Match, culprit: ir.Node | ir.Value | None, template: str, *args: object) -> bool:
    if trace is not None:
        trace.failed(len(found.matched), Refusal(template, *args, culprit=culprit))
    return False


_Mark = tuple[dict[str, "ir.Value | None"], dict[str, "ir.Node"], int]


def _mark(found: Match) -> _Mark:
    return dict(found.values), dict(found.nodes), len(found.matched)


def _rewind(found: Match, mark: _Mark) -> None:
    found.values, found.nodes = dict(mark[0]), dict(mark[1])
    del found.matched[mark[2] :]


def close(actual: float, wanted: float) -> bool:
    return actual == wanted or math.isclose(actual, wanted, rel_tol=SCALAR_TOLERANCE)


def _rounded(actual: float, wanted: float, value: ir.Value) -> bool:
    """Whether the number is the nearest one of a narrow type, such as float16."""
    tensor = constants.constant(value)
    return tensor is not None and tensor.dtype.is_floating_point() and actual == tensor.dtype.numpy().type(wanted)


class Pattern:
    """One or more alternative shapes of the same computation; the last node built is the root."""

    def __init__(self, name: str, alternatives: Sequence[Op]) -> None:
        self.name = name
        self.alternatives = tuple(alternatives)
        self._shared = tuple(_shared_types(alternative) for alternative in self.alternatives)
        self.roots = tuple(dict.fromkeys((op.domain, op_type) for op in self.alternatives for op_type in op.op_types))

    def __or__(self, other: Pattern) -> Pattern:
        return Pattern(self.name, (*self.alternatives, *other.alternatives))

    def alternatives_of(self, domain: str, op_type: str) -> list[tuple[int, Op]]:
        """The alternatives that end in a node of that type, with their numbers."""
        return [
            (number, one)
            for number, one in enumerate(self.alternatives)
            if op_type in one.op_types and domain == one.domain
        ]

    def match(
        self, node: ir.Node, ctx: Context, trace: Trace | None = None, candidates: Sequence[int] | None = None
    ) -> Match | None:
        """The first alternative (of `candidates`, else of all) that matches at `node`, or None."""
        for number in range(len(self.alternatives)) if candidates is None else candidates:
            alternative, shared = self.alternatives[number], self._shared[number]
            if node.op_type not in alternative.op_types:
                continue
            found = Match(node, ctx)
            if alternative.match_node(node, found, trace) and _closed(shared, found, trace):
                return found
        return None


def _closed(shared: frozenset[str], found: Match, trace: Trace | None) -> bool:
    """Whether no inner node is used outside of the match (a shared term may be)."""
    matched = found.matched
    if len(matched) == 1:
        return True
    inside = set(matched)
    for node in matched:
        if node is found.root or node.op_type in shared:
            continue
        for value in node.outputs:
            if value.is_graph_output():
                return _no(trace, found, value, "{} is an output of the graph", value.name)
            for user, _ in value.uses():
                if user not in inside:
                    return _no(
                        trace, found, value, "{} is also used by {} {}", value.name, user.op_type, ir.node_name(user)
                    )
    return True


def _shared_types(term: Term) -> frozenset[str]:
    if isinstance(term, Op):
        own = frozenset(term.op_types) if term.shared else frozenset()
        return own.union(*(_shared_types(inner) for inner in term.inputs)) if term.inputs else own
    if isinstance(term, Either):
        return frozenset().union(*(_shared_types(inner) for inner in term.terms))
    return frozenset()


class PatternBuilder:
    """What a pattern function gets as `p`: `p.Mul(x, y)`, `p.op(("Add", "Sub"), x, y)`, `p.number(0.5)`, `p.const("c")`."""

    def __getattr__(self, op_type: str) -> Callable[..., Op]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return lambda *inputs, **options: self.op(op_type, *inputs, **options)

    def op(
        self,
        op_types: str | tuple[str, ...],
        *inputs: Term | float,
        as_: str | None = None,
        domain: str = "",
        output: int = 0,
        shared: bool = False,
        open_inputs: bool = False,
        **attributes: Any,
    ) -> Op:
        """A node of one of `op_types`. `as_` names it; `shared` lets others use it too; `open_inputs` allows further inputs."""
        terms = tuple(term if isinstance(term, Term) else Constant(number=term) for term in inputs)
        types = (op_types,) if isinstance(op_types, str) else op_types
        return Op(types, terms, tuple(attributes.items()), as_, domain, output, shared, open_inputs)

    def any(self, name: str) -> Free:
        return Free(name)

    def optional(self, name: str) -> Free:
        return Free(name, optional=True)

    def const(self, name: str) -> Constant:
        return Constant(name)

    def number(self, number: float, name: str | None = None) -> Constant:
        return Constant(name, number)

    def either(self, *terms: Term) -> Either:
        return Either(terms)


def pattern(function: Callable[..., Op | Sequence[Op]]) -> Pattern:
    """Make a `Pattern` of a function that writes it down; it may return several alternatives."""
    names = list(inspect.signature(function).parameters)[1:]
    result = function(PatternBuilder(), *(Free(name) for name in names))
    return Pattern(function.__name__, (result,) if isinstance(result, Op) else tuple(result))


def op(*op_types: str, domain: str = "") -> Pattern:
    """The pattern of a single node of one of these types with any inputs."""
    return Pattern("/".join(op_types), (Op(op_types, (), domain=domain, open_inputs=True),))
