"""Kernels beside their ceilings: the memory bandwidth (of copying, or of reading where that is all there is to do), the rate of onnxruntime's matrix product, and for products of bytes the rate of a loop
that multiplies registers alone, measured in the same run.

    python bench/bench_kernels.py [NAME ...] [--threads 2] [--json out.json]

Every case is a small model in standard ops; of weights of integers, onnxruntime makes its own MatMulNBits, which rounds
the row to 8 bits as well. onnxopt fuses it; its outputs are compared with float64 (numpy) first. Then both models run
in turn in onnxruntime, in bursts, and the fraction of the ceiling is told: bytes that have to move over the bandwidth for what is bound
by memory, operations over the rate for what is bound by arithmetic.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

import onnxopt
from onnxopt.runtime.bench import burst, compare

LARGEST_ERROR = 1e-4
"""Relative to the largest magnitude of the output."""

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A model in ONNX's text format, its inputs and constants, what it computes in float64, and its bytes or operations.

    Constants are float32, those of `integers` whole numbers of that type.
    """

    body: str
    inputs: dict[str, tuple[int, ...]]
    expected: Callable[[Arrays], list[np.ndarray]]
    op: str
    constants: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    integers: dict[str, Any] = dataclasses.field(default_factory=dict)
    outputs: str = "y"
    moved: int = 0
    operations: int = 0
    ceiling: str = ""  # of `ceilings`; by default the bandwidth for bytes, and the rate of products for operations
    largest_error: float = LARGEST_ERROR


# --- float64 references --------------------------------------------------------------------------------------------
def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


def layer_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    batch, rows, width = q.shape
    size = width // heads
    split = [one.reshape(batch, -1, heads, size).transpose(0, 2, 1, 3) for one in (q, k, v)]
    scores = softmax(split[0] @ split[1].transpose(0, 1, 3, 2) / math.sqrt(size))
    return (scores @ split[2]).transpose(0, 2, 1, 3).reshape(batch, rows, width)


# --- cases ---------------------------------------------------------------------------------------------------------
def norm_case(rows: int, width: int) -> Case:
    return Case(
        "y = LayerNormalization<epsilon=0.00001>(x, s, b)",
        {"x": (rows, width)},
        lambda a: [layer_norm(a["x"], a["s"], a["b"])],
        "FusedNorm",
        constants={"s": (width,), "b": (width,)},
        moved=8 * rows * width,
    )


def residual_norm_case(rows: int, width: int) -> Case:
    return Case(
        "r = Add(x, z)\n y = LayerNormalization<epsilon=0.00001>(r, s, b)",
        {"x": (rows, width), "z": (rows, width)},
        lambda a: [layer_norm(a["x"] + a["z"], a["s"], a["b"]), a["x"] + a["z"]],
        "FusedNorm",
        constants={"s": (width,), "b": (width,)},
        outputs="y, r",
        moved=16 * rows * width,
    )


def softmax_case(rows: int, width: int) -> Case:
    return Case(
        "m = Mul(x, c)\n a = Add(m, z)\n y = Softmax<axis=-1>(a)",
        {"x": (rows, width), "z": (1, width)},
        lambda a: [softmax(a["x"] * a["c"] + a["z"])],
        "FusedSoftmax",
        constants={"c": (1,)},
        moved=8 * rows * width,
    )


def attention_case(batch: int, rows: int, heads: int, size: int) -> Case:
    width = heads * size
    split = "\n".join(
        f"{n}r = Reshape({n}, shape)\n {n}t = Transpose<perm={'[0,2,3,1]' if n == 'k' else '[0,2,1,3]'}>({n}r)"
        for n in "qkv"
    )
    body = f"""shape = Constant<value_ints=[0,0,{heads},{size}]>()
    merged = Constant<value_ints=[0,0,{width}]>()
    scale = Constant<value_float={1 / math.sqrt(size)}>()
    {split}
    s = MatMul(qt, kt)
    t = Mul(s, scale)
    p = Softmax<axis=-1>(t)
    o = MatMul(p, vt)
    ot = Transpose<perm=[0,2,1,3]>(o)
    y = Reshape(ot, merged)"""
    return Case(
        body,
        dict.fromkeys("qkv", (batch, rows, width)),
        lambda a: [attention(a["q"], a["k"], a["v"], heads)],
        "FusedAttention",
        operations=4 * batch * rows * rows * width,
    )


def gemm_case(rows: int, depth: int, columns: int) -> Case:
    return Case(
        "p = MatMul(x, w)\n q = Add(p, b)\n y = Gelu(q)",
        {"x": (rows, depth)},
        lambda a: [(lambda t: t * (1 + erf(t / math.sqrt(2))) / 2)(a["x"] @ a["w"] + a["b"])],
        "FusedGemm",
        constants={"w": (depth, columns), "b": (columns,)},
        operations=2 * rows * depth * columns,
    )


def qgemm_case(rows: int, depth: int, columns: int) -> Case:
    def expected(a: Arrays) -> list[np.ndarray]:
        x = (np.clip(np.rint(a["x"] / 0.03125) + 128, 0, 255) - 128) * 0.03125
        return [x @ (np.trunc(a["w"] * 20) * np.abs(a["s"]))]

    body = """xs = Constant<value_float=0.03125>()
    xz = Constant<value = uint8 {128}>()
    width = Constant<value_float=20.0>()
    q = QuantizeLinear(x, xs, xz)
    d = DequantizeLinear(q, xs, xz)
    wide = Mul(w, width)
    bytes = Cast<to=3>(wide)
    scales = Abs(s)
    m = DequantizeLinear<axis=1>(bytes, scales)
    y = MatMul(d, m)"""  # onnxruntime multiplies integers only where no bias follows
    return Case(
        body,
        {"x": (rows, depth)},
        expected,
        "QGemm",
        constants={"w": (depth, columns), "s": (columns,)},
        moved=depth * columns if rows == 1 else 0,  # one row: every weight is read once, and multiplied once
        operations=2 * rows * depth * columns,
        ceiling="reading" if rows == 1 else "bytes",
        largest_error=1e-3,  # a number between two integers may become either
    )


def weights_case(depth: int, columns: int, dtype: Any = None, block: int | None = None) -> Case:
    """One row by a matrix of float32, int8 or int4, which has a scale for each column or for each block of rows of it."""
    inputs, shape = {"x": (1, depth)}, (depth, columns)
    if dtype is None:
        product = "y = MatMul(x, w)"
        return Case(
            product, inputs, lambda a: [a["x"] @ a["w"]], "FusedGemm", constants={"w": shape}, moved=4 * depth * columns
        )
    scales = (columns,) if block is None else (depth // block, columns)
    how = "axis=1" if block is None else f"axis=0, block_size={block}"

    def expected(a: Arrays) -> list[np.ndarray]:
        return [a["x"] @ (a["w"] * np.repeat(a["s"].reshape(-1, columns), block or depth, axis=0))]

    return Case(
        f"m = DequantizeLinear<{how}>(w, s) y = MatMul(x, m)",
        inputs,
        expected,
        "FusedGemm",
        constants={"w": shape, "s": scales},
        integers={"w": dtype},
        moved=depth * columns // (2 if dtype is ml_dtypes.int4 else 1) + 4 * math.prod(scales),
        ceiling="reading",
    )


WEIGHTS = {
    "float": (None, None),
    "int8": (np.int8, None),
    "int4 in 32": (ml_dtypes.int4, 32),
    "int4 in 64": (ml_dtypes.int4, 64),
}
MATRICES = ((4096, 14336), (4096, 4096), (2048, 5632), (768, 3072))
"""Sizes of a large and a small language model, and of bert; the first one is more than caches hold, also in four bits."""

CASES = {
    "elementwise 64 x 65536": Case(
        "s = Sigmoid(x)\n t = Mul(x, s)\n y = Mul(t, z)",
        {"x": (64, 65536), "z": (64, 65536)},
        lambda a: [a["x"] / (1 + np.exp(-a["x"])) * a["z"]],
        "FusedElementwise",
        moved=12 * 64 * 65536,
    ),
    "layer norm 16384 x 768": norm_case(16384, 768),
    "residual + layer norm 8192 x 768": residual_norm_case(8192, 768),
    "scale + mask + softmax 16384 x 512": softmax_case(16384, 512),
    "attention 1 x 128, 12 x 64": attention_case(1, 128, 12, 64),
    "attention 1 x 512, 12 x 64": attention_case(1, 512, 12, 64),
    "attention 8 x 128, 12 x 64": attention_case(8, 128, 12, 64),
    "gemm + bias + gelu 128 x 768 x 3072": gemm_case(128, 768, 3072),
    "gemm + bias + gelu 49 x 384 x 1536": gemm_case(49, 384, 1536),
    **{
        f"qgemm {rows} x {depth} x {columns}": qgemm_case(rows, depth, columns)
        for rows in (128, 197)
        for depth, columns in ((768, 768), (768, 3072), (3072, 768))
    },
    "qgemm 1 x 4096 x 14336": qgemm_case(1, 4096, 14336),  # more weights than caches hold
    **{
        f"weights 1 x {depth} x {columns}, {kind}": weights_case(depth, columns, *how)
        for depth, columns in MATRICES
        for kind, how in WEIGHTS.items()
    },
}


# --- ceilings ------------------------------------------------------------------------------------------------------
def copy(source: np.ndarray, target: np.ndarray) -> None:
    np.copyto(target, source)


def read(source: np.ndarray, _target: np.ndarray) -> None:
    np.bitwise_or.reduce(source)


def bandwidth(threads: int, move: Callable[[np.ndarray, np.ndarray], None], size: int = 128 << 20) -> float:
    """Bytes per second of `move`, each thread having a part of its own; what it reads, caches do not hold."""
    parts = [
        (np.ones(size // threads // 8, np.uint64), np.empty(size // threads // 8, np.uint64)) for _ in range(threads)
    ]
    repeats, rates = 3, []
    for _ in range(5):
        gate = threading.Barrier(threads + 1)

        def work(source: np.ndarray, target: np.ndarray, gate: threading.Barrier = gate) -> None:
            gate.wait()
            for _ in range(repeats):
                move(source, target)

        workers = [threading.Thread(target=work, args=part) for part in parts]
        for worker in workers:
            worker.start()
        gate.wait()
        start = time.perf_counter()
        for worker in workers:
            worker.join()
        rates.append(size * repeats / (time.perf_counter() - start))
    return max(rates)


def gemm_rate(threads: int, size: int = 768) -> float:
    """Operations per second of onnxruntime's product of square matrices."""
    inputs, weights = {"x": (size, size)}, {"w": (size, size)}
    case = Case("y = MatMul(x, w)", inputs, lambda a: [a["x"] @ a["w"]], "MatMul", constants=weights)
    arrays = draw(case)
    session = onnxopt.session(model_of(case, arrays), threads=threads, library=False)
    feeds = {"x": arrays["x"]}
    return 2 * size**3 / min(burst(lambda: session.run(None, feeds)) for _ in range(5))


def byte_rate(threads: int, rounds: int = 4_000_000) -> float:
    """Operations per second of a loop that multiplies registers of bytes; infinite where the processor has no instruction for that."""
    native = importlib.import_module("onnxopt._native")
    rates = []
    for _ in range(5):
        products: list[int] = []  # one of each thread

        def work(products: list[int] = products) -> None:
            products.append(native.occupy("QGemm", rounds))

        workers = [threading.Thread(target=work) for _ in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        rates.append(2 * sum(products) / (time.perf_counter() - start))
    return max(rates) or math.inf


# --- running -------------------------------------------------------------------------------------------------------
def draw(case: Case) -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {**case.inputs, **case.constants}
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, dtype in case.integers.items():
        limits = ml_dtypes.iinfo(dtype)
        drawn[name] = rng.integers(limits.min, limits.max + 1, shapes[name]).astype(np.int8).astype(dtype)
    return drawn


def model_of(case: Case, arrays: Arrays) -> onnx.ModelProto:
    inputs = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in case.inputs.items())
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => (float[] {case.outputs.replace(", ", ", float[] ")}) {{ {case.body} }}'
    model = onnx.parser.parse_model(text)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(arrays[name], name) for name in case.constants)
    return model


def run(name: str, case: Case, threads: int, ceilings: dict[str, float]) -> dict[str, Any]:
    arrays = draw(case)
    model = model_of(case, arrays)
    optimized = onnxopt.optimize(model)
    ops = [node.op_type for node in optimized.graph.node]
    feeds = {one: arrays[one] for one in case.inputs}
    ours = onnxopt.session(optimized, threads=threads)
    theirs = onnxopt.session(model, threads=threads, library=False)
    exact = case.expected({key: value.astype(np.float64) for key, value in arrays.items()})
    error, their_error = (
        max(float(np.abs(one - two).max() / np.abs(one).max()) for one, two in zip(exact, found, strict=True))
        for found in (ours.run(None, feeds), theirs.run(None, feeds))
    )
    if error > case.largest_error:
        raise SystemExit(f"{name}: off by {error:.1e}")
    found = compare([("onnxopt", lambda: ours.run(None, feeds)), ("onnxruntime", lambda: theirs.run(None, feeds))], 5)
    seconds = found[0].median_ms / 1e3
    ceiling = (case.moved or case.operations) / ceilings[case.ceiling or ("bandwidth" if case.moved else "gemm")]
    return {
        "ops": ops,
        "fused": case.op in ops,
        "ms": round(seconds * 1e3, 4),
        "onnxruntime_ms": round(found[1].median_ms, 4),
        "times_as_fast": round(1 / found[1].speedup, 3),
        "bound": "memory" if case.moved else "arithmetic",
        "of_ceiling": round(ceiling / seconds, 3),
        "error": error,
        "onnxruntime_error": their_error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only cases whose name contains one of these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ceilings = {
        "bandwidth": 2 * bandwidth(options.threads, copy),  # what is read, and what is written
        "reading": bandwidth(options.threads, read),
        "gemm": gemm_rate(options.threads),
    }
    ceilings["bytes"] = byte_rate(options.threads)
    print(
        f"copy {ceilings['bandwidth'] / 1e9:.1f} GB/s   read {ceilings['reading'] / 1e9:.1f} GB/s   gemm {ceilings['gemm'] / 1e9:.0f} GFLOP/s   bytes {ceilings['bytes'] / 1e9:.0f} GOP/s"
    )
    results = {}
    for name, case in CASES.items():
        if options.names and not any(part in name for part in options.names):
            continue
        results[name] = one = run(name, case, options.threads, ceilings)
        fused = "" if one["fused"] else f"   NOT FUSED: {one['ops']}"
        print(
            f"{name:38s} {one['ms']:9.3f} ms  {one['of_ceiling']:5.0%} of {one['bound']:10s} "
            f"{one['times_as_fast']:5.2f} x onnxruntime  error {one['error']:.0e} and {one['onnxruntime_error']:.0e}{fused}",
            flush=True,
        )
    if results:
        ratios = [one["times_as_fast"] for one in results.values()]
        print(f"geometric mean {statistics.geometric_mean(ratios):.2f} x onnxruntime")
    if options.json:
        options.json.write_text(json.dumps({"ceilings": ceilings, "kernels": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
