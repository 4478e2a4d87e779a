"""Reading constants: which values are known before the model runs, and what they hold."""

from __future__ import annotations

import numpy as np
from onnx_ir import Attr, AttributeType, Tensor, TensorProtocol, Value

SMALL_ELEMENTS = 1024
"""Constants up to this many elements are decoded and kept: shapes, axes, scales and epilogue scalars are smaller, weights are larger."""

_CACHE_KEY = "onnxopt.small_array"
_SCALAR_KEY = "onnxopt.scalar"
_NUMBERS_KEY = "onnxopt.constant_numbers"

_NUMBERS: dict[str, type[np.generic]] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
"""Attributes of Constant nodes that hold plain numbers, and what those are."""


def constant(value: Value | None) -> TensorProtocol | None:
    """The tensor of a value that no run can change, or None.

    An initializer that is also a graph input is a default that the caller may override, so it is not constant.
    """
    if value is None:
        return None
    if value._is_initializer:
        return None if value._is_graph_input else value.const_value
    producer = value._producer
    if producer is None or producer.op_type != "Constant" or producer.domain:
        return None
    return _constant_node_tensor(value)


def _constant_node_tensor(value: Value) -> TensorProtocol | None:
    producer = value.producer()
    assert producer is not None
    for name, attribute in producer.attributes.data.items():
        if attribute.ref_attr_name is not None:
            return None
        if attribute.type is AttributeType.TENSOR:
            # `as_tensor` would check a protocol's every member, for every constant of the model.
            found: TensorProtocol = attribute.value
            return found
        dtype = _NUMBERS.get(name)
        if dtype is not None:
            return _tensor_of_numbers(value, attribute, dtype)
    return None


def _tensor_of_numbers(value: Value, attribute: Attr, dtype: type[np.generic]) -> TensorProtocol:
    """The tensor of a Constant node that holds plain numbers, made once."""
    known = value.meta.get(_NUMBERS_KEY)
    if known is None or known[0] is not attribute:
        known = value.meta[_NUMBERS_KEY] = attribute, Tensor(np.array(attribute.value, dtype), name=value.name)
    made: TensorProtocol = known[1]
    return made


def small_array(value: Value | None) -> np.ndarray | None:
    """The elements of a constant of at most `SMALL_ELEMENTS` elements, as a read-only array; None for anything else."""
    tensor = constant(value)
    if tensor is None:
        return None
    assert value is not None
    notes = value.meta.data
    cached = notes.get(_CACHE_KEY)
    if cached is not None and cached[0] is tensor:
        known: np.ndarray = cached[1]
        return known
    if tensor.size > SMALL_ELEMENTS:
        return None
    array = tensor.numpy()
    notes[_CACHE_KEY] = (tensor, array)
    return array


def scalar(value: Value | None) -> float | int | bool | None:
    """The number that a constant of one element, or of equal elements, holds; None for anything else."""
    tensor = constant(value)
    if tensor is None:
        return None
    assert value is not None
    notes = value.meta.data
    known = notes.get(_SCALAR_KEY)
    if known is None or known[0] is not tensor:
        known = notes[_SCALAR_KEY] = tensor, _number(small_array(value))
    number: float | int | bool | None = known[1]
    return number


def _number(array: np.ndarray | None) -> float | int | bool | None:
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
