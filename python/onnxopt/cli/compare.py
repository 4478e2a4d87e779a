"""onnxopt diff and onnxopt verify."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxopt.cli.app import app
from onnxopt.cli.options import Dims, First, Json, Second, parse_dims
from onnxopt.cli.output import human_bytes, human_flops, make_console, print_json, print_table


@app.command()
def diff(first: First, second: Second, dim: Dims = None, as_json: Json = False) -> None:
    """Show how two models differ in ops, sizes, inputs and outputs. Exit code 1 when they do."""
    from onnxopt.inspection import diff as run

    found = run(first, second, parse_dims(dim))
    if as_json:
        print_json(found.to_json())
    elif found.same:
        typer.echo("No difference in ops, sizes, inputs or outputs.")
    else:
        console = make_console()
        console.print(f"nodes {found.nodes[0]} -> {found.nodes[1]}")
        console.print(f"weights {human_bytes(found.weight_bytes[0])} -> {human_bytes(found.weight_bytes[1])}")
        console.print(f"operations {human_flops(found.flops[0])} -> {human_flops(found.flops[1])}")
        for domain, (before, after) in found.opsets.items():
            console.print(f"opset {domain or 'ai.onnx'}: {before or 'absent'} -> {after or 'absent'}")
        for sentence in found.ports:
            console.print(sentence)
        print_table(
            console, "Ops", ("op", "first", "second"), [(op, str(a), str(b)) for op, (a, b) in found.ops.items()]
        )
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
        print_json(found.to_json())
    else:
        typer.echo(found.sentence())
    raise typer.Exit(0 if found.equal else 1)
