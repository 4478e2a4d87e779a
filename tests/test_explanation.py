"""Why did it not fuse? Near misses name the rule, the node and the reason."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import helpers
from onnxopt import ir
from onnxopt.errors import ModelError, OptionError
from onnxopt.explanation import Explanation, Reason, explain
from onnxopt.pipeline import PassManager
from onnxopt.rewrite.rules import Refusal


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


CONV = "g (float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y{more}) {{ c = Conv (x, w) y = Mul (c, s) }}"
NORM = """g (float[N, S, 8] x) => (float[N, S, 8] y) {
    m = ReduceMean <axes = [-1]> (x)
    d = Sub (x, m)
    q = Pow (d, two)
    v = ReduceMean <axes = [1]> (q)
    e = Add (v, eps)
    s = Sqrt (e)
    n = Div (d, s)
    k = Mul (n, gain)
    y = Add (k, bias)
}"""
HARD_SWISH = """g (float[N, 3] x) => (float[N, 3] y) {
    a = Add (x, three)
    c = Clip (a, zero, six)
    m = Mul (x, c)
    y = Div (m, six)
}"""


def scalars(**numbers: float) -> dict[str, np.ndarray]:
    return {name: np.array(number, np.float32) for name, number in numbers.items()}


MISSES = {
    "value that is an output too": (
        helpers.model(CONV.format(more=", float[1, 4, 6, 6] c"), w=weights(4, 3, 3, 3), s=weights(4, 1, 1)),
        ("fold_affine_after_convolution", "Mul", "y", "c is an output of the graph", "c"),
    ),
    "constant along the wrong axis": (
        helpers.model(CONV.format(more=""), w=weights(4, 3, 3, 3), s=weights(6)),
        ("fold_affine_after_convolution", "Mul", "y", "'s' is no constant along axis 1 only", "s"),
    ),
    "bias that is no constant": (
        helpers.model(
            "g (float[N, S, 8] x, float[N, S, 4] b) => (float[N, S, 4] y) { c = MatMul (x, w) y = Add (c, b) }", w=weights(8, 4)
        ),
        ("fold_affine_after_product", "Add", "y", "expected a constant", "b"),
    ),
    "norm over different axes": (
        helpers.model(NORM, gain=weights(8), bias=weights(8), **scalars(two=2, eps=1e-5)),
        ("recognize_layer_norm", "Div", "n", "the means are not over the same trailing axes", ""),
    ),
    "opset without the op": (
        helpers.model(HARD_SWISH, opset=12, **scalars(three=3, zero=0, six=6)),
        ("recognize_hard_swish", "Mul", "Mul~1", "the model's opset is 12, the op needs 14", ""),
    ),
    "region too small": (
        helpers.model("g (float[2, 3] x) => (float[2, 3] y) { c = Tanh (x) y = Exp (c) }"),
        ("fuse_elementwise", "Tanh", "c", "2 nodes over shape [2, 3] gain nothing", "c"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISSES)
def test_near_misses_name_rule_node_and_reason(case: str) -> None:
    proto, (rule, op_type, node, reason, culprit) = MISSES[case]
    target = "cpu" if rule == "fuse_elementwise" else "generic"
    found = [one for one in explain(proto, target=target).near_misses if one.rule == rule]
    assert (op_type, node, reason) in {(one.op_type, one.node, one.reason) for one in found}, found
    assert not culprit or culprit in {one.culprit for one in found}


def test_nodes_are_called_by_their_names() -> None:
    proto, (rule, *_) = MISSES["bias that is no constant"]
    named = onnx.ModelProto.FromString(proto.SerializeToString())
    named.graph.node[1].name = "/layer/Add"
    assert [one.node for one in explain(named, rule=rule).near_misses] == ["/layer/Add"]


def test_equal_reasons_are_counted_together() -> None:
    body = " ".join(f"a{k} = Tanh (x{k}) y{k} = Exp (a{k})" for k in range(5))
    names = [", ".join(f"float[2, 3] {name}{k}" for k in range(5)) for name in "xy"]
    found = explain(helpers.model(f"g ({names[0]}) => ({names[1]}) {{ {body} }}"), rule="fuse_elementwise")
    assert [(one.count, one.node) for one in found.near_misses] == [(5, "a0")]


def test_most_frequent_reasons_come_first() -> None:
    counts = [one.count for one in explain(MISSES["norm over different axes"][0]).near_misses]
    assert counts == sorted(counts, reverse=True)


def test_nodes_that_another_rewrite_took_care_of_are_no_misses() -> None:
    ones = helpers.model(CONV.format(more=""), w=weights(4, 3, 3, 3), s=np.ones(6, np.float32))
    assert not explain(ones, rule="fold_affine_after_convolution").near_misses


def test_rules_that_applied_are_counted() -> None:
    proto = helpers.model("g (float[N] x) => (float[N] y) { a = Identity (x) b = Identity (a) y = Abs (b) }")
    (found,) = explain(proto, rule="drop_identity").rules
    assert (found.rule, found.pass_name, found.applied) == ("drop_identity", "eliminate_noops", 2)
    assert found.attempts >= found.applied


def test_only_the_rule_asked_for_is_told_of() -> None:
    found = explain(MISSES["norm over different axes"][0], rule="recognize_layer_norm")
    assert {one.rule for one in (*found.rules, *found.near_misses)} == {"recognize_layer_norm"}


def test_unknown_rules_are_refused_and_the_known_ones_named() -> None:
    with pytest.raises(OptionError, match=r"no rule named 'fuse_all'\. The rules are: .*drop_identity"):
        explain(MISSES["region too small"][0], rule="fuse_all")


def test_rules_of_custom_ops_are_unknown_to_the_generic_target() -> None:
    with pytest.raises(OptionError, match="no rule named 'fuse_elementwise'"):
        explain(MISSES["region too small"][0], rule="fuse_elementwise", target="generic")


def test_unreadable_models_are_refused() -> None:
    with pytest.raises(ModelError, match=r"/nowhere/model\.onnx"):
        explain("/nowhere/model.onnx")


def test_the_model_is_not_changed() -> None:
    loaded = ir.load(helpers.model("g (float[N] x) => (float[N] y) { a = Identity (x) y = Abs (a) }"))
    explain(loaded)
    assert [node.op_type for node in loaded.graph] == ["Identity", "Abs"]


def test_stated_dims_decide() -> None:
    proto = helpers.model("g (float[N, 64] x) => (float[N, 64] y) { c = Tanh (x) y = Exp (c) }")
    assert not explain(proto, rule="fuse_elementwise").near_misses
    assert explain(proto, rule="fuse_elementwise", dims={"N": 2}).near_misses


def test_runs_that_do_not_explain_keep_no_misses() -> None:
    report = PassManager("cpu").run(ir.load(MISSES["region too small"][0]))
    assert not report.near_misses


def test_explanation_is_json() -> None:
    found = explain(MISSES["region too small"][0])
    data = json.loads(json.dumps(found.to_json()))
    assert set(data) == {"rules", "near_misses"} == set(Explanation.__dataclass_fields__)
    assert set(data["near_misses"][0]) == set(Reason.__dataclass_fields__)


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        (("Mul", "Div"), "Mul or Div"),
        ((2, 3), "[2, 3]"),
        (None, "unknown"),
        ((), "[]"),
        (frozenset({"b", "a"}), "a or b"),
        (3, "3"),
    ],
)
def test_refusals_are_sentences_for_people(argument: object, text: str) -> None:
    assert str(Refusal("expected {}", argument)) == f"expected {text}"
