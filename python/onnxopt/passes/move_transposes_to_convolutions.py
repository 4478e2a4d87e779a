"""Transposes between rows of pixels and convolutions stand beside the convolutions, which compute in either layout."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.ir.dims import Dim
from onnxopt.ops.fused_conv import channels_first, channels_last
from onnxopt.passes.base import Context, RulePass, register_pass
from onnxopt.passes.simplify_reshapes import target_of
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.permutations import permutation
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, rule

ROWS = (0, 2, 1)
"""The Transpose between [batch, pixels, channels] and [batch, channels, pixels]."""

LEAST_RANK = 4


def _is_convolution(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Conv" and not node.domain


@pattern
def _image_of_rows(p, x):  # type: ignore[no-untyped-def]
    return p.Reshape(p.Transpose(x, as_="transpose"), open_inputs=True)


@rule(_image_of_rows)
def transpose_before_convolution(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """Rows of pixels become an image with the channels last, which is transposed for convolutions."""
    shape, rows = m.ctx.shapes.shape(m.output), m.ctx.shapes.shape(m["x"])
    users = [user for user, _ in m.output.uses()]
    if shape is None or rows is None or len(shape) < LEAST_RANK or not users or not all(map(_is_convolution, users)):
        return None
    if permutation(m.ctx, m.node("transpose")) != ROWS or not _keeps(m.ctx, shape, (rows[0], rows[2])):
        return None
    sides = shape[2:]
    if not all(isinstance(size, int) for size in (*sides, shape[1])):
        return Refusal("the sides {} of the image are not known", sides, culprit=m.root)
    target = np.array([0, *sides, shape[1]], np.int64)
    return b.Transpose(b.Reshape(m["x"], b.constant(target, "image")), perm=channels_first(len(shape)))


@pattern
def _rows_of_image(p, x):  # type: ignore[no-untyped-def]
    return p.Transpose(p.op(("Reshape", "Flatten"), x, as_="rows", open_inputs=True))


@rule(_rows_of_image)
def transpose_behind_convolution(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """What a convolution makes is transposed, and then its pixels become rows."""
    image, rows = m.ctx.shapes.shape(m["x"]), m.ctx.shapes.shape(m.node("rows").outputs[0])
    if image is None or rows is None or len(image) < LEAST_RANK or len(rows) != len(ROWS):
        return None
    if not _is_convolution(m["x"].producer()) or permutation(m.ctx, m.root) != ROWS:
        return None
    if not _keeps(m.ctx, rows, image[:2]):
        return None
    target = target_of(m.output, m["x"], m)
    if target is None:
        return Refusal("the shape of '{}' has no constant target", m.output.name, culprit=m.root)
    moved = b.Transpose(m["x"], perm=channels_last(len(image)))
    return b.Reshape(moved, b.constant(np.array(target, np.int64), "rows"))


def _keeps(ctx: Context, shape: tuple[Dim, ...], outer: tuple[Dim, ...]) -> bool:
    """Whether the first two dims are batches and channels as they were."""
    return all(ctx.shapes.equal(*pair) for pair in zip(shape, outer, strict=False))


@register_pass
class MoveTransposesToConvolutions(RulePass):
    """Exchange the Transpose and the Reshape between rows of pixels, as transformers have them, and the images of convolutions.

    Then `convolutions_channels_last` finds convolutions whose data is at hand channels-last. Refused: images of unknown sides, and what is
    not next to a convolution.
    """

    name = "move_transposes_to_convolutions"
    phase = "fuse"
    rules = RuleSet([transpose_before_convolution, transpose_behind_convolution])
