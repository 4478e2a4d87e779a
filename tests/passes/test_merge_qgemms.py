"""Queries, keys and values of the same rows become one QGemm."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, set_costs
from onnxopt import ir
from onnxopt.passes.base import Options
from onnxopt.pipeline import PassManager

pytest.importorskip("onnxopt._native", reason="the native library is not built")

RNG = np.random.default_rng(0)
WIDTH = 64


@pytest.fixture(autouse=True)
def fuse_small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests use few rows."""
    set_costs(monkeypatch, product_work=1)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def encoder(keys: str = "x", width: int = WIDTH, further: str = "", biased: str = "qkv") -> onnx.ModelProto:
    """An attention of four heads, keys and values of `keys`; `width` is that of the values, `biased` the operands with a bias."""
    sources = {"q": "x", "k": keys, "v": keys}
    products = " ".join(
        f"p{one} = MatMul({source}, w{one}) {one} = {f'Add(p{one}, b{one})' if one in biased else f'Identity(p{one})'}"
        for one, source in sources.items()
    )
    outputs = f"float[B,9,{width}] y" + (", float[B,9,64] z" if further else "")
    text = f"""g (float[B,9,64] x, float[B,9,64] c) => ({outputs}) {{ {products}
        qs = Reshape(q, heads)  qt = Transpose<perm = [0, 2, 1, 3]>(qs)
        ks = Reshape(k, heads)  kt = Transpose<perm = [0, 2, 3, 1]>(ks)
        vs = Reshape(v, values)  vt = Transpose<perm = [0, 2, 1, 3]>(vs)
        s = MatMul(qt, kt)  p = Softmax<axis = 3>(s)  o = MatMul(p, vt)
        ot = Transpose<perm = [0, 2, 1, 3]>(o)  y = Reshape(ot, merge) {further} }}"""
    constants = {"wq": normal(64, 64) / 8, "wk": normal(64, 64) / 8, "wv": normal(64, width) / 8}
    constants |= {f"b{one}": normal(constants[f"w{one}"].shape[1]) for one in biased}
    shapes = {"heads": [0, 0, 4, 16], "values": [0, 0, 4, width // 4], "merge": [0, 0, width]}
    return model(text, opset=17, **constants, **{name: np.array(one) for name, one in shapes.items()})


def merged(before: onnx.ModelProto) -> onnx.ModelProto:
    """The results are those of separate products."""
    apart, together = ir.load(before), ir.load(before)
    options = Options(quantize_products=True)
    names = ["eliminate_noops", "quantize_products", "fuse_attention"]
    PassManager("cpu", names, options=options, strict=True).run(apart)
    PassManager("cpu", [*names[:2], "merge_qgemms", names[2]], options=options, strict=True).run(together)
    feeds = {"x": normal(2, 9, 64), "c": normal(2, 9, 64)}
    wanted, found = ir.to_proto(apart), ir.to_proto(together)
    for library in (True, False):
        assert_same(wanted, found, feeds, library=library)
    return found


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("biased", ["qkv", ""])
def test_operands_are_columns_of_one_product(width: int, biased: str) -> None:
    after = merged(encoder(width=width, biased=biased))
    assert op_list(after) == ["QGemm", "FusedAttention"]


def test_keys_and_values_of_other_rows_are_one_product() -> None:
    assert sorted(op_list(merged(encoder(keys="c")))) == ["FusedAttention", "QGemm", "QGemm"]


def test_products_with_and_without_a_bias_stay_apart() -> None:
    assert sorted(op_list(merged(encoder(biased="qv")))) == ["FusedAttention", "QGemm", "QGemm"]


def test_results_that_others_read_stay_apart() -> None:
    after = merged(encoder(further="z = Neg(q)"))
    assert sorted(op_list(after)) == ["FusedAttention", "Neg", "QGemm", "QGemm"]


def test_columns_that_do_not_fill_panels_stay_apart() -> None:
    after = merged(encoder(width=72))
    assert sorted(op_list(after)) == ["FusedAttention", "QGemm", "QGemm"]
