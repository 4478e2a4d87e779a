"""Loops whose iterations do the work of several."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxopt
from helpers import assert_same, model, op_list
from onnxopt import ir
from onnxopt.pipeline import PassManager

PASS = "unroll_loops_by_factor"
X = np.random.default_rng(0).normal(0, 1, (12, 4)).astype(np.float32)
START = np.array([0.5, -1, 2, 1e-30], np.float32)
STEP = "again = Identity(c) e = Gather<axis = 0>(x, i) next = Sub(e, h) s = Mul(next, e)"


def loop(body: str = STEP, opset: int = 17, limit: str = "many") -> onnx.ModelProto:
    return model(
        "g (float[12, 4] x, float[4] start, int64 many) => (float[4] y, float[n, 4] z) { "
        f"y, z = Loop ({limit}, keep, start) <body = b (int64 i, bool c, float[4] h) => (bool again, float[4] next, float[4] s) {{ {body} }}> }}",
        opset=opset,
        keep=np.array(True),
        **({} if limit == "many" else {limit: np.array([7])}),
    )


def unrolled(before: onnx.ModelProto, factor: int, *passes: str) -> onnx.ModelProto:
    loaded = ir.load(onnx.ModelProto.FromString(before.SerializeToString()))
    options = onnxopt.Options(unroll_factor=factor)
    PassManager("generic", passes or [PASS], options=options, strict=True).run(loaded)
    assert not PassManager("generic", passes or [PASS], options=options, strict=True).run(loaded).patches
    return ir.to_proto(loaded)


@pytest.mark.parametrize("factor", [2, 3, 5, 12])
def test_any_number_of_iterations(factor: int) -> None:
    before = loop()
    after = unrolled(before, factor)
    first = next(node for node in after.graph.node if node.op_type == "Loop")
    assert sum(node.op_type == "Sub" for node in first.attribute[0].g.node) == factor
    assert op_list(after).count("Loop") == 2
    for many in (-7, -1, 0, 1, 2, 3, 5, 6, 11, 12):
        assert_same(before, after, {"x": X, "start": START, "many": np.array(many)}, rtol=0, atol=0)


def test_limit_of_one_dim_that_is_constant() -> None:
    before = loop(limit="seven")
    after = unrolled(before, 3)
    assert op_list(after).count("Loop") == 2
    assert_same(before, after, {"x": X, "start": START, "many": np.array(0)}, rtol=0, atol=0)


def test_growing_carry_of_a_symbolic_number_of_iterations() -> None:
    before = model(
        "g (float[n, 4] x, float[0, 4] none) => (float[k, 4] y) { sizes = Shape(x) many = Gather(sizes, zero) "
        "y = Loop (many, keep, none) <body = b (int64 i, bool c, float[m, 4] h) => (bool again, float[k, 4] next) { again = Identity(c) "
        "e = Gather<axis = 0>(x, i) r = Unsqueeze(e, first) next = Concat<axis = 0>(r, h) }> }",
        keep=np.array(True),
        zero=np.array(0),
        first=np.array([0]),
    )
    after = unrolled(before, 4)
    assert op_list(after).count("Loop") == 2
    for length in (0, 1, 4, 11):
        assert_same(before, after, {"x": X[:length], "none": X[:0]}, rtol=0, atol=0)


@pytest.mark.parametrize(
    "before",
    [loop("m = ReduceMax<keepdims = 0>(h) t = Abs(m) again = Less(t, m) next = Add(h, h) s = Neg(h)"), loop(opset=13)],
    ids=["a condition of data", "no Reshape to no element"],
)
def test_refuses(before: onnx.ModelProto) -> None:
    assert op_list(unrolled(before, 2)) == ["Loop"]


def test_nothing_happens_unasked() -> None:
    loaded = ir.load(loop())
    assert not PassManager("generic", [PASS]).run(loaded).patches


def test_factor_of_one_is_an_error() -> None:
    with pytest.raises(onnxopt.OptionError, match="unroll_factor"):
        onnxopt.Options(unroll_factor=1)
