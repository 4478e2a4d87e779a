"""What exporters write stays what it computes, and becomes the ops that it should: every file of the corpus, one test each."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest

import corpus
import onnxopt

pytest.importorskip("onnxopt._native", reason="the native library is not built")


FAST_LINES = 60
"""Longer files, mostly whole layers with the shape arithmetic of an exporter, are for the slow tests."""

session = functools.partial(onnxopt.session, threads=1, optimize=False)

STEMS = [
    pytest.param(stem, marks=[pytest.mark.slow] if corpus.lines(stem) > FAST_LINES else []) for stem in corpus.stems()
]


def assert_same(expected: list[corpus.Array], actual: list[corpus.Array], loose: float) -> None:
    for wanted, found in zip(expected, actual, strict=True):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        if wanted.dtype.kind != "f":
            np.testing.assert_array_equal(found, wanted)
            continue
        scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-6).astype(np.float64)
        np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), rtol=loose, atol=loose * scale)


@functools.cache
def optimized_for_cpu(stem: str) -> onnx.ModelProto:
    return onnxopt.optimize(corpus.load(stem), strict=True)


@pytest.mark.parametrize("stem", STEMS)
def test_states_its_origin(stem: str) -> None:
    model = corpus.load(stem)
    origin = corpus.origin(model)
    assert origin.get("exporter") and origin.get("module")
    dynamic = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim} - {""}
    assert all(set(some) == dynamic for some in corpus.sizes(model))
    assert len(corpus.sizes(model)) == 1 or dynamic


@pytest.mark.parametrize("stem", STEMS)
def test_gives_the_same_outputs(stem: str) -> None:
    """For target cpu with the library and by the bodies alone, and for target generic."""
    before = corpus.load(stem)
    for_cpu, generic = optimized_for_cpu(stem), onnxopt.optimize(before, target="generic", strict=True)
    original = session(before, library=False)
    optimized = [session(for_cpu, library=True), session(for_cpu, library=False), session(generic, library=False)]
    for feeds in corpus.draw_inputs(before):
        wanted = original.run(None, feeds)
        for one in optimized:
            assert_same(wanted, one.run(None, feeds), corpus.tolerance(before))


@pytest.mark.parametrize("stem", STEMS)
def test_becomes_the_expected_ops(stem: str) -> None:
    before = corpus.load(stem)
    found = corpus.tracked_ops(before, optimized_for_cpu(stem))
    wanted = corpus.expected()[stem]
    assert {name: found.get(name, 0) for name in wanted if found.get(name, 0) < wanted[name]} == {}


def test_table_names_no_other_files() -> None:
    assert set(corpus.expected()) == set(corpus.stems())
