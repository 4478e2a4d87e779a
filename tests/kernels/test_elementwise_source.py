"""Expressions as CUDA source: what is written, that it computes what the interpreter does, and that compilers take it.

The source runs on the host, a fiber for each thread; nvcc and NVRTC compile it where they are.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

from cuda_tools import find_tool  # noqa: E402  (after the check that it can be used)
from helpers import assert_equal  # noqa: E402  (after the check that it can be used)
from onnxopt.runtime import library  # noqa: E402  (after the check that it can be used)

ROOT = Path(__file__).resolve().parents[2]
Array = np.ndarray[Any, Any]
DTYPES = {
    "f32": np.float32,
    "f16": np.float16,
    "i32": np.int32,
    "i64": np.int64,
    "bool": np.bool_,
    "bf16": ml_dtypes.bfloat16,
}
FLOATS = ("f32", "f16", "bf16")
DOMAINS = {"F": FLOATS, "N": (*FLOATS, "i32", "i64"), "A": tuple(DTYPES), "B": ("bool",), "FF": ("f32",)}
MOST_OUTPUTS = 16


def expressions_of_all_operations() -> list[str]:
    """Every operation on every type that it takes, as many in an expression as it may have outputs."""
    made = []
    for name in DTYPES:
        lines = []
        for op, operands, literals, domain, result in native.elementwise_ops():
            if name not in DOMAINS[domain]:
                continue
            inputs = ["i0", "i1", "i2"][:operands] if op != "where" else ["i3", "i0", "i1"]
            arguments = ",".join(inputs + ["#0x1.8p-1:f32", "#0x1.4p+0:f32"][:literals])
            of_result = {"same": name, "boolean": "bool"}.get(result, result)
            lines.append((f"{op}({arguments})", of_result))
        for start in range(0, len(lines), MOST_OUTPUTS):
            part = lines[start : start + MOST_OUTPUTS]
            statements = " ".join(f"t{k}={text}" for k, (text, _) in enumerate(part))
            outputs = " ".join(f"t{k}:{kind}" for k, (_, kind) in enumerate(part))
            made.append(f"i0:{name} i1:{name} i2:{name} i3:bool | {statements} | {outputs}")
    return made


def sum_of_inputs(count: int) -> str:
    declared = " ".join(f"i{k}:f32" for k in range(count))
    lines = " ".join(f"t{k}=add({'i0' if k == 0 else f't{k - 1}'},i{k + 1})" for k in range(count - 1))
    return f"{declared} | {lines} | t{count - 2}:f32"


def long_chain(length: int) -> str:
    lines = " ".join(f"t{k}={'exp' if k % 2 else 'neg'}({'i0' if k == 0 else f't{k - 1}'})" for k in range(length))
    return f"i0:f32 | {lines} | t{length - 1}:f32"


MIXED = (
    "i0:f16 i1:f32 i2:i64 | t0=cast_f32(i0) t1=mul(t0,i1) t2=cast_f16(t1) t3=add(i2,#-3:i64) "
    "t4=clip(t1,#-inf:f32,#0x1p+1:f32) | t2:f16 t3:i64 t4:f32"
)
LITERALS = (
    "i0:f32 i1:i64 i2:i32 i3:bool | t0=add(i0,#nan:f32) t1=max(i0,#-inf:f32) t2=add(i1,#-9223372036854775808:i64) "
    "t3=add(i2,#-2147483648:i32) t4=xor(i3,#true:bool) t5=mul(i0,#-0x0p+0:f32) | t0:f32 t1:f32 t2:i64 t3:i32 t4:bool t5:f32"
)
TWO_SHAPES = "i0:f32 i1:f32 | t0=neg(i0) t1=add(t0,i1) | t0:f32 t1:f32"
OF_ALL = expressions_of_all_operations()
CHAIN = "i0:f32 i1:f32 | t0=mul(i0,i1) t1=exp(t0) t2=add(t1,i1) | t2:f32"
EXPRESSIONS = [*OF_ALL, MIXED, LITERALS, TWO_SHAPES, sum_of_inputs(32), long_chain(200)]


def samples(name: str, shape: tuple[int, ...], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if name == "bool":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if name in ("i32", "i64"):
        return rng.integers(-9, 9, shape).astype(DTYPES[name])
    edges = rng.choice([math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-40], shape)
    return np.where(rng.random(shape) < 0.1, edges, rng.normal(0, 3, shape)).astype(DTYPES[name])


def input_types(expr: str) -> list[str]:
    return [item.split(":")[1] for item in expr.split("|")[0].split()]


# --- what is written ---
def test_reads_and_computes_only_what_outputs_need() -> None:
    both, first, second = native.cuda_sources("i0:f32 i1:f32 i2:f32 | t0=neg(i0) t1=exp(i1) t2=abs(i2) | t0:f32 t1:f32")
    assert all("op_neg(i0)" in text for text in (both, first))
    assert "i1" not in first and "op_abs" not in both + first + second
    assert "op_exp(i1)" in second and "read_input<float, kElements>(domain, 0" in second


@pytest.mark.parametrize(
    ("expr", "elements"),
    [
        ("i0:f32 | t0=neg(i0) | t0:f32", 4),
        ("i0:f16 i1:bool | t0=where(i1,i0,#0x0p+0:f16) | t0:f16", 8),
        ("i0:i64 | t0=neg(i0) | t0:i64", 4),
        (sum_of_inputs(32), 2),
        (long_chain(200), 1),
    ],
)
def test_elements_of_a_thread(expr: str, elements: int) -> None:
    """16 bytes of narrow and usual types, as far as the registers suffice."""
    assert f"constexpr int kElements = {elements};" in native.cuda_sources(expr)[0]


def test_outputs_that_read_the_same_inputs_are_made_by_one_kernel() -> None:
    assert len(native.cuda_sources("i0:f32 i1:f32 | t0=add(i0,i1) t1=mul(i0,i1) | t0:f32 t1:f32")) == 1
    assert len(native.cuda_sources(TWO_SHAPES)) == 3


def test_more_inputs_take_the_large_parameter() -> None:
    assert "SmallTensors" in native.cuda_sources(sum_of_inputs(16))[0]
    assert "LargeTensors" in native.cuda_sources(sum_of_inputs(17))[0]


def test_malformed_expression_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="malformed"):
        native.cuda_sources("i0:f32 | t0=neg(i0)")


# --- what it computes ---
def unit(index: int, number: int, source: str) -> str:
    """A source in a namespace, with a function that launches it on the host."""
    name = f"kernel_{index}_{number}"
    return (
        f"namespace {name} {{\n{source.replace('fused_elementwise(', name + '(', 1)}"
        f'extern "C" const char* launch_{name}(const void* parameter, unsigned blocks, unsigned threads) {{\n'
        f"  return launch(blocks, threads, [&] {{ {name}(*static_cast<const Domain*>(parameter)); }});\n}}\n}}\n"
    )


LAUNCH = """#include "kernels/cuda/elementwise/tensors.h"
#include "kernels/cuda/simt/simt.h"
template <class Body>
const char* launch(unsigned blocks, unsigned threads, const Body& body) {
  static thread_local std::string problem;
  const auto done = onnxopt::simt::launch({blocks}, {threads}, 0, body);
  return done ? nullptr : (problem = done.error()).c_str();
}
extern "C" long offset_in(const void* domain, int input, long element) {
  using namespace onnxopt::elementwise::cuda;
  const auto& tensors = *static_cast<const SmallTensors*>(domain);
  return find_offset(tensors, tensors.inputs[input], element);
}
"""


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels of all expressions, as a host compiler makes them with fibers for threads."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    folder = tmp_path_factory.mktemp("sources")
    units = [
        unit(index, number, source)
        for index, expr in enumerate(EXPRESSIONS)
        for number, source in enumerate(native.cuda_sources(expr))
    ]
    text = folder / "kernels.cc"
    text.write_text(LAUNCH + "".join(units))
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC", f"-I{ROOT}"]
    made = folder / "kernels.so"
    subprocess.run([compiler, *flags, str(text), str(ROOT / "kernels/cuda/simt/simt.cc"), "-o", str(made)], check=True)
    return ctypes.CDLL(str(made))


def run_on_host(kernels: ctypes.CDLL, expr: str, inputs: list[Array]) -> list[Array]:
    """The outputs, whose memory is not aligned, of launches of at most three blocks."""
    expected = native.run("FusedElementwise", inputs, {"expr": expr}, variant="elementwise__cuda_emulated")
    outputs = [np.empty(one.size + 1, one.dtype)[1:].reshape(one.shape) for one in expected]
    for source, parameter, blocks, threads in native.cuda_launches(expr, inputs, outputs):
        launch = getattr(kernels, f"launch_kernel_{EXPRESSIONS.index(expr)}_{source}")
        launch.restype = ctypes.c_char_p
        aligned = (ctypes.c_uint64 * (len(parameter) // 8)).from_buffer_copy(parameter)
        assert launch(ctypes.byref(aligned), min(blocks, 3), threads) is None
    return outputs


def check(kernels: ctypes.CDLL, expr: str, inputs: list[Array]) -> None:
    expected = native.run("FusedElementwise", inputs, {"expr": expr}, variant="elementwise__cuda_emulated")
    for actual, wanted in zip(run_on_host(kernels, expr, inputs), expected, strict=True):
        assert_equal(actual, wanted)


@pytest.mark.parametrize("index", range(len(EXPRESSIONS)))
def test_computes_what_the_interpreter_does(index: int, on_host: ctypes.CDLL) -> None:
    expr = EXPRESSIONS[index]
    for length in (1, 3, 8, 1021, 2048):
        inputs = [samples(name, (length,), seed) for seed, name in enumerate(input_types(expr))]
        check(on_host, expr, inputs)


@pytest.mark.parametrize("shapes", list(itertools.permutations([(5, 3, 12), (12,), (5, 1, 1)])), ids=str)
@pytest.mark.parametrize("expr", [MIXED, OF_ALL[0]], ids=["mixed", "f32"])
def test_broadcasts(shapes: tuple[tuple[int, ...], ...], expr: str, on_host: ctypes.CDLL) -> None:
    names = input_types(expr)
    inputs = [
        samples(name, shape, seed) for seed, (name, shape) in enumerate(zip(names, [*shapes, (1,)], strict=False))
    ]
    check(on_host, expr, inputs)


@pytest.mark.parametrize("columns", [1, 2, 7, 8, 13])
def test_rows_that_vectors_do_not_divide(columns: int, on_host: ctypes.CDLL) -> None:
    inputs = [samples("f16", (7, 3, columns), 1), samples("f32", (3, 1), 2), samples("i64", (7, 1, columns), 3)]
    check(on_host, MIXED, inputs)


def test_unaligned_inputs(on_host: ctypes.CDLL) -> None:
    inputs = [samples(name, (1001,), seed)[1:] for seed, name in enumerate(input_types(MIXED))]
    check(on_host, MIXED, inputs)


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), ()], ids=str)
def test_empty_tensors_and_single_numbers(shape: tuple[int, ...], on_host: ctypes.CDLL) -> None:
    check(on_host, MIXED, [samples(name, shape, seed) for seed, name in enumerate(input_types(MIXED))])


def test_outputs_of_two_shapes_are_two_launches(on_host: ctypes.CDLL) -> None:
    inputs = [samples("f32", (9,), 1), samples("f32", (5, 9), 2)]
    check(on_host, TWO_SHAPES, inputs)
    outputs = [np.empty(9, np.float32), np.empty((5, 9), np.float32)]
    assert [launch[0] for launch in native.cuda_launches(TWO_SHAPES, inputs, outputs)] == [1, 2]


@pytest.mark.parametrize("shape", [(1 << 16, 3, 1 << 14), (5, (1 << 29) + 3), (3, 1, (1 << 30) + 1, 1)], ids=str)
def test_more_elements_than_31_bits_number(shape: tuple[int, ...], on_host: ctypes.CDLL) -> None:
    """Of inputs that are broadcast over a domain whose memory is never touched."""
    expr = "i0:bool i1:bool i2:bool | t0=and(i0,i1) t1=and(t0,i2) | t1:bool"
    rows, columns = (*shape[:-1], 1), (1,) * (len(shape) - 1) + shape[-1:]
    inputs = [np.empty(one, np.bool_) for one in (rows, columns, shape)]
    ((_, parameter, blocks, threads),) = native.cuda_launches(expr, inputs, [np.empty(shape, np.bool_)])
    elements = math.prod(shape)
    assert elements > 1 << 31
    assert (blocks - 1) * threads * 8 < elements <= blocks * threads * 8
    aligned = (ctypes.c_uint64 * (len(parameter) // 8)).from_buffer_copy(parameter)
    on_host.offset_in.restype = ctypes.c_long
    for element in (0, 1, shape[-1] - 1, (1 << 31) - 1, 1 << 31, (1 << 31) + 7, elements - 1):
        at = [int(place) for place in np.unravel_index(element, shape)]
        for number, one in enumerate(inputs):
            places = [place if size > 1 else 0 for place, size in zip(at, one.shape, strict=True)]
            found = on_host.offset_in(ctypes.byref(aligned), number, ctypes.c_long(element))
            assert found == np.ravel_multi_index(places, one.shape)


def test_more_axes_than_the_parameter_has_are_left_to_the_interpreter() -> None:
    expr = "i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"
    shape = (2, 3) * 4
    a, b = np.ones(shape, np.float32), np.ones([n if k % 2 else 1 for k, n in enumerate(shape)], np.float32)
    with pytest.raises(ValueError, match="No source"):
        native.cuda_launches(expr, [a, b], [np.empty(shape, np.float32)])


# --- compilers ---
@pytest.mark.parametrize("index", [OF_ALL.index(one) for one in OF_ALL if one.startswith(("i0:f16", "i0:i64"))][:3:2])
def test_nvcc_compiles(index: int, tmp_path: Path) -> None:
    compiler = find_tool("nvcc")
    source = tmp_path / "expression.cu"
    source.write_text(native.cuda_sources(EXPRESSIONS[index])[0])
    architectures = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (80, 90)]
    flags = ["-std=c++20", "-fmad=false", "-Werror", "all-warnings", f"-I{ROOT}", "--threads", "2"]
    subprocess.run(
        [compiler, *flags, *architectures, "-fatbin", str(source), "-o", str(tmp_path / "expression.fatbin")],
        check=True,
    )


@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize("index", range(len(EXPRESSIONS)))
def test_nvrtc_compiles(index: int, sm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not library.load_nvrtc():
        pytest.skip("no NVRTC on this machine")
    monkeypatch.setenv("ONNXOPT_CACHE_DIR", "off")
    image = native.compile_cuda(native.cuda_sources(EXPRESSIONS[index])[0], sm)
    assert image.startswith(b"\x7fELF") and b"fused_elementwise" in image


@pytest.mark.parametrize("sm", [80, 90])
def test_machine_code_moves_vectors_and_spills_nothing(
    sm: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = find_tool("cuobjdump")  # which calls nvdisasm
    if not library.load_nvrtc():
        pytest.skip("no NVRTC on this machine")
    monkeypatch.setenv("ONNXOPT_CACHE_DIR", "off")
    (tmp_path / "expression.cubin").write_bytes(native.compile_cuda(native.cuda_sources(CHAIN)[0], sm))
    command = [tool, "--dump-sass", str(tmp_path / "expression.cubin")]
    code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "LDG.E.128" in code and "STG.E.128" in code
    assert "LDL" not in code and "STL" not in code
