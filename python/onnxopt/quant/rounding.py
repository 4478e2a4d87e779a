"""Rounding weights so that a layer's results come out right, not the weights: what rounding one of them does is made up for by the next ones.

E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022), which goes back to B. Hassibi and
D. Stork, "Second Order Derivatives for Network Pruning" (1993).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from onnxopt import ir
from onnxopt.quant.placement import CONVOLUTIONS
from onnxopt.quant.weights import HIGHEST
from onnxopt.rewrite.rules import attribute

DAMPING = 0.01
"""Of the mean of the Hessian's diagonal, added to all of it: samples do not show all directions."""

BLOCK = 128
"""Rows that are rounded before what they change is carried to all rows after them."""

ROWS_AT_ONCE = 1 << 13
"""Of operands that are multiplied with each other at once, which bounds memory."""

MOST_DEPTH = 1 << 13
"""The deepest layer that is adapted: its Hessian is square in that, and inverting it cubic."""


def hessian(node: ir.Node, operands: Sequence[np.ndarray]) -> np.ndarray | None:
    """The sum over samples of X^T X, float64 [K, K], where a layer multiplies rows X; None for layers of another kind.

    Those are convolutions of several groups, whose few weights have nothing to make up for each other with, and those whose padding is computed.
    """
    tensor = ir.constant(node.inputs[1])
    if tensor is None:
        return None
    shape = tensor.shape.numpy()
    if node.op_type in CONVOLUTIONS:
        if attribute(node, "group", 1) != 1 or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return None
        depth = int(np.prod(shape[1:]))
        rows: Iterable[np.ndarray] = (part for one in operands for part in _windows(node, one, shape[2:]))
    else:
        depth = shape[1 if attribute(node, "transB", 0) else 0]
        rows = (one.reshape(-1, depth) for one in operands)
    if depth > MOST_DEPTH:
        return None
    total = np.zeros((depth, depth))
    for part in rows:
        for first in range(0, len(part), ROWS_AT_ONCE):
            some = part[first : first + ROWS_AT_ONCE]
            total += some.T @ some
    return total


def _windows(node: ir.Node, x: np.ndarray, kernel: Sequence[int]) -> Iterator[np.ndarray]:
    """What a convolution multiplies its filters with, [positions, C * kernel], image by image."""
    rank = len(kernel)
    pads = (
        list(attribute(node, "pads", [0] * (2 * rank)))
        if attribute(node, "auto_pad", "NOTSET") == "NOTSET"
        else [0] * 2 * rank
    )
    strides = list(attribute(node, "strides", [1] * rank))
    dilations = list(attribute(node, "dilations", [1] * rank))
    spans = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True))
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    axes = tuple(range(1, rank + 1))
    for image in padded:
        seen = np.lib.stride_tricks.sliding_window_view(image, spans, axis=axes)
        positions = tuple(slice(None, None, step) for step in strides)
        inside = tuple(slice(None, None, step) for step in dilations)
        taken = seen[(slice(None), *positions, *inside)]
        moved = np.moveaxis(taken, 0, rank)
        yield moved.reshape(-1, int(np.prod(moved.shape[rank:])))


def adapt(matrix: np.ndarray, nearest: np.ndarray, scales: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Integers of a matrix [K, N] with a scale for each column, int8, chosen for the least error of results.

    Args:
        matrix: the weights.
        nearest: their integers, each rounded by itself; a column keeps them where the others are no better.
        scales: of columns, float32 [N].
        second: the Hessian of a column's squared error, [K, K].
    """
    unseen = np.diag(second) == 0
    damped = second + np.diag(np.where(unseen, 1.0, DAMPING * np.diag(second).mean()))
    order = np.argsort(-np.diag(second), kind="stable")
    upper = _upper(damped[np.ix_(order, order)])
    if upper is None:
        return nearest
    found = np.empty_like(nearest)
    found[order] = _rounded_in_turn(matrix[order].astype(np.float64), scales.astype(np.float64), upper)
    better = _errors(matrix, found, scales, second) < _errors(matrix, nearest, scales, second)
    return np.where(better, found, nearest)


def _upper(second: np.ndarray) -> np.ndarray | None:
    """The upper triangular factor of the inverse, whose rows say how later weights make up for one."""
    try:
        inverse = np.linalg.inv(second)
        return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)
    except np.linalg.LinAlgError:
        return None


def _rounded_in_turn(left: np.ndarray, scales: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Round row by row; `left` holds what is still to be rounded, and is changed."""
    found = np.empty(left.shape, np.int8)
    for first in range(0, len(left), BLOCK):
        end = min(first + BLOCK, len(left))
        errors = np.empty((end - first, left.shape[1]))
        for row in range(first, end):
            whole = np.clip(np.rint(left[row] / scales), -HIGHEST, HIGHEST)
            found[row] = whole
            errors[row - first] = (left[row] - whole * scales) / upper[row, row]
            left[row + 1 : end] -= np.outer(upper[row, row + 1 : end], errors[row - first])
        left[end:] -= upper[first:end, end:].T @ errors
    return found


def _errors(matrix: np.ndarray, integers: np.ndarray, scales: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The squared error of each column's results [N]."""
    lost = integers * scales.astype(np.float64) - matrix
    return np.asarray((lost * (second @ lost)).sum(axis=0))
