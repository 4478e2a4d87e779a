"""Records the order of onnxruntime's C ABI: `python tests/csrc/record_abi.py .../onnxruntime_c_api.h`.

The ABI is append-only, so a record of one version holds for all newer ones.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("onnxruntime_abi.json")
FUNCTION = re.compile(
    r"ORT_API2_STATUS\(\s*(\w+)|ORT_CLASS_RELEASE2?\((\w+)\)|\(\s*ORT_API_CALL\s*\*\s*(\w+)\s*\)|ORT_API_T\([^,]+,\s*(\w+)"
)
FIELD = re.compile(r"\*\s*(\w+)\s*\)\s*\(|OrtStatusPtr\(ORT_API_CALL\* (\w+)\)")
Order = dict[str, list[str]]


def body(text: str, struct: str) -> str:
    """The members of a struct, without comments."""
    start = text.index(f"struct {struct} {{")
    inside = text[start : text.index("\n};", start)]
    return re.sub(r"//.*", "", re.sub(r"/\*.*?\*/", "", inside, flags=re.DOTALL))


def declared() -> dict[str, int]:
    """The functions that we declare, and their places in the table; also those that only a newer onnxruntime has."""
    listed = re.findall(r"ONNXOPT_ORT_FUNCTION\((\w+), (\d+)", (ROOT / "csrc/ort/functions.inc").read_text())
    later = re.findall(r"Entry<(\d+), OrtStatus.*?>\s*(\w+)\{table\}", (ROOT / "csrc/ort/api.h").read_text(), re.DOTALL)
    return {name: int(place) for name, place in [*listed, *((name, place) for place, name in later)]}


def declared_fields() -> list[str]:
    """The functions of a custom op that we declare, in their order."""
    return re.findall(r"\(\*(\w+)\)\(", body((ROOT / "csrc/ort/api.h").read_text(), "CustomOp"))


def functions_of(header: str) -> list[str]:
    """The functions of onnxruntime's table in order."""
    return [m[1] or (m[2] and f"Release{m[2]}") or m[3] or m[4] for m in FUNCTION.finditer(body(header, "OrtApi"))]


def order_of(header: str) -> Order:
    """The members of onnxruntime's tables in order."""
    fields = [first or second for first, second in FIELD.findall(body(header, "OrtCustomOp"))]
    return {"OrtApi": functions_of(header), "OrtCustomOp": fields}


if __name__ == "__main__":
    RECORD.write_text(json.dumps(order_of(Path(sys.argv[1]).read_text()), indent=1) + "\n")
