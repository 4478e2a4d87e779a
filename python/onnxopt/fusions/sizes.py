"""How large a tensor is taken to be where the model does not say."""

from __future__ import annotations

import math

from onnxopt import ir
from onnxopt.passes.base import Context

TABLE_RANK = 2

UNKNOWN_ROWS = 32
"""Rows of a table whose model does not say how many it has: models of tables are asked for single rows more often than for thousands,
and on a processor the calls are what few rows take."""


def elements(value: ir.Value, ctx: Context) -> int | None:
    """How many elements a tensor has; None where it is not known, and it is no table of a model that a processor makes of tables alone."""
    shape = ctx.shapes.shape(value)
    if shape is None:
        return None
    known = [dim for dim in shape if isinstance(dim, int)]
    if len(known) == len(shape):
        return math.prod(known)
    guesses = (
        ctx.target.name == "cpu" and _is_table(value, ctx) and all(_is_table(x, ctx) for x in ctx.model.graph.inputs)
    )
    return UNKNOWN_ROWS * math.prod(known) if guesses else None


def _is_table(value: ir.Value, ctx: Context) -> bool:
    """Whether a tensor is [rows, columns], of a known number of columns."""
    shape = ctx.shapes.shape(value)
    return shape is not None and len(shape) == TABLE_RANK and isinstance(shape[-1], int)
