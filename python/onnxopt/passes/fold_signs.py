"""Negations that a constant factor can take over."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, attribute, rule

MAX_ELEMENTS = 1 << 20
"""Elements of a factor that is rewritten: tables of sines and cosines are smaller, weights are not touched."""


@pattern
def _scaled_concat(p):  # type: ignore[no-untyped-def]
    return p.Mul(p.Concat(open_inputs=True, as_="concat"), p.const("factor"))


@rule(_scaled_concat)
def fold_negated_part(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """Concat(-a, b) * c is Concat(a, b) * c', where c' has the sign of its first part changed: exact, and how rotary embeddings are written."""
    concat = m.node("concat")
    negated = [value is not None and _is_single_negation(value) for value in concat.inputs]
    if not any(negated):
        return None
    factor, rank = ir.constant(m["factor"]), m.ctx.shapes.rank(concat.outputs[0])
    sizes = [None if value is None else m.ctx.shapes.shape(value) for value in concat.inputs]
    if factor is None or rank is None or factor.size > MAX_ELEMENTS or factor.dtype.numpy().kind != "f":
        return Refusal("the factor is no small float table", culprit=m["factor"])
    axis = attribute(concat, "axis", 0) % rank - rank
    lengths = [None if shape is None else shape[axis] for shape in sizes]
    shape = factor.shape.numpy()
    if any(not isinstance(length, int) for length in lengths) or len(shape) < -axis or shape[axis] != sum(lengths):  # type: ignore[arg-type]
        return Refusal("the factor does not have a part for each input of the Concat", culprit=m["factor"])
    table = np.array(factor.numpy())
    start = 0
    inputs: list[ir.Value | None] = []
    for value, length, flip in zip(concat.inputs, lengths, negated, strict=True):
        assert isinstance(length, int) and value is not None
        if flip:
            part = [slice(None)] * table.ndim
            part[axis] = slice(start, start + length)
            table[tuple(part)] = -table[tuple(part)]
        producer = value.producer()
        inputs.append(producer.inputs[0] if flip and producer is not None else value)
        start += length
    joined = b.op("Concat", inputs, {"axis": axis + rank})[0]
    return b.Mul(joined, b.constant(table, "signed"))


def _is_single_negation(value: ir.Value) -> bool:
    producer = value.producer()
    alone = ir.use_count(value) == 1 and not value.is_graph_output()
    return producer is not None and producer.op_type == "Neg" and not producer.domain and alone


@register_pass
class FoldSigns(RulePass):
    """Let a constant factor take over the negation of a part of a Concat.

    Refused: factors that are broadcast along the joined axis, and negations that others use.
    """

    name = "fold_signs"
    phase = "simplify"
    rules = RuleSet([fold_negated_part])
