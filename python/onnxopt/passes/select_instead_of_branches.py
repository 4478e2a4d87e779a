"""Ifs over few small element-wise nodes become Where, so that one kernel computes them with what is around them."""

from __future__ import annotations

import math

from onnxopt import ir
from onnxopt.ir.elementwise import ELEMENTWISE
from onnxopt.loops import loops_of
from onnxopt.loops.dependences import SAFE_OPS, can_fail
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.passes.merge_branches import branches
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal

SELECTED_TYPES = (ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64)
"""Types of which every runtime has Where."""

WHERE_OPSET = 9

SHORT_CIRCUIT_NODES = 3
"""Nodes of branches up to which conditions that exporters write as Ifs (`a and b`) are computed whole: an If takes longer."""

COMPUTED = (SAFE_OPS & ELEMENTWISE | {"CastLike"}) - {"Identity"}
"""Element-wise ops that cannot fail, and that compute something."""

LOOP_NODES = 32
"""Nodes of the branches of an If in a loop up to which both are computed: the loop may then run without a graph around each step."""

SHARED_NODES = 2
"""Nodes beyond a small region's least that it takes for the work of the branch not taken to be paid by what is fused."""


@register_pass
class SelectInsteadOfBranches(Pass):
    """Compute both branches of an If and select by Where, or bools by And and Or.

    Only where it pays: the branches hold next to nothing and give scalar bools, as those of `a and b` do. Or the condition is a scalar, the branches hold few element-wise nodes over small tensors, and with the element-wise
    nodes around the If they make a region that one kernel computes; the runtime's If alone is as fast as its Where. In a loop, any few nodes
    over small tensors are selected, since no kernel takes a step with an If. Refused: ops that may fail, results of shapes that are not known or that differ, and Ifs inside of which there are subgraphs.
    """

    name = "select_instead_of_branches"
    phase = "simplify"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        if ctx.opset < WHERE_OPSET or not ctx.target.runs_phase("fuse"):
            return PassResult(False)
        bodies = {loop.body for loop in loops_of(ctx)}
        for node in reversed(ctx.nodes_of([("", "If")])):
            if node.graph is None:
                continue
            refusal = _refusal(node, ctx, in_loop=node.graph in bodies)
            if refusal is not None:
                ctx.log.refused(self.name, node, refusal, 1)
            else:
                patches += self._select(node, ctx)
        return PassResult(patches > 0, patches)

    def _select(self, node: ir.Node, ctx: Context) -> bool:
        builder = Builder(ctx, node)
        selected: list[list[ir.Value]] = []
        for branch in branches(node):
            stands_for: dict[ir.Value, ir.Value] = {}
            for inner in branch:
                inputs = [None if value is None else stands_for.get(value, value) for value in inner.inputs]
                if inner.op_type == "Identity" and not inner.domain and inputs[0] is not None:
                    stands_for[inner.outputs[0]] = inputs[0]
                    continue
                stands_for.update(zip(inner.outputs, builder.copy_of(inner, inputs), strict=True))
            selected.append([stands_for.get(value, value) for value in branch.outputs])
        types = [ctx.shapes.dtype(value) for value in branches(node)[0].outputs]
        results = [
            _selected_bool(builder, node.inputs[0], *pair)
            if dtype is ir.DataType.BOOL
            else builder.Where(node.inputs[0], *pair)
            for dtype, *pair in zip(types, *selected, strict=True)
        ]
        return ctx.editor.apply(builder.patch(self.name, dict(zip(node.outputs, results, strict=True))), unused=[node])


def _selected_bool(b: Builder, condition: ir.Value | None, then: ir.Value, otherwise: ir.Value) -> ir.Value:
    if ir.scalar(otherwise) is False:
        return b.And(condition, then)
    if ir.scalar(then) is True:
        return b.Or(condition, otherwise)
    return b.Or(b.And(condition, then), b.And(b.Not(condition), otherwise))


def _is_short_circuit(node: ir.Node, inside: list[ir.Node], ctx: Context) -> bool:
    """Whether the branches give scalar bools of a few nodes."""
    pairs = list(zip(*(branch.outputs for branch in branches(node)), strict=True))
    scalars = all(
        ctx.shapes.dtype(one) is ir.DataType.BOOL and ctx.shapes.shape(one) == () for pair in pairs for one in pair
    )
    return scalars and len(inside) <= SHORT_CIRCUIT_NODES


def _refusal(node: ir.Node, ctx: Context, *, in_loop: bool) -> Refusal | None:
    condition = node.inputs[0]
    if condition is None or ctx.shapes.shape(condition) != () or ir.constant(condition) is not None:
        return Refusal("its condition is not known to be a scalar of run time")
    inside = [inner for branch in branches(node) for inner in branch]
    for inner in inside:
        if inner.domain or inner.op_type not in COMPUTED | {"Identity"}:
            if not in_loop:
                return Refusal("{} in a branch is not element-wise", inner.op_type)
            if can_fail(inner, ctx):
                return Refusal("{} in a branch may fail", inner.op_type)
        if any(not _is_small(value, ctx) for value in (*inner.inputs, *inner.outputs) if value is not None):
            return Refusal("a tensor of a branch is large or of unknown shape")
    for pair in zip(*(branch.outputs for branch in branches(node)), strict=True):
        types = {ctx.shapes.dtype(value) for value in pair}
        if len(types) != 1 or not types <= {*SELECTED_TYPES, ir.DataType.BOOL}:
            return Refusal("Where is not there for its results' types")
        if ctx.shapes.shape(pair[0]) != ctx.shapes.shape(pair[1]) or not all(_is_small(one, ctx) for one in pair):
            return Refusal("its results may differ in shape")
    if _is_short_circuit(node, inside, ctx) or (in_loop and len(inside) <= LOOP_NODES):
        return None
    around = _neighbours(node)
    nodes = sum(inner.op_type != "Identity" for inner in inside) + len(node.outputs) + around
    if not around or nodes < ctx.target.costs.small_region_nodes + SHARED_NODES:
        return Refusal("{} nodes are too few for one kernel to pay", nodes)
    if len(inside) > 2 * ctx.target.costs.small_region_nodes:
        return Refusal("its branches have {} nodes", len(inside))
    return None


def _is_small(value: ir.Value, ctx: Context) -> bool:
    shape = ctx.shapes.static_shape(value)
    return shape is not None and math.prod(shape) <= ctx.target.costs.small_region_elements


def _neighbours(node: ir.Node) -> int:
    """How many element-wise nodes are next to an If in its graph."""
    producers = [value.producer() for branch in branches(node) for value in ir.captures(branch)]
    users = [user for value in node.outputs for user, _ in value.uses()]
    found = {one for one in [*producers, *users] if one is not None and one.graph is node.graph and not one.domain}
    return sum(one.op_type in COMPUTED for one in found)
