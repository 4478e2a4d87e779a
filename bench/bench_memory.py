"""Peak memory of inference: onnxruntime at ORT_ENABLE_ALL and onnxopt, each in a process of its own, two threads.

    python bench/bench_memory.py MODEL.onnx ... [--threads 2] [--json out.json]

MiB above what the process holds before it loads the model: the peak while the session is made, and the peak while it runs, which
counts the weights. Sizes of dynamic dims are the last case of the model in cases.toml, its largest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench_models import CASES, make_inputs

import onnxopt

RUNS = 3
TOOLS = {"onnxopt": True, "onnxruntime": False}
"""Whether the library is registered."""

PROGRAM = """
import sys
import numpy as np
import onnxopt

def resident(line):
    return next(int(one.split()[1]) for one in open("/proc/self/status") if one.startswith(line)) // 1024

def reset_peak():
    open("/proc/self/clear_refs", "w").write("5")

model, feeds, library, threads, runs = sys.argv[1:]
inputs = dict(np.load(feeds))
import onnxruntime
reset_peak()
before = resident("VmRSS")
session = onnxopt.session(model, library=library == "True", threads=int(threads))
made = resident("VmHWM") - before
reset_peak()
for _ in range(int(runs)):
    session.run(None, inputs)
print(made, resident("VmHWM") - before)
"""


def measure(model: Path, feeds: Path, library: bool, threads: int) -> dict[str, int]:
    arguments = [str(model), str(feeds), str(library), str(threads), str(RUNS)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    made, peak = map(int, done.stdout.split())
    return {"making": made, "running": peak}


def run(model: Path, threads: int) -> dict[str, dict[str, int]]:
    """MiB of each tool."""
    with tempfile.TemporaryDirectory() as folder:
        optimized, feeds = Path(folder) / "optimized.onnx", Path(folder) / "feeds.npz"
        onnxopt.optimize(model, optimized)
        case = list(CASES.get(model.stem, {"": {}}).values())[-1]
        np.savez(feeds, **make_inputs(model, case))
        return {
            tool: measure(optimized if library else model, feeds, library, threads) for tool, library in TOOLS.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(
        f"{'MiB':16s} {'making':>22s} {'running':>22s}\n{'':16s} {'onnxopt  onnxruntime':>22s} {'onnxopt  onnxruntime':>22s}"
    )
    results = {}
    for model in options.models:
        results[model.stem] = found = run(model, options.threads)
        columns = [f"{found['onnxopt'][what]:9d} {found['onnxruntime'][what]:12d}" for what in ("making", "running")]
        print(f"{model.stem:16s} {columns[0]} {columns[1]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
