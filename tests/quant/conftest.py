"""Models of tests are small: their layers become bytes all the same."""

from __future__ import annotations

import pytest

from helpers import set_costs


@pytest.fixture(autouse=True)
def every_region_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making bytes of floats costs nothing."""
    set_costs(monkeypatch, rounding_work=0, rounding_element_work=0)
