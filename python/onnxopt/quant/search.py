"""Which layers stay in float so that the rest is as fast as a budget allows: a search over measured models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

MOST_TRIALS = 24
"""Models that are measured after the first one within the budget was found, to turn further layers into integers."""


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A layer that can multiply integers: its operations, and the noise in the model's outputs where it alone does."""

    name: str
    operations: int
    noise: float


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """The layers that stay in float, and the metric of the model with the rest in integers."""

    keep: frozenset[str]
    score: float


def search(candidates: Sequence[Candidate], score: Callable[[frozenset[str]], float], least: float) -> Found:
    """The fewest operations in float with which the metric is at least `least`.

    Layers go to float in the order of noise for each operation that is lost, as many as a bisection finds necessary; then those are tried
    in integers again that cost most. With all layers in float the model is the original, which needs no measurement to be good enough.

    Args:
        candidates: all layers.
        score: the metric of a model whose layers of these names stay in float.
        least: the least metric that is good enough.
    """
    nothing: frozenset[str] = frozenset()
    first = score(nothing)
    if first >= least:
        return Found(nothing, first)
    order = sorted(candidates, key=lambda one: (-one.noise / max(one.operations, 1), one.name))
    names = [one.name for one in order]
    low, high = 0, len(names)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if score(frozenset(names[:middle])) >= least else (middle, high)
    keep = frozenset(names[:high])
    best = Found(keep, score(keep))
    costly = sorted((one for one in order if one.name in keep), key=lambda one: (-one.operations, one.noise, one.name))
    for one in costly[:MOST_TRIALS]:
        fewer = best.keep - {one.name}
        found = score(fewer)
        if found >= least:
            best = Found(fewer, found)
    return best
