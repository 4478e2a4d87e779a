"""onnxopt inspect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxopt.cli.app import app
from onnxopt.cli.options import Dims, Json, Model, parse_dims
from onnxopt.cli.output import human_bytes, human_flops, make_console, print_json, print_table, warn

if TYPE_CHECKING:
    from onnxopt.inspection import Inspection


@app.command()
def inspect(model: Model, dim: Dims = None, as_json: Json = False) -> None:
    """Show ops, sizes, shapes, floating-point operations and memory of MODEL."""
    from onnxopt.inspection import inspect as run

    found = run(model, parse_dims(dim))
    warn(found.warnings)
    if as_json:
        return print_json(found.to_json())
    console = make_console()
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
    print_table(console, "Inputs and outputs", ("", "name", "dtype", "shape"), ports)
    ops = [(op, str(count), _op_flops(found, op)) for op, count in found.ops.items()]
    print_table(console, "Ops", ("op", "nodes", "operations"), ops)
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
