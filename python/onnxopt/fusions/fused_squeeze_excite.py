"""Which Squeeze-and-Excitation blocks become FusedSqueezeExcite, and how.

A block is found from its last product, backwards: gates, the activation that makes them, the product that excites, the other activation, the
product that squeezes, means of the tensor that the gates scale. In between lie vectors [N, C] in any shape that shows them: [N, C, 1, 1], [N, 1, 1, C].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.fusions.fused_elementwise import structure
from onnxopt.ops import fused_elementwise as elementwise
from onnxopt.ops import fused_squeeze_excite as op
from onnxopt.ops.base import overload_of, prepare_model
from onnxopt.ops.fused_squeeze_excite import Activation
from onnxopt.passes.base import Context
from onnxopt.rewrite import pattern
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.permutations import constant_axes
from onnxopt.rewrite.rules import Match, Refusal, attribute, rule

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"})

MAX_NODES = 8
"""Element-wise nodes of one activation; the longest that an exporter writes, Gelu, has six."""


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """Vectors [N, depth] times constant weights, with biases [filters] where there are any."""

    vectors: ir.Value
    node: ir.Node
    weights: ir.Value
    bias: ir.Value | None
    filters: int
    depth: int


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """A product and what is computed of its results element by element."""

    product: Product
    activation: Activation
    compiled: elementwise.Compiled | None  # None where nothing is


class Search:
    """The block whose result a Mul of `x` and `gates` is."""

    def __init__(self, ctx: Context, x: ir.Value, gates: ir.Value) -> None:
        self.ctx = ctx
        self.x = x
        self.gates = gates
        self.inside: set[ir.Node] = set()

    def layers(self) -> tuple[Layer, Layer] | Refusal | None:
        """What squeezes and what excites; None where the gates look like something else altogether."""
        excite = self._layer(self.gates)
        if not isinstance(excite, Layer):
            return excite
        squeeze = self._layer(excite.product.vectors)
        if squeeze is None:
            return Refusal("no two products make the gates", culprit=excite.product.node)
        if isinstance(squeeze, Refusal):
            return squeeze
        refusal = self._refuse_means(squeeze.product.vectors)
        if refusal is not None:
            return refusal
        if squeeze.product.depth != excite.product.filters:
            return Refusal("the gates are not one per channel", culprit=excite.product.node)
        return squeeze, excite

    def used_elsewhere(self, root: ir.Node) -> Refusal | None:
        """Why an inner result has to stay; None where nothing but the block reads any."""
        for node in self.inside:
            for value in node.outputs:
                others = [user for user, _ in value.uses() if user is not root and user not in self.inside]
                if others or value.is_graph_output():
                    return Refusal("'{}' is also used elsewhere", value.name, culprit=value)
        return None

    def _layer(self, value: ir.Value) -> Layer | Refusal | None:
        value = self._behind_views(value)
        activation = self._activation(value)
        if activation is None:
            return None
        product = self._product(self._behind_views(activation.raw))
        if not isinstance(product, Product):
            return product
        if not activation.nodes:
            return Layer(product, activation, None)
        shapes = self.ctx.shapes
        compiled = elementwise.compile_region(activation.nodes, [value], shapes, first=[activation.raw])
        if isinstance(compiled, Refusal):
            return compiled
        if len(compiled.inputs) > 1 or shapes.dtype(value) is not ir.DataType.FLOAT:
            return Refusal("its activation reads more than its result", culprit=product.node)
        return Layer(product, activation, compiled)

    def _is_vectors(self, value: ir.Value) -> bool:
        """Whether a value is [N, C] in a shape that shows it, for the batch N of the tensor."""
        batch, shape = self.ctx.shapes.shape(self.x), self.ctx.shapes.shape(value)
        if not batch or not shape or self.ctx.shapes.equal(shape[0], batch[0]) is not True:
            return False
        return all(isinstance(dim, int) for dim in shape[1:]) and sum(dim != 1 for dim in shape[1:]) <= 1

    def _behind_views(self, value: ir.Value) -> ir.Value:
        """What a chain of views shows, as long as these are vectors."""
        while self._is_vectors(value):
            node = value.producer()
            source = node.inputs[0] if node is not None and node.inputs else None
            if node is None or source is None or node.domain or node.op_type not in VIEWS:
                break
            moved = node.op_type == "Transpose" and (attribute(node, "perm") or (1,))[0] != 0
            if moved or not self._is_vectors(source):
                break
            self.inside.add(node)
            value = source
        return value

    def _activation(self, value: ir.Value) -> Activation | None:
        """The element-wise nodes that make a value of one other value; None where the value is no vectors."""
        if not self._is_vectors(value):
            return None
        found: dict[ir.Node, None] = {}
        sources: dict[ir.Value, None] = {}
        self._collect(value, found, sources)
        if len(sources) != 1 or len(found) > MAX_NODES:
            return None
        self.inside.update(found)
        return Activation(next(iter(sources)), value, tuple(found))

    def _collect(self, value: ir.Value, found: dict[ir.Node, None], sources: dict[ir.Value, None]) -> None:
        """Put the nodes that make a value into `found`, operands first."""
        node = value.producer()
        if node in found or ir.constant(value) is not None:
            return
        if node is None or len(found) > MAX_NODES or not self._is_elementwise(node):
            sources[value] = None
            return
        for operand in node.inputs:
            if operand is not None:
                self._collect(operand, found, sources)
        found[node] = None

    def _is_elementwise(self, node: ir.Node) -> bool:
        if elementwise.refuse_node(node, self.ctx.shapes) is not None:
            return False
        # Constants with a number for each channel are biases.
        constants = [value for value in node.inputs if value is not None and ir.constant(value) is not None]
        return all(ir.scalar(value) is not None for value in constants)

    def _product(self, value: ir.Value) -> Product | Refusal | None:
        node = value.producer()
        if node is None:
            return None
        bias = None
        if node.op_type == "Add" and not node.domain:
            pairs = [(node.inputs[index], node.inputs[1 - index]) for index in (0, 1)]
            sums = [(one, other) for one, other in pairs if other is not None and ir.constant(other) is not None]
            made, bias = sums[0] if sums else (None, None)
            inner = None if made is None else made.producer()
            if inner is None or inner.op_type != "MatMul":
                return None
            self.inside.add(node)
            node = inner
        found = _read(node, bias, self.ctx)
        if isinstance(found, Product):
            self.inside.add(node)
        return found

    def _refuse_means(self, value: ir.Value) -> Refusal | None:
        """Why a value is not the means of the tensor's channels; None where it is."""
        value = self._behind_views(value)
        node, rank = value.producer(), self.ctx.shapes.rank(self.x)
        if node is None or rank is None or node.inputs[0] is not self.x:
            return Refusal("'{}' is no mean of what the gates scale", value.name, culprit=value)
        if node.op_type == "GlobalAveragePool":
            return Refusal("'{}' is not channels-last", self.x.name, culprit=node)
        if node.op_type == "FusedPool":
            is_mean = node.attributes["kind"].as_string() == "global_average"
        else:
            axes = constant_axes(node, 1, rank) if node.op_type == "ReduceMean" else None
            is_mean = axes is not None and sorted(axes) == list(range(1, rank - 1)) and rank > 2
        if not is_mean:
            return Refusal("'{}' is no mean over all pixels, channels-last", value.name, culprit=node)
        self.inside.add(node)
        return None


def _read(node: ir.Node, bias: ir.Value | None, ctx: Context) -> Product | Refusal | None:
    """The product that a node is. A constant that it is added to is its bias."""
    if node.op_type == "FusedConv" and node.domain == op.SPEC.domain:
        return _read_fused_conv(node, ctx)
    if node.domain or node.op_type not in ("Conv", "MatMul", "Gemm"):
        return None
    vectors, weights, *more = node.inputs
    tensor = None if weights is None else ir.constant(weights)
    if vectors is None or weights is None or tensor is None or tensor.dtype is not ir.DataType.FLOAT:
        return Refusal("its weights are not constant float32", culprit=node)
    shape = tensor.shape.numpy()
    if node.op_type == "Conv":
        if math.prod(shape[2:]) != 1 or not _is_of_one_pixel(node):
            return Refusal("it is no convolution of one pixel", culprit=node)
        transposed = True
    else:
        plain = {"transA": 0, "alpha": 1.0, "beta": 1.0}
        if len(shape) != 2 or any(attribute(node, name, value) != value for name, value in plain.items()):
            return Refusal("it is no plain product", culprit=node)
        transposed = bool(attribute(node, "transB", 0))
    filters, depth = shape[:2] if transposed else shape[::-1]
    bias = bias or next(iter(more), None)
    held = None if bias is None else ir.constant(bias)
    if bias is not None and (held is None or held.size not in (1, filters)):
        return Refusal("its biases are not constant", culprit=node)
    return Product(vectors, node, weights, bias, filters, depth)


def _read_fused_conv(node: ir.Node, ctx: Context) -> Product | Refusal:
    vectors, weights, *more = node.inputs
    assert vectors is not None and weights is not None
    packed = ctx.shapes.static_shape(weights)
    pointwise = set(attribute(node, "kernel_shape")) == {1} and _is_of_one_pixel(node)
    if not pointwise or packed is None or node.attributes.keys() & {"planar", "epilogue"}:
        return Refusal("it is no convolution of one pixel", culprit=node)
    return Product(vectors, node, weights, next(iter(more), None), attribute(node, "filters"), packed[2])


def _is_of_one_pixel(node: ir.Node) -> bool:
    """Whether a convolution of one tap has one pixel, if its input has. No `auto_pad` adds any."""
    return attribute(node, "group", 1) == 1 and not any(attribute(node, "pads") or ())


def _weights(b: Builder, product: Product) -> ir.Value:
    """The weights as FusedConv has them; small matrices are packed now."""
    if product.node.op_type == "FusedConv":
        return product.weights
    tensor, name = ir.constant(product.weights), product.weights.name or "weights"
    assert tensor is not None
    if product.node.op_type == "Conv":
        return b.constant(ir.packed_filters(tensor, name, 1), name)
    transposed = bool(attribute(product.node, "transB", 0))
    return b.constant(ir.pack(tensor.numpy(), transposed=transposed)[None], name)


def _bias(b: Builder, product: Product) -> ir.Value:
    """The biases, zeros where there are none."""
    tensor = None if product.bias is None else ir.constant(product.bias)
    if product.bias is None or tensor is None:
        return b.constant(np.zeros(product.filters, np.float32), "bias")
    if tuple(tensor.shape.numpy()) == (product.filters,):
        return product.bias
    flat = np.broadcast_to(tensor.numpy().reshape(-1), product.filters)
    return b.constant(np.ascontiguousarray(flat), product.bias.name or "bias")


def _find(m: Match) -> tuple[Search, tuple[Layer, Layer]] | Refusal | None:
    operands: Sequence[ir.Value | None] = m.root.inputs
    refusal: Refusal | None = None
    for x, gates in (operands, operands[::-1]):
        if x is None or gates is None or m.ctx.shapes.same_shape(x, m.output) is not True:
            continue
        search = Search(m.ctx, x, gates)
        layers = search.layers()
        if isinstance(layers, tuple):
            refusal = search.used_elsewhere(m.root)
            return (search, layers) if refusal is None else refusal
        refusal = refusal if layers is None else layers
    return refusal


@rule(pattern.op("Mul"), where=lambda m: m.ctx.target.name == "cpu")
def fuse_squeeze_excite(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """Means, two products and the scaling run in one kernel, and read the tensor twice."""
    found = _find(m)
    if not isinstance(found, tuple):
        return found
    search, (squeeze, excite) = found
    ctx, rank = m.ctx, m.ctx.shapes.rank(search.x)
    assert rank is not None
    sizes = (squeeze.product.filters, squeeze.product.depth)
    texts = [
        ""
        if layer.compiled is None
        else f"{layer.compiled.text}|{structure(list(layer.activation.nodes), layer.compiled)}"
        for layer in (squeeze, excite)
    ]
    overload = overload_of("|".join(map(str, (ctx.opset, rank, *sizes, *texts))))
    b.define(
        op.SPEC.domain,
        op.SPEC.name,
        overload,
        lambda: op.body(rank, *sizes, squeeze.activation, excite.activation, overload, ctx.opset),
    )
    attributes = {
        name: None if layer.compiled is None else layer.compiled.text
        for name, layer in (("between", squeeze), ("gate", excite))
    }
    inputs = [search.x]
    for layer in (squeeze, excite):
        inputs += [_weights(b, layer.product), _bias(b, layer.product)]
    (result,) = b.op(op.SPEC.name, inputs, attributes, domain=op.SPEC.domain, overload=overload, name=m.root.name)
    ctx.shapes.set(result, ctx.shapes.dtype(m.output), ctx.shapes.shape(m.output))
    prepare_model(ctx.model)
    return result
