"""Models of tests are small: their layers become bytes all the same."""

from __future__ import annotations

import pytest

from onnxopt.quant import regions


@pytest.fixture(autouse=True)
def every_region_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making bytes of floats costs nothing."""
    monkeypatch.setattr(regions, "ROUNDING_WORK", 0)
    monkeypatch.setattr(regions, "ROUNDING_ELEMENT", 0)
