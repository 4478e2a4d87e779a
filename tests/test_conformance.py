"""All node tests and models that come with onnx: optimized, they give what they gave, with the library and without it."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from onnxopt import ir
from onnxopt.pipeline import PassManager
from onnxopt.runtime.library import library_path

pytest.importorskip("onnxopt._native", reason="the native library is not built")

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
RTOL = {np.dtype(np.float16): 2e-3, np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-5}
ATOL = 1e-5
"""In units of the largest finite number of an output."""

LEAST_NODE_TESTS = 1300
"""How many node tests onnxruntime runs at least; fewer means that this test lost its subject."""
LEAST_MODELS = 95
"""The same for the models."""


def session(proto: onnx.ModelProto, *, library: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(library_path()))
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def optimized(proto: onnx.ModelProto) -> onnx.ModelProto:
    loaded = ir.load(onnx.ModelProto.FromString(proto.SerializeToString()))
    PassManager("cpu", strict=True).run(loaded)
    return ir.to_proto(loaded)


def leaves(value: Any) -> Iterator[Any]:
    """The tensors of sequences and maps."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from leaves(one)
    else:
        yield value


def differs(actual: list[Any], expected: list[Any]) -> str | None:
    """What is different, or None."""
    for got, wanted in zip(leaves(actual), leaves(expected), strict=True):
        if wanted is None or got is None:
            if wanted is not got:
                return "an absent optional"
            continue
        a, b = np.asarray(got), np.asarray(wanted)
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return f"{a.dtype}{a.shape} instead of {b.dtype}{b.shape}"
        if b.dtype.kind != "f":
            if not np.array_equal(a, b):
                return "other integers"
            continue
        largest = np.abs(b[np.isfinite(b)].astype(np.float64)).max(initial=1e-30)
        if not np.allclose(a, b, rtol=RTOL.get(b.dtype, 1e-4), atol=ATOL * largest, equal_nan=True):
            return "other numbers"
    return None


def verdict(proto: onnx.ModelProto, inputs: list[Any]) -> str:
    """One of "not runnable", "random", "equal", or what is wrong."""
    try:
        reference = session(proto, library=False)
        feeds = dict(zip((one.name for one in reference.get_inputs()), inputs, strict=False))
        expected = reference.run(None, feeds)
        again = reference.run(None, feeds)
    except Exception:
        optimized(proto)
        return "not runnable by onnxruntime"
    after = optimized(proto)
    if differs(again, expected):
        return "random"
    for library in (True, False):
        problem = differs(session(after, library=library).run(None, feeds), expected)
        if problem:
            return f"{problem}, {'with' if library else 'without'} the library"
    return "equal"


def tally(
    cases: Iterator[tuple[str, onnx.ModelProto, list[Any]]], capsys: pytest.CaptureFixture[str], what: str
) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    wrong = []
    for name, proto, inputs in cases:
        try:
            found = verdict(proto, inputs)
        except Exception as error:
            found = f"{type(error).__name__}: {str(error)[:300]}"
        if found in ("equal", "random", "not runnable by onnxruntime"):
            counts[found] += 1
        else:
            counts["different"] += 1
            wrong.append(f"{name}: {found}")
    with capsys.disabled():
        print(f"\n{what}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
    assert not wrong, "\n".join(wrong)
    return counts


def node_cases() -> Iterator[tuple[str, onnx.ModelProto, list[Any]]]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        if case.model is not None and case.data_sets:
            yield case.name, case.model, list(case.data_sets[0][0])


def read_tensor(path: Path) -> np.ndarray[Any, Any]:
    return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def model_cases() -> Iterator[tuple[str, onnx.ModelProto, list[Any]]]:
    for folder in ("simple", "pytorch-converted", "pytorch-operator"):
        for path in sorted((DATA / folder).glob("*/model.onnx")):
            data = path.parent / "test_data_set_0"
            files = sorted(data.glob("input_*.pb"), key=lambda file: int(file.stem.split("_")[1]))
            yield path.parent.name, onnx.load(path), [read_tensor(file) for file in files]


@pytest.mark.slow
def test_node_tests(capsys: pytest.CaptureFixture[str]) -> None:
    counts = tally(node_cases(), capsys, "node tests")
    assert counts["equal"] >= LEAST_NODE_TESTS


@pytest.mark.slow
def test_models_of_the_standard(capsys: pytest.CaptureFixture[str]) -> None:
    counts = tally(model_cases(), capsys, "models")
    assert counts["equal"] >= LEAST_MODELS


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((DATA / "light").glob("*.onnx")), ids=lambda path: path.stem)
def test_convolutional_networks(path: Path) -> None:
    proto = onnx.load(path)
    weights = {one.name for one in proto.graph.initializer}
    (data,) = (value for value in proto.graph.input if value.name not in weights)
    shape = [dim.dim_value for dim in data.type.tensor_type.shape.dim]
    assert verdict(proto, [np.random.default_rng(0).random(shape, np.float32)]) == "equal"
