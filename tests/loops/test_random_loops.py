"""Random programs with loops and branches: equal outputs after optimize. A failure prints its seed."""

from __future__ import annotations

import collections
import os
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxopt
from loops.generator import Generator
from onnxopt import ir
from onnxopt.pipeline import PassManager

PROGRAMS = 300
BATCHES = 10
BASE_SEED = int(os.environ.get("ONNXOPT_RANDOM_SEED", "20261124"))


def session(model: onnx.ModelProto, library: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        onnxopt.register(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def assert_equal(expected: Any, actual: Any) -> None:
    """Bits, or where a fusion or a batched product rounds elsewhere, a few units in the last place of the largest number."""
    if isinstance(expected, list):
        assert len(expected) == len(actual)
        for one, other in zip(expected, actual, strict=True):
            assert_equal(one, other)
        return
    assert (expected.shape, expected.dtype) == (actual.shape, actual.dtype)
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        return
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=1)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=4e-6 * largest)


def results(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], library: bool) -> list[list[Any] | None]:
    """The outputs for each of the inputs; None where the run fails."""
    running = session(model, library)
    outputs: list[list[Any] | None] = []
    for one in feeds:
        try:
            outputs.append(running.run(None, one))
        except Exception:
            outputs.append(None)
    return outputs


def check(seed: int, counts: collections.Counter[str], target: str = "cpu", **options: Any) -> None:
    generator = Generator(seed)
    model, feeds = generator.build(), generator.feeds()
    try:
        expected = results(model, feeds, library=False)
    except Exception as error:
        counts[f"onnxruntime does not load it: {str(error)[:300]}"] += 1
        return
    counts["ran"] += any(one is not None for one in expected)
    counts["runs"] += sum(one is not None for one in expected)
    loaded = ir.load(onnx.ModelProto.FromString(model.SerializeToString()))
    PassManager(target, strict=True, options=onnxopt.Options(**options)).run(loaded)
    optimized = ir.to_proto(loaded)
    for library in (True, False):
        for truth, actual in zip(expected, results(optimized, feeds, library), strict=True):
            if truth is not None:
                assert actual is not None, "the optimized program fails"
                assert_equal(truth, actual)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_programs_give_the_same_outputs(batch: int) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for index in range(batch, PROGRAMS, BATCHES):
        seed = BASE_SEED + index
        try:
            check(seed, counts)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert counts["ran"] >= 0.9 * PROGRAMS / BATCHES, counts


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_programs_give_the_same_outputs_when_every_loop_is_unrolled(batch: int) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for index in range(batch, PROGRAMS // 3, BATCHES):
        seed = BASE_SEED + PROGRAMS + index
        try:
            check(seed, counts, target="generic", unroll_nodes=5000)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
