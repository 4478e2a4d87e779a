"""How a fusion makes a node of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from onnxopt import ir
from onnxopt.ops.base import OpSpec, prepare_model
from onnxopt.rewrite.patch import Builder


class Variety(Protocol):
    """What the body of a node depends on."""

    def overload(self, opset: int) -> str: ...
    def body(self, opset: int) -> ir.Function: ...


def make_node(
    b: Builder,
    spec: OpSpec,
    variety: Variety,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
    like: ir.Value,
    dtype: ir.DataType | None,
    name: str | None,
) -> ir.Value:
    """The result of a node with its body, of the shape of `like`."""
    opset, shapes = b.ctx.opset, b.ctx.shapes
    overload = variety.overload(opset)
    b.define(spec.domain, spec.name, overload, lambda: variety.body(opset))
    prepare_model(b.ctx.model)
    (result,) = b.op(spec.name, inputs, attributes, domain=spec.domain, overload=overload, name=name or spec.name)
    shapes.set(result, dtype, shapes.shape(like))
    return result
