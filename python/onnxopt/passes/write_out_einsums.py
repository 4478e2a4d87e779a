"""Einsum written as Transpose, Mul, MatMul and Reshape, which other passes know."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.ir.dims import Dim
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, attribute, rule

Letters = str
"""One letter for each dim."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operand:
    """A value and the letters of its dims."""

    value: ir.Value
    letters: Letters

    def arranged(self, b: Builder, wanted: Letters) -> ir.Value:
        """The value with its dims in the order of `wanted`, which may have more letters: those become dims of 1."""
        order = [self.letters.index(letter) for letter in wanted if letter in self.letters]
        moved = self.value if order == sorted(order) else b.Transpose(self.value, perm=order)
        missing = [axis for axis, letter in enumerate(wanted) if letter not in self.letters]
        return b.unsqueeze(moved, *missing) if missing else moved


@rule(op("Einsum"))
def write_out_einsum(b: Builder, m: Match) -> ir.Value | Refusal:
    """An Einsum of one or two operands whose letters stand for dims of equal sizes."""
    operands = [value for value in m.root.inputs if value is not None]
    shapes = [m.ctx.shapes.shape(value) for value in operands]
    read = ir.read_equation(attribute(m.root, "equation", ""), [None if one is None else len(one) for one in shapes])
    if read is None:
        return Refusal("its equation has a letter twice, or dims of an unknown number", culprit=m.root)
    inputs, output = read
    sizes: dict[str, Dim] = {}
    for letters, shape in zip(inputs, shapes, strict=True):
        for letter, size in zip(letters, shape or (), strict=True):
            # Those of the result are broadcast, by Mul and MatMul as by Einsum.
            if not m.ctx.shapes.equal(sizes.setdefault(letter, size), size) and letter not in output:
                return Refusal("the sizes of '{}' may differ", letter, culprit=m.root)
    terms = [Operand(value, letters) for value, letters in zip(operands, inputs, strict=True)]
    if any("".join(inputs).count(letter) == 1 for letter in "".join(inputs) if letter not in output):
        return Refusal("it sums an operand alone", culprit=m.root)
    if len(terms) == 1:
        return terms[0].arranged(b, output)
    if len(terms) != 2:
        return Refusal("it has {} operands", len(terms), culprit=m.root)
    summed = "".join(letter for letter in inputs[0] if letter not in output)
    if not summed:
        return b.Mul(*(one.arranged(b, output) for one in terms))
    return _product(b, terms[0], terms[1], output, summed, sizes)


def _product(
    b: Builder, left: Operand, right: Operand, output: Letters, summed: Letters, sizes: dict[str, Dim]
) -> ir.Value | Refusal:
    for x, w in ((left, right), (right, left)):
        if ir.constant(w.value) is not None and not set(w.letters) & set(x.letters) - set(summed):
            made = _with_matrix(b, x, w, output, summed, sizes)
            if made is not None:
                return made
    if len(summed) != 1:
        return Refusal("it sums over {} axes of operands that are not constant", len(summed), culprit=b.anchor)
    own = [
        [letter for letter in output if letter in one.letters and letter not in other.letters]
        for one, other in ((left, right), (right, left))
    ]
    if min(map(len, own)) > 1:
        return Refusal("both operands have several dims of their own", culprit=b.anchor)
    if own[0] and own[1] and output.index(own[0][-1]) > output.index(own[1][-1]):
        left, right, own = right, left, own[::-1]
    row, column = (letters[-1:] for letters in own)
    ends = [*row, *column]
    outer = "".join(letter for letter in output if letter not in ends)
    # Dims of the one operand alone, but for the last, are batches in which the other one is the same. One without batches is a matrix.
    batches = [outer if set(outer) & set(one.letters) else "" for one in (left, right)]
    first = left.arranged(b, f"{batches[0]}{row[0] if row else '1'}{summed}")
    second = right.arranged(b, f"{batches[1]}{summed}{column[0] if column else '2'}")
    made = b.MatMul(first, second)
    gone = [len(outer) + place for place, letters in enumerate((row, column)) if not letters]
    made = b.squeeze(made, *gone) if gone else made
    return Operand(made, outer + "".join(ends)).arranged(b, output)


def _with_matrix(
    b: Builder, x: Operand, w: Operand, output: Letters, summed: Letters, sizes: dict[str, Dim]
) -> ir.Value | None:
    """The product with constant weights, as a matrix of the summed dims and of the others; None where sizes are not known."""
    columns = "".join(letter for letter in output if letter in w.letters)
    rows = "".join(letter for letter in output if letter in x.letters)
    depth = _product_of(sizes, summed)
    if depth is None or not rows or not columns:
        return None
    matrix = w.arranged(b, summed + columns)
    if len(summed) + len(columns) > 2:
        matrix = b.Reshape(matrix, b.constant(np.array([depth, -1], np.int64), "matrix"))
    made = x.arranged(b, rows + summed)
    if len(summed) > 1:
        made = b.Reshape(made, b.constant(np.array([*[0] * len(rows), depth], np.int64), "joined"))
    made = b.MatMul(made, matrix)
    if len(columns) > 1:
        apart = [*[0] * len(rows), *(int(sizes[letter]) for letter in columns)]  # type: ignore[arg-type]
        made = b.Reshape(made, b.constant(np.array(apart, np.int64), "apart"))
    return Operand(made, rows + columns).arranged(b, output)


def _product_of(sizes: dict[str, Dim], letters: Sequence[str]) -> int | None:
    found = [sizes[letter] for letter in letters]
    numbers = [size for size in found if isinstance(size, int)]
    return math.prod(numbers) if len(numbers) == len(found) and all(numbers) else None


@register_pass
class WriteOutEinsums(RulePass):
    """Write Einsum of one or two operands as Transpose, Mul, MatMul and Reshape: products with constant weights as products of rows.

    Refused: more operands, letters that stand twice in an operand or in one operand alone and not in the result, dims whose sizes are not
    proved equal, and where neither operand is constant sums over several dims and operands with several dims of their own.
    """

    name = "write_out_einsums"
    phase = "simplify"
    rules = RuleSet([write_out_einsum])
