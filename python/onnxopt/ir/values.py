"""Where values come from and where they go."""

from __future__ import annotations

from typing import overload

from onnx_ir import Node, Value


def use_count(value: Value) -> int:
    """How many node inputs refer to the value (graph outputs do not count). Constant time, unlike `len(value.uses())`."""
    return len(value._uses)


def input_at(node: Node, index: int) -> Value | None:
    """An input by its place; None where the node leaves it out or has fewer."""
    inputs = node.inputs
    return inputs[index] if index < len(inputs) else None


@overload
def source_of(value: Value) -> Value: ...
@overload
def source_of(value: None) -> None: ...
def source_of(value: Value | None) -> Value | None:
    """The value that Identity nodes pass on: the value itself where none made it, None for an input that is left out."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type == "Identity" and not node.domain and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
