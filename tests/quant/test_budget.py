"""Budgets as people write them, and metrics that misbehave."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from helpers import model
from onnxopt.errors import MetricError, OptionError
from onnxopt.quant.budget import Budget, Outputs, score
from onnxopt.runtime.library import session

IDENTITY = "g (float[N] x) => (float[N] y, int64[1] n) { y = Identity(x) n = Shape(x) }"
SCALED = "g (float[N] x) => (float[N] y, int64[1] n) { y = Mul(x, c) n = Shape(x) }"


@pytest.mark.parametrize(
    ("text", "before", "least"),
    [("0.5%", 0.8, 0.796), ("1 %", -2.0, -2.02), ("0.01", 0.9, 0.89), ("30dB", math.inf, 30.0), (0.25, 1.0, 0.75)],
)
def test_budgets(text: str | float, before: float, least: float) -> None:
    assert Budget.parse(text).least(before) == pytest.approx(least)


@pytest.mark.parametrize("text", ["", "much", "-1%", "nan", "inf", "5 percent"])
def test_refuses_other_budgets(text: str) -> None:
    with pytest.raises(OptionError, match="The greatest drop is"):
        Budget.parse(text)


def outputs_and(scale: float, samples: list[np.ndarray[Any, Any]]) -> tuple[Outputs, Any]:
    feeds = [{"x": sample} for sample in samples]
    other = session(model(SCALED, c=np.array(scale, np.float32)), library=False)
    return Outputs(session(model(IDENTITY), library=False), feeds), other


def test_noise_and_cosine_of_float_outputs_alone() -> None:
    outputs, other = outputs_and(0.9, [np.arange(5, dtype=np.float32), np.ones(3, np.float32)])
    assert outputs.noise(other) == pytest.approx({"y": 0.01}, rel=1e-5)
    assert outputs.signal_to_noise(other) == pytest.approx(20, rel=1e-5)
    assert outputs.cosine(other) == pytest.approx(1)
    assert outputs.first(1).noise(other) == pytest.approx({"y": 0.01}, rel=1e-5)


def test_tiny_outputs_count_and_zeros_do_not() -> None:
    outputs, other = outputs_and(0.9, [np.full(5, 1e-21, np.float32)])
    assert outputs.signal_to_noise(other) == pytest.approx(20, rel=1e-4)
    outputs, other = outputs_and(0.9, [np.zeros(5, np.float32)])
    assert outputs.noise(other) == {} and outputs.cosine(other) == 1


def test_results_that_are_no_numbers_are_infinitely_bad() -> None:
    outputs, other = outputs_and(math.nan, [np.ones(5, np.float32)])
    assert outputs.signal_to_noise(other) == outputs.cosine(other) == -math.inf


def test_metrics_that_raise_or_give_no_number_are_named() -> None:
    def bad(_: object) -> Any:
        raise KeyError("labels")

    with pytest.raises(MetricError, match="bad' failed for the float model: KeyError: 'labels'"):
        score(bad, None, "the float model")  # type: ignore[arg-type]
    for value, sentence in ((None, "gives None for it"), (math.nan, "is not a number for it")):
        with pytest.raises(MetricError, match=sentence):
            score(lambda _, value=value: value, None, "it")  # type: ignore[arg-type,misc]
