"""What a Scan does, said in the terms of a Loop: how long it runs, and how its outputs lie."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.loops.trips import trip_count
from onnxopt.loops.view import Loop, ScanOutput
from onnxopt.rewrite.patch import Builder


def length(loop: Loop, builder: Builder) -> ir.Value:
    """The limit of a Loop that runs as often as a Scan: once for each element of the sequences."""
    trips = trip_count(loop, builder.ctx)
    if isinstance(trips, int):
        return builder.constant(np.array(trips, np.int64), "limit")
    first = loop.scan_inputs[0]
    rank = builder.ctx.shapes.rank(first.sequence)
    assert rank is not None
    return builder.Gather(
        builder.Shape(first.sequence), builder.constant(np.array(first.axis % rank, np.int64)), axis=0
    )


def arranged(stacked: ir.Value, output: ScanOutput, rank: int | None, builder: Builder) -> ir.Value:
    """What was stacked along the first axis, of `rank` dims, in the order and along the axis of a Scan's output."""
    if output.reverse:
        bounds = [builder.constant(np.array([number], np.int64)) for number in (-1, -(2**63), 0, -1)]
        stacked = builder.Slice(stacked, *bounds)
    if output.axis == 0:
        return stacked
    assert rank is not None
    order = list(range(1, rank))
    order.insert(output.axis % rank, 0)
    return builder.Transpose(stacked, perm=order)
