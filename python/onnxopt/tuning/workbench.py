"""Makes the candidates of one model, verifies them, and measures them against each other."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxopt import ir
from onnxopt.errors import OnnxOptError, OptionError, first_line
from onnxopt.passes.base import REGISTRY, Context, Options, RulePass
from onnxopt.passes.fuse_attention import FuseAttention
from onnxopt.pipeline import PHASES, Report, optimize
from onnxopt.runtime import bench
from onnxopt.runtime.library import session, tuned_kernels
from onnxopt.runtime.target import Target
from onnxopt.runtime.verify import compare, random_inputs, verify
from onnxopt.tuning.file import Dims, Tuning, describe_machine
from onnxopt.tuning.search import DEFAULT, ORIGINAL, Candidate, Change

if TYPE_CHECKING:
    import onnxruntime

BURST_SECONDS = (0.06, 0.5)
"""The shortest and longest burst: long enough for a median, short enough for many rounds."""

CALLS_PER_BURST = 8
"""Calls that a burst has room for, within its limits."""

MOST_GROUPS = 6
"""Groups of nodes of one rule that are tried, the largest first."""

COST_FACTORS = (0.25, 4)
"""By what costs are tried: a threshold that is off by less decides little."""

TUNED_PHASES = ("fuse", "contrib")


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """A candidate on disk: its model, the tuning file that it was made with, and a digest of both as far as they decide what runs."""

    model: Path
    tuning: Path
    digest: str


class Workbench:
    """The candidates of one model.

    Args:
        model: the file to tune.
        shapes: the shape of every input that is not fixed in the model, at which candidates are measured.
        folder: where candidates are written; the caller removes it.
        dims: sizes or bounds of dims that the model is optimized for.
        target: the target's name.
        threads: intra-op threads of the sessions.
        allow_contrib: onnxruntime's contrib ops may be used.

    Raises:
        ModelError: the model cannot be read, or does not run at these shapes.
        OptionError: shapes do not fit the model, or inputs have no size.
    """

    def __init__(
        self,
        model: Path,
        shapes: Mapping[str, Sequence[int]],
        folder: Path,
        *,
        dims: Dims,
        target: str = "cpu",
        threads: int = 2,
        allow_contrib: bool = False,
    ) -> None:
        self.model, self.folder, self.dims = model, folder, dict(dims)
        self.target, self.threads, self.allow_contrib = Target.named(target), threads, allow_contrib
        loaded = ir.load(model)
        self.sizes = sizes_of(loaded, shapes, self.dims)
        self.fingerprint = ir.fingerprint(loaded)
        self.machine = describe_machine()
        self.inputs = random_inputs(model, dims=self.sizes, seed=0)
        self.shapes = {name: "x".join(map(str, array.shape)) for name, array in self.inputs.items()}
        reference = session(model, optimize=False)
        self._names = [output.name for output in reference.get_outputs()]
        self._truth = reference.run(None, self.inputs)
        self._built: dict[Candidate, Built] = {}
        self._sessions: dict[Candidate, onnxruntime.InferenceSession] = {}
        self._numbers = itertools.count()

    def subject(self) -> dict[str, str]:
        """What makes measurements comparable."""
        shapes = ", ".join(f"{name}:{shape}" for name, shape in sorted(self.shapes.items()))
        return {
            "model": self.fingerprint,
            "shapes": shapes,
            "dims": str(sorted(self.dims.items())),
            "target": self.target.name,
            "threads": str(self.threads),
            "contrib": str(self.allow_contrib),
            **self.machine,
        }

    def tuning(self, candidate: Candidate) -> Tuning:
        """What makes a candidate out of the model."""
        of_kind: dict[str, dict[str, Any]] = {}
        for change in sorted(candidate.changes, key=lambda change: change.label):
            of_kind.setdefault(change.kind, {})[change.name] = change.value
        without = {
            name for kind in ("without", "contrib") for names in of_kind.get(kind, {}).values() for name in names
        }
        return Tuning(
            model=self.fingerprint,
            target=self.target.name,
            keep_original=candidate.original,
            allow_contrib="contrib" in of_kind,
            without=tuple(sorted(without)),
            not_at=of_kind.get("not_at", {}),
            costs=of_kind.get("cost", {}),
            variants=of_kind.get("variant", {}),
            dims=self.dims,
            machine=self.machine,
        )

    # --- what may be changed ---------------------------------------------------------------------------------------
    def changes(self) -> list[Change]:
        """What may be done in another way than the default does it: passes, rules at groups of equal nodes, kernel variants, costs."""
        kinds = _Kinds()
        report = self._optimize(DEFAULT, self.folder / "default.onnx", kinds)
        _remove(self.folder / "default.onnx")
        ran = [record.name for record in report.records if record.phase in TUNED_PHASES and record.modified]
        patches = {name: sum(one.pass_name == name for one in report.patches) for name in ran}
        found = [Change("contrib", "", (FuseAttention.name,), "with contrib ops")] if self.allow_contrib else []
        found += [
            Change("without", name, (name,), f"without {name}")
            for name in sorted(patches, key=lambda name: (-patches[name], name))
        ]
        if len(patches) > 1:
            found.append(Change("without", "", tuple(patches), "without all fusions"))
        return [*found, *self._variants(report), *self._groups(report, patches, kinds), *self._costs()]

    def _variants(self, report: Report) -> Iterator[Change]:
        """The next lower instruction set, for every op of ours that the model has."""
        from onnxopt.ops import describe_ops

        for entry in describe_ops():
            if entry["op"] not in report.ops_after and f"{entry['domain']}::{entry['op']}" not in report.ops_after:
                continue
            names = [one["name"] for one in entry["variants"] if one["usable"] and one["device"] == "cpu"]
            for name in names[1:-1]:  # the last one is the portable reference
                yield Change("variant", entry["op"], name, f"{entry['op']} by {name}")

    def _groups(self, report: Report, passes: Mapping[str, int], kinds: _Kinds) -> Iterator[Change]:
        """The nodes at which a rule applied, by kind. A rule of one kind of nodes is its pass."""
        groups: dict[str, dict[str, list[str]]] = {}
        for patch in report.patches:
            one = REGISTRY[patch.pass_name]
            if patch.pass_name in passes and issubclass(one, RulePass):
                kind = kinds.of.get((patch.pass_name, patch.node), patch.op_type)
                groups.setdefault(patch.rule, {}).setdefault(kind, []).append(patch.node)
        for rule, of_kind in groups.items():
            if len(of_kind) > 1:
                largest = sorted(of_kind.items(), key=lambda item: (-len(item[1]), item[0]))
                for kind, nodes in largest[:MOST_GROUPS]:
                    yield Change("not_at", rule, tuple(nodes), f"{rule} not at {kind}")

    def _costs(self) -> Iterator[Change]:
        for name, value in dataclasses.asdict(self.target.costs).items():
            for factor in COST_FACTORS:
                other = value * factor if isinstance(value, float) else round(value * factor)
                yield Change("cost", name, other, f"{name} = {other}")

    # --- candidates ------------------------------------------------------------------------------------------------
    def refuse(self, candidate: Candidate, rival: Candidate, thorough: bool) -> str | None:
        """Why a candidate is not to be measured against a rival: it is the same, or its outputs are others than the original's."""
        try:
            built = self._build(candidate)
            if built.digest == self._build(rival).digest:
                return "It is the same."
            found = self._session(candidate, keep=rival).run(None, self.inputs)
        except OnnxOptError as error:
            return str(error)
        except Exception as error:
            return f"It does not run: {first_line(error)}"
        _, differences = compare(self._names, self._truth, found)
        if differences:
            return f"Its outputs differ: {differences[0].sentence}"
        return self._refuse_thoroughly(built) if thorough else None

    def _refuse_thoroughly(self, built: Built) -> str | None:
        with tuned_kernels(built.tuning):
            report = verify(self.model, built.model, dims=self.dims)
        return None if report.equal else report.sentence()

    def measure(self, candidate: Candidate, rival: Candidate) -> Iterator[float]:
        """The speed of a candidate relative to a rival, once per round."""
        calls = [
            functools.partial(self._session(one, keep=other).run, None, self.inputs)
            for one, other in ((rival, candidate), (candidate, rival))
        ]
        shortest, longest = BURST_SECONDS
        once = bench.burst(calls[0], 0.0)
        return bench.ratios(calls[0], calls[1], min(max(once * CALLS_PER_BURST, shortest), longest))

    def _session(self, candidate: Candidate, keep: Candidate) -> onnxruntime.InferenceSession:
        """A candidate's session. Only two candidates are in memory and on disk."""
        for other in [one for one in self._sessions if one not in (candidate, keep)]:
            del self._sessions[other]
            if other != ORIGINAL:
                _remove(self._built.pop(other).model)
        if candidate not in self._sessions:
            built = self._build(candidate)
            self._sessions[candidate] = session(built.model, threads=self.threads, tuning=built.tuning)
        return self._sessions[candidate]

    def _build(self, candidate: Candidate) -> Built:
        """A candidate's files."""
        if candidate not in self._built:
            number = next(self._numbers)
            model, tuning = self.folder / f"{number}.onnx", self.folder / f"{number}.toml"
            said = self.tuning(candidate)
            said.write(tuning)
            if candidate == ORIGINAL:
                self._built[candidate] = Built(self.model, tuning, "original")
            else:
                self._optimize(candidate, model)
                self._built[candidate] = Built(model, tuning, f"{_digest(model)} {sorted(said.variants.items())}")
        return self._built[candidate]

    def _optimize(self, candidate: Candidate, output: Path, kinds: _Kinds | None = None) -> Report:
        reports: list[Report] = []
        optimize(
            self.model,
            output,
            target=self.target,
            tuning=self.tuning(candidate),
            options=Options(),
            report=reports.append,
            instruments=[] if kinds is None else [kinds],
        )
        return reports[0]


class _Kinds:
    """An instrument that tells nodes apart before each pass of a tuned phase: by op, and by the shapes of constants beside the data."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, str], str] = {}

    def __call__(self, when: str, name: str, model: ir.Model, ctx: Context) -> None:
        if when == "before" and any(name in PHASES[phase] for phase in TUNED_PHASES):
            for node in model.graph:
                self.of[name, ir.node_name(node)] = _kind(node)


def _kind(node: ir.Node) -> str:
    shapes = [
        list(tensor.shape.numpy()) for value in node.inputs if value is not None and (tensor := ir.constant(value))
    ]
    return f"{node.op_type} {' '.join('x'.join(map(str, shape)) or 'scalar' for shape in shapes)}".strip()


def _digest(model: Path) -> str:
    """Of a model and of the weights in its folder that belong to it."""
    digest = hashlib.sha256()
    for path in sorted(model.parent.glob(f"{model.name}*")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _remove(model: Path) -> None:
    for path in model.parent.glob(f"{model.name}*"):
        path.unlink()


def sizes_of(model: ir.Model, shapes: Mapping[str, Sequence[int]], dims: Dims) -> dict[str, int]:
    """The size of every open dim, by the shapes of inputs and by stated sizes of dims.

    Raises:
        OptionError: a shape is of no input, of another rank or of other sizes than the model's; or a dim stays open.
    """
    inputs = {value.name: value for value in model.graph.inputs if value.name not in model.graph.initializers}
    sizes = {name: size for name, size in dims.items() if isinstance(size, int)}
    for name, shape in shapes.items():
        if name not in inputs:
            raise OptionError(f"The model has no input '{name}'. Its inputs are: {', '.join(map(str, inputs))}.")
        expected = inputs[name].shape
        if expected is None or len(expected) != len(shape):
            raise OptionError(
                f"The input '{name}' has {len(expected or ())} dims, and its shape was given as {list(shape)}."
            )
        for axis, (dim, size) in enumerate(zip(expected, shape)):
            known = dim if isinstance(dim, int) and not ir.is_open(dim) else None
            key = ir.given_name(dim) or ir.unnamed_dim(name, axis)
            if size != (sizes.setdefault(key, size) if known is None else known):
                raise OptionError(
                    f"Dim {axis} of the input '{name}' is {sizes.get(key, known)}, and was given as {size}."
                )
    open_dims = [name for name in ir.open_dims(model) if name not in sizes]
    if open_dims:
        raise OptionError(
            f"The dims {', '.join(open_dims)} have no size: say at which shapes to measure, --input-shapes {_example(inputs)}"
        )
    return sizes


def _example(inputs: Mapping[str | None, ir.Value]) -> str:
    shapes = (f"{name}:{'x'.join(map(str, value.shape or ()))}" for name, value in inputs.items())
    return ",".join(shapes)
