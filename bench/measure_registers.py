"""Records the registers of each CUDA kernel, and what it spills, as nvcc's assembler tells them: `python bench/measure_registers.py`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "registers.json"
ARCHITECTURES = ("sm_80", "sm_90")
FLAGS = ["-std=c++20", "-O3", "-fmad=false", f"-I{ROOT}", "-Xptxas", "-v", "-cubin", "-o", "/dev/null"]
ENTRY = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", re.S
)
SHORTER = (r"onnxopt::", r"elementwise::cuda::", r"\w+::cuda::", r"\(anonymous namespace\)::", r"^void ", r">\(.*$")


def name_of(symbol: str) -> str:
    """A kernel's name with its template arguments, without namespaces."""
    name = subprocess.run(["c++filt", symbol], check=True, capture_output=True, text=True).stdout.strip()
    for pattern in SHORTER:
        name = re.sub(pattern, ">" if pattern.startswith(">") else "", name)
    return name


def has_kernels(source: Path) -> bool:
    """Whether nvcc compiles kernels there; else they are those that NVRTC compiles."""
    text = source.read_text()
    return "__global__" in text or '.cuh"' in text


def measure(source: Path, architecture: str) -> dict[str, dict[str, int]]:
    command = ["nvcc", *FLAGS, f"-arch={architecture}", str(source)]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return {
        name_of(symbol): {"registers": int(registers), "spilled bytes": int(stores) + int(loads)}
        for symbol, stores, loads, registers in ENTRY.findall(told.stderr + told.stdout)
    }


def main() -> None:
    version = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release ([\d.]+)", version)
    record: dict[str, object] = {"nvcc": found.group(1) if found else "unknown"}
    sources = [one for one in sorted(ROOT.glob("kernels/cuda/*/*.cu")) if has_kernels(one)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = {source: {one: pool.submit(measure, source, one) for one in ARCHITECTURES} for source in sources}
        for source, by_architecture in compiled.items():
            record[str(source.relative_to(ROOT))] = {one: made.result() for one, made in by_architecture.items()}
            print(source.name, file=sys.stderr)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
