"""The driver: a fixed point, in linear work, that can be stopped anywhere and explained."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from onnxopt import ir
from onnxopt.errors import PatchError
from onnxopt.passes.base import Context, Options
from onnxopt.rewrite.driver import PATCHES_PER_NODE, Driver, discard, walk
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import PatternBuilder, Term, op, pattern
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, rule
from rewriting import context, node_of, op_types, text, value


@pattern
def _twice_negated(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
    return p.Neg(p.Neg(x))


@rule(_twice_negated)
def drop_double_negation(b: Builder, m: Match) -> ir.Value:
    return m["x"]


@pattern
def _twice_negated_shared(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
    return p.Neg(p.Neg(x, shared=True))


@rule(_twice_negated_shared)
def drop_double_negation_of_shared(b: Builder, m: Match) -> ir.Value:
    return m["x"]


@pattern
def _exp_of_tan(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
    return p.Exp(p.Tan(x))


@rule(_exp_of_tan)
def exp_of_tan_is_zero(b: Builder, m: Match) -> ir.Value:
    return b.constant(np.zeros(3, np.float32))


@rule(op("Abs"))
def write_abs_as_maximum(b: Builder, m: Match) -> ir.Value:
    return b.Max(m.root.inputs[0], b.Neg(m.root.inputs[0]))


@rule(op("Sin"))
def sine_becomes_cosine(b: Builder, m: Match) -> ir.Value:
    return b.Cos(m.root.inputs[0])


@rule(op("Cos"))
def cosine_becomes_sine(b: Builder, m: Match) -> ir.Value:
    return b.Sin(m.root.inputs[0])


@rule(op("Exp"))
def exp_as_float64(b: Builder, m: Match) -> ir.Value:
    """Wrong: the type changes."""
    return b.Cast(m.root.inputs[0], to=int(onnx.TensorProto.DOUBLE))


@rule(op("Tan"), where=lambda m: Refusal("{} is not to be touched", m.output.name, culprit=m.root))
def refused(b: Builder, m: Match) -> ir.Value:
    raise AssertionError("a rule whose condition fails must not build")


@rule(op("Tanh"))
def refused_late(b: Builder, m: Match) -> Refusal:
    b.Neg(m.root.inputs[0])
    return Refusal("found out late", culprit=m.root)


@rule(op("Split"))
def second_of_split(b: Builder, m: Match) -> list[ir.Value | None]:
    return [None, b.Relu(m.root.outputs[1])]


def chain(op_type: str, length: int) -> onnx.ModelProto:
    """`length` nodes of one type in a row, called n0, n1, ..."""
    names = ["x", *(f"v{index}" for index in range(1, length)), "y"]
    nodes = [onnx.helper.make_node(op_type, [names[k]], [names[k + 1]], name=f"n{k}") for k in range(length)]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]) for name in "xy")
    graph = onnx.helper.make_graph(nodes, "g", [x], [y])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def run(ctx: Context, *rules: object) -> int:
    return Driver(RuleSet(rules), ctx).run(ctx.model.graph)  # type: ignore[arg-type]


# --- to a fixed point ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("length", "left"), [(1, 1), (2, 0), (7, 1), (8, 0)])
def test_rules_run_until_nothing_matches(length: int, left: int) -> None:
    ctx = context(chain("Neg", length))
    assert run(ctx, drop_double_negation) == length // 2
    assert op_types(ctx) == (["Neg"] if left else ["Identity"])
    assert run(ctx, drop_double_negation) == 0


def test_what_a_patch_makes_is_looked_at_again() -> None:
    ctx = context("g (float[3] x) => (y) { a = Neg(x) y = Abs(a) }")
    assert run(ctx, write_abs_as_maximum, drop_double_negation_of_shared) == 2
    assert op_types(ctx) == ["Neg", "Max"]


def test_a_user_that_is_left_alone_with_a_value_is_looked_at_again() -> None:
    """While Tan used the inner Neg as well, the pair could not go."""
    ctx = context("g (float[3] x) => (y, z) { a = Neg(x) y = Neg(a) b = Tan(a) z = Exp(b) }")
    assert run(ctx, drop_double_negation, exp_of_tan_is_zero) == 2
    assert "Neg" not in op_types(ctx)


def test_subgraphs_are_rewritten_too() -> None:
    branches = """then_branch = t () => (float[3] p) { a = Neg(x) b = Neg(a) p = Exp(b) },
        else_branch = e () => (float[3] q) { q = Exp(x) }"""
    ctx = context(f"g (float[3] x, bool f) => (y) {{ y = If(f) <{branches}> }}")
    assert run(ctx, drop_double_negation) == 1
    assert [node.op_type for node in walk(ctx.model.graph)] == ["If", "Exp", "Exp"]


def test_only_the_given_nodes_are_looked_at() -> None:
    ctx = context("g (float[3] x) => (y, z) { a = Neg(x) y = Neg(a) b = Neg(x) z = Neg(b) }")
    node = value(ctx, "z").producer()
    assert node is not None
    assert Driver(RuleSet([drop_double_negation]), ctx).run([node]) == 1
    assert op_types(ctx).count("Neg") == 2


def test_outputs_that_need_no_replacement_are_none() -> None:
    ctx = context("g (float[2,3] x) => (float[1,3] y, float[1,3] z) { a, b = Split<axis=0>(x) y = Neg(a) z = Exp(b) }")
    driver = Driver(RuleSet([dataclasses.replace(second_of_split, where=lambda m: not m.ctx.log.patches)]), ctx)
    assert driver.run(ctx.model.graph) == 1
    assert node_of(ctx, "Neg").inputs[0] is node_of(ctx, "Split").outputs[0]


def test_rules_that_undo_each_other_end_with_a_warning() -> None:
    ctx = context("g (float[3] x) => (y) { y = Sin(x) }")
    assert run(ctx, sine_becomes_cosine, cosine_becomes_sine) == PATCHES_PER_NODE * 64
    (warning,) = ctx.log.warnings
    assert "['cosine_becomes_sine', 'sine_becomes_cosine'] do not settle" in warning


# --- in linear work ------------------------------------------------------------------------------------------------
def test_the_work_is_linear_in_the_number_of_nodes() -> None:
    attempts = []
    for length in (200, 2000):
        ctx = context(chain("Neg", length))
        run(ctx, drop_double_negation)
        attempts.append(sum(stats.attempts for stats in ctx.log.rules.values()))
    assert attempts[1] <= 10 * attempts[0] + 10


def test_a_rule_costs_nothing_where_its_root_is_absent() -> None:
    ctx = context(chain("Neg", 50))
    run(ctx, refused, refused_late, drop_double_negation)
    assert {name for _, name in ctx.log.rules} == {"drop_double_negation"}


# --- stopped anywhere ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("patches", [0, 1, 2, 3])
def test_a_run_stops_after_any_number_of_patches(patches: int) -> None:
    ctx = context(chain("Neg", 6), stop_after=patches)
    assert run(ctx, drop_double_negation) == patches
    assert [one.number for one in ctx.log.patches] == list(range(1, patches + 1))
    assert op_types(ctx).count("Neg") == 6 - 2 * patches
    onnx.checker.check_model(ir.to_proto(ctx.model))


def test_shorter_runs_are_beginnings_of_longer_ones() -> None:
    told = []
    for patches in (2, 3):
        ctx = context(chain("Neg", 8), stop_after=patches)
        run(ctx, drop_double_negation)
        told.append(ctx.log.patches)
    assert told[1][:2] == told[0]


@pytest.mark.parametrize("name", ["n1", "n3"])
def test_a_rule_is_kept_from_a_node(name: str) -> None:
    options = Options(not_at={"drop_double_negation": frozenset({name})})
    ctx = context("g (float[3] x) => (y, z) { a = Neg(x) y = Neg(a) b = Neg(y) z = Neg(b) }", options=options)
    for index, node in enumerate(ctx.model.graph):
        node.name = f"n{index}"
    ctx.model.graph.outputs.pop(0)
    kept = Driver(RuleSet([drop_double_negation]), ctx)
    kept.run([node for node in ctx.model.graph if node.name in ("n1", "n3")])
    assert name not in [one.node for one in ctx.log.patches]
    assert len(ctx.log.patches) == 1


# --- refused -------------------------------------------------------------------------------------------------------
def test_a_rule_that_proposes_a_wrong_patch_is_left_out() -> None:
    ctx = context("g (float[3] x) => (y, z) { y = Exp(x) a = Neg(x) z = Neg(a) }", strict=False)
    assert run(ctx, exp_as_float64, drop_double_negation) == 1
    assert "Exp" in op_types(ctx) and "Cast" not in op_types(ctx)
    (defect,) = ctx.log.defects
    assert isinstance(defect, PatchError) and "exp_as_float64" in str(defect)
    assert sorted(op_types(ctx)) == ["Exp", "Identity"] and ir.use_count(value(ctx, "x")) == 2


@pytest.mark.parametrize(
    ("op_type", "sentence"), [("Tan", "y is not to be touched"), ("Tanh", "found out late")], ids=["where", "build"]
)
def test_refusals_are_told_only_to_who_asks(op_type: str, sentence: str) -> None:
    for explain in (False, True):
        ctx = context(f"g (float[3] x) => (y) {{ y = {op_type}(x) }}", explain=explain)
        before = text(ctx)
        assert run(ctx, refused, refused_late) == 0
        assert text(ctx) == before and ir.use_count(value(ctx, "x")) == 1
        assert [str(miss.refusal) for miss in ctx.log.near_misses] == ([sentence] if explain else [])


def test_near_misses_name_rule_node_and_culprit() -> None:
    ctx = context("g (float[3] x) => (y, a) { a = Neg(x) y = Neg(a) }", explain=True)
    assert run(ctx, drop_double_negation) == 0
    told = {(miss.rule, ir.node_name(miss.node), str(miss.refusal)) for miss in ctx.log.near_misses}
    assert told == {("drop_double_negation", "y", "a is an output of the graph")}


# --- helpers -------------------------------------------------------------------------------------------------------
def test_discarded_nodes_use_nothing() -> None:
    ctx = context("g (float[3] x) => (y) { y = Neg(x) }")
    discard([ir.Node("", "Add", [value(ctx, "x"), value(ctx, "x")])])
    assert ir.use_count(value(ctx, "x")) == 1


def test_walk_visits_each_node_before_its_subgraphs() -> None:
    inner = "then_branch = a () => (float[3] s) { s = Sin(x) }, else_branch = b () => (float[3] c) { c = Cos(x) }"
    branches = f"""then_branch = t () => (float[3] p) {{ n = Neg(x) p = If(f) <{inner}> }},
        else_branch = e () => (float[3] q) {{ q = Exp(x) }}"""
    ctx = context(f"g (float[3] x, bool f) => (y) {{ r = If(f) <{branches}> y = Abs(r) }}")
    assert [node.op_type for node in walk(ctx.model.graph)] == ["If", "Neg", "If", "Sin", "Cos", "Exp", "Abs"]


def test_walk_does_not_recurse() -> None:
    graph = context("g (float[3] x) => (y) { y = Neg(x) }").model.graph
    for _ in range(3000):
        graph = ir.Graph([], [], nodes=[ir.Node("own", "Nest", [], [ir.make_attribute("body", graph)])])
    assert [node.op_type for node in walk(graph)][-1] == "Neg"
