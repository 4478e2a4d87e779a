"""What a custom op is: its name, its types, its body in standard ops."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxopt import ir

DOMAIN = "ai.onnxopt"
DOMAIN_VERSION = 1

FUNCTIONS_IR_VERSION = 10
"""The IR version from which a model may hold functions with overloads."""

TYPED_CONSTANTS_OPSET = 9
"""The opset from which on Constant makes tensors of any type."""

WINDOW_ATTRIBUTES = ("kernel_shape", "strides", "pads", "dilations", "auto_pad")
"""What ops with windows say of them, as Conv does."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpSpec:
    """One custom op. `tolerance` bounds the relative difference between kernel and body, by element type."""

    name: str
    attributes: tuple[str, ...]
    dtypes: tuple[ir.DataType, ...]
    tolerance: dict[ir.DataType, float]
    domain: str = DOMAIN


REDUCTION_AXES_OPSET = 18
"""The opset from which on ReduceMin and ReduceMax take their axes as an input."""


class BodyBuilder:
    """Builds the function that a custom op stands for, in standard ops.

    Args:
        inputs: how many inputs the op has.
        opset: the model's opset, which the function imports.
        prefix: what the names of nodes and values begin with; empty for those of the function itself.
    """

    def __init__(self, inputs: int, opset: int, prefix: str = "") -> None:
        self.opset = opset
        self._prefix = prefix
        self.inputs: list[ir.Value] = [ir.PlainValue(name=f"i{index}") for index in range(inputs)]
        self._steps: list[ir.Step] = []

    def op(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        """The output of a node of the default domain."""
        return self.several(op_type, inputs, attributes or {}, 1)[0]

    def several(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any], outputs: int
    ) -> Sequence[ir.Value]:
        """The outputs of a node of the default domain."""
        attrs = [ir.make_attribute(name, value) for name, value in attributes.items()]
        return self._add(op_type, inputs, attrs, outputs)

    def constant(self, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
        """A Constant node that holds its own copy. Before opset 9 it makes floats alone; integers and booleans are cast from double."""
        held = array if isinstance(array, np.ndarray) else np.array(array.numpy())
        dtype = ir.DataType.from_numpy(held.dtype) if isinstance(array, np.ndarray) else array.dtype
        if self.opset < TYPED_CONSTANTS_OPSET and held.dtype.kind in "iub":
            return self.op("Cast", [self.constant(held.astype(np.float64))], {"to": int(dtype.value)})
        attr = ir.PlainAttr("value", ir.AttributeType.TENSOR, ir.tensor_of(held, dtype))
        return self._add("Constant", (), [attr])[0]

    def integers(self, *numbers: int) -> ir.Value:
        if self.opset < TYPED_CONSTANTS_OPSET:
            return self.constant(np.array(numbers, np.int64))
        return self._add("Constant", (), [_held(numbers)])[0]

    def reduced(self, kind: str, x: ir.Value, axis: int) -> ir.Value:
        """The least (`Min`) or largest (`Max`) element along an axis, which stays as a dim of 1."""
        if self.opset >= REDUCTION_AXES_OPSET:
            return self.op(f"Reduce{kind}", [x, self.integers(axis)], {"keepdims": 1})
        return self.op(f"Reduce{kind}", [x], {"axes": [axis], "keepdims": 1})

    def copy(self, nodes: Iterable[ir.Node], known: dict[ir.Value, ir.Value]) -> None:
        """Copies of nodes in topological order. `known` maps what they read to values of the body, and learns what they make;
        constants that it does not have are copied into the body."""
        for op_type, inputs, attributes, outputs in ir.steps_of(nodes):
            arguments = [None if value is None else self._argument(value, known) for value in inputs]
            made = self._add(op_type, arguments, attributes, len(outputs))
            known.update(zip(outputs, made, strict=True))

    def _argument(self, value: ir.Value, known: dict[ir.Value, ir.Value]) -> ir.Value:
        found = known.get(value)
        if found is None:
            tensor = ir.constant(value)
            assert tensor is not None
            found = known[value] = self.constant(tensor)
        return found

    def _add(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Sequence[ir.Attr], outputs: int = 1
    ) -> Sequence[ir.Value]:
        stem = f"{self._prefix}v{len(self._steps)}"
        names = [stem] if outputs == 1 else [f"{stem}_{index}" for index in range(outputs)]
        made: list[ir.Value] = [ir.PlainValue(name=name) for name in names]
        self._steps.append((op_type, inputs, attributes, made))
        return made

    def function(self, spec: OpSpec, overload: str, outputs: Sequence[ir.Value]) -> ir.Function:
        return ir.Body(
            spec.domain,
            spec.name,
            overload,
            inputs=self.inputs,
            steps=self._steps,
            outputs=outputs,
            opset_imports={"": self.opset},
        )


@functools.cache
def _held(numbers: tuple[int, ...]) -> ir.Attr:
    """What a Constant of these integers holds: bodies have the same few over and over."""
    return ir.PlainAttr("value", ir.AttributeType.TENSOR, ir.tensor_of(np.array(numbers, np.int64)))


def overload_of(text: str) -> str:
    """A short stable name for one body of an op."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def prepare_model(model: ir.Model) -> None:
    """Let a model hold custom ops: import their domain and raise the IR version to one that has function overloads."""
    model.graph.opset_imports.setdefault(DOMAIN, DOMAIN_VERSION)
    if model.ir_version < FUNCTIONS_IR_VERSION:
        model.ir_version = FUNCTIONS_IR_VERSION
