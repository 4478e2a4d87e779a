"""Where QuantizeLinear and DequantizeLinear go: rules as data.

Tensors between convolutions are bytes for everyone who reads them, residual sums too, so that whole regions stay in 8 bits. Products read
bytes, but what else reads their rows (residual sums, norms) reads floats: there the precision of a transformer lies.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Set

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.fused_elementwise import refuse_node
from onnxopt.rewrite.rules import attribute

CONVOLUTIONS, PRODUCTS = ("Conv",), ("MatMul", "Gemm")
IN_PLACE = ("Relu", "Clip")
"""Activations that engines compute before they round a convolution's results."""

MOVES = ("MaxPool", "Concat", "Split", "Slice", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")
"""Ops whose results are elements of their operands, so that bytes stay bytes."""

MOST_IN_ACTIVATION = 16
"""Nodes of an activation that are looked at: the longest that exporters write for one (Mish, Gelu) have fewer."""

MIN_DEPTH, MIN_COLUMNS = 16, 16
"""The least size of a product: below, quantizing takes longer than it saves."""


MIN_FILTERS = 1 << 18
"""Weights of a convolution of one pixel: below, a call takes longer than its products, and the gates that such convolutions make
(Squeeze-and-Excitation) are computed in floats with all that is around them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Nodes that are to read bytes, the activations that become bytes for everyone who reads them, those of the nodes whose operand is
    computed in floats, since no layer or sum of bytes makes it, and the layers and sums by what they make."""

    nodes: tuple[ir.Node, ...]
    everywhere: tuple[ir.Value, ...]
    fresh: tuple[ir.Node, ...] = ()
    makers: Mapping[ir.Value, ir.Node] = dataclasses.field(default_factory=dict)

    @property
    def observed(self) -> tuple[ir.Value, ...]:
        """All activations whose ranges are needed."""
        read = [node.inputs[0] for node in self.nodes]
        return tuple(dict.fromkeys([*(value for value in read if value is not None), *self.everywhere]))


def place(
    model: ir.Model,
    shapes: ir.ShapeEnv,
    *,
    products: bool = True,
    epilogues: bool = False,
    keep: frozenset[str] = frozenset(),
    dynamic: frozenset[str] = frozenset(),
) -> Placement:
    """Which nodes of the main graph are quantized.

    Args:
        products: MatMul and Gemm with constant weights too, not convolutions alone.
        epilogues: a convolution computes any element-wise function of its result before that is rounded, not those of `IN_PLACE` alone.
        keep: names of nodes that stay in float.
        dynamic: names of convolutions that do not make their operand bytes for others, since its range is found when the model runs.
    """

    def rounded(value: ir.Value) -> ir.Value:
        return _after_function(value, shapes) if epilogues else _after_activation(value)

    kinds = (*CONVOLUTIONS, *PRODUCTS) if products else CONVOLUTIONS
    nodes = [node for node in model.graph if node.op_type in kinds and not node.domain]
    chosen = [node for node in nodes if ir.node_name(node) not in keep and _is_fit(node, shapes)]
    if epilogues:
        layers = set(chosen)
        chosen = [one for one in chosen if not _is_depthwise(one) or _is_followed(rounded(one.outputs[0]), layers)]
    everywhere: dict[ir.Value, None] = {}
    makers: dict[ir.Value, ir.Node] = {}
    for node in chosen:
        if node.op_type in CONVOLUTIONS:
            if ir.node_name(node) not in dynamic:
                everywhere[node.inputs[0]] = None  # type: ignore[index]
            makers[rounded(node.outputs[0])] = node
            everywhere[rounded(node.outputs[0])] = None
    for node in model.graph:
        if node.op_type == "Add" and all(value in everywhere for value in node.inputs):
            makers[rounded(node.outputs[0])] = node
            everywhere[rounded(node.outputs[0])] = None
    values = [value for value in everywhere if not value.is_graph_output()]
    if epilogues:
        values = [value for value in values if _reaches_integers(value, set(chosen), everywhere.keys())]
    fresh = [node for node in chosen if node.op_type in CONVOLUTIONS and not makers_of(node.inputs[0], makers)]
    return Placement(tuple(chosen), tuple(values), tuple(fresh), makers)


def share_ranges(model: ir.Model, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The ranges of activations, where the results of a MaxPool or Split have that of what it reads: their elements are bytes of that range
    already, and rounding them once more gains nothing."""
    shared = dict(ranges)
    for node in model.graph:
        if node.op_type in ("MaxPool", "Split") and not node.domain and node.inputs[0] is not None:
            source = str(node.inputs[0].name)
            if source in shared:
                shared |= {str(one.name): shared[source] for one in node.outputs if str(one.name) in shared}
    return shared


def makers_of(value: ir.Value | None, makers: Mapping[ir.Value, ir.Node]) -> list[ir.Node]:
    """Who makes a value, perhaps before it was moved: several where it is of parts."""
    stack, seen, found = [value], set[ir.Value | None](), list[ir.Node]()
    while stack:
        one = stack.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        producer = one.producer()
        if one in makers:
            found.append(makers[one])
        elif producer is not None and producer.op_type in MOVES and not producer.domain:
            stack += producer.inputs
    return found


def _reaches_integers(value: ir.Value, chosen: set[ir.Node], everywhere: Set[ir.Value]) -> bool:
    """Whether a layer or a sum of bytes reads a value, perhaps after it was moved: what floats alone read is better left in floats."""
    stack, seen = [value], {value}
    while stack:
        for user, _ in stack.pop().uses():
            if user in chosen or (user.op_type == "Add" and all(one in everywhere for one in user.inputs)):
                return True
            if user.op_type in MOVES and not user.domain:
                stack += [one for one in user.outputs if one not in seen]
                seen.update(user.outputs)
    return False


def _is_fit(node: ir.Node, shapes: ir.ShapeEnv) -> bool:
    x, weights = node.inputs[0], node.inputs[1]
    tensor = None if weights is None else ir.constant(weights)
    if x is None or tensor is None or tensor.dtype is not DataType.FLOAT or shapes.dtype(x) is not DataType.FLOAT:
        return False
    if ir.constant(x) is not None:
        return False
    sizes = tensor.shape.numpy()
    if node.op_type in CONVOLUTIONS:
        return math.prod(sizes) >= MIN_FILTERS or not _is_pixel(x, shapes)
    plain = not attribute(node, "transA", 0) and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
    return len(sizes) == 2 and min(sizes) >= min(MIN_DEPTH, MIN_COLUMNS) and plain


def _is_depthwise(node: ir.Node) -> bool:
    tensor = ir.constant(node.inputs[1])
    assert tensor is not None
    return node.op_type in CONVOLUTIONS and tensor.shape.numpy()[1] == 1 and attribute(node, "group", 1) > 1


def _is_followed(value: ir.Value, chosen: set[ir.Node]) -> bool:
    """Whether a layer or a sum reads a value, perhaps after it was moved. A depthwise convolution has few multiplications for each of its
    operand's elements: where floats alone read its results (means and gates, norms), rounding the operand takes what they gain."""
    stack, seen = [value], {value}
    while stack:
        for user, _ in stack.pop().uses():
            if user in chosen or user.op_type == "Add":
                return True
            if user.op_type in MOVES and not user.domain:
                stack += [one for one in user.outputs if one not in seen]
                seen.update(user.outputs)
    return False


def _is_pixel(value: ir.Value, shapes: ir.ShapeEnv) -> bool:
    """Whether each image has a single pixel, as a mean over all of them."""
    shape = shapes.shape(value)
    return shape is not None and len(shape) > 2 and all(size == 1 for size in shape[2:])


def _after_activation(value: ir.Value) -> ir.Value:
    """The result of the activation that alone reads a value, if there is one."""
    users = list(value.uses())
    if len(users) == 1 and users[0][0].op_type in IN_PLACE and not value.is_graph_output():
        return users[0][0].outputs[0]
    return value


def _after_function(value: ir.Value, shapes: ir.ShapeEnv) -> ir.Value:
    """The last value that is computed of one and of constants, element by element, where nothing else reads what lies between."""
    end, made, inside = value, {value}, set[ir.Node]()
    while len(inside) < MOST_IN_ACTIVATION:
        users = {user: None for one in made for user, _ in one.uses() if user not in inside}
        node = next((user for user in users if _is_function_of(user, made, value, shapes)), None)
        if node is None:
            break
        inside.add(node)
        made.add(node.outputs[0])
        read = [one for one in made if one.is_graph_output() or any(user not in inside for user, _ in one.uses())]
        if read == [node.outputs[0]]:
            end = node.outputs[0]
    return end


def _is_function_of(node: ir.Node, made: set[ir.Value], value: ir.Value, shapes: ir.ShapeEnv) -> bool:
    if refuse_node(node, shapes) is not None or shapes.dtype(node.outputs[0]) is not DataType.FLOAT:
        return False
    return all(one in made or _spreads_over(one, value, shapes) for one in node.inputs)


def _spreads_over(constant: ir.Value | None, value: ir.Value, shapes: ir.ShapeEnv) -> bool:
    """Whether a value is constant, and broadcasts to the shape of another."""
    tensor, shape = ir.constant(constant), shapes.shape(value)
    if tensor is None or shape is None or len(tensor.shape) > len(shape):
        return False
    sizes = tensor.shape.numpy()
    return all(size in (1, dim) for size, dim in zip(reversed(sizes), reversed(shape), strict=False))
