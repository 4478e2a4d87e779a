"""How much accuracy a quantized model may lose, and the numbers that say how much it lost."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt.errors import CalibrationError, MetricError, OptionError, first_line
from onnxopt.quant.samples import Sample

if TYPE_CHECKING:
    import onnxruntime

Metric = Callable[["onnxruntime.InferenceSession"], float]
"""Runs a session on data of its own and says how good the results are; higher is better."""

EXPECTED = (
    "expected a part of the float model's metric (0.5%), a difference (0.01) or signal to noise of the outputs (30dB)"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """The least metric that is good enough: lower than the float model's by at most a part of it or a difference, or a number of dB."""

    amount: float
    unit: str

    @staticmethod
    def parse(text: str | float) -> Budget:
        """From "0.5%", "0.01" or "30dB".

        Raises:
            OptionError: the text has another form, or is negative.
        """
        whole = str(text).strip()
        unit = next((unit for unit in ("%", "dB") if whole.lower().endswith(unit.lower())), "")
        try:
            amount = float(whole[: len(whole) - len(unit)])
        except ValueError:
            amount = math.nan
        if not (math.isfinite(amount) and amount >= 0):
            raise OptionError(f"The greatest drop is '{text}'; {EXPECTED}.")
        return Budget(amount, unit)

    def least(self, before: float) -> float:
        """The least metric that is within the budget, where the float model's is `before`."""
        if self.unit == "dB":
            return self.amount
        return before - (abs(before) * self.amount / 100 if self.unit == "%" else self.amount)

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}".strip()


class Outputs:
    """What the float model gives for some samples, and how near another session comes to it."""

    def __init__(self, session: onnxruntime.InferenceSession, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.names = [output.name for output in session.get_outputs()]
        self.expected = [_results(session, number, sample) for number, sample in enumerate(samples)]
        self.compared = [
            index
            for index in range(len(self.names))
            if any(results[index] is not None and np.any(results[index]) for results in self.expected)
        ]

    def first(self, count: int) -> Outputs:
        """The same over the first samples alone."""
        fewer = copy.copy(self)
        fewer.samples, fewer.expected = self.samples[:count], self.expected[:count]
        return fewer

    def noise(self, session: onnxruntime.InferenceSession) -> dict[str, float]:
        """The energy of the error over that of the output, by output; those that are no floats, or all zero, are left out."""
        signal, error = np.zeros(len(self.names)), np.zeros(len(self.names))
        for sample, expected in zip(self.samples, self.expected, strict=True):
            found = session.run(None, dict(sample))
            for index in self.compared:
                wanted = expected[index]
                assert wanted is not None
                signal[index] += np.square(wanted).sum()
                error[index] += np.square(wanted - found[index]).sum()
        return {self.names[index]: float(error[index] / signal[index]) for index in self.compared if signal[index]}

    def signal_to_noise(self, session: onnxruntime.InferenceSession) -> float:
        """Of the worst output, in dB."""
        return decibels(max(self.noise(session).values(), default=0.0))

    def cosine(self, session: onnxruntime.InferenceSession) -> float:
        """The mean over samples of the cosine between what is expected and what is found, of the worst output; 1 for equal ones."""
        sums = np.zeros(len(self.names))
        for sample, expected in zip(self.samples, self.expected, strict=True):
            found = session.run(None, dict(sample))
            for index in self.compared:
                wanted, other = expected[index], _as_floats(found[index])
                assert wanted is not None and other is not None
                length = math.sqrt(float(np.square(wanted).sum()) * float(np.square(other).sum()))
                sums[index] += float((wanted * other).sum()) / length if length else float(not wanted.any())
        means = [float(sums[index]) / len(self.samples) for index in self.compared]
        return min((one if math.isfinite(one) else -math.inf for one in means), default=1.0)


def _results(session: onnxruntime.InferenceSession, number: int, sample: Sample) -> list[np.ndarray | None]:
    try:
        return [_as_floats(one) for one in session.run(None, dict(sample))]
    except Exception as error:  # onnxruntime's own kinds of errors
        raise CalibrationError(f"Calibration sample {number} cannot be run: {first_line(error)}") from error


def _as_floats(array: Any) -> np.ndarray | None:
    kind = getattr(array, "dtype", np.dtype(object)).kind
    return np.asarray(array, np.float64) if kind == "f" else None


def decibels(noise: float) -> float:
    """Signal to noise of a ratio of their energies; infinite without noise, minus infinite where the noise is no number."""
    if not math.isfinite(noise):
        return -math.inf
    return -10 * math.log10(noise) if noise > 0 else math.inf


def score(metric: Metric, session: onnxruntime.InferenceSession, of: str) -> float:
    """What a metric says of a model; `of` names the model in errors.

    Raises:
        MetricError: the metric fails or gives no finite number; the text says which.
    """
    name = metric_name(metric)
    try:
        found = metric(session)
    except Exception as error:
        raise MetricError(f"The metric {name} failed for {of}: {type(error).__name__}: {first_line(error)}") from error
    try:
        value = float(found)
    except (TypeError, ValueError):
        raise MetricError(f"The metric {name} gives {found!r} for {of}; expected a number.") from None
    if math.isnan(value):
        raise MetricError(f"The metric {name} is not a number for {of}.")
    return value


def metric_name(metric: Metric) -> str:
    return f"'{getattr(metric, '__module__', '')}:{getattr(metric, '__qualname__', type(metric).__name__)}'"


def metric_identity(metric: Metric) -> str:
    """Another text for another metric, as far as its source tells."""
    try:
        source = inspect.getsource(metric)
    except (OSError, TypeError):
        source = ""
    return f"{metric_name(metric)} {hashlib.sha256(source.encode()).hexdigest()}"
