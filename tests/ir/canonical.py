"""Protobufs in a form that compares equal whenever they mean the same."""

from __future__ import annotations

from typing import Any

import onnx


def canonical(message: Any) -> Any:
    """The message as tuples: empty strings like absent ones, tensors by their bytes however they are stored.

    Sets in disguise (value infos, initializers, opset imports, functions) are in the order of their content.
    """
    if isinstance(message, onnx.TensorProto):
        return _tensor(message)
    return tuple(
        (field.name, _value(field.name, value)) for field, value in message.ListFields() if _says_something(value)
    )


_UNORDERED = frozenset(
    {"value_info", "initializer", "opset_import", "functions", "metadata_props", "attribute", "quantization_annotation"}
)


def _value(name: str, value: Any) -> Any:
    if hasattr(value, "ListFields"):
        return canonical(value)
    if hasattr(value, "__len__") and not isinstance(value, (str, bytes)):
        items = [_value("", item) for item in value]
        return tuple(sorted(items, key=repr) if name in _UNORDERED else items)
    return repr(value)


def _says_something(value: Any) -> bool:
    return not (isinstance(value, (str, bytes)) and not value)


def _tensor(tensor: onnx.TensorProto) -> Any:
    if tensor.data_type == onnx.TensorProto.STRING:
        data: Any = list(tensor.string_data)
    else:
        data = onnx.numpy_helper.to_array(tensor).tobytes()
    meta = sorted((one.key, one.value) for one in tensor.metadata_props)
    return (tensor.name, tensor.data_type, tuple(tensor.dims), tensor.doc_string, meta, data)
