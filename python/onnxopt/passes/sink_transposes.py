"""Transposes: merged, cancelled, and moved behind the ops between them when that leaves fewer."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.passes.simplify_reshapes import target_of
from onnxopt.rewrite.driver import Driver, discard
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op, pattern
from onnxopt.rewrite.permutations import Move, Permutation, compose, inverse, is_identity, move, permutation
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, rule

MAX_CONSTANT_BYTES = 1 << 20
"""Constants beside moved data are transposed too, up to this size: biases are smaller, weights stay unread."""

MAX_ROUNDS = 16
"""Every round leaves fewer Transposes; models settle in one or two."""

MATRIX_RANK = 2
"""Transposes of plain matrices become attributes of Gemm elsewhere."""

SINK = "sink_transpose"


# --- Transposes next to each other ---------------------------------------------------------------------------------
@rule(op("Transpose"), benefit=3)
def drop_identity_transpose(_: Builder, m: Match) -> ir.Value | None:
    """A Transpose that leaves every axis where it is."""
    perm = permutation(m.ctx, m.root)
    return m.root.inputs[0] if perm is not None and is_identity(perm) else None


@pattern
def _transpose_of_transpose(p, x):  # type: ignore[no-untyped-def]
    return p.Transpose(p.Transpose(x, as_="inner", shared=True))


@rule(_transpose_of_transpose, benefit=2)
def merge_transposes(b: Builder, m: Match) -> ir.Value | None:
    """Two Transposes in a row are one, or none."""
    first, second = permutation(m.ctx, m.node("inner")), permutation(m.ctx, m.root)
    if first is None or second is None:
        return None
    merged = compose(first, second)
    return m["x"] if is_identity(merged) else b.Transpose(m["x"], perm=merged)


# --- Transposes of matrices that are multiplied --------------------------------------------------------------------
def _swapped_rank(ctx: Context, node: ir.Node) -> int | None:
    """The rank of the batch of matrices whose last two axes, and no others, the Transpose swaps."""
    perm = permutation(ctx, node)
    if perm is None or len(perm) <= MATRIX_RANK:
        return None
    rank = len(perm)
    return rank if perm == (*range(rank - 2), rank - 1, rank - 2) else None


@pattern
def _matmul_of_transposes(p, x, y):  # type: ignore[no-untyped-def]
    return p.MatMul(p.Transpose(x, as_="first"), p.Transpose(y, as_="second"))


@rule(_matmul_of_transposes, benefit=2)
def transpose_product(b: Builder, m: Match) -> ir.Value | None:
    """The product of two transposed matrices is the transposed product."""
    rank = _swapped_rank(m.ctx, m.node("first"))
    if rank is None or _swapped_rank(m.ctx, m.node("second")) != rank:
        return None
    return b.Transpose(b.MatMul(m["y"], m["x"]), perm=(*range(rank - 2), rank - 1, rank - 2))


# --- Transposes that move nothing ----------------------------------------------------------------------------------
@rule(op("Transpose"))
def reshape_instead_of_transpose(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """A Transpose that moves only axes of size 1 is a Reshape, which copies nothing."""
    source, perm = m.root.inputs[0], permutation(m.ctx, m.root)
    shape = None if source is None else m.ctx.shapes.shape(source)
    if source is None or perm is None or shape is None:
        return None
    moved = [axis for axis in perm if shape[axis] != 1]
    if moved != sorted(moved):
        return None
    target = target_of(m.output, source, m)
    if target is None:
        return Refusal("the shape of '{}' has no constant target", m.output.name, culprit=m.root)
    return b.Reshape(source, b.constant(np.array(target, np.int64), "shape"))


CANCELLING = RuleSet(
    [
        drop_identity_transpose,
        merge_transposes,
        transpose_product,
    ]
)
RESHAPING = RuleSet([reshape_instead_of_transpose])


# --- Transposes with other ops between them ------------------------------------------------------------------------
class _Region:
    """The nodes of a graph that could run before the Transposes above them, and what that costs in Transposes.

    A value is in reach when a Transpose makes it, or a node of the region, which would then hand out its result before
    the Transpose that the result needs. Costs count, value by value, the Transposes that come less those that go.
    """

    def __init__(self, ctx: Context, graph: ir.Graph) -> None:
        self.ctx = ctx
        self.perms: dict[ir.Value, Permutation] = {}
        self.moves: dict[ir.Node, tuple[Permutation, Move]] = {}
        for node in graph:
            self._visit(node)
        self.inside = set(self.moves)

    def _visit(self, node: ir.Node) -> None:
        perm = permutation(self.ctx, node)
        if perm is not None:
            self.perms[node.outputs[0]] = perm
            return
        perms = self.perms
        for perm in dict.fromkeys(perms[value] for value in node.inputs if value is not None and value in perms):
            found = None if is_identity(perm) else move(self.ctx, node, perm)
            if found is not None and all(_can_take(node.inputs[index]) for index in found.data):
                self.moves[node] = perm, found
                perms.update(zip(node.outputs, found.outputs, strict=True))
                return

    def cost(self, value: ir.Value) -> int:
        """How many Transposes more the value needs."""
        producer = value.producer()
        made_inside = producer in self.inside
        is_transpose = producer is not None and producer.op_type == "Transpose"
        perm = self.perms.get(value) if made_inside or is_transpose else None
        if perm is None and ir.constant(value) is not None:
            return 0
        lifts: set[Permutation] = set()
        outside, taken, cancelled = value.is_graph_output(), False, 0
        for user, index in value.uses():
            needs = self._needs(user, index)
            following = permutation(self.ctx, user) if made_inside and needs is None else None
            if needs is not None and needs == perm:
                taken = True
            elif needs is not None:
                lifts.add(needs)
            elif following is not None and perm is not None:
                cancelled += not is_identity(perm) and is_identity(compose(perm, following))
            else:
                outside = True
        if perm is None:
            return len(lifts)
        if is_transpose:
            return len(lifts) - (not outside and (taken or bool(lifts)))
        return len(lifts) + (outside and not is_identity(perm)) - cancelled

    def _needs(self, user: ir.Node, index: int) -> Permutation | None:
        """The Transpose that a user inside the region wants undone at its input."""
        if user not in self.inside:
            return None
        perm, found = self.moves[user]
        return perm if index in found.data else None

    def shrink(self) -> None:
        """Leave out nodes, from either end, as long as that costs nothing, and then all parts that do not pay."""
        due = set(self.inside)
        while due:
            for order in (reversed(self.moves), iter(self.moves)):
                for node in order:
                    if node in due:
                        due.discard(node)
                        if self._leave_out(node):
                            due.update(one for one in _around(_values([node])) if one in self.inside)
        met: set[ir.Node] = set()
        for part in self._parts():
            values = _values(part)
            # A Transpose that another part counts on to cancel stays where it is until it has met it: were all parts of a chain to
            # move at once, each would arrive where the next has just left, and a chain would cost the square of its length.
            above = {one for value in values if (one := value.producer()) is not None and one.op_type == "Transpose"}
            if above & met or sum(map(self.cost, values)) >= 0:
                self.inside.difference_update(part)
            else:
                met |= above
                met.update(user for value in values for user, _ in value.uses() if user.op_type == "Transpose")

    def _leave_out(self, node: ir.Node) -> bool:
        values = _values([node])
        before = sum(map(self.cost, values))
        self.inside.discard(node)
        if sum(map(self.cost, values)) <= before:
            return True
        self.inside.add(node)
        return False

    def _parts(self) -> list[list[ir.Node]]:
        """The nodes inside, grouped by the values that they share."""
        parts: list[list[ir.Node]] = []
        left = set(self.inside)
        seen: set[ir.Value] = set()
        for start in self.nodes():
            part = [start] if start in left else []
            left.difference_update(part)
            for node in part:
                values = [one for one in _values([node]) if one not in seen and ir.constant(one) is None]
                seen.update(values)
                joined = [one for one in _around(values) if one in left]
                left.difference_update(joined)
                part.extend(joined)
            if part:
                parts.append(part)
        return parts

    def nodes(self) -> list[ir.Node]:
        """The nodes that should move, in the order of the graph."""
        return [node for node in self.moves if node in self.inside]


def _values(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    return list(dict.fromkeys(value for node in nodes for value in (*node.inputs, *node.outputs) if value is not None))


def _around(values: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that make or use these values."""
    near = (one for value in values for one in (value.producer(), *(user for user, _ in value.uses())))
    return [one for one in dict.fromkeys(near) if one is not None]


def _can_take(value: ir.Value | None) -> bool:
    tensor = ir.constant(value)
    return value is not None and (tensor is None or tensor.nbytes <= MAX_CONSTANT_BYTES)


def _before_transpose(b: Builder, value: ir.Value | None, perm: Permutation) -> ir.Value:
    """What has to be transposed by `perm` to give `value`."""
    assert value is not None
    producer = value.producer()
    if producer is not None and permutation(b.ctx, producer) == perm:
        source = producer.inputs[0]
        assert source is not None
        return source
    back = inverse(perm)
    tensor = ir.constant(value)
    if tensor is None:
        return b.Transpose(value, perm=back)
    array = tensor.numpy()
    full = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(back)
    if array.ndim < len(perm):
        leading = next((axis for axis, dim in enumerate(full.shape) if dim != 1), len(perm))
        full = full.reshape(full.shape[leading:])
    return b.constant(np.ascontiguousarray(full), value.name or "transposed")


def move_before(node: ir.Node, perm: Permutation, found: Move, ctx: Context) -> bool:
    """Run a node before the Transposes of its inputs, and transpose its results instead."""
    b = Builder(ctx, node)
    inputs = [*node.inputs, *(None for _ in range(len(node.inputs), max(found.constants, default=-1) + 1))]
    for index in found.data:
        inputs[index] = _before_transpose(b, inputs[index], perm)
    for index, array in found.constants.items():
        inputs[index] = b.constant(array, "axes")
    results = b.copy_of(node, inputs, **found.attributes)
    replaced = {
        old: new if is_identity(after) else b.Transpose(new, perm=after)
        for old, new, after in zip(node.outputs, results, found.outputs, strict=True)
        if ir.use_count(old) or old.is_graph_output()
    }
    if not ctx.editor.apply(b.patch(SINK, replaced)):
        discard(b.nodes)
        return False
    ctx.editor.remove_unused([node])
    return True


def _sink(graph: ir.Graph, ctx: Context) -> int:
    """Move what pays. Returns the number of patches."""
    region = _Region(ctx, graph)
    region.shrink()
    applied = 0
    for node in region.nodes():
        if not move_before(node, *region.moves[node], ctx):
            break
        applied += 1
    return applied


@register_pass
class SinkTransposes(Pass):
    """Merge and cancel Transposes, and run the ops between them in the other layout when fewer Transposes are left.

    Ops that can run before a Transpose instead of behind it (element-wise ones, reductions, Softmax, Concat, Split,
    Slice, Pad, Squeeze, Gather, quantization) form regions; a region moves as a whole, and only if that removes more
    Transposes than it adds. Small constants beside the data are transposed here and now. The product of two
    transposed batches of matrices is transposed itself, and a Transpose that moves only axes of size 1 becomes a
    Reshape.

    Refused: ops with fixed axes (convolution, pooling, normalization over channels), inputs of lower rank that are not
    constant, large constants, axes that are not constant.
    """

    name = "sink_transposes"
    phase = "simplify"

    def rule_names(self) -> list[str]:
        return [*(rule.name for rule in CANCELLING), SINK, *(rule.name for rule in RESHAPING)]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for _ in range(MAX_ROUNDS):
            if not ctx.nodes_of([("", "Transpose")]):
                break
            patches += Driver(CANCELLING, ctx).run(ctx.nodes_of(CANCELLING.by_root))
            sunk = sum(_sink(graph, ctx) for graph in ctx.graphs())
            patches += sunk
            if not sunk:
                break
        patches += Driver(RESHAPING, ctx).run(ctx.nodes_of(RESHAPING.by_root))
        return PassResult(patches > 0, patches)
