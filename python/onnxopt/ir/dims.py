"""Dimensions: ints, or canonical integer expressions over named symbols.

An expression is a polynomial with integer coefficients whose atoms are symbols and the four operations that polynomials do not
have: floor division, remainder, maximum, minimum. Two expressions are equal exactly when their canonical forms are, so equality is
structural; `Bounds` proves inequalities by interval arithmetic.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias, Union

Dim: TypeAlias = Union[int, "Expr"]
Atom: TypeAlias = str | tuple[str, Dim, Dim]


class Expr:
    """A polynomial over atoms: `terms` maps a monomial (a sorted tuple of atoms, repeated for powers) to its coefficient."""

    __slots__ = ("_fresh", "_hash", "terms")

    def __init__(self, terms: tuple[tuple[tuple[Atom, ...], int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)
        self._fresh: bool | None = None

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and self._hash == other._hash and self.terms == other.terms

    def __add__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            return self._plus(other)
        merged = dict(self.terms)
        for monomial, factor in _terms(other):
            merged[monomial] = merged.get(monomial, 0) + factor
        return _make(merged)

    __radd__ = __add__

    def _plus(self, number: int) -> Dim:
        """The sum with a number, whose term is the last one: the order of the others stays."""
        *others, (monomial, factor) = self.terms
        if monomial:
            others.append((monomial, factor))
            factor = 0
        total = factor + number
        return Expr((*others, ((), total)) if total else tuple(others))

    def __neg__(self) -> Dim:
        return _make({monomial: -factor for monomial, factor in self.terms})

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: int) -> Dim:
        return -self + other

    def __mul__(self, other: Dim) -> Dim:
        product: dict[tuple[Atom, ...], int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                monomial = tuple(sorted(left + right, key=str))
                product[monomial] = product.get(monomial, 0) + a * b
        return _make(product)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __rmod__(self, other: int) -> Dim:
        return mod(other, self)

    def __str__(self) -> str:
        text = " + ".join(_term_text(monomial, factor) for monomial, factor in self.terms)
        return text.replace("+ -", "- ")

    __repr__ = __str__

    @property
    def symbol(self) -> str | None:
        """The name, when the expression is a symbol alone."""
        if len(self.terms) == 1:
            monomial, factor = self.terms[0]
            if factor == 1 and len(monomial) == 1 and isinstance(monomial[0], str):
                return monomial[0]
        return None

    @property
    def fresh(self) -> bool:
        """Whether a symbol of it stands for an unknown dim, see `fresh`."""
        if self._fresh is None:
            self._fresh = any(name.startswith("?") for name in self.symbols())
        return self._fresh

    def symbols(self) -> Iterator[str]:
        """Names of all symbols, inner ones included; a name may come more than once."""
        for monomial, _ in self.terms:
            for atom in monomial:
                if isinstance(atom, str):
                    yield atom
                else:
                    for part in atom[1:]:
                        if isinstance(part, Expr):
                            yield from part.symbols()


def _terms(value: Dim) -> tuple[tuple[tuple[Atom, ...], int], ...]:
    if isinstance(value, Expr):
        return value.terms
    return (((), value),) if value else ()


def _make(terms: Mapping[tuple[Atom, ...], int]) -> Dim:
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    if not kept:
        return 0
    if len(kept) == 1 and () in kept:
        return kept[()]
    if len(kept) == 1:
        return Expr(tuple(kept.items()))
    return Expr(tuple(sorted(kept.items(), key=lambda term: (-len(term[0]), str(term[0])))))


def _term_text(monomial: tuple[Atom, ...], factor: int) -> str:
    names = [atom if isinstance(atom, str) else f"{atom[0]}({atom[1]}, {atom[2]})" for atom in monomial]
    if not names:
        return str(factor)
    return "*".join(names if factor == 1 else [str(factor), *names])


def symbol(name: str) -> Expr:
    """The dim that a model calls so."""
    return Expr((((name,), 1),))


_fresh = itertools.count()


def fresh() -> Expr:
    """A symbol that stands for one unknown dim and is equal to nothing else."""
    return symbol(f"?{next(_fresh)}")


def is_fresh(dim: Dim) -> bool:
    """Whether it is one of `fresh`, or computed of one."""
    return isinstance(dim, Expr) and dim.fresh


def _atom(kind: str, a: Dim, b: Dim) -> Dim:
    return Expr((((((kind, a, b)),), 1),))


def floordiv(a: Dim, b: Dim) -> Dim:
    """`a // b`, rounded down. `b` is taken to be positive."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b else _atom("floor", a, b)
    if b == 1:
        return a
    exact = exact_quotient(a, b)
    return exact if exact is not None else _atom("floor", a, b)


def mod(a: Dim, b: Dim) -> Dim:
    """The remainder of `floordiv`."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b if b else _atom("mod", a, b)
    return 0 if b == 1 or exact_quotient(a, b) is not None else _atom("mod", a, b)


LONGEST_TEXT = 1000
"""Characters of a text that is read as an expression: those of exporters have a few dozens."""

_OPERATORS: Mapping[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: floordiv(a, b),
    ast.Mod: lambda a, b: mod(a, b),
}


def parse(text: str, known: Mapping[str, Dim]) -> Dim | None:
    """The expression over known dims that a text is, such as `past + 2*rows`; None where it is none, or has other names in it."""
    if len(text) > LONGEST_TEXT:
        return None
    try:
        return _read(ast.parse(text.strip(), mode="eval").body, known)
    except (SyntaxError, ValueError):
        return None


def _read(node: ast.expr, known: Mapping[str, Dim]) -> Dim | None:
    if isinstance(node, ast.Constant):
        return node.value if type(node.value) is int else None
    if isinstance(node, ast.Name):
        return known.get(node.id)
    operator = _OPERATORS.get(type(node.op)) if isinstance(node, ast.BinOp) else None
    if operator is None or not isinstance(node, ast.BinOp):
        return None
    left, right = _read(node.left, known), _read(node.right, known)
    return None if left is None or right is None else operator(left, right)


def exact_quotient(a: Dim, b: Dim) -> Dim | None:
    """`a / b` where `a` is a product of `b` and another dim, None where that cannot be told. `b` is taken to be positive."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if a == b:
        return 1
    divisor = _terms(b)
    if len(divisor) == 1:
        return _over_term(_terms(a), divisor[0])
    # Division of polynomials, leading term by leading term.
    quotient, rest = 0, a  # type: Dim, Dim
    for _ in _terms(a):
        step = _over_term(_terms(rest)[:1], divisor[0]) if divisor else None
        if step is None:
            return None
        quotient, rest = quotient + step, rest - step * b
        if rest == 0:
            return quotient
    return None


def _over_term(terms: tuple[tuple[tuple[Atom, ...], int], ...], divisor: tuple[tuple[Atom, ...], int]) -> Dim | None:
    """The sum of `terms`, each of which the single term divides, over it."""
    below, factor = divisor
    quotient: dict[tuple[Atom, ...], int] = {}
    for monomial, coefficient in terms:
        rest = list(monomial)
        for atom in below:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % factor:
            return None
        quotient[tuple(rest)] = coefficient // factor
    return _make(quotient)


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger one, as far as it is known which that is."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return a if a == b else _atom("max", *sorted((a, b), key=str))


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller one, as far as it is known which that is."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return a if a == b else _atom("min", *sorted((a, b), key=str))


def limits(dim: Dim) -> tuple[Dim, ...]:
    """The two that the dim is the minimum of; nothing where it is no minimum."""
    if isinstance(dim, Expr) and len(dim.terms) == 1:
        monomial, factor = dim.terms[0]
        if factor == 1 and len(monomial) == 1 and isinstance(monomial[0], tuple) and monomial[0][0] == "min":
            return monomial[0][1:]
    return ()


def product(dims: tuple[Dim, ...]) -> Dim:
    """How many elements a tensor of that shape has."""
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return result


LARGEST = (1 << 63) - 1


def is_plain(dim: Dim) -> bool:
    """Whether the dim can stand in a model: an int that a file has bits for, or a symbol that the model itself named."""
    if isinstance(dim, int):
        return -LARGEST <= dim <= LARGEST
    name = dim.symbol
    return name is not None and not name.startswith("?")


class Bounds:
    """Lowest and highest size of each symbol. A dim of a graph input is at least 1 unless stated; others at least 0."""

    def __init__(self, limits: Mapping[str, tuple[int, int]] | None = None) -> None:
        self._limits: dict[str, tuple[float, float]] = dict(limits or {})
        self._least: dict[Atom, int] = {}

    def of(self, name: str) -> tuple[float, float]:
        return self._limits.get(name, (0, math.inf))

    def set(self, name: str, lowest: float, highest: float) -> None:
        self._limits[name] = (lowest, highest)

    def known(self, name: str) -> bool:
        return name in self._limits

    def assume_at_least(self, dim: Dim, lowest: int) -> None:
        """Take it that a dim is so large, where it is a single atom and a number: that the model runs says so."""
        if isinstance(dim, int):
            return
        *constant, (monomial, factor) = sorted(dim.terms, key=lambda term: len(term[0]))
        if len(monomial) == factor == 1 and all(not others for others, _ in constant):
            least = lowest - sum(number for _, number in constant)
            self._least[monomial[0]] = max(least, self._least.get(monomial[0], least))

    def interval(self, dim: Dim) -> tuple[float, float]:
        """Numbers between which the dim lies."""
        if isinstance(dim, int):
            return dim, dim
        low = high = 0.0
        for monomial, factor in dim.terms:
            a, b = 1.0, 1.0
            for atom in monomial:
                a, b = _times(a, b, *self._atom(atom))
            a, b = (a * factor, b * factor) if factor > 0 else (b * factor, a * factor)
            low, high = low + a, high + b
        return low, high

    def _atom(self, atom: Atom) -> tuple[float, float]:
        low, high = self._computed(atom)
        return max(low, self._least.get(atom, low)), high

    def _computed(self, atom: Atom) -> tuple[float, float]:
        if isinstance(atom, str):
            return self.of(atom)
        kind, a, b = atom
        (a_low, a_high), (b_low, b_high) = self.interval(a), self.interval(b)
        if kind == "max":
            return max(a_low, b_low), max(a_high, b_high)
        if kind == "min":
            return min(a_low, b_low), min(a_high, b_high)
        if kind == "mod":
            return (0, b_high - 1) if b_low > 0 else (-math.inf, math.inf)
        if b_low > 0 and a_low >= 0:
            return (a_low // b_high if b_high < math.inf else 0), (a_high // b_low if a_high < math.inf else math.inf)
        return -math.inf, math.inf

    def prove_equal(self, a: Dim, b: Dim) -> bool | None:
        if a == b:
            return True
        if isinstance(a, int) and isinstance(b, int):
            return False
        low, high = self.interval(a - b)
        return False if low > 0 or high < 0 else True if low == high == 0 else None

    def prove_at_least(self, a: Dim, lowest: int) -> bool | None:
        low, high = self.interval(a)
        return True if low >= lowest else False if high < lowest else None

    def prove_le(self, a: Dim, b: Dim) -> bool | None:
        return self.prove_at_least(b - a, 0)


def _times(a: float, b: float, c: float, d: float) -> tuple[float, float]:
    products = [0.0 if 0 in (x, y) else x * y for x in (a, b) for y in (c, d)]
    return min(products), max(products)
