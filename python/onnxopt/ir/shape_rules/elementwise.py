"""Shape rules of element-wise ops, and of what keeps the shape of its input."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx_ir import DataType, Node

from onnxopt.ir import dims
from onnxopt.ir.dims import Dim
from onnxopt.ir.shape_rules.base import attribute, broadcast, dtype_at, integer, on, shape_at
from onnxopt.ir.shapes import Shape, ShapeEnv


def _elementwise_elements(env: ShapeEnv, node: Node, output: Shape | None) -> Shape | None:
    """Elements of an integer op over operands that are scalars or of the output's size."""
    operation = _ARITHMETIC.get(node.op_type)
    if operation is None or output is None or len(output) > 1 or len(node.inputs) != 2 or integer(node, "fmod", 0):
        return None
    left, right = env.elements(node.inputs[0]), env.elements(node.inputs[1])
    if left is None or right is None:
        return None
    size = max(len(left), len(right))
    if {len(left), len(right)} - {1, size}:
        return None
    left, right = (part * size if len(part) == 1 else part for part in (left, right))
    found = [operation(env, a, b) for a, b in zip(left, right, strict=True)]
    return None if None in found else tuple(found)  # type: ignore[arg-type]


def _divide(env: ShapeEnv, a: Dim, b: Dim) -> Dim | None:
    """Integer division as ONNX has it: towards zero, which is downwards where both are proved not negative."""
    if isinstance(a, int) and isinstance(b, int):
        return None if b == 0 else math.trunc(a / b) if abs(a) < 1 << 50 else None
    if env.bounds.prove_at_least(a, 0) and env.bounds.prove_at_least(b, 1):
        return dims.floordiv(a, b)
    return None


def _modulo(env: ShapeEnv, a: Dim, b: Dim) -> Dim | None:
    if isinstance(a, int) and isinstance(b, int):
        return a % b if b else None
    return dims.mod(a, b) if env.bounds.prove_at_least(a, 0) and env.bounds.prove_at_least(b, 1) else None


def _compare(verdict: bool | None) -> Dim | None:
    return None if verdict is None else int(verdict)


_ARITHMETIC: dict[str, Callable[[ShapeEnv, Dim, Dim], Dim | None]] = {
    "Add": lambda env, a, b: a + b,
    "Sub": lambda env, a, b: a - b,
    "Mul": lambda env, a, b: a * b,
    "Div": _divide,
    "Mod": _modulo,
    "Max": lambda env, a, b: dims.maximum(a, b),
    "Min": lambda env, a, b: dims.minimum(a, b),
    "Equal": lambda env, a, b: _compare(env.equal(a, b)),
    "Less": lambda env, a, b: _compare(_negate(env.bounds.prove_le(b, a))),
    "Greater": lambda env, a, b: _compare(_negate(env.bounds.prove_le(a, b))),
    "LessOrEqual": lambda env, a, b: _compare(env.bounds.prove_le(a, b)),
    "GreaterOrEqual": lambda env, a, b: _compare(env.bounds.prove_le(b, a)),
    "And": lambda env, a, b: int(bool(a) and bool(b)) if isinstance(a, int) and isinstance(b, int) else None,
    "Or": lambda env, a, b: int(bool(a) or bool(b)) if isinstance(a, int) and isinstance(b, int) else None,
}


def _negate(verdict: bool | None) -> bool | None:
    return None if verdict is None else not verdict


_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Hardmax Identity "
    "LeakyRelu Log LogSoftmax Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish "
    "Tan Tanh ThresholdedRelu BitwiseNot CumSum CumProd LpNormalization MeanVarianceNormalization InstanceNormalization "
    "GroupNormalization LRN ScatterElements ScatterND Scatter Trilu ReverseSequence RMSNormalization RotaryEmbedding TensorScatter"
)


@on(*_UNARY.split(), contrib=["Gelu", "FastGelu", "QuickGelu", "BiasGelu"])
def _same_as_input(env: ShapeEnv, node: Node) -> None:
    value = node.inputs[0] if node.inputs else None
    if value is None:
        return
    elements = None
    if node.op_type == "Identity":
        elements = env.elements(value)
        if env.dtype(value) is None and value.type is not None:
            node.outputs[0].type = value.type
    elif node.op_type in ("Neg", "Abs", "Not", "Sign"):
        elements = _unary_elements(node.op_type, env.elements(value))
    env.set(node.outputs[0], env.dtype(value), env.shape(value), elements)


def _unary_elements(op_type: str, elements: Shape | None) -> Shape | None:
    if elements is None:
        return None
    if op_type == "Neg":
        return tuple(0 - one for one in elements)
    if any(not isinstance(one, int) for one in elements):
        return None
    numbers: list[int] = [one for one in elements if isinstance(one, int)]
    if op_type == "Abs":
        return tuple(abs(one) for one in numbers)
    if op_type == "Not":
        return tuple(int(not one) for one in numbers)
    return tuple((one > 0) - (one < 0) for one in numbers)


@on(
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Mod",
    "Pow",
    "PRelu",
    "Max",
    "Min",
    "Mean",
    "Sum",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
)
def _binary(env: ShapeEnv, node: Node) -> None:
    _broadcasting(env, node, dtype_at(env, node))


@on("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor")
def _comparison(env: ShapeEnv, node: Node) -> None:
    _broadcasting(env, node, DataType.BOOL)


def _broadcasting(env: ShapeEnv, node: Node, dtype: DataType | None) -> None:
    shapes: list[Shape] = []
    for value in node.inputs:
        shape = None if value is None else env.shape(value)
        if shape is None:
            return env.set(node.outputs[0], dtype, None)
        shapes.append(shape)
    if "axis" in node.attributes or "broadcast" in node.attributes:  # opset 6 and before
        return env.set(node.outputs[0], dtype, shapes[0])
    shape = broadcast(env, shapes)
    return env.set(node.outputs[0], dtype, shape, _elementwise_elements(env, node, shape))


@on("IsNaN", "IsInf")
def _predicate(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], DataType.BOOL, shape_at(env, node, 0))


@on("Where")
def _where(env: ShapeEnv, node: Node) -> None:
    shapes = [shape_at(env, node, index) for index in range(3)]
    dtype = dtype_at(env, node, 1) or dtype_at(env, node, 2)
    if any(shape is None for shape in shapes):
        return env.set(node.outputs[0], dtype, None)
    shape = broadcast(env, [one for one in shapes if one is not None])
    parts = [env.elements(value) for value in node.inputs]
    elements = None
    if len(shape) <= 1 and all(part is not None for part in parts):
        size = max(len(part) for part in parts if part is not None)
        full = [part * size if len(part) == 1 else part for part in parts if part is not None]
        if all(len(part) == size for part in full) and all(isinstance(one, int) for one in full[0]):
            elements = tuple(a if condition else b for condition, a, b in zip(*full, strict=True))
    return env.set(node.outputs[0], dtype, shape, elements)


@on("Cast")
def _cast(env: ShapeEnv, node: Node) -> None:
    to = attribute(node, "to")
    dtype = DataType(to) if isinstance(to, int) else None
    value = node.inputs[0]
    if value is None:
        return
    elements = env.elements(value) if dtype in (DataType.INT64, DataType.INT32) else None
    if dtype is DataType.BOOL and (known := env.elements(value)) and all(isinstance(one, int) for one in known):
        elements = tuple(int(one != 0) for one in known)
    env.set(node.outputs[0], dtype, env.shape(value), elements)


@on("CastLike")
def _cast_like(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], dtype_at(env, node, 1), shape_at(env, node, 0))


@on("Dropout")
def _dropout(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], dtype_at(env, node), shape_at(env, node, 0))
    if len(node.outputs) > 1:
        env.set(node.outputs[1], DataType.BOOL if env.opset >= 10 else dtype_at(env, node), shape_at(env, node, 0))


@on("BatchNormalization")
def _batch_normalization(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], dtype_at(env, node), shape_at(env, node, 0))
    for index, value in enumerate(node.outputs[1:3]):
        env.set(value, dtype_at(env, node, 3 + index), shape_at(env, node, 3 + index))


@on("LayerNormalization")
def _layer_normalization(env: ShapeEnv, node: Node) -> None:
    shape = shape_at(env, node, 0)
    env.set(node.outputs[0], dtype_at(env, node), shape)
    if len(node.outputs) > 1 and shape is not None:
        axis = integer(node, "axis", -1) % max(len(shape), 1)
        reduced = (*shape[:axis], *(1,) * (len(shape) - axis))
        stash = DataType(integer(node, "stash_type", 1))
        for value in node.outputs[1:]:
            env.set(value, stash, reduced)


@on("QuantizeLinear")
def _quantize(env: ShapeEnv, node: Node) -> None:
    dtype = dtype_at(env, node, 2)
    if dtype is None:
        declared = integer(node, "output_dtype", 0)
        dtype = DataType(declared) if declared else DataType.UINT8
    env.set(node.outputs[0], dtype, shape_at(env, node, 0))


@on("DequantizeLinear")
def _dequantize(env: ShapeEnv, node: Node) -> None:
    declared = integer(node, "output_dtype", 0)
    env.set(node.outputs[0], DataType(declared) if declared else dtype_at(env, node, 1), shape_at(env, node, 0))


@on("DynamicQuantizeLinear")
def _dynamic_quantize(env: ShapeEnv, node: Node) -> None:
    kinds = ((DataType.UINT8, shape_at(env, node, 0)), (DataType.FLOAT, ()), (DataType.UINT8, ()))
    for value, (dtype, shape) in zip(node.outputs, kinds, strict=False):
        env.set(value, dtype, shape)
