"""Rules as data: filed by root, told apart by name, and refusals that are sentences."""

from __future__ import annotations

import onnx
import pytest

from onnxopt import ir
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import PatternBuilder, Term, op, pattern
from onnxopt.rewrite.rules import Match, Refusal, Rule, RuleSet, attribute, rule
from rewriting import context, node_of


@rule(op("Abs"))
def drop_abs(b: Builder, m: Match) -> ir.Value | None:
    """Abs goes."""
    return m.root.inputs[0]


@pattern
def _exp_of_neg(p: PatternBuilder, x: Term):  # type: ignore[no-untyped-def]
    return p.Exp(p.Neg(x))


@rule(_exp_of_neg, benefit=2)
def reciprocal_of_exp(b: Builder, m: Match) -> ir.Value:
    return b.Reciprocal(b.Exp(m["x"]))


@rule(op("Exp", "Abs"), name="by_another_name")
def keep(b: Builder, m: Match) -> None:
    return None


def test_a_rule_is_named_by_its_build_function() -> None:
    assert drop_abs.name == "drop_abs"
    assert keep.name == "by_another_name"


def test_sets_are_filed_by_root_in_falling_benefit() -> None:
    rules = RuleSet([drop_abs, keep, reciprocal_of_exp])
    filed = {root: [one.name for one in found] for root, found in rules.by_root.items()}
    assert filed == {
        ("", "Exp"): ["reciprocal_of_exp", "by_another_name"],
        ("", "Abs"): ["drop_abs", "by_another_name"],
    }


def test_sets_are_joined() -> None:
    rules = RuleSet([drop_abs]) + RuleSet([keep])
    assert len(rules) == 2 and [one.name for one in rules] == ["drop_abs", "by_another_name"]


def test_two_rules_of_one_name_are_an_error() -> None:
    with pytest.raises(AssertionError, match="rule names must be unique"):
        RuleSet([drop_abs]) + RuleSet([drop_abs])


@pytest.mark.parametrize(
    ("body", "root", "names"),
    [
        ("n = Neg(x) y = Exp(n)", "Exp", ["reciprocal_of_exp", "by_another_name"]),
        ("n = Tan(x) y = Exp(n)", "Exp", ["by_another_name"]),
        ("y = Exp(x)", "Exp", ["by_another_name"]),
    ],
    ids=["operand fits", "operand of another op", "operand that no node makes"],
)
def test_candidates_are_told_by_op_types_alone(body: str, root: str, names: list[str]) -> None:
    ctx = context(f"g (float[2] x) => (y) {{ {body} }}")
    rules = RuleSet([drop_abs, keep, reciprocal_of_exp])
    assert [one.name for one, _ in rules.candidates(node_of(ctx, root))] == names


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (Refusal("it has {} outputs", 2), "it has 2 outputs"),
        (Refusal("expected {}, found {}", ("Add", "Sub"), "Mul"), "expected Add or Sub, found Mul"),
        (Refusal("expected {}", frozenset({"b", "a"})), "expected a or b"),
        (Refusal("the shape is {}", (2, 3)), "the shape is [2, 3]"),
        (Refusal("the shape is {}", ()), "the shape is []"),
        (Refusal("the axis is {}", None), "the axis is unknown"),
    ],
)
def test_refusals_are_sentences_and_falsy(refusal: Refusal, sentence: str) -> None:
    assert str(refusal) == sentence
    assert not refusal


def test_refusals_are_formatted_only_when_asked() -> None:
    class Silent:
        def __str__(self) -> str:
            raise AssertionError("nobody asked")

    Refusal("{}", Silent(), culprit=None)


def test_rules_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        drop_abs.benefit = 3  # type: ignore[misc]
    assert isinstance(drop_abs, Rule)


def test_attribute_with_default_and_as_a_function_refers_to_it() -> None:
    function = onnx.helper.make_function(
        "local",
        "F",
        ["x"],
        ["y"],
        [onnx.helper.make_node("Softmax", ["x"], ["y"])],
        [onnx.helper.make_opsetid("", 17)],
        attributes=["axis"],
    )
    reference = function.node[0].attribute.add(name="axis", ref_attr_name="axis", type=onnx.AttributeProto.INT)
    assert reference.ref_attr_name == "axis"
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    node = onnx.helper.make_node("F", ["x"], ["y"], domain="local", axis=0)
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("local", 1)]
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    loaded = ir.load(onnx.helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8))
    (inner,) = next(iter(loaded.functions.values()))
    (call,) = loaded.graph
    assert attribute(call, "axis", -1) == 0
    assert attribute(call, "other", -1) == -1
    assert attribute(inner, "axis", -1) is None
