"""FusedLoop: a Loop or Scan that no other kernel takes, as one node.

Inputs: limit (int64), condition (bool), `carried` initial values, `invariants`, and for each of `columns` a matrix packed as
[ceil(columns / 16), K, 16] (see fused_gemm). Outputs: the final carried values, then for each number of `stacked` a tensor [T, ...], T being the
number of iterations. Values are float32, int32, int64 or bool of any shapes; a carried value keeps its own, or only its rank where `growing` names it.

`step` is what each iteration computes (the language is described in kernels/cpu/recurrence/loop.h), `next` names the values that are carried
on, `keep` the condition of another iteration; without it the limit ends the loop. The function body is the Loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import BodyBuilder, OpSpec
from onnxopt.ops.fused_gemm import unpack
from onnxopt.ops.fused_recurrence import Product, StepBuilder

SPEC = OpSpec(
    name="FusedLoop",
    attributes=("carried", "invariants", "columns", "step", "next", "stacked", "growing", "keep"),
    dtypes=(DataType.FLOAT, DataType.INT32, DataType.INT64, DataType.BOOL),
    tolerance={DataType.FLOAT: 2e-5},
)

REDUCTIONS = {
    "ReduceMax": "max",
    "ReduceMin": "min",
    "ReduceSum": "sum",
    "ReduceMean": "mean",
    "ReduceL1": "l1",
    "ReduceL2": "l2",
    "ReduceSumSquare": "squares",
    "ReduceProd": "prod",
    "ReduceLogSumExp": "logsumexp",
}
"""Reductions of float32, and their names in the language."""


@dataclasses.dataclass(frozen=True, slots=True)
class Element:
    """What an iteration gets of a sequence along an axis, which is one of the invariants; from the back where `reverse`."""

    value: ir.Value
    sequence: ir.Value
    axis: int
    reverse: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What one node computes, in terms of the values of the Loop's body and around it, in the order of the node's inputs."""

    iteration: ir.Value
    condition: ir.Value
    carried: Sequence[ir.Value]
    invariants: Sequence[ir.Value]
    elements: Sequence[Element]
    products: Sequence[Product]
    nodes: Sequence[ir.Node]
    after: Sequence[ir.Value]
    stacked: Sequence[ir.Value]
    keep: ir.Value | None


def body(step: Step, overload: str, opset: int, shapes: ir.ShapeEnv) -> ir.Function:
    """The function: a Loop over copies of the nodes, whose matrices are unpacked before it."""
    builder = BodyBuilder(2 + len(step.carried) + len(step.invariants) + len(step.products), opset)
    limit, condition, *rest = builder.inputs
    given = iter(rest)
    initial = [next(given) for _ in step.carried]
    known = {value: next(given) for value in step.invariants}
    matrices = {product.node: unpack(builder, next(given), *sizes(product, shapes)) for product in step.products}
    inputs = [
        ir.Value(name=f"s{index}", type=ir.TensorType(shapes.dtype(value) or DataType.FLOAT))
        for index, value in enumerate([step.iteration, step.condition, *step.carried])
    ]
    for number in inputs[:2]:
        number.shape = ir.Shape(())
    known.update(zip([step.iteration, step.condition, *step.carried], inputs, strict=True))
    inner = StepBuilder(builder)
    for one in step.elements:
        place = known[step.iteration]
        if one.reverse:
            place = inner.op("Sub", [inner.op("Sub", [limit, builder.constant(np.array(1, np.int64))]), place])
        known[one.value] = inner.op("Gather", [known[one.sequence], place], {"axis": one.axis})
    inner.copy_step(step.nodes, step.products, matrices, known)
    kept = [step.condition if step.keep is None else step.keep, *step.after, *step.stacked]
    results = [inner.op("Identity", [known[value]]) for value in kept]
    for index, (result, value) in enumerate(zip(results, kept, strict=True)):
        result.type = ir.TensorType(shapes.dtype(value) or DataType.FLOAT)
        result.shape = _declared(value, shapes, stacked=index > len(step.after))
    graph = ir.Graph(inputs, results, nodes=inner.made, opset_imports={"": opset}, name="step")
    attributes = {"body": ir.Attr("body", ir.AttributeType.GRAPH, graph)}
    outputs = builder.several("Loop", [limit, condition, *initial], attributes, len(results) - 1)
    return builder.function(SPEC, overload, outputs)


def _declared(value: ir.Value, shapes: ir.ShapeEnv, *, stacked: bool) -> ir.Shape | None:
    """What the body says of a result. Without an iteration, nothing but that says what would have been stacked."""
    known, given = shapes.shape(value), value.shape if stacked else None
    if known is None:
        return None
    given_dims = list(given) if given is not None and len(given) == len(known) else [None] * len(known)
    return ir.Shape(
        [
            one if isinstance(one, int) else other if isinstance(other, int) else None
            for one, other in zip(known, given_dims, strict=True)
        ]
    )


def sizes(product: Product, shapes: ir.ShapeEnv) -> tuple[int, int]:
    """Rows and columns of a product's matrix."""
    shape = shapes.static_shape(product.matrix)
    assert shape is not None
    rows, columns = reversed(shape) if product.transposed else shape
    return rows, columns
