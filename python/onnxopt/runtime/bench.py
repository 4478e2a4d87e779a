"""Comparing the latency of models in a way that can be trusted: in turn, in bursts, medians, ratios of one run."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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


def compare(
    contenders: Sequence[tuple[str, Call]], rounds: int = 7, tick: Callable[[], None] | None = None
) -> list[Latency]:
    """Measure contenders in turn, `rounds` times. Speed-ups are medians of the ratios within each round.

    Args:
        contenders: names and calls; the first one is the reference.
        rounds: how many bursts each contender gets.
        tick: called after every burst (progress).
    """
    times: dict[str, list[float]] = {name: [] for name, _ in contenders}
    for _, call in contenders:
        burst(call, 0.0)
    for _ in range(rounds):
        for name, call in contenders:
            times[name].append(burst(call))
            if tick is not None:
                tick()
    reference = times[contenders[0][0]]
    return [
        Latency(
            name,
            statistics.median(own) * 1e3,
            min(own) * 1e3,
            max(own) * 1e3,
            statistics.median(theirs / mine for theirs, mine in zip(reference, own, strict=True)),
        )
        for name, own in times.items()
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

    Raises:
        ModelError: a model cannot be loaded by onnxruntime.
    """
    from onnxopt.runtime.library import session
    from onnxopt.runtime.verify import random_inputs

    inputs = random_inputs(models[0], dims=dims or {}, seed=0)
    contenders: list[tuple[str, Call]] = []
    for path in models:
        one = session(path, threads=threads)
        contenders.append((Path(path).name, functools.partial(one.run, None, inputs)))
    return compare(contenders, rounds, tick)
