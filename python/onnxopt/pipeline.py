"""The pipeline: the table of contents of the compiler, and the manager that runs it."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from onnxopt import ir, passes
from onnxopt.errors import OnnxOptError, OptionError, PassError, RuntimeMissingError
from onnxopt.passes.base import (
    REGISTRY,
    AppliedPatch,
    Context,
    NearMiss,
    Options,
    Pass,
    PassResult,
    RuleStats,
    register_pass,
)
from onnxopt.runtime.target import Target

if TYPE_CHECKING:
    from onnxopt.runtime.bench import Latency
    from onnxopt.runtime.verify import VerificationReport
    from onnxopt.tuning.file import Tuning

PHASES: Mapping[str, tuple[str, ...]] = {
    "canonicalize": (
        "inline_custom_ops",
        "inline_functions",
        "upgrade_opset",
        "lift_constants",
        "deduplicate_initializers",
        "eliminate_dead_code",
        "eliminate_noops",
    ),
    "fold": ("fold_shapes", "fold_constants", "decide_ifs_by_rank", "inline_ifs", "inline_loops"),
    "unroll": (
        "concat_instead_of_scatters",
        "roll_steps",
        "broadcast_inside_loops",
        "drop_dead_carries",
        "hoist_loop_invariants",
        "unroll_loops_by_factor",
        "convert_loops",
        "stack_appended_values",
        "move_scan_axes",
        "write_out_state_products",
        "batch_loop_inputs",
        "sink_loop_outputs",
        "split_linear_recurrences",
        "vectorize_loops",
        "unroll_loops",
    ),
    "simplify": (
        "simplify_sequences",
        "merge_branches",
        "select_instead_of_branches",
        "write_out_einsums",
        "simplify_casts",
        "simplify_reshapes",
        "simplify_slices",
        "split_instead_of_slices",
        "keep_reduced_dims",
        "sink_transposes",
        "recognize_activations",
        "recognize_norms",
        "recognize_softmax",
        "recognize_recurrent_cells",
        "merge_recurrent_directions",
        "simplify_lookups",
        "simplify_arithmetic",
        "fold_signs",
        "fuse_padding",
        "fuse_into_convolutions",
        "merge_parallel_convolutions",
        "fuse_into_gemms",
        "eliminate_noops",
        "eliminate_common_subexpressions",
        "eliminate_dead_code",
    ),
    "contrib": ("use_contrib_ops",),
    "quantize": ("write_qdq", "write_weights", "quantize_products"),
    "fuse": (
        "unfold_recurrent_ops",
        "simplify_reshapes",
        "split_loop_gemms",
        "split_gates",
        "fuse_recurrences",
        "fuse_loops",
        "restore_loops",
        "pool_bytes",
        "split_bytes",
        "fuse_qconvs",
        "quantize_before_moves",
        "move_transposes_to_convolutions",
        "fuse_group_norms",
        "convolutions_channels_last",
        "fuse_squeeze_excite",
        "sink_transposes",
        "transpose_bytes",
        "fuse_qconv_sums",
        "keep_blocked_layout",
        "fuse_conv_activations",
        "merge_qgemms",
        "fuse_attention",
        "gather_moved_rows",
        "fuse_qgemms",
        "split_products",
        "fuse_gemms",
        "fuse_norms",
        "fuse_softmax",
        "fuse_means",
        "fuse_epilogues",
        "fuse_requantization",
        "requantize_qgemms",
        "fuse_inverted_residuals",
        "fuse_separable_convs",
        "merge_gemms",
        "fuse_prologues",
        "fuse_elementwise",
    ),
    "lower": ("simplify_reshapes", "dequantize_after_moves", "eliminate_dead_code", "deduplicate_initializers"),
}
"""Phases in order, and the passes of each. `fold`, `unroll` and `simplify` are repeated until none changes the model."""

MIN_FUSED_OPSET = 7
"""The opset from which on runtimes broadcast as the bodies of custom ops do; older models are not fused."""

REPEATED = ("fold", "unroll", "simplify")
MAX_ROUNDS = 8
"""Rounds over the repeated phases. Real models settle in two or three. Where the sizes of each layer are computed from those of the one before,
every round folds another layer: further ones follow as long as each leaves fewer nodes. Then a model gets a warning, not a hang."""


class PassRecord(NamedTuple):
    """One run of one pass: seconds, nodes in all graphs and bytes of weights before and after, patches."""

    name: str
    phase: str
    round: int
    seconds: float
    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int
    patches: int
    modified: bool


@dataclasses.dataclass(slots=True)
class Report:
    """What a run did: every pass, rule, patch, near miss and warning, with sizes before and after."""

    target: str
    nodes_before: int = 0
    nodes_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    ops_before: dict[str, int] = dataclasses.field(default_factory=dict)
    ops_after: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    records: list[PassRecord] = dataclasses.field(default_factory=list)
    rules: dict[tuple[str, str], RuleStats] = dataclasses.field(default_factory=dict)
    patches: list[AppliedPatch] = dataclasses.field(default_factory=list)
    near_misses: list[NearMiss] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    defects: list[OnnxOptError] = dataclasses.field(default_factory=list)
    verification: VerificationReport | None = None
    latency: list[Latency] = dataclasses.field(default_factory=list)


Instrument = Callable[[str, str, ir.Model, Context], None]
"""Called with ("before" | "after", pass name, model, context) around every pass: timing, dumps and numeric checks are hooks."""


class PassManager:
    """Runs passes over a model.

    Args:
        target: what the model is optimized for.
        names: the passes to run, in order; None is the pipeline of `PHASES`. A plain list is run once, in its order.
        options: choices that passes share.
        stop_after: apply at most this many patches (bisection).
        explain: keep near misses.
        strict: raise at a rule that proposes a patch that does not fit, instead of leaving it out, and check the graph after every
            pass (tests).
        instruments: hooks around every pass.
        sizes: count ops, nodes and bytes before and after every pass, for the report; else they are 0.
    """

    def __init__(
        self,
        target: Target | str = "cpu",
        names: Sequence[str | Pass] | None = None,
        *,
        options: Options | None = None,
        stop_after: int | None = None,
        explain: bool = False,
        strict: bool = False,
        instruments: Iterable[Instrument] = (),
        sizes: bool = True,
    ) -> None:
        self.target = Target.named(target)
        passes.load_all()
        self.options = options or Options()
        self.stop_after = stop_after
        self.explain = explain
        self.strict = strict
        self.instruments = tuple(instruments)
        self.sizes = sizes
        self.schedule = self._schedule(names)

    def with_budget(self, stop_after: int | None) -> PassManager:
        """The same manager with another limit on patches, without instruments."""
        same = copy.copy(self)
        same.stop_after, same.instruments = stop_after, ()
        return same

    def rule_names(self) -> set[str]:
        """The names of all rules that a run may apply."""
        return {name for _, phase_passes in self.schedule for one in phase_passes for name in one.rule_names()}

    def _schedule(self, names: Sequence[str | Pass] | None) -> list[tuple[str, list[Pass]]]:
        if isinstance(names, str):
            raise OptionError(f"The passes '{names}' are one text; expected a list of names.")
        if names is not None:
            return [("chosen", [_make(name) for name in names])]
        without = self.options.without
        for name in sorted(without):
            _make(name)
        return [
            (phase, [_make(name) for name in phase_passes if name in REGISTRY and name not in without])
            for phase, phase_passes in PHASES.items()
            if self.target.runs_phase(phase)
        ]

    def run(self, model: ir.Model) -> Report:
        """Optimize `model` in place and say what was done.

        Raises:
            PassError: a pass failed; the text names it, its position and the passes before it.
            OptionError: an option does not fit the model.
        """
        with ir.without_collector():
            return self._run(model)

    def _run(self, model: ir.Model) -> Report:
        start = time.perf_counter()
        report = Report(self.target.name)
        if self.sizes:
            report.nodes_before, report.ops_before = ir.count_nodes(model), ir.count_ops(model)
            report.bytes_before = ir.weight_bytes(model)
        ctx = Context(
            model,
            target=self.target,
            options=self.options,
            stop_after=self.stop_after,
            explain=self.explain,
            strict=self.strict,
        )
        for sentence in ir.unknown_dims(model, self.options.dims):
            ctx.log.warn(sentence)
        self._run_phases(model, ctx, report)
        ctx.shapes.write_back(model)
        if self.sizes:
            report.nodes_after, report.ops_after = ir.count_nodes(model), ir.count_ops(model)
            report.bytes_after = ir.weight_bytes(model)
        report.rules, report.patches = ctx.log.rules, ctx.log.patches
        report.near_misses, report.warnings, report.defects = ctx.log.near_misses, ctx.log.warnings, ctx.log.defects
        report.seconds = time.perf_counter() - start
        return report

    def _run_phases(self, model: ir.Model, ctx: Context, report: Report) -> None:
        repeated = [entry for entry in self.schedule if entry[0] in REPEATED]
        for phase, phase_passes in self.schedule:
            if phase in REPEATED:
                if (phase, phase_passes) == repeated[0]:
                    self._run_rounds(repeated, model, ctx, report)
            elif phase != "fuse" or ctx.opset >= MIN_FUSED_OPSET:
                self._run_phase(phase, phase_passes, 1, model, ctx, report)

    def _run_rounds(self, entries: list[tuple[str, list[Pass]]], model: ir.Model, ctx: Context, report: Report) -> None:
        for number in itertools.count(1):
            before = ctx.node_count()
            if number > 1 and ctx.has_subgraphs:
                # What changed inside a branch or body says more about the outputs of the node that holds it.
                ctx.shapes.infer_model()
            changed = [
                self._run_phase(phase, phase_passes, number, model, ctx, report) for phase, phase_passes in entries
            ]
            if not any(changed):
                return
            if number >= MAX_ROUNDS and ctx.node_count() >= before:
                break
        ctx.log.warn(f"The model still changed after {number} rounds of {', '.join(REPEATED)}.")

    def _run_phase(
        self, phase: str, phase_passes: list[Pass], number: int, model: ir.Model, ctx: Context, report: Report
    ) -> bool:
        changed = False
        for one in phase_passes:
            record = self._run_pass(one, phase, number, model, ctx, report)
            report.records.append(record)
            changed |= record.modified
        return changed

    def _run_pass(
        self, one: Pass, phase: str, number: int, model: ir.Model, ctx: Context, report: Report
    ) -> PassRecord:
        done = report.records
        before = _sizes(done[-1]) if done else (report.nodes_before, report.bytes_before)
        ctx.log.pass_name = one.name
        for hook in self.instruments:
            hook("before", one.name, model, ctx)
        start = time.perf_counter()
        try:
            result = one.run(model, ctx)
            if self.strict:
                ir.check_structure(model)
        except BaseException as error:
            ir.release_strays(model)  # the caller may have handed over the model itself
            if isinstance(error, (OptionError, RuntimeMissingError)) or not isinstance(error, Exception):
                raise  # the pass is not to blame
            what = str(error) if isinstance(error, OnnxOptError) else f"{type(error).__name__}: {error}"
            raise PassError(f"{_where(one, done)}: {what}") from error
        seconds = time.perf_counter() - start
        for hook in self.instruments:
            hook("after", one.name, model, ctx)
        if result.modified:
            ctx.forget_nodes()
            ctx.forget_graphs()
        after = ctx.sizes() if self.sizes and result.modified else before
        return PassRecord(
            one.name,
            phase,
            number,
            seconds,
            nodes_before=before[0],
            nodes_after=after[0],
            bytes_before=before[1],
            bytes_after=after[1],
            patches=result.patches,
            modified=result.modified,
        )


def _sizes(record: PassRecord) -> tuple[int, int]:
    return record.nodes_after, record.bytes_after


def describe_passes() -> list[dict[str, Any]]:
    """Every pass, those of the pipeline first and in its order: name, phase, first sentence of its doc string, its rules."""
    passes.load_all()
    in_order = [name for phase_passes in PHASES.values() for name in phase_passes]
    names = dict.fromkeys([name for name in in_order if name in REGISTRY] + list(REGISTRY))
    return [
        {
            "name": name,
            "phase": REGISTRY[name].phase,
            "summary": REGISTRY[name].summary(),
            "rules": REGISTRY[name]().rule_names(),
        }
        for name in names
    ]


def graphsurgeon_pass(name: str, *, phase: str = "simplify") -> Callable[[Callable[[Any], Any]], type[Pass]]:
    """Register a function over an `onnx_graphsurgeon.Graph` as a pass; it may change the graph in place or return another.

        @onnxopt.graphsurgeon_pass("drop_debug_outputs")
        def drop_debug_outputs(graph):
            graph.outputs = [o for o in graph.outputs if not o.name.startswith("debug")]
            graph.cleanup()

    The pass runs when it is named in `passes`.
    """

    def decorate(function: Callable[[Any], Any]) -> type[Pass]:
        def run(self: Pass, model: ir.Model, ctx: Context) -> PassResult:
            modified = ir.apply_graphsurgeon(model, function)
            if modified:
                ctx.refresh()
            return PassResult(modified)

        attributes = {"name": name, "phase": phase, "run": run, "__doc__": function.__doc__ or f"User pass {name}."}
        return register_pass(type(name, (Pass,), attributes))

    return decorate


def _make(one: str | Pass) -> Pass:
    if isinstance(one, Pass):
        return one
    if one not in REGISTRY:
        raise OptionError(f"There is no pass named '{one}'. The passes are: {', '.join(sorted(REGISTRY))}.")
    return REGISTRY[one]()


def _where(one: Pass, done: list[PassRecord]) -> str:
    before = ", ".join(record.name for record in done) or "none"
    return f"Pass {one.name} (number {len(done) + 1}; passes before it: {before}) failed"


def optimize(
    model: Any,
    output: str | Path | None = None,
    *,
    target: Target | str = "cpu",
    passes: Sequence[str | Pass] | None = None,
    dims: Mapping[str, int | tuple[int, int]] | None = None,
    verify: bool = False,
    options: Options | None = None,
    tuning: str | Path | Tuning | None = None,
    allow_contrib: bool = False,
    external_data: str | None = None,
    report: Callable[[Report], None] | None = None,
    explain: bool = False,
    instruments: Iterable[Instrument] = (),
    strict: bool = False,
) -> Any:
    """Optimize an ONNX model and return it as the kind it was given.

    Args:
        model: a path, an `onnx.ModelProto`, an `onnx_ir.Model` (optimized in place) or an `onnx_graphsurgeon.Graph`.
        output: where to write the result (whole or not at all). With a path as `model` and no `output`, an `onnx.ModelProto` is
            returned; with an `output`, its path.
        target: "cpu", "cuda" or "generic" (only standard ONNX ops).
        passes: names or `Pass` objects to run in this order instead of the whole pipeline.
        dims: fixes a named dimension (an int) or bounds it (lowest, highest).
        verify: compare the outputs of the result with the original's on random inputs.
        options: further choices that passes share.
        tuning: what `tune` found for this model, or the file that says so: the same tuning and model give the same result.
        allow_contrib: use onnxruntime's own contrib ops where no kernel of ours computes the same; the result needs onnxruntime.
        external_data: how `output` holds its weights, see `onnxopt.ir.save`.
        report: called with the `Report` of the run.
        explain: keep near misses for the report.
        instruments: hooks around every pass, see `Instrument`.
        strict: raise when a rule proposes something wrong instead of leaving it out.

    Raises:
        ModelError: the model cannot be read or is malformed.
        OptionError: an unknown pass, target or option, or a tuning of another model.
        PassError: a pass failed.
        VerificationError: outputs differ; the text names the pass, the rule and the node that is to blame.
    """
    chosen = _with_arguments(options or Options(), dims, allow_contrib)
    plan = None if tuning is None else _plan(tuning, passes)
    if plan is not None:
        target = plan.target_of(Target.named(target))
        chosen, passes = plan.options_of(chosen), [] if plan.keep_original else None
    manager = PassManager(
        target,
        passes,
        options=chosen,
        explain=explain,
        instruments=instruments,
        strict=strict,
        sizes=report is not None,
    )
    # An onnx_ir model is optimized in place, so the original to compare with must be kept.
    original = ir.load_copy(model) if verify and isinstance(model, ir.Model) else model
    with ir.without_collector():
        loaded = ir.load(model)
        if output is not None:
            ir.check_output(output, loaded)
        warnings = [] if plan is None else plan.check(loaded)
        result = manager.run(loaded)
        result.warnings.extend(warnings)
        if not verify:
            return _deliver(model, loaded, result, output, external_data, report)
    from onnxopt.runtime.verify import verify_run

    result.verification = verify_run(lambda: ir.load_copy(original), loaded, manager)
    return _deliver(model, loaded, result, output, external_data, report)


def _with_arguments(options: Options, dims: Mapping[str, int | tuple[int, int]] | None, allow_contrib: bool) -> Options:
    return dataclasses.replace(
        options, dims=dict(dims or options.dims), allow_contrib=allow_contrib or options.allow_contrib
    )


def _plan(tuning: str | Path | Tuning, passes: Sequence[str | Pass] | None) -> Tuning:
    from onnxopt.tuning.file import Tuning

    if passes is not None:
        raise OptionError("A tuning says which passes run; passes cannot be chosen beside it.")
    return tuning if isinstance(tuning, Tuning) else Tuning.read(tuning)


def _deliver(
    source: Any,
    model: ir.Model,
    result: Report,
    output: str | Path | None,
    external_data: str | None,
    report: Callable[[Report], None] | None,
) -> Any:
    """Hand an optimized model over: as a file, or as the kind of thing that `source` is."""
    if report is not None:
        report(result)
    if output is not None:
        ir.save(model, output, external_data=external_data)
        return Path(output)
    return ir.as_kind_of(source, model)
