"""Every node test of the ONNX standard, and the models that ship with onnx: equal outputs after optimize, with the library and without."""

from __future__ import annotations

import collections
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.backend.test.case.node import collect_testcases

import onnxopt
from onnxopt import ir
from onnxopt.pipeline import PassManager

pytestmark = pytest.mark.slow

session = functools.partial(onnxopt.session, threads=1, optimize=False)

RANDOM = ("RandomNormal", "RandomUniform", "Bernoulli", "Multinomial")
MODELS = Path(onnx.__file__).parent / "backend" / "test" / "data"


def same(expected: Any, actual: Any) -> bool:
    if isinstance(expected, list):
        return len(expected) == len(actual) and all(same(a, b) for a, b in zip(expected, actual))
    if not isinstance(expected, np.ndarray):
        return expected == actual
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return False
    if expected.dtype.kind in "fc":
        loose = 5e-3 if expected.dtype.itemsize == 2 else 1e-4
        return np.allclose(expected, actual, rtol=loose, atol=loose * 0.1, equal_nan=True)
    return bool((expected == actual).all())


def outcome(model: onnx.ModelProto, feeds: dict[str, Any]) -> str:
    """One word: what happened to one model."""
    try:
        truth = session(model, library=False).run(None, feeds)
    except Exception:
        return "not runnable by onnxruntime"
    try:
        loaded = ir.load(model)
        PassManager("cpu", strict=True).run(loaded)
        optimized = ir.to_proto(loaded)
        results = [session(optimized, library=library).run(None, feeds) for library in (True, False)]
    except Exception as error:
        return f"fails after optimize: {type(error).__name__}: {str(error)[:200]}"
    return "equal" if all(same(list(truth), list(result)) for result in results) else "differs"


def feeds_of(model: onnx.ModelProto, arrays: list[Any]) -> dict[str, Any]:
    initializers = {one.name for one in model.graph.initializer}
    names = [one.name for one in model.graph.input if one.name not in initializers]
    return {name: plain(array) for name, array in zip(names, arrays)}


def plain(array: Any) -> Any:
    return array if isinstance(array, (np.ndarray, list)) or array is None else np.asarray(array)


def report(title: str, counts: collections.Counter[str], bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{title}: " + ", ".join(f"{number} {word}" for word, number in counts.most_common()))
    assert not bad, "\n".join(bad[:20])


def test_node_tests_of_the_standard_give_the_same_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    counts: collections.Counter[str] = collections.Counter()
    bad = []
    for case in collect_testcases(None):
        if case.model is None or any(node.op_type.startswith(RANDOM) for node in case.model.graph.node):
            counts["random or without a model"] += 1
            continue
        inputs, _ = case.data_sets[0]
        word = outcome(case.model, feeds_of(case.model, list(inputs)))
        counts[word.split(":")[0]] += 1
        if word not in ("equal", "not runnable by onnxruntime"):
            bad.append(f"{case.name}: {word}")
    report("node tests", counts, bad, capsys)
    assert counts["equal"] > 1200


def test_models_that_ship_with_onnx_give_the_same_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    counts: collections.Counter[str] = collections.Counter()
    bad = []
    for path in sorted(MODELS.rglob("*.onnx")):
        model = onnx.load(str(path))
        try:
            from onnxopt.runtime.verify import draw_inputs

            feeds = draw_inputs(ir.load(model), {}, np.random.default_rng(0), 3)
        except onnxopt.OnnxOptError:
            counts["inputs are no tensors"] += 1
            continue
        word = outcome(model, feeds)
        counts[word.split(":")[0]] += 1
        if word not in ("equal", "not runnable by onnxruntime"):
            bad.append(f"{os.path.relpath(path, MODELS)}: {word}")
    report("models of onnx", counts, bad, capsys)
