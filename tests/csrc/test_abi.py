"""The hand-declared part of onnxruntime's C ABI against the official header, where there is one.

`ONNXRUNTIME_INCLUDE` names the folder of onnxruntime_c_api.h; Debian's libonnxruntime-dev installs it below /usr/include.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = "onnxruntime_c_api.h"
FOLDERS = (
    os.environ.get("ONNXRUNTIME_INCLUDE", ""),
    "/usr/include/onnxruntime",
    "/usr/include/onnxruntime/core/session",
)


@pytest.fixture(scope="module")
def header() -> str:
    found = next((path for folder in FOLDERS if folder and (path := Path(folder) / HEADER).exists()), None)
    if found is None:
        pytest.skip(f"no {HEADER} on this machine; ONNXRUNTIME_INCLUDE may name its folder")
    return found.read_text()


def body(text: str, struct: str) -> str:
    """The members of a struct, without comments."""
    start = text.index(f"struct {struct} {{")
    inside = text[start : text.index("\n};", start)]
    return re.sub(r"//.*", "", re.sub(r"/\*.*?\*/", "", inside, flags=re.DOTALL))


def test_functions_have_their_places(header: str) -> None:
    members = re.finditer(
        r"ORT_API2_STATUS\(\s*(\w+)|ORT_CLASS_RELEASE2?\((\w+)\)|\(\s*ORT_API_CALL\s*\*\s*(\w+)\s*\)",
        body(header, "OrtApi"),
    )
    official = [m[1] or (m[2] and f"Release{m[2]}") or m[3] for m in members]
    ours = re.findall(r"ONNXOPT_ORT_FUNCTION\((\w+), (\d+)", (ROOT / "csrc/ort/functions.inc").read_text())
    assert len(ours) > 30
    assert {name: official[int(place)] for name, place in ours} == {name: name for name, _ in ours}


def test_fields_of_a_custom_op_are_in_order(header: str) -> None:
    official = re.findall(
        r"\bversion\b|\*\s*(\w+)\s*\)\s*\(|OrtStatusPtr\(ORT_API_CALL\* (\w+)\)", body(header, "OrtCustomOp")
    )
    declared = body((ROOT / "csrc/ort/api.h").read_text(), "CustomOp")
    ours = re.findall(r"\(\*(\w+)\)\(", declared)
    names = [first or second for first, second in official if first or second]
    assert len(ours) > 20
    assert names[: len(ours)] == ours
