"""Which products with constant matrices become FusedGemm, and how."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import halves, nodes, sizes
from onnxopt.ops import fused_gemm as op
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.rules import Match, Refusal, attribute, rule

MIN_DEPTH, MIN_COLUMNS = 8, 8
"""The least size of a matrix: below, a panel of 16 columns is mostly zeros."""


@pattern
def product(p, x, w):  # type: ignore[no-untyped-def]
    found = p.MatMul(x, p.const("w"), as_="product")
    return [p.Add(found, p.const("bias")), found, p.Gemm(x, p.const("w"), p.optional("bias"), as_="product")]


def is_product_of_rows(m: Match) -> bool | Refusal:
    """Whether a product has a constant matrix, which other products may read too, and enough rows."""
    shape, node = m.ctx.shapes.static_shape(m["w"]), m.node("product")
    if not halves.are_multiplied(m.ctx, m.dtype("x")) or m.dtype("w") is not m.dtype("x"):
        return Refusal("the kernel does not multiply {}", m.dtype("x"), culprit=node)
    if shape is None or len(shape) != 2 or m.rank("x") in (None, 0, 1):
        return Refusal("it is no product of rows with a matrix", culprit=node)
    if not is_plain(node):
        return Refusal("its left operand is transposed, or it is scaled", culprit=node)
    return _is_worthwhile(m, node, shape)


def is_plain(node: ir.Node) -> bool:
    """Whether a product does not transpose its left operand and does not scale."""
    return not attribute(node, "transA", 0) and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0


def _is_worthwhile(m: Match, node: ir.Node, shape: tuple[int, ...]) -> bool | Refusal:
    if not m.ctx.runs_once(node):
        return Refusal("it is in a loop's body, where rows are few", culprit=node)
    depth, columns = reversed(shape) if is_transposed(node) else shape
    if depth < MIN_DEPTH or columns < MIN_COLUMNS:
        return Refusal("a matrix of {} is too narrow", shape, culprit=node)
    if ir.use_count(m["w"]) > 1 and not _is_read_by_products(m["w"], m.ctx):
        return Refusal("others use the weights '{}' as they are", m["w"].name, culprit=m["w"])
    count = sizes.elements(m["x"], m.ctx)
    if count is not None and count * columns < m.ctx.target.costs.product_work:
        return Refusal("{} rows are too few", count // depth, culprit=node)
    return not awaits_bias(m, columns)


def _is_read_by_products(weights: ir.Value, ctx: Context) -> bool:
    """Whether only products that no loop repeats read a matrix, so that it goes once they have it in another form."""
    users = all(
        node.op_type in ("MatMul", "Gemm") and not node.domain and index == 1 and ctx.runs_once(node)
        for node, index in weights.uses()
    )
    return users and not weights.is_graph_output()


def awaits_bias(m: Match, columns: int) -> bool:
    """Whether the match is a product alone whose bias the next node adds: that node's turn comes after it, and takes both."""
    uses = list(m.output.uses())
    if m.root.op_type != "MatMul" or len(uses) != 1 or m.output.is_graph_output():
        return False
    user, position = uses[0]
    if user.op_type != "Add" or user.domain:
        return False
    bias = user.inputs[1 - position]
    return bias is not None and ir.constant(bias) is not None and m.ctx.shapes.static_shape(bias) == (columns,)


def is_transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(attribute(node, "transB", 0))


@rule(product, where=is_product_of_rows)
def fuse_gemm(b: Builder, m: Match) -> ir.Value | Refusal:
    """A product with a constant matrix reads packed weights and adds its bias on the way."""
    node = m.node("product")
    shape = m.ctx.shapes.static_shape(m["w"])
    tensor = ir.constant(m["w"])
    assert shape is not None and tensor is not None
    transposed = is_transposed(node)
    depth, columns = reversed(shape) if transposed else shape
    added, bias = split_bias(m, columns)
    name = m["w"].name or "weights"
    form = "packed, transposed" if transposed else "packed"
    inputs = [m["x"], m.ctx.derived(m["w"], form, lambda: ir.packed(tensor, name, transposed=transposed))]
    if bias is not None:
        inputs.append(bias)
    result = make_node(b, m, op.Variety(depth, columns, biased=bias is not None), inputs)
    return result if added is None else b.Add(result, added)


def make_node(b: Builder, m: Match, variety: op.Variety, inputs: list[ir.Value]) -> ir.Value:
    """The result of a FusedGemm in the place of a match's product."""
    attributes = {"columns": variety.columns, "block": variety.block, "biased": 1 if variety.biased else None}
    dtype = m.ctx.shapes.dtype(m.output)
    return nodes.make_node(b, op.SPEC, variety, inputs, attributes, m.output, dtype, m.node("product").name)


def split_bias(m: Match, columns: int) -> tuple[ir.Value | None, ir.Value | None]:
    """What is added to a product: a whole tensor, or a vector of its columns."""
    bias = m.get("bias")
    if bias is None or m.ctx.shapes.static_shape(bias) == (columns,):
        return None, bias
    return bias, None
