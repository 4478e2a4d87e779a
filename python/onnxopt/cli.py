"""The `onnxopt` command. Every subcommand is a few lines over the Python API; heavy modules load inside the commands that need them."""

from __future__ import annotations

import atexit
import dataclasses
import gc
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxopt.errors import (
    CalibrationError,
    MetricError,
    ModelError,
    OnnxOptError,
    OptionError,
    PassError,
    RuntimeMissingError,
    VerificationError,
)

if TYPE_CHECKING:
    from rich.console import Console

    from onnxopt.inspection import Inspection
    from onnxopt.kernelbench import KernelBench
    from onnxopt.pipeline import Report
    from onnxopt.quant import Quantization

EXIT_CODES = {
    0: "success",
    1: "the models differ, or verification failed",
    2: "an option or argument is wrong",
    3: "the model cannot be read or is malformed",
    4: "a pass failed",
    5: "onnxruntime or the native library is missing",
    6: "the output cannot be written",
}
_CODE_OF: tuple[tuple[type[BaseException], int], ...] = (
    (VerificationError, 1),
    (OptionError, 2),
    (CalibrationError, 2),
    (MetricError, 2),
    (ModelError, 3),
    (PassError, 4),
    (RuntimeMissingError, 5),
    (OSError, 6),
    (OnnxOptError, 4),
)

OBJECTS_BETWEEN_COLLECTIONS = 500_000
"""New objects after which Python looks for garbage: a command makes many objects and hardly any garbage, and its 700 cost a tenth of the time."""

app = typer.Typer(
    name="onnxopt",
    help="Optimize ONNX models: fold, simplify, fuse, and run the result with fast custom kernels.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file.")]
First = Annotated[Path, typer.Argument(metavar="FIRST", help="An .onnx file.")]
Second = Annotated[Path, typer.Argument(metavar="SECOND", help="The .onnx file to compare with it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Dims = Annotated[
    list[str] | None,
    typer.Option(
        "--dim",
        help="Fix or bound a dimension: N=1, S=1..512; one without a name is called by its input and axis: x_0=1. May be repeated.",
    ),
]
AllowContrib = Annotated[
    bool,
    typer.Option("--allow-contrib", help="Use onnxruntime's own contrib ops; the result needs onnxruntime."),
]
Kernels = Annotated[
    list[Path] | None,
    typer.Option("--kernels", help="A library of kernels of yours (onnxopt_add_kernel of CMake). May be repeated."),
]
ReportFile = Annotated[Path | None, typer.Option("--report", help="Write a report: .html or .json.")]
TargetName = Annotated[str, typer.Option("--target", help="cpu, cuda, or generic (standard ONNX ops only).")]


def parse_dims(texts: list[str] | None) -> dict[str, int | tuple[int, int]]:
    """Parse `N=1` and `S=1..512`.

    Raises:
        OptionError: a text has another form, or bounds are in the wrong order.
    """
    dims: dict[str, int | tuple[int, int]] = {}
    for text in texts or []:
        name, separator, value = text.partition("=")
        try:
            bounds = [int(part) for part in value.split("..")]
        except ValueError:
            bounds = []
        if not (name and separator and len(bounds) in (1, 2) and bounds == sorted(bounds) and bounds[0] >= 0):
            raise OptionError(f"--dim {text}: expected NAME=SIZE or NAME=LOWEST..HIGHEST with sizes of at least 0.")
        dims[name] = bounds[0] if len(bounds) == 1 else (bounds[0], bounds[1])
    return dims


def parse_shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Parse `ids:1x128,mask:1x128`.

    Raises:
        OptionError: a text has another form, or an input has two shapes.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in (part for one in texts or [] for part in one.split(",")):
        name, separator, sizes = text.rpartition(":")
        if not (name and separator) or name in shapes or not all(size.isdecimal() for size in sizes.split("x")):
            raise OptionError(
                f"--input-shapes {text}: expected INPUT:SIZExSIZE, each input once, with commas between them."
            )
        shapes[name] = tuple(map(int, sizes.split("x")))
    return shapes


def parse_sizes(text: str) -> tuple[int, ...]:
    """Parse `16384x768`.

    Raises:
        OptionError: the text has another form.
    """
    if not all(size.isdecimal() for size in text.split("x")):
        raise OptionError(f"--shape {text}: expected SIZExSIZE.")
    return tuple(map(int, text.split("x")))


PIPED_WIDTH = 1 << 16
"""Longer than any line: names of nodes and shapes of symbolic dims are printed whole."""


# --- output --------------------------------------------------------------------------------------------------------
def human_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def human_seconds(seconds: float) -> str:
    return (
        f"{seconds * 1e6:.0f} us"
        if seconds < 1e-3
        else f"{seconds * 1e3:.1f} ms"
        if seconds < 1
        else f"{seconds:.2f} s"
    )


def human_flops(count: float | None) -> str:
    if count is None:
        return "unknown"
    for unit in ("", "K", "M", "G"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}FLOP"
        count /= 1000
    return f"{count:.3g} TFLOP"


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    # What is piped goes to programs and files: lines are not cut to the width of a terminal that is not there.
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else PIPED_WIDTH
    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=width is not None, width=width)


def _print_json(value: object) -> None:
    from onnxopt.report import json_text

    typer.echo(json_text(value))


@contextmanager
def _progress(label: str, total: float | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error; nothing at all when that is not a terminal. What it yields takes a text, and how much is done where
    that is not one more."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)

        def tick(text: str, completed: float | None = None) -> None:
            progress.update(task, description=text, completed=completed, advance=1 if completed is None else None)

        yield tick


def _table(console: Console, title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*header, title=title, title_justify="left", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)


# --- commands ------------------------------------------------------------------------------------------------------
@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the versions of onnxopt and of what it runs on.")
    ] = False,
    cmake_dir: Annotated[
        bool, typer.Option("--cmake-dir", help="Print where CMake finds onnxopt, to build kernels of your own.")
    ] = False,
) -> None:
    if version or cmake_dir:
        from onnxopt.runtime import library

        typer.echo(library.describe() if version else library.cmake_dir())
        raise typer.Exit


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
        _check_report(report)
    options = Options(
        inline_functions=inline_functions,
        opset=opset,
        fast_math=fast_math,
        unroll_nodes=unroll_nodes,
        unroll_factor=unroll_factor,
    )
    reports: list[Report] = []
    with _progress(f"Optimizing {model.name}") as tick:
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
        from onnxopt.report import write_report

        if report.suffix == ".html":
            _measure_latency(result, [model, output], dim)
        write_report(report, result, model, output)
    if as_json:
        _print_json(_report_json(result))
    else:
        _print_summary(result, model, output)
    _warn([*result.warnings, *(f"a rewrite was left out: {defect}" for defect in result.defects)])
    if result.verification is not None and not result.verification.equal:
        raise typer.Exit(1)


def _measure_latency(result: Report | Quantization, models: list[Path], dim: list[str] | None) -> None:
    """For a report; what cannot be measured is a warning."""
    from onnxopt.runtime.bench import compare_models

    try:
        result.latency = compare_models(models, threads=2, rounds=3, dims=parse_dims(dim))
    except OnnxOptError as error:
        result.warnings.append(f"Latency was not measured: {error}")


def _parse_passes(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if "" in names:
        raise OptionError(
            f"--passes '{text}': expected names of passes with commas between them; see `onnxopt passes`."
        )
    return names


def _check_report(path: Path) -> None:
    if path.suffix not in (".html", ".json"):
        raise OptionError(f"--report {path}: expected a name that ends in .html or .json.")
    if not path.absolute().parent.is_dir():
        raise OptionError(f"--report {path}: the folder '{path.parent}' does not exist.")


def _report_json(result: Report) -> dict[str, Any]:
    from onnxopt.report import report_json

    return report_json(result)


def _print_summary(result: Report, source: Path, output: Path) -> None:
    console = _console()
    size = human_bytes(result.bytes_before), human_bytes(result.bytes_after)
    console.print(
        f"{source.name}: {result.nodes_before} -> {result.nodes_after} nodes, weights {size[0]} -> {size[1]}, "
        f"{len(result.patches)} rewrites in {human_seconds(result.seconds)}; wrote {output}"
    )
    if sys.stdout.isatty():
        changed = {*result.ops_before, *result.ops_after}
        rows = [(op, result.ops_before.get(op, 0), result.ops_after.get(op, 0)) for op in sorted(changed)]
        different = [(op, str(a), str(b)) for op, a, b in rows if a != b]
        _table(console, "Ops that changed", ("op", "before", "after"), different)
    if result.verification is not None:
        console.print(result.verification.sentence())


def _warn(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        typer.echo(f"warning: {sentence}", err=True)


Calib = Annotated[
    str | None,
    typer.Option(
        "--calib",
        help="Samples: a folder of .npz files with an array per input, or of .npy files; or module:function or file.py:function that "
        "returns an iterable of dicts of arrays.",
    ),
]
Format = Annotated[
    str,
    typer.Option(
        "--format", help="fused: our INT8 ops, then optimized; qdq: standard QuantizeLinear and DequantizeLinear."
    ),
]
Range = Annotated[
    str,
    typer.Option("--range", help="How ranges of activations are chosen: minmax, percentile, mse, entropy, auto."),
]
Smooth = Annotated[
    bool,
    typer.Option(help="Move scales of channels from activations into weights, where samples show that it helps."),
]
BiasCorrection = Annotated[
    bool,
    typer.Option(help="Add to biases what rounding takes from results on average over the samples."),
]
Rounding = Annotated[
    str,
    typer.Option(help="Of weights: nearest, or adaptive, for the least error of results on the samples (slower)."),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        help="How much worse it may be: 0.5% of the float model's metric, a difference like 0.01, or 30dB in the outputs."
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        help="module:function or file.py:function that takes an onnxruntime session and returns a number, higher is better."
    ),
]
Keep = Annotated[
    list[str] | None, typer.Option("--keep", help="A convolution or product that stays in float. May be repeated.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="int8 or int4: the weights of products alone become integers, which needs no samples; for products of few rows."
    ),
]
Block = Annotated[
    int | None,
    typer.Option(help="Rows of these weights that share the scale of a column; unasked, 32 of int4 and all of int8."),
]


@app.command()
def quantize(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the quantized model.")],
    calib: Calib = None,
    format: Format = "fused",
    method: Range = "mse",
    smooth: Smooth = True,
    bias_correction: BiasCorrection = True,
    rounding: Rounding = "nearest",
    max_drop: MaxDrop = None,
    metric: MetricName = None,
    keep: Keep = None,
    weights: Weights = None,
    block: Block = None,
    target: TargetName = "cpu",
    dim: Dims = None,
    report: ReportFile = None,
    external_data: Annotated[str | None, typer.Option(help="Weights: auto, inside or external.")] = None,
    as_json: Json = False,
) -> None:
    """Turn the float MODEL into one that multiplies 8-bit integers, or one that reads its weights as integers."""
    from onnxopt.quant import quantize as run
    from onnxopt.quant.user_functions import load_function

    if report is not None:
        _check_report(report)
    found: list[Quantization] = []
    with _progress(f"Quantizing {model.name}") as tick:
        run(
            model,
            output,
            calibration=_calibration(calib),
            format=format,
            method=method,
            target=target,
            smooth=smooth,
            bias_correction=bias_correction,
            rounding=rounding,
            keep=keep or (),
            max_drop=max_drop,
            metric=None if metric is None else load_function(metric, "--metric"),
            weights=weights,
            block=block,
            dims=parse_dims(dim),
            external_data=external_data,
            tick=tick,
            report=found.append,
        )
    (result,) = found
    if report is not None:
        _report_quantization(report, result, model, output, dim)
    if as_json:
        _print_json(dataclasses.asdict(result))
    else:
        _print_quantization(result, output)
    _warn(result.warnings)


def _calibration(text: str | None) -> Path | Callable[[], Iterable[Mapping[str, Any]]] | None:
    """The samples that --calib names: of a function where there is no such folder, but a colon."""
    from onnxopt.quant.user_functions import load_function

    if text is None or Path(text).exists() or ":" not in text:
        return None if text is None else Path(text)
    return load_function(text, "--calib")


def _report_quantization(report: Path, result: Quantization, source: Path, output: Path, dim: list[str] | None) -> None:
    from onnxopt.quant.report import write_report

    _measure_latency(result, [source, output], dim)
    write_report(report, result, source, output)


def _print_quantization(result: Quantization, output: Path) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in result.quantized.items()) or "nothing"
    bits = "8 bits" if result.weights is None else f"float, weights of {result.weights}"
    print(
        f"{output}: {kinds} in {bits}; weights {human_bytes(result.bytes_before)} -> {human_bytes(result.bytes_after)}"
    )
    for name, ratio in result.sqnr.items():
        print(f"  {name}: {ratio:.1f} dB of signal to quantization noise")
    if result.metric is not None:
        found, floats = result.metric, sum(layer.precision == "float" for layer in result.layers)
        print(
            f"  {found.name}: {found.before:.6g} -> {found.after:.6g}, {'within' if found.within else 'not within'} {found.budget}; "
            f"{floats} of {len(result.layers)} layers stay in float"
        )


@app.command()
def inspect(model: Model, dim: Dims = None, as_json: Json = False) -> None:
    """Show ops, sizes, shapes, floating-point operations and memory of MODEL."""
    from onnxopt.inspection import inspect as run

    found = run(model, parse_dims(dim))
    _warn(found.warnings)
    if as_json:
        return _print_json(found.to_json())
    console = _console()
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found.opsets.items())
    producer = f", made by {found.producer}" if found.producer else ""
    console.print(f"{model.name}: {found.nodes} nodes, IR {found.ir_version}, opsets {opsets}{producer}")
    dtypes = ", ".join(f"{dtype} {human_bytes(size)}" for dtype, size in found.weight_bytes_by_dtype.items())
    console.print(
        f"weights: {human_bytes(found.weight_bytes)} in {found.initializers} tensors" + (dtypes and f" ({dtypes})")
    )
    console.print(f"operations: {human_flops(found.flops)}{_not_counted(found)}")
    if found.peak_activation_bytes is not None:
        console.print(f"activations alive at once: at most {human_bytes(found.peak_activation_bytes)}")
    console.print(f"shapes known: {found.values_with_shape} of {found.values} values; {found.functions} functions")
    ports = [("in", *_port_row(port)) for port in found.inputs] + [("out", *_port_row(port)) for port in found.outputs]
    _table(console, "Inputs and outputs", ("", "name", "dtype", "shape"), ports)
    ops = [(op, str(count), _op_flops(found, op)) for op, count in found.ops.items()]
    _table(console, "Ops", ("op", "nodes", "operations"), ops)
    return None


def _not_counted(found: Inspection) -> str:
    """What the operations leave out, and how to have them all."""
    if not found.unknown_flops:
        return ""
    names = " ".join(f"--dim {name}=..." for name in found.open_dims)
    remedy = f": fix dims with {names}" if names else ""
    return f" ({found.unknown_flops} nodes of unknown sizes not counted{remedy})"


def _op_flops(found: Inspection, op: str) -> str:
    known, unknown = found.flops_by_op.get(op, 0), op in found.unknown_flops_by_op
    if unknown:
        return f"{human_flops(known)} and more" if known else "unknown"
    return human_flops(known) if known else ""


def _port_row(port: Any) -> tuple[str, str, str]:
    return port.name, port.dtype, "?" if port.shape is None else " x ".join(port.shape) or "scalar"


@app.command()
def diff(first: First, second: Second, dim: Dims = None, as_json: Json = False) -> None:
    """Show how two models differ in ops, sizes, inputs and outputs. Exit code 1 when they do."""
    from onnxopt.inspection import diff as run

    found = run(first, second, parse_dims(dim))
    if as_json:
        _print_json(found.to_json())
    elif found.same:
        typer.echo("No difference in ops, sizes, inputs or outputs.")
    else:
        console = _console()
        console.print(f"nodes {found.nodes[0]} -> {found.nodes[1]}")
        console.print(f"weights {human_bytes(found.weight_bytes[0])} -> {human_bytes(found.weight_bytes[1])}")
        console.print(f"operations {human_flops(found.flops[0])} -> {human_flops(found.flops[1])}")
        for domain, (before, after) in found.opsets.items():
            console.print(f"opset {domain or 'ai.onnx'}: {before or 'absent'} -> {after or 'absent'}")
        for sentence in found.ports:
            console.print(sentence)
        _table(console, "Ops", ("op", "first", "second"), [(op, str(a), str(b)) for op, (a, b) in found.ops.items()])
    raise typer.Exit(0 if found.same else 1)


@app.command()
def verify(
    first: First,
    second: Second,
    samples: Annotated[int, typer.Option(min=1, help="Random inputs to try.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the random inputs.")] = 0,
    dim: Dims = None,
    as_json: Json = False,
) -> None:
    """Compare the outputs of two models on random inputs drawn over their dynamic dimensions. Exit code 1 when they differ."""
    from onnxopt.runtime.verify import verify as run

    found = run(first, second, samples=samples, dims=parse_dims(dim), seed=seed)
    if as_json:
        _print_json(found.to_json())
    else:
        typer.echo(found.sentence())
    raise typer.Exit(0 if found.equal else 1)


@app.command()
def explain(
    model: Model,
    rule: Annotated[str | None, typer.Option(help="Only this rule.")] = None,
    target: TargetName = "cpu",
    dim: Dims = None,
    as_json: Json = False,
) -> None:
    """Tell what was rewritten in MODEL, and why rules that nearly applied did not."""
    from onnxopt.explanation import explain as run

    found = run(model, target=target, rule=rule, dims=parse_dims(dim))
    if as_json:
        return _print_json(found.to_json())
    console = _console()
    rows = [(one.rule, one.pass_name, str(one.applied), str(one.attempts or "")) for one in found.rules]
    _table(console, "Rules", ("rule", "pass", "applied", "tried"), rows)
    for miss in found.near_misses:
        where = f"{miss.op_type} '{miss.node}'" + (f" and {miss.count - 1} more" if miss.count > 1 else "")
        console.print(f"{miss.rule} did not apply at {where}: {miss.reason}")
    if not found.near_misses:
        console.print("No rule nearly applied without applying.")
    return None


@app.command()
def passes(as_json: Json = False) -> None:
    """List the passes, in the order in which the pipeline runs them."""
    from onnxopt.pipeline import describe_passes

    found = describe_passes()
    if as_json:
        return _print_json(found)
    for one in found:
        typer.echo(f"{one['name']:32s} {one['phase']:13s} {one['summary']}")
    return None


@app.command()
def ops(kernels: Kernels = None, as_json: Json = False) -> None:
    """List the custom ops, their kernel variants, and which variant this machine runs."""
    from onnxopt.ops import describe_ops

    _load(kernels)
    found = describe_ops()
    if as_json:
        return _print_json(found)
    for one in found:
        typer.echo(f"{one['domain']}::{one['op']}")
        for variant in one["variants"]:
            mark = "*" if variant["chosen"] else " "
            problem = "" if variant["usable"] else f"  ({variant['problem']})"
            typer.echo(f"  {mark} {variant['name']:36s} needs {variant['isa']}{problem}")
    return None


@app.command()
def inline(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the model.")],
    as_json: Json = False,
) -> None:
    """Put the standard ONNX ops back in place of onnxopt's custom ops."""
    from onnxopt.pipeline import optimize as run

    reports: list[Report] = []
    run(model, output, passes=["inline_custom_ops", "eliminate_dead_code"], report=reports.append)
    if as_json:
        _print_json(_report_json(reports[0]))
    else:
        _print_summary(reports[0], model, output)


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

    with _progress("Measuring", rounds * len(models)) as tick:
        found = compare_models(
            models, threads=threads, rounds=rounds, dims=parse_dims(dim), tick=lambda: tick("Measuring")
        )
    if as_json:
        return _print_json(found)
    rows = [
        (one.name, f"{one.median_ms:.3f}", f"{one.fastest_ms:.3f}", f"{one.slowest_ms:.3f}", f"{one.speedup:.2f} x")
        for one in found
    ]
    _table(_console(), f"{threads} threads", ("model", "median ms", "fastest", "slowest", "speed-up"), rows)
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

    _load(kernels)
    with _progress(f"Measuring {op}") as tick:
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
        return _print_json(found)
    _print_kernels(found)
    return None


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
    with _progress(f"Tuning {model.name}", time) as tick:
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
        return _print_json(found)
    console, measured = _console(), found.tuning.measured
    rows = [(trial.name, _middle(trial.ratios), str(len(trial.ratios)), trial.refused) for trial in found.trials]
    _table(console, "Trials", ("contender | rival", "speed-up", "rounds", "not measured"), rows)
    speeds = [f"{measured[name]:.2f} times as fast as {what}" for name, what in _RIVALS.items() if name in measured]
    console.print(f"Fastest: {found.chosen}{', ' if speeds else ''}{', '.join(speeds)}; wrote {found.file}")
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
    _table(_console(), f"{found.op}, {found.dtype}, {limits.threads} threads", header, rows)
    if found.besides:
        typer.echo(f"onnxruntime also {found.besides}")
    if found.unmeasured:
        typer.echo(f"onnxruntime was not measured: {found.unmeasured}")
    bytes_rate = "" if limits.int8 is None else f", products of bytes {limits.int8 / 1e9:.0f} G op/s"
    typer.echo(
        f"ceilings: copying {limits.copying / 1e9:.1f} GB/s, reading {limits.reading / 1e9:.1f} GB/s, "
        f"products {limits.float32 / 1e9:.0f} G op/s{bytes_rate}"
    )


def _load(kernels: list[Path] | None) -> None:
    from onnxopt.runtime.library import load_kernels

    for path in kernels or []:
        load_kernels(path)


_RIVALS = {"times_original": "the original", "times_default": "the default"}


def _middle(ratios: Sequence[float]) -> str:
    from statistics import median

    return f"{median(ratios):.3f} x" if ratios else ""


def exit_code(error: BaseException) -> int:
    """The documented exit code of an error."""
    return next(code for kind, code in _CODE_OF if isinstance(error, kind))


def main(arguments: list[str] | None = None) -> None:
    """Run the command; errors of ours become one sentence on standard error and a documented exit code."""
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)  # the end of the process frees what is left faster than a last look for garbage
    try:
        app(arguments)
    except (OnnxOptError, OSError) as error:
        payload: Mapping[str, object] = {"error": str(error), "kind": type(error).__name__}
        typer.echo(json.dumps(payload) if as_json else f"onnxopt: {error}", err=not as_json)
        sys.exit(exit_code(error))
