"""Accuracy of 8-bit models on real tasks: `onnxopt quantize` beside float, onnxruntime's quantization and NNCF, all at their defaults.

    python bench/bench_accuracy.py FOLDER [TASK ...] [--json out.json]

FOLDER keeps what is downloaded and trained. All sides get the same calibration samples. A peer that is not installed, or fails, has no column.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_tasks import TASKS, Sample, Task
from bench_models import describe_machine
from bench_quantized import peers, signal_to_noise

import onnxopt


def ours(task: Task, folder: Path, threads: int, **options: Any) -> Callable[[Sample], np.ndarray]:
    out = folder / "quantized.onnx"
    onnxopt.quantize(task.model, out, calibration=task.calibration, **options)
    session = onnxopt.session(out, threads=threads)
    return lambda sample: session.run(None, sample)[0]


def measure(task: Task, threads: int) -> dict[str, dict[str, float]]:
    """Of every side: its quality, how often the largest output is the float model's, and signal to noise in dB."""
    floats = onnxopt.session(task.model, threads=threads, library=False)
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[Sample], np.ndarray]] = {
            "float32": lambda sample: floats.run(None, sample)[0],
            "onnxopt": ours(task, Path(folder), threads),
            "onnxopt qdq": ours(task, Path(folder), threads, format="qdq"),
            **peers(task.model, task.calibration, Path(folder), threads),
        }
        found = {name: [np.asarray(call(sample)) for sample in task.test] for name, call in calls.items()}
    wanted = found["float32"]
    return {
        name: {
            "quality": round(task.quality(results), 4),
            "agreement": round(agreement(wanted, results), 4),
            "signal_to_noise_db": round(signal_to_noise(_flat(wanted), _flat(results)), 1),
        }
        for name, results in found.items()
    }


def agreement(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The part of the samples for which the largest of every row of outputs is the same one."""
    same = [np.array_equal(a.argmax(axis=-1), b.argmax(axis=-1)) for a, b in zip(wanted, found, strict=True)]
    return float(np.mean(same))


def _flat(results: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([one.ravel() for one in results])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    for name in options.tasks or TASKS:
        task = TASKS[name](options.folder)
        results[name] = found = measure(task, options.threads)
        for side, one in found.items():
            print(
                f"{name:10s} {side:18s} quality {one['quality']:.4f}  agreement {one['agreement']:.4f}  "
                f"{one['signal_to_noise_db']:6.1f} dB",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({**describe_machine(options.threads), "tasks": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
