"""FusedNorm and FusedSoftmax: kernels against bodies, what onnxruntime infers of them, and nodes that nobody should write."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxopt
from helpers import evaluate, model, node_model
from onnxopt import ir
from onnxopt.ops import fused_norm, fused_softmax
from onnxopt.ops.base import DOMAIN, prepare_model

native = pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
OPSETS = range(7, 25)
ADD = "i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"
NEGATIVE = "i0:f32 | t0=neg(i0) t1=less(i0,t0) | t0:f32 t1:bool"


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


def with_body(
    spec: str, body: ir.Function, attributes: dict[str, Any], shapes: list[tuple[int, ...]], opset: int
) -> onnx.ModelProto:
    """One node, and the function that it stands for."""
    dims = [",".join(f"{'ABCDE'[k]}{index}" for k in range(len(shape))) for index, shape in enumerate(shapes)]
    inputs = ", ".join(f"float[{text}] x{index}" for index, text in enumerate(dims))
    names = ", ".join(f"x{index}" for index in range(len(shapes)))
    loaded = ir.load(model(f"g ({inputs}) => (float[{dims[0]}] y) {{ y = Sum({names}) }}", opset=opset, ir_version=10))
    (node,) = loaded.graph
    node.domain, node.op_type, node.overload = DOMAIN, spec, body.overload
    for name, value in attributes.items():
        node.attributes[name] = ir.make_attribute(name, value)
    loaded.functions[body.identifier()] = body
    prepare_model(loaded)
    return ir.to_proto(loaded)


def compare(proto: onnx.ModelProto, inputs: list[Array]) -> None:
    feeds = {f"x{index}": array for index, array in enumerate(inputs)}
    (by_body,), (by_kernel,) = evaluate(proto, feeds), evaluate(proto, feeds, library=True)
    assert (by_kernel.shape, by_kernel.dtype) == (by_body.shape, by_body.dtype)
    tolerance = fused_norm.SPEC.tolerance[ir.DataType.FLOAT]
    np.testing.assert_allclose(by_kernel, by_body, rtol=tolerance, atol=tolerance)


# --- kernel and body ---
LAYOUTS = [
    (fused_norm.Layout(), (3, 40)),
    (fused_norm.Layout("rms", epsilon=1e-6), (2, 3, 40)),
    (fused_norm.Layout("layer", -2), (4, 3, 8)),
    (fused_norm.Layout("rms", -2), (4, 3, 8)),
    (fused_norm.Layout("layer", -3, 2), (2, 8, 3, 5)),
    (fused_norm.Layout("rms", -3, 1), (2, 8, 3, 5)),
    (fused_norm.Layout("layer", -1, 1, 4), (2, 8, 5)),
    (fused_norm.Layout("layer", -1, 2, 8), (2, 8, 3, 5)),
    (fused_norm.Layout("layer", -1, 3, 1), (2, 4, 3, 2, 5)),
    (fused_norm.Layout("layer", -1, 2, 4, channels_last=True), (2, 3, 5, 8)),
    (fused_norm.Layout("layer", -1, 1, 6, channels_last=True), (2, 5, 6)),
]


@pytest.mark.parametrize(("scaled", "biased"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("opset", [11, 17, 23])
@pytest.mark.parametrize(("layout", "shape"), LAYOUTS)
def test_norm_computes_what_its_body_computes(
    layout: fused_norm.Layout, shape: tuple[int, ...], opset: int, scaled: bool, biased: bool
) -> None:
    layout = dataclasses.replace(layout, scaled=scaled, biased=biased)
    affine = layout.affine_shape(shape)
    inputs = [draw(*shape), *(draw(*affine, seed=k) for k in range(scaled + biased))]  # type: ignore[arg-type]
    body = fused_norm.body(layout, opset)
    compare(with_body("FusedNorm", body, layout.attributes(), [one.shape for one in inputs], opset), inputs)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("index", [0, 1, 4, 7])
def test_norm_of_every_opset(opset: int, index: int) -> None:
    layout, shape = LAYOUTS[index]
    layout = dataclasses.replace(layout, scaled=True)
    inputs = [draw(*shape), draw(*layout.affine_shape(shape), seed=1)]  # type: ignore[arg-type]
    body = fused_norm.body(layout, opset)
    compare(with_body("FusedNorm", body, layout.attributes(), [one.shape for one in inputs], opset), inputs)


@pytest.mark.parametrize(
    ("opset", "axis"),
    [(opset, axis) for opset in OPSETS for axis in ((-1, -2, -3) if opset >= fused_softmax.ANY_AXIS_OPSET else (-1,))],
)
@pytest.mark.parametrize("log", [False, True])
def test_softmax_computes_what_its_body_computes(opset: int, axis: int, log: bool) -> None:
    body = fused_softmax.body(axis, 3, opset, log=log)
    attributes = {"axis": axis, "log": int(log)}
    compare(with_body("FusedSoftmax", body, attributes, [(3, 4, 19)], opset), [draw(3, 4, 19)])


def test_layouts_are_read_back() -> None:
    for layout, shape in LAYOUTS:
        proto = with_body("FusedNorm", fused_norm.body(layout, 17), layout.attributes(), [shape], 17)
        (node,) = ir.load(proto).graph
        read = fused_norm.Layout.of(node, len(shape))
        assert dataclasses.replace(read, epsilon=layout.epsilon) == layout
        assert read.epsilon == pytest.approx(layout.epsilon)


@pytest.mark.parametrize("spec", [fused_norm.SPEC, fused_softmax.SPEC])
def test_library_knows_the_attributes(spec: Any) -> None:
    (listed,) = (op for op in native.ops() if op["op"] == spec.name)
    assert set(listed["attributes"]) == set(spec.attributes)


# --- shapes before the run ---
def shapes_of(graph: str) -> list[list[int | str | None]]:
    """What a session says of the shapes of the outputs, of which the model says nothing but the type."""
    proto = model(graph, ir_version=10)
    proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return [value.shape for value in onnxopt.session(proto).get_outputs()]


@pytest.mark.parametrize("op", ["FusedNorm", "FusedSoftmax"])
def test_named_dims_go_through(op: str) -> None:
    call = f'{DOMAIN}.{op} <prologue: string = "{ADD}", kept: int = 1, epilogue: string = "{NEGATIVE}">'
    text = f"g (float[A,B,8] x, float[B,1] r) => (float[A,B,8] y, bool[A,B,8] m, float[A,B,8] k) {{ y, m, k = {call} (x, r) }}"
    assert shapes_of(text) == [["A", "B", 8]] * 3


def test_prologue_that_broadcasts() -> None:
    text = f'g (float[A,1,8] x, float[5,1] r) => (float[A,5,8] y) {{ y = {DOMAIN}.FusedNorm <prologue: string = "{ADD}"> (x, r) }}'
    assert shapes_of(text) == [["A", 5, 8]]


# --- nodes that nobody should write ---
X = ones(3, 8)
MISUSES: dict[str, tuple[str, dict[str, Any], list[Array], str]] = {
    "another kind": ("FusedNorm", {"kind": "batch"}, [X], "Its attribute 'kind' is 'batch' and should be layer or rms."),
    "axis from the front": ("FusedNorm", {"axis": 1}, [X], "Its attribute 'axis' is not negative, or 'inner' is."),
    "axis of softmax from the front": ("FusedSoftmax", {"axis": 0}, [X], "Its attribute 'axis' is not negative."),
    "negative inner axes": ("FusedNorm", {"inner": -1}, [X], "Its attribute 'axis' is not negative, or 'inner' is."),
    "axis beyond the rank": (
        "FusedNorm", {"axis": -3}, [X], "Its attributes 'axis' and 'inner' are -3 and 0, and input 0 has the shape [3,8].",
    ),
    "no axis": ("FusedNorm", {"inner": 1}, [X], "Its attributes 'axis' and 'inner' are -1 and 1, and input 0 has the shape [3,8]."),
    "scalar": ("FusedSoftmax", {}, [ones()], "Its attributes 'axis' and 'inner' are -1 and 0, and input 0 has the shape []."),
    "negative groups": ("FusedNorm", {"groups": -1}, [ones(1, 4, 2)], "Its attribute 'groups' is negative."),
    "groups without axes after the channels": (
        "FusedNorm", {"groups": 2}, [X], "Input 0 has the shape [3,8] and should be [N, channels, ...].",
    ),
    "channels that lie last and are no groups": (
        "FusedNorm", {"groups": 3, "channels_last": 1}, [ones(1, 3, 4)], "Its 4 channels are no 3 groups.",
    ),
    "channels that lie last without groups": (
        "FusedNorm", {"channels_last": 1}, [ones(1, 3, 4)], "Its channels lie last, and it has no groups of them.",
    ),
    "a prologue before channels that lie last": (
        "FusedNorm", {"groups": 2, "channels_last": 1, "prologue": ADD}, [ones(1, 3, 4), ones(1, 3, 4)], "It has a prologue,",
    ),
    "channels that are no groups": ("FusedNorm", {"groups": 3}, [ones(1, 4, 2)], "Its 4 channels are no 3 groups."),
    "no scale": ("FusedNorm", {"scaled": 1}, [X], "It got 1 inputs and needs at least 2."),
    "scale of another size": (
        "FusedNorm", {"scaled": 1}, [X, ones(3)], "Input 1 is a float tensor of shape [3] and should be float of shape [8].",
    ),
    "scale of another rank": (
        "FusedNorm", {"scaled": 1}, [X, ones(1, 8)], "Input 1 is a float tensor of shape [1,8] and should be float of shape [8].",
    ),
    "scale of another type": (
        "FusedNorm", {"scaled": 1}, [X, ones(8).astype(np.float64)],
        "Input 1 is a double tensor of shape [8] and should be float of shape [8].",
    ),
    "scale of a group": (
        "FusedNorm", {"scaled": 1, "groups": 2}, [ones(1, 4, 2), ones(2)],
        "Input 1 is a float tensor of shape [2] and should be float of shape [4].",
    ),
    "another type": ("FusedNorm", {}, [X.astype(np.float64)], "Input 0 is of type double and should be float."),
    "half without a cast": ("FusedSoftmax", {}, [X.astype(np.float16)], "Input 0 is of type float16 and should be float."),
    "prologue of another type": (
        "FusedNorm", {"prologue": ADD}, [X, X.astype(np.int64)], "Input 1 is of type int64 and should be float.",
    ),
    "prologue without its input": ("FusedNorm", {"prologue": ADD}, [X], "It got 1 inputs and needs at least 2."),
    "prologue that does not broadcast": ("FusedNorm", {"prologue": ADD}, [X, ones(5)], "Its prologue: "),
    "malformed prologue": ("FusedNorm", {"prologue": "add"}, [X], "Its prologue: The expression is malformed: "),
    "prologue of two results": ("FusedNorm", {"prologue": NEGATIVE}, [X], "Its prologue should have one output, of f32."),
    "prologue of booleans": (
        "FusedNorm", {"prologue": "i0:f32 | t0=less(i0,i0) | t0:bool"}, [X], "Its prologue should have one output, of f32.",
    ),
    "kept without a prologue": ("FusedSoftmax", {"kept": 1}, [X], "It keeps the result of a prologue that it does not have."),
    "malformed epilogue": ("FusedNorm", {"epilogue": "relu"}, [X], "Its epilogue: The expression is malformed: "),
    "epilogue without its input": ("FusedNorm", {"epilogue": ADD}, [X], "It has 0 inputs for its epilogue, which takes 1."),
    "epilogue that broadcasts the result": (
        "FusedNorm", {"epilogue": ADD}, [X, ones(2, 1, 1)], "Its epilogue makes the shape [2,3,8] of results of shape [3,8].",
    ),
    "input that nothing reads": ("FusedSoftmax", {}, [X, X], "It has 1 inputs for its epilogue, which takes 0."),
}  # fmt: skip


@pytest.mark.parametrize("case", MISUSES)
def test_wrong_nodes_get_a_sentence(case: str) -> None:
    op, attributes, inputs, sentence = MISUSES[case]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        native.run(op, inputs, attributes)
    feeds = {f"x{index}": array for index, array in enumerate(inputs)}
    outputs = ("y0", "y1") if attributes.get("kept") else ("y0",)
    with pytest.raises(Exception, match=re.escape(sentence)):
        evaluate(node_model(op, attributes, inputs, outputs=outputs), feeds, library=True)


def test_unknown_variant_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="There is no variant 'norm__neon'"):
        native.run("FusedNorm", [X], {}, variant="norm__neon")
