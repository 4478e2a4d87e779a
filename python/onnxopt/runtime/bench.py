"""Comparing the latency of models in a way that can be trusted: in turn, in bursts, medians, ratios of one run."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from onnxopt.errors import ModelError, first_line

PAUSE_SECONDS = 0.05
"""Rest between bursts: onnxruntime's worker threads spin for a while after a run and would slow whatever runs beside them."""

BURST_SECONDS = 0.25
"""Length of one burst: long enough for a median over many runs of a small model, short enough that a drift of the clock hits both sides."""

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True, slots=True)
class Latency:
    """Latency of one contender in milliseconds, and its speed relative to the first contender (above 1 is faster)."""

    name: str
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    speedup: float


def burst(call: Call, seconds: float = BURST_SECONDS) -> float:
    """Median seconds of `call` over one burst, after a pause and two warm-up calls."""
    time.sleep(PAUSE_SECONDS)
    call()
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ratios(reference: Call, contender: Call, seconds: float) -> Iterator[float]:
    """The speed of a contender relative to a reference, once per round, without end.

    A round is a burst of each; who is first alternates, so that neither always runs on what the other left behind.

    Args:
        reference: the call whose speed is 1.
        contender: the call that is compared with it.
        seconds: length of a burst.
    """
    for reference_first in itertools.cycle((True, False)):
        if reference_first:
            before = burst(reference, seconds)
            yield before / burst(contender, seconds)
        else:
            after = burst(contender, seconds)
            yield burst(reference, seconds) / after


def compare(
    contenders: Sequence[tuple[str, Call]], rounds: int = 7, tick: Callable[[], None] | None = None
) -> list[Latency]:
    """Measure contenders in turn, `rounds` times. Speed-ups are medians of the ratios within each round.

    Args:
        contenders: names and calls; the first one is the reference.
        rounds: how many bursts each contender gets.
        tick: called after every burst (progress).
    """
    times: list[list[float]] = [[] for _ in contenders]
    for _, call in contenders:
        burst(call, 0.0)
    for _ in range(rounds):
        for own, (_, call) in zip(times, contenders, strict=True):
            own.append(burst(call))
            if tick is not None:
                tick()
    return [
        Latency(
            name,
            statistics.median(own) * 1e3,
            min(own) * 1e3,
            max(own) * 1e3,
            statistics.median(theirs / mine for theirs, mine in zip(times[0], own, strict=True)),
        )
        for (name, _), own in zip(contenders, times, strict=True)
    ]


def compare_models(
    models: Sequence[str | Path],
    *,
    threads: int,
    rounds: int,
    dims: Mapping[str, int | tuple[int, int]] | None = None,
    tick: Callable[[], None] | None = None,
) -> list[Latency]:
    """Compare the latency of models with the same inputs, each in a session of its own at the highest optimization level.

    Args:
        models: paths; the first is the reference and gives the inputs.
        threads: intra-op threads of each session.
        rounds: bursts of each model.
        dims: sizes of named dimensions of the inputs.
        tick: called after every burst (progress).

    Returns:
        One entry per model, in order, under its file name, or its whole path where two file names are equal.

    Raises:
        ModelError: a model cannot be loaded by onnxruntime, or does not run on the inputs of the first one.
    """
    from onnxopt.runtime.library import session
    from onnxopt.runtime.verify import random_inputs

    inputs = random_inputs(models[0], dims=dims or {}, seed=0)
    paths = [Path(path) for path in models]
    unique = len({path.name for path in paths}) == len(paths)
    contenders: list[tuple[str, Call]] = []
    for path in paths:
        call = functools.partial(session(path, threads=threads).run, None, inputs)
        try:
            call()
        except Exception as error:
            raise ModelError(f"'{path}' does not run on the inputs of '{paths[0]}': {first_line(error)}") from error
        contenders.append((path.name if unique else str(path), call))
    return compare(contenders, rounds, tick)
