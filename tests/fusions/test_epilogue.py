"""Regions of any ops over operands of any shape, as epilogues: the same answers from the kernel and from the body."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_same, model, ops, run_passes

pytest.importorskip("onnxopt._native", reason="the native library is not built")
pytestmark = pytest.mark.usefixtures("fuse_small_products")

Array = np.ndarray[Any, Any]
PASSES = ("fuse_gemms", "fuse_epilogues")
SMOOTH = ("Sigmoid", "Tanh", "Softplus", "Neg", "Relu", "Abs", "LeakyRelu", "HardSigmoid")
BINARY = ("Add", "Mul", "Sub", "Max", "Min")


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def assert_same_three_ways(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    for library in (True, False):
        assert_same(before, after, feeds, rtol=1e-4, atol=1e-5, library=library)


def declared(name: str, shape: tuple[int | str, ...]) -> str:
    return f"float[{','.join(map(str, shape))}] {name}" if shape else f"float {name}"


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_region(data: st.DataObject) -> None:
    leading = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 13]), min_size=1, max_size=3), "leading dims"))
    columns = data.draw(st.sampled_from([8, 16, 19, 40]), "columns")
    domain = (*leading, columns)
    operands: dict[str, tuple[int, ...]] = {}
    lines, last = ["p = MatMul(x, w)"], "p"
    for step in range(data.draw(st.integers(1, 6), "statements")):
        name = f"t{step}"
        if data.draw(st.booleans()):
            lines.append(f"{name} = {data.draw(st.sampled_from(SMOOTH))}({last})")
        else:
            other = f"r{step}"
            kept = domain[data.draw(st.integers(0, len(domain))) :]
            operands[other] = tuple(data.draw(st.sampled_from([1, dim])) for dim in kept)
            pair = data.draw(st.permutations([last, other]))
            lines.append(f"{name} = {data.draw(st.sampled_from(BINARY))}({', '.join(pair)})")
        last = name
    constant = {name for name in operands if data.draw(st.booleans(), f"{name} is constant")}
    inputs = [("x", (*leading, 10)), *((name, shape) for name, shape in operands.items() if name not in constant)]
    weights = {name: normal(7, *operands[name]) for name in constant}
    text = f"g ({', '.join(declared(*one) for one in inputs)}) => ({declared(last, domain)}) {{ {' '.join(lines)} }}"
    before = model(text, w=normal(1, 10, columns), **weights)
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert ops(after)["FusedGemm"] == 1
    feeds = {name: normal(index, *shape) for index, (name, shape) in enumerate(inputs)}
    assert_same_three_ways(before, after, feeds)


@pytest.mark.parametrize("size", [1, 2, 12, 30])
@pytest.mark.parametrize(
    "shape",
    ["B,S,20", "1,S,20", "B,1,20", "S,20", "B,S,1", "B,1,1", "S,1", "1,1,20", "20", "1", ""],
)
def test_operand_of_named_dims(shape: str, size: int) -> None:
    before = model(
        f"""g (float[B,S,12] x, {f"float[{shape}] r" if shape else "float r"}) => (float[B,S,20] y) {{
            p = MatMul(x, w) q = Add(p, b) s = Sigmoid(q) y = Mul(s, r) }}""",
        w=normal(1, 12, 20),
        b=normal(2, 20),
    )
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert ops(after) == {"FusedGemm": 1}
    dims = {"B": 3, "S": size}
    feeds = {
        "x": normal(3, 3, size, 12),
        "r": normal(4, *(dims.get(dim) or int(dim) for dim in shape.split(",") if dim)),
    }
    assert_same_three_ways(before, after, feeds)


LONG = 40
"""Statements of a region that is longer than usual and within the limits of a program."""


def test_long_region() -> None:
    lines = " ".join(f"t{k} = {SMOOTH[k % 3]}(t{k - 1})" for k in range(1, LONG))
    before = model(
        f"g (float[N,12] x) => (float[N,20] t{LONG - 1}) {{ p = MatMul(x, w) t0 = Neg(p) {lines} }}",
        w=normal(1, 12, 20),
    )
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert ops(after) == {"FusedGemm": 1}
    assert_same_three_ways(before, after, {"x": normal(2, 5, 12)})


@pytest.mark.parametrize("count", [5, 31, 40])
def test_region_of_many_operands(count: int) -> None:
    """Beyond the limit of a program's inputs there is no epilogue, or one of a part."""
    names = [f"r{k}" for k in range(count)]
    lines = " ".join(f"t{k} = Add({'p' if k == 0 else f't{k - 1}'}, {name})" for k, name in enumerate(names))
    text = f"g (float[N,12] x, {', '.join(f'float[N,20] {n}' for n in names)}) => (float[N,20] t{count - 1}) {{ p = MatMul(x, w) {lines} }}"
    before = model(text, w=normal(1, 12, 20))
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert ("Add" not in ops(after)) is (count < 32)
    feeds = {"x": normal(2, 5, 12)} | {name: normal(k, 5, 20) for k, name in enumerate(names)}
    assert_same_three_ways(before, after, feeds)


def test_attributes_tell_bodies_apart() -> None:
    """Two regions with one program and different ops share no body."""
    text = "g (float[N,12] x, float[N,12] z) => (float[N,20] y, float[N,20] t) {{ p = MatMul(x, w) y = {} q = MatMul(z, v) t = {} }}"
    before = model(
        text.format("LeakyRelu<alpha=0.1>(p)", "LeakyRelu<alpha=0.2>(q)"), w=normal(1, 12, 20), v=normal(2, 12, 20)
    )
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert ops(after) == {"FusedGemm": 2}
    assert len({node.overload for node in after.graph.node}) == 2
    assert_same_three_ways(before, after, {"x": normal(3, 4, 12), "z": normal(4, 4, 12)})
