"""Shared by the tests of the engine: contexts over small models, and what is in a graph."""

from __future__ import annotations

import onnx

import helpers
from onnxopt import ir
from onnxopt.passes.base import Context, Options
from onnxopt.runtime.target import Target


def context(
    source: str | onnx.ModelProto,
    *,
    strict: bool = True,
    stop_after: int | None = None,
    explain: bool = False,
    options: Options | None = None,
) -> Context:
    """The context of a model, or of a graph in onnx's text syntax."""
    proto = helpers.model(source) if isinstance(source, str) else source
    return Context(
        ir.load(proto),
        target=Target.named("generic"),
        strict=strict,
        stop_after=stop_after,
        explain=explain,
        options=options,
    )


def node_of(ctx: Context, op_type: str) -> ir.Node:
    """The only node of an op type."""
    (found,) = (node for graph in ctx.graphs() for node in graph if node.op_type == op_type)
    return found


def value(ctx: Context, name: str) -> ir.Value:
    """A value of the main graph by its name."""
    graph = ctx.model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(one for node in graph for one in node.outputs)]
    (found,) = (one for one in values if one.name == name)
    return found


def op_types(ctx: Context) -> list[str]:
    """The op types of the main graph in order."""
    return [node.op_type for node in ctx.model.graph]


def text(ctx: Context) -> str:
    """The whole model, to compare before and after."""
    return str(ir.to_proto(ctx.model))
