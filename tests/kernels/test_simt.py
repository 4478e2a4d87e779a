"""The fibers on which kernels for CUDA devices run in tests: what a block's threads may do, and which mistakes they show."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["tests/kernels/simt_driver.cc", "kernels/cuda/simt/simt.cc"]
INDEX = list(range(96))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Runs a case of the driver and returns what it printed."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    program = tmp_path_factory.mktemp("simt") / "driver"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}"]
    subprocess.run([compiler, *flags, *(str(ROOT / source) for source in SOURCES), "-o", str(program)], check=True)
    return lambda case: subprocess.run([program, case], check=True, capture_output=True, text=True, timeout=20).stdout


SHUFFLED = [
    [sum(range(32)), 0, lane // 8 * 8 + 3, max(lane - 1, 0), lane + 2 if lane % 16 < 14 else lane, lane]
    for lane in range(32)
]
PER_WORD = {"uint8": 4, "int8": 4, "half": 2, "brain": 2, "tf32": 1}
"""Elements in four bytes; eight words of a row are multiplied at once."""


def product(depth: int) -> list[int]:
    """The product of the driver's matrices, row after row."""
    return [
        sum((row * 7 + k * 3) % 11 * ((k * 5 + column * 2) % 7 - 3) for k in range(depth))
        for row in range(16)
        for column in range(8)
    ]


def halves(transposed: bool) -> list[int]:
    """The halves that each lane gets of four matrices [8, 8], which hold the numbers from 0 on."""
    found = []
    for lane in range(32):
        for matrix in range(4):
            for i in range(2):
                row, column = (lane % 4 * 2 + i, lane // 4) if transposed else (lane // 4, lane % 4 * 2 + i)
                found.append(matrix * 64 + row * 8 + column)
    return found


RIGHT = {
    **{f"multiply_{name}": product(8 * count) for name, count in PER_WORD.items()},
    "extremes": [1, 128, 1],
    "matrices": halves(False),
    "matrices_transposed": halves(True),
    "copies": [1, 2, 3, 0, math.nan, 6],
    "copies_without_wait": [math.nan] * 5 + [6],
    "index_of_each": range(288),
    "reversed_through_static_memory": INDEX[::-1],
    "reversed": INDEX[::-1],
    "shuffles": [number for row in SHUFFLED for number in row],
    "votes": [0xAAAA + 1] * 32,
    "halves_of_a_warp": [8] * 16 + [2] * 16,
    "atomics": [192, 60],
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_threads_may_do(case: str, run: Callable[[str], str]) -> None:
    assert [float(word) for word in run(case).split()] == pytest.approx(list(RIGHT[case]), abs=0, nan_ok=True)


@pytest.mark.parametrize("case", ["reversed_without_barrier", "reversed_without_barrier_upwards"])
def test_a_missing_barrier_shows(case: str, run: Callable[[str], str]) -> None:
    assert any(math.isnan(float(word)) for word in run(case).split())


SENTENCES = {
    "half_of_the_block_waits": "Thread 0,0,0 waits at the barrier at simt_driver.cc:* for thread 40,0,0, which has returned.",
    "two_barriers": "Thread 0,0,0 waits at the barrier at simt_driver.cc:* for thread 40,0,0, which waits at simt_driver.cc:*.",
    "barrier_and_shuffle": "Thread 0,0,0 waits at the barrier at simt_driver.cc:* for thread 40,0,0, which waits at simt_driver.cc:*.",
    "lane_that_returned": "Thread 0,0,0 exchanges values at simt_driver.cc:* for thread 5,0,0, which has returned.",
    "lane_that_is_missing": "Thread 0,0,0 exchanges values at simt_driver.cc:* for thread of its warp that the block does not have.",
    "other_lanes": "Thread 0,0,0 exchanges values at simt_driver.cc:* for thread 16,0,0, which names other lanes.",
    "not_its_own": "Thread 16,0,0 names other lanes and not its own, at simt_driver.cc:*.",
    "lane_without_value": "Thread 15,0,0 reads the value of a lane that does not take part, at simt_driver.cc:*.",
    "row_between_lines": "Thread 0,0,0 gives a row of a matrix that is not aligned to 16 bytes, at simt_driver.cc:*.",
    "copy_between_words": "Thread 0,0,0 copies from or to a place that is not aligned, at simt_driver.cc:*.",
    "behind_shared_memory": "A thread wrote behind the shared memory.",
}


@pytest.mark.parametrize("case", SENTENCES)
def test_mistakes_become_sentences(case: str, run: Callable[[str], str]) -> None:
    assert re.sub(r":[0-9]+", ":*", run(case)) == f"Block 0,0,0: {SENTENCES[case]}"


def test_refuses_a_block_that_no_device_has(run: Callable[[str], str]) -> None:
    assert run("too_many_threads") == "A block has between 1 and 1024 threads, not 1025."
