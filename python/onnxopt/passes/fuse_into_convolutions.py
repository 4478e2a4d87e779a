"""Scales and shifts per channel before and after convolutions become part of their weights and biases."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.affine import Affine, affine_of, affine_terms, ends_formula, may_copy, rounded, scaled
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.permutations import constant_axes
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, attribute, rule

CONVOLUTIONS = ("Conv", "ConvTranspose")


@pattern
def _affine_of_convolution(p, x, w):  # type: ignore[no-untyped-def]
    return affine_terms(p, p.op(CONVOLUTIONS, x, w, p.optional("bias"), as_="conv"))


@pattern
def _affine_of_squeezed_convolution(p, x, w):  # type: ignore[no-untyped-def]
    conv = p.op(CONVOLUTIONS, x, w, p.optional("bias"), as_="conv")
    return affine_terms(p, p.Squeeze(conv, p.optional("axes"), as_="squeeze"))


@pattern
def _convolution_of_affine(p, x, w):  # type: ignore[no-untyped-def]
    return [p.op(CONVOLUTIONS, affine, w, p.optional("bias")) for affine in affine_terms(p, x, as_="affine")]


class _Weights:
    """The weights of a convolution as blocks of [groups, rows, columns, kernel].

    Rows are output channels of a Conv and input channels of a ConvTranspose; columns are the other kind.
    """

    def __init__(self, conv: ir.Node, shape: tuple[int, ...]) -> None:
        self.conv = conv
        self.groups = attribute(conv, "group", 1) or 0
        self.shape = shape
        self.transposed = conv.op_type == "ConvTranspose"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def valid(self) -> bool:
        return self.groups > 0 and self.rank > 2 and 0 not in self.shape and self.shape[0] % self.groups == 0

    @property
    def inputs(self) -> int:
        """Input channels."""
        return self.shape[0] if self.transposed else self.shape[1] * self.groups

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.shape[1] * self.groups if self.transposed else self.shape[0]

    def blocks(self, value: ir.Value) -> np.ndarray:
        """The weights that a constant holds."""
        tensor = ir.constant(value)
        assert tensor is not None
        return tensor.numpy().reshape(self.groups, self.shape[0] // self.groups, self.shape[1], -1)

    def along_inputs(self, vector: np.ndarray) -> np.ndarray:
        """A vector over input channels, as it multiplies the blocks."""
        return vector.reshape((self.groups, -1, 1, 1) if self.transposed else (self.groups, 1, -1, 1))

    def along_outputs(self, vector: np.ndarray) -> np.ndarray:
        """A vector over output channels, as it multiplies the blocks."""
        return vector.reshape((self.groups, 1, -1, 1) if self.transposed else (self.groups, -1, 1, 1))


def _weights(conv: ir.Node, m: Match) -> _Weights | Refusal:
    shape = m.ctx.shapes.static_shape(m["w"])
    weights = None if shape is None else _Weights(conv, shape)
    if weights is None or not weights.valid:
        return Refusal("the shape of the weights is not known", culprit=m["w"])
    return weights


def _bias(m: Match, channels: int) -> np.ndarray | Refusal:
    """The bias as float64, zeros where there is none."""
    value = m.get("bias")
    if value is None:
        return np.zeros(channels)
    tensor = ir.constant(value)
    if tensor is None or tuple(tensor.shape.numpy()) != (channels,):
        return Refusal("the bias '{}' is no constant of {} elements", value.name, channels, culprit=value)
    return tensor.numpy().astype(np.float64)


def _replaced(
    b: Builder, m: Match, weights: _Weights, x: ir.Value, factor: np.ndarray | None, bias: np.ndarray | None
) -> list[ir.Value | None] | Refusal:
    """In place of the root, a convolution of `x` whose weights are multiplied by a factor of their blocks, with a new
    bias; None keeps the old ones."""
    dtype = m.dtype("w")
    if dtype is None:
        return Refusal("the element type is not known", culprit=m["w"])
    inputs: list[ir.Value | None] = [x, m["w"], m.get("bias")]
    if factor is not None:
        inputs[1] = _constant(b, scaled(weights.blocks(m["w"]), factor, dtype, weights.shape), m["w"].name)
    if bias is not None:
        old = inputs[2]
        name = (old.name if old is not None else None) or f"{weights.conv.name}.bias"
        inputs[2] = _constant(b, rounded(bias, dtype), name)
    if (factor is not None and inputs[1] is None) or (bias is not None and inputs[2] is None):
        return Refusal("the folded constants do not fit into {}", dtype.name, culprit=weights.conv)
    if inputs[2] is None:
        del inputs[2]
    return [b.copy_of(weights.conv, inputs)[0], *(None for _ in m.root.outputs[1:])]


def _constant(b: Builder, tensor: ir.TensorProtocol | None, name: str | None) -> ir.Value | None:
    return None if tensor is None else b.constant(tensor, name or "weights")


@rule(_affine_of_convolution)
def fold_affine_after_convolution(b: Builder, m: Match) -> list[ir.Value | None] | Refusal:
    """A convolution whose result is scaled or shifted per channel is one with other weights and another bias."""
    return _with_affine(b, m, m.node("conv").outputs[0], 0)


@rule(_affine_of_squeezed_convolution)
def fold_affine_after_squeezed_convolution(b: Builder, m: Match) -> list[ir.Value | None] | Refusal:
    """The same where dims of size 1 behind the channels go before: convolutions of sequences as exporters write them."""
    squeeze, rank = m.node("squeeze"), m.ctx.shapes.rank(m["w"])
    axes = None if rank is None else constant_axes(squeeze, 1, rank)
    if axes is None or any(axis < 2 for axis in axes):
        return Refusal("it is not known which dims go", culprit=squeeze)
    made = _with_affine(b, m, squeeze.outputs[0], len(axes))
    if isinstance(made, Refusal):
        return made
    conv, *rest = made
    return [*b.copy_of(squeeze, [conv, *squeeze.inputs[1:]]), *rest]


def _with_affine(b: Builder, m: Match, source: ir.Value, squeezed: int) -> list[ir.Value | None] | Refusal:
    """The convolution with the affine map that the root is of `source`, its result without so many dims."""
    conv = m.node("conv")
    weights = _weights(conv, m)
    if isinstance(weights, Refusal):
        return weights
    affine = affine_of(m.root, source, rank=weights.rank - squeezed, axis=1, length=weights.outputs)
    bias = _bias(m, weights.outputs)
    if isinstance(affine, Refusal):
        return affine
    if isinstance(bias, Refusal):
        return bias
    factor = None
    if affine.scale is not None:
        allowed = may_copy(m["w"])
        if isinstance(allowed, Refusal):
            return allowed
        factor = weights.along_outputs(affine.scale_or_one(weights.outputs))
    shifted = bias * affine.scale_or_one(weights.outputs) + affine.shift_or_zero(weights.outputs)
    needs_bias = m.get("bias") is not None or affine.shift is not None
    return _replaced(b, m, weights, m["x"], factor, shifted if needs_bias else None)


@rule(_convolution_of_affine)
def fold_affine_before_convolution(b: Builder, m: Match) -> list[ir.Value | None] | Refusal:
    """A convolution of a tensor scaled per channel has scaled weights; a shift becomes bias where no padding mixes
    zeros in."""
    node = m.node("affine")
    if m.ctx.shapes.same_shape(m["x"], node.outputs[0]) is not True:
        return Refusal("'{}' may be broadcast to another shape", m["x"].name, culprit=node)
    if ends_formula(node, m["x"], norms=False):
        return Refusal("it may end the formula of an activation", culprit=node)
    weights = _weights(m.root, m)
    if isinstance(weights, Refusal):
        return weights
    allowed = may_copy(m["w"])
    if isinstance(allowed, Refusal):
        return allowed
    affine = affine_of(node, m["x"], rank=weights.rank, axis=1, length=weights.inputs)
    if isinstance(affine, Refusal):
        return affine
    bias = None if affine.shift is None else _bias_of_shift(m, weights, affine)
    if isinstance(bias, Refusal):
        return bias
    factor = None if affine.scale is None else weights.along_inputs(affine.scale_or_one(weights.inputs))
    return _replaced(b, m, weights, m["x"], factor, bias)


def _bias_of_shift(m: Match, weights: _Weights, affine: Affine) -> np.ndarray | Refusal:
    """The bias with what the shift of the input adds to every output."""
    if weights.transposed or not is_unpadded(m.root):
        return Refusal("the shift does not reach the padding", culprit=m.root)
    bias = _bias(m, weights.outputs)
    if isinstance(bias, Refusal):
        return bias
    shift = weights.along_inputs(affine.shift_or_zero(weights.inputs))
    return np.asarray(bias + _sums_of_products(weights.blocks(m["w"]), shift).reshape(-1))


BLOCK_ELEMENTS = 1 << 13
"""Weights that lie in memory as float64 at once: their place is the same cache lines for every block, not new pages for every convolution."""


def _sums_of_products(blocks: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """(blocks * factor).sum(axis=(2, 3)) where the factor has one row: a few rows at a time."""
    groups, rows, columns, kernel = blocks.shape
    step = max(BLOCK_ELEMENTS // (groups * columns * kernel), 1)
    sums = np.empty((groups, rows, 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        np.matmul(blocks[:, part].sum(axis=3, dtype=np.float64), factor[:, 0], out=sums[:, part])
    return sums


def is_unpadded(node: ir.Node) -> bool:
    """Whether a convolution or pooling has no padding of its own."""
    mode = attribute(node, "auto_pad", b"NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    return mode == "VALID" or (mode == "NOTSET" and not any(attribute(node, "pads", ()) or ()))


@register_pass
class FuseIntoConvolutions(RulePass):
    """Fold constants per channel before and after Conv and ConvTranspose into their weights and biases.

    The constants are those of BatchNormalization, Mul, Div, Add and Sub; what is folded is computed in float64 and
    rounded once. Refused: constants that vary along other axes or broadcast the tensor, convolutions whose result
    others use as well, biases that are not constant, a shift before a convolution that pads (the padding is not
    shifted), a scalar that may end the formula of an activation, large weights that others use as well, and results
    that the element type cannot hold.
    """

    name = "fuse_into_convolutions"
    phase = "simplify"
    rules = RuleSet(
        [fold_affine_after_convolution, fold_affine_after_squeezed_convolution, fold_affine_before_convolution]
    )
