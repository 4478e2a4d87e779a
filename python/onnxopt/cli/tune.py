"""onnxopt tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from onnxopt.cli.app import app
from onnxopt.cli.options import AllowContrib, Dims, Json, Model, TargetName, parse_dims, parse_shapes
from onnxopt.cli.output import make_console, print_json, print_table, progress


@app.command()
def tune(
    model: Model,
    input_shapes: Annotated[
        list[str] | None,
        typer.Option(
            help="Shapes to measure at: ids:1x128,mask:1x128; needed for inputs with open dims. May be repeated."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The tuning file; MODEL's name with .tuning.toml where not stated."),
    ] = None,
    time: Annotated[
        float, typer.Option(min=0, help="Seconds for trials; those that confirm the result may exceed it.")
    ] = 60,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each session.")] = 2,
    target: TargetName = "cpu",
    dim: Dims = None,
    allow_contrib: AllowContrib = False,
    as_json: Json = False,
) -> None:
    """Measure what is fastest for MODEL on this machine, and write it to a tuning file for `optimize --tuning`."""
    from onnxopt.tuning import tune as run

    shapes, file = parse_shapes(input_shapes), output or model.with_suffix(".tuning.toml")
    with progress(f"Tuning {model.name}", time) as tick:
        found = run(
            model,
            file,
            input_shapes=shapes,
            seconds=time,
            dims=parse_dims(dim),
            target=target,
            threads=threads,
            allow_contrib=allow_contrib,
            tell=tick,
        )
    if as_json:
        return print_json(found)
    console, measured = make_console(), found.tuning.measured
    rows = [(trial.name, _middle(trial.ratios), str(len(trial.ratios)), trial.refused) for trial in found.trials]
    print_table(console, "Trials", ("contender | rival", "speed-up", "rounds", "not measured"), rows)
    speeds = [f"{measured[name]:.2f} times as fast as {what}" for name, what in _RIVALS.items() if name in measured]
    console.print(f"Fastest: {found.chosen}{', ' if speeds else ''}{', '.join(speeds)}; wrote {found.file}")
    return None


_RIVALS = {"times_original": "the original", "times_default": "the default"}


def _middle(ratios: Sequence[float]) -> str:
    from statistics import median

    return f"{median(ratios):.3f} x" if ratios else ""
