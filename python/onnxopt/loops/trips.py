"""How often a loop runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxopt import ir
from onnxopt.ir import dims
from onnxopt.loops.view import Carry, Loop

if TYPE_CHECKING:
    from onnxopt.ir.dims import Dim
    from onnxopt.passes.base import Context

MANY = 2**31
"""Limits from here on are what exporters write for loops that end by their condition."""


def trip_count(loop: Loop, ctx: Context) -> Dim | None:
    """How often the body runs, where that is certain: an int or an expression of dims, at least 0; None where it is not.

    A Scan runs once for each element of its sequences. A Loop runs as often as its limit says when its condition is always true; when the
    condition compares a counter with a number that stays the same, as often as that takes, or the limit, whichever is less.
    """
    if loop.is_scan:
        return _sequence_length(loop, ctx)
    start = True if loop.condition is None else ir.scalar(loop.condition)
    if start is not None and not start:
        return 0
    limit = _limit(loop, ctx)
    if condition_is_true(loop):
        return limit
    counted = _counted(loop, ctx)
    if counted is None or start is None:
        return None
    if loop.limit is None or (isinstance(limit, int) and limit >= MANY):
        return counted
    return None if limit is None else dims.minimum(counted, limit)


def runs_at_least_once(loop: Loop, ctx: Context) -> bool:
    """Whether it is certain that the body runs."""
    count = trip_count(loop, ctx)
    return count is not None and ctx.shapes.bounds.prove_at_least(count, 1) is True


def condition_is_true(loop: Loop) -> bool:
    """Whether the condition never ends the loop."""
    if loop.is_scan:
        return True
    start = True if loop.condition is None else ir.scalar(loop.condition)
    return bool(start) and (loop.condition_after is loop.condition_inside or bool(_always(loop)))


def _always(loop: Loop) -> bool:
    value = ir.source_of(loop.condition_after)
    if value is loop.condition_inside:
        return True
    if value is loop.condition and value is not None:
        return True
    return bool(value is not None and ir.scalar(value))


def _sequence_length(loop: Loop, ctx: Context) -> Dim | None:
    found: Dim | None = None
    for one in loop.scan_inputs:
        shape = ctx.shapes.shape(one.sequence)
        if shape is not None and -len(shape) <= one.axis < len(shape):
            size = shape[one.axis]
            if isinstance(size, int):
                return size
            found = size if found is None else found
    return found


def _limit(loop: Loop, ctx: Context) -> Dim | None:
    elements = ctx.shapes.elements(loop.limit)
    if not elements or len(elements) != 1:
        return None
    limit = elements[0]
    return limit if ctx.shapes.bounds.prove_at_least(limit, 0) else dims.maximum(limit, 0)


COMPARISONS = {
    "Less": (True, False),
    "LessOrEqual": (True, True),
    "Greater": (False, False),
    "GreaterOrEqual": (False, True),
}
"""Of each comparison with a counter on its left: whether it holds for small numbers, and for the bound itself."""


def _counted(loop: Loop, ctx: Context) -> Dim | None:
    """The trips of a loop that ends when a counter passes a bound: the condition before the first iteration must be the same one."""
    tested = ir.source_of(loop.condition_after)
    node = None if tested is None else tested.producer()
    if node is None or node.domain or node.op_type not in COMPARISONS or len(node.inputs) != 2:
        return None
    rising, inclusive = COMPARISONS[node.op_type]
    left, right = ir.source_of(node.inputs[0]), ir.source_of(node.inputs[1])
    first = _place_of(left, loop, ctx)
    if first is None:
        left, right, rising = right, left, not rising
        first = _place_of(left, loop, ctx)
    bound = None if right is None else _element(right, ctx)
    if first is None or bound is None or right is None or right.graph is loop.body:
        return None
    start, step = first
    if not rising:
        start, step, bound = -start, -step, -bound
    # After trip n (from 1) the counter is start + n step; another one follows while that is below the bound.
    end = bound + 1 if inclusive else bound
    if step <= 0:
        return None
    return dims.maximum(dims.floordiv(end - start + step - 1, step), 1)


def _place_of(value: ir.Value | None, loop: Loop, ctx: Context) -> tuple[Dim, int] | None:
    """What a counter is before the first iteration, one step back, and its step: the number of the iteration, a carried counter, or one of
    them plus a constant."""
    if value is None:
        return None
    offset = 0
    node = value.producer()
    if node is not None and not node.domain and node.op_type in ("Add", "Sub") and value.graph is loop.body:
        amount = ir.scalar(node.inputs[1])
        other = node.inputs[0]
        if amount is None and node.op_type == "Add":
            amount, other = ir.scalar(node.inputs[0]), node.inputs[1]
        if not isinstance(amount, int) or isinstance(amount, bool):
            return None
        offset, value = amount if node.op_type == "Add" else -amount, ir.source_of(other)
    if value is loop.iteration and value is not None:
        return offset - 1, 1
    for carry in loop.carries:
        if carry.inside is value:
            counter = counter_of(carry, ctx)
            return None if counter is None else (counter[0] + offset - counter[1], counter[1])
    return None


def counter_of(carry: Carry, ctx: Context) -> tuple[Dim, int] | None:
    """Start and step of a carried integer to which each iteration adds the same constant; None for other values."""
    start = _element(carry.initial, ctx)
    after = ir.source_of(carry.after)
    node = None if after is None else after.producer()
    if start is None or node is None or node.domain or node.op_type not in ("Add", "Sub"):
        return None
    left, right = (ir.source_of(value) for value in node.inputs)
    if left is not carry.inside and node.op_type == "Add":
        left, right = right, left
    step = None if right is None else ir.scalar(right)
    if left is not carry.inside or not isinstance(step, int) or isinstance(step, bool):
        return None
    return start, step if node.op_type == "Add" else -step


def _element(value: ir.Value, ctx: Context) -> Dim | None:
    if ctx.shapes.dtype(value) not in (ir.DataType.INT64, ir.DataType.INT32) or ctx.shapes.shape(value) not in (
        (),
        (1,),
    ):
        return None
    elements = ctx.shapes.elements(value)
    return elements[0] if elements and len(elements) == 1 else None
