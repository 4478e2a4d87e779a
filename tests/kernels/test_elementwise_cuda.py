"""What is particular to the CUDA kernel of FusedElementwise; its arithmetic is tested in test_elementwise.py, variant by variant.

`emulated` is the kernel's code run by the host, `device` the kernel itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

import onnxopt  # noqa: E402  (after the check that it can be used)
from helpers import assert_equal  # noqa: E402

Array = np.ndarray[Any, Any]
F32 = np.float32
PROBLEM = native.cuda_problem()
needs_device = pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM)
VARIANTS = {"emulated": "elementwise__cuda_emulated", "device": "elementwise__cuda"}
DTYPES = {
    "f32": np.float32,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "i32": np.int32,
    "i64": np.int64,
    "bool": np.bool_,
}


@pytest.fixture(params=["emulated", pytest.param("device", marks=[needs_device, pytest.mark.gpu])])
def variant(request: pytest.FixtureRequest) -> str:
    return VARIANTS[request.param]


def run(expr: str, *inputs: Array, variant: str | None = None) -> list[Array]:
    results: list[Array] = native.run("FusedElementwise", list(inputs), {"expr": expr}, variant=variant)
    return results


def samples(name: str, shape: tuple[int, ...], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if name == "bool":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if name in ("i32", "i64"):
        return rng.integers(-1000, 1000, shape).astype(DTYPES[name])
    values = rng.normal(0, 3, shape)
    edges = rng.choice([math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-40], shape)
    return np.where(rng.random(shape) < 0.1, edges, values).astype(DTYPES[name])


# --- how elements are read and written ---
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 8])
@pytest.mark.parametrize("length", [1, 7, 8, 31, 256, 1021])
def test_any_alignment_and_length(name: str, offset: int, length: int, variant: str) -> None:
    a = samples(name, (length + offset,), 1)[offset:]
    b = samples(name, (length,), 2)
    expr = f"i0:{name} i1:{name} | t0=where(#true:bool,i0,i1) t1=equal(i0,i1) t2=where(t1,i1,i0) | t0:{name} t1:bool t2:{name}"
    for actual, expected in zip(run(expr, a, b, variant=variant), [a, a == b, a], strict=True):
        assert_equal(actual, np.asarray(expected))


@settings(max_examples=150, deadline=None)
@given(
    hnp.mutually_broadcastable_shapes(num_shapes=3, min_dims=1, max_dims=5, max_side=13, min_side=1),
    st.sampled_from(["f32", "f16", "bf16", "i32", "i64"]),
    st.integers(0, 1 << 20),
)
def test_rows_of_any_length(shapes: hnp.BroadcastableShapes, name: str, seed: int) -> None:
    a, b, c = (samples(name, shape, seed + k) for k, shape in enumerate(shapes.input_shapes))
    expr = f"i0:{name} i1:{name} i2:{name} | t0=add(i0,i1) t1=sub(i2,t0) t2=mul(t1,i0) | t2:{name} t0:{name}"
    with np.errstate(all="ignore"):
        expected = [np.asarray((c - (a + b)) * a), np.asarray(a + b)]
    for actual, wanted in zip(run(expr, a, b, c, variant=VARIANTS["emulated"]), expected, strict=True):
        assert_equal(actual, wanted)


@pytest.mark.parametrize("columns", [8, 12, 13, 64])
@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "i64"])
def test_row_and_column_operands(name: str, columns: int, variant: str) -> None:
    """Rows whose length is and is not a multiple of what a thread computes."""
    x, row, column = samples(name, (5, 3, columns), 3), samples(name, (columns,), 4), samples(name, (5, 1, 1), 5)
    expr = f"i0:{name} i1:{name} i2:{name} | t0=add(i0,i1) t1=add(t0,i2) | t1:{name}"
    with np.errstate(all="ignore"):
        expected = x + row + column
    assert_equal(run(expr, x, row, column, variant=variant)[0], expected)


# --- programs that do not fit the usual form ---
@pytest.mark.parametrize("name", ["f32", "i64"])
@pytest.mark.parametrize("live", [10, 30, 60, 127])
def test_many_live_values(name: str, live: int, variant: str) -> None:
    """Values that wait for their reader in a slot; the last one made is read first."""
    number = "1" if name == "i64" else "0x1p+0"
    lines = ["t0=add(i0,i0)"] + [f"t{k}=add(t{k - 1},#{number}:{name})" for k in range(1, live)]
    lines += [f"t{live}=add(t{live - 1},t{live - 2})"]
    lines += [f"t{k}=add(t{k - 1},t{2 * live - 2 - k})" for k in range(live + 1, 2 * live - 1)]
    x = samples("i64", (77,), 6).astype(DTYPES[name])
    values = [x + x + x.dtype.type(k) for k in range(live)]
    expected = values[-1]
    for value in reversed(values[: live - 1]):
        expected = expected + value
    (actual,) = run(f"i0:{name} | {' '.join(lines)} | t{2 * live - 2}:{name}", x, variant=variant)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("inputs", [16, 17, 32])
def test_many_inputs(inputs: int, variant: str) -> None:
    arrays = [samples("f32", (33,), k) for k in range(inputs)]
    lines = ["t0=add(i0,i1)"] + [f"t{k}=add(t{k - 1},i{k + 1})" for k in range(1, inputs - 1)]
    declared = " ".join(f"i{k}:f32" for k in range(inputs))
    with np.errstate(all="ignore"):
        expected = arrays[0]
        for array in arrays[1:]:
            expected = expected + array
    (actual,) = run(f"{declared} | {' '.join(lines)} | t{inputs - 2}:f32", *arrays, variant=variant)
    np.testing.assert_array_equal(actual, expected)


def test_many_literals(variant: str) -> None:
    lines = [f"t{k}=add({'i0' if k == 0 else f't{k - 1}'},#{float(k).hex()}:f32)" for k in range(100)]
    (actual,) = run(f"i0:f32 | {' '.join(lines)} | t99:f32", np.zeros(9, F32), variant=variant)
    np.testing.assert_array_equal(actual, np.full(9, sum(range(100)), F32))


def test_result_that_several_outputs_and_statements_read(variant: str) -> None:
    expr = "i0:f32 | t0=neg(i0) t1=add(t0,t0) t2=mul(t0,t1) t3=clip(t0,t1,t2) | t0:f32 t0:f32 t3:f32 t1:f32"
    x = np.linspace(-3, 3, 29, dtype=F32)
    t0 = -x
    t1, t2 = t0 + t0, t0 * (t0 + t0)
    raised = np.where(t1 > t0, t1, t0)
    for actual, expected in zip(
        run(expr, x, variant=variant), [t0, t0, np.where(t2 < raised, t2, raised), t1], strict=True
    ):
        np.testing.assert_array_equal(actual, expected)


# --- the code on the host and the CPU kernel agree ---
@pytest.mark.parametrize(
    "expr",
    [
        "i0:f32 i1:f32 | t0=sigmoid(i0) t1=mul(t0,i1) t2=gelu(t1) t3=tanh(t2) t4=greater(t3,i1) | t3:f32 t4:bool t1:f32",
        "i0:f32 i1:f32 | t0=softplus(i0) t1=mish(i1) t2=div(t0,t1) t3=isnan(t2) t4=where(t3,i0,t2) | t4:f32",
        "i0:f32 i1:f32 | t0=erf(i0) t1=elu(i1,#0x1.8p+0:f32) t2=cast_f16(t0) t3=cast_f16(t1) t4=mul(t2,t3) | t4:f16",
    ],
)
def test_agrees_with_the_kernel_of_the_cpu(expr: str, variant: str) -> None:
    x, y = samples("f32", (101, 67), 8), samples("f32", (67,), 9)
    for actual, expected in zip(run(expr, x, y, variant=variant), run(expr, x, y), strict=True):
        if expected.dtype == np.bool_:
            assert (actual != expected).mean() < 1e-3  # where the operands differ by a rounding
        else:
            tolerance = 2e-3 if expected.dtype == np.float16 else 3e-6
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# --- arrays of other libraries ---
@dataclasses.dataclass
class Foreign:
    """An array as cupy and torch describe theirs."""

    array: Array
    changed: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        described = {
            "shape": self.array.shape,
            "typestr": self.array.dtype.str,
            "data": (self.array.ctypes.data, False),
            "version": 3,
        }
        return {**described, **self.changed}


NEG = "i0:f32 | t0=neg(i0) | t0:f32"


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        (np.zeros(4, F32), Foreign(np.zeros(4, F32)), "Input 0 is not in the memory of a CUDA device"),
        (Foreign(np.zeros(4, np.int32)), Foreign(np.zeros(4, F32)), "Input 0 is of type int32 and should be f32"),
        (Foreign(np.zeros(4, F32)), Foreign(np.zeros(4, np.float64)), "Output 0 should be float"),
        (Foreign(np.zeros(4, F32)), Foreign(np.zeros((2, 2), F32)), r"Output 0 should have the shape \[4\]"),
        (Foreign(np.zeros(4, F32)), Foreign(np.zeros(4, F32), {"data": (16, True)}), "Output 0 cannot be written"),
        (Foreign(np.zeros(4, F32), {"strides": (8,)}), Foreign(np.zeros(4, F32)), "Input 0 is not contiguous"),
    ],
)
def test_refuses_other_arrays(source: Any, target: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        native.run_on_device("FusedElementwise", [source], [target], {"expr": NEG})


def test_refuses_another_number_of_arrays() -> None:
    array = Foreign(np.zeros(4, F32))
    with pytest.raises(ValueError, match="got 0 inputs"):
        native.run_on_device("FusedElementwise", [], [array], {"expr": NEG})
    with pytest.raises(ValueError, match="another number of outputs"):
        native.run_on_device("FusedElementwise", [array], [], {"expr": NEG})


@pytest.mark.skipif(not PROBLEM, reason="this machine has a CUDA device")
def test_says_why_there_is_no_device() -> None:
    assert PROBLEM.endswith(".")
    array = Foreign(np.zeros(4, F32), {"strides": (4,)})
    with pytest.raises(ValueError, match=PROBLEM.split("(")[0]):
        native.run_on_device("FusedElementwise", [array], [array], {"expr": NEG})
    with pytest.raises(ValueError, match=PROBLEM.split("(")[0]):
        run(NEG, np.zeros(4, F32), variant=VARIANTS["device"])


def test_registry_shows_the_cuda_variant() -> None:
    (one,) = [
        v for op in native.ops() if op["op"] == "FusedElementwise" for v in op["variants"] if v["device"] == "cuda"
    ]
    assert one["name"] == VARIANTS["device"]
    assert one["usable"] == one["chosen"] == (not PROBLEM)
    assert one["problem"] == PROBLEM


def torch_arrays() -> tuple[Callable[[Array], Any], Callable[[Any], Array]]:
    torch = pytest.importorskip("torch")
    return (lambda array: torch.from_numpy(array).cuda()), (lambda tensor: tensor.cpu().numpy())


def cupy_arrays() -> tuple[Callable[[Array], Any], Callable[[Any], Array]]:
    cupy = pytest.importorskip("cupy")
    return cupy.asarray, cupy.asnumpy


@needs_device
@pytest.mark.gpu
@pytest.mark.parametrize("library", [torch_arrays, cupy_arrays])
def test_arrays_of_other_libraries(library: Callable[[], Any]) -> None:
    to_device, to_host = library()
    x, y = samples("f32", (301, 67), 10), samples("f32", (67,), 11)
    expr = "i0:f32 i1:f32 | t0=mul(i0,i1) t1=less(t0,i1) | t0:f32 t1:bool"
    targets = [to_device(np.zeros((301, 67), dtype)) for dtype in (F32, np.bool_)]
    native.run_on_device("FusedElementwise", [to_device(x), to_device(y)], targets, {"expr": expr})
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(to_host(targets[0]), x * y)
        np.testing.assert_array_equal(to_host(targets[1]), x * y < y)


# --- within onnxruntime ---
def model() -> onnx.ModelProto:
    nodes = [
        helper.make_node(op, [f"v{k}"], [f"v{k + 1}"]) for k, op in enumerate(["Tanh", "Exp", "Abs", "Sqrt", "Neg"])
    ]
    ends = [helper.make_tensor_value_info(f"v{k}", TensorProto.FLOAT, ["N", 33]) for k in (0, len(nodes))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_target_cuda_has_custom_ops() -> None:
    optimized = onnxopt.optimize(model(), target="cuda")
    assert [node.op_type for node in optimized.graph.node] == ["FusedElementwise"]
    x = samples("f32", (5, 33), 12)
    actual = onnxopt.session(optimized).run(None, {"v0": x})[0]  # the same library serves the CPU provider
    np.testing.assert_allclose(actual, onnxopt.session(model(), library=False).run(None, {"v0": x})[0], rtol=1e-5)


@needs_device
@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["0", "1"], ids=["launched", "captured"])
def test_cuda_provider(graph: str) -> None:
    """Captured in a CUDA graph, the kernel must neither allocate nor wait."""
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(onnxopt.library_path()))
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    proto = onnxopt.optimize(model(), target="cuda").SerializeToString()
    provider = ("CUDAExecutionProvider", {"enable_cuda_graph": graph})
    session = ort.InferenceSession(proto, options, providers=[provider])
    x = samples("f32", (64, 33), 13)
    source = ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0)
    target = ort.OrtValue.ortvalue_from_numpy(np.zeros_like(x), "cuda", 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input("v0", source)
    binding.bind_ortvalue_output("v5", target)
    for _ in range(3):
        x = -x
        source.update_inplace(x)
        session.run_with_iobinding(binding)
        with np.errstate(all="ignore"):
            expected = -np.sqrt(np.abs(np.exp(np.tanh(x.astype(np.float64)))))
        np.testing.assert_allclose(target.numpy(), expected, rtol=1e-5)
