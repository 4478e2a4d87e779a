"""The only code that edits the graph: what it checks, what it keeps, and that a patch that does not fit leaves no trace."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest

import helpers
from onnxopt import ir
from onnxopt.errors import PatchError
from onnxopt.passes.base import Context
from onnxopt.rewrite.editor import removable
from onnxopt.rewrite.patch import Builder, Patch
from rewriting import context, node_of, op_types, text, value

CHAIN = "g (float[N,3] x) => (float[N,3] y) { a = Abs(x) b = Neg(a) y = Exp(b) }"


def replacement(ctx: Context, op_type: str, build: Callable[[Builder, ir.Value], ir.Value]) -> Patch:
    """A patch that replaces the only node of a type by what `build` makes of its input."""
    anchor = node_of(ctx, op_type)
    builder = Builder(ctx, anchor)
    assert anchor.inputs[0] is not None
    return builder.patch("tested_rule", {anchor.outputs[0]: build(builder, anchor.inputs[0])})


# --- patches that fit ----------------------------------------------------------------------------------------------
def test_a_patch_is_applied_counted_and_told() -> None:
    ctx = context(CHAIN)
    assert ctx.editor.apply(replacement(ctx, "Neg", lambda b, x: b.Sin(b.Cos(x))))
    assert op_types(ctx) == ["Abs", "Cos", "Sin", "Neg", "Exp"]
    assert node_of(ctx, "Exp").inputs[0] is node_of(ctx, "Sin").outputs[0]
    (told,) = ctx.log.patches
    assert (told.number, told.rule, told.node, told.op_type) == (1, "tested_rule", "b", "Neg")
    ctx.editor.remove_unused([node_of(ctx, "Neg")])
    assert op_types(ctx) == ["Abs", "Cos", "Sin", "Exp"]


def test_shapes_of_new_values_are_known() -> None:
    ctx = context(CHAIN)
    ctx.editor.apply(replacement(ctx, "Neg", lambda b, x: b.Sin(x)))
    made = node_of(ctx, "Sin").outputs[0]
    assert ctx.shapes.shape(made) == ctx.shapes.shape(value(ctx, "x"))
    assert ctx.shapes.dtype(made) is ir.DataType.FLOAT


def test_what_was_known_of_the_old_value_is_learned() -> None:
    ctx = context("g (float x) => (y) { a = Abs(x) y = Exp(a) }")
    old = node_of(ctx, "Abs").outputs[0]
    ctx.shapes.set(old, ir.DataType.FLOAT, (7,))
    anchor = node_of(ctx, "Abs")
    unknown = ir.Node("somewhere", "Op", anchor.inputs)
    ctx.editor.apply(Patch("rule", anchor, [unknown], {old: unknown.outputs[0]}))
    assert ctx.shapes.shape(unknown.outputs[0]) == (7,)


def test_more_that_becomes_known_reaches_the_users() -> None:
    ctx = context(
        helpers.model("g (float[N] x, int64[1] s) => (y) { r = Reshape(x, s) y = Exp(r) }", c=np.array([4], np.int64))
    )
    user = node_of(ctx, "Exp")
    assert ctx.shapes.static_shape(user.outputs[0]) is None
    ctx.editor.apply(replacement(ctx, "Reshape", lambda b, x: b.Reshape(x, value(ctx, "c"))))
    assert ctx.shapes.static_shape(user.outputs[0]) == (4,)


# --- patches that do not fit ---------------------------------------------------------------------------------------
BAD = {
    "other type": (lambda b, x: b.Cast(x, to=int(onnx.TensorProto.DOUBLE)), r"'b' of type FLOAT by a value of type DOUBLE"),
    "other rank": (lambda b, x: b.unsqueeze(x, 0), r"'b' of shape \(N, 3\) by a value of shape \(1, N, 3\)"),
    "other size": (lambda b, x: b.Concat(x, x, axis=1), r"'b' of shape \(N, 3\) by a value of shape \(N, 6\)"),
    "other symbolic size": (lambda b, x: b.Concat(x, x, axis=0), r"'b' of shape \(N, 3\) by a value of shape \(2\*N, 3\)"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_patch_that_does_not_fit_changes_nothing(bad: str) -> None:
    build, sentence = BAD[bad]
    ctx = context(CHAIN, strict=False)
    before = text(ctx)
    uses = ir.use_count(value(ctx, "a"))
    assert not ctx.editor.apply(replacement(ctx, "Neg", build))
    assert op_types(ctx) == ["Abs", "Neg", "Exp"]
    assert ir.use_count(value(ctx, "a")) == uses
    ctx.model.graph.initializers.clear()  # axes that the patch would have used
    assert text(ctx) == before
    assert ctx.budget.used == 0 and not ctx.log.patches
    (defect,) = ctx.log.defects
    assert isinstance(defect, PatchError)
    assert re.fullmatch(rf"Rule tested_rule at Neg node 'b': it replaces {sentence}\.", str(defect))


def test_a_patch_that_does_not_fit_is_raised_in_strict_runs() -> None:
    ctx = context(CHAIN)
    with pytest.raises(PatchError, match="Rule tested_rule at Neg node 'b'"):
        ctx.editor.apply(replacement(ctx, "Neg", BAD["other rank"][0]))


def test_a_patch_that_does_not_fit_brings_no_function() -> None:
    ctx = context(CHAIN, strict=False)
    patch = replacement(ctx, "Neg", BAD["other type"][0])
    body = ir.Graph([], [], nodes=[], opset_imports={"": 17})
    patch.functions.append(ir.Function("local", "F", "", graph=body, attributes=[]))
    assert not ctx.editor.apply(patch)
    assert not ctx.model.functions


def test_nothing_is_applied_after_the_budget() -> None:
    ctx = context(CHAIN, stop_after=1)
    assert ctx.editor.apply(replacement(ctx, "Neg", lambda b, x: b.Sin(x)))
    before = text(ctx)
    assert not ctx.editor.apply(replacement(ctx, "Exp", lambda b, x: b.Cos(x)))
    assert text(ctx) == before and ctx.budget.used == 1


# --- outputs keep their names --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ("a", ["Abs", "Neg"]),
        ("x", ["Abs", "Identity", "Neg"]),
        ("c", ["Abs", "Identity", "Neg"]),
    ],
    ids=["a value takes the name", "an input needs an Identity", "a constant needs an Identity"],
)
def test_an_output_that_is_replaced_keeps_its_name(new: str, expected: list[str]) -> None:
    ctx = context(helpers.model("g (float[3] x) => (float[3] y) { a = Abs(x) y = Neg(a) }", c=np.zeros(3, np.float32)))
    ctx.editor.apply(Patch("rule", node_of(ctx, "Neg"), [], {value(ctx, "y"): value(ctx, new)}))
    assert [one.name for one in ctx.model.graph.outputs] == ["y"]
    assert op_types(ctx) == expected


def test_an_output_that_is_replaced_keeps_its_notes() -> None:
    proto = helpers.model("g (float[3] x) => (float[3] y) { a = Abs(x) y = Neg(a) }")
    proto.graph.output[0].doc_string = "what it is"
    proto.graph.output[0].metadata_props.add(key="unit", value="m")
    annotation = proto.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="x")
    ctx = context(proto)
    neg = node_of(ctx, "Neg")
    ctx.editor.apply(Patch("rule", neg, [], {value(ctx, "y"): value(ctx, "a")}), unused=[neg])
    after = ir.to_proto(ctx.model)
    assert after.graph.output[0] == proto.graph.output[0]
    assert list(after.graph.quantization_annotation) == [annotation]


def test_one_value_that_replaces_two_outputs() -> None:
    ctx = context("g (float[3] x) => (float[3] y, float[3] z) { a = Abs(x) y = Neg(a) z = Exp(a) }")
    for op_type, name in (("Neg", "y"), ("Exp", "z")):
        anchor = node_of(ctx, op_type)
        ctx.editor.apply(
            Patch("rule", anchor, [], {anchor.outputs[0]: node_of(ctx, "Abs").outputs[0]}), unused=[anchor]
        )
        assert name in [one.name for one in ctx.model.graph.outputs]
    proto = ir.to_proto(ctx.model)
    onnx.checker.check_model(proto)
    assert [one.name for one in proto.graph.output] == ["y", "z"]
    x = np.array([1, -2, 0], np.float32)
    np.testing.assert_array_equal(helpers.evaluate(proto, {"x": x}), [np.abs(x)] * 2)


def test_an_identity_that_names_an_output_is_not_replaced_by_another() -> None:
    ctx = context("g (float[3] x) => (float[3] y) { y = Identity(x) }")
    anchor = node_of(ctx, "Identity")
    assert not ctx.editor.apply(Patch("rule", anchor, [], {anchor.outputs[0]: value(ctx, "x")}))
    assert ctx.budget.used == 0


# --- what goes with a node -----------------------------------------------------------------------------------------
def test_nodes_that_a_patch_leaves_unused_go_with_it() -> None:
    ctx = context(CHAIN)
    patch = replacement(ctx, "Exp", lambda b, x: b.Cos(node_of(ctx, "Abs").outputs[0]))
    assert ctx.editor.apply(patch, unused=[patch.anchor, node_of(ctx, "Abs")])
    assert op_types(ctx) == ["Abs", "Cos"]


def test_a_patch_that_is_not_applied_removes_nothing() -> None:
    ctx = context(CHAIN, stop_after=0)
    patch = replacement(ctx, "Exp", lambda b, x: b.Cos(x))
    assert not ctx.editor.apply(patch, unused=[patch.anchor])
    assert op_types(ctx) == ["Abs", "Neg", "Exp"]


def test_unused_nodes_go_with_what_only_they_used() -> None:
    ctx = context("g (float[3] x) => (y) { y = Abs(x) a = Neg(y) b = Exp(a) c = Sin(b) }")
    touched = ctx.editor.remove_unused([node_of(ctx, "Sin")])
    assert op_types(ctx) == ["Abs"]
    assert [node.op_type for node in touched] == ["Abs"]


def test_unused_nodes_release_what_their_subgraphs_used() -> None:
    branches = "then_branch = t () => (float[3] p) { p = Neg(a) }, else_branch = e () => (float[3] q) { q = Exp(x) }"
    ctx = context(f"g (float[3] x, bool f) => (y) {{ a = Abs(x) y = Sin(x) z = If(f) <{branches}> }}")
    ctx.editor.remove_unused([node_of(ctx, "If")])
    assert op_types(ctx) == ["Sin"]


@pytest.mark.parametrize(
    ("domain", "goes"), [("", True), ("com.microsoft", True), ("ai.onnxopt", True), ("own", False)]
)
def test_unused_nodes_of_unknown_domains_stay(domain: str, goes: bool) -> None:
    assert removable(ir.Node(domain, "Op", [])) is goes


def test_nodes_with_one_used_output_stay() -> None:
    ctx = context("g (float[2,3] x) => (y) { a, b = Split<axis=0>(x) y = Neg(b) }")
    assert not removable(node_of(ctx, "Split"))


# --- wrapping and inlining -----------------------------------------------------------------------------------------
def test_wrap_leaves_outputs_and_the_wrapping_nodes_alone() -> None:
    ctx = context("g (float[3] x) => (y, z) { y = Abs(x) z = Neg(y) }")
    wrapped = value(ctx, "y")
    node = ir.Node("", "Sin", [wrapped])
    assert ctx.editor.wrap("rule", wrapped, [node], node.outputs[0])
    assert op_types(ctx) == ["Abs", "Sin", "Neg"]
    assert wrapped.is_graph_output() and node.inputs[0] is wrapped
    assert node_of(ctx, "Neg").inputs[0] is node.outputs[0]


def test_an_inlined_graph_gets_new_names_and_its_constants_move() -> None:
    branches = """then_branch = t () => (float[3] p) <float[3] w = {1, 2, 3}> { b = Add(x, w) p = Neg(b) },
        else_branch = e () => (float[3] q) { q = Exp(x) }"""
    ctx = context(f"g (float[3] x, bool f) => (float[3] y) {{ b = Abs(x) r = If(f) <{branches}> y = Mul(r, b) }}")
    anchor = node_of(ctx, "If")
    body = anchor.attributes["then_branch"].as_graph()
    assert ctx.editor.inline_graph("rule", anchor, body, [], {anchor.outputs[0]: body.outputs[0]})
    assert op_types(ctx) == ["Abs", "Add", "Neg", "Mul"]
    names = [one.name for node in ctx.model.graph for one in node.outputs]
    assert len(set(names)) == len(names)
    x = np.array([1, -2, 0], np.float32)
    proto = ir.to_proto(ctx.model)
    (y,) = helpers.evaluate(proto, {"x": x, "f": np.array(True)})
    np.testing.assert_array_equal(y, -np.add(x, [1, 2, 3]) * np.abs(x))


def test_nothing_is_inlined_after_the_budget() -> None:
    branches = "then_branch = t () => (float[3] p) { p = Neg(x) }, else_branch = e () => (float[3] q) { q = Exp(x) }"
    ctx = context(f"g (float[3] x, bool f) => (y) {{ y = If(f) <{branches}> }}", stop_after=0)
    anchor = node_of(ctx, "If")
    body = anchor.attributes["then_branch"].as_graph()
    before = text(ctx)
    assert not ctx.editor.inline_graph("rule", anchor, body, [], {anchor.outputs[0]: body.outputs[0]})
    assert text(ctx) == before
