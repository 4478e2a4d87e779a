"""Reports of a run: JSON for machines, one self-contained HTML file for people."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from onnxopt import __version__
from onnxopt.explanation import group_near_misses

if TYPE_CHECKING:
    from onnxopt.pipeline import Report

OPS_IN_CHART = 14
"""Bars of the chart of ops: those that changed most; the table below it has all."""


def report_json(report: Report) -> dict[str, Any]:
    """The whole report as plain data. Times are seconds, sizes bytes.

    Returns:
        `onnxopt` (version), `target`, `seconds`, `nodes`, `weight_bytes` and `ops` (each `before` and `after`), `passes` (every run of a
        pass: name, phase, round, seconds, nodes and bytes before and after, patches, modified), `rules` (pass, rule, attempts, applied),
        `rewrites` (number, pass_name, rule, node, op_type), `near_misses` (rule, reason, op_type, node, culprit, count), `warnings`,
        `defects`, `verification` (equal, sentence, samples; None when it was not asked for) and `latency` (per model name, median_ms,
        fastest_ms, slowest_ms, speedup).
    """
    return {
        "onnxopt": __version__,
        "target": report.target,
        "seconds": report.seconds,
        "nodes": {"before": report.nodes_before, "after": report.nodes_after},
        "weight_bytes": {"before": report.bytes_before, "after": report.bytes_after},
        "ops": {"before": report.ops_before, "after": report.ops_after},
        "passes": [record._asdict() for record in report.records],
        "rules": [
            {"pass": pass_name, "rule": rule, "attempts": stats.attempts, "applied": stats.applied}
            for (pass_name, rule), stats in report.rules.items()
        ],
        "rewrites": [patch._asdict() for patch in report.patches],
        "near_misses": [dataclasses.asdict(reason) for reason in group_near_misses(report.near_misses)],
        "warnings": report.warnings,
        "defects": [str(defect) for defect in report.defects],
        "verification": None if report.verification is None else report.verification.to_json(),
        "latency": [dataclasses.asdict(one) for one in report.latency],
    }


def json_text(value: object) -> str:
    """JSON that every parser reads: dataclasses are objects, numbers that are not finite null, whatever else its text."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, numbers.Real) and not isinstance(value, (bool, int)):
        return _plain_number(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _plain_number(value: numbers.Real) -> int | float | None:
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def write_report(path: Path, report: Report, source: Path, output: Path) -> None:
    """Write the report as .json (with the names of both files, `source` and `output`) or .html.

    Raises:
        OSError: the file cannot be written.
    """
    data = {"source": source.name, "output": output.name, **report_json(report)}
    text = json_text(data) if path.suffix == ".json" else _html(data)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _html(data: dict[str, Any]) -> str:
    from importlib.resources import files

    import jinja2

    template = files("onnxopt").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        charts=_charts(data), changed=_changed_ops(data), slow=_slow_passes(data), **data
    )


def _changed_ops(data: dict[str, Any]) -> list[tuple[str, int, int]]:
    before, after = data["ops"]["before"], data["ops"]["after"]
    rows = [(op, before.get(op, 0), after.get(op, 0)) for op in {**before, **after}]
    return sorted(rows, key=lambda row: (-abs(row[1] - row[2]), row[0]))


def _slow_passes(data: dict[str, Any]) -> list[tuple[str, float, int, int]]:
    """Name, seconds, rewrites and runs of each pass, slowest first."""
    totals: dict[str, tuple[float, int, int]] = {}
    for record in data["passes"]:
        seconds, patches, runs = totals.get(record["name"], (0.0, 0, 0))
        totals[record["name"]] = (seconds + record["seconds"], patches + record["patches"], runs + 1)
    return sorted(((name, *total) for name, total in totals.items()), key=lambda row: -row[1])


def _charts(data: dict[str, Any]) -> dict[str, str]:
    """Charts as SVG text without scripts, so that the file needs nothing from outside."""
    changed = [row for row in _changed_ops(data) if row[1] != row[2]][:OPS_IN_CHART]
    passes = _slow_passes(data)[:OPS_IN_CHART]
    charts = {
        "ops": bars(
            "Nodes by op",
            [row[0] for row in changed],
            {"before": [r[1] for r in changed], "after": [r[2] for r in changed]},
        ),
        "passes": bars(
            "Time by pass, ms", [row[0] for row in passes], {"ms": [round(row[1] * 1e3, 2) for row in passes]}
        ),
        "sizes": bars(
            "Weights, MiB",
            ["weights"],
            {side: [round(data["weight_bytes"][side] / 2**20, 2)] for side in ("before", "after")},
        ),
    }
    if data["latency"]:
        charts["latency"] = bars(
            "Latency, ms", ["median"], {one["name"]: [round(one["median_ms"], 3)] for one in data["latency"]}
        )
    return charts


def bars(title: str, labels: list[str], series: dict[str, list[float]]) -> str:
    import pygal
    from pygal.style import CleanStyle

    style = CleanStyle(font_family="system-ui, sans-serif", colors=("#9aa5b1", "#2563eb"))
    chart = pygal.HorizontalBar(
        title=title,
        style=style,
        js=[],
        height=120 + 34 * max(len(labels), 1),
        width=760,
        print_values=True,
        show_y_guides=False,
    )
    chart.x_labels = labels[::-1]  # the first one is drawn at the bottom
    chart.uuid = title.split(",")[0].replace(" ", "-").lower()
    for name, values in series.items():
        chart.add(name, values[::-1])
    return still(chart.render_tree())


def still(svg: Element) -> str:
    """The picture alone: pygal adds scripts for a library that it would load, and comments with the date."""
    from pygal.etree import etree

    for parent in list(svg.iter()):
        for child in list(parent):
            if child.tag == "script" or not isinstance(child.tag, str):
                parent.remove(child)
    return str(etree.tostring(svg, encoding="unicode"))
