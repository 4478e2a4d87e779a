"""Accuracy of 8-bit models on real tasks: `onnxopt quantize` beside float, onnxruntime's quantization and NNCF, all at their defaults.

    python bench/bench_accuracy.py FOLDER [TASK ...] [--side SIDE ...] [--json bench/results/accuracy.json]

FOLDER keeps what is downloaded and trained. All sides get the same calibration samples. A peer that is not installed, or fails, has no column.
What the JSON file holds of other tasks and sides stays there, each with the commit that it was measured at.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_tasks import TASKS, Sample, Task
from bench_models import describe_machine
from bench_quantized import nncf_quantized, onnxruntime_quantized, signal_to_noise

import onnxopt

Call = Callable[[Sample], np.ndarray]
VERSIONS = ("onnxopt", "onnxruntime-gpu", "onnxruntime", "nncf", "openvino", "numpy", "torch")


def of_session(session: Any) -> Call:
    return lambda sample: session.run(None, sample)[0]


def ours(**options: Any) -> Callable[[Task, Path, int], Call]:
    def make(task: Task, folder: Path, threads: int) -> Call:
        out = folder / "quantized.onnx"
        calibration = options.get("calibration", task.calibration)
        onnxopt.quantize(task.model, out, **{**options, "calibration": calibration})
        return of_session(onnxopt.session(out, threads=threads))

    return make


def onnxruntime_dynamic(task: Task, folder: Path, threads: int) -> Call:
    from onnxruntime.quantization import quantize_dynamic

    out = folder / "dynamic.onnx"
    quantize_dynamic(task.model, out)
    return of_session(onnxopt.session(out, threads=threads, library=False))


SIDES: dict[str, Callable[[Task, Path, int], Call]] = {
    "float32": lambda task, _, threads: of_session(onnxopt.session(task.model, threads=threads, library=False)),
    "onnxopt": ours(),
    "onnxopt qdq": ours(format="qdq"),
    "onnxopt dynamic": ours(calibration=None),
    "onnxruntime static": lambda task, folder, threads: of_session(
        onnxruntime_quantized(task.model, task.calibration, folder, threads, static=True)
    ),
    "onnxruntime dynamic": onnxruntime_dynamic,
    "OpenVINO NNCF": lambda task, _, threads: nncf_quantized(task.model, task.calibration, threads),
}
"""What is measured: each makes a call that gives the first output of a sample."""


def measure(task: Task, names: list[str], threads: int) -> dict[str, dict[str, float]]:
    """Of every side: its quality, how often the largest output is the float model's, the mean cosine to it, and signal to noise in dB."""
    wanted: list[np.ndarray] = []
    measured: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(["float32", *names]):
        with tempfile.TemporaryDirectory() as folder:
            try:
                call = SIDES[name](task, Path(folder), threads)
                found = [np.asarray(call(sample)) for sample in task.test]
            except Exception as reason:
                if name.startswith(("float32", "onnxopt")):
                    raise
                print(f"{task.model.stem}: no {name} ({str(reason).splitlines()[0][:90]})")
                continue
        wanted = wanted or found
        measured[name] = {
            "quality": round(task.quality(found), 4),
            "agreement": round(agreement(wanted, found), 4),
            "cosine": round(cosine(wanted, found), 5),
            "signal_to_noise_db": round(signal_to_noise(_flat(wanted), _flat(found)), 1),
        }
    return measured


def cosine(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The mean over samples of the cosine between what is expected and what is found."""
    pairs = [(a.astype(np.float64).ravel(), b.astype(np.float64).ravel()) for a, b in zip(wanted, found, strict=True)]
    return float(np.mean([a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-30) for a, b in pairs]))


def agreement(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The part of the samples for which the largest of every row of outputs is the same one."""
    same = [np.array_equal(a.argmax(axis=-1), b.argmax(axis=-1)) for a, b in zip(wanted, found, strict=True)]
    return float(np.mean(same))


def _flat(results: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([one.ravel() for one in results])


def versions() -> dict[str, str]:
    known = {name: _version(name) for name in VERSIONS}
    return {name: version for name, version in known.items() if version}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return onnxopt.__version__ if name == "onnxopt" else None


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write(path: Path, name: str, found: dict[str, dict[str, float]], threads: int) -> None:
    """Put the results of a task into the file, beside those that it has."""
    held = json.loads(path.read_text()) if path.exists() else {"tasks": {}}
    sides = {side: {**one, "commit": commit()} for side, one in found.items()}
    tasks = {**held["tasks"], name: {**held["tasks"].get(name, {}), **sides}}
    order = [one for one in TASKS if one in tasks]
    whole = {**describe_machine(threads), "versions": versions(), "tasks": {one: tasks[one] for one in order}}
    path.write_text(json.dumps(whole, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []])
    parser.add_argument("--side", action="append", choices=list(SIDES), help="measure this one; may be repeated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for name in options.tasks or TASKS:
        found = measure(TASKS[name](options.folder), options.side or list(SIDES), options.threads)
        for side, one in found.items():
            print(
                f"{name:10s} {side:20s} quality {one['quality']:.4f}  agreement {one['agreement']:.4f}  "
                f"cosine {one['cosine']:.5f}  {one['signal_to_noise_db']:6.1f} dB",
                flush=True,
            )
        if options.json:
            write(options.json, name, found, options.threads)


if __name__ == "__main__":
    main()
