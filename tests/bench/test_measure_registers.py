"""The committed record of what CUDA kernels need. A build with -DONNXOPT_CUDA=on fails where a kernel spills."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "bench" / "results" / "registers.json").read_text())
SPEC = importlib.util.spec_from_file_location("measure_registers", ROOT / "bench" / "measure_registers.py")
assert SPEC is not None and SPEC.loader is not None
MEASURE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MEASURE)
MOST = {"attend_halves<128": 168}
"""Registers of blocks of 128 threads of which three fit on a multiprocessor; of others, two of 256 threads or four of 128 do."""
KERNELS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("kernels/cuda/*/*.cu") if MEASURE.has_kernels(path))


def test_every_kernel_is_recorded_and_none_spills() -> None:
    assert sorted(RECORD)[: len(KERNELS)] == KERNELS
    for source in KERNELS:
        assert set(RECORD[source]) == {"sm_80", "sm_90"}
        for kernels in RECORD[source].values():
            assert kernels
            assert {one["spilled bytes"] for one in kernels.values()} == {0}
            for name, one in kernels.items():
                most = next((most for prefix, most in MOST.items() if name.startswith(prefix)), 128)
                assert one["registers"] <= most, name
