"""onnxopt explain, and the lists of what there is: onnxopt passes, onnxopt ops."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxopt.cli.app import app
from onnxopt.cli.options import Dims, Json, Kernels, Model, TargetName, load_kernels, parse_dims
from onnxopt.cli.output import make_console, print_json, print_table


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
        return print_json(found.to_json())
    console = make_console()
    rows = [(one.rule, one.pass_name, str(one.applied), str(one.attempts or "")) for one in found.rules]
    print_table(console, "Rules", ("rule", "pass", "applied", "tried"), rows)
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
        return print_json(found)
    for one in found:
        typer.echo(f"{one['name']:32s} {one['phase']:13s} {one['summary']}")
    return None


@app.command()
def ops(kernels: Kernels = None, as_json: Json = False) -> None:
    """List the custom ops, their kernel variants, and which variant this machine runs."""
    from onnxopt.ops import describe_ops

    load_kernels(kernels)
    found = describe_ops()
    if as_json:
        return print_json(found)
    for one in found:
        typer.echo(f"{one['domain']}::{one['op']}")
        for variant in one["variants"]:
            mark = "*" if variant["chosen"] else " "
            problem = "" if variant["usable"] else f"  ({variant['problem']})"
            typer.echo(f"  {mark} {variant['name']:36s} needs {variant['isa']}{problem}")
    return None
