"""The command itself: its options, and the exit codes that its help names."""

from __future__ import annotations

from typing import Annotated

import typer

EXIT_CODES = {
    0: "success",
    1: "the models differ, or verification failed",
    2: "an option or argument is wrong",
    3: "the model cannot be read or is malformed",
    4: "a pass failed",
    5: "onnxruntime or the native library is missing",
    6: "the output cannot be written",
    130: "interrupted",
}


app = typer.Typer(
    name="onnxopt",
    help="Optimize ONNX models: fold, simplify, fuse, and run the result with fast custom kernels.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
