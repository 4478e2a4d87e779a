"""Random arithmetic on a symbolic shape gives the same numbers after optimization, for sizes that the optimizer does not know."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

import helpers
import onnxopt

LENGTH = 12
SIZES = [(3, 5), (1, 1), (4, 4), (7, 2)]

OPS: list[str] = [
    "{y} = Add ({a}, {b})", "{y} = Sub ({a}, {b})", "{y} = Sub ({b}, {a})", "{y} = Mul ({a}, {b})", "{y} = Min ({a}, {b})", "{y} = Max ({b}, {a})",
    "{y} = Div ({a}, {divisor})", "{y} = Mod ({a}, {divisor})", "{y} = Mod <fmod = 1> ({a}, {divisor})", "{y} = Pow ({a}, {two})",
    "{y} = Neg ({a})", "{y} = Abs ({a})", "{y} = Sign ({a})", "{y} = CumSum ({a}, {zero})", "{y} = Clip ({a}, {minus}, {four})",
    "{y}_c = Less ({a}, {b}) {y} = Where ({y}_c, {a}, {b})", "{y}_c = Equal ({a}, {b}) {y} = Cast <to = 7> ({y}_c)",
    "{y}_c = Cast <to = 6> ({a}) {y} = Cast <to = 7> ({y}_c)", "{y}_c = Cast <to = 9> ({a}) {y} = Cast <to = 7> ({y}_c)",
    "{y}_c = Cast <to = 1> ({a}) {y}_d = Mul ({y}_c, {half}) {y}_e = Floor ({y}_d) {y} = Cast <to = 7> ({y}_e)",
    "{y}_c = ReduceSum ({a}) {y} = Add ({y}_c, {a})", "{y}_c = ReduceProd ({a}) {y} = Max ({y}_c, {a})", "{y}_c = ReduceMax ({a}) {y} = Sub ({y}_c, {a})",
    "{y}_c = Size (x) {y} = Add ({y}_c, {a})", "{y}_c = Gather ({a}, {last}) {y} = Sub ({a}, {y}_c)",
    "{y} = Gather ({a}, {indices})", "{y} = Slice ({a}, {backwards}, {least}, {axis}, {backwards})",
    "{y}_c, {y}_d = Split <axis = 0> ({a}, {halves}) {y} = Concat <axis = 0> ({y}_d, {y}_c)",
    "{y}_c = Tile ({a}, {twice}) {y} = Slice ({y}_c, {from}, {to})", "{y}_c = Reshape ({a}, {square}) {y}_d = Transpose ({y}_c) {y} = Reshape ({y}_d, {backwards})",
    "{y}_c = Unsqueeze ({a}, {axis}) {y} = Squeeze ({y}_c, {axis})", "{y}_c = Range ({zero}, {four}, {one}) {y} = Mul ({y}_c, {a})",
]  # fmt: skip
"""Statements that make a vector of four numbers of two others; in braces are names of values and of constants."""

CONSTANTS: dict[str, Callable[[np.random.Generator], object]] = {
    "divisor": lambda rng: rng.choice([-3, -2, -1, 1, 2, 3, 5], 4),
    "indices": lambda rng: rng.integers(-4, 4, 4),
    "two": lambda rng: [2], "zero": lambda rng: 0, "one": lambda rng: 1, "minus": lambda rng: -1, "four": lambda rng: 4, "last": lambda rng: -1,
    "half": lambda rng: np.float32(0.5), "backwards": lambda rng: [-1], "least": lambda rng: [-(2**63) + 1], "axis": lambda rng: [0],
    "halves": lambda rng: [1, 3], "twice": lambda rng: [2], "from": lambda rng: [2], "to": lambda rng: [6], "square": lambda rng: [2, 2],
}  # fmt: skip


def random_model(seed: int) -> onnx.ModelProto:
    """Statements over the shape of an input of two symbolic dims and over random numbers; every result is an output."""
    rng = np.random.default_rng(seed)
    names, body, weights = ["s"], ["s = Shape (x)"], {}
    for index in range(LENGTH):
        number, y = f"k{index}", f"v{index}"
        weights[number] = rng.integers(-3, 5, rng.choice([1, 4]))
        constants = {name: f"{name}{index}" for name in CONSTANTS}
        weights |= {constants[name]: make(rng) for name, make in CONSTANTS.items()}
        body.append(str(rng.choice(OPS)).format(y=y, a=rng.choice(names), b=rng.choice([*names, number]), **constants))
        names.append(y)
    arrays = {name: np.asarray(one, getattr(one, "dtype", np.int64)) for name, one in weights.items()}
    outputs = ", ".join(f"int64[4] {name}" for name in names[1:])
    return helpers.model(f"g (float[A, 2, B, 1] x) => ({outputs}) {{ {' '.join(body)} }}", **arrays)


@pytest.mark.parametrize("seed", range(100))
def test_numbers_stay(seed: int) -> None:
    proto = random_model(seed)
    feeds = [{"x": np.zeros((a, 2, b, 1), np.float32)} for a, b in SIZES]
    helpers.assert_same(proto, onnxopt.optimize(proto, target="generic", strict=True), feeds)
    known = onnxopt.optimize(proto, target="generic", dims={"A": 3, "B": 5}, strict=True)
    helpers.assert_same(proto, known, feeds[0])


def test_shapes_of_known_sizes_are_folded_whole() -> None:
    for seed in range(5):
        known = onnxopt.optimize(random_model(seed), target="generic", dims={"A": 3, "B": 5})
        assert {node.op_type for node in known.graph.node} <= {"Identity"}
