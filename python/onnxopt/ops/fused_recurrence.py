"""FusedRecurrence: a Scan whose steps are element-wise expressions and products with constant matrices, as one node.

Inputs: `carried` initial values, all of one shape [..., W]; `sequences` [T, ...], whose elements broadcast to that shape; `invariants`;
`matrices` packed as [ceil(W / 16), W, 16] (see fused_gemm). Outputs: the final carried values, then for each number of `stacked` a tensor
[T, ..., W], or [T, ...] where `summed` says that it is summed over the last dim. All float32; a sequence that no program reads may be of any type.

`step` is what each iteration computes (the language is described in kernels/cpu/recurrence/recurrence.h), `next` names the values that are
carried on. `reverse` and `reverse_stacked` say of each sequence and stacked output whether it begins at the back. The function body is
the Scan, or a Loop where there may be no step: onnxruntime's Scan fails without elements.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import BodyBuilder, OpSpec
from onnxopt.ops.fused_gemm import unpack

SPEC = OpSpec(
    name="FusedRecurrence",
    attributes=(
        "carried",
        "sequences",
        "invariants",
        "matrices",
        "step",
        "next",
        "stacked",
        "summed",
        "reverse",
        "reverse_stacked",
    ),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 2e-5},
)


AXES_INPUT_OPSET = 13
"""The opset from which ReduceSum takes its axes as an input."""


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """A node of a Scan's body that multiplies `x` with a constant matrix, transposed before where `transposed`, and adds a bias."""

    node: ir.Node
    x: ir.Value
    matrix: ir.Value
    bias: ir.Value | None
    transposed: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Recurrence:
    """What one node computes, in terms of the values of the Scan's body and around it, in the order of the node's inputs."""

    carried: Sequence[ir.Value]
    elements: Sequence[ir.Value]
    invariants: Sequence[ir.Value]
    products: Sequence[Product]
    nodes: Sequence[ir.Node]
    after: Sequence[ir.Value]
    stacked: Sequence[ir.Value]
    summed: Sequence[bool]
    reverse: Sequence[bool]
    reverse_stacked: Sequence[bool]
    width: int
    may_be_empty: bool = False
    stacked_shapes: Sequence[Sequence[int | None] | None] = ()
    """Of what a step stacks, as far as they are known: without a step, nothing else tells them."""


def body(recurrence: Recurrence, overload: str, opset: int, element_types: Sequence[DataType]) -> ir.Function:
    """The function: a Scan, or a Loop, over copies of the nodes, whose matrices are unpacked before it."""
    r = recurrence
    counts = len(r.carried), len(r.elements), len(r.invariants), len(r.products)
    builder = BodyBuilder(sum(counts), opset)
    given = iter(builder.inputs)
    initial = [next(given) for _ in r.carried]
    sequences = [next(given) for _ in r.elements]
    known = {value: next(given) for value in r.invariants}
    matrices = {product.node: unpack(builder, next(given), r.width, r.width) for product in r.products}
    types = [*[DataType.FLOAT] * len(r.carried), *element_types]
    inputs = [ir.Value(name=f"s{index}", type=ir.TensorType(dtype)) for index, dtype in enumerate(types)]
    carried = inputs[: len(r.carried)]
    known.update(zip(r.carried, carried, strict=True))
    step = StepBuilder(builder)
    if r.may_be_empty:
        return builder.function(SPEC, overload, _loop(builder, step, r, initial, sequences, carried, matrices, known))
    known.update(zip(r.elements, inputs[len(r.carried) :], strict=True))
    results = _results(step, r, matrices, known)
    attributes = {
        "body": _graph(inputs, results, step),
        "num_scan_inputs": len(r.elements),
        "scan_input_directions": [int(one) for one in r.reverse],
    }
    if r.stacked:
        attributes["scan_output_directions"] = [int(one) for one in r.reverse_stacked]
    outputs = builder.several("Scan", [*initial, *sequences], attributes, len(results))
    return builder.function(SPEC, overload, outputs)


def _results(
    step: StepBuilder, r: Recurrence, matrices: Mapping[ir.Node, ir.Value], known: dict[ir.Value, ir.Value]
) -> list[ir.Value]:
    """What a step gives: the carried values after it, and what is stacked."""
    step.copy_step(r.nodes, r.products, matrices, known)
    results = [step.op("Identity", [known[value]]) for value in r.after]
    for value, summed in zip(r.stacked, r.summed, strict=True):
        results.append(step.sum_of_rows(known[value]) if summed else step.op("Identity", [known[value]]))
    return results


def _graph(inputs: Sequence[ir.Value], results: Sequence[ir.Value], step: StepBuilder) -> ir.Attr:
    graph = ir.Graph(inputs, results, nodes=step.made, opset_imports={"": step.opset}, name="step")
    return ir.Attr("body", ir.AttributeType.GRAPH, graph)


def _loop(
    builder: BodyBuilder,
    step: StepBuilder,
    r: Recurrence,
    initial: Sequence[ir.Value],
    sequences: Sequence[ir.Value],
    carried: Sequence[ir.Value],
    matrices: Mapping[ir.Node, ir.Value],
    known: dict[ir.Value, ir.Value],
) -> list[ir.Value]:
    """The outputs of a Loop that looks its elements up."""
    one = builder.constant(np.array(1, np.int64))
    limit = builder.op("Gather", [builder.op("Shape", [sequences[0]]), builder.constant(np.array(0, np.int64))])
    number, condition = (
        ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(()))
        for name, dtype in (("number", DataType.INT64), ("condition", DataType.BOOL))
    )
    back = step.op("Sub", [builder.op("Sub", [limit, one]), number]) if any(r.reverse) else number
    for element, sequence, reverse in zip(r.elements, sequences, r.reverse, strict=True):
        known[element] = step.op("Gather", [sequence, back if reverse else number])
    results = [step.op("Identity", [condition]), *_results(step, r, matrices, known)]
    for result, shape in zip(results[1 + len(r.carried) :], r.stacked_shapes, strict=True):
        result.type = ir.TensorType(DataType.FLOAT)
        result.shape = None if shape is None else ir.Shape(shape)
    body_of_loop = {"body": _graph([number, condition, *carried], results, step)}
    true = builder.constant(np.array(True))
    outputs = list(builder.several("Loop", [limit, true, *initial], body_of_loop, len(results) - 1))
    bounds = [builder.integers(bound) for bound in (-1, -(2**63), 0, -1)] if any(r.reverse_stacked) else []
    for index, reverse in enumerate(r.reverse_stacked, len(r.carried)):
        if reverse:
            outputs[index] = builder.op("Slice", [outputs[index], *bounds])
    return outputs


class StepBuilder(BodyBuilder):
    """Builds the body of a Scan or Loop; constants go to the function around it."""

    def __init__(self, outer: BodyBuilder) -> None:
        super().__init__(0, outer.opset, prefix="s")
        self._outer = outer

    def constant(self, array):  # type: ignore[no-untyped-def]
        return self._outer.constant(array)

    def copy_step(
        self,
        nodes: Sequence[ir.Node],
        products: Sequence[Product],
        matrices: Mapping[ir.Node, ir.Value],
        known: dict[ir.Value, ir.Value],
    ) -> None:
        """Copy the nodes of a step, its products with the matrices that were packed; `known` learns what they make."""
        by_node = {product.node: product for product in products}
        for node in nodes:
            product = by_node.get(node)
            if product is None:
                self.copy([node], known)
                continue
            result = self.op("MatMul", [known[product.x], matrices[node]])
            if product.bias is not None:
                result = self.op("Add", [result, known[product.bias]])
            known[node.outputs[0]] = result

    def sum_of_rows(self, value: ir.Value) -> ir.Value:
        if self.opset < AXES_INPUT_OPSET:
            return self.op("ReduceSum", [value], {"axes": [-1], "keepdims": 0})
        return self.op("ReduceSum", [value, self._outer.integers(-1)], {"keepdims": 0})

    @property
    def made(self) -> list[ir.Node]:
        return ir.nodes_of(self._steps, self._prefix)
