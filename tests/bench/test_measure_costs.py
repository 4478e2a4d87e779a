"""Measuring costs: which probe measures what, and what is made of speeds. Nothing is timed."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from onnxopt.runtime import bench
from onnxopt.runtime.costs import FOLDER, describe

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "measure_costs.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_costs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module
    spec.loader.exec_module(module)
    return module


costs = load()


def test_every_cost_is_measured() -> None:
    assert list(costs.PROBES) == list(describe("cpu"))


@pytest.mark.parametrize("name", costs.PROBES)
def test_probes_tell_fusion_from_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ratios", lambda *_: iter([2.0]))
    probe = costs.PROBES[name]
    speeds = [costs.speed_of_fusion(probe.make(size), probe, 1, 1) for size in (probe.sizes[0], probe.sizes[-1])]
    assert speeds == [2.0, 2.0]


@pytest.mark.parametrize(
    ("wins", "index"),
    [([0, 0, 1, 1], 2), ([0, 1], 1), ([0, 0], None), ([1, 1], None), ([0, 1, 0, 1], None), ([1, 0], None), ([], None)],
)
def test_the_turn_is_where_losses_end(wins: list[int], index: int | None) -> None:
    assert costs.turn([bool(one) for one in wins]) == index


@pytest.mark.parametrize(
    ("name", "speeds", "value"),
    [
        ("norm_elements", [(512, 0.9), (1024, 1.1)], 1024),
        ("small_region_elements", [(512, 0.9), (1024, 1.1)], 512),
        ("product_work", [(16, 0.9), (32, 1.1)], 32 * 32 * 32),
        ("border_cost", [(2, 0.9), (3, 1.1)], 1.0),
        ("planar_channels", [(7, 1.1), (8, 0.9)], 7),
        ("norm_elements", [(512, 1.1), (1024, 1.2)], None),
        ("norm_elements", [], None),
    ],
)
def test_costs_by_speeds(name: str, speeds: list[tuple[int, float]], value: float | None) -> None:
    assert costs.measured(costs.PROBES[name], speeds) == value


def test_only_a_value_is_replaced() -> None:
    text = (FOLDER / "cpu.toml").read_text(encoding="utf-8")
    after = costs.replaced(text, "border_cost", 2.5)
    expected = describe("cpu")
    expected["border_cost"]["value"] = 2.5
    assert tomllib.loads(after) == expected
    assert costs.replaced(text, "product_work", describe("cpu")["product_work"]["value"]) == text
