"""What the library says of this processor, against what the operating system says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

FILE = Path("/proc/cpuinfo")
AVX2 = {"avx2", "fma", "f16c"}
AVX512 = AVX2 | {"avx512f", "avx512dq", "avx512bw", "avx512vl"}
NEEDED = {"avx512vnni": AVX512 | {"avx512_vnni"}, "avx512": AVX512, "avx2": AVX2, "scalar": set()}


def flags() -> set[str]:
    """Of the processor; none where it is no x86."""
    found = re.search(r"^flags\s*:(.*)$", FILE.read_text(), re.MULTILINE)
    return set(found[1].split()) if found else set()


@pytest.mark.skipif(not FILE.exists(), reason="the system does not list the processor's features")
def test_instruction_sets_are_those_of_the_processor() -> None:
    assert native.cpu_features() == [isa for isa, needed in NEEDED.items() if needed <= flags()]
