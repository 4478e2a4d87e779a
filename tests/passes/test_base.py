"""What passes share: names, constants, the budget of patches, the registry, and what every pass promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxopt
from helpers import model, op_list, run_passes
from onnxopt import ir, passes
from onnxopt.errors import OptionError, PassError
from onnxopt.passes.base import REGISTRY, SHARED_CONSTANT_BYTES, Budget, Context, Pass, PassResult, register_pass
from onnxopt.pipeline import PHASES, PassManager
from onnxopt.runtime.target import Target

passes.load_all()
HERE = Path(__file__).parent
FUSIONS = HERE.parent / "fusions"
TESTED_ELSEWHERE = {
    "fuse_elementwise": FUSIONS / "test_fused_elementwise.py",
    **dict.fromkeys(("fuse_norms", "fuse_prologues", "fuse_softmax"), FUSIONS / "test_fused_norm.py"),
    **dict.fromkeys(("fuse_qconv_sums", "fuse_requantization"), HERE / "test_fuse_qconvs.py"),
}
"""Passes whose tests are those of the ops that they make."""

OWN = sorted(name for name, one in REGISTRY.items() if one.__module__.startswith("onnxopt.passes."))


def context(proto: onnx.ModelProto) -> Context:
    return Context(ir.load(proto), target=Target.named("generic"))


def simple() -> onnx.ModelProto:
    return model("g (float[3] x) => (y) { a = Neg(x)\n y = Abs(a) }")


# --- every pass ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OWN)
def test_every_pass_has_tests(name: str) -> None:
    assert TESTED_ELSEWHERE.get(name, HERE / f"test_{name}.py").exists()


@pytest.mark.parametrize("name", OWN)
def test_every_pass_says_what_it_does_and_is_in_the_pipeline(name: str) -> None:
    one = REGISTRY[name]
    assert one.summary().endswith((".", ":", ","))
    assert name in PHASES[one.phase] or any(name in names for names in PHASES.values())
    assert one().rule_names()


@pytest.mark.parametrize("target", ["generic", "cpu"])
@pytest.mark.parametrize("name", OWN)
def test_a_model_with_nothing_to_do_is_left_alone(name: str, target: str) -> None:
    before = model("g (float[N,3] x) => (float[M,3] y) { y = Sin(x) }")
    after, report = run_passes(before, name, target=target)
    assert op_list(after) == ["Sin"]
    assert not report.records[0].modified


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    "text",
    [
        "g (float[3] x) => (float[3] x) { }",
        "g () => (float[2] w) <float[2] w = {1, 2}> { }",
        "g (float[0] x) => (float[0] y) { y = Neg(x) }",
        "g (seq(float[3]) x) => (seq(float[3]) y) { y = Identity(x) }",
        "g (string[3] x) => (string[3] y) { y = Identity(x) }",
    ],
    ids=["no node", "no input", "no element", "sequence", "strings"],
)
def test_odd_models(name: str, text: str) -> None:
    before = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    loaded = ir.load(before)
    PassManager("generic", [name], strict=True).run(loaded)
    after = ir.to_proto(loaded)
    assert [one.name for one in after.graph.output] == [one.name for one in before.graph.output]


# --- names ---------------------------------------------------------------------------------------------------------
def test_names_are_new_in_every_graph() -> None:
    branches = "then_branch = t () => (float[3] p) { b = Neg(x) p = Abs(b) }, else_branch = e () => (float[3] q) { q = Exp(x) }"
    names = context(model(f"g (float[3] x, bool f) => (y) {{ y = If(f) <{branches}> }}")).names
    taken = {"x", "f", "y", "b", "p", "q"}
    made = [names.value(stem) for stem in ("x", "b", "b", "p", "new", "new")]
    assert len(set(made)) == len(made)
    assert not taken & set(made)


def test_names_do_not_grow() -> None:
    names = context(simple()).names
    first = names.value("a")
    assert names.value(first).count("~") == 1


# --- constants -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (np.ones(3, np.float32), np.ones(3, np.float32), True),
        (np.array([np.nan]), np.array([np.nan]), True),
        (np.zeros(1), -np.zeros(1), False),
        (np.ones(3, np.float32), np.ones((1, 3), np.float32), False),
        (np.ones(3, np.float32), np.ones(3, np.int32), False),
        (np.zeros(SHARED_CONSTANT_BYTES // 4 + 1, np.float32), np.zeros(SHARED_CONSTANT_BYTES // 4 + 1, np.float32), False),
    ],
    ids=["equal", "NaN", "signs of zero", "rank", "type", "large"],
)  # fmt: skip
def test_small_equal_constants_are_shared(first: np.ndarray, second: np.ndarray, shared: bool) -> None:
    ctx = context(simple())
    assert (ctx.constant(first, "c") is ctx.constant(second, "c")) is shared


def test_a_shared_constant_that_was_removed_is_made_anew() -> None:
    ctx = context(simple())
    first = ctx.constant(np.ones(3), "c")
    del ctx.model.graph.initializers[first.name or ""]
    second = ctx.constant(np.ones(3), "c")
    assert second.is_initializer()


def test_transposed_arrays_keep_their_elements() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    value = context(simple()).constant(array, "c")
    np.testing.assert_array_equal(ir.small_array(value), array)


# --- the budget ----------------------------------------------------------------------------------------------------
def test_budget() -> None:
    budget = Budget(1)
    assert (budget.take(), budget.take(), budget.used) == (True, False, 1)
    budget.give_back()
    assert budget.take()
    assert all(Budget().take() for _ in range(3))


@pytest.mark.parametrize("name", OWN)
def test_a_budget_of_nothing_changes_no_value(name: str) -> None:
    body = """n = Not(f)
        c = Constant<value_float=1.0>()
        a = Mul(x, c)
        b = Transpose(a)
        d = Transpose(b)
        s = Shape(d)
        r = Reshape(d, s)
        e = Exp(r)
        h = Exp(r)
        k = Add(e, h)
        y = If(n) <then_branch = t () => (float[2,3] p) { p = Neg(k) }, else_branch = u () => (float[2,3] q) { q = Abs(k) }>"""
    before = model(f"g (float[2,3] x, bool f) => (y) {{ {body} }}")
    loaded = ir.load(before)
    report = PassManager("generic", [name], stop_after=0, strict=True).run(loaded)
    assert not report.patches
    assert {"Mul", "Transpose", "Exp", "Add", "If"} <= set(op_list(ir.to_proto(loaded)))


# --- the registry --------------------------------------------------------------------------------------------------
@pytest.fixture
def failing() -> Iterator[str]:
    @register_pass
    class Failing(Pass):
        """Fails."""

        name = "test_failing"
        phase = "simplify"

        def run(self, model: ir.Model, ctx: Context) -> PassResult:
            raise ValueError("no luck")

    yield Failing.name
    del REGISTRY[Failing.name]


def test_two_passes_of_one_name_are_an_error(failing: str) -> None:
    with pytest.raises(OptionError, match=f"A pass named '{failing}' is registered already"):
        register_pass(REGISTRY[failing])


def test_a_pass_that_fails_is_named_with_those_before_it(failing: str) -> None:
    with pytest.raises(PassError, match=rf"{failing} \(number 2; passes before it: eliminate_noops\).*no luck"):
        onnxopt.optimize(simple(), passes=["eliminate_noops", failing])


def test_unknown_passes_are_an_error_that_lists_all() -> None:
    with pytest.raises(OptionError, match=r"no pass named 'nothing'.*eliminate_noops"):
        onnxopt.optimize(simple(), passes=["nothing"])


def test_inner_values_get_names_that_no_graph_around_them_has() -> None:
    text = (
        "y = Loop (n, , x) <body = g1 (int64 i, bool k, float[3] s) => (bool k2, float[3] s2) "
        "{ k2 = Identity(k) q = Abs(s) s2 = Add(q, s) }> q = Abs(y)"
    )
    loaded = ir.load(model(f"g (float[3] x, int64 n) => (float[3] q) {{ {text} }}"))
    Context(loaded, target=Target.named("generic"))
    loop, outer = loaded.graph
    inner = [value.name for node in loop.attributes["body"].as_graph() for value in node.outputs]
    assert outer.outputs[0].name == "q"
    assert "q" not in inner
    assert len(set(inner)) == 3
