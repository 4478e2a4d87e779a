"""The option --report: its name is checked before the work, the latency is measured after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onnxopt.cli.options import parse_dims
from onnxopt.errors import (
    OnnxOptError,
    OptionError,
)

if TYPE_CHECKING:
    from onnxopt.pipeline import Report
    from onnxopt.quant import Quantization


def measure_latency(result: Report | Quantization, models: list[Path], dim: list[str] | None) -> None:
    """For a report; what cannot be measured is a warning."""
    from onnxopt.runtime.bench import compare_models

    try:
        result.latency = compare_models(models, threads=2, rounds=3, dims=parse_dims(dim))
    except OnnxOptError as error:
        result.warnings.append(f"Latency was not measured: {error}")


def check_report(path: Path, option: str = "--report", suffixes: tuple[str, ...] = (".html", ".json")) -> None:
    """Refuse, before the work, a file that an option names and that could not be written after it."""
    if path.suffix not in suffixes:
        raise OptionError(f"{option} {path}: expected a name that ends in {' or '.join(suffixes)}.")
    if not path.absolute().parent.is_dir():
        raise OptionError(f"{option} {path}: the folder '{path.parent}' does not exist.")
    if path.is_dir():
        raise OptionError(f"{option} {path}: that is a folder.")
