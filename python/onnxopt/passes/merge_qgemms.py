"""Queries, keys and values that are products of the same rows become one QGemm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.fusions import fused_attention
from onnxopt.fusions.requantization import is_qgemm
from onnxopt.ops import qgemm as op
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import attribute

RULE = "merge_qgemms"


@register_pass
class MergeQGemms(Pass):
    """Merge QGemm nodes that quantize the same rows and make operands of one attention: rows are quantized once, and attention, which is
    fused next, reads its operands from columns of the result.

    Refused: results that others read too, epilogues, numbers of columns that do not fill panels.
    """

    name = "merge_qgemms"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if ctx.target.name != "cpu" or not any(_is_mergeable(node) for node in model.graph):
            return PassResult(False)
        merged = 0
        for node in [one for one in model.graph if one.op_type == "MatMul" and not one.domain]:
            for siblings in _operands_of(node, ctx):
                merged += self._merge(siblings, ctx)
        if merged:
            ir.sort_nodes(model.graph)
        return PassResult(merged > 0, merged)

    def _merge(self, siblings: Sequence[ir.Node], ctx: Context) -> int:
        ctx.log.attempted(RULE)
        if not ctx.editor.apply(_merged(siblings, ctx)):
            return 0
        ctx.editor.remove_unused(list(siblings))
        return 1

    def rule_names(self) -> list[str]:
        return [RULE]


def _is_mergeable(node: ir.Node) -> bool:
    if not is_qgemm(node) or not attribute(node, "by_row", 0) or {"epilogue", "output_dtype"} & node.attributes.keys():
        return False
    result = node.outputs[0]
    constants = all(ir.constant(value) is not None for value in node.inputs[1:])
    return constants and ir.use_count(result) == 1 and not result.is_graph_output()


def _operands_of(product: ir.Node, ctx: Context) -> list[list[ir.Node]]:
    """The QGemm nodes that make operands of the attention whose last product this is, those of the same rows together."""
    found = fused_attention.find(product, ctx)
    if not isinstance(found, fused_attention.Found):
        return []
    siblings: dict[tuple[object, ...], list[ir.Node]] = defaultdict(list)
    for value in dict.fromkeys(found.operands):
        node = value.producer()
        if node is not None and _is_mergeable(node) and attribute(node, "columns") % ir.PANEL == 0:
            siblings[node.inputs[0], attribute(node, "biased", 0)].append(node)
    return [nodes for nodes in siblings.values() if len(nodes) > 1]


def _merged(nodes: Sequence[ir.Node], ctx: Context) -> Patch:
    """One node, and a Split of its columns."""
    first = nodes[0]
    columns = [int(attribute(node, "columns")) for node in nodes]
    x = first.inputs[0]
    shape = None if x is None else ctx.shapes.shape(x)
    assert shape is not None and isinstance(shape[-1], int)
    builder = Builder(ctx, first)
    inputs = [x]
    for values in zip(*(node.inputs[1:] for node in nodes), strict=True):
        parts = [np.asarray(ir.constant(value).numpy()) for value in values]  # type: ignore[union-attr]
        inputs.append(builder.constant(np.concatenate(parts), values[0].name))  # type: ignore[union-attr]
    variety = op.Variety(shape[-1], sum(columns), by_row=True, biased=bool(attribute(first, "biased", 0)))
    overload = variety.overload(ctx.opset)
    builder.define(op.SPEC.domain, op.SPEC.name, overload, lambda: variety.body(ctx.opset))
    attributes = dict(first.attributes) | {"columns": sum(columns)}
    name = first.name or op.SPEC.name
    (whole,) = builder.op(op.SPEC.name, inputs, attributes, domain=op.SPEC.domain, overload=overload, name=name)
    ctx.shapes.set(whole, ir.DataType.FLOAT, (*shape[:-1], sum(columns)))
    sizes = builder.constant(np.array(columns, np.int64), "columns")
    parts_of = builder.op("Split", [whole, sizes], {"axis": -1}, outputs=len(nodes))
    replaced = dict(zip((node.outputs[0] for node in nodes), parts_of, strict=True))
    for before, after in replaced.items():
        ctx.shapes.set(after, ir.DataType.FLOAT, ctx.shapes.shape(before))
    return builder.patch(RULE, replaced)
