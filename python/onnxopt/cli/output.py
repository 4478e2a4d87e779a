"""What commands print: units, tables, JSON, progress, warnings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console


PIPED_WIDTH = 1 << 16
"""Longer than any line: names of nodes and shapes of symbolic dims are printed whole."""


def human_bytes(count: float) -> str:
    """Bytes in the unit that suits their number: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def human_seconds(seconds: float) -> str:
    """Seconds in the unit that suits them: 1.5 ms."""
    return (
        f"{seconds * 1e6:.0f} us"
        if seconds < 1e-3
        else f"{seconds * 1e3:.1f} ms"
        if seconds < 1
        else f"{seconds:.2f} s"
    )


def human_flops(count: float | None) -> str:
    """Floating-point operations in the unit that suits their number: 1.5 GFLOP."""
    if count is None:
        return "unknown"
    for unit in ("", "K", "M", "G"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}FLOP"
        count /= 1000
    return f"{count:.3g} TFLOP"


def make_console(*, stderr: bool = False) -> Console:
    """What prints tables and sentences, whole where nobody looks at a terminal."""
    from rich.console import Console

    # What is piped goes to programs and files: lines are not cut to the width of a terminal that is not there.
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else PIPED_WIDTH
    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=width is not None, width=width)


def print_json(value: object) -> None:
    from onnxopt.report import json_text

    typer.echo(json_text(value))


@contextmanager
def progress(label: str, total: float | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error; nothing at all when that is not a terminal.

    What it yields takes a text, and where they are known how much is done and of how much (else of what there was before). A bar of which
    nobody knows how long it is moves to and fro."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)

        def tick(text: str, completed: float | None = None, total: float | None = None) -> None:
            progress.update(task, description=text, completed=completed, total=total)

        yield tick


def print_table(console: Console, title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*header, title=title, title_justify="left", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)


def warn(sentences: Iterable[str]) -> None:
    """Sentences on standard error."""
    for sentence in sentences:
        typer.echo(f"warning: {sentence}", err=True)
