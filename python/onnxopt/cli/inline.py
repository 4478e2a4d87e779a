"""onnxopt inline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxopt.cli.app import app
from onnxopt.cli.optimize import print_summary, report_json
from onnxopt.cli.options import Json, Model
from onnxopt.cli.output import print_json

if TYPE_CHECKING:
    from onnxopt.pipeline import Report


@app.command()
def inline(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the model.")],
    as_json: Json = False,
) -> None:
    """Put the standard ONNX ops back in place of onnxopt's custom ops."""
    from onnxopt.pipeline import optimize as run

    reports: list[Report] = []
    run(model, output, target="generic", passes=["inline_custom_ops", "eliminate_dead_code"], report=reports.append)
    if as_json:
        print_json(report_json(reports[0]))
    else:
        print_summary(reports[0], model, output)
