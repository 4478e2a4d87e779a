"""Ops before a Transpose instead of after it: every way against the original."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import helpers
from onnxopt import ir
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.permutations import Permutation, compose, inverse, is_identity, move, permutation
from rewriting import context, node_of, value

SHAPE = (2, 4, 6)
PERMUTATIONS = list(itertools.permutations(range(3)))
RNG = np.random.default_rng(0)


# --- permutations --------------------------------------------------------------------------------------------------
@given(st.permutations(range(4)), st.permutations(range(4)))
def test_composition_and_inverse(first: list[int], second: list[int]) -> None:
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    a, b = tuple(first), tuple(second)
    np.testing.assert_array_equal(x.transpose(compose(a, b)), x.transpose(a).transpose(b))
    assert is_identity(compose(a, inverse(a))) and is_identity(compose(inverse(a), a))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Transpose<perm=[2,0,1]>(x)", (2, 0, 1)),
        ("y = Transpose(x)", (2, 1, 0)),
        ("y = Neg(x)", None),
    ],
    ids=["attribute", "reversed by default", "another op"],
)
def test_permutation_of_a_node(body: str, expected: Permutation | None) -> None:
    ctx = context(f"g (float[2,3,4] x) => (y) {{ {body} }}")
    assert permutation(ctx, next(iter(ctx.model.graph))) == expected


# --- moves ---------------------------------------------------------------------------------------------------------
OPS = [
    "y = Relu(t)",
    "y = Add(t, c)",
    "y = Mul(t, row)",
    "y = Clip(t, low)",
    "y = ReduceMean<axes=[1]>(t)",
    "y = ReduceMean<axes=[0,-1], keepdims=0>(t)",
    "y = ReduceSum(t, axes)",
    "y = ReduceSum<keepdims=0>(t, axes)",
    "y = ReduceMax<keepdims=0>(t)",
    "y = ReduceSum<noop_with_empty_axes=1>(t)",
    "y = ArgMax<axis=1>(t)",
    "y = ArgMin<axis=-1, keepdims=0>(t)",
    "y = Softmax<axis=1>(t)",
    "y = LogSoftmax(t)",
    "y = Concat<axis=1>(t, t)",
    "y, z = Split<axis=-1>(t)",
    "y = Slice(t, from, to, axes)",
    "y = Slice(t, from, to)",
    "y = Pad(t, pads)",
    "y = Unsqueeze(t, axes)",
    "y = Unsqueeze(t, ends)",
    "y = Gather<axis=1>(t, zero)",
    "y = Gather<axis=-1>(t, from)",
    "y = QuantizeLinear(t, low, byte)",
    "y = LayerNormalization(t, scale)",
]  # fmt: skip


def run_moved(body: str, perm: Permutation) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    """The outputs of an op after a Transpose, and those of the moved op followed by the Transposes that it asks for."""
    moved_shape = tuple(SHAPE[axis] for axis in perm)
    weights = {
        "c": RNG.standard_normal(moved_shape).astype(np.float32),
        "row": RNG.standard_normal((1, 1, moved_shape[2])).astype(np.float32),
        "scale": RNG.standard_normal(moved_shape[2]).astype(np.float32),
        "low": np.array(0.1, np.float32),
        "byte": np.array(3, np.uint8),
        "axes": np.array([1]),
        "ends": np.array([0, -1]),
        "zero": np.array(0),
        "from": np.array([0]),
        "to": np.array([1]),
        "pads": np.array([0, 1, 2, 1, 0, 0]),
    }
    used = {name: array for name, array in weights.items() if name in body}
    outputs = body.split(" = ")[0]
    text = f"g (float[2,4,6] x) => ({outputs}) {{ t = Transpose<perm={list(perm)}>(x) {body} }}"
    proto = helpers.model(text, opset=17, **used)
    x = {"x": RNG.standard_normal(SHAPE).astype(np.float32)}
    expected = helpers.evaluate(proto, x)
    ctx = context(proto)
    node = value(ctx, "y").producer()
    assert node is not None
    found = move(ctx, node, perm)
    if found is None:
        return None
    transposed, source = value(ctx, "t"), value(ctx, "x")
    b = Builder(ctx, node)
    inputs: list[ir.Value | None] = []
    for index, one in enumerate(node.inputs):
        if index in found.data:
            assert one is not None
            inputs.append(source if one is transposed else b.Transpose(one, perm=inverse(perm)))
        else:
            inputs.append(one)
    for index, array in found.constants.items():
        inputs += [None] * (index + 1 - len(inputs))
        inputs[index] = b.constant(array)
    results = b.copy_of(node, inputs, **found.attributes)
    replaced = {
        old: b.Transpose(new, perm=after) if after else new
        for old, new, after in zip(node.outputs, results, found.outputs, strict=True)
    }
    assert ctx.editor.apply(b.patch("move", replaced))
    ctx.editor.remove_unused([node])
    ctx.shapes.write_back(ctx.model)
    result = ir.to_proto(ctx.model)
    onnx.checker.check_model(result)
    return expected, helpers.evaluate(result, x)


@pytest.mark.parametrize("perm", PERMUTATIONS, ids=str)
@pytest.mark.parametrize("body", OPS)
def test_a_moved_op_computes_the_same(body: str, perm: Permutation) -> None:
    found = run_moved(body, perm)
    if found is None:
        assert "LayerNorm" in body and perm[2] != 2
        return
    for expected, actual in zip(*found, strict=True):
        assert expected.shape == actual.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("y = Reshape(t, s)", 17),
        ("y = MatMul(t, x)", 17),
        ("y = Softmax<axis=1>(t)", 11),
        ("y = Add(t, w)", 17),
        ("y = Slice(t, s, s, v)", 17),
        ("y = ReduceSum(t, v)", 17),
        ("y = Neg(t)", 6),
    ],
    ids=["Reshape", "MatMul", "Softmax over all later axes", "unknown rank", "variable axes", "variable axes of a sum", "old broadcasting"],
)  # fmt: skip
def test_what_cannot_be_moved(body: str, opset: int) -> None:
    text = f"""g (float[3,3,3] x, float w, int64[V] v) => (y) {{ t = Transpose<perm=[1,0,2]>(x) {body} }}"""
    ctx = context(helpers.model(text, opset=opset, s=np.array([3, 9])))
    ctx.shapes.forget(value(ctx, "w"))
    node = value(ctx, "y").producer()
    assert node is not None and node.op_type != "Transpose"
    assert move(ctx, node, (1, 0, 2)) is None


def test_nodes_of_other_domains_are_not_moved() -> None:
    ctx = context("g (float[2,3] x) => (y) { t = Transpose(x) y = Neg(t) }")
    node = node_of(ctx, "Neg")
    node.domain = "own"
    assert move(ctx, node, (1, 0)) is None
