"""CUDA's command-line tools, where they are."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest


def find_tool(name: str) -> str:
    """The path of a tool: that of PATH, or of one of NVIDIA's packages for Python. A test that needs one which is nowhere is skipped."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    packaged = (str(path) for place in places for path in place.glob(f"*/bin/{name}"))
    found = shutil.which(name) or next(packaged, None)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found
