"""Tuning: what is faster for one model on this machine, found by measuring."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onnxopt import ir
from onnxopt.tuning.file import Dims, Tuning
from onnxopt.tuning.search import DEFAULT, ORIGINAL, Candidate, Journal, Search
from onnxopt.tuning.workbench import Workbench

__all__ = ["Trial", "Tuned", "Tuning", "tune"]


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """One trial: what was compared with what, and the speed of each round relative to the rival, or why it was not measured."""

    name: str
    ratios: tuple[float, ...] = ()
    refused: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Tuned:
    """What `tune` found: the file it wrote and what that says, what was chosen, and the trials, those of earlier runs too."""

    file: Path
    tuning: Tuning
    chosen: str
    trials: tuple[Trial, ...]


def tune(
    model: str | Path,
    output: str | Path,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seconds: float = 60.0,
    dims: Dims | None = None,
    target: str = "cpu",
    threads: int = 2,
    allow_contrib: bool = False,
    tell: Callable[[str, float], None] = lambda *_: None,
) -> Tuned:
    """Measure variants of a model on this machine and write what is fastest to a tuning file.

    Passes are left out, rules not applied at groups of equal nodes, costs changed, and kernels of another instruction set taken, one after
    the other; what wins stays. In the end the result has to win against the original, and against the default too, in rounds of their
    own: else the file says that the default, or the original, is best. Trials are kept in `output` with ".journal" added: a run that was
    interrupted, or that had too little time, goes on from there.

    Args:
        model: a path.
        output: the tuning file.
        input_shapes: the shape of every input that is not fixed in the model, at which is measured.
        seconds: time for trials; the last ones, which confirm, may exceed it.
        dims: sizes or bounds of dims that the model is optimized for.
        target: "cpu", "cuda" or "generic".
        threads: intra-op threads.
        allow_contrib: onnxruntime's contrib ops may be used.
        tell: called before each trial with its name and the seconds that have passed.

    Raises:
        ModelError: the model cannot be read, or does not run at these shapes.
        OptionError: shapes do not fit the model, the journal is of another tuning, or the output cannot be a file or is the model's.
        RuntimeMissingError: onnxruntime or the native library is missing.
    """
    start, file = time.monotonic(), ir.check_output(output, ir.load(model))
    with tempfile.TemporaryDirectory(prefix="onnxopt-tune-") as folder:
        bench = Workbench(
            Path(model),
            input_shapes or {},
            Path(folder),
            dims=dims or {},
            target=target,
            threads=threads,
            allow_contrib=allow_contrib,
        )
        journal = Journal(file.with_name(f"{file.name}.journal"), bench.subject())

        def told(name: str) -> None:
            tell(name, time.monotonic() - start)

        search = Search(bench.measure, bench.refuse, journal, time.monotonic, seconds, told)
        chosen = search.run(bench.changes())
        measured: dict[str, str | float] = {"threads": threads, **bench.shapes, **_speeds(search, chosen)}
        tuning = dataclasses.replace(bench.tuning(chosen), measured=measured)
    tuning.write(file)
    return Tuned(file, tuning, chosen.label(), _trials(journal))


def _trials(journal: Journal) -> tuple[Trial, ...]:
    return tuple(
        Trial(name, refused=outcome) if isinstance(outcome, str) else Trial(name, tuple(outcome))
        for name, outcome in journal.trials.items()
    )


def _speeds(search: Search, chosen: Candidate) -> dict[str, float]:
    """Medians of the rounds that confirmed the choice."""
    rivals = {"times_original": ORIGINAL, "times_default": DEFAULT}
    found = {name: search.ratios(chosen, rival) for name, rival in rivals.items() if chosen not in (ORIGINAL, rival)}
    return {name: round(statistics.median(ratios), 3) for name, ratios in found.items()}
