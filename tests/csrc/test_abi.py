"""The hand-declared part of onnxruntime's C ABI against the official order of its tables.

`onnxruntime_abi.json` is that order as the official header has it (`record_abi.py`). The record is compared with the header
where there is one: `ONNXRUNTIME_INCLUDE` names the folder of onnxruntime_c_api.h; Debian's libonnxruntime-dev installs it below /usr/include.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("record_abi", Path(__file__).with_name("record_abi.py"))
assert SPEC is not None and SPEC.loader is not None
abi = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(abi)

HEADER = "onnxruntime_c_api.h"
FOLDERS = (
    os.environ.get("ONNXRUNTIME_INCLUDE", ""),
    "/usr/include/onnxruntime",
    "/usr/include/onnxruntime/core/session",
)


RECORD: dict[str, list[str]] = json.loads(abi.RECORD.read_text())


def test_functions_have_their_places() -> None:
    ours = abi.declared()
    assert len(ours) > 30
    assert "GetTensorElementTypeAndShapeDataReference" in ours
    assert {name: RECORD["OrtApi"][place] for name, place in ours.items()} == {name: name for name in ours}


def test_fields_of_a_custom_op_are_in_order() -> None:
    assert len(RECORD["OrtCustomOp"]) > 20
    ours = abi.declared_fields()
    assert ours == RECORD["OrtCustomOp"][: len(ours)]


def test_record_is_what_the_header_says() -> None:
    found = next((path for folder in FOLDERS if folder and (path := Path(folder) / HEADER).exists()), None)
    if found is None:
        pytest.skip(f"no {HEADER} on this machine; ONNXRUNTIME_INCLUDE may name its folder")
    for struct, members in abi.order_of(found.read_text()).items():
        both = min(len(members), len(RECORD[struct]))  # the header may be older or newer
        assert both > 20
        assert members[:both] == RECORD[struct][:both]
