"""What numpy moves lies where onnxruntime puts it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper as make

from onnxopt import ir
from onnxopt.runtime.evaluate import _run
from onnxopt.runtime.moves import MOVES, moved

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
X[0, 0, 0], X[1, 2, 3] = np.nan, -0.0
ONES = np.ones((1, 3, 1), np.int64)
EMPTY = np.zeros((0, 3), np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def _node(op_type: str, inputs: list[np.ndarray | None], opset: int = 17, **attributes: object) -> ir.Node:
    names = ["" if array is None else f"c{index}" for index, array in enumerate(inputs)]
    node = make.make_node(op_type, names, ["y"], **attributes)
    tensors = [
        onnx.numpy_helper.from_array(one, name) for one, name in zip(inputs, names, strict=True) if one is not None
    ]
    output = make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = make.make_graph([node], "g", [], [output], tensors)
    model = ir.load(make.make_model(graph, opset_imports=[make.make_opsetid("", opset)], ir_version=8))
    return model.graph[0]


FITTING = {
    "concat": ("Concat", [X, X[:, :1]], 17, {"axis": 1}),
    "concat_from_the_end": ("Concat", [X, X], 17, {"axis": -1}),
    "concat_of_nothing": ("Concat", [EMPTY, EMPTY], 17, {"axis": 0}),
    "flatten": ("Flatten", [X], 17, {}),
    "flatten_to_one_row": ("Flatten", [X], 17, {"axis": 0}),
    "flatten_from_the_end": ("Flatten", [X], 17, {"axis": -1}),
    "flatten_to_one_column": ("Flatten", [X], 17, {"axis": 3}),
    "gather": ("Gather", [X, ints(2, -1, 0)], 17, {"axis": 1}),
    "gather_a_scalar": ("Gather", [X, np.array(1)], 17, {}),
    "gather_a_scalar_of_a_vector": ("Gather", [ints(5, 6, 7), np.array(-2)], 17, {}),
    "reshape": ("Reshape", [X, ints(4, -1)], 17, {}),
    "reshape_keeps_a_dim": ("Reshape", [X, ints(0, -1)], 17, {}),
    "reshape_to_nothing": ("Reshape", [EMPTY, ints(3, 0)], 17, {"allowzero": 1}),
    "reshape_by_an_attribute": ("Reshape", [X], 4, {"shape": [6, 4]}),
    "slice": ("Slice", [X, ints(1), ints(3), ints(2)], 17, {}),
    "slice_of_first_axes": ("Slice", [X, ints(0, 1), ints(1, 99)], 17, {}),
    "slice_backwards": ("Slice", [X, ints(-1, 99), ints(-99, -3), ints(1, 2), ints(-1, -2)], 17, {}),
    "slice_backwards_from_before_the_beginning": (
        "Slice",
        [X, ints(-9, -4), ints(-99, -99), ints(1, 0), ints(-1, -2)],
        17,
        {},
    ),
    "slice_of_nothing": ("Slice", [X, ints(2), ints(1), ints(-1)], 17, {}),
    "slice_by_attributes": ("Slice", [X], 9, {"starts": [1], "ends": [2**31 - 1], "axes": [1]}),
    "squeeze": ("Squeeze", [ONES, ints(-1)], 17, {}),
    "squeeze_all": ("Squeeze", [ONES], 17, {}),
    "squeeze_by_an_attribute": ("Squeeze", [ONES], 11, {"axes": [0]}),
    "transpose": ("Transpose", [X], 17, {"perm": [2, 0, 1]}),
    "transpose_reverses": ("Transpose", [X], 17, {}),
    "unsqueeze": ("Unsqueeze", [X, ints(0, -1)], 17, {}),
    "unsqueeze_by_an_attribute": ("Unsqueeze", [X], 11, {"axes": [2]}),
    "halves": ("Transpose", [X.astype(np.float16)], 17, {}),
    "booleans": ("Reshape", [X > 3, ints(-1)], 17, {}),
}


@pytest.mark.parametrize("case", FITTING)
def test_moves_as_onnxruntime(case: str) -> None:
    op_type, inputs, opset, attributes = FITTING[case]
    node = _node(op_type, inputs, opset, **attributes)
    (wanted,) = _run([node], node.outputs, {}, {"": opset}, 8).values()
    (result,) = moved([node]).values()
    assert result.dtype == wanted.dtype
    np.testing.assert_array_equal(result, wanted, strict=True)
    np.testing.assert_array_equal(np.signbit(result.astype(np.float64)), np.signbit(wanted.astype(np.float64)))


def test_every_move_is_tested() -> None:
    assert {op_type for op_type, *_ in FITTING.values()} == set(MOVES)


UNFITTING = {
    "two_types": ("Concat", [X, ONES], {"axis": 0}),
    "index_out_of_range": ("Gather", [X, ints(5)], {}),
    "wrong_size": ("Reshape", [X, ints(5, 5)], {}),
    "dim_that_is_not_there": ("Reshape", [X, ints(2, 3, 4, 0)], {}),
    "dim_of_more_than_one": ("Squeeze", [X, ints(1)], {}),
    "no_axes": ("Squeeze", [ONES, ints()], {}),
    "step_of_zero": ("Slice", [X, ints(0), ints(1), ints(0), ints(0)], {}),
    "backwards_to_the_end": ("Slice", [X, ints(-1), ints(2**63 - 1), ints(0), ints(-1)], {}),
    "axis_twice": ("Slice", [X, ints(0, 0), ints(1, 1), ints(0, -3)], {}),
    "axis_out_of_range": ("Unsqueeze", [X, ints(7)], {}),
}


@pytest.mark.parametrize("case", UNFITTING)
def test_leaves_out_what_does_not_fit(case: str) -> None:
    op_type, inputs, attributes = UNFITTING[case]
    assert not moved([_node(op_type, inputs, **attributes)])


def test_computes_nothing() -> None:
    assert not moved([_node("Neg", [X])])


def test_follows_chains() -> None:
    text = "g () => (float[N] y) { a = Transpose (w) b = Neg (a) c = Flatten <axis = 0> (a) y = Flatten (b) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(X, "w"))
    model = ir.load(proto)
    assert {value.name for value in moved(list(model.graph))} == {"a", "c"}
