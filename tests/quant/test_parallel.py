"""Several sessions at a time: all numbers arrive, a failure ends it."""

from __future__ import annotations

import threading
import time

import pytest

from onnxopt.quant import parallel
from onnxopt.quant.parallel import MOST_BYTES, in_parallel, workers


@pytest.mark.parametrize("count", [1, 3])
def test_every_name_has_its_number_in_order(count: int) -> None:
    names = [f"layer{index}" for index in range(20)]
    assert list(in_parallel(lambda name: float(name[5:]), names, count)) == [
        (name, float(index)) for index, name in enumerate(names)
    ]


def test_no_names() -> None:
    assert list(in_parallel(lambda _: 0.0, [], 2)) == []


def test_as_many_run_at_a_time() -> None:
    together = threading.Barrier(3, timeout=10)

    def measure(_: str) -> float:
        return float(together.wait() >= 0)

    assert len(list(in_parallel(measure, ["a", "b", "c"], 3))) == 3


def test_a_failure_begins_no_further_measurement() -> None:
    begun: list[str] = []

    def measure(name: str) -> float:
        begun.append(name)
        if name == "a":
            raise RuntimeError(name)
        time.sleep(0.05)
        return 0.0

    with pytest.raises(RuntimeError, match="a"):
        list(in_parallel(measure, ["a", *"bcdefgh"], 1))
    assert len(begun) < 8


def test_memory_limits_the_number_of_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: set(range(16)))
    assert [workers(size) for size in (0, 1, MOST_BYTES // 4, MOST_BYTES // 2 + 1, 2 * MOST_BYTES)] == [16, 16, 4, 1, 1]
