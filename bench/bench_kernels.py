"""Kernels beside their ceilings, and beside onnxruntime's own: copying and reading memory, products of floats and of bytes, all measured in the
same run.

    python bench/bench_kernels.py [NAME ...] [--threads 2] [--json out.json]

Every case is a small model in standard ops that onnxopt fuses; its outputs are compared with float64 (numpy) first. `onnxopt bench-kernel`
measures the same at sizes of your own. Of weights of integers, onnxruntime makes its own MatMulNBits, which rounds the row to 8 bits as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from onnxopt.kernelbench import PROBLEMS, Case, Ceilings, Measurement, measure, variants_of
from onnxopt.kernelbench.case import Arrays

SHAPES = {
    "FusedElementwise": [(64, 65536)],
    "FusedNorm": [(8192, 768), (128, 768)],
    "FusedSoftmax": [(16384, 512)],
    "FusedAttention": [(1, 128, 12, 64), (1, 512, 12, 64), (8, 128, 12, 64)],
    "FusedGemm": [(128, 768, 3072), (49, 384, 1536)],
    "FusedConv": [(1, 56, 56, 64, 64, 3), (1, 14, 14, 256, 256, 3), (1, 28, 28, 512, 128, 1)],
    "FusedConvTranspose": [(1, 80, 80, 24, 24, 2)],
    "FusedPool": [(1, 112, 112, 64, 3)],
    "FusedResize": [(1, 40, 40, 96, 2)],
    "FusedInvertedResidual": [(1, 112, 112, 16, 96, 24, 3), (1, 56, 56, 24, 144, 24, 3), (1, 14, 14, 64, 384, 64, 3)],
    "FusedSeparableConv": [(1, 80, 80, 96, 96, 3)],
    "FusedSqueezeExcite": [(1, 28, 28, 128, 32)],
    "FusedRecurrence": [(100, 1, 128), (200, 8, 256)],
    "FusedLoop": [(100, 1, 128)],
    "QAttention": [(1, 128, 12, 64), (8, 128, 12, 64)],
    "QConv": [(1, 56, 56, 64, 64, 3), (1, 28, 28, 512, 128, 1)],
    "QGemm": [
        *((rows, *sizes) for rows in (128, 197) for sizes in ((768, 768), (768, 3072), (3072, 768))),
        (1, 4096, 14336),  # more weights than caches hold
    ],
}
WEIGHTS = {
    "float": (None, None),
    "int8": (np.int8, None),
    "int4 in 32": (ml_dtypes.int4, 32),
    "int4 in 64": (ml_dtypes.int4, 64),
}
MATRICES = ((4096, 14336), (4096, 4096), (2048, 5632), (768, 3072))
"""Sizes of a large and a small language model, and of bert; the first one is more than caches hold, also in four bits."""


def weights_case(depth: int, columns: int, dtype: Any = None, block: int | None = None) -> Case:
    """One row by a matrix of float32, int8 or int4, which has a scale for each column or for each block of rows of it."""
    inputs, shape, written = {"x": (1, depth)}, (depth, columns), 4 * columns
    if dtype is None:
        size = 4 * depth * columns
        body, constants = "y = MatMul(x, w)", {"w": shape}
        return Case(body, inputs, lambda a: [a["x"] @ a["w"]], size, written, 2 * depth * columns, constants=constants)
    scales = (columns,) if block is None else (depth // block, columns)
    how = "axis=1" if block is None else f"axis=0, block_size={block}"

    def expected(a: Arrays) -> list[np.ndarray]:
        return [a["x"] @ (a["w"] * np.repeat(a["s"].reshape(-1, columns), block or depth, axis=0))]

    return Case(
        f"m = DequantizeLinear<{how}>(w, s) y = MatMul(x, m)",
        inputs,
        expected,
        bytes_read=depth * columns // (2 if dtype is ml_dtypes.int4 else 1) + 4 * math.prod(scales),
        bytes_written=written,
        operations=2 * depth * columns,
        constants={"w": shape, "s": scales},
        integers={"w": dtype},
    )


def cases() -> dict[str, tuple[str, tuple[int, ...], Case]]:
    """Op, sizes and case, by name."""
    made = {
        f"{op} {'x'.join(map(str, shape))}": (op, shape, PROBLEMS[op].case(op, shape, "float32"))
        for op, shapes in SHAPES.items()
        for shape in shapes
    }
    for sizes in MATRICES:
        for kind, how in WEIGHTS.items():
            name = f"weights 1x{sizes[0]}x{sizes[1]}, {kind}"
            made[name] = "FusedGemm", (1, *sizes), weights_case(*sizes, *how)
    return made


def show(name: str, ours: Measurement, theirs: Measurement) -> None:
    print(
        f"{name:38s} {ours.median_ms:9.3f} ms  {ours.of_ceiling:5.0%} of {ours.bound:10s} "
        f"{ours.times_onnxruntime:5.2f} x onnxruntime  error {ours.error:.0e} (onnxruntime's {theirs.error:.0e})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only cases whose name contains one of these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ceilings = Ceilings.measure(options.threads)
    print(
        f"copy {ceilings.copying / 1e9:.1f} GB/s   read {ceilings.reading / 1e9:.1f} GB/s   "
        f"gemm {ceilings.float32 / 1e9:.0f} GFLOP/s   bytes {(ceilings.int8 or 0) / 1e9:.0f} GOP/s"
    )
    results = {}
    for name, (op, shape, case) in cases().items():
        if options.names and not any(part in name for part in options.names):
            continue
        theirs, ours = measure(op, shape, case, "float32", variants_of(op, None), ceilings, 5)
        show(name, ours, theirs)
        results[name] = {**dataclasses.asdict(ours), "onnxruntime": dataclasses.asdict(theirs)}
    if results:
        ratios = [one["times_onnxruntime"] for one in results.values()]
        print(f"geometric mean {statistics.geometric_mean(ratios):.2f} x onnxruntime")
    if options.json:
        made = {"ceilings": dataclasses.asdict(ceilings), "kernels": results}
        options.json.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
