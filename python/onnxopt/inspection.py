"""What is in a model, and how two models differ: ops, sizes, shapes, floating-point operations, memory."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from onnxopt import ir
from onnxopt.rewrite.driver import walk
from onnxopt.rewrite.rules import attribute


@dataclasses.dataclass(frozen=True, slots=True)
class Port:
    """One input or output of the model: name, element type, and the shape as printed dims (None where nothing is known)."""

    name: str
    dtype: str
    shape: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Inspection:
    """Facts about a model. FLOPs count a multiply-add as two, and the body of a Loop once.

    `initializers` and `weight_bytes` count the tensors in Constant nodes too. `unknown_flops` counts nodes whose operations could not
    be counted because a dim is not fixed; for the same reason `peak_activation_bytes` may be None. `open_dims` are the names of the
    inputs' dims that can be fixed.
    """

    ir_version: int
    producer: str
    opsets: dict[str, int]
    nodes: int
    ops: dict[str, int]
    functions: int
    initializers: int
    weight_bytes: int
    weight_bytes_by_dtype: dict[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    flops: int
    flops_by_op: dict[str, int]
    unknown_flops: int
    unknown_flops_by_op: dict[str, int]
    open_dims: list[str]
    peak_activation_bytes: int | None
    values_with_shape: int
    values: int
    metadata: dict[str, str]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def inspect(model: Any, dims: Mapping[str, int | tuple[int, int]] | None = None) -> Inspection:
    """Inspect a model: a path, `onnx.ModelProto`, `onnx_ir.Model` or `onnx_graphsurgeon.Graph`.

    Args:
        model: what to inspect; it is not changed.
        dims: fixes named dimensions, so that operations and memory can be counted.

    Raises:
        ModelError: the model cannot be read.
    """
    loaded = ir.load(model)
    shapes = ir.ShapeEnv(loaded, dims or {})
    shapes.infer_model()
    flops, unknown = _flops(loaded, shapes)
    values = [value for node in walk(loaded.graph) for value in node.outputs]
    names = _names_of_unnamed_dims(loaded, shapes)
    tensors = list(ir.constant_tensors(ir.walk_graphs(loaded.graph)))
    by_dtype: dict[str, int] = {}
    for tensor in tensors:
        by_dtype[tensor.dtype.name.lower()] = by_dtype.get(tensor.dtype.name.lower(), 0) + tensor.nbytes
    return Inspection(
        ir_version=loaded.ir_version,
        producer=" ".join(part for part in (loaded.producer_name, loaded.producer_version) if part),
        opsets=dict(loaded.graph.opset_imports),
        nodes=ir.count_nodes(loaded),
        ops=ir.count_ops(loaded),
        functions=len(loaded.functions),
        initializers=len(tensors),
        weight_bytes=sum(by_dtype.values()),
        weight_bytes_by_dtype=dict(sorted(by_dtype.items(), key=lambda item: -item[1])),
        inputs=tuple(
            _port(value, shapes, names) for value in loaded.graph.inputs if value.name not in loaded.graph.initializers
        ),
        outputs=tuple(_port(value, shapes, names) for value in loaded.graph.outputs),
        flops=sum(flops.values()),
        flops_by_op=dict(sorted(flops.items(), key=lambda item: -item[1])),
        unknown_flops=sum(unknown.values()),
        unknown_flops_by_op=unknown,
        open_dims=ir.open_dims(loaded),
        peak_activation_bytes=_peak_activation_bytes(loaded.graph, shapes),
        values_with_shape=sum(shapes.shape(value) is not None for value in values),
        values=len(values),
        metadata=dict(loaded.metadata_props),
        warnings=ir.unknown_dims(loaded, dims or {}),
    )


def _names_of_unnamed_dims(model: ir.Model, shapes: ir.ShapeEnv) -> dict[str, str]:
    """What to call the symbols that stand for dims of inputs to which the model gives no name."""
    return {
        str(dim): ir.unnamed_dim(value.name or "", axis)
        for value in model.graph.inputs
        for axis, dim in enumerate(shapes.shape(value) or ())
        if str(dim).startswith("?")
    }


def _port(value: ir.Value, shapes: ir.ShapeEnv, names: Mapping[str, str]) -> Port:
    dtype, shape = shapes.dtype(value), shapes.shape(value)
    return Port(
        value.name or "",
        dtype.name.lower() if dtype is not None else "unknown",
        None if shape is None else tuple(_dim_text(dim, names) for dim in shape),
    )


def _dim_text(dim: object, names: Mapping[str, str]) -> str:
    """The dim as people read it: a symbol that is known under no name at all is a question mark."""
    return re.sub(r"\?\d+", lambda symbol: names.get(symbol[0], "?"), str(dim))


# --- operations ----------------------------------------------------------------------------------------------------
FREE = frozenset(
    {
        "Cast", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements",
        "GatherND", "Identity", "If", "Loop", "Pad", "Range", "Reshape", "Scan", "ScatterElements", "ScatterND", "Shape",
        "Size", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Ops that move data and compute nothing."""


def _flops(model: ir.Model, shapes: ir.ShapeEnv) -> tuple[dict[str, int], dict[str, int]]:
    """Operations per op, and the nodes of each op whose operations are unknown."""
    totals: dict[str, int] = {}
    unknown: dict[str, int] = {}
    for node in walk(model.graph):
        if node.op_type in FREE and not node.domain:
            continue
        function = model.functions.get(node.op_identifier())
        count = node_flops(node, shapes) if function is None else _call_flops(node, function, shapes)
        counts, more = (unknown, 1) if count is None else (totals, count)
        op = ir.op_name(node)
        counts[op] = counts.get(op, 0) + more
    return totals, unknown


def _call_flops(node: ir.Node, function: ir.Function, shapes: ir.ShapeEnv) -> int | None:
    """Operations of a function's body, whose shapes are those of one call at a time."""
    shapes.infer_node(node)
    counts = [node_flops(inner, shapes) for inner in function if inner.op_type not in FREE or inner.domain]
    return None if None in counts else sum(count for count in counts if count is not None)


def node_flops(node: ir.Node, shapes: ir.ShapeEnv) -> int | None:
    """Operations of a node; None where its sizes are unknown."""
    if not node.outputs:
        return 0
    output = shapes.static_shape(node.outputs[0])
    inputs = [None if value is None else shapes.static_shape(value) for value in node.inputs]
    if node.op_type in ("MatMul", "MatMulInteger", "Gemm"):
        return _matmul_flops(node, inputs, output)
    if node.op_type in ("Conv", "ConvInteger", "FusedConv"):
        weight = inputs[1]
        return None if output is None or weight is None else 2 * math.prod(output) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        data, weight = inputs[0], inputs[1]
        return None if data is None or weight is None else 2 * math.prod(data) * math.prod(weight[1:])
    if node.op_type in ("LSTM", "GRU", "RNN"):
        data, weight, recurrence = inputs[0], inputs[1], inputs[2]
        if data is None or weight is None or recurrence is None:
            return None
        return 2 * data[0] * data[1] * (math.prod(weight) + math.prod(recurrence))
    if node.op_type.startswith("Reduce") or node.op_type in ("GlobalAveragePool", "Softmax", "LayerNormalization"):
        return None if not inputs or inputs[0] is None else math.prod(inputs[0])
    return None if output is None else math.prod(output)


def _matmul_flops(node: ir.Node, inputs: list[tuple[int, ...] | None], output: tuple[int, ...] | None) -> int | None:
    left = inputs[0]
    if left is None or output is None or not left:
        return None
    inner = left[0] if node.op_type == "Gemm" and attribute(node, "transA", 0) else left[-1]
    return 2 * math.prod(output) * inner


# --- memory --------------------------------------------------------------------------------------------------------
def _peak_activation_bytes(graph: ir.Graph, shapes: ir.ShapeEnv) -> int | None:
    """Most bytes of activations alive at once when nodes run in order and each value dies after its last use (main graph only)."""
    nodes = list(graph)
    last_use: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        last_use.update(dict.fromkeys(node.outputs, index))
        last_use.update(dict.fromkeys(ir.inputs_with_captures(node), index))
    last_use.update(dict.fromkeys(graph.outputs, len(nodes)))
    frees: dict[int, int] = {}
    alive = peak = 0
    for index, node in enumerate(nodes):
        for value in node.outputs if ir.op_name(node) != "Constant" else ():
            size = _bytes_of(value, shapes)
            if size is None:
                return None
            alive += size
            frees[last_use[value]] = frees.get(last_use[value], 0) + size
        peak = max(peak, alive)
        alive -= frees.pop(index, 0)
    return peak


def _bytes_of(value: ir.Value, shapes: ir.ShapeEnv) -> int | None:
    if not value.name or (not ir.use_count(value) and not value.is_graph_output()):
        return 0
    shape, dtype = shapes.static_shape(value), shapes.dtype(value)
    if shape is None or dtype is None or dtype is ir.DataType.STRING:
        return None
    return math.ceil(math.prod(shape) * dtype.itemsize)


# --- difference ----------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """How two models differ, first to second. `ops` maps an op to its counts in both; equal counts are left out.

    FLOPs are None for a model with nodes whose operations are unknown.
    """

    nodes: tuple[int, int]
    weight_bytes: tuple[int, int]
    flops: tuple[int | None, int | None]
    ops: dict[str, tuple[int, int]]
    opsets: dict[str, tuple[int | None, int | None]]
    ports: list[str]

    @property
    def same(self) -> bool:
        unchanged = self.nodes[0] == self.nodes[1] and self.weight_bytes[0] == self.weight_bytes[1]
        return unchanged and not (self.ops or self.opsets or self.ports)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "same": self.same}


def diff(first: Any, second: Any, dims: Mapping[str, int | tuple[int, int]] | None = None) -> Difference:
    """Compare what two models hold: ops, sizes, opsets, inputs and outputs. For their outputs see `onnxopt verify`.

    Raises:
        ModelError: a model cannot be read.
    """
    a, b = inspect(first, dims), inspect(second, dims)
    ops = {op: (a.ops.get(op, 0), b.ops.get(op, 0)) for op in sorted({*a.ops, *b.ops})}
    opsets = {domain: (a.opsets.get(domain), b.opsets.get(domain)) for domain in sorted({*a.opsets, *b.opsets})}
    return Difference(
        nodes=(a.nodes, b.nodes),
        weight_bytes=(a.weight_bytes, b.weight_bytes),
        flops=(None if a.unknown_flops else a.flops, None if b.unknown_flops else b.flops),
        ops={op: counts for op, counts in ops.items() if counts[0] != counts[1]},
        opsets={domain: versions for domain, versions in opsets.items() if versions[0] != versions[1]},
        ports=[*_port_changes("input", a.inputs, b.inputs), *_port_changes("output", a.outputs, b.outputs)],
    )


def _port_changes(kind: str, first: tuple[Port, ...], second: tuple[Port, ...]) -> list[str]:
    before, after = {port.name: port for port in first}, {port.name: port for port in second}
    changes = [f"{kind} '{name}' is gone" for name in before if name not in after]
    changes += [f"{kind} '{name}' is new" for name in after if name not in before]
    for name, port in before.items():
        other = after.get(name)
        if other is not None and other != port:
            changes.append(f"{kind} '{name}' was {_describe(port)} and is {_describe(other)}")
    return changes


def _describe(port: Port) -> str:
    return f"{port.dtype}[{', '.join(port.shape)}]" if port.shape is not None else f"{port.dtype} of unknown shape"
