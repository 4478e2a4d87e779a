"""Tensors of other libraries by DLPack: on the processor they are read where they lie, and those of a device are described on any machine."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

NEG = "i0:f32 | t0=neg(i0) | t0:f32"
CPU, CUDA = 1, 2


@dataclasses.dataclass
class Exported:
    """An array that is known by DLPack alone."""

    array: np.ndarray[Any, Any]

    def __dlpack__(self) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0


NUMBERS = np.arange(16, dtype=np.float32)


class Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("number", ctypes.c_int32))


class DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("rank", ctypes.c_int32),
        ("type", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("release", ctypes.c_void_p))


Release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
make_capsule = ctypes.pythonapi.PyCapsule_New
make_capsule.restype = ctypes.py_object
make_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Written:
    """A tensor as an exporter of any device would describe it; how often it was released."""

    def __init__(
        self,
        shape: tuple[int, ...] = (4,),
        *,
        device: int = CUDA,
        type: tuple[int, int, int] = (2, 32, 1),
        strides: tuple[int, ...] | None = None,
        name: bytes = b"dltensor",
        offset: int = 0,
        data: np.ndarray[Any, Any] = NUMBERS,
    ) -> None:
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        steps = None if strides is None else (ctypes.c_int64 * len(shape))(*strides)
        self._kept = data, sizes, steps, Release(lambda _: self._release())
        self._managed = Managed(
            Tensor(
                data.ctypes.data,
                Device(device, 0),
                len(shape),
                DataType(*type),
                ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)),
                ctypes.cast(steps, ctypes.POINTER(ctypes.c_int64)),
                offset,
            ),
            None,
            ctypes.cast(self._kept[-1], ctypes.c_void_p),
        )
        self._name, self.streams, self.released = name, [], 0

    def _release(self) -> None:
        self.released += 1

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.streams.append(stream)
        return make_capsule(ctypes.addressof(self._managed), self._name, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._managed.tensor.device.type, 0


def negated(*arrays: Any) -> np.ndarray[Any, Any]:
    (found,) = native.run("FusedElementwise", list(arrays), {"expr": NEG})
    assert isinstance(found, np.ndarray)
    return found


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7,), (2, 3, 5)], ids=str)
def test_array_of_the_processor(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(negated(Exported(array)), -array)


@pytest.mark.parametrize(
    ("type", "name"),
    [
        ((2, 16, 1), "float16"),
        ((2, 64, 1), "double"),
        ((4, 16, 1), "bfloat16"),
        ((1, 8, 1), "uint8"),
        ((0, 8, 1), "int8"),
        ((0, 32, 1), "int32"),
        ((0, 64, 1), "int64"),
        ((6, 8, 1), "bool"),
        ((5, 64, 1), "number -1"),  # complex
        ((2, 32, 4), "number -1"),  # lanes
    ],
    ids=str,
)
def test_types_have_their_names(type: tuple[int, int, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"Input 0 is of type {name} and should be f32"):
        negated(Written(device=CPU, type=type))


def test_exported_tensor_beside_array_of_numpy() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(ml_dtypes.bfloat16)
    exported = Written((3, 4), device=CPU, type=(4, 16, 1), data=x)
    program = "i0:bf16 i1:bf16 | t0=add(i0,i1) | t0:bf16"
    variant = "elementwise__cuda_emulated"
    (found,) = native.run(
        "FusedElementwise", [exported, np.ones(4, ml_dtypes.bfloat16)], {"expr": program}, variant=variant
    )
    np.testing.assert_array_equal(found.astype(np.float32), (x + ml_dtypes.bfloat16(1)).astype(np.float32))


def test_tensor_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(negated(x), -np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize("fails", [False, True], ids=["run", "refused"])
def test_tensor_is_released_once(fails: bool) -> None:
    exported = Written(device=CPU, type=(0, 32, 1) if fails else (2, 32, 1))
    for times in range(1, 4):
        with pytest.raises(ValueError, match="int32") if fails else contextlib.nullcontext():
            negated(exported)
        gc.collect()
        assert exported.released == times


def test_memory_is_given_back() -> None:
    """The exporter's count of references is that of before."""
    array = np.zeros(4, np.float32)
    exported = Exported(array)
    with_view = array.base, ctypes.c_ssize_t.from_address(id(array)).value
    for _ in range(3):
        negated(exported)
    gc.collect()
    assert (array.base, ctypes.c_ssize_t.from_address(id(array)).value) == with_view


# --- tensors that are not what they should be ---
def test_offset_in_bytes_and_strides_of_a_contiguous_tensor() -> None:
    found = negated(Written((1, 4), device=CPU, strides=(99, 1), offset=8))
    np.testing.assert_array_equal(found, -np.arange(2, 6, dtype=np.float32).reshape(1, 4))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (Written(), "Input 0 is not in the memory of the processor"),
        (Written(device=CPU, strides=(2,)), "Input 0 is not contiguous"),
        (Written((2, 2), device=CPU, strides=(1, 2)), "Input 0 is not contiguous"),
        (Written(device=CPU, name=b"another"), "Input 0 exports no tensor"),
    ],
    ids=["device", "strides", "transposed", "capsule"],
)
def test_refuses_other_tensors(source: Written, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        negated(source)


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        (Written(device=CPU), Written(), "Input 0 is not in the memory of a CUDA device"),
        (Written(), Written(device=CPU), "Output 0 is not in the memory of a CUDA device"),
        (Written(strides=(2,)), Written(), "Input 0 is not contiguous"),
        (Written(type=(4, 16, 1)), Written(), "Input 0 is of type bfloat16 and should be f32"),
        (Written(), Written((2, 2)), r"Output 0 should have the shape \[4\]"),
        (Written(), np.zeros(4, np.float32), "Output 0 is not in the memory of a CUDA device"),
        (Written(), object(), "Output 0 has no __cuda_array_interface__ and no __dlpack__"),
    ],
    ids=["input", "output", "strides", "type", "shape", "numpy", "object"],
)
def test_refuses_other_tensors_for_a_device(source: Any, target: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        native.run_on_device("FusedElementwise", [source], [target], {"expr": NEG})


@pytest.mark.skipif(
    not native.cuda_problem(), reason="this machine has a CUDA device, which would read the host's memory"
)
@pytest.mark.parametrize(("stream", "told"), [(0, 1), (4711, 4711)])
def test_a_device_s_exporter_is_told_the_stream(stream: int, told: int) -> None:
    source, target = Written(), Written()
    with pytest.raises(ValueError, match=native.cuda_problem().split("(")[0]):
        native.run_on_device("FusedElementwise", [source], [target], {"expr": NEG}, stream)
    assert source.streams == target.streams == [told]
