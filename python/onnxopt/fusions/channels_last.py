"""Regions of a graph that run channels-last: where they are, and the nodes that they become.

A region is connected by tensors [N, C, ...] and has the convolutions and poolings that have kernels of their own in the other layout, and what
runs in any layout. It is converted as a whole: Transposes stand at its border alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from onnxopt import ir
from onnxopt.fusions import fused_conv, fused_conv_transpose, fused_norm, fused_pool, fused_resize
from onnxopt.fusions.blocked_layout import BLOCK, resizes_in_blocks
from onnxopt.ops.fused_conv import channels_first, channels_last
from onnxopt.ops.fused_elementwise import LOWERINGS
from onnxopt.ops.fused_norm import SPEC as FUSED_NORM
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.permutations import Move, is_identity, move, permutation
from onnxopt.rewrite.rules import Refusal, attribute

RULE = "convert_to_channels_last"

IN_BLOCKS = frozenset(
    {"Add", "BatchNormalization", "Clip", "Concat", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Sum", "Tanh"}
)
"""Element-wise ops that onnxruntime computes in its blocked layout, most of them in the kernel of the Conv before them."""

WINOGRAD_CHANNELS = 16
"""The least channels on both sides of a group of a convolution that is computed with fewer multiplications."""

WINOGRAD_KERNELS = frozenset({(3,), (5,), (3, 3), (5, 5)})
"""Kernels of such convolutions, of sequences and of images."""

IMAGE_RANK = 4

NORM = FUSED_NORM.name
"""The only op of our own that is there before regions are converted."""

MAX_ACTIVATION_NODES = 3
"""Nodes of an activation between two convolutions: HardSwish and SiLU are two."""

MAX_CONSTANT_BYTES = 1 << 20
"""Constants beside converted data are transposed too, up to this size."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """How an op with a layout of its own is converted: why it cannot be, and the result for its first input in the other layout."""

    refuse: Callable[[ir.Node, ir.ShapeEnv], Refusal | None]
    build: Callable[[Builder, ir.Node, ir.Value], ir.Value]
    gain: float = 0.0


def _refuse_batch_norm(node: ir.Node, shapes: ir.ShapeEnv) -> Refusal | None:
    x = node.inputs[0]
    if x is None or shapes.dtype(x) is not ir.DataType.FLOAT or shapes.rank(x) not in fused_conv.RANKS:
        return Refusal("it is not of float32", culprit=node)
    if len(node.outputs) > 1 or any(value is None or ir.constant(value) is None for value in node.inputs[1:]):
        return Refusal("its parameters are not constant", culprit=node)
    return None


def _build_batch_norm(b: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    """A scale and a shift of the last dim."""
    tensors = [ir.constant(value) for value in node.inputs[1:]]
    gamma, beta, mean, variance = (np.asarray(one.numpy(), np.float64) for one in tensors if one is not None)
    scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    scaled = b.Mul(x, b.constant(scale.astype(np.float32), "scale"))
    return b.Add(scaled, b.constant((beta - mean * scale).astype(np.float32), "shift"))


KERNELS: Mapping[str, Kernel] = {
    "Conv": Kernel(fused_conv.refuse, fused_conv.build, gain=1.0),
    "MaxPool": Kernel(fused_pool.refuse, fused_pool.build),
    "AveragePool": Kernel(fused_pool.refuse, fused_pool.build),
    "GlobalAveragePool": Kernel(fused_pool.refuse, fused_pool.build),
    "ReduceMean": Kernel(fused_pool.refuse, fused_pool.build),
    "BatchNormalization": Kernel(_refuse_batch_norm, _build_batch_norm),
    "ConvTranspose": Kernel(fused_conv_transpose.refuse, fused_conv_transpose.build, gain=1.0),
    "Resize": Kernel(fused_resize.refuse, fused_resize.build),
    NORM: Kernel(fused_norm.refuse_channels_last, fused_norm.build_channels_last),
}
"""Every op that does not run in any layout. Those without a gain are converted only behind others."""


class Finder:
    """Finds the regions of one graph."""

    def __init__(self, graph: ir.Graph, ctx: Context) -> None:
        self.ctx = ctx
        self.moves: dict[ir.Node, Move] = {}
        self.planar: set[ir.Node] = set()  # convolutions that read an image as it is
        self._inside: set[ir.Node] = set()
        self._joined: dict[ir.Node, ir.Node] = {}
        for node in graph:
            self._visit(node)

    def regions(self) -> list[list[ir.Node]]:
        """Nodes in topological order, region by region."""
        self._inside -= {node for node in self._joined if self._enlarges_at_the_end(node)}
        grouped: dict[ir.Node, list[ir.Node]] = {}
        for node in self._joined:
            if node in self._inside:
                grouped.setdefault(self._root(node), []).append(node)
        return [nodes for nodes in grouped.values() if self._is_worthwhile(nodes)]

    def _enlarges_at_the_end(self, node: ir.Node) -> bool:
        """Whether nothing of a region reads a resized image: the Transpose at the border moves less before than behind it."""
        if node.op_type != "Resize" or fused_resize.repeats(node, self.ctx.opset):
            return False
        if any(user in self._inside for user, _ in node.outputs[0].uses()):
            return False
        return resizes_in_blocks(node, self.ctx)

    def _visit(self, node: ir.Node) -> None:
        if (node.domain and node.op_type != NORM) or not node.outputs:
            return
        kernel = KERNELS.get(node.op_type)
        if kernel is not None and (kernel.gain or self._is_near(node.inputs[0])):
            refusal = self._refuse_rank(node)
            if refusal is None:
                refusal = kernel.refuse(node, self.ctx.shapes)
            if refusal is None:
                near = self._is_near(node.inputs[0])
                if node.op_type == "Conv" and not near and fused_conv.reads_planar(node, self.ctx):
                    self.planar.add(node)
                self._join(node, [node.inputs[0]])
                return
            self.ctx.log.refused(RULE, node, refusal, 1)
        self._visit_any_layout(node)

    def _refuse_rank(self, node: ir.Node) -> Refusal | None:
        x = node.inputs[0]
        if x is None or self.ctx.shapes.rank(x) is None:
            return Refusal("the rank of its input is not known", culprit=node)
        return None

    def _visit_any_layout(self, node: ir.Node) -> None:
        """Let a node join that runs in any layout and reads a tensor of a region."""
        near = next((value for value in node.inputs if self._is_near(value)), None)
        rank = None if near is None else self.ctx.shapes.rank(near)
        if rank is None:
            return
        perm = channels_first(rank)
        found = move(self.ctx, node, perm)
        if found is None or not found.data or not all(one == perm or is_identity(one) for one in found.outputs):
            return
        data = [node.inputs[index] for index in found.data]
        if all(_can_take(value) for value in data):
            self.moves[node] = found
            self._join(node, data)

    def _is_near(self, value: ir.Value | None) -> bool:
        """Whether a value is at hand channels-last."""
        return value is not None and (self._is_inside(value) or source_of(value, self.ctx) is not None)

    def _is_inside(self, value: ir.Value) -> bool:
        """Whether a region makes a value, channels-last."""
        maker = value.producer()
        if maker is None or maker not in self._inside:
            return False
        found = self.moves.get(maker)
        return found is None or not is_identity(found.outputs[value.index() or 0])

    def _join(self, node: ir.Node, data: list[ir.Value | None]) -> None:
        self._inside.add(node)
        self._joined[node] = node
        for value in data:
            if value is not None and self._is_inside(value):
                maker = value.producer()
                assert maker is not None
                self._joined[self._root(maker)] = self._root(node)

    def _root(self, node: ir.Node) -> ir.Node:
        while self._joined[node] is not node:
            self._joined[node] = node = self._joined[self._joined[node]]
        return node

    def _is_worthwhile(self, nodes: list[ir.Node]) -> bool:
        gain = sum(self._gain(node) for node in nodes if node.op_type in KERNELS and node not in self.moves)
        freed = self._freed(nodes)
        cost = self.ctx.target.costs.border_cost * (self._borders(nodes) - freed)
        reasons = (self._leaves_blocks, self._saves_multiplications, self._is_of_inverted_residuals)
        if not freed and not any(reason(nodes) for reason in reasons):
            refusal = Refusal("onnxruntime computes nearly all of it in its blocked layout as fast", culprit=nodes[0])
            self.ctx.log.refused(RULE, nodes[0], refusal, len(nodes))
            return False
        if gain > cost or (freed and gain == cost):
            return True
        refusal = Refusal("{} convolutions are not worth {} Transposes", int(gain), int(cost), culprit=nodes[0])
        self.ctx.log.refused(RULE, nodes[0], refusal, len(nodes))
        return False

    def _leaves_blocks(self, nodes: list[ir.Node]) -> bool:
        """Whether onnxruntime leaves its blocked layout for enough of the nodes."""
        convolutions = sum(node.op_type == "Conv" and node not in self.moves for node in nodes)
        count = sum(map(self._is_slow_in_blocks, nodes))
        return count > 0 and count >= self.ctx.target.costs.leaving_part * convolutions

    def _is_slow_in_blocks(self, node: ir.Node) -> bool:
        """Whether onnxruntime leaves its blocked layout for the node or around it."""
        if any(user.op_type == "Transpose" for value in node.outputs for user, _ in value.uses()):
            return True
        if node in self.moves:
            read = any(user in self._inside for value in node.outputs for user, _ in value.uses())
            return read and node.op_type not in IN_BLOCKS
        if node.op_type == "Resize":
            return not resizes_in_blocks(node, self.ctx)
        if node.op_type == NORM:
            return True
        return node.op_type == "ConvTranspose" or (node.op_type == "Conv" and self._is_of_lanes(node))

    def _is_of_lanes(self, conv: ir.Node) -> bool:
        """Whether the groups of a convolution are parts of our kernel's vectors, and of onnxruntime's blocks."""
        weights = None if conv.inputs[1] is None else self.ctx.shapes.static_shape(conv.inputs[1])
        return weights is not None and 1 < weights[1] < BLOCK and ir.is_lanewise(weights, attribute(conv, "group", 1))

    def _saves_multiplications(self, nodes: list[ir.Node]) -> bool:
        """Whether enough of the multiplications are in convolutions by minimal filtering; any such one where sizes are not known, and of
        sequences, which onnxruntime does not compute in blocks."""
        convolutions = [node for node in nodes if node.op_type == "Conv" and node not in self.moves]
        less = [node for node in convolutions if self._multiplies_less(node)]
        if not less:
            return False
        work = {node: self._multiplications(node) for node in convolutions}
        known = [count for count in work.values() if count is not None]
        if len(known) < len(work):
            return True
        return sum(work[node] or 0 for node in less) >= self.ctx.target.costs.minimal_part * sum(known)

    def _multiplications(self, conv: ir.Node) -> int | None:
        """The multiplications per image; None where its sizes are not known, and for sequences."""
        weights = None if conv.inputs[1] is None else self.ctx.shapes.static_shape(conv.inputs[1])
        shape = self.ctx.shapes.shape(conv.outputs[0])
        if weights is None or shape is None or len(shape) != IMAGE_RANK:
            return None
        sides = [side for side in shape[2:] if isinstance(side, int)]
        return math.prod((*weights, *sides)) if len(sides) == len(shape) - 2 else None

    def _is_of_inverted_residuals(self, nodes: list[ir.Node]) -> bool:
        """Whether enough of the convolutions will be parts of FusedInvertedResidual, which writes no expanded tensor."""
        convolutions = [node for node in nodes if node.op_type == "Conv" and node not in self.moves]
        found = {part for node in convolutions for part in self._inverted_residual(node)}
        part = self.ctx.target.costs.inverted_part
        return bool(found) and len(found) >= part * len(convolutions)

    def _inverted_residual(self, conv: ir.Node) -> tuple[ir.Node, ...]:
        """A depthwise convolution with the pointwise ones that expand channels before it and project them after it; nothing where it is not
        between such ones."""
        before = self._next_conv(
            conv, lambda node: [maker for value in self.data_of(node) if (maker := value.producer())]
        )
        after = self._next_conv(conv, lambda node: [user for value in node.outputs for user, _ in value.uses()])
        if before is None or after is None or not self._is_depthwise(conv):
            return ()
        if not self._is_pointwise(before) or not self._is_pointwise(after):
            return ()
        wide, channels, _ = self._sizes(before)
        return (before, conv, after) if wide > max(channels, self._sizes(after)[0]) else ()

    def _next_conv(self, node: ir.Node, neighbours: Callable[[ir.Node], list[ir.Node]]) -> ir.Node | None:
        """The convolution that is found along the first neighbours, beyond activations."""
        for _ in range(MAX_ACTIVATION_NODES + 1):
            near = neighbours(node)
            if not near or near[0] not in self._inside:
                return None
            node = near[0]
            if node.op_type == "Conv" and node not in self.moves:
                return node
            if node.op_type not in LOWERINGS:
                return None
        return None

    def _is_depthwise(self, conv: ir.Node) -> bool:
        weights = None if conv.inputs[1] is None else self.ctx.shapes.static_shape(conv.inputs[1])
        return (
            weights is not None and len(weights) == IMAGE_RANK and ir.is_depthwise(weights, attribute(conv, "group", 1))
        )

    def _is_pointwise(self, conv: ir.Node) -> bool:
        weights = None if conv.inputs[1] is None else self.ctx.shapes.static_shape(conv.inputs[1])
        moved = {*(attribute(conv, "strides") or (1,)), *(1 + pad for pad in attribute(conv, "pads") or ())}
        return weights is not None and set(weights[2:]) == {1} and moved == {1} and attribute(conv, "group", 1) == 1

    def _gain(self, node: ir.Node) -> float:
        """What a node gains that is computed channels-last, in units of an ordinary convolution."""
        gain = KERNELS[node.op_type].gain
        if node.op_type != "Conv" or not self._multiplies_less(node):
            return gain
        costs, borders = self.ctx.target.costs, 2 * self.ctx.target.costs.border_cost
        alone = costs.sequence_channels if self._sides(node)[1:] == () else costs.image_channels
        filters, channels, groups = self._sizes(node)
        return max(gain, borders * 2 * filters * channels / (filters + channels * groups) / max(alone, 1))

    def _multiplies_less(self, conv: ir.Node) -> bool:
        """Whether our kernel computes a convolution by Winograd's minimal filtering, and onnxruntime does not."""
        steps = {*(attribute(conv, "strides") or (1,)), *(attribute(conv, "dilations") or (1,))}
        if steps != {1} or self._sides(conv) not in WINOGRAD_KERNELS:
            return False
        filters, channels, groups = self._sizes(conv)
        return min(filters // groups, channels) >= WINOGRAD_CHANNELS

    def _sides(self, conv: ir.Node) -> tuple[int, ...]:
        """The sides of a kernel without those that do not matter; empty when they are not known."""
        weights = None if conv.inputs[1] is None else self.ctx.shapes.static_shape(conv.inputs[1])
        x = None if conv.inputs[0] is None else self.ctx.shapes.shape(conv.inputs[0])
        if weights is None:
            return ()
        kernel = weights[2:]
        if kernel[1:] == (1,) and x is not None and x[-1] == 1:  # a sequence along the height
            return kernel[:1]
        return kernel[1:] if kernel[:-1] == (1,) else kernel

    def _sizes(self, conv: ir.Node) -> tuple[int, int, int]:
        """Filters, channels of a group, and groups of a convolution whose weights have a known shape."""
        weights = None if conv.inputs[1] is None else self.ctx.shapes.static_shape(conv.inputs[1])
        assert weights is not None
        return weights[0], weights[1], attribute(conv, "group", 1)

    def _borders(self, nodes: list[ir.Node]) -> int:
        """How many Transposes stand at the border of a region."""
        inside = set(nodes)
        taken = {value: None for node in nodes if node not in self.planar for value in self.data_of(node)}
        entering = [value for value in taken if value.producer() not in inside and not self._is_free(value)]
        return len(entering) + len(self._leaving(nodes))

    def _leaving(self, nodes: list[ir.Node]) -> list[ir.Value]:
        """What is read of a region in the old layout."""
        inside = set(nodes)
        return [
            value
            for node in nodes
            for value in node.outputs
            if self._is_inside(value) and not _is_flat(value, self.ctx) and self._leaves(value, inside)
        ]

    def _freed(self, nodes: list[ir.Node]) -> int:
        """How many Transposes to the old layout a region alone reads, where it is of quantized tensors (beyond it, they move bytes at most), or
        has no convolution and nothing is read of it in the old layout."""
        quantizes = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes)
        convolves = any(node.op_type in KERNELS and KERNELS[node.op_type].gain for node in nodes)
        if not quantizes and (convolves or self._leaving(nodes)):
            return 0
        inside = set(nodes)
        entering = {value: None for node in nodes for value in self.data_of(node)}
        return sum(
            source_of(value, self.ctx) is not None
            and not value.is_graph_output()
            and all(user in inside for user, _ in value.uses())
            for value in entering
        )

    def data_of(self, node: ir.Node) -> list[ir.Value]:
        """The inputs of a node that have the layout."""
        found = self.moves.get(node)
        indices = (0,) if found is None else found.data
        return [value for index in indices if (value := node.inputs[index]) is not None]

    def _is_free(self, value: ir.Value) -> bool:
        return ir.constant(value) is not None or source_of(value, self.ctx) is not None or _is_flat(value, self.ctx)

    def _leaves(self, value: ir.Value, inside: set[ir.Node]) -> bool:
        """Whether something reads a value as it was."""
        rank = self.ctx.shapes.rank(value)
        others = [user for user, _ in value.uses() if user not in inside]
        return value.is_graph_output() or any(
            rank is None or permutation(self.ctx, user) != channels_last(rank) for user in others
        )


def source_of(value: ir.Value, ctx: Context) -> ir.Value | None:
    """The channels-last tensor that a Transpose made a value of."""
    maker = value.producer()
    perm = None if maker is None else permutation(ctx, maker)
    return maker.inputs[0] if maker is not None and perm is not None and perm == channels_first(len(perm)) else None


def _can_take(value: ir.Value | None) -> bool:
    tensor = None if value is None else ir.constant(value)
    return tensor is None or tensor.nbytes <= MAX_CONSTANT_BYTES


def _is_flat(value: ir.Value, ctx: Context) -> bool:
    """Whether all spatial dims are 1, so that a Transpose moves nothing."""
    shape = ctx.shapes.shape(value)
    return shape is not None and all(dim == 1 for dim in shape[2:])


class Conversion:
    """The patch of one region."""

    def __init__(self, finder: Finder, nodes: list[ir.Node], ctx: Context) -> None:
        self.finder = finder
        self.nodes = nodes
        self.ctx = ctx
        self.builder = Builder(ctx, nodes[-1])
        self._made: dict[ir.Value, ir.Value] = {}

    def patch(self) -> Patch:
        replaced: dict[ir.Value, ir.Value] = {}
        for node in self.nodes:
            results, perms = self._convert(node)
            for old, new, perm in zip(node.outputs, results, perms, strict=True):
                self._know(old, new, perm)
                if is_identity(perm):
                    replaced[old] = new
                else:
                    self._made[old] = new
        inside = set(self.nodes)
        for old, new in self._made.items():
            if old.producer() in inside and (
                old.is_graph_output() or any(user not in inside for user, _ in old.uses())
            ):
                rank = self.ctx.shapes.rank(new)
                assert rank is not None
                replaced[old] = self.builder.Transpose(new, perm=channels_first(rank))
        return self.builder.patch(RULE, replaced)

    def _convert(self, node: ir.Node) -> tuple[tuple[ir.Value, ...], tuple[tuple[int, ...], ...]]:
        """The results of a node on converted inputs, and the Transposes that make the old ones of them."""
        found = self.finder.moves.get(node)
        if found is None:
            (data,) = self.finder.data_of(node)
            rank = self.ctx.shapes.rank(data)
            assert rank is not None
            if node in self.finder.planar:
                result = fused_conv.build(self.builder, node, data, planar=True)
            else:
                result = KERNELS[node.op_type].build(self.builder, node, self._last(data))
            return (result,), (channels_first(rank),)
        missing = max(found.constants, default=-1) + 1 - len(node.inputs)
        inputs: list[ir.Value | None] = [*node.inputs, *(None for _ in range(missing))]
        rank = max(self.ctx.shapes.rank(value) or 0 for value in self.finder.data_of(node))
        for index in found.data:
            value = inputs[index]
            if value is not None and ir.constant(value) is not None:
                inputs[index] = self._constant(value, rank, broadcasts=node.op_type != "Concat")
            elif value is not None:
                inputs[index] = self._last(value)
        for index, array in found.constants.items():
            inputs[index] = self.builder.constant(array, "axes")
        return self.builder.copy_of(node, inputs, **found.attributes), found.outputs

    def _know(self, old: ir.Value, new: ir.Value, perm: tuple[int, ...]) -> None:
        """Shape and type of a result: kernels of our own are known to nobody else."""
        shape = self.ctx.shapes.shape(old)
        if shape is not None and not is_identity(perm):
            shape = tuple(shape[axis] for axis in channels_last(len(perm)))
        dtype = self.ctx.shapes.dtype(old)
        self.ctx.shapes.set(new, dtype, shape)
        new.type = old.type or (None if dtype is None else ir.TensorType(dtype))

    def _constant(self, value: ir.Value, rank: int, *, broadcasts: bool) -> ir.Value:
        """A constant beside converted data of `rank` dims. A vector of channels broadcasts along the last dim by itself."""
        tensor = ir.constant(value)
        assert tensor is not None
        array = tensor.numpy()
        full = array.reshape((1,) * (rank - array.ndim) + array.shape)
        last = np.ascontiguousarray(full.transpose(channels_last(full.ndim)))
        is_vector = broadcasts and last.size == last.shape[-1]
        return self.builder.constant(last.reshape(-1) if is_vector else last, value.name or "constant")

    def _last(self, value: ir.Value) -> ir.Value:
        """The value, channels-last."""
        if value not in self._made:
            self._made[value] = self._converted(value)
        return self._made[value]

    def _converted(self, value: ir.Value) -> ir.Value:
        source, rank = source_of(value, self.ctx), self.ctx.shapes.rank(value)
        if source is not None:
            return source
        assert rank is not None
        if ir.constant(value) is not None:
            return self._constant(value, rank, broadcasts=False)
        return self.builder.Transpose(value, perm=channels_last(rank))
