"""Which values onnxruntime's CPU provider keeps in its blocked layout (NCHWc).

Its convolutions compute in a layout of channel blocks. Around any op that does not know this layout, the tensor is
reordered twice, which costs more than a pass over it; so between convolutions ops that do know it are left alone, even
where one kernel could compute several. The conditions are those of onnxruntime's NchwcTransformer.
"""

from __future__ import annotations

import math

import numpy as np

from onnxopt import ir
from onnxopt.fusions.fused_resize import COORDINATES_OPSET
from onnxopt.passes.base import Context
from onnxopt.rewrite.rules import attribute

BLOCK = 16
"""Channels of a block with AVX-512; with 8, as of smaller vectors, what is a multiple of 16 is blocked as well."""

ALIGNED = 4
"""A multiple of so many channels is reordered, the last block being padded."""

RANK = 4

POOLS = frozenset({"MaxPool", "AveragePool"})
GLOBAL_POOLS = frozenset({"GlobalMaxPool", "GlobalAveragePool"})
ELEMENTWISE = frozenset(
    {"Add", "Gelu", "HardSigmoid", "HardSwish", "Mul", "QuickGelu", "Relu", "Sigmoid", "Sum", "Tanh"}
)
"""Element-wise ops that take the layout as it is; those of several operands want all of them in it, of one shape."""


class BlockedLayout:
    """The blocked values of one graph."""

    def __init__(self, graph: ir.Graph, ctx: Context) -> None:
        self._ctx = ctx
        self._channels: dict[ir.Value, int] = {}
        self._between: set[ir.Value] = set()
        nodes = list(graph)
        for node in nodes:
            channels = self._channels_of(node)
            if channels is not None:
                self._channels[node.outputs[0]] = channels
        for node in reversed(nodes) if self._channels else ():
            if node.outputs and any(self._passes_on(user) for user, _ in node.outputs[0].uses()):
                self._between.add(node.outputs[0])

    def channels(self, value: ir.Value | None) -> int | None:
        """The channels of a blocked value; None for others."""
        return None if value is None else self._channels.get(value)

    def nodes_to_leave(self) -> set[ir.Node]:
        """The element-wise nodes between convolutions that keep values blocked, and hard-swishes, which a convolution computes."""
        makers = (value.producer() for value in self._channels if value in self._between)
        found = {node for node in makers if node is not None and node.op_type in ELEMENTWISE}
        for value in self._channels:
            producer = value.producer()
            if producer is not None and is_convolution(producer) and not value.is_graph_output():
                found.update(_hard_swish([user for user, _ in value.uses()]))
        return found

    def is_wanted_by(self, node: ir.Node) -> bool:
        """Whether the node is a convolution or pooling that reads its first input blocked, whoever made it."""
        if is_convolution(node):
            shape = self._weights(node)
            return shape is not None and shape[1] * _groups(node) >= BLOCK
        return not node.domain and node.op_type in POOLS and node.outputs[0] in self._channels

    def _passes_on(self, user: ir.Node) -> bool:
        """Whether a node wants a blocked operand itself, or keeps it blocked for one that does."""
        if self.is_wanted_by(user):
            return True
        return bool(user.outputs) and user.outputs[0] in self._channels and user.outputs[0] in self._between

    def _weights(self, conv: ir.Node) -> tuple[int, ...] | None:
        """The shape of the weights of a convolution in the layout."""
        constants = conv.inputs[1:3]
        if len(conv.inputs) > 3 or any(value is not None and ir.constant(value) is None for value in constants):
            return None
        shape = self._ctx.shapes.static_shape(constants[0]) if constants and constants[0] is not None else None
        if shape is None or len(shape) != RANK or self._ctx.shapes.dtype(constants[0]) is not ir.DataType.FLOAT:  # type: ignore[arg-type]
            return None
        outputs, inputs, groups = shape[0], shape[1], _groups(conv)
        if groups > 1:
            depthwise = inputs == 1 and outputs == groups
            whole = inputs % BLOCK == 0 and outputs % groups == 0 and outputs // groups % BLOCK == 0
            return shape if whole or (depthwise and outputs % ALIGNED == 0) else None
        return shape if inputs < BLOCK or inputs % ALIGNED == 0 else None

    def _channels_of(self, node: ir.Node) -> int | None:
        """The channels of the node's first output if that is blocked."""
        if is_convolution(node):
            shape = self._weights(node)
            return None if shape is None else shape[0]
        if node.domain or not node.outputs:
            return None
        given = [self.channels(value) for value in node.inputs]
        if node.op_type in POOLS:
            return self._channels_of_pool(node)
        if not given or given[0] is None:
            return None
        if node.op_type in GLOBAL_POOLS:
            return given[0] if given[0] % BLOCK == 0 else None
        if node.op_type == "BatchNormalization":
            constants = all(ir.constant(value) is not None for value in node.inputs[1:])
            return given[0] if constants and len(node.outputs) == 1 else None
        if node.op_type in ELEMENTWISE:
            operands = [value for value in node.inputs if value is not None]
            same = all(self._ctx.shapes.same_shape(operands[0], value) is True for value in operands[1:])
            return given[0] if same and all(one == given[0] for one in given) else None
        if node.op_type == "Concat" and attribute(node, "axis") == 1:
            whole = all(one is not None and one % BLOCK == 0 for one in given)
            return sum(one for one in given if one is not None) if whole else None
        return None

    def _channels_of_pool(self, node: ir.Node) -> int | None:
        value = node.inputs[0]
        shape = None if value is None else self._ctx.shapes.shape(value)
        if shape is None or len(shape) != RANK or len(node.outputs) > 1:
            return None
        return shape[1] if isinstance(shape[1], int) and shape[1] % BLOCK == 0 else None


def _hard_swish(users: list[ir.Node]) -> list[ir.Node]:
    """The users of a value, if together they are its HardSwish and nothing else."""
    if len(users) == 1:
        return users if users[0].op_type == "HardSwish" else []
    gates = [node for node in users if node.op_type == "HardSigmoid" and is_hard_swish_gate(node)]
    if len(users) != 2 or len(gates) != 1:
        return []
    product = next(node for node in users if node is not gates[0])
    gated = product.op_type == "Mul" and gates[0].outputs[0] in product.inputs
    return users if gated and ir.use_count(gates[0].outputs[0]) == 1 else []


def is_hard_swish_gate(node: ir.Node) -> bool:
    """Whether a HardSigmoid is clip(x / 6 + 1/2, 0, 1)."""
    return math.isclose(attribute(node, "alpha", 0.2), 1 / 6, rel_tol=1e-5) and attribute(node, "beta", 0.5) == 0.5


def resizes_in_blocks(node: ir.Node, ctx: Context) -> bool:
    """Whether onnxruntime resizes an image in the layout: by whole numbers, repeating pixels or between them."""
    x, opset11 = node.inputs[0], ctx.opset >= COORDINATES_OPSET
    scales = [ir.small_array(value) for value in node.inputs[1:3] if value is not None]
    factors = next((one for one in scales if one is not None and one.shape == (RANK,) and one.dtype.kind == "f"), None)
    if factors is None:
        before, after = (None if one is None else ctx.shapes.static_shape(one) for one in (x, node.outputs[0]))
        if before is None or after is None or len(before) != RANK or 0 in before:
            return False
        factors = np.divide(after, before)
    if (factors[:2] != 1).any() or (factors < 1).any() or (factors % 1 != 0).any():
        return False
    coordinates = attribute(node, "coordinate_transformation_mode", "half_pixel") if opset11 else "asymmetric"
    if attribute(node, "mode", "nearest") == "linear":
        return coordinates in ("align_corners", "asymmetric", "half_pixel")
    rounding = attribute(node, "nearest_mode", "round_prefer_floor") if opset11 else "floor"
    return attribute(node, "mode", "nearest") == "nearest" and (coordinates, rounding) == ("asymmetric", "floor")


def is_convolution(node: ir.Node) -> bool:
    """Whether the node is a Conv, alone or with its activation."""
    return (node.op_type == "Conv" and not node.domain) or (
        node.op_type == "FusedConv" and node.domain == "com.microsoft"
    )


def _groups(conv: ir.Node) -> int:
    return int(attribute(conv, "group", 1) or 1)
