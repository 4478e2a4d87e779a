"""What a machine can do at most, measured: bytes per second of copying and of reading, operations per second of products."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

import numpy as np
import onnx

from onnxopt.runtime.bench import burst
from onnxopt.runtime.library import native, session

REPEATS = 5
"""Measurements of each ceiling, the best of which counts: a ceiling is what nothing disturbs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ceilings:
    """Of so many threads.

    Attributes:
        threads: how many.
        copying: bytes per second, read and written ones together, that a copy moves beyond the caches.
        reading: bytes per second that reading alone moves.
        float32: operations per second of onnxruntime's matrix product.
        int8: operations per second of a loop that multiplies registers of bytes; None where the processor has no instruction for that.
    """

    threads: int
    copying: float
    reading: float
    float32: float
    int8: float | None

    @staticmethod
    def measure(threads: int) -> Ceilings:
        """Measure all of them, in some seconds."""
        return Ceilings(
            threads, 2 * bandwidth(threads, _copy), bandwidth(threads, _read), product_rate(threads), byte_rate(threads)
        )


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    np.copyto(target, source)


def _read(source: np.ndarray, _target: np.ndarray) -> None:
    np.bitwise_or.reduce(source)


def bandwidth(threads: int, move: Callable[[np.ndarray, np.ndarray], None], size: int = 128 << 20) -> float:
    """Bytes per second that `move` goes through, each thread having a part of its own of `size` bytes, which caches do not hold."""
    count, repeats = size // threads // 8, 3
    parts = [(np.ones(count, np.uint64), np.empty(count, np.uint64)) for _ in range(threads)]

    def work(source: np.ndarray, target: np.ndarray) -> None:
        for _ in range(repeats):
            move(source, target)

    seconds = min(_together([lambda part=part: work(*part) for part in parts]) for _ in range(REPEATS))  # type: ignore[misc]
    return size * repeats / seconds


def product_rate(threads: int, size: int = 768) -> float:
    """Operations per second of onnxruntime's product of square float32 matrices."""
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[{size},{size}] x) => (float[{size},{size}] y) {{ y = MatMul(x, w) }}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((size, size)).astype(np.float32) for _ in "xw")
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    run = session(model, threads=threads, library=False).run
    return 2 * size**3 / min(burst(lambda: run(None, {"x": x})) for _ in range(REPEATS))


def byte_rate(threads: int, rounds: int = 4_000_000) -> float | None:
    """Operations per second of a loop over registers of bytes; None where there is no instruction for that."""
    occupy, rates = native().occupy, []
    for _ in range(REPEATS):
        products: list[int] = []  # one of each thread
        seconds = _together([lambda made=products: made.append(occupy("QGemm", rounds))] * threads)  # type: ignore[misc]
        rates.append(2 * sum(products) / seconds)
    return max(rates) or None


def _together(tasks: list[Callable[[], object]]) -> float:
    """Seconds that tasks take, each on a thread, from the time that all are there."""
    gate = threading.Barrier(len(tasks) + 1)

    def run(task: Callable[[], object]) -> None:
        gate.wait()
        task()

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start
