"""Patches: what a rewrite wants to change, as a value. `Builder` makes the nodes of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt import ir

if TYPE_CHECKING:
    from onnxopt.passes.base import Context


@dataclasses.dataclass(slots=True)
class Patch:
    """Insert `nodes` before `anchor`, then let `replacements` take over every use of the values that they replace.

    Nodes left without uses are removed with it. `rule` is the name under which it is counted and can be bisected.
    """

    rule: str
    anchor: ir.Node
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    replacements: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)
    functions: list[ir.Function] = dataclasses.field(default_factory=list)


AXES_INPUT_OPSET = 13
"""Since which opset Squeeze, Unsqueeze and ReduceSum read their axes from an input, and Softmax has one axis."""


def _has(node: ir.Node, attributes: Mapping[str, Any]) -> bool:
    """Whether a node has these attributes, lists or numbers, and no others."""
    found = {name: attr.value for name, attr in node.attributes.items()}
    plain = {name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in found.items()}
    return plain == dict(attributes)


class Builder:
    """Builds the nodes of a patch; constants become initializers of the main graph (Constant nodes inside a function).

    `b.Mul(x, y)` makes a node of the default domain and returns its output; `b.op(...)` is the general form.
    """

    def __init__(self, ctx: Context, anchor: ir.Node) -> None:
        self.ctx = ctx
        self.anchor = anchor
        self.nodes: list[ir.Node] = []
        self.functions: list[ir.Function] = []
        self._defined: set[tuple[str, str, str]] = set()

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.op(op_type, inputs, attributes)[0]

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
        overload: str = "",
        name: str | None = None,
    ) -> tuple[ir.Value, ...]:
        """Make a node; attribute values are plain Python values, `ir.Attr`, graphs or tensors; None leaves an attribute out."""
        attrs = [ir.make_attribute(key, value) for key, value in (attributes or {}).items() if value is not None]
        node = ir.make_node(
            domain,
            op_type,
            inputs,
            attrs,
            outputs=outputs,
            overload=overload,
            name=self.ctx.names.node(name or self.anchor.name or op_type),
        )
        stem = self.anchor.outputs[0].name if self.anchor.outputs else op_type
        for output in node.outputs:
            output.name = self.ctx.names.value(stem or op_type)
        self.nodes.append(node)
        return tuple(node.outputs)

    def shared(self, op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any] | None = None) -> ir.Value:
        """The result of a node of the default domain that is in the anchor's graph already, wherever, or else of a new one.

        The graph has to be sorted after patches that share nodes.
        """
        for user, index in inputs[0].uses():
            same = (user.op_type, user.domain, index) == (op_type, "", 0) and user.graph is self.anchor.graph
            if same and list(user.inputs) == list(inputs) and _has(user, attributes or {}):
                return user.outputs[0]
        return self.op(op_type, inputs, attributes)[0]

    def copy_of(
        self, node: ir.Node, inputs: Sequence[ir.Value | None] | None = None, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """A node like `node` with other inputs and some attributes replaced (None removes one). Not for nodes that hold subgraphs."""
        merged: dict[str, Any] = {**node.attributes, **attributes}
        return self.op(
            node.op_type,
            node.inputs if inputs is None else inputs,
            merged,
            domain=node.domain,
            outputs=len(node.outputs),
            overload=node.overload,
            name=node.name,
        )

    def constant(self, array: np.ndarray | np.generic | ir.TensorProtocol, name: str = "const") -> ir.Value:
        """A constant value that holds `array`: the same value for the same small content, so that it is stored once."""
        return self.ctx.constant(array, name, self.anchor)

    def squeeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """`value` without these axes of size 1."""
        return self._with_axes("Squeeze", value, axes)

    def unsqueeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """`value` with axes of size 1 there in the result."""
        return self._with_axes("Unsqueeze", value, axes)

    def sum(self, value: ir.Value, *axes: int) -> ir.Value:
        """The sums of `value` along these axes, which go."""
        return self._with_axes("ReduceSum", value, axes, keepdims=0)

    def _with_axes(self, op_type: str, value: ir.Value, axes: Sequence[int], **attributes: int) -> ir.Value:
        if self.ctx.opset < AXES_INPUT_OPSET:
            return self.op(op_type, [value], {"axes": list(axes), **attributes})[0]
        return self.op(op_type, [value, self.constant(np.array(axes, np.int64), "axes")], attributes)[0]

    def define(self, domain: str, op_type: str, overload: str, make: Callable[[], ir.Function]) -> None:
        """Bring the function that a custom op stands for, unless the model or the patch has it already."""
        key = (domain, op_type, overload)
        if key not in self.ctx.model.functions and key not in self._defined:
            self._defined.add(key)
            self.functions.append(make())

    def patch(self, rule: str, replacements: Mapping[ir.Value, ir.Value]) -> Patch:
        return Patch(rule, self.anchor, self.nodes, dict(replacements), self.functions)
