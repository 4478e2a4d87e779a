"""Random models: equal outputs after optimize, with the library and with the bodies alone. A failure prints its seed."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxopt
from onnxopt import ir
from onnxopt.pipeline import PassManager

pytestmark = pytest.mark.slow

MODELS = 500
BATCHES = 10
BASE_SEED = int(os.environ.get("ONNXOPT_RANDOM_SEED", "20261123"))

UNARY = (
    "Abs",
    "Exp",
    "Neg",
    "Relu",
    "Sigmoid",
    "Sqrt",
    "Tanh",
    "Erf",
    "Softplus",
    "HardSigmoid",
    "Identity",
    "Reciprocal",
    "Floor",
)
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min")


class Generator:
    """Builds one model of a dozen nodes, operand shapes kept in mind so that every node is valid."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values: list[tuple[str, tuple[int, ...]]] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def build(self) -> onnx.ModelProto:
        for index in range(int(self.rng.integers(1, 4))):
            shape = tuple(int(self.rng.integers(1, 6)) for _ in range(int(self.rng.integers(1, 5))))
            self.inputs.append(helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, shape))
            self.values.append((f"x{index}", shape))
        for _ in range(int(self.rng.integers(4, 16))):
            self.rng.choice([self.unary, self.binary, self.binary, self.constant, self.view, self.transpose, self.slice, self.concat, self.matmul, self.reduce, self.where, self.clip])()  # fmt: skip
        made = {name for name, _ in self.values}
        used = {name for node in self.nodes for name in node.input}
        outputs = [name for name, _ in self.values if name in made - used and not name.startswith("x")][-4:]
        outputs = outputs or [self.nodes[-1].output[0]] if self.nodes else []
        if not outputs:
            self.unary()
            outputs = [self.nodes[-1].output[0]]
        shapes = dict(self.values)
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs]
        graph = helper.make_graph(self.nodes, "random", self.inputs, infos, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    def pick(self) -> tuple[str, tuple[int, ...]]:
        return self.values[int(self.rng.integers(len(self.values)))]

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: object) -> None:
        name = f"v{len(self.values)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.values.append((name, shape))

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def unary(self) -> None:
        name, shape = self.pick()
        self.add(str(self.rng.choice(UNARY)), [name], shape)

    def binary(self) -> None:
        first, shape = self.pick()
        same = [name for name, other in self.values if other == shape]
        self.add(str(self.rng.choice(BINARY)), [first, str(self.rng.choice(same))], shape)

    def constant(self) -> None:
        name, shape = self.pick()
        small = tuple(1 if self.rng.random() < 0.5 else size for size in shape)[
            int(self.rng.integers(len(shape) + 1)) :
        ]
        array = self.rng.choice([0, 1, 2, 0.5, -1, 3.5], small).astype(np.float32)
        operands = [name, self.weight(np.asarray(array, np.float32))]
        if self.rng.random() < 0.5:
            operands.reverse()
        self.add(str(self.rng.choice(BINARY)), operands, shape)

    def view(self) -> None:
        name, shape = self.pick()
        size = int(np.prod(shape))
        target = [(size,), (1, size), (-1,), (*shape, 1), (1, *shape)][int(self.rng.integers(5))]
        actual = tuple(size if dim == -1 else dim for dim in target)
        self.add("Reshape", [name, self.weight(np.array(target, np.int64))], actual)

    def transpose(self) -> None:
        name, shape = self.pick()
        perm = [int(axis) for axis in self.rng.permutation(len(shape))]
        self.add("Transpose", [name], tuple(shape[axis] for axis in perm), perm=perm)

    def slice(self) -> None:
        name, shape = self.pick()
        axis = int(self.rng.integers(len(shape)))
        start = int(self.rng.integers(0, shape[axis]))
        bounds = [np.array([number], np.int64) for number in (start, 1 << 40, axis, 1)]
        self.add("Slice", [name, *map(self.weight, bounds)], (*shape[:axis], shape[axis] - start, *shape[axis + 1 :]))

    def concat(self) -> None:
        name, shape = self.pick()
        same = [other for other, one in self.values if one == shape]
        axis = int(self.rng.integers(len(shape)))
        self.add(
            "Concat",
            [name, str(self.rng.choice(same))],
            (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :]),
            axis=axis,
        )

    def matmul(self) -> None:
        name, shape = self.pick()
        columns = int(self.rng.integers(1, 6))
        weight = self.weight(self.rng.standard_normal((shape[-1], columns)).astype(np.float32))
        self.add("MatMul", [name, weight], (*shape[:-1], columns))

    def reduce(self) -> None:
        name, shape = self.pick()
        axis = int(self.rng.integers(len(shape)))
        axes = self.weight(np.array([axis], np.int64))
        self.add(str(self.rng.choice(["ReduceMean", "ReduceSum", "ReduceMax"])), [name, axes], (*shape[:axis], 1, *shape[axis + 1 :]))  # fmt: skip

    def where(self) -> None:
        name, shape = self.pick()
        other = str(self.rng.choice([one for one, size in self.values if size == shape]))
        condition = f"c{len(self.nodes)}"
        self.nodes.append(helper.make_node("Less", [name, other], [condition], name=f"n{len(self.nodes)}"))
        self.add("Where", [condition, name, other], shape)

    def clip(self) -> None:
        name, shape = self.pick()
        bounds = [self.weight(np.array(number, np.float32)) for number in (-1.0, 2.0)]
        self.add("Clip", [name, *bounds], shape)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], library: bool) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        onnxopt.register(options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def check(seed: int) -> None:
    model = Generator(seed).build()
    rng = np.random.default_rng(seed)
    feeds = {
        one.name: rng.standard_normal([dim.dim_value for dim in one.type.tensor_type.shape.dim]).astype(np.float32)
        for one in model.graph.input
    }
    truth = run(model, feeds, library=False)
    loaded = ir.load(model)
    PassManager("cpu", strict=True).run(loaded)
    optimized = ir.to_proto(loaded)
    for library in (True, False):
        for expected, actual in zip(truth, run(optimized, feeds, library), strict=True):
            assert expected.shape == actual.shape
            np.testing.assert_allclose(expected, actual, rtol=2e-4, atol=2e-4 * max(1.0, scale_of(expected)))


def scale_of(array: np.ndarray) -> float:
    finite = np.abs(array[np.isfinite(array)])
    return float(finite.max(initial=0.0)) if finite.size else 0.0


@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_models_give_the_same_outputs(batch: int) -> None:
    for number in range(MODELS // BATCHES):
        seed = BASE_SEED + batch * 1000 + number
        try:
            check(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed} fails; reproduce with check({seed}): {error}") from error
