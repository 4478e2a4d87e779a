"""Comparing latencies: who runs when, what the figures are made of, what is refused. No test depends on how long anything takes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import helpers
from onnxopt.errors import ModelError
from onnxopt.runtime import bench
from onnxopt.runtime.bench import Latency, compare, compare_models


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(bench, "BURST_SECONDS", 0.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Seconds that the bursts of every call take, in order; calls are their own names."""
    seconds: dict[str, list[float]] = {}
    monkeypatch.setattr(bench, "burst", lambda call, length=1.0: seconds[call()].pop(0) if length else 0.0)
    return seconds


def call_of(name: str) -> bench.Call:
    return lambda: name


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    compare([("a", lambda: calls.append("a")), ("b", lambda: calls.append("b"))], rounds=3)
    turns = [name for index, name in enumerate(calls) if index == 0 or name != calls[index - 1]]
    warm_up, rounds = 1, 3
    assert turns == ["a", "b"] * (warm_up + rounds)


def test_every_burst_warms_up_and_measures_thrice_at_least() -> None:
    calls: list[int] = []
    assert bench.burst(lambda: calls.append(1), 0.0) >= 0
    assert len(calls) == 2 + 3


def test_every_burst_ticks() -> None:
    ticks: list[int] = []
    compare([("a", call_of("a")), ("b", call_of("b"))], rounds=4, tick=lambda: ticks.append(1))
    assert len(ticks) == 2 * 4


def test_figures_are_medians_in_milliseconds(measured: dict[str, list[float]]) -> None:
    measured |= {"a": [0.004, 0.002, 0.003]}
    assert compare([("a", call_of("a"))], rounds=3) == [Latency("a", 3.0, 2.0, 4.0, 1.0)]


def test_speed_up_is_the_median_of_the_ratios_of_each_round(measured: dict[str, list[float]]) -> None:
    # The machine is slow in the second round: ratios within rounds do not see it, a ratio of medians would.
    measured |= {"a": [0.002, 0.020, 0.002], "b": [0.001, 0.010, 0.001]}
    reference, other = compare([("a", call_of("a")), ("b", call_of("b"))], rounds=3)
    assert (reference.speedup, other.speedup) == (1.0, 2.0)


def test_contenders_of_equal_names_stay_apart(measured: dict[str, list[float]]) -> None:
    measured |= {"a": [0.002], "b": [0.001]}
    found = compare([("same", call_of("a")), ("same", call_of("b"))], rounds=1)
    assert [(one.name, one.median_ms, one.speedup) for one in found] == [("same", 2.0, 1.0), ("same", 1.0, 2.0)]


# --- models ---
def save(
    folder: Path, name: str = "model.onnx", graph: str = "(float[N, 3] x) => (float[N, 3] y) { y = Abs (x) }"
) -> Path:
    folder.mkdir(exist_ok=True)
    onnx.save(helpers.model(f"g {graph}"), folder / name)
    return folder / name


def test_models_are_called_by_their_file_names(tmp_path: Path) -> None:
    first, second = save(tmp_path, "a.onnx"), save(tmp_path, "b.onnx")
    assert [one.name for one in compare_models([first, second], threads=1, rounds=1)] == ["a.onnx", "b.onnx"]


def test_models_of_equal_file_names_are_called_by_their_paths(tmp_path: Path) -> None:
    paths = [save(tmp_path / "old"), save(tmp_path / "new")]
    found = compare_models(paths, threads=1, rounds=1)
    assert [one.name for one in found] == [str(path) for path in paths]


def test_stated_dims_are_used(tmp_path: Path) -> None:
    only_seven = "(float[N, 3] x) => (float[M, 3] y) { s = Constant <value = int64[2] {7, 3}> () y = Reshape (x, s) }"
    path = save(tmp_path, graph=only_seven)
    assert compare_models([path], threads=1, rounds=1, dims={"N": 7})
    with pytest.raises(ModelError, match=r"state them with --dim \(N\)"):
        compare_models([path], threads=1, rounds=1, dims={"N": 6})


def test_models_with_other_inputs_are_refused(tmp_path: Path) -> None:
    first, second = (
        save(tmp_path, "a.onnx"),
        save(tmp_path, "b.onnx", "(float[N, 3] q) => (float[N, 3] y) { y = Abs (q) }"),
    )
    with pytest.raises(ModelError, match=r"b.onnx' does not run on the inputs of .*a.onnx': .*'q'"):
        compare_models([first, second], threads=1, rounds=1)


def test_inputs_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, graph="(seq(float[N]) x) => (float[M] y) { y = ConcatFromSequence <axis = 0> (x) }")
    with pytest.raises(ModelError, match="The input 'x' is no tensor of known rank"):
        compare_models([path], threads=1, rounds=1)


@pytest.mark.parametrize("content", [None, b"not a model"])
def test_files_that_are_no_models_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        compare_models([path], threads=1, rounds=1)
