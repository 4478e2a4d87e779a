"""Constant folding: what can be computed before the model runs is computed once, in one batch."""

from __future__ import annotations

import math

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import walk
from onnxopt.rewrite.editor import subgraphs
from onnxopt.rewrite.patch import Patch
from onnxopt.rewrite.rules import attribute

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)
"""Ops whose results differ from run to run (Dropout in training mode), so that one result must not stand for all."""

EXPANDING_BYTES = 4096
"""A fold may make a tensor larger than what it replaces up to this size: below a page nothing is lost on disk or in memory."""

KEPT = frozenset({"DequantizeLinear"})
"""Ops that belong to what reads their results: an engine multiplies the integers, and cannot where they were made floats."""

LOW_BITS = 8
"""Constants of at most this many bits per element were compressed on purpose; folding must not turn them into wide ones."""

MAX_FOLDED_TRIPS = 1024
"""Iterations of a constant Loop that are run while the model is optimized: tables are built so; a file may ask for any number."""

STREAMED_BYTES = 1 << 20
"""Transposes of constants from this size on are computed while the output is written, one block at a time."""


@register_pass
class FoldConstants(Pass):
    """Replace nodes whose inputs are all constant by their results, inside subgraphs too.

    All foldable nodes are found first. What moves elements is done by numpy, the rest by onnxruntime in one session, and only the results that
    others use are kept.

    Refused: random ops, ops of other domains, strings, results larger than both their constant inputs and the folding budget (a model must not
    grow), DequantizeLinear, and results that would blow up deliberately compressed weights (INT8 or narrower behind Cast or Mul).
    """

    name = "fold_constants"
    phase = "fold"

    def rule_names(self) -> list[str]:
        return ["fold_constants", "stream_transpose"]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        streamed = self._stream_transposes(model, ctx)
        region = _Region(ctx)
        for node in ctx.walk():
            region.consider(node)
        wanted = region.frontier()
        if not wanted:
            return PassResult(streamed > 0, streamed)
        from onnxopt.runtime.evaluate import evaluate

        results = evaluate(region.needed(wanted), wanted, model.graph.opset_imports, model.ir_version)
        patches = 0
        for value, array in results.items():
            if not self._replace(value, array, ctx):
                break
            patches += 1
        ctx.editor.remove_unused(list(region.nodes))
        region.remember_failures(wanted, results)
        return PassResult(patches + streamed > 0, patches + streamed)

    def _stream_transposes(self, model: ir.Model, ctx: Context) -> int:
        """Transposed weight matrices are neither read nor computed now, but while the model is written."""
        patches = 0
        for node in ctx.nodes_of([("", "Transpose")]):
            if node.inputs[0] is None:
                continue
            tensor = ir.constant(node.inputs[0])
            if tensor is None or tensor.nbytes < STREAMED_BYTES or not ir.can_stream_transpose(tensor):
                continue
            if list(attribute(node, "perm", (1, 0))) != [1, 0] or not _only_used_by(node.inputs[0], node):
                continue
            value = node.outputs[0]
            assert isinstance(tensor, ir.MappedTensor)
            constant = ctx.constant(ir.TransposedTensor(tensor, value.name or ""), value.name or "transposed", node)
            if ctx.editor.apply(Patch("stream_transpose", node, [], {value: constant}), unused=[node]):
                patches += 1
        return patches

    def _replace(self, value: ir.Value, array: np.ndarray, ctx: Context) -> bool:
        node = value.producer()
        assert node is not None
        dtype = ctx.shapes.dtype(value)
        tensor = ir.tensor_of(array, dtype)
        constant = ctx.constant(
            tensor if array.nbytes > EXPANDING_BYTES else _array_for(array, dtype), value.name or "folded"
        )
        return ctx.editor.apply(Patch(self.name, node, [], {value: constant}))


def _array_for(array: np.ndarray, dtype: ir.DataType | None) -> np.ndarray | ir.TensorProtocol:
    """The array itself where its numpy type says what it is; a typed tensor for bfloat16, float8 and the like."""
    return array if dtype is None or dtype.numpy() == array.dtype else ir.tensor_of(array, dtype)


class _Region:
    """The nodes that can be evaluated now, in topological order."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.nodes: dict[ir.Node, None] = {}
        self._made: set[ir.Value] = set()

    def consider(self, node: ir.Node) -> None:
        """Add the node if its inputs are constant and its result is worth keeping."""
        if node.domain or node.op_type in _NEVER or not node.outputs or node in self.ctx.not_foldable:
            return
        made = self._made
        inputs = node.inputs
        if node.op_type in ("Constant", "Identity") or (not inputs and node.op_type not in _SOURCES):
            return
        for value in inputs:
            if value is not None and value not in made and ir.constant(value) is None:
                return
        inner = subgraphs(node)
        if inner and not self._closed(node):
            return
        if any(self.ctx.shapes.dtype(value) is ir.DataType.STRING for value in node.outputs):
            return
        if not self._worth_keeping(node):
            return
        self.nodes[node] = None
        made.update(node.outputs)

    def _closed(self, node: ir.Node) -> bool:
        """Whether a node with subgraphs captures only constants, holds nothing random and comes to an end soon."""
        if not self._bounded(node):
            return False
        for graph in subgraphs(node):
            for inner in walk(graph):
                if inner.op_type in RANDOM or inner.domain or not self._bounded(inner):
                    return False
                if inner.op_type == node.op_type == "Loop":
                    return False
        return all(value in self._made or ir.constant(value) is not None for value in ir.inputs_with_captures(node))

    def _bounded(self, node: ir.Node) -> bool:
        """Whether evaluating the node takes few iterations and no more memory than the folding budget."""
        if node.op_type == "Loop":
            trips = ir.scalar(node.inputs[0]) if node.inputs else None
            return trips is not None and trips <= MAX_FOLDED_TRIPS
        if node.op_type not in _GROWING:
            return True
        sizes = [self._bytes(value) for value in node.outputs]
        return all(size is not None and size <= self.ctx.options.fold_budget_bytes for size in sizes)

    def _worth_keeping(self, node: ir.Node) -> bool:
        size = 0
        for value in node.outputs:
            bytes_of_value = self._bytes(value)
            if bytes_of_value is None:
                if node.op_type in _GROWING:
                    return False
                bytes_of_value = 0
            size += bytes_of_value
        if size <= EXPANDING_BYTES:
            return True
        narrow, wide = self._input_bytes(node)
        if narrow > EXPANDING_BYTES and size > narrow + wide:
            return False
        return size <= max(narrow + wide, self.ctx.options.fold_budget_bytes)

    def _bytes(self, value: ir.Value) -> int | None:
        shape, dtype = self.ctx.shapes.static_shape(value), self.ctx.shapes.dtype(value)
        return None if shape is None or dtype is None else math.ceil(math.prod(shape) * dtype.itemsize)

    def _input_bytes(self, node: ir.Node) -> tuple[int, int]:
        """Bytes of the constants behind the node that only it uses: those of few bits, and the others."""
        narrow = wide = 0
        stack, seen = [value for value in node.inputs if value is not None], set()
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            tensor = ir.constant(value)
            if tensor is None:
                producer = value.producer()
                if producer is not None and value in self._made:
                    stack.extend(one for one in producer.inputs if one is not None)
            elif tensor.dtype not in _UNCOMPRESSED and tensor.dtype.bitwidth <= LOW_BITS:
                narrow += tensor.nbytes
            elif ir.use_count(value) <= 1:
                wide += tensor.nbytes
        return narrow, wide

    def frontier(self) -> list[ir.Value]:
        """The results that something outside of the region uses."""
        return [
            value
            for node in self.nodes
            for value in node.outputs
            if value.is_graph_output() or any(user not in self.nodes for user, _ in value.uses())
        ]

    def needed(self, wanted: list[ir.Value]) -> list[ir.Node]:
        """The nodes of the region that `wanted` depends on, in order."""
        needed: set[ir.Node] = set()
        stack = [producer for value in wanted if (producer := value.producer()) is not None]
        while stack:
            node = stack.pop()
            if node in needed:
                continue
            needed.add(node)
            for value in ir.inputs_with_captures(node):
                producer = value.producer()
                if producer is not None and producer in self.nodes:
                    stack.append(producer)
        return [node for node in self.nodes if node in needed]

    def remember_failures(self, wanted: list[ir.Value], results: dict[ir.Value, np.ndarray]) -> None:
        """What onnxruntime could not compute is not tried again in the next round."""
        for value in wanted:
            producer = value.producer()
            if value not in results and producer is not None:
                self.ctx.not_foldable.add(producer)


def _only_used_by(value: ir.Value, node: ir.Node) -> bool:
    return all(user is node for user, _ in value.uses()) and not value.is_graph_output()


_UNCOMPRESSED = frozenset({ir.DataType.BOOL, ir.DataType.STRING})
_SOURCES = frozenset({"Range", "EyeLike"})
_NEVER = RANDOM | KEPT
_GROWING = frozenset(
    [
        "ConstantOfShape",
        "Expand",
        "Tile",
        "Range",
        "EyeLike",
        "OneHot",
        "Pad",
        "Resize",
        "Upsample",
        "Loop",
        "Scan",
        "CenterCropPad",
        "AffineGrid",
        "Col2Im",
        "MaxUnpool",
        "ConvTranspose",
        "Einsum",
        "DFT",
        "STFT",
        "HannWindow",
        "HammingWindow",
        "BlackmanWindow",
        "MelWeightMatrix",
    ]
)
"""Ops whose result can be far larger than their inputs: folded only when its size is known beforehand."""
