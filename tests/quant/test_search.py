"""The search over layers, with metrics that are computed instead of measured."""

from __future__ import annotations

import random

import pytest

from onnxopt.quant.search import Candidate, search


def additive(candidates: list[Candidate], seen: list[frozenset[str]]):  # type: ignore[no-untyped-def]
    """A metric that loses the noise of every layer in integers."""

    def score(keep: frozenset[str]) -> float:
        seen.append(keep)
        return -sum(one.noise for one in candidates if one.name not in keep)

    return score


LAYERS = [Candidate("a", 10, 0.5), Candidate("b", 10, 0.1), Candidate("c", 1000, 0.6), Candidate("d", 1, 0.2)]


@pytest.mark.parametrize(
    ("least", "keep"), [(-2.0, ""), (-1.3, "d"), (-1.25, "d"), (-0.95, "a"), (-0.7, "ad"), (-0.1, "acd"), (0.0, "abcd")]
)
def test_keeps_the_noisiest_and_cheapest(least: float, keep: str) -> None:
    seen: list[frozenset[str]] = []
    found = search(LAYERS, additive(LAYERS, seen), least)
    assert found.keep == frozenset(keep) and found.score >= least


def test_all_layers_in_float_where_nothing_is_good_enough() -> None:
    found = search(LAYERS, lambda keep: -1.0, 0.0)
    assert found.keep == {"a", "b", "c", "d"} and found.score == -1.0


def test_a_model_without_layers() -> None:
    assert search([], lambda keep: -1.0, 0.0).keep == frozenset()


def test_random_models_stay_within_budget_and_few_are_measured() -> None:
    draw = random.Random(0)
    for _ in range(30):
        layers = [Candidate(f"l{i}", draw.randrange(1, 10**6), draw.random() ** 4) for i in range(60)]
        total, seen = sum(one.noise for one in layers), []  # type: ignore[var-annotated]
        least = -total * draw.random()
        found = search(layers, additive(layers, seen), least)
        assert found.score >= least - 1e-12 and len(seen) <= 40
        floats = sum(one.operations for one in layers if one.name in found.keep)
        assert floats < sum(one.operations for one in layers)
