"""onnxopt optimize."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxopt.cli.app import app
from onnxopt.cli.options import AllowContrib, Dims, Json, Model, ReportFile, TargetName, parse_dims
from onnxopt.cli.output import human_bytes, human_seconds, make_console, print_json, print_table, progress, warn
from onnxopt.cli.reports import check_report, measure_latency
from onnxopt.errors import (
    OptionError,
)

if TYPE_CHECKING:
    from onnxopt.pipeline import Report


@app.command()
def optimize(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the optimized model.")],
    target: TargetName = "cpu",
    passes: Annotated[str | None, typer.Option(help="Comma-separated passes to run instead of the pipeline.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare outputs with the original's on random inputs.")
    ] = False,
    dim: Dims = None,
    report: ReportFile = None,
    external_data: Annotated[
        str | None,
        typer.Option(help="Weights: auto, inside, external, or reference (keep referring to the input's data file)."),
    ] = None,
    inline_functions: Annotated[bool, typer.Option("--inline-functions", help="Inline model-local functions.")] = False,
    opset: Annotated[int | None, typer.Option(help="Upgrade the model to this opset first.")] = None,
    fast_math: Annotated[bool, typer.Option("--fast-math", help="Allow rewrites that change rounding.")] = False,
    unroll_nodes: Annotated[
        int | None,
        typer.Option(help="Write every loop out that takes at most so many nodes; unasked, only where it pays."),
    ] = None,
    unroll_factor: Annotated[
        int | None, typer.Option(help="Let each iteration of a long loop do the work of so many.")
    ] = None,
    tuning: Annotated[Path | None, typer.Option(help="What `onnxopt tune` found for this model.")] = None,
    allow_contrib: AllowContrib = False,
    as_json: Json = False,
) -> None:
    """Optimize MODEL and write the result to OUTPUT."""
    from onnxopt.passes.base import Options
    from onnxopt.pipeline import optimize as run

    chosen = _parse_passes(passes)
    if report is not None:
        check_report(report)
    options = Options(
        inline_functions=inline_functions,
        opset=opset,
        fast_math=fast_math,
        unroll_nodes=unroll_nodes,
        unroll_factor=unroll_factor,
    )
    reports: list[Report] = []
    with progress(f"Optimizing {model.name}") as tick:
        run(
            model,
            output,
            target=target,
            passes=chosen,
            dims=parse_dims(dim),
            verify=verify,
            options=options,
            tuning=tuning,
            allow_contrib=allow_contrib,
            external_data=external_data,
            report=reports.append,
            explain=report is not None,
            instruments=[lambda when, name, *_: tick(name) if when == "before" else None],
        )
    result = reports[0]
    if report is not None:
        _write_report(report, result, model, output, dim)
    if as_json:
        print_json(report_json(result))
    else:
        print_summary(result, model, output)
    warn([*result.warnings, *(f"a rewrite was left out: {defect}" for defect in result.defects)])
    if result.verification is not None and not result.verification.equal:
        raise typer.Exit(1)


def _write_report(path: Path, result: Report, source: Path, output: Path, dim: list[str] | None) -> None:
    from onnxopt.report import write_report

    if path.suffix == ".html":
        measure_latency(result, [source, output], dim)
    write_report(path, result, source, output)


def _parse_passes(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if "" in names:
        raise OptionError(
            f"--passes '{text}': expected names of passes with commas between them; see `onnxopt passes`."
        )
    return names


def report_json(result: Report) -> dict[str, Any]:
    from onnxopt.report import report_json

    return report_json(result)


def print_summary(result: Report, source: Path, output: Path) -> None:
    console = make_console()
    size = human_bytes(result.bytes_before), human_bytes(result.bytes_after)
    console.print(
        f"{source.name}: {result.nodes_before} -> {result.nodes_after} nodes, weights {size[0]} -> {size[1]}, "
        f"{len(result.patches)} rewrites in {human_seconds(result.seconds)}; wrote {output}"
    )
    if sys.stdout.isatty():
        changed = {*result.ops_before, *result.ops_after}
        rows = [(op, result.ops_before.get(op, 0), result.ops_after.get(op, 0)) for op in sorted(changed)]
        different = [(op, str(a), str(b)) for op, a, b in rows if a != b]
        print_table(console, "Ops that changed", ("op", "before", "after"), different)
    if result.verification is not None:
        console.print(result.verification.sentence())
