"""Code compiled for an instruction set stays in its own file.

The linker keeps one of several equal inline functions, whichever comes first: one compiled with AVX-512 flags would then run everywhere. Such
functions are the weak symbols of an object file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = "CMakeFiles/onnxopt_kernels.dir/kernels/cpu"


def objects() -> list[Path]:
    """Those of the newest build: of ONNXOPT_BUILD, or below the folder `build`."""
    named = os.environ.get("ONNXOPT_BUILD")
    folders = [Path(named)] if named else sorted((ROOT / "build").glob("*"), key=lambda one: one.stat().st_mtime)
    found = [sorted((folder / OBJECTS).glob("*/avx*.o")) for folder in folders]
    return next((files for files in reversed(found) if files), [])


FILES = objects()


@pytest.mark.skipif(not FILES, reason="no build for x86-64 below 'build'; ONNXOPT_BUILD may name its folder")
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm on this machine")
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_no_function_is_shared_with_other_files(file: Path) -> None:
    listed = subprocess.run(["nm", "-C", file], capture_output=True, text=True, check=True).stdout.splitlines()
    defined = [line.split(maxsplit=2) for line in listed if not line.startswith(" ")]
    assert any(kind == "T" for _, kind, *_ in defined)
    assert [" ".join(name) for _, kind, *name in defined if kind in "VWu"] == []
