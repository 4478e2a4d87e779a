"""FusedSoftmax: Softmax (with `log` its logarithm) over one axis, and what is computed element by element before and after it.

Inputs: those of the prologue (without one: the tensor), and what else the epilogue reads. Outputs: those of the epilogue (without one: the
result); with `kept` the prologue's result. Attributes: `axis` (negative), `log`, `prologue` and `epilogue` (expressions, see fused_elementwise). All float32,
but for what the expressions say. A row without a finite number becomes NaN, as in the standard.
"""

from __future__ import annotations

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import BodyBuilder, OpSpec, overload_of

SPEC = OpSpec(
    name="FusedSoftmax",
    attributes=("axis", "log", "kept", "prologue", "epilogue"),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 1e-5},
)

ANY_AXIS_OPSET = 13
"""Older Softmax joins all axes from one on; for the last axis that is the same."""


def overload(axis: int, rank: int, opset: int, *, log: bool) -> str:
    """The name of the body for a tensor of that rank."""
    return overload_of(f"{opset}|{axis}|{rank}|{log}")


def body(axis: int, rank: int, opset: int, *, log: bool) -> ir.Function:
    """The function of a node without prologue and epilogue, for a tensor of that rank; `axis` is negative."""
    builder = BodyBuilder(1, opset)
    attributes = {"axis": axis if opset >= ANY_AXIS_OPSET else axis + rank}
    result = builder.op("LogSoftmax" if log else "Softmax", builder.inputs, attributes)
    return builder.function(SPEC, overload(axis, rank, opset, log=log), [result])
