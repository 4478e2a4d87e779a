"""Optimizers side by side on the same files: nodes after, seconds, peak memory. Each run is a process of its own.

    python bench/bench_passes.py MODEL.onnx ... [--json out.json]

Peers that are not installed are left out and named. They run as their documentation says: onnxsim, onnxslim and onnxscript with their
defaults, onnxruntime offline at its extended level.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx

# Each snippet finds `source` and `target`; imports are not timed, for nobody.
TOOLS = {
    "onnxopt": (
        "onnxopt",
        "import onnxopt._native, onnxopt.pipeline, onnxopt.runtime.evaluate, onnxruntime; onnxopt.pipeline.describe_passes()",
        "onnxopt.optimize(source, target)",
    ),
    "onnxruntime": (
        "onnxruntime",
        "import onnxruntime as ort",
        "o=ort.SessionOptions(); o.graph_optimization_level=ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED; "
        "o.optimized_model_filepath=target; o.log_severity_level=4; ort.InferenceSession(source, o, providers=['CPUExecutionProvider'])",
    ),
    "onnxslim": ("onnxslim", "import onnxslim", "onnxslim.slim(source, target)"),
    "onnxsim": ("onnxsim", "import onnx, onnxsim", "onnx.save(onnxsim.simplify(source)[0], target)"),
    "onnxscript": (
        "onnxscript",
        "import onnx_ir, onnxscript.optimizer",
        "m=onnx_ir.load(source); onnxscript.optimizer.optimize(m); onnx_ir.save(m, target)",
    ),
}
PROGRAM = """
import sys, time
source, target = sys.argv[1:3]
{imports}
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # of this program alone, unlike getrusage
print(seconds, int(peak.split()[1]) // 1024)
"""


def count(graph: onnx.GraphProto) -> int:
    return sum(1 + sum(count(a.g) for a in n.attribute if a.type == onnx.AttributeProto.GRAPH) for n in graph.node)


def run(tool: str, source: Path, repeats: int) -> dict[str, object]:
    _, imports, work = TOOLS[tool]
    best: dict[str, object] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as temporary:
            target = Path(temporary) / "out.onnx"
            program = PROGRAM.format(imports=imports, work=work)
            command = [sys.executable, "-c", program, str(source), str(target)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if done.returncode or not target.exists():
                lines = done.stderr.strip().splitlines() or ["no output"]
                return {"failed": lines[-1][:120]}
            seconds, peak = done.stdout.split()[-2:]
            nodes = count(onnx.load(str(target), load_external_data=False).graph)
            if not best or float(seconds) < float(str(best["seconds"])):
                best = {"nodes": nodes, "seconds": round(float(seconds), 3), "peak_mib": int(peak)}
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tools = [tool for tool, (module, *_) in TOOLS.items() if importlib.util.find_spec(module)]
    missing = [tool for tool in TOOLS if tool not in tools]
    if missing:
        print(f"not installed: {', '.join(missing)}")
    results: dict[str, dict[str, object]] = {}
    for model in options.models:
        results[model.stem] = {tool: run(tool, model, options.repeats) for tool in tools}
        for tool, found in results[model.stem].items():
            print(f"{model.stem:12s} {tool:12s} {found}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
