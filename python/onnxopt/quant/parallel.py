"""Several sessions at a time: what is measured layer by layer is independent, and a session of one thread gives the same numbers beside others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

MOST_BYTES = 1 << 30
"""Of weights, in all sessions that are alive at a time."""


def workers(weight_bytes: int) -> int:
    """How many sessions of a model with so many bytes of weights run at a time: one for each processor, as far as memory goes."""
    return max(1, min(len(os.sched_getaffinity(0)), MOST_BYTES // max(weight_bytes, 1)))


def in_parallel(measure: Callable[[str], float], names: Sequence[str], workers: int) -> Iterator[tuple[str, float]]:
    """Each name with its number, in order. With the first that fails, or where nobody asks for more, none is begun any more."""
    with ThreadPoolExecutor(workers) as pool:
        running = [(name, pool.submit(measure, name)) for name in names]
        try:
            for name, future in running:
                yield name, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
