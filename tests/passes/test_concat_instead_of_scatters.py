"""ScatterNDs that fill a tensor become a Concat."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "concat_instead_of_scatters"
SHAPE = (2, 3, 4)
RNG = np.random.default_rng(0)


def places(axis: int, start: int, end: int, depth: int) -> np.ndarray:
    """The indices of a part of the tensor in order, of so many leading dims."""
    spans = [range(start, end) if one == axis else range(SHAPE[one]) for one in range(depth)]
    return np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1)


def filled(
    *written: np.ndarray, more: str = "", outputs: str = "float[2,3,4] y", first: str = "x", reduction: str = "none"
) -> onnx.ModelProto:
    lines, before = [], first
    for number in range(len(written)):
        result = "y" if number + 1 == len(written) else f"s{number}"
        lines.append(f'{result} = ScatterND<reduction = "{reduction}">({before}, i{number}, u{number})')
        before = result
    updates = ", ".join(
        f"float[{','.join(map(str, (*one.shape[:-1], *SHAPE[one.shape[-1] :])))}] u{n}" for n, one in enumerate(written)
    )
    text = f"g (float[2,3,4] x, {updates}) => ({outputs}) {{ {' '.join(lines)} {more} }}"
    return model(text, opset=18, **{f"i{number}": one.astype(np.int64) for number, one in enumerate(written)})


def feeds(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    shapes = {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in proto.graph.input}
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "written",
    [
        [places(1, step, step + 1, 2) for step in range(3)],
        [places(1, step, step + 1, 3) for step in (2, 0, 1)],
        [places(0, step, step + 1, 1) for step in range(2)],
        [places(2, 0, 3, 3), places(2, 3, 4, 3)],
        [places(1, 0, 1, 2) - (0, 3), places(1, 1, 3, 2)],
    ],
    ids=["rows", "any order", "first axis", "parts of several", "indices from the back"],
)
def test_joins_parts(written: list[np.ndarray]) -> None:
    before = filled(*written)
    after, _ = run_passes(before, PASS)
    assert set(op_list(after)) <= {"Reshape", "Concat"}
    assert_same(before, after, feeds(before), rtol=0, atol=0)


@pytest.mark.parametrize("back", [False, True])
def test_joins_parts_of_elements(back: bool) -> None:
    nodes = "a = ScatterElements<axis = 1>(x, i0, u0)  b = ScatterElements<axis = -2>(a, i1, u1)  y = ScatterElements<axis = 1>(b, i2, u1)"
    indices = {"i0": np.zeros((2, 1, 4)), "i1": np.full((2, 1, 4), 1), "i2": np.full((2, 1, 4), -1 if back else 2)}
    before = model(
        f"g (float[2,3,4] x, float[2,1,4] u0, float[2,1,4] u1) => (float[2,3,4] y) {{ {nodes} }}",
        opset=18,
        **{name: array.astype(np.int64) for name, array in indices.items()},
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Concat"]
    assert_same(before, after, feeds(before), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 1, 3), (1, 1, 4)])
def test_elements_of_a_part_of_the_other_dims_stay(shape: tuple[int, ...]) -> None:
    nodes = " ".join(
        f"s{step} = ScatterElements<axis = 1>({f's{step - 1}' if step else 'x'}, i{step}, u)" for step in range(3)
    )
    before = model(
        f"g (float[2,3,4] x, float[{','.join(map(str, shape))}] u) => (float[2,3,4] s2) {{ {nodes} }}",
        opset=18,
        **{f"i{step}": np.full(shape, step, np.int64) for step in range(3)},
    )
    assert op_list(run_passes(before, PASS)[0]) == ["ScatterElements"] * 3


def test_what_is_written_over_goes() -> None:
    rows = [places(1, step, step + 1, 2) for step in range(3)]
    before = filled(places(0, 0, 1, 1), *rows)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert "ScatterND" not in op_list(after)
    assert_same(before, after, feeds(before), rtol=0, atol=0)


ROWS = [places(1, step, step + 1, 2) for step in range(3)]


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (filled(*ROWS[:2]), "leave something of the tensor as it was"),
        (filled(ROWS[0], ROWS[1], ROWS[1]), "leave something of the tensor as it was"),
        (filled(ROWS[0], ROWS[1], places(2, 0, 1, 3)), "as it was|stays in part"),
        (filled(ROWS[0], ROWS[1], ROWS[2][::-1]), "does not write in order"),
        (filled(ROWS[0], ROWS[1], ROWS[2][:1]), "does not write all of the other dims|as it was|stays in part"),
        (filled(*ROWS, reduction="add"), "does more than to replace"),
    ],
    ids=["a part is left", "a part twice", "another axis", "other order", "not all of the other dims", "sums"],
)
def test_leaves(proto: onnx.ModelProto, reason: str) -> None:
    after, report = run_passes(proto, PASS, explain=True)
    assert op_list(after) == op_list(proto)
    reasons = [str(near.refusal) for near in report.near_misses]
    assert any(part in one for part in reason.split("|") for one in reasons), reasons


def test_tensors_that_others_read_before_they_are_full_stay() -> None:
    before = filled(*ROWS, more="z = Neg(s1)", outputs="float[2,3,4] y, float[2,3,4] z")
    after, _ = run_passes(before, PASS)
    assert op_list(after).count("ScatterND") == 3
