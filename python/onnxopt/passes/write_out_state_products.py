"""Products of a state with a vector of each step, as sums of element-wise products."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.loops import Loop, loops_of, varying_values
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder


@register_pass
class WriteOutStateProducts(Pass):
    """Inside of a Scan, write MatMul of what depends on the state with a column that changes from step to step as Mul and ReduceSum.

    Such a product does as little for each element as the step itself, of which it becomes a part. Refused: columns that stay the same, more than
    one column, shapes that are not known, and targets without kernels for steps.
    """

    name = "write_out_state_products"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not ctx.target.custom_ops:
            return PassResult(False)
        patches = 0
        for loop in loops_of(ctx):
            if loop.is_scan and loop.carries:
                patches += sum(_write_out(node, self.name, ctx) for node in _products(loop, ctx))
        return PassResult(patches > 0, patches)


def _products(loop: Loop, ctx: Context) -> list[ir.Node]:
    states = varying_values(loop.body, [carry.inside for carry in loop.carries])
    elements = varying_values(loop.body, [one.element for one in loop.scan_inputs])
    found = []
    for node in loop.body:
        if node.op_type != "MatMul" or node.domain:
            continue
        left, right = node.inputs
        if left in states and right in elements and right not in states and right is not None and left is not None:
            shapes = ctx.shapes.static_shape(left), ctx.shapes.static_shape(right)
            if all(shape is not None and len(shape) > 1 for shape in shapes) and shapes[1][-1] == 1:  # type: ignore[index]
                found.append(node)
    return found


def _write_out(node: ir.Node, rule: str, ctx: Context) -> bool:
    b = Builder(ctx, node)
    left, right = node.inputs
    assert right is not None
    ranks = [ctx.shapes.rank(value) or 0 for value in (left, right) if value is not None]
    rank = ranks[1]
    row = b.Transpose(right, perm=[*range(rank - 2), rank - 1, rank - 2])
    total = b.unsqueeze(b.sum(b.op("Mul", [left, row])[0], max(ranks) - 1), max(ranks) - 1)
    return ctx.editor.apply(b.patch(rule, {node.outputs[0]: total}), unused=[node])
