"""Calibration goes on where it was stopped, and is not repeated for the same model and samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers import model
from onnxopt.quant import checkpoint, observe, quantize
from onnxopt.quant.checkpoint import Checkpoint, digest_of
from onnxopt.quant.histogram import Histogram

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Sample = dict[str, np.ndarray]
RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((16, 8, 3, 3)).astype(np.float32)
NETWORK = (
    """g (float[1,8,9,9] x) => (float[1,16,9,9] y) { a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) y = Conv(r, v) }"""
)
LAST = RNG.standard_normal((16, 16, 1, 1)).astype(np.float32)
SAMPLES: list[Sample] = [{"x": RNG.standard_normal((1, 8, 9, 9)).astype(np.float32)} for _ in range(24)]


@pytest.fixture(autouse=True)
def write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each calibration has run."""
    counts: list[int] = []
    make = observe._session

    class Counting:
        def __init__(self, *arguments: object) -> None:
            self.session = make(*arguments)  # type: ignore[arg-type]
            counts.append(0)

        def run(self, *arguments: object) -> object:
            counts[-1] += 1
            return self.session.run(*arguments)

    monkeypatch.setattr(observe, "_session", Counting)
    return counts


def quantized(output: Path, samples: object = SAMPLES, weights: np.ndarray = WEIGHTS) -> bytes:
    quantize(model(NETWORK, w=weights, v=LAST), output, calibration=samples, format="qdq", smooth=False)  # type: ignore[arg-type]
    return output.read_bytes()


def test_a_calibration_that_was_stopped_goes_on(tmp_path: Path, runs: list[int]) -> None:
    whole = quantized(tmp_path / "whole.onnx")

    class Killed(BaseException):
        pass

    def until_killed() -> Iterator[Sample]:
        yield from SAMPLES[:20]
        raise Killed

    output = tmp_path / "out.onnx"
    with pytest.raises(Killed):
        quantized(output, until_killed)
    assert not output.exists()
    assert quantized(output) == whole
    assert runs == [24, 20, 4]


def test_the_same_samples_are_not_run_again(tmp_path: Path, runs: list[int]) -> None:
    first = quantized(tmp_path / "out.onnx")
    assert quantized(tmp_path / "out.onnx") == first
    assert runs == [24]


def test_more_samples_are_added(tmp_path: Path, runs: list[int]) -> None:
    quantized(tmp_path / "out.onnx", SAMPLES[:20])
    quantized(tmp_path / "out.onnx")
    assert runs == [20, 4]


@pytest.mark.parametrize("change", ["sample", "fewer", "weights", "damage"])
def test_what_is_of_something_else_is_begun_anew(change: str, tmp_path: Path, runs: list[int]) -> None:
    output = tmp_path / "out.onnx"
    quantized(output)
    other = [*SAMPLES[:5], {"x": SAMPLES[5]["x"] * 2}, *SAMPLES[6:]] if change == "sample" else SAMPLES
    if change == "damage":
        file = tmp_path / "out.onnx.calibration"
        file.write_bytes(file.read_bytes()[:200])
    quantized(output, SAMPLES[:20] if change == "fewer" else other, WEIGHTS * (2 if change == "weights" else 1))
    assert runs == [24, 20 if change == "fewer" else 24]


def test_an_iterator_is_read_once(tmp_path: Path, runs: list[int]) -> None:
    for _ in range(2):
        quantized(tmp_path / "out.onnx", iter(SAMPLES))
    assert runs == [24, 24]
    assert not (tmp_path / "out.onnx.calibration").exists()


def test_a_short_calibration_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 60.0)
    quantized(tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_histograms_come_back_as_they_were(tmp_path: Path) -> None:
    one = Checkpoint(tmp_path / "file", "key", histograms={"a": Histogram(), "b": Histogram()})
    one.histograms["a"].add(RNG.standard_normal(1000).astype(np.float32))
    one.note(SAMPLES[0])
    again = Checkpoint.open(tmp_path / "file", "key", SAMPLES)
    assert again.seen == [digest_of(SAMPLES[0])]
    for name, histogram in one.histograms.items():
        found = again.histograms[name]
        assert (found.low, found.high, found.least, found.largest) == (
            histogram.low,
            histogram.high,
            histogram.least,
            histogram.largest,
        )
        np.testing.assert_array_equal(found.counts, histogram.counts)
    assert Checkpoint.open(tmp_path / "file", "another", SAMPLES).seen == []


def test_digests_tell_names_types_and_shapes_apart() -> None:
    zeros = np.zeros(4, np.float32)
    others = [{"a": zeros}, {"b": zeros}, {"a": zeros.astype(np.float64)}, {"a": zeros.reshape(2, 2)}, {"a": zeros + 1}]
    assert len({digest_of(one) for one in others}) == len(others)
