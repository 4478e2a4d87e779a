"""The `onnxopt` command. Every subcommand is a few lines over the Python API; heavy modules load inside the commands that need them."""

# The order of the imports of commands is that of the help.
# ruff: noqa: I001
from __future__ import annotations

import atexit
import gc
import io
import json
import sys
from collections.abc import Mapping

import typer

from onnxopt.cli import optimize, quantize, inspect, compare, explain, inline, bench, tune  # noqa: F401
from onnxopt.cli.app import EXIT_CODES, app
from onnxopt.cli.options import parse_dims, parse_shapes
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

__all__ = ["EXIT_CODES", "app", "exit_code", "main", "parse_dims", "parse_shapes"]

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


INTERRUPTED = 130
"""What typer exits with where a command is interrupted."""

OBJECTS_BETWEEN_COLLECTIONS = 500_000
"""New objects after which Python looks for garbage: a command makes many objects and hardly any garbage, and its 700 cost a tenth of the time."""


def exit_code(error: BaseException) -> int:
    """The documented exit code of an error."""
    return next(code for kind, code in _CODE_OF if isinstance(error, kind))


def main(arguments: list[str] | None = None) -> None:
    """Run the command; errors of ours become one sentence on standard error and a documented exit code."""
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)  # the end of the process frees what is left faster than a last look for garbage
    try:
        app(arguments)
    except (OnnxOptError, OSError) as error:
        of_system = isinstance(error, OSError) and error.filename is not None
        sentence = f"{error.strerror}: '{error.filename}'" if of_system else str(error)  # type: ignore[union-attr]
        _tell(sentence, type(error).__name__, as_json)
        sys.exit(exit_code(error))
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            _tell("Interrupted.", KeyboardInterrupt.__name__, as_json)
        raise


def _prepare_streams() -> None:
    """Streams that are closed take what is printed and drop it; letters that the encoding of one has no bytes for are written as numbers."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.StringIO())
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _tell(sentence: str, kind: str, as_json: bool) -> None:
    payload: Mapping[str, object] = {"error": sentence, "kind": kind}
    typer.echo(json.dumps(payload) if as_json else f"onnxopt: {sentence}", err=not as_json)
