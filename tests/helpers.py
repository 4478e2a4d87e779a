"""Shared by all tests: models from text, single passes over them, and the comparison in onnxruntime."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxopt import ir
from onnxopt.passes.base import Pass
from onnxopt.pipeline import PassManager, Report
from onnxopt.runtime import target as targets
from onnxopt.runtime.library import native, register


def model(graph: str, *, opset: int = 17, ir_version: int = 8, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from a graph in onnx's text syntax; `weights` become its initializers."""
    text = f'<ir_version: {ir_version}, opset_import: ["": {opset}]> {graph}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return proto


def run_passes(
    proto: onnx.ModelProto, *names: str | Pass, target: str = "generic", explain: bool = False
) -> tuple[onnx.ModelProto, Report]:
    """Run passes over a copy of the model; a second run must change nothing."""
    loaded = ir.load(onnx.ModelProto.FromString(proto.SerializeToString()))
    report = PassManager(target, names, strict=True, explain=explain).run(loaded)
    again = PassManager(target, names, strict=True).run(loaded)
    assert not again.patches, f"the second run applied {again.patches}"
    result = ir.to_proto(loaded)
    onnx.checker.check_model(result)
    return result, report


def set_costs(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    """Give every target other costs: tests use small tensors."""
    for name, one in targets.TARGETS.items():
        monkeypatch.setitem(targets.TARGETS, name, dataclasses.replace(one, costs=one.costs.replaced(values)))


def ops(proto: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each op type the main graph has."""
    return dict(collections.Counter(node.op_type for node in proto.graph.node))


def op_list(proto: onnx.ModelProto) -> list[str]:
    """The op types of the main graph in order."""
    return [node.op_type for node in proto.graph.node]


def evaluate(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], *, library: bool = False) -> list[np.ndarray]:
    """The outputs by onnxruntime without its own optimizations. Custom ops are their bodies, or the kernels of the library."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if library:
        register(options)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def assert_same(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    library: bool = False,
) -> None:
    """Both models give the same outputs; `atol` is in units of the largest finite number of the output. The second one may use the
    library."""
    for one in [feeds] if isinstance(feeds, Mapping) else feeds:
        for expected, actual in zip(evaluate(before, one), evaluate(after, one, library=library), strict=True):
            assert (expected.shape, expected.dtype) == (actual.shape, actual.dtype)
            if expected.dtype.kind != "f":
                np.testing.assert_array_equal(actual, expected)
                continue
            finite = np.abs(expected[np.isfinite(expected)].astype(np.float64))
            np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol * finite.max(initial=1e-30))


def node_model(
    op: str,
    attributes: Mapping[str, Any],
    feeds: Sequence[np.ndarray],
    *,
    outputs: Sequence[str] = ("y0",),
    inputs: Sequence[str] | None = None,
    made: int = TensorProto.FLOAT,
    shapes_known: bool = False,
) -> onnx.ModelProto:
    """One custom op called 'culprit' over inputs x0, x1, ... of the types and ranks of `feeds`, without a body."""
    names = [f"x{index}" for index in range(len(feeds))]
    node = helper.make_node(op, inputs or names, list(outputs), name="culprit", domain="ai.onnxopt", **attributes)
    shapes = [list(feed.shape) if shapes_known else [None] * feed.ndim for feed in feeds]
    types = [helper.np_dtype_to_tensor_dtype(feed.dtype) for feed in feeds]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(*one) for one in zip(names, types, shapes, strict=True)],
        [helper.make_tensor_value_info(name, made, None) for name in outputs if name],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnxopt", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def run_emulated(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a model of custom ops alone, each computed by its kernel for CUDA devices, whose code the host runs."""
    values = dict(feeds) | {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    for node in proto.graph.node:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        texts = {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()}
        results = native().run(
            node.op_type, [values[name] for name in node.input], texts, variant=emulated_variant(node.op_type)
        )
        values.update(zip(node.output, results, strict=True))
    return [values[output.name] for output in proto.graph.output]


def emulated_variant(op: str) -> str:
    """The code of an op's kernel for CUDA devices as the host runs it."""
    variants = next(one["variants"] for one in native().ops() if one["op"] == op)
    return next(str(one["name"]) for one in variants if one["device"] == "cuda") + "_emulated"


def assert_equal(found: np.ndarray, wanted: np.ndarray) -> None:
    """The same type and values, NaNs among them: numpy does not know that bfloat16 has some."""
    assert found.dtype == wanted.dtype
    if found.dtype == ml_dtypes.bfloat16:
        found, wanted = found.astype(np.float32), wanted.astype(np.float32)
    np.testing.assert_array_equal(found, wanted)
