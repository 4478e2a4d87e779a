"""Inputs that are the same in all runs are read once, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.runtime.library import register

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
EXPR = "i0:f32 i1:f32 | t0=sub(i0,i1) | t0:f32"
CONSTANT = np.array([1, 2, 3], np.float32)


def node(y: str) -> onnx.NodeProto:
    return helper.make_node("FusedElementwise", ["x", "k"], [y], domain="ai.onnxopt", expr=EXPR)


def session(nodes: list[onnx.NodeProto], *inputs: str) -> onnxruntime.InferenceSession:
    """A session of nodes that make y; k is an initializer."""
    shapes = {"x": ["N", 3], "k": [3], "c": []}
    types = {"c": TensorProto.BOOL}
    given = [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shapes[name]) for name in inputs]
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph(nodes, "g", given, results, [numpy_helper.from_array(CONSTANT, "k")])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnxopt", 1)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    register(options)
    text = helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(text, options, providers=["CPUExecutionProvider"])


def rows(count: int) -> Array:
    return np.random.default_rng(count).standard_normal((count, 3)).astype(np.float32)


def test_an_initializer_is_read_in_all_runs() -> None:
    own = session([node("y")], "x")
    for count in (2, 5, 0, 1):
        np.testing.assert_array_equal(own.run(None, {"x": rows(count)})[0], rows(count) - CONSTANT)


def test_an_initializer_that_callers_replace_is_no_constant() -> None:
    own, other = session([node("y")], "x", "k"), np.array([7, -1, 0.5], np.float32)
    for k in (None, other, None, 2 * other):
        feeds = {"x": rows(4)} if k is None else {"x": rows(4), "k": k}
        np.testing.assert_array_equal(own.run(None, feeds)[0], rows(4) - (CONSTANT if k is None else k))


def test_a_branch_reads_an_initializer_around_it() -> None:
    result = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    copy = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "copy", [], [result])
    branch = helper.make_graph([node("z")], "branch", [], [result])
    own = session([helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=copy)], "x", "c")
    for condition in (True, False, True):
        expected = rows(3) - CONSTANT if condition else rows(3)
        np.testing.assert_array_equal(own.run(None, {"x": rows(3), "c": np.array(condition)})[0], expected)
