"""The pipeline: its phases, the manager that runs it, and `optimize` on every kind of model."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import helpers
import onnxopt
from onnxopt import ir, passes
from onnxopt.errors import ModelError, OnnxOptError, OptionError, PassError
from onnxopt.passes.base import REGISTRY, Context, Options, Pass, PassResult, RulePass, register_pass
from onnxopt.pipeline import (
    MAX_ROUNDS,
    MIN_FUSED_OPSET,
    PHASES,
    REPEATED,
    PassManager,
    Report,
    describe_passes,
    graphsurgeon_pass,
    optimize,
)
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op
from onnxopt.rewrite.rules import Match, RuleSet, rule
from onnxopt.runtime.target import TARGETS

GRAPH = (
    "g (float[N, 64] x) => (float[N, 64] y) { i = Identity (x) a = Tanh (i) b = Mul (a, x) c = Add (b, a) y = Exp (c) }"
)
FEEDS = {"x": np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)}


def model() -> onnx.ModelProto:
    return helpers.model(GRAPH)


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Passes that a test registers are gone after it."""
    passes.load_all()
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


class Recording(Pass):
    """Changes nothing a given number of times, and says that it did change something before that."""

    name, phase = "recording", "simplify"

    def __init__(self, changes: int = 0) -> None:
        self.runs, self.changes = 0, changes

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        self.runs += 1
        return PassResult(self.runs <= self.changes)


class Failing(Pass):
    """Raises what it was made with."""

    name, phase = "failing", "simplify"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        raise self.error


# --- phases ---
def test_passes_of_the_phases_exist() -> None:
    assert {name for names in PHASES.values() for name in names} <= set(REGISTRY)


def test_every_pass_is_in_a_phase() -> None:
    assert set(REGISTRY) <= {name for names in PHASES.values() for name in names}


@pytest.mark.parametrize("phase", PHASES)
def test_passes_are_once_in_a_phase(phase: str) -> None:
    assert len(set(PHASES[phase])) == len(PHASES[phase])


def test_phases_that_repeat_are_neighbours() -> None:
    order = list(PHASES)
    assert set(REPEATED) <= set(order)
    first = order.index(REPEATED[0])
    assert tuple(order[first : first + len(REPEATED)]) == REPEATED


def passes_of(target: str) -> list[str]:
    """The passes of the phases that a target runs, in order of their first run."""
    names = [name for phase, names in PHASES.items() for name in names if TARGETS[target].runs_phase(phase)]
    return list(dict.fromkeys(names))


@pytest.mark.parametrize("target", TARGETS)
def test_manager_runs_the_passes_of_the_phases_in_order(target: str) -> None:
    ran = [record.name for record in PassManager(target).run(ir.load(model())).records]
    assert list(dict.fromkeys(ran)) == passes_of(target)


def test_passes_are_described_in_the_order_of_the_pipeline() -> None:
    found = describe_passes()
    names = [one["name"] for one in found]
    expected = passes_of("cpu")
    assert names[: len(expected)] == expected
    assert sorted(names) == sorted(REGISTRY)
    for one in found:
        assert one["phase"] in PHASES and one["rules"]
        assert one["summary"].endswith(".") and one["summary"][0].isupper(), one


def test_rules_have_one_name_each() -> None:
    rules = [rule for one in describe_passes() for rule in one["rules"]]
    assert len(rules) == len(set(rules))
    assert PassManager("cpu").rule_names() <= set(rules)


# --- the manager ---
def test_a_list_of_passes_is_run_once_in_its_order() -> None:
    names = ["eliminate_dead_code", "eliminate_noops", "eliminate_dead_code"]
    report = PassManager("cpu", names).run(ir.load(model()))
    assert [record.name for record in report.records] == names
    assert {(record.phase, record.round) for record in report.records} == {("chosen", 1)}


def test_names_and_passes_may_be_mixed() -> None:
    own = Recording()
    report = PassManager("cpu", ["eliminate_noops", own]).run(ir.load(model()))
    assert [record.name for record in report.records] == ["eliminate_noops", "recording"] and own.runs == 1


@pytest.mark.parametrize("opset", [MIN_FUSED_OPSET - 1, MIN_FUSED_OPSET])
def test_opsets_whose_ops_do_not_broadcast_are_not_fused(opset: int) -> None:
    text = "g (float[N,3,8] x) => (float[N,3,8] y) { a = InstanceNormalization(x, s, b) t = Tanh(a) y = Sigmoid(t) }"
    ones = np.ones(3, np.float32)
    before = helpers.model(text, opset=opset, ir_version=4, s=ones, b=ones)
    after = optimize(before)
    assert any(node.domain for node in after.graph.node) is (opset >= MIN_FUSED_OPSET)
    helpers.assert_same(before, after, {"x": np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)})


def test_an_empty_list_changes_nothing() -> None:
    proto = model()
    optimized = optimize(proto, passes=[])
    assert [node.op_type for node in optimized.graph.node] == [node.op_type for node in proto.graph.node]


def with_in_pipeline(monkeypatch: pytest.MonkeyPatch, own: Pass) -> PassManager:
    """A manager whose only passes are `own` in the repeated phases and a clean-up after them."""
    monkeypatch.setattr(
        "onnxopt.pipeline.PHASES", {"fold": (own.name,), "simplify": (), "lower": ("eliminate_dead_code",)}
    )
    monkeypatch.setitem(REGISTRY, own.name, lambda: own)  # type: ignore[arg-type]
    return PassManager("generic")


@pytest.mark.parametrize("changes", [0, 1, 3])
def test_rounds_go_on_until_nothing_changes(changes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Recording(changes)
    report = with_in_pipeline(monkeypatch, own).run(ir.load(model()))
    assert own.runs == changes + 1
    assert [record.round for record in report.records] == [*range(1, changes + 2), 1]
    assert not report.warnings


def test_rounds_go_on_while_each_leaves_fewer_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers whose padding is computed, in floats, from the size of what the one before makes: each round folds another one."""
    layers = MAX_ROUNDS + 4
    text = "".join(
        f"""s{i} = Shape(x{i})  l{i} = Gather(s{i}, last)  f{i} = Cast<to = 1>(l{i})  d{i} = Div(f{i}, two)  c{i} = Ceil(d{i})
        m{i} = Mul(c{i}, two)  w{i} = Cast<to = 7>(m{i})  e{i} = Sub(w{i}, l{i})  n{i} = Concat<axis = 0>(none, e{i})
        p{i} = Pad(x{i}, n{i})  x{i + 1} = MaxPool<kernel_shape = [2], strides = [1]>(p{i})
        """
        for i in range(layers)
    )
    arrays = {"last": np.array([2]), "two": np.array([2], np.float32), "none": np.zeros(5, np.int64)}
    proto = helpers.model(f"g (float[1,1,64] x0) => (float[1,1,?] x{layers}) {{ {text} }}", **arrays)
    reports: list[Report] = []
    after = optimize(proto, target="generic", report=reports.append)
    assert not reports[0].warnings and {"Cast", "Ceil", "Shape"}.isdisjoint(helpers.ops(after))
    helpers.assert_same(proto, after, {"x0": np.random.default_rng(0).standard_normal((1, 1, 64)).astype(np.float32)})


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    ran: list[str] = []
    with pytest.raises(OptionError, match="does not exist"):
        optimize(model(), tmp_path / "missing" / "out.onnx", instruments=[lambda _, name, *rest: ran.append(name)])
    assert not ran


def test_a_pass_that_never_settles_is_stopped_and_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Recording(1000)
    report = with_in_pipeline(monkeypatch, own).run(ir.load(model()))
    assert own.runs == MAX_ROUNDS
    assert report.warnings == [f"The model still changed after {MAX_ROUNDS} rounds of fold, unroll, simplify."]


@pytest.mark.parametrize(
    "error",
    [
        ModelError("It broke."),
        ValueError("It broke."),
        KeyError("It broke."),
        AssertionError("It broke."),
        RuntimeError("It broke."),
    ],
)
def test_a_pass_that_fails_is_named_with_its_place(error: Exception) -> None:
    with pytest.raises(PassError) as caught:
        PassManager("cpu", ["eliminate_noops", Recording(), Failing(error)]).run(ir.load(model()))
    assert str(caught.value).startswith(
        "Pass failing (number 3; passes before it: eliminate_noops, recording) failed: "
    )
    assert "It broke." in str(caught.value) and caught.value.__cause__ is error


@rule(op("Tanh"))
def stumble(b: Builder, m: Match) -> ir.Value:
    b.Neg(b.Abs(m.root.inputs[0]))
    raise ValueError("It broke.")


class Stumbling(RulePass):
    """Fails in a rule that has built nodes."""

    name, phase, rules = "stumbling", "simplify", RuleSet([stumble])


def test_a_rule_that_fails_leaves_the_graph_as_it_was() -> None:
    loaded = ir.load(model())
    before = ir.to_proto(loaded).SerializeToString()
    with pytest.raises(PassError, match="It broke"):
        PassManager("cpu", [Stumbling()]).run(loaded)
    values = [*loaded.graph.inputs, *(node.outputs[0] for node in loaded.graph)]
    assert all(user.graph is loaded.graph for value in values for user, _ in value.uses())
    assert ir.to_proto(loaded).SerializeToString() == before


def test_the_first_pass_has_none_before_it() -> None:
    with pytest.raises(PassError, match=r"number 1; passes before it: none"):
        PassManager("cpu", [Failing(ValueError("x"))]).run(ir.load(model()))


@pytest.mark.parametrize("error", [OptionError("Not so."), onnxopt.RuntimeMissingError("Not there.")])
def test_errors_that_are_not_of_a_pass_stay_what_they_are(error: OnnxOptError) -> None:
    with pytest.raises(type(error)) as caught:
        PassManager("cpu", [Failing(error)]).run(ir.load(model()))
    assert caught.value is error


def test_interruptions_are_no_failures() -> None:
    with pytest.raises(KeyboardInterrupt):
        PassManager("cpu", [Failing(KeyboardInterrupt())]).run(ir.load(model()))


def test_strict_managers_check_the_graph_after_every_pass() -> None:
    class Breaking(Recording):
        """Lets a node read what is made after it."""

        name = "breaking"

        def run(self, model: ir.Model, ctx: Context) -> PassResult:
            first, *_, last = model.graph
            first.replace_input_with(0, last.outputs[0])
            return PassResult(True)

    with pytest.raises(PassError, match="Pass breaking"):
        PassManager("cpu", [Breaking()], strict=True).run(ir.load(model()))


def test_instruments_are_called_around_every_pass() -> None:
    calls: list[tuple[str, str, int]] = []

    def instrument(when: str, name: str, model: ir.Model, ctx: Context) -> None:
        calls.append((when, name, model.graph.num_nodes()))

    names = ["eliminate_noops", "eliminate_dead_code"]
    PassManager("cpu", names, instruments=[instrument]).run(ir.load(model()))
    assert calls == [
        ("before", "eliminate_noops", 5), ("after", "eliminate_noops", 4),
        ("before", "eliminate_dead_code", 4), ("after", "eliminate_dead_code", 4),
    ]  # fmt: skip


@pytest.mark.parametrize("budget", [0, 1, 2])
def test_no_more_patches_than_the_budget(budget: int) -> None:
    report = PassManager("cpu", stop_after=budget).run(ir.load(model()))
    assert [patch.number for patch in report.patches] == list(range(1, budget + 1))


def test_a_report_tells_what_was_done() -> None:
    loaded = ir.load(model())
    report = PassManager("cpu").run(loaded)
    assert (report.nodes_before, report.nodes_after) == (5, 1)
    assert report.ops_before == {"Add": 1, "Exp": 1, "Identity": 1, "Mul": 1, "Tanh": 1}
    assert report.ops_after == {"ai.onnxopt::FusedElementwise": 1}
    assert sum(record.patches for record in report.records) == len(report.patches)
    assert report.records[-1].nodes_after == report.nodes_after == ir.count_nodes(loaded)
    for record, following in zip(report.records, report.records[1:]):
        assert (record.nodes_after, record.bytes_after) == (following.nodes_before, following.bytes_before)
    for (pass_name, name), stats in report.rules.items():
        assert stats.applied == sum((one.pass_name, one.rule) == (pass_name, name) for one in report.patches)
    assert 0 <= sum(record.seconds for record in report.records) <= report.seconds


def test_records_tell_what_a_pass_did_to_the_weights() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { a = Add (x, w) y = Add (a, w) }"
    loaded = ir.load(helpers.model(text, w=np.ones(4, np.float32), unused=np.ones(100, np.float32)))
    (record,) = PassManager("generic", ["eliminate_dead_code"]).run(loaded).records
    assert (record.bytes_before, record.bytes_after) == (416, 16)


def test_a_second_run_changes_nothing() -> None:
    loaded = ir.load(model())
    PassManager("generic").run(loaded)
    report = PassManager("generic").run(loaded)
    assert not report.patches and not any(record.modified for record in report.records)


def test_a_second_run_fuses_the_same_again() -> None:
    once = optimize(model())
    twice = optimize(once)
    assert [node.attribute for node in twice.graph.node] == [node.attribute for node in once.graph.node]
    assert [len(function.node) for function in twice.functions] == [len(function.node) for function in once.functions]


# --- options ---
@pytest.mark.parametrize("names", [["no_such_pass"], ["fold_constants", "Fold_Constants"], [""]])
def test_unknown_passes_are_refused_and_the_known_ones_named(names: list[str]) -> None:
    with pytest.raises(OptionError, match=rf"no pass named '{names[-1]}'\. The passes are: .*fold_constants, .*"):
        optimize(model(), passes=names)


def test_passes_as_one_text_are_refused() -> None:
    with pytest.raises(OptionError, match="expected a list of names"):
        optimize(model(), passes="fold_constants")


@pytest.mark.parametrize("target", ["tpu", None, {"name": "cpu"}])
def test_what_is_no_target_is_refused(target: Any) -> None:
    with pytest.raises(OptionError, match=r"There is no target '.*'\. The targets are: cpu, cuda, generic"):
        optimize(model(), target=target)


@pytest.mark.parametrize("size", [-1, (5, 2), (-1, 2), "4", (1, 2, 3), (1, None), 1.5, 2**63])
def test_sizes_of_dims_that_are_none_are_refused(size: Any) -> None:
    with pytest.raises(OptionError, match=r"The dim 'N' is .*expected a size or"):
        optimize(model(), dims={"N": size})


def test_negative_budget_is_refused() -> None:
    with pytest.raises(OptionError, match="fold_budget_bytes is -1"):
        Options(fold_budget_bytes=-1)


def test_options_have_names_and_cannot_be_changed() -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        Options(no_such_option=True)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().fast_math = True  # type: ignore[misc]
    with pytest.raises(TypeError, match="no_such_option"):
        optimize(model(), no_such_option=True)  # type: ignore[call-arg]


def test_dims_that_are_not_there_are_warned_of() -> None:
    reports: list[Report] = []
    optimize(model(), dims={"N": 3, "batch": 1}, report=reports.append)
    assert reports[0].warnings == ["No dim is named 'batch'; the inputs' dims are: N."]


@pytest.mark.parametrize(
    ("dims", "shape"), [({"N": 3}, 3), ({"N": (2, 9)}, "N"), ({"N": np.int64(3)}, 3), ({"N": (np.int32(2), 9)}, "N")]
)
def test_stated_dims_are_fixed_or_bounded(dims: dict[str, Any], shape: int | str) -> None:
    dim = optimize(model(), dims=dims).graph.input[0].type.tensor_type.shape.dim[0]
    assert (dim.dim_value or dim.dim_param) == shape


@pytest.mark.parametrize("name", ["?", "?0", "None", "-1", "*", ""])
def test_dims_that_exporters_do_not_name_are_not_taken_to_be_equal(name: str) -> None:
    text = "s = Shape (x) a = Gather (s, zero) b = Gather (s, one) y = Equal (a, b)"
    proto = helpers.model(f"g (float[A, B] x) => (bool y) {{ {text} }}", zero=np.array(0), one=np.array(1))
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = name
    helpers.assert_same(
        proto, optimize(proto, target="generic"), [{"x": np.ones(shape, np.float32)} for shape in ((2, 3), (3, 3))]
    )
    assert [dim.dim_param for dim in optimize(proto).graph.input[0].type.tensor_type.shape.dim] == [name, name]


# --- kinds of models ---
KINDS: dict[str, tuple[Callable[[onnx.ModelProto], Any], type]] = {
    "proto": (lambda proto: proto, onnx.ModelProto),
    "onnx-ir": (ir.load, ir.Model),
    "graphsurgeon": (gs.import_onnx, gs.Graph),
}


def as_proto(optimized: Any) -> onnx.ModelProto:
    if isinstance(optimized, gs.Graph):
        return gs.export_onnx(optimized)
    return optimized if isinstance(optimized, onnx.ModelProto) else ir.to_proto(optimized)


@pytest.mark.parametrize("kind", KINDS)
def test_models_are_returned_as_the_kind_they_were(kind: str) -> None:
    convert, expected = KINDS[kind]
    optimized = optimize(convert(model()), target="generic")
    assert type(optimized) is expected
    helpers.assert_same(model(), as_proto(optimized), FEEDS)
    assert len(as_proto(optimized).graph.node) == 4


@pytest.mark.parametrize("as_text", [True, False])
def test_paths_give_a_proto_or_the_path_of_the_output(tmp_path: Path, as_text: bool) -> None:
    source, output = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model(), source)
    before = source.read_bytes()
    given = (str(source), str(output)) if as_text else (source, output)
    assert isinstance(optimize(given[0]), onnx.ModelProto)
    assert optimize(*given) == output
    assert len(onnx.load(output).graph.node) == 1
    assert source.read_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_written(kind: str, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    assert optimize(KINDS[kind][0](model()), output, target="generic") == output
    helpers.assert_same(model(), onnx.load(output), FEEDS)


def test_protos_are_not_changed() -> None:
    proto = model()
    before = proto.SerializeToString(deterministic=True)
    optimize(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_onnx_ir_models_are_optimized_in_place() -> None:
    loaded = ir.load(model())
    assert optimize(loaded) is loaded
    assert loaded.graph.num_nodes() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_verified(kind: str) -> None:
    reports: list[Report] = []
    optimize(KINDS[kind][0](model()), target="generic", verify=True, report=reports.append)
    assert reports[0].verification is not None and reports[0].verification.equal


@pytest.mark.parametrize("given", [None, 3, ["model.onnx"], {}, np.zeros(3)])
def test_other_kinds_are_refused(given: Any) -> None:
    with pytest.raises(OnnxOptError) as caught:
        optimize(given)
    assert type(given).__name__ in str(caught.value)


def test_same_model_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        optimize(model(), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_same_model_same_bytes_in_another_process(tmp_path: Path) -> None:
    """The order of sets of texts changes with the seed of the hash."""
    source = tmp_path / "model.onnx"
    onnx.save(model(), source)
    outputs = []
    for seed in ("1", "2"):
        output = tmp_path / f"{seed}.onnx"
        code = f"import onnxopt; onnxopt.optimize({str(source)!r}, {str(output)!r})"
        subprocess.run(
            [sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed}
        )
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1]


def test_threads_do_not_disturb_each_other() -> None:
    weights = {"w": np.arange(64, dtype=np.float32)}
    text = "(float[N, 64] x) => (float[N, 64] y) { e = Exp (w) i = Identity (x) a = Mul (i, e) b = Add (a, w) y = Tanh (b) }"
    models = [helpers.model(f"g {text.replace('Exp', op)}", **weights) for op in ("Exp", "Sqrt", "Neg", "Abs")]
    alone = [optimize(proto).SerializeToString(deterministic=True) for proto in models]
    start = Barrier(8)

    def work(index: int) -> list[bytes]:
        start.wait()
        return [optimize(models[(index + k) % 4]).SerializeToString(deterministic=True) for k in range(8)]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, range(8)))
    for index, results in enumerate(together):
        assert results == [alone[(index + k) % 4] for k in range(8)]
    assert gc.isenabled()


# --- passes of users ---
def test_a_registered_pass_runs_when_it_is_named() -> None:
    @register_pass
    class ReplaceTanh(Pass):
        """Replace Tanh by Sigmoid."""

        name, phase = "replace_tanh", "simplify"

        def run(self, model: ir.Model, ctx: Context) -> PassResult:
            nodes = [node for node in model.graph if node.op_type == "Tanh"]
            for node in nodes:
                node.op_type = "Sigmoid"
            return PassResult(bool(nodes))

    assert "Sigmoid" in helpers.ops(optimize(model(), passes=["replace_tanh"]))
    assert "Sigmoid" not in helpers.ops(optimize(model(), target="generic"))
    assert describe_passes()[-1]["summary"] == "Replace Tanh by Sigmoid."


def test_a_pass_without_a_doc_string_has_no_summary() -> None:
    @register_pass
    class Silent(Pass):
        name, phase = "silent", "simplify"

        def run(self, model: ir.Model, ctx: Context) -> PassResult:
            return PassResult(False)

    assert describe_passes()[-1]["summary"] == ""


def test_the_summary_of_a_pass_is_its_first_sentence() -> None:
    @register_pass
    class Long(Recording):
        """Rename values,
        all of them. Refused: inputs.

        More text.
        """

        name = "long"

    assert describe_passes()[-1]["summary"] == "Rename values, all of them."


def test_names_of_passes_are_taken_once() -> None:
    with pytest.raises(OptionError, match="A pass named 'fold_constants' is registered already"):

        @register_pass
        class Again(Recording):
            name = "fold_constants"


def test_function_over_a_graphsurgeon_graph_is_a_pass() -> None:
    @graphsurgeon_pass("replace_exp")
    def replace_exp(graph: gs.Graph) -> None:
        """Replace Exp by Abs."""
        for node in graph.nodes:
            if node.op == "Exp":
                node.op = "Abs"

    reports: list[Report] = []
    optimized = optimize(model(), passes=["eliminate_noops", "replace_exp"], report=reports.append)
    assert helpers.op_list(optimized) == ["Tanh", "Mul", "Add", "Abs"]
    assert [record.modified for record in reports[0].records] == [True, True]
    assert describe_passes()[-1]["summary"] == "Replace Exp by Abs."


def test_function_may_return_another_graph() -> None:
    @graphsurgeon_pass("cut")
    def cut(graph: gs.Graph) -> gs.Graph:
        other = graph.copy()
        other.outputs = [tensor for tensor in other.tensors().values() if tensor.name == "a"]
        other.outputs[0].dtype, other.outputs[0].shape = np.float32, ["N", 64]
        return other.cleanup()

    optimized = optimize(model(), passes=["cut", "eliminate_noops"])
    assert helpers.op_list(optimized) == ["Tanh"]
    assert [output.name for output in optimized.graph.output] == ["a"]


def test_function_that_changes_nothing_is_no_change() -> None:
    @graphsurgeon_pass("look")
    def look(graph: gs.Graph) -> None:
        assert len(graph.nodes) == 5

    reports: list[Report] = []
    optimize(model(), passes=["look"], report=reports.append)
    assert [record.modified for record in reports[0].records] == [False]


def test_function_that_fails_is_named() -> None:
    @graphsurgeon_pass("stumble")
    def stumble(graph: gs.Graph) -> None:
        raise ValueError("no such tensor")

    with pytest.raises(PassError, match=r"Pass stumble \(number 1; passes before it: none\) failed: .*no such tensor"):
        optimize(model(), passes=["stumble"])


# --- the package ---
@pytest.mark.parametrize("name", onnxopt.__all__)
def test_public_names_are_there_and_documented(name: str) -> None:
    found = getattr(onnxopt, name)
    assert name == "__version__" or (found.__doc__ or "").strip()


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'onnxopt' has no attribute 'no_such_name'"):
        _ = onnxopt.no_such_name


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, onnxopt; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "typer", "jinja2"} & set(done.stdout.split())


def test_views_of_what_fusion_leaves_are_merged() -> None:
    """The mean of a channels-last image has its channels last, where the model has them in the middle."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((64, 16, 3, 3)), "v": rng.standard_normal((64, 64, 3, 3))}
    text = """g (float[1,16,28,28] x) => (float[1,64] y) {
        a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, v) d = Relu(c)
        e = GlobalAveragePool(d) y = Flatten(e) }"""
    before = helpers.model(text, **{name: one.astype(np.float32) for name, one in arrays.items()})
    after = optimize(before)
    assert helpers.op_list(after)[-2:] == ["FusedPool", "Reshape"]
    x = rng.standard_normal((1, 16, 28, 28)).astype(np.float32)
    helpers.assert_same(before, after, {"x": x}, rtol=1e-4, library=True)
