"""FusedAttention: its kernel against its body, what onnxruntime infers of it, and nodes that nobody should write."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model
from onnxopt import ir
from onnxopt.ops import fused_attention as op
from onnxopt.ops.base import DOMAIN, prepare_model

native = pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(2)
PLAIN = op.Attention(
    q="b s hd", k="b s hd", v="b s hd", y="b s hd", heads=3, kv_heads=3, head_size=8, value_size=8, scale=0.3
)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def with_body(attention: op.Attention, feeds: dict[str, Array], opset: int, *, dynamic: bool) -> onnx.ModelProto:
    """One node, and the function that it stands for."""
    kinds = {"float32": "float", "bool": "bool"}
    dims = {
        name: [f"{name}{axis}" if dynamic else size for axis, size in enumerate(x.shape)] for name, x in feeds.items()
    }
    inputs = [f"{kinds[str(x.dtype)]}[{','.join(map(str, dims[name]))}] {name}" for name, x in feeds.items()]
    loaded = ir.load(
        model(f"g ({', '.join(inputs)}) => (float y) {{ y = Sum({', '.join(feeds)}) }}", opset=opset, ir_version=10)
    )
    (node,) = loaded.graph
    node.domain, node.op_type, node.overload = DOMAIN, op.SPEC.name, attention.overload(opset)
    node.outputs[0].shape = None
    for name, value in attention.attributes().items():
        node.attributes[name] = ir.make_attribute(name, value)
    body = attention.body(opset)
    loaded.functions[body.identifier()] = body
    prepare_model(loaded)
    return ir.to_proto(loaded)


def compare(attention: op.Attention, *inputs: Array, opset: int = 17) -> None:
    feeds = {f"i{index}": x for index, x in enumerate(inputs)}
    proto = with_body(attention, feeds, opset, dynamic=True)
    (by_body,), (by_kernel,) = (evaluate(proto, feeds, library=library) for library in (False, True))
    assert by_kernel.shape == by_body.shape
    largest = float(np.abs(by_body[np.isfinite(by_body)]).max(initial=1e-6))
    tolerance = op.SPEC.tolerance[ir.DataType.FLOAT]
    np.testing.assert_allclose(by_kernel, by_body, rtol=tolerance, atol=tolerance * largest)


def changed(**fields: Any) -> op.Attention:
    return dataclasses.replace(PLAIN, **fields)


LAYOUTS = {
    "b s hd": (2, 5, 24),
    "b s h d": (2, 5, 3, 8),
    "b h s d": (2, 3, 5, 8),
    "b h d s": (2, 3, 8, 5),
    "bh s d": (6, 5, 8),
    "s bh d": (5, 6, 8),
    "s b hd": (5, 2, 24),
    "@1 b h s d": (3, 2, 3, 5, 8),
    "b s @2 h d": (2, 5, 3, 3, 8),
    "b s hd@24": (2, 5, 72),
    "b s h d@8": (2, 5, 3, 24),
    "s @1 b hd": (5, 2, 2, 24),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("opset", [9, 13, 21])
def test_every_layout_of_operands(layout: str, opset: int) -> None:
    shape = LAYOUTS[layout]
    compare(changed(q=layout, k=layout, v=layout), normal(*shape), normal(*shape), normal(*shape), opset=opset)


@pytest.mark.parametrize("layout", ["b s hd", "b h s d", "b s h d", "s b hd", "sb hd", "bs hd", "bh s d", "b hd s"])
def test_every_layout_of_the_result(layout: str) -> None:
    compare(changed(y=layout), *(normal(2, 5, 24) for _ in range(3)))


@pytest.mark.parametrize("opset", range(7, 25))
def test_body_of_every_opset(opset: int) -> None:
    compare(changed(q="b s hd@24"), normal(2, 5, 48), normal(2, 7, 24), normal(2, 7, 24), opset=opset)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_heads_that_share_keys(kv_heads: int) -> None:
    attention = changed(heads=6, kv_heads=kv_heads, value_size=5)
    compare(attention, normal(2, 3, 48), normal(2, 9, 8 * kv_heads), normal(2, 9, 5 * kv_heads))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_one_head_without_a_dim_for_it(batch: int) -> None:
    attention = changed(heads=1, kv_heads=1, q="b s d", k="b s d", v="b s d", y="b s d")
    compare(attention, *(normal(batch, 5, 8) for _ in range(3)))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 1, 1, 7), (1, 1, 5, 7), (5, 7), (7,)], ids=str)
@pytest.mark.parametrize("kind", ["add", "keep=-2.5", "hide=1.5"])
def test_every_kind_of_mask(shape: tuple[int, ...], kind: str) -> None:
    mask = normal(*shape) if kind == "add" else RNG.random(shape) < 0.7
    attention = changed(masks=(kind,), softcap=0.5)
    compare(attention, normal(2, 5, 24), normal(2, 7, 24), normal(2, 7, 24), mask)


def test_mask_that_begins_over_again() -> None:
    attention = changed(masks=("add", "repeat"))
    operands = [normal(6, 4, 24) for _ in range(3)]
    compare(attention, *operands, normal(1, 3, 4, 4), normal(2, 1, 4, 4))


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("fill", [-np.inf, -1e9, float(np.finfo(np.float32).min)])
def test_rows_that_see_nothing(to_zero: bool, fill: float) -> None:
    mask = np.ones((5, 7), bool)
    mask[2] = False
    attention = changed(masks=(f"keep={fill!r}",), nan_to_zero=to_zero)
    compare(attention, normal(2, 5, 24), normal(2, 7, 24), normal(2, 7, 24), mask)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("rotary", ["q", "k", "qk"])
def test_rotary_embedding(rotary: str, width: int, interleaved: bool) -> None:
    attention = changed(rotary=rotary, width=width, interleaved=interleaved)
    compare(attention, *(normal(2, 5, 24) for _ in range(3)), normal(1, 1, 5, width), normal(2, 1, 5, width))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (5, 0), (0, 5), (0, 0)], ids=str)
def test_single_rows_and_keys_and_none(size: tuple[int, int]) -> None:
    compare(PLAIN, normal(2, size[0], 24), normal(2, size[1], 24), normal(2, size[1], 24))


MISUSE: dict[str, tuple[dict[str, Any], list[Array], str]] = {
    "no heads": ({"heads": 0}, [normal(2, 5, 24)] * 3, "needs a positive attribute 'heads'"),
    "heads that do not divide": ({"kv_heads": 2}, [normal(2, 5, 24)] * 3, "3 heads are no multiple of 2"),
    "no layout": ({"q": "b s hz"}, [normal(2, 5, 24)] * 3, "layout 'b s hz'"),
    "part of a result": ({"y": "b s hd@0"}, [normal(2, 5, 24)] * 3, "'b s hd@0' should be whole"),
    "result without an axis": (
        {"y": "b s d"},
        [normal(2, 5, 24)] * 3,
        re.escape("Its result has the shape [2,5,8], which is not 'b s d'"),
    ),
    "result without any axis": (
        {"y": ""},
        [normal(2, 5, 24), *[np.zeros((2, 0, 24), np.float32)] * 2],
        re.escape("Its result has the shape []"),
    ),
    "too few inputs": ({}, [normal(2, 5, 24)] * 2, "It got 2 inputs and needs 3"),
    "other columns": ({}, [normal(2, 5, 25)] * 3, re.escape("Input 0 has the shape [2,5,25], which is not 'b s hd'")),
    "other batches": ({}, [normal(2, 5, 24), normal(1, 5, 24), normal(1, 5, 24)], "batches of 2, 1 and 1"),
    "other values": ({}, [normal(2, 5, 24), normal(2, 5, 24), normal(2, 6, 24)], "5 keys and 6 values"),
    "mask without a number": ({"masks": "keep=x"}, [normal(2, 5, 24)] * 3, "the word 'keep=x'"),
    "unknown mask": ({"masks": "plus"}, [normal(2, 5, 24)] * 3, "the word 'plus'"),
    "too many masks": ({"masks": "add add add add"}, [normal(2, 5, 24)] * 7, "4 masks"),
    "mask of another shape": ({"masks": "add"}, [*[normal(2, 5, 24)] * 3, normal(4, 5)], "does not fit scores"),
    "mask of another type": ({"masks": "keep=-inf"}, [*[normal(2, 5, 24)] * 3, normal(5, 5)], "should be bool"),
    "odd rotation": ({"rotary": "q"}, [*[normal(2, 5, 24)] * 3, normal(5, 3), normal(5, 3)], "3 columns"),
    "rotation of other rows": ({"rotary": "q"}, [*[normal(2, 5, 24)] * 3, normal(4, 8), normal(4, 8)], "does not fit"),
    "sizes whose product wraps around": (
        {"head_size": (2**64 + 8) // 3, "value_size": (2**64 + 8) // 3},
        [normal(2, 5, 8)] * 3,
        "too large",
    ),
    "result that wraps around": (
        {"y": "bhsd", "value_size": 2**31 - 1},
        [normal(2, 2**12, 24), *[np.zeros((2, 0, columns), np.float32) for columns in (24, 3 * (2**31 - 1))]],
        "too large",
    ),
    "part that begins far away": ({"q": f"b s hd@{2**63 - 8}"}, [normal(2, 5, 24)] * 3, "which is not 'b s hd@"),
    "double": ({}, [normal(2, 5, 24).astype(np.float64)] * 3, "type double and should be float"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_gets_a_sentence(case: str) -> None:
    attributes, inputs, sentence = MISUSE[case]
    with pytest.raises(ValueError, match=sentence):
        native.run("FusedAttention", inputs, PLAIN.attributes() | attributes)


def test_attributes_are_those_of_the_library() -> None:
    (found,) = [one for one in native.ops() if one["op"] == op.SPEC.name]
    assert set(found["attributes"]) == set(op.SPEC.attributes)
