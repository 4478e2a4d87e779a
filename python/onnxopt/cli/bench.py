"""onnxopt bench and onnxopt bench-kernel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxopt.cli.app import app
from onnxopt.cli.options import Dims, Json, Kernels, load_kernels, parse_dims, parse_sizes
from onnxopt.cli.output import make_console, print_json, print_table, progress
from onnxopt.cli.reports import check_report

if TYPE_CHECKING:
    from onnxopt.kernelbench import KernelBench


@app.command()
def bench(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Models to compare; the first is the reference.")
    ],
    threads: Annotated[int, typer.Option(min=1, help="Threads of each session.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Bursts of each model, in turn.")] = 7,
    dim: Dims = None,
    as_json: Json = False,
) -> None:
    """Compare the latency of models on equal random inputs: in turn, medians, ratios to the first."""
    from onnxopt.runtime.bench import compare_models

    with progress("Measuring", rounds * len(models)) as tick:
        found = compare_models(
            models, threads=threads, rounds=rounds, dims=parse_dims(dim), tick=lambda: tick("Measuring")
        )
    if as_json:
        return print_json(found)
    rows = [
        (one.name, f"{one.median_ms:.3f}", f"{one.fastest_ms:.3f}", f"{one.slowest_ms:.3f}", f"{one.speedup:.2f} x")
        for one in found
    ]
    print_table(make_console(), f"{threads} threads", ("model", "median ms", "fastest", "slowest", "speed-up"), rows)
    return None


@app.command(name="bench-kernel")
def bench_kernel(
    op: Annotated[str, typer.Argument(metavar="OP", help="A custom op, as `onnxopt ops` lists them.")],
    shape: Annotated[
        list[str] | None, typer.Option(help="Sizes of a problem: 16384x768 for FusedNorm. May be repeated.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of inputs and outputs.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    variant: Annotated[
        list[str] | None,
        typer.Option(help="A kernel variant, or all; unasked, the one that this machine chooses. May be repeated."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each session.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Bursts of each contender, in turn.")] = 5,
    kernels: Kernels = None,
    problems: Annotated[
        Path | None, typer.Option(help="A Python file with PROBLEMS, of ops of yours or other ones of ours.")
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Write the roofline to an SVG file.")] = None,
    as_json: Json = False,
) -> None:
    """Measure kernels of OP: right first, then beside onnxruntime's own ops and the ceilings of this machine."""
    from onnxopt.kernelbench import bench_kernel as run
    from onnxopt.kernelbench import load_problems

    if chart is not None:
        check_report(chart, "--chart", (".svg",))
    load_kernels(kernels)
    with progress(f"Measuring {op}") as tick:
        found = run(
            op,
            [parse_sizes(text) for text in shape or []],
            dtype=dtype,
            device=device,
            variants=variant,
            threads=threads,
            rounds=rounds,
            problems=None if problems is None else load_problems(problems),
            tick=tick,
        )
    if chart is not None:
        from onnxopt.kernelbench.roofline import draw

        chart.write_text(draw(found), encoding="utf-8")
    if as_json:
        return print_json(found)
    _print_kernels(found)
    return None


def _print_kernels(found: KernelBench) -> None:
    limits = found.ceilings
    rows = [
        (
            "x".join(map(str, one.shape)),
            one.variant,
            f"{one.median_ms:.4f}",
            f"{one.gigabytes_per_second:.1f}",
            f"{one.gigaoperations_per_second:.1f}",
            f"{one.of_ceiling:.0%} of {one.bound}",
            "-" if one.times_onnxruntime is None else f"{one.times_onnxruntime:.2f} x",
            f"{one.error:.0e}",
        )
        for one in found.measurements
    ]
    header = ("shape", "variant", "median ms", "GB/s", "G op/s", "of ceiling", "speed-up", "error")
    print_table(make_console(), f"{found.op}, {found.dtype}, {limits.threads} threads", header, rows)
    if found.besides:
        typer.echo(f"onnxruntime also {found.besides}")
    if found.unmeasured:
        typer.echo(f"onnxruntime was not measured: {found.unmeasured}")
    bytes_rate = "" if limits.int8 is None else f", products of bytes {limits.int8 / 1e9:.0f} G op/s"
    typer.echo(
        f"ceilings: copying {limits.copying / 1e9:.1f} GB/s, reading {limits.reading / 1e9:.1f} GB/s, "
        f"products {limits.float32 / 1e9:.0f} G op/s{bytes_rate}"
    )
