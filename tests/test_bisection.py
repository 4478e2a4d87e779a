"""A rewrite that changes results is found and named, among any number of right ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest

import helpers
import onnxopt
from onnxopt import ir
from onnxopt.bisection import first_bad_patch
from onnxopt.errors import VerificationError
from onnxopt.passes.base import Context, Pass, PassResult, RulePass
from onnxopt.pipeline import PassManager
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.rules import Match, RuleSet, rule

LENGTH = 20


def chain(*negs: int) -> onnx.ModelProto:
    """Nodes n0, n1, ... in a row: Abs, and Neg at the given places. `Rewriting` replaces Abs rightly and Neg wrongly."""
    values = ["x", *(f"v{index}" for index in range(1, LENGTH)), "y"]
    nodes = [
        onnx.helper.make_node("Neg" if k in negs else "Abs", [values[k]], [values[k + 1]], name=f"n{k}")
        for k in range(LENGTH)
    ]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N"]) for name in "xy")
    graph = onnx.helper.make_graph(nodes, "g", [x], [y])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pattern
def _absolute(p, x):  # type: ignore[no-untyped-def]
    return p.Abs(x)


@pattern
def _negative(p, x):  # type: ignore[no-untyped-def]
    return p.Neg(x)


@rule(_absolute)
def square_root_of_square(b: Builder, m: Match) -> ir.Value:
    return b.Sqrt(b.Mul(m["x"], m["x"]))


@rule(_negative)
def confuse_with_exp(b: Builder, m: Match) -> ir.Value:
    return b.Exp(m["x"])


class Rewriting(RulePass):
    """One right and one wrong rule."""

    name, phase = "rewriting", "simplify"
    rules = RuleSet([square_root_of_square, confuse_with_exp])


class Vandal(Pass):
    """Changes the model without a patch."""

    name, phase = "vandal", "simplify"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        node = next(iter(model.graph))
        modified = node.op_type != "Exp"
        node.op_type = "Exp"
        return PassResult(modified)


def judge(original: onnx.ModelProto, calls: list[int]) -> Callable[[ir.Model], bool]:
    """Whether a model gives the original's outputs; counts how often it is asked."""
    feeds = {"x": np.linspace(-3, 3, 11, dtype=np.float32)}
    (truth,) = helpers.evaluate(original, feeds)

    def is_right(model: ir.Model) -> bool:
        calls.append(1)
        return np.allclose(helpers.evaluate(ir.to_proto(model), feeds)[0], truth)

    return is_right


@pytest.mark.parametrize("place", [0, 7, LENGTH - 1])
def test_the_wrong_rewrite_is_found_wherever_it_is(place: int) -> None:
    proto, calls = chain(place), []
    manager = PassManager("generic", [Rewriting()])
    found = first_bad_patch(lambda: ir.load_copy(proto), manager, judge(proto, calls))
    assert found is not None
    assert (found.pass_name, found.rule, found.op_type, found.node) == (
        "rewriting",
        "confuse_with_exp",
        "Neg",
        f"n{place}",
    )
    assert found.number == place + 1


def test_the_search_halves() -> None:
    proto, calls = chain(LENGTH - 1), []
    first_bad_patch(lambda: ir.load_copy(proto), PassManager("generic", [Rewriting()]), judge(proto, calls))
    assert len(calls) <= 2 + math.ceil(math.log2(LENGTH))


def test_of_several_wrong_rewrites_one_after_which_results_are_wrong_is_named() -> None:
    proto = chain(3, 9)
    found = first_bad_patch(lambda: ir.load_copy(proto), PassManager("generic", [Rewriting()]), judge(proto, []))
    assert found is not None and found.rule == "confuse_with_exp" and found.node in ("n3", "n9")


def test_nobody_is_named_when_the_model_is_wrong_without_any_rewrite() -> None:
    proto = chain(0)
    assert (
        first_bad_patch(lambda: ir.load_copy(proto), PassManager("generic", [Rewriting()]), lambda model: False) is None
    )


def test_a_run_with_a_budget_is_a_prefix_of_the_whole_run() -> None:
    manager = PassManager("generic", [Rewriting()])
    whole = manager.run(ir.load_copy(chain(4))).patches
    for budget in (0, 1, 5, LENGTH, None):
        assert manager.with_budget(budget).run(ir.load_copy(chain(4))).patches == whole[:budget]


def arithmetic() -> onnx.ModelProto:
    text = "a = Identity (x) b = Mul (a, two) c = Mul (b, two) d = Tanh (c) e = Exp (d) y = Neg (e)"
    return helpers.model(f"g (float[N, 4096] x) => (float[N, 4096] y) {{ {text} }}", two=np.array(2, np.float32))


def equal_initializers() -> onnx.ModelProto:
    names = [f"w{index}" for index in range(6)]
    text = "v0 = Identity (x) " + " ".join(f"v{index + 1} = Max (v{index}, {name})" for index, name in enumerate(names))
    weights = {name: np.arange(8, dtype=np.float32) for name in names}
    return helpers.model(f"g (float[N, 8] x) => (float[N, 8] y) {{ {text} y = Tanh (v6) }}", **weights)


def branches_with_initializers() -> onnx.ModelProto:
    text = """g (bool c, float[8] x) => (float[8] y) {
        i = Identity (x)
        y = If (c) < then_branch = t () => (float[8] p) { p = Add (i, k) }, else_branch = e () => (float[8] q) { q = Mul (i, k) } >
    }"""
    proto = helpers.model(text)
    for attribute in proto.graph.node[1].attribute:
        attribute.g.initializer.append(onnx.numpy_helper.from_array(np.arange(8, dtype=np.float32), "k"))
    return proto


@pytest.mark.parametrize("make", [arithmetic, equal_initializers, branches_with_initializers])
def test_every_rewrite_of_the_pipeline_is_counted_and_can_be_left_out(make: Callable[[], onnx.ModelProto]) -> None:
    whole = PassManager("cpu").run(ir.load(make())).patches
    assert len(whole) > 2
    assert [patch.number for patch in whole] == list(range(1, len(whole) + 1))
    for budget in range(len(whole) + 1):
        assert PassManager("cpu", stop_after=budget).run(ir.load(make())).patches == whole[:budget]


@pytest.mark.parametrize("named", [True, False], ids=["named node", "node without a name"])
def test_verification_names_rewrite_pass_rule_and_node(named: bool) -> None:
    proto = chain(7)
    if not named:
        for node in proto.graph.node:
            node.name = ""
    with pytest.raises(VerificationError) as caught:
        onnxopt.optimize(proto, target="generic", passes=[Rewriting()], verify=True)
    where = "n7" if named else "v8"
    blame = f"The first wrong rewrite is number 8: rule confuse_with_exp of pass rewriting at Neg node '{where}'."
    assert str(caught.value).endswith(blame)
    assert "output 'y' differs by" in str(caught.value)


def test_verification_names_the_pass_of_several() -> None:
    passes = ["eliminate_noops", Rewriting(), "eliminate_dead_code"]
    with pytest.raises(VerificationError, match="rule confuse_with_exp of pass rewriting at Neg node 'n2'"):
        onnxopt.optimize(chain(2), target="generic", passes=passes, verify=True)


def test_changes_without_a_patch_are_no_rewrite_to_blame() -> None:
    with pytest.raises(VerificationError, match="No single rewrite is to blame"):
        onnxopt.optimize(chain(2), target="generic", passes=[Vandal()], verify=True)


def test_nothing_is_written_when_verification_fails(tmp_path) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "out.onnx"
    with pytest.raises(VerificationError):
        onnxopt.optimize(chain(2), output, target="generic", passes=[Rewriting()], verify=True)
    assert not list(tmp_path.iterdir())
