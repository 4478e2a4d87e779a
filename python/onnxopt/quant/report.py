"""The report of a quantization: JSON for machines, one self-contained HTML file for people."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt import __version__
from onnxopt.report import bars, json_text

if TYPE_CHECKING:
    from onnxopt.quant.result import ActivationResult, Quantization

BARS = 64
"""Of a histogram as it is drawn: neighbouring bins are added up."""

LAYERS_IN_CHART = 16
"""The layers with the most noise; the table below the chart has all."""


def report_json(result: Quantization) -> dict[str, Any]:
    """The whole result as plain data: the attributes of `Quantization`, and the version of onnxopt."""
    return {"onnxopt": __version__, **dataclasses.asdict(result)}


def write_report(path: Path, result: Quantization, source: Path, output: Path) -> None:
    """Write the report as .json (with the names of both files, `source` and `output`) or .html.

    Raises:
        OSError: the file cannot be written.
    """
    data = {"source": source.name, "output": output.name, **report_json(result)}
    text = json_text(data) if path.suffix == ".json" else _html(data, result)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _html(data: dict[str, Any], result: Quantization) -> str:
    from importlib.resources import files

    import jinja2

    template = files("onnxopt.quant").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["db"] = _decibels
    return environment.from_string(template).render(
        charts=_charts(result), drawn=[(one, _drawn(one)) for one in result.activations], **data
    )


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if math.isfinite(value) else "exact" if value > 0 else "broken"


def _charts(result: Quantization) -> list[str]:
    charts = [
        bars(
            "Weights, MiB",
            ["weights"],
            {"before": [round(result.bytes_before / 2**20, 2)], "after": [round(result.bytes_after / 2**20, 2)]},
        )
    ]
    if result.metric is not None and math.isfinite(result.metric.before):
        found = result.metric
        charts.append(bars("Metric", [found.name], {"before": [found.before], "after": [found.after]}))
    if result.latency:
        charts.append(bars("Latency, ms", ["median"], {one.name: [round(one.median_ms, 3)] for one in result.latency}))
    for title, key in (
        ("Outputs where a layer alone has integers, dB", "output_sqnr"),
        ("Weights of a layer, dB", "weight_sqnr"),
    ):
        known = [(one.name, getattr(one, key)) for one in result.layers]
        known = sorted((row for row in known if row[1] is not None and math.isfinite(row[1])), key=lambda row: row[1])
        known = known[:LAYERS_IN_CHART]
        if known:
            charts.append(bars(title, [row[0] for row in known], {"dB": [round(row[1], 1) for row in known]}))
    return charts


def _drawn(one: ActivationResult) -> dict[str, Any]:
    """A histogram on a logarithmic scale as a path of 64 times 10 units, and where its range begins and ends."""
    counts = np.array(one.counts, np.float64).reshape(BARS, -1).sum(axis=1)
    heights = 10 * np.log1p(counts) / max(math.log1p(counts.max(initial=0.0)), 1e-9)
    width = one.high - one.low
    first, last = (BARS * min(max((end - one.low) / width, 0.0), 1.0) if width > 0 else 0.0 for end in one.range)
    path = "".join(f"M{x} 10V{10 - height:.2f}h1V10z" for x, height in enumerate(heights) if height)
    return {"path": path, "first": round(first, 2), "last": round(last, 2)}
