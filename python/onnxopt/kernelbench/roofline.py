"""The roofline of a run as a picture (S. Williams, A. Waterman, D. Patterson: "Roofline", CACM 52(4), 2009)."""

from __future__ import annotations

import math

from onnxopt.kernelbench.bench import KernelBench
from onnxopt.report import still


def draw(bench: KernelBench) -> str:
    """An SVG: operations per second over operations per byte, both as powers of ten, below the two ceilings."""
    import pygal
    from pygal.style import CleanStyle

    intensities = [one.intensity for one in bench.measurements]
    low, high = min(intensities) / 4, max(intensities) * 4
    roof = _roof(bench, low, high)
    chart = pygal.XY(
        title=f"{bench.op}, {bench.dtype}, {bench.ceilings.threads} threads",
        x_title="operations per byte",
        y_title="operations per second, 10^9",
        style=CleanStyle(font_family="system-ui, sans-serif"),
        js=[],
        width=760,
        height=480,
        x_value_formatter=_power,
        value_formatter=_power,
    )
    chart.add("ceiling", [(math.log10(x), math.log10(y / 1e9)) for x, y in roof], show_dots=False)
    for name in dict.fromkeys(one.variant for one in bench.measurements):
        points = [
            (math.log10(one.intensity), math.log10(one.gigaoperations_per_second))
            for one in bench.measurements
            if one.variant == name
        ]
        chart.add(name, points, stroke=False, dots_size=5)
    chart.uuid = f"roofline-{bench.op.lower()}"
    return still(chart.render_tree())


def _roof(bench: KernelBench, low: float, high: float) -> list[tuple[float, float]]:
    """Corners of the ceiling, in operations per byte and per second."""
    copying, rate = bench.ceilings.copying, getattr(bench.ceilings, bench.rate)
    if rate is None:
        return [(low, low * copying), (high, high * copying)]
    ridge = rate / copying
    return [(x, min(rate, x * copying)) for x in sorted({min(low, ridge / 4), ridge, max(high, ridge * 4)})]


def _power(exponent: float) -> str:
    return f"{10**exponent:.3g}"
