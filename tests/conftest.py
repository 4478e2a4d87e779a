"""Lets every test import `helpers`, whatever folder it lies in and however pytest imports it; fixtures that files share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def fuse_small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are fused however little they compute."""
    from helpers import set_costs

    set_costs(monkeypatch, product_work=1)
