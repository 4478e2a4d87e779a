"""onnxopt quantize."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxopt.cli.app import app
from onnxopt.cli.options import Dims, Json, Model, ReportFile, TargetName, parse_dims
from onnxopt.cli.output import human_bytes, print_json, progress, warn
from onnxopt.cli.reports import check_report, measure_latency

if TYPE_CHECKING:
    from onnxopt.quant import Quantization


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
        check_report(report)
    found: list[Quantization] = []
    with progress(f"Quantizing {model.name}") as tick:
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
        print_json(dataclasses.asdict(result))
    else:
        _print_quantization(result, output)
    warn(result.warnings)


def _calibration(text: str | None) -> Path | Callable[[], Iterable[Mapping[str, Any]]] | None:
    """The samples that --calib names: of a function where there is no such folder, but a colon."""
    from onnxopt.quant.user_functions import load_function

    if text is None or Path(text).exists() or ":" not in text:
        return None if text is None else Path(text)
    return load_function(text, "--calib")


def _report_quantization(report: Path, result: Quantization, source: Path, output: Path, dim: list[str] | None) -> None:
    from onnxopt.quant.report import write_report

    measure_latency(result, [source, output], dim)
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
