"""Tensors of arrays and of protobufs are those that onnx-ir makes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest

from onnxopt import ir
from onnxopt.ir.protos import array_tensor, raw_tensor

ARRAYS = {
    "floats": np.array([[1, np.nan], [-0.0, np.inf]], np.float32),
    "scalar": np.array(3, np.int64),
    "nothing": np.zeros((0, 2), np.float16),
    "booleans": np.array([True, False, True]),
    "columns": np.arange(6, dtype=np.float64).reshape(2, 3).T,
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_tensor_of_an_array_is_like_one_of_onnx_ir(array: np.ndarray) -> None:
    made, like = array_tensor(array, "n"), onnx_ir.Tensor(array, name="n")
    assert (made.dtype, list(made.shape), made.size, made.nbytes) == (
        like.dtype,
        list(like.shape),
        like.size,
        like.nbytes,
    )
    assert (made.name, made.doc_string, made.metadata_props) == ("n", None, {})
    assert made.tobytes() == like.tobytes()
    if isinstance(made, ir.ArrayTensor):
        assert bytes(made.view()) == like.tobytes()


@pytest.mark.parametrize("array", [ARRAYS["floats"], ARRAYS["scalar"], ARRAYS["booleans"]])
def test_raw_tensor_is_what_the_protobuf_holds(array: np.ndarray) -> None:
    proto = onnx.numpy_helper.from_array(array, "w")
    made = raw_tensor(proto)
    assert made is not None
    assert (made.name, made.tobytes(), tuple(made.shape)) == ("w", proto.raw_data, array.shape)
    assert made.dtype.value == proto.data_type and not made.numpy().flags.writeable


def _changed(**fields: object) -> onnx.TensorProto:
    proto = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    for name, value in fields.items():
        if isinstance(value, list):
            del getattr(proto, name)[:]
            getattr(proto, name).extend(value)
        else:
            setattr(proto, name, value)
    return proto


REFUSED = {
    "typed_field": onnx.TensorProto(name="w", data_type=1, dims=[2], float_data=[1, 2]),
    "too_few_bytes": _changed(dims=[7]),
    "bytes_that_are_no_elements": _changed(raw_data=b"12345"),
    "dims_below_nothing": _changed(dims=[-2, -3]),
    "documented": _changed(doc_string="why"),
    "empty_name": _changed(name=""),
    "stated_location": _changed(data_location=0),
    "rare_type": _changed(data_type=16, dims=[12]),
    "large": _changed(dims=[4096], raw_data=bytes(1 << 14)),
    "no_bytes": _changed(dims=[0, 3], raw_data=b""),
}


@pytest.mark.parametrize("proto", REFUSED.values(), ids=REFUSED)
def test_raw_tensor_is_none_of(proto: onnx.TensorProto) -> None:
    assert raw_tensor(proto) is None
