"""Products of CUDA kernels are computed by tensor cores: what nvcc makes of the kernels has the instructions."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cuda_tools import find_tool

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-arch=sm_80", f"-I{ROOT}"]
BYTES = ["m16n8k32.row.col.s32.u8.s8.s32", "m16n8k32.row.col.s32.s8.s8.s32"]
HALF, BRAIN = "m16n8k16.row.col.f32.f16.f16.f32", "m16n8k16.row.col.f32.bf16.bf16.f32"
TF32 = "m16n8k8.row.col.f32.tf32.tf32.f32"
PTX: dict[str, list[str]] = {
    "multiply_bytes": BYTES,
    "multiply_tensorsILi2": [HALF, BRAIN],
    "multiply_tensorsILi4": [TF32],
    "attend_halvesILi64E.*ElementE2E": [HALF],
    "attend_halvesILi64E.*ElementE3E": [BRAIN],
}
"""Instructions of each kernel, by what its mangled name has."""
SASS = {"multiply_bytes": "IMMA.16832", "multiply_tensors": "HMMA.1", "attend_halves": "HMMA.16816"}


def compile_kernels(kind: str, target: Path) -> Path:
    subprocess.run(
        [find_tool("nvcc"), *FLAGS, f"-{kind}", "-o", target, ROOT / "tests/kernels/tensor_cores.cu"], check=True
    )
    return target


@pytest.mark.slow
def test_ptx_has_matrix_instructions(tmp_path: Path) -> None:
    text = compile_kernels("ptx", tmp_path / "kernels.ptx").read_text()
    bodies = {re.search(r"\w+", part).group(): part for part in text.split(".entry ")[1:]}  # type: ignore[union-attr]
    for pattern, instructions in PTX.items():
        (body,) = [body for name, body in bodies.items() if re.search(pattern, name)]
        assert sorted(set(re.findall(r"mma\.sync\.aligned\.([\w.]+)", body))) == sorted(instructions)
        assert "ldmatrix.sync" in body
        assert "cp.async.cg.shared.global" in body


@pytest.mark.slow
def test_machine_code_has_matrix_instructions(tmp_path: Path) -> None:
    tool = find_tool("cuobjdump")
    cubin = compile_kernels("cubin", tmp_path / "kernels.cubin")
    text = subprocess.run([tool, "--dump-sass", cubin], check=True, capture_output=True, text=True).stdout
    bodies = text.split("Function : ")[1:]
    for name, instruction in SASS.items():
        found = [body for body in bodies if name in body.splitlines()[0]]
        assert found
        for body in found:
            assert instruction in body
            assert "LDSM.16" in body  # ldmatrix
            assert "LDGSTS" in body  # copies that do not pass through registers
