"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxopt.errors import (
    OptionError,
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
        OptionError: a text has another form, bounds are in the wrong order, or a dim is given twice.
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
        if name in dims:
            raise OptionError(f"--dim {text}: the dim '{name}' is given twice.")
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


def load_kernels(kernels: list[Path] | None) -> None:
    """Let the libraries of `--kernels` be known."""
    from onnxopt.runtime import library

    for path in kernels or []:
        library.load_kernels(path)
