"""Recurrent ops over a sequence that is turned around become reverse ones, and pairs of both directions one bidirectional op."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.ir import dims, shape_rules
from onnxopt.loops.recurrent_ops import GATES, direction_of
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.passes.unfold_recurrent_ops import pays
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import attribute

TURN = "reverse_recurrent_op"
MERGE = "merge_directions"

LENGTHS, FIRST_STATE = 4, 5
"""Inputs of the ops: the lengths of sequences, and the first of the initial states."""


@register_pass
class MergeRecurrentDirections(Pass):
    """Run LSTM, GRU and RNN from the back instead of turning sequences, and merge a forward and a reverse one of the same sequence.

    An op over a sequence that is turned around becomes a reverse op when its own outputs are turned back, or only its final state is read. A pair is merged
    when a Concat joins what it computes, forward first. Refused: pairs that differ in an attribute, have peepholes, lengths or the batch first, and
    those that become FusedRecurrence, where each direction stays a node.
    """

    name = "merge_recurrent_directions"
    phase = "simplify"

    def rule_names(self) -> list[str]:
        return [TURN, MERGE]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for build in (_reversed, _merged):
            for node in ctx.nodes_of([("", name) for name in GATES]):
                patch = build(node, ctx) if node.graph is not None else None
                if patch is not None and ctx.editor.apply(patch):
                    ctx.editor.remove_unused([*(value.producer() or node for value in patch.replacements), node])
                    patches += 1
        return PassResult(patches > 0, patches)


# --- turned sequences
def _reversed(node: ir.Node, ctx: Context) -> Patch | None:
    """The reverse op for a forward one whose sequence is turned around."""
    found = _turned(node.inputs[0], ctx)
    if found is None or direction_of(node) != "forward" or attribute(node, "layout", 0) or ir.input_at(node, LENGTHS):
        return None
    back = _turned_back(node.outputs[0], ctx)
    if back is None:
        return None
    b = Builder(ctx, node)
    x, perms = found
    for perm in reversed(perms):
        x = b.Transpose(x, perm=list(perm))
    results = b.copy_of(node, [x, *node.inputs[1:]], direction="reverse")
    replacements = dict(zip(node.outputs[1:], results[1:], strict=True))
    if back:
        squeezed = b.squeeze(results[0], 1)
        replacements.update((value, squeezed) for value in back)
    return b.patch(TURN, {old: new for old, new in replacements.items() if _is_used(old)})


def _turned(value: ir.Value | None, ctx: Context) -> tuple[ir.Value, list[tuple[int, ...]]] | None:
    """What a sequence is that is turned around along axis 0, before Transposes that are left to do, the last one first."""
    axis = 0
    perms: list[tuple[int, ...]] = []
    while value is not None:
        node = value.producer()
        if node is None or node.domain:
            return None
        if node.op_type == "Transpose" and attribute(node, "perm"):
            perm = tuple(attribute(node, "perm"))
            perms.append(perm)
            axis, value = perm[axis], node.inputs[0]
            continue
        return (node.inputs[0], perms) if _turns(node, axis, ctx) and node.inputs[0] is not None else None
    return None


def _turned_back(stacked: ir.Value, ctx: Context) -> list[ir.Value] | None:
    """The values that are the stacked output, turned around, without the dim of directions; None where it is read otherwise."""
    found: list[ir.Value] = []
    if stacked.is_graph_output():
        return None
    for squeeze, _ in stacked.uses():
        if not _squeezes(squeeze, 1, ctx) or squeeze.outputs[0].is_graph_output():
            return None
        for user, _ in squeeze.outputs[0].uses():
            if not _turns(user, 0, ctx):
                return None
            found.append(user.outputs[0])
    return found


def _turns(node: ir.Node, axis: int, ctx: Context) -> bool:
    """Whether a node turns its input around along an axis and does nothing else."""
    source = node.inputs[0] if node.inputs else None
    shape = None if source is None else ctx.shapes.shape(source)
    if node.domain or shape is None:
        return False
    if node.op_type == "Gather":
        return attribute(node, "axis", 0) % len(shape) == axis and _counts_down(node.inputs[1], shape[axis], ctx)
    bounds = shape_rules.slice_bounds(ctx.shapes, node, len(shape)) if node.op_type == "Slice" else None
    if not bounds or len(bounds) != 1:
        return False
    found, start, end, step = bounds[0]
    size = shape[axis]
    from_last = start == -1 or start == size - 1
    to_first = isinstance(end, int) and end < 0 and (end <= -(2**31) or (isinstance(size, int) and end < -size))
    return found == axis and step == -1 and bool(from_last) and to_first


def _counts_down(indices: ir.Value | None, size: dims.Dim, ctx: Context) -> bool:
    """Whether indices are size - 1, ..., 1, 0: constants, or a number minus a Range."""
    if indices is None:
        return False
    numbers = ir.integers(indices)
    if numbers is not None:
        return ctx.shapes.rank(indices) == 1 and size == len(numbers) and numbers == tuple(range(len(numbers)))[::-1]
    node = indices.producer()
    counted = None if node is None or node.op_type != "Sub" or node.domain else node.inputs[1]
    rising = None if counted is None else counted.producer()
    if node is None or rising is None or rising.op_type != "Range" or rising.domain:
        return False
    last, limit = (ctx.shapes.elements(value) for value in (node.inputs[0], rising.inputs[1]))
    from_zero = ir.scalar(rising.inputs[0]) == 0 and ir.scalar(rising.inputs[2]) == 1
    return bool(from_zero and last and limit and limit[0] == size and last[0] == size - 1)


def _squeezes(node: ir.Node, axis: int, ctx: Context) -> bool:
    if node.op_type != "Squeeze" or node.domain:
        return False
    axes = ir.integers(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
    rank = None if node.inputs[0] is None else ctx.shapes.rank(node.inputs[0])
    return axes is not None and rank is not None and [one % rank for one in axes] == [axis]


def _is_used(value: ir.Value) -> bool:
    return ir.use_count(value) > 0 or value.is_graph_output()


# --- pairs
def _merged(node: ir.Node, ctx: Context) -> Patch | None:
    """One op for a forward one and the reverse one whose results a Concat joins with its own."""
    if direction_of(node) != "forward" or pays(node, ctx):
        return None
    for squeeze, _ in node.outputs[0].uses():
        if not _squeezes(squeeze, 1, ctx):
            continue
        for concat, _ in squeeze.outputs[0].uses():
            other = _partner(concat, squeeze.outputs[0], ctx)
            if other is not None and _are_alike(node, other, ctx):
                return _merge(node, other, concat, ctx)
    return None


def _partner(concat: ir.Node, first: ir.Value, ctx: Context) -> ir.Node | None:
    """The op that makes what a Concat puts behind `first` in the last dim."""
    if concat.op_type != "Concat" or concat.domain or len(concat.inputs) != 2 or concat.inputs[0] is not first:
        return None
    second = concat.inputs[1]
    squeeze = None if second is None else second.producer()
    if attribute(concat, "axis") not in (-1, 2) or squeeze is None or not _squeezes(squeeze, 1, ctx):
        return None
    made = squeeze.inputs[0]
    node = None if made is None else made.producer()
    return node if node is not None and made is node.outputs[0] else None


def _are_alike(forward: ir.Node, reverse: ir.Node, ctx: Context) -> bool:
    if reverse.op_type != forward.op_type or reverse.domain or direction_of(reverse) != "reverse":
        return False
    if reverse.inputs[0] is not forward.inputs[0] or reverse.graph is not forward.graph:
        return False
    if _sizes(forward, ctx) != _sizes(reverse, ctx) or len(forward.inputs) != len(reverse.inputs):
        return False
    states = 2 if forward.op_type == "LSTM" else 1
    if any(len(one.inputs) > FIRST_STATE + states or ir.input_at(one, LENGTHS) for one in (forward, reverse)):
        return False
    names = {*forward.attributes, *reverse.attributes} - {"direction", "hidden_size"}
    if attribute(forward, "layout", 0) or any(attribute(forward, name) != attribute(reverse, name) for name in names):
        return False
    if "activation_alpha" in names or "activation_beta" in names:
        return False
    # Initial states and biases are both given or both left out.
    given = [[bool(ir.input_at(one, index)) for index in range(3, FIRST_STATE + states)] for one in (forward, reverse)]
    constants = (ir.input_at(one, index) for one in (forward, reverse) for index in (1, 2, 3))
    return given[0] == given[1] and all(value is None or ir.constant(value) is not None for value in constants)


def _merge(forward: ir.Node, reverse: ir.Node, concat: ir.Node, ctx: Context) -> Patch | None:
    anchor = _place(forward, reverse, concat)
    if anchor is None:
        return None
    b = Builder(ctx, anchor)
    inputs: list[ir.Value | None] = [forward.inputs[0]]
    for index in range(1, len(forward.inputs)):
        inputs.append(_both(b, [forward.inputs[index], reverse.inputs[index]]))
    names = attribute(forward, "activations")
    attributes = {
        **forward.attributes,
        "direction": "bidirectional",
        "activations": None if names is None else [*names, *names],
    }
    count = max(len(forward.outputs), len(reverse.outputs))
    results = b.op(forward.op_type, inputs, attributes, outputs=count, name=forward.name)
    rows = b.Transpose(results[0], perm=[0, 2, 1, 3])
    width = 2 * _sizes(forward, ctx)[1][2]
    joined = b.Reshape(rows, b.constant(np.array([0, 0, width], np.int64), "shape"))
    replacements = {concat.outputs[0]: joined}
    for index, outputs in enumerate((forward.outputs, reverse.outputs)):
        for axis, result, value in zip((1, 0, 0), results, outputs, strict=False):
            if _is_read_beside(value, concat):
                begin, end, along = (b.constant(np.array([one], np.int64)) for one in (index, index + 1, axis))
                replacements[value] = b.Slice(result, begin, end, along)
    return b.patch(MERGE, replacements)


def _place(forward: ir.Node, reverse: ir.Node, concat: ir.Node) -> ir.Node | None:
    """Where one op can stand for both: what it reads is there, and what reads it is not yet."""
    order = {node: index for index, node in enumerate(forward.graph or ())}
    first, second = sorted((forward, reverse), key=order.__getitem__)
    made = [value.producer() for value in second.inputs if value is not None]
    if all(order.get(node, -1) < order[first] for node in made if node is not None):
        return first
    readers = [user for value in first.outputs if _is_read_beside(value, concat) for user, _ in value.uses()]
    return second if all(order.get(user, -1) > order[second] for user in readers) else None


def _is_read_beside(value: ir.Value, concat: ir.Node) -> bool:
    """Whether anything but a Squeeze for the Concat reads an output."""
    if value.is_graph_output():
        return True
    for user, _ in value.uses():
        if user.op_type != "Squeeze" or user.outputs[0].is_graph_output():
            return True
        if any(reader is not concat for reader, _ in user.outputs[0].uses()):
            return True
    return False


def _sizes(node: ir.Node, ctx: Context) -> list[tuple[int, ...]]:
    """The shapes of W and R."""
    shapes = [None if value is None else ctx.shapes.static_shape(value) for value in node.inputs[1:3]]
    return [shape or () for shape in shapes]


def _both(b: Builder, pair: Sequence[ir.Value | None]) -> ir.Value | None:
    """An input of both directions."""
    known = [value for value in pair if value is not None]
    tensors = [ir.constant(value) for value in known]
    if not known:
        return None
    arrays = [one.numpy() for one in tensors if one is not None]
    if len(arrays) == len(known):
        return b.constant(np.concatenate(arrays), known[0].name or "weights")
    return b.Concat(*known, axis=0)
