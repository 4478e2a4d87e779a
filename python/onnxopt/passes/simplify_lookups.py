"""Rows looked up in constant tables: one-hot products are lookups, and what is computed of every row is computed once, of the table."""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxopt import ir
from onnxopt.ops.fused_elementwise import LOWERINGS
from onnxopt.passes.base import Context, PassResult, RulePass, register_pass
from onnxopt.rewrite.driver import Driver
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op, pattern
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, attribute, rule

INDEX_TYPES = frozenset({ir.DataType.INT32, ir.DataType.INT64})
CLIP_OPSET = 12
"""Since then Clip takes integers."""


def _table(value: ir.Value | None, ctx: Context) -> ir.TensorProtocol | None:
    """A constant matrix of floats, small enough for what is computed of it to be folded."""
    tensor = ir.constant(value)
    if tensor is None or not tensor.dtype.is_floating_point() or len(tensor.shape) != 2 or not tensor.size:
        return None
    return tensor if 2 * tensor.nbytes <= ctx.options.fold_budget_bytes else None


# --- one-hot products ----------------------------------------------------------------------------------------------
@pattern
def _one_hot_product(p, x, w):  # type: ignore[no-untyped-def]
    return p.MatMul(p.Cast(p.Equal(x, p.const("classes"))), p.const("w"))


@rule(_one_hot_product)
def look_up_one_hot(b: Builder, m: Match) -> ir.Value | Refusal:
    """The product of `index == [0, 1, 2, ...]` and a matrix takes one row of it, or none where the index is no class."""
    tensor, classes = _table(m["w"], m.ctx), ir.small_array(m["classes"])
    if tensor is None or m.ctx.opset < CLIP_OPSET:
        return Refusal("'{}' is no small table of floats", m["w"].name, culprit=m["w"])
    table = tensor.numpy()
    if not np.isfinite(table.astype(np.float32)).all():
        return Refusal("'{}' is not finite", m["w"].name, culprit=m["w"])
    count = table.shape[0]
    if classes is None or classes.size != count or classes.shape[-1:] != (count,):
        return Refusal("what it is compared with are not the rows' numbers", culprit=m["classes"])
    if not np.array_equal(classes.reshape(-1), np.arange(count)) or m.dtype("x") not in INDEX_TYPES:
        return Refusal("what it is compared with are not the rows' numbers", culprit=m["classes"])
    shape = m.ctx.shapes.shape(m["x"])
    if shape is None or not shape or shape[-1] != 1 or classes.ndim > len(shape):
        return Refusal("'{}' has several indices in its last axis", m["x"].name, culprit=m["x"])
    index = b.squeeze(m["x"], len(shape) - 1)
    bounds = [b.constant(classes.dtype.type(number), "bound") for number in (0, count - 1)]
    inside = b.Equal(b.Clip(index, *bounds), index)
    row = b.Where(inside, index, b.constant(classes.dtype.type(count), "no_row"))
    extended = np.concatenate([table, np.zeros((1, table.shape[1]), table.dtype)])
    return b.Gather(b.constant(extended, m["w"].name or "table"), row, axis=0)


COMPUTED = frozenset(LOWERINGS) - {"Cast"}
"""Element-wise ops, but for Cast, which may widen weights that are narrow on purpose."""

MAX_UNFOLDED = 64
"""Ops on a table between two foldings."""


# --- what is computed of looked-up rows ----------------------------------------------------------------------------
@dataclasses.dataclass(slots=True)
class _Region:
    """What an element-wise op is computed from: rows looked up by the same indices, other ops, and constants."""

    index: ir.Value | None = None
    gathers: dict[ir.Node, None] = dataclasses.field(default_factory=dict)
    nodes: dict[ir.Node, None] = dataclasses.field(default_factory=dict)
    visited: int = 0

    def is_closed(self, root: ir.Node) -> bool:
        """Whether nothing else reads what is looked up or computed on the way."""
        inside = {*self.gathers, *self.nodes}
        values = [node.outputs[0] for node in inside if node is not root]
        return not any(
            value.is_graph_output() or any(user not in inside for user, _ in value.uses()) for value in values
        )


def _collect(node: ir.Node, region: _Region, m: Match) -> bool:
    """Add a node and what it is computed from, in topological order. False where that is no region."""
    if node in region.nodes:
        return True
    region.visited += 1
    if region.visited > MAX_UNFOLDED:
        return False
    for value in node.inputs:
        gather = _gather_of(value, m.ctx)
        if gather is not None and region.index in (None, gather.inputs[1]):
            region.index = gather.inputs[1]
            region.gathers[gather] = None
            continue
        maker = None if value is None else value.producer()
        if value is None or (maker is None and ir.small_array(value) is None):
            return False
        if maker is None or maker.op_type == "Constant":
            continue
        if maker.op_type not in COMPUTED or maker.domain or not _collect(maker, region, m):
            return False
    region.nodes[node] = None
    return True


@rule(op(*sorted(COMPUTED)))
def compute_on_table(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """Element-wise ops on rows of tables, looked up by the same indices, and on constants that are the same for every row, make
    rows of another table."""
    region = _Region()
    if not _collect(m.root, region, m) or not region.gathers:
        return None
    if not region.is_closed(m.root):
        return Refusal("others read the rows as they are", culprit=m.root)
    kinds = {_rank_and_rows(gather, m.ctx) for gather in region.gathers}
    if len(kinds) > 1 or None in kinds:
        return Refusal("the tables differ in rank or rows", culprit=m.root)
    first = next(iter(region.gathers))
    made: dict[ir.Value, ir.Value] = {gather.outputs[0]: gather.inputs[0] for gather in region.gathers}  # type: ignore[misc]
    for node in region.nodes:
        for value in node.inputs:
            if value is None or value in made:
                continue
            row = _same_for_all_rows(b, m, value, first)
            if row is None:
                return Refusal("'{}' is not the same for all rows", value.name, culprit=value)
            made[value] = row
        (made[node.outputs[0]],) = b.copy_of(node, [made[value] for value in node.inputs if value is not None])
    return b.Gather(made[m.output], region.index, axis=0)


def _gather_of(value: ir.Value | None, ctx: Context) -> ir.Node | None:
    """The Gather of rows of a small table that makes a value; the table is constant, or made of constants by ops not folded yet."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Gather" or node.domain or attribute(node, "axis", 0) != 0:
        return None
    stack, looked_at = [node.inputs[0]], 0
    while stack:
        one = stack.pop()
        if ir.small_array(one) is not None or _table(one, ctx) is not None:
            continue
        looked_at += 1
        maker = None if one is None else one.producer()
        if maker is None or maker.op_type not in COMPUTED or maker.domain or looked_at > MAX_UNFOLDED:
            return None
        stack += maker.inputs
    return node


def _rank_and_rows(gather: ir.Node, ctx: Context) -> tuple[int, int] | None:
    table = gather.inputs[0]
    shape = None if table is None else ctx.shapes.static_shape(table)
    return (len(shape), shape[0]) if shape else None


def _same_for_all_rows(b: Builder, m: Match, value: ir.Value, gather: ir.Node) -> ir.Value | None:
    """A constant that broadcasts to the rows of a table as it does to rows looked up there."""
    array, rank, kind = ir.small_array(value), m.ctx.shapes.rank(gather.outputs[0]), _rank_and_rows(gather, m.ctx)
    if array is None or rank is None or kind is None or array.ndim > rank:
        return None
    # The last axis of numbers that are looked up one by one is that of the indices, and no part of a row.
    if array.size != 1 and (kind[0] < 2 or array.size != array.shape[-1]):
        return None
    # A dim that the lookup does not have must not appear, and one that it has must not go.
    return value if array.ndim <= 1 else b.constant(array.reshape(-1), value.name or "row")


@register_pass
class SimplifyLookups(RulePass):
    """Turn products with one-hot rows into Gather, and move element-wise ops from looked-up rows to the table.

    A comparison with all row numbers selects a row of the matrix, or none, which an added row of zeros stands for. Ops on a table are
    folded, so what was computed for every index is computed once for every row. Refused: tables that are large or not finite (zero
    times infinity is not zero), indices of other types, operands that differ from row to row, and rows that others read too.
    """

    name = "simplify_lookups"
    phase = "simplify"
    products = RuleSet([look_up_one_hot])
    computed = RuleSet([compute_on_table])
    rules = products + computed

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = Driver(self.products, ctx).run(model.graph)
        if ctx.nodes_of([("", "Gather")]):
            patches += Driver(self.computed, ctx).run(model.graph)
        return PassResult(patches > 0, patches)
