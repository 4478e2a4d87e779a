"""What is said of a quantized model: of each layer and activation, and of the whole."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxopt.runtime.bench import Latency


@dataclasses.dataclass(slots=True)
class LayerResult:
    """What became of a layer that can multiply integers.

    Attributes:
        precision: "int8", "int4" or "float".
        reason: why it stayed in float; empty for integers.
        operations: floating-point operations for the first sample; None where sizes are unknown.
        weights: how many numbers its weights are.
        weight_sqnr: signal to quantization noise of its weights, in dB; None in float.
        output_sqnr: of the model's worst output where this layer alone multiplies integers, in dB; None where nobody asked.
        activation: the name of what it multiplies with.
    """

    name: str
    op_type: str
    activation: str
    precision: str
    reason: str
    operations: int | None
    weights: int
    weight_sqnr: float | None = None
    output_sqnr: float | None = None


@dataclasses.dataclass(slots=True)
class ActivationResult:
    """What was seen of an activation: its range in 8 bits, its least and largest element, and counts between `low` and `high`."""

    name: str
    range: tuple[float, float]
    least: float
    largest: float
    low: float
    high: float
    counts: list[int]


@dataclasses.dataclass(slots=True)
class MetricResult:
    """A metric before and after, and the budget that it was to stay within."""

    name: str
    before: float
    after: float
    budget: str
    least: float
    within: bool


@dataclasses.dataclass(slots=True)
class Quantization:
    """What was done: nodes that read integers, by op; bytes of weights before and after; how near the outputs come.

    `sqnr` is the ratio of signal to quantization noise of each float output over the samples, in dB; empty without samples. `layers`,
    `activations` and `metric` say it in detail; the metric is None where no budget was stated. `migrated` has the activations whose scales
    were moved into weights, and by how many dB that lowered the error of the layers that read them. `latency` is filled by who measures it.
    `weights` is their type where they alone became integers.
    """

    format: str
    quantized: dict[str, int]
    bytes_before: int
    bytes_after: int
    weights: str | None = None
    samples: int = 0
    sqnr: dict[str, float] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    layers: list[LayerResult] = dataclasses.field(default_factory=list)
    activations: list[ActivationResult] = dataclasses.field(default_factory=list)
    migrated: dict[str, float] = dataclasses.field(default_factory=dict)
    metric: MetricResult | None = None
    latency: list[Latency] = dataclasses.field(default_factory=list)
