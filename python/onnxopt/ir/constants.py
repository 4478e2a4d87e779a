"""Reading constants: which values are known before the model runs, and what they hold."""

from __future__ import annotations

import numpy as np
from onnx_ir import TensorProtocol, Value

SMALL_ELEMENTS = 1024
"""Constants up to this many elements are decoded and kept: shapes, axes, scales and epilogue scalars are smaller, weights are larger."""

_CACHE_KEY = "onnxopt.small_array"


def constant(value: Value | None) -> TensorProtocol | None:
    """The tensor of a value that no run can change, or None.

    An initializer that is also a graph input is a default that the caller may override, so it is not constant.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    producer = value.producer()
    if producer is None or producer.op_type != "Constant" or producer.domain:
        return None
    return _constant_node_tensor(value)


def _constant_node_tensor(value: Value) -> TensorProtocol | None:
    from onnx_ir import AttributeType, tensor

    producer = value.producer()
    assert producer is not None
    for name, attribute in producer.attributes.items():
        if attribute.is_ref():
            return None
        if attribute.type is AttributeType.TENSOR:
            # `as_tensor` would check a protocol's every member, for every constant of the model.
            found: TensorProtocol = attribute.value
            return found
        if name in ("value_float", "value_floats"):
            return tensor(np.array(attribute.value, np.float32), name=value.name)
        if name in ("value_int", "value_ints"):
            return tensor(np.array(attribute.value, np.int64), name=value.name)
    return None


def small_array(value: Value | None) -> np.ndarray | None:
    """The elements of a constant of at most `SMALL_ELEMENTS` elements, as a read-only array; None for anything else."""
    tensor = constant(value)
    if tensor is None or tensor.size > SMALL_ELEMENTS:
        return None
    assert value is not None
    cached = value.meta.get(_CACHE_KEY)
    if cached is not None and cached[0] is tensor:
        known: np.ndarray = cached[1]
        return known
    array = tensor.numpy()
    value.meta[_CACHE_KEY] = (tensor, array)
    return array


def scalar(value: Value | None) -> float | int | bool | None:
    """The number that a constant of one element, or of equal elements, holds; None for anything else."""
    array = small_array(value)
    if array is None or array.size == 0 or array.dtype.kind not in "fiubV":
        return None
    first = array.reshape(-1)[0]
    if array.size > 1 and not (array == first).all():
        return None
    number = first.item()
    return number if isinstance(number, (bool, int, float)) else None


def integers(value: Value | None) -> tuple[int, ...] | None:
    """The elements of a small constant integer tensor, flat; None for anything else."""
    array = small_array(value)
    if array is None or array.dtype.kind not in "iu":
        return None
    return tuple(array.reshape(-1).tolist())


def use_count(value: Value) -> int:
    """How many node inputs refer to the value (graph outputs do not count). Constant time, unlike `len(value.uses())`."""
    return len(value._uses)
