"""Shape rules by op type: what the ONNX standard says of output types and shapes, over symbolic dims.

A rule gets the environment and a node and sets what it can prove; what it cannot is left unknown. The elements of small integer
tensors are followed through shape arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx_ir import AttributeType, DataType, Node, Value

from onnxopt.ir import constants, dims
from onnxopt.ir.dims import Dim, Expr
from onnxopt.ir.shapes import MAX_ELEMENTS, Shape, ShapeEnv

Rule = Callable[[ShapeEnv, Node], None]

OPEN_END = 10**9
"""No dim is as large: exporters write the end of the tensor as this number, or as the largest int32 or int64."""

RULES: dict[str, Rule] = {}
CONTRIB: dict[str, Rule] = {}


def _on(*op_types: str) -> Callable[[Rule], Rule]:
    def file(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(op_types, rule))
        return rule

    return file


# --- helpers -------------------------------------------------------------------------------------------------------
def _attr(node: Node, name: str, default: object = None) -> object:
    found = node.attributes.get(name)
    return default if found is None or found.is_ref() else found.value


def _int(node: Node, name: str, default: int) -> int:
    value = _attr(node, name, default)
    return value if isinstance(value, int) else default


def _ints(node: Node, name: str) -> tuple[int, ...] | None:
    value = _attr(node, name)
    return tuple(value) if isinstance(value, (list, tuple)) else None


def _input(node: Node, index: int) -> Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _shape(env: ShapeEnv, node: Node, index: int) -> Shape | None:
    value = _input(node, index)
    return None if value is None else env.shape(value)


def _dtype(env: ShapeEnv, node: Node, index: int = 0) -> DataType | None:
    value = _input(node, index)
    return None if value is None else env.dtype(value)


def _integers(env: ShapeEnv, node: Node, attribute: str, index: int) -> tuple[int, ...] | None:
    """Integers that are an attribute in old opsets and an input in new ones."""
    found = _ints(node, attribute)
    return found if found is not None else env.integers(_input(node, index))


def _given(node: Node, attribute: str, index: int) -> bool:
    return attribute in node.attributes or _input(node, index) is not None


def _unknown(rank: int) -> Shape:
    return tuple(dims.fresh() for _ in range(rank))


def broadcast(env: ShapeEnv, shapes: Sequence[Shape]) -> Shape:
    """The shape of a numpy-style broadcast; a dim that cannot be told is a fresh symbol."""
    first = shapes[0]
    if all(shape == first for shape in shapes[1:]):
        return first
    rank = max(map(len, shapes))
    return tuple(
        _broadcast_dim(env, [shape[axis - rank + len(shape)] for shape in shapes if axis >= rank - len(shape)])
        for axis in range(rank)
    )


def _broadcast_dim(env: ShapeEnv, sizes: list[Dim]) -> Dim:
    different = [size for size in dict.fromkeys(sizes) if size != 1]
    if len(different) <= 1:
        return different[0] if different else 1
    numbers = [size for size in different if isinstance(size, int)]
    if numbers:
        return numbers[0]
    larger = [size for size in different if env.bounds.prove_at_least(size, 2)]
    if larger:
        return larger[0]
    # Of a size and the minimum of it and another, either both are the same or the minimum is 1.
    whole = [size for size in different if all(one is size or size in dims.limits(one) for one in different)]
    return whole[0] if whole else dims.fresh()


def _elementwise_elements(env: ShapeEnv, node: Node, output: Shape | None) -> Shape | None:
    """Elements of an integer op over operands that are scalars or of the output's size."""
    operation = _ARITHMETIC.get(node.op_type)
    if operation is None or output is None or len(output) > 1 or len(node.inputs) != 2 or _int(node, "fmod", 0):
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


# --- element-wise --------------------------------------------------------------------------------------------------
_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Hardmax Identity "
    "LeakyRelu Log LogSoftmax Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish "
    "Tan Tanh ThresholdedRelu BitwiseNot CumSum CumProd LpNormalization MeanVarianceNormalization InstanceNormalization "
    "GroupNormalization LRN ScatterElements ScatterND Scatter Trilu ReverseSequence RMSNormalization RotaryEmbedding TensorScatter"
)


@_on(*_UNARY.split())
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


@_on(
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
    _broadcasting(env, node, _dtype(env, node))


@_on("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor")
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


@_on("IsNaN", "IsInf")
def _predicate(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], DataType.BOOL, _shape(env, node, 0))


@_on("Where")
def _where(env: ShapeEnv, node: Node) -> None:
    shapes = [_shape(env, node, index) for index in range(3)]
    dtype = _dtype(env, node, 1) or _dtype(env, node, 2)
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


@_on("Cast")
def _cast(env: ShapeEnv, node: Node) -> None:
    to = _attr(node, "to")
    dtype = DataType(to) if isinstance(to, int) else None
    value = node.inputs[0]
    if value is None:
        return
    elements = env.elements(value) if dtype in (DataType.INT64, DataType.INT32) else None
    if dtype is DataType.BOOL and (known := env.elements(value)) and all(isinstance(one, int) for one in known):
        elements = tuple(int(one != 0) for one in known)
    env.set(node.outputs[0], dtype, env.shape(value), elements)


@_on("CastLike")
def _cast_like(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], _dtype(env, node, 1), _shape(env, node, 0))


@_on("Dropout")
def _dropout(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], _dtype(env, node), _shape(env, node, 0))
    if len(node.outputs) > 1:
        env.set(node.outputs[1], DataType.BOOL if env.opset >= 10 else _dtype(env, node), _shape(env, node, 0))


@_on("BatchNormalization")
def _batch_normalization(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], _dtype(env, node), _shape(env, node, 0))
    for index, value in enumerate(node.outputs[1:3]):
        env.set(value, _dtype(env, node, 3 + index), _shape(env, node, 3 + index))


@_on("LayerNormalization")
def _layer_normalization(env: ShapeEnv, node: Node) -> None:
    shape = _shape(env, node, 0)
    env.set(node.outputs[0], _dtype(env, node), shape)
    if len(node.outputs) > 1 and shape is not None:
        axis = _int(node, "axis", -1) % max(len(shape), 1)
        reduced = (*shape[:axis], *(1,) * (len(shape) - axis))
        stash = DataType(_int(node, "stash_type", 1))
        for value in node.outputs[1:]:
            env.set(value, stash, reduced)


@_on("QuantizeLinear")
def _quantize(env: ShapeEnv, node: Node) -> None:
    dtype = _dtype(env, node, 2)
    if dtype is None:
        declared = _int(node, "output_dtype", 0)
        dtype = DataType(declared) if declared else DataType.UINT8
    env.set(node.outputs[0], dtype, _shape(env, node, 0))


@_on("DequantizeLinear")
def _dequantize(env: ShapeEnv, node: Node) -> None:
    declared = _int(node, "output_dtype", 0)
    env.set(node.outputs[0], DataType(declared) if declared else _dtype(env, node, 1), _shape(env, node, 0))


@_on("DynamicQuantizeLinear")
def _dynamic_quantize(env: ShapeEnv, node: Node) -> None:
    kinds = ((DataType.UINT8, _shape(env, node, 0)), (DataType.FLOAT, ()), (DataType.UINT8, ()))
    for value, (dtype, shape) in zip(node.outputs, kinds, strict=False):
        env.set(value, dtype, shape)


# --- shape arithmetic ----------------------------------------------------------------------------------------------
@_on("Constant")
def _constant(env: ShapeEnv, node: Node) -> None:
    env.set_constant(node.outputs[0])


@_on("Shape")
def _shape_op(env: ShapeEnv, node: Node) -> None:
    shape = _shape(env, node, 0)
    if shape is None:
        return env.set(node.outputs[0], DataType.INT64, _unknown(1))
    end = _attr(node, "end")
    part = shape[_int(node, "start", 0) : end if isinstance(end, int) else None]
    return env.set(node.outputs[0], DataType.INT64, (len(part),), part)


@_on("Size")
def _size(env: ShapeEnv, node: Node) -> None:
    shape = _shape(env, node, 0)
    env.set(node.outputs[0], DataType.INT64, (), None if shape is None else (dims.product(shape),))


@_on("Gather")
def _gather(env: ShapeEnv, node: Node) -> None:
    data, indices = _shape(env, node, 0), _shape(env, node, 1)
    if data is None or indices is None or not data:
        return env.set(node.outputs[0], _dtype(env, node), None)
    axis = _int(node, "axis", 0) % len(data)
    elements, wanted = env.elements(node.inputs[0]), env.integers(node.inputs[1])
    found = None
    if (
        elements is not None
        and wanted is not None
        and len(data) == 1
        and all(-len(elements) <= index < len(elements) for index in wanted)
    ):
        found = tuple(elements[index] for index in wanted)
    return env.set(node.outputs[0], _dtype(env, node), (*data[:axis], *indices, *data[axis + 1 :]), found)


@_on("Concat")
def _concat(env: ShapeEnv, node: Node) -> None:
    shapes = [None if value is None else env.shape(value) for value in node.inputs]
    known = next((shape for shape in shapes if shape is not None), None)
    if known is None or not known:
        return env.set(node.outputs[0], _dtype(env, node), None)
    axis = _int(node, "axis", 1) % len(known)
    result = list(known)
    total: Dim = 0
    for shape in shapes:
        if shape is None or len(shape) != len(known):
            result[axis] = dims.fresh()
            break
        total = total + shape[axis]
    else:
        result[axis] = total
        for position in range(len(known)):
            if position != axis:
                sizes = [shape[position] for shape in shapes if shape is not None]
                result[position] = next((size for size in sizes if isinstance(size, int)), sizes[0])
    elements = None
    if len(known) == 1:
        parts = [env.elements(value) for value in node.inputs]
        if all(part is not None for part in parts):
            elements = tuple(one for part in parts if part is not None for one in part)
    return env.set(node.outputs[0], _dtype(env, node), result, elements)


@_on("Unsqueeze")
def _unsqueeze(env: ShapeEnv, node: Node) -> None:
    shape, axes = _shape(env, node, 0), _integers(env, node, "axes", 1)
    elements = env.elements(node.inputs[0])
    if shape is None or axes is None:
        return env.set(node.outputs[0], _dtype(env, node), None, elements)
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes}
    rest = iter(shape)
    result = [1 if axis in new else next(rest, 1) for axis in range(rank)]
    return env.set(node.outputs[0], _dtype(env, node), result, elements)


@_on("Squeeze")
def _squeeze(env: ShapeEnv, node: Node) -> None:
    shape, axes = _shape(env, node, 0), _integers(env, node, "axes", 1)
    elements = env.elements(node.inputs[0])
    if shape is None or (axes is None and _given(node, "axes", 1)):
        return env.set(node.outputs[0], _dtype(env, node), None, elements)
    if axes is None:
        if not all(isinstance(dim, int) or env.bounds.prove_at_least(dim, 2) for dim in shape):
            return env.set(node.outputs[0], _dtype(env, node), None, elements)
        return env.set(node.outputs[0], _dtype(env, node), [dim for dim in shape if dim != 1], elements)
    gone = {axis % len(shape) for axis in axes} if shape else set()
    return env.set(
        node.outputs[0], _dtype(env, node), [dim for axis, dim in enumerate(shape) if axis not in gone], elements
    )


@_on("Reshape")
def _reshape(env: ShapeEnv, node: Node) -> None:
    shape = _shape(env, node, 0)
    target = _ints(node, "shape") or env.elements(_input(node, 1))
    dtype = _dtype(env, node)
    if target is None:
        count = _shape(env, node, 1)
        rank = count[0] if count else None
        return env.set(
            node.outputs[0], dtype, _unknown(rank) if isinstance(rank, int) else None, env.elements(node.inputs[0])
        )
    return env.set(
        node.outputs[0],
        dtype,
        reshaped(env, shape, target, bool(_int(node, "allowzero", 0))),
        env.elements(node.inputs[0]),
    )


def reshaped(env: ShapeEnv, shape: Shape | None, target: Shape, allowzero: bool) -> Shape:
    """The shape that Reshape makes of `shape` for a target with 0 (copy) and -1 (the rest)."""
    result: list[Dim] = []
    rest: int | None = None
    for index, size in enumerate(target):
        if size == 0 and not allowzero:
            result.append(shape[index] if shape is not None and index < len(shape) else dims.fresh())
        elif size == -1:
            rest = index
            result.append(1)
        elif isinstance(size, int) or _is_copied(shape, index, size) or env.bounds.prove_at_least(size, 1):
            result.append(size)
        else:
            result.append(dims.fresh())
    if rest is not None:
        result[rest] = _remaining(shape, result)
    return tuple(result)


def _is_copied(shape: Shape | None, index: int, size: Dim) -> bool:
    """Whether a target spells the input's dim at the same position: should it be 0, it still means that dim."""
    return shape is not None and index < len(shape) and shape[index] == size


def _remaining(shape: Shape | None, others: list[Dim]) -> Dim:
    if shape is None:
        return dims.fresh()
    total, taken = dims.product(shape), dims.product(tuple(others))
    if isinstance(total, int) and isinstance(taken, int):
        return total // taken if taken else dims.fresh()
    # Dims that stand on both sides cancel, so that N*S*768 over N*768 is S.
    quotient = dims.floordiv(total, taken)
    return quotient if not _has_floor(quotient) else dims.fresh()


def _has_floor(dim: Dim) -> bool:
    return isinstance(dim, Expr) and any(
        not isinstance(atom, str) and atom[0] == "floor" for monomial, _ in dim.terms for atom in monomial
    )


@_on("Flatten")
def _flatten(env: ShapeEnv, node: Node) -> None:
    shape = _shape(env, node, 0)
    if shape is None:
        return env.set(node.outputs[0], _dtype(env, node), _unknown(2))
    axis = _int(node, "axis", 1)
    axis += len(shape) if axis < 0 else 0
    return env.set(node.outputs[0], _dtype(env, node), (dims.product(shape[:axis]), dims.product(shape[axis:])))


@_on("Transpose")
def _transpose(env: ShapeEnv, node: Node) -> None:
    shape = _shape(env, node, 0)
    if shape is None:
        return env.set(node.outputs[0], _dtype(env, node), None)
    perm = _ints(node, "perm") or tuple(reversed(range(len(shape))))
    if sorted(perm) != list(range(len(shape))):
        return env.set(node.outputs[0], _dtype(env, node), None)
    grid = _grid(env.elements(node.inputs[0]), shape)
    elements = None if grid is None else tuple(grid.transpose(perm).reshape(-1))
    return env.set(node.outputs[0], _dtype(env, node), [shape[axis] for axis in perm], elements)


def _grid(elements: Shape | None, shape: Shape) -> np.ndarray | None:
    """Elements in the places that they have in the tensor, None where they or its shape are not known."""
    sizes = [dim for dim in shape if isinstance(dim, int)]
    if elements is None or len(sizes) != len(shape) or math.prod(sizes) != len(elements):
        return None
    grid = np.empty(len(elements), object)
    grid[:] = elements
    return grid.reshape(sizes)


@_on("Expand")
def _expand(env: ShapeEnv, node: Node) -> None:
    shape, target = _shape(env, node, 0), env.elements(_input(node, 1))
    if shape is None or target is None:
        count = _shape(env, node, 1)
        rank = count[0] if count and shape is not None else None
        known = _unknown(max(rank, len(shape))) if isinstance(rank, int) and shape is not None else None
        return env.set(node.outputs[0], _dtype(env, node), known)
    result = broadcast(env, [shape, target])
    elements = env.elements(node.inputs[0])
    spread = (
        elements * result[0]  # type: ignore[operator]
        if elements and len(elements) == 1 and len(result) == 1 and _small(result[0])
        else None
    )
    return env.set(node.outputs[0], _dtype(env, node), result, spread)


def _small(dim: Dim) -> bool:
    return isinstance(dim, int) and dim <= MAX_ELEMENTS


@_on("Tile")
def _tile(env: ShapeEnv, node: Node) -> None:
    shape, repeats = _shape(env, node, 0), env.elements(_input(node, 1))
    if shape is None:
        return env.set(node.outputs[0], _dtype(env, node), None)
    if repeats is None or len(repeats) != len(shape):
        return env.set(node.outputs[0], _dtype(env, node), _unknown(len(shape)))
    return env.set(node.outputs[0], _dtype(env, node), [a * b for a, b in zip(shape, repeats, strict=True)])


@_on("ConstantOfShape")
def _constant_of_shape(env: ShapeEnv, node: Node) -> None:
    attr = node.attributes.get("value")
    dtype, fill = DataType.FLOAT, None
    if attr is not None and not attr.is_ref() and attr.type == AttributeType.TENSOR:
        tensor = attr.as_tensor()
        dtype = tensor.dtype
        if dtype in (DataType.INT64, DataType.INT32, DataType.BOOL) and tensor.size == 1:
            fill = int(tensor.numpy().reshape(-1)[0])
    shape = env.elements(node.inputs[0])
    if shape is None:
        count = _shape(env, node, 0)
        rank = count[0] if count else None
        return env.set(node.outputs[0], dtype, _unknown(rank) if isinstance(rank, int) else None)
    elements = None
    if fill is not None and len(shape) <= 1 and all(map(_small, shape)):
        elements = (fill,) * (shape[0] if shape else 1)  # type: ignore[operator]
    return env.set(node.outputs[0], dtype, shape, elements)


@_on("Range")
def _range(env: ShapeEnv, node: Node) -> None:
    parts = [env.elements(value) for value in node.inputs]
    dtype = _dtype(env, node)
    if not all(part is not None and len(part) == 1 for part in parts):
        return env.set(node.outputs[0], dtype, _unknown(1))
    start, limit, step = (part[0] for part in parts if part is not None)
    if isinstance(start, int) and isinstance(limit, int) and isinstance(step, int) and step:
        count = len(range(start, limit, step))
        numbers = tuple(range(start, limit, step)) if count <= MAX_ELEMENTS else None
        return env.set(node.outputs[0], dtype, (count,), numbers)
    length = limit - start
    if step == 1 and env.bounds.prove_at_least(length, 0):
        return env.set(node.outputs[0], dtype, (length,))
    return env.set(node.outputs[0], dtype, _unknown(1))


@_on("Slice")
def _slice(env: ShapeEnv, node: Node) -> None:
    shape = _shape(env, node, 0)
    if shape is None:
        return env.set(node.outputs[0], _dtype(env, node), None)
    bounds = slice_bounds(env, node, len(shape))
    if bounds is None:
        axes = _integers(env, node, "axes", 3)
        cut = {axis % len(shape) for axis in axes} if axes is not None and shape else set(range(len(shape)))
        return env.set(
            node.outputs[0], _dtype(env, node), [dims.fresh() if axis in cut else dim for axis, dim in enumerate(shape)]
        )
    result = list(shape)
    for axis, start, end, step in bounds:
        result[axis] = slice_length(env, shape[axis], start, end, step)
    return env.set(
        node.outputs[0], _dtype(env, node), result, _sliced(_grid(env.elements(node.inputs[0]), shape), bounds)
    )


def _sliced(grid: np.ndarray | None, bounds: list[tuple[int, Dim, Dim, int]]) -> Shape | None:
    if grid is None:
        return None
    for axis, start, end, step in bounds:
        if not isinstance(start, int) or not isinstance(end, int):
            return None
        indices = taken(grid.shape[axis], start, end, step)
        if indices is None:
            return None
        grid = grid.take(indices, axis)
    return tuple(grid.reshape(-1))


_TO_THE_END = frozenset({2**31 - 1, 2**63 - 1})


def taken(size: int, start: int, end: int, step: int) -> range | None:
    """The indices that a slice of an axis keeps. Unlike in Python, a start before the beginning is the beginning for steps backwards too.

    None for a slice backwards to the largest integer, which runtimes understand differently.
    """
    if step < 0 and end in _TO_THE_END:
        return None
    if size == 0:
        return range(0)
    first = min(max(start + size if start < 0 else start, 0), size if step > 0 else size - 1)
    stop = min(max(end + size if end < 0 else end, 0 if step > 0 else -1), size)
    return range(first, stop, step)


def slice_bounds(env: ShapeEnv, node: Node, rank: int) -> list[tuple[int, Dim, Dim, int]] | None:
    """(axis, start, end, step) of each sliced axis; None where axes or steps are unknown."""
    if "starts" in node.attributes:
        starts: Shape | None = _ints(node, "starts")
        ends: Shape | None = _ints(node, "ends")
        axes, steps = _ints(node, "axes"), None
        has_axes, has_steps = axes is not None, False
    else:
        starts, ends = env.elements(_input(node, 1)), env.elements(_input(node, 2))
        axes, steps = env.integers(_input(node, 3)), env.integers(_input(node, 4))
        has_axes, has_steps = _input(node, 3) is not None, _input(node, 4) is not None
    if starts is None or ends is None or (has_axes and axes is None) or (has_steps and steps is None):
        return None
    axes = axes if axes is not None else tuple(range(len(starts)))
    steps = steps if steps is not None else (1,) * len(starts)
    if (
        not len(starts) == len(ends) == len(axes) == len(steps)
        or any(not -rank <= axis < rank for axis in axes)
        or 0 in steps
    ):
        return None
    return [(axis % rank, start, end, step) for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)]


def slice_length(env: ShapeEnv, size: Dim, start: Dim, end: Dim, step: int) -> Dim:
    """How many elements a slice keeps."""
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        indices = taken(size, start, end, step)
        return dims.fresh() if indices is None else len(indices)
    if step != 1:
        return dims.fresh()
    low_end = _clamped(env, start, size)
    high_end = _clamped(env, end, size)
    if low_end is None or high_end is None:
        return dims.fresh()
    length = high_end - low_end
    return length if env.bounds.prove_at_least(length, 0) else dims.fresh()


def _clamped(env: ShapeEnv, index: Dim, size: Dim) -> Dim | None:
    """The position that a start or end index means, between 0 and `size`; None where that cannot be told."""
    if isinstance(index, int) and index < 0:
        position = size + index
        return position if env.bounds.prove_at_least(position, 0) else None
    if env.bounds.prove_at_least(index, 0) is not True:
        return None
    if env.bounds.prove_le(index, size):
        return index
    if env.bounds.prove_le(size, index) or (isinstance(index, int) and index >= OPEN_END):
        return size
    return dims.minimum(index, size)


@_on("Split")
def _split(env: ShapeEnv, node: Node) -> None:
    shape, dtype = _shape(env, node, 0), _dtype(env, node)
    if not shape:
        for value in node.outputs:
            env.set(value, dtype, None)
        return
    axis, count = _int(node, "axis", 0) % len(shape), len(node.outputs)
    sizes: Shape | None = _ints(node, "split") or env.elements(_input(node, 1))
    if sizes is None and not _given(node, "split", 1):
        whole = shape[axis]
        if isinstance(whole, int):
            chunk = -(-whole // count)
            sizes = tuple(min(chunk, max(whole - chunk * index, 0)) for index in range(count))
        else:
            sizes = (dims.floordiv(whole, count),) * count if dims.mod(whole, count) == 0 else None
    elements, position = env.elements(node.inputs[0]), 0
    for index, value in enumerate(node.outputs):
        size = sizes[index] if sizes is not None and index < len(sizes) else dims.fresh()
        part = None
        if elements is not None and len(shape) == 1 and isinstance(size, int):
            part, position = elements[position : position + size], position + size
        else:
            elements = None
        env.set(value, dtype, (*shape[:axis], size, *shape[axis + 1 :]), part)


@_on("Pad")
def _pad(env: ShapeEnv, node: Node) -> None:
    shape = _shape(env, node, 0)
    pads: Shape | None = _ints(node, "pads") or env.elements(_input(node, 1))
    axes = env.integers(_input(node, 3))
    if shape is None:
        return env.set(node.outputs[0], _dtype(env, node), None)
    if pads is None or (_input(node, 3) is not None and axes is None):
        return env.set(node.outputs[0], _dtype(env, node), _unknown(len(shape)))
    chosen = [axis % len(shape) for axis in axes] if axes is not None else list(range(len(shape)))
    if len(pads) != 2 * len(chosen):
        return env.set(node.outputs[0], _dtype(env, node), _unknown(len(shape)))
    result = list(shape)
    for index, axis in enumerate(chosen):
        result[axis] = result[axis] + pads[index] + pads[index + len(chosen)]
    return env.set(node.outputs[0], _dtype(env, node), result)


# --- reductions ----------------------------------------------------------------------------------------------------
_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)


@_on(*_REDUCTIONS.split())
def _reduce(env: ShapeEnv, node: Node) -> None:
    shape, axes = _shape(env, node, 0), _integers(env, node, "axes", 1)
    dtype, keep = _dtype(env, node), bool(_int(node, "keepdims", 1))
    if shape is None or (axes is None and _given(node, "axes", 1)):
        return env.set(node.outputs[0], dtype, _unknown(len(shape)) if shape is not None and keep else None)
    if not axes:
        if _int(node, "noop_with_empty_axes", 0):
            return env.set(node.outputs[0], dtype, shape)
        axes = tuple(range(len(shape)))
    elements = env.elements(node.inputs[0])
    total = None
    if elements is not None and len(shape) == 1 and node.op_type in ("ReduceProd", "ReduceSum"):
        total = (dims.product(elements),) if node.op_type == "ReduceProd" else (sum(elements, start=0),)
    gone = {axis % len(shape) for axis in axes} if shape else set()
    result = [1 if axis in gone else dim for axis, dim in enumerate(shape) if keep or axis not in gone]
    return env.set(node.outputs[0], dtype, result, total)


@_on("ArgMax", "ArgMin")
def _arg_reduce(env: ShapeEnv, node: Node) -> None:
    shape = _shape(env, node, 0)
    if not shape:
        return env.set(node.outputs[0], DataType.INT64, shape)
    axis = _int(node, "axis", 0) % len(shape)
    middle = (1,) if _int(node, "keepdims", 1) else ()
    return env.set(node.outputs[0], DataType.INT64, (*shape[:axis], *middle, *shape[axis + 1 :]))


@_on("TopK")
def _top_k(env: ShapeEnv, node: Node) -> None:
    shape = _shape(env, node, 0)
    count: Shape | None = env.elements(_input(node, 1)) if _input(node, 1) is not None else (_int(node, "k", 0),)
    result = None
    if shape:
        axis = _int(node, "axis", -1) % len(shape)
        result = (*shape[:axis], count[0] if count else dims.fresh(), *shape[axis + 1 :])
    env.set(node.outputs[0], _dtype(env, node), result)
    if len(node.outputs) > 1:
        env.set(node.outputs[1], DataType.INT64, result)


# --- indexing ------------------------------------------------------------------------------------------------------
@_on("GatherElements")
def _gather_elements(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], _dtype(env, node), _shape(env, node, 1))


@_on("GatherND")
def _gather_nd(env: ShapeEnv, node: Node) -> None:
    data, indices = _shape(env, node, 0), _shape(env, node, 1)
    result = None
    if data is not None and indices and isinstance(indices[-1], int):
        result = (*indices[:-1], *data[_int(node, "batch_dims", 0) + indices[-1] :])
    env.set(node.outputs[0], _dtype(env, node), result)


@_on("NonZero")
def _non_zero(env: ShapeEnv, node: Node) -> None:
    rank = _shape(env, node, 0)
    env.set(node.outputs[0], DataType.INT64, None if rank is None else (max(len(rank), 1), dims.fresh()))


@_on("OneHot")
def _one_hot(env: ShapeEnv, node: Node) -> None:
    shape, depth = _shape(env, node, 0), env.elements(_input(node, 1))
    if shape is None:
        return env.set(node.outputs[0], _dtype(env, node, 2), None)
    axis = _int(node, "axis", -1) % (len(shape) + 1)
    size = depth[0] if depth else dims.fresh()
    return env.set(node.outputs[0], _dtype(env, node, 2), (*shape[:axis], size, *shape[axis:]))


# --- matrices, convolutions, pools ---------------------------------------------------------------------------------
@_on("MatMul")
def _matmul(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], _dtype(env, node), _matmul_shape(env, _shape(env, node, 0), _shape(env, node, 1)))


@_on("MatMulInteger")
def _matmul_integer(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], DataType.INT32, _matmul_shape(env, _shape(env, node, 0), _shape(env, node, 1)))


@_on("QLinearMatMul")
def _qlinear_matmul(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], _dtype(env, node, 7), _matmul_shape(env, _shape(env, node, 0), _shape(env, node, 3)))


def _matmul_shape(env: ShapeEnv, a: Shape | None, b: Shape | None) -> Shape | None:
    if not a or not b:
        return None
    batch = broadcast(env, [a[:-2], b[:-2]])
    rows = () if len(a) == 1 else (a[-2],)
    columns = () if len(b) == 1 else (b[-1],)
    return (*batch, *rows, *columns)


@_on("Gemm")
def _gemm(env: ShapeEnv, node: Node) -> None:
    a, b = _shape(env, node, 0), _shape(env, node, 1)
    rows = a[1 if _int(node, "transA", 0) else 0] if a is not None and len(a) == 2 else dims.fresh()
    columns = b[0 if _int(node, "transB", 0) else 1] if b is not None and len(b) == 2 else dims.fresh()
    env.set(node.outputs[0], _dtype(env, node), (rows, columns))


def _windows(node: Node, sizes: Sequence[Dim], kernel: Sequence[int]) -> list[Dim]:
    """Sizes of the spatial axes after a window slides over them."""
    spatial = len(sizes)
    strides = _ints(node, "strides") or (1,) * spatial
    dilations = _ints(node, "dilations") or (1,) * spatial
    pads = _ints(node, "pads") or (0,) * (2 * spatial)
    mode = _attr(node, "auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return [dims.floordiv(size + strides[axis] - 1, strides[axis]) for axis, size in enumerate(sizes)]
    if mode == "VALID":
        pads = (0,) * (2 * spatial)
    window = _rounded_up if node.op_type != "Conv" and _int(node, "ceil_mode", 0) else _rounded_down
    return [
        window(size, pads[axis], pads[axis + spatial], dilations[axis] * (kernel[axis] - 1) + 1, strides[axis])
        for axis, size in enumerate(sizes)
    ]


def _rounded_down(size: Dim, before: int, after: int, reach: int, stride: int) -> Dim:
    """How many windows of `reach` elements lie inside the padded axis."""
    return dims.floordiv(size + (before + after - reach), stride) + 1


def _rounded_up(size: Dim, before: int, after: int, reach: int, stride: int) -> Dim:
    """The same with a last window that reaches over the end, where it does not start in the padding."""
    if not isinstance(size, int):
        return dims.fresh()
    count = -(-(size + before + after - reach) // stride) + 1
    return count - 1 if (count - 1) * stride >= size + before else count


@_on("Conv", "ConvInteger")
def _conv(env: ShapeEnv, node: Node) -> None:
    dtype = DataType.INT32 if node.op_type == "ConvInteger" else _dtype(env, node)
    _convolution(env, node, dtype, 1)


@_on("QLinearConv")
def _qlinear_conv(env: ShapeEnv, node: Node) -> None:
    _convolution(env, node, _dtype(env, node, 7), 3)


def _convolution(env: ShapeEnv, node: Node, dtype: DataType | None, weight_index: int) -> None:
    data, weight = _shape(env, node, 0), _shape(env, node, weight_index)
    if data is None or weight is None or len(data) != len(weight):
        return env.set(node.outputs[0], dtype, _unknown(len(weight)) if weight else None)
    spatial = len(data) - 2
    kernel = _ints(node, "kernel_shape") or weight[2:]
    if any(not isinstance(size, int) for size in kernel):
        return env.set(node.outputs[0], dtype, (data[0], weight[0], *_unknown(spatial)))
    sizes = _windows(node, data[2:], kernel)  # type: ignore[arg-type]
    return env.set(node.outputs[0], dtype, (data[0], weight[0], *sizes))


@_on("MaxPool", "AveragePool", "LpPool")
def _pool(env: ShapeEnv, node: Node) -> None:
    data, kernel = _shape(env, node, 0), _ints(node, "kernel_shape")
    if data is None or kernel is None or len(kernel) != len(data) - 2:
        return env.set(node.outputs[0], _dtype(env, node), None)
    sizes = _windows(node, data[2:], kernel)
    env.set(node.outputs[0], _dtype(env, node), (*data[:2], *sizes))
    if len(node.outputs) > 1:
        env.set(node.outputs[1], DataType.INT64, (*data[:2], *sizes))
    return None


@_on("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(env: ShapeEnv, node: Node) -> None:
    data = _shape(env, node, 0)
    env.set(node.outputs[0], _dtype(env, node), None if data is None else (*data[:2], *(1,) * (len(data) - 2)))


@_on("ConvTranspose")
def _conv_transpose(env: ShapeEnv, node: Node) -> None:
    data, weight = _shape(env, node, 0), _shape(env, node, 1)
    if data is None or weight is None or len(data) < 3 or "output_shape" in node.attributes:
        return schema_fallback(env, node)
    spatial = len(data) - 2
    strides = _ints(node, "strides") or (1,) * spatial
    dilations = _ints(node, "dilations") or (1,) * spatial
    pads = _ints(node, "pads") or (0,) * (2 * spatial)
    extra = _ints(node, "output_padding") or (0,) * spatial
    sizes: list[Dim] = []
    for axis in range(spatial):
        kernel = weight[2 + axis]
        if _attr(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
            sizes.append(data[2 + axis] * strides[axis])
        else:
            reach = (kernel - 1) * dilations[axis] + 1
            sizes.append((data[2 + axis] - 1) * strides[axis] + extra[axis] + reach - pads[axis] - pads[axis + spatial])
    return env.set(node.outputs[0], _dtype(env, node), (data[0], weight[1] * _int(node, "group", 1), *sizes))


def schema_fallback(env: ShapeEnv, node: Node) -> None:
    from onnxopt.ir import schema_inference

    schema_inference.infer(env, node)


@_on("Resize", "Upsample")
def _resize(env: ShapeEnv, node: Node) -> None:
    shape = _shape(env, node, 0)
    if shape is None:
        return env.set(node.outputs[0], _dtype(env, node), None)
    sizes = env.elements(_input(node, 3))
    scales_input = _input(node, 1 if node.op_type == "Upsample" or env.opset < 11 else 2)
    plain = "axes" not in node.attributes and _attr(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
    if plain and sizes is not None and len(sizes) == len(shape):
        return env.set(node.outputs[0], _dtype(env, node), sizes)
    scales = constants.small_array(scales_input)
    factors = None if scales is None else scales.reshape(-1).tolist()
    if factors is None and isinstance(_attr(node, "scales"), (list, tuple)):
        factors = list(_attr(node, "scales"))  # type: ignore[call-overload]
    if not plain or factors is None or len(factors) != len(shape):
        return env.set(node.outputs[0], _dtype(env, node), _unknown(len(shape)))
    return env.set(node.outputs[0], _dtype(env, node), [_scaled(dim, f) for dim, f in zip(shape, factors, strict=True)])


def _scaled(dim: Dim, factor: float) -> Dim:
    if isinstance(dim, int):
        return math.floor(dim * factor)
    return dim * int(factor) if factor == int(factor) else dims.fresh()


@_on("DepthToSpace")
def _depth_to_space(env: ShapeEnv, node: Node) -> None:
    shape, block = _shape(env, node, 0), _int(node, "blocksize", 1)
    result = None
    if shape is not None and len(shape) == 4:
        result = (shape[0], dims.floordiv(shape[1], block * block), shape[2] * block, shape[3] * block)
    env.set(node.outputs[0], _dtype(env, node), result)


# --- recurrences, control flow -------------------------------------------------------------------------------------
@_on("LSTM", "GRU", "RNN")
def _recurrent(env: ShapeEnv, node: Node) -> None:
    data, recurrence, dtype = _shape(env, node, 0), _shape(env, node, 2), _dtype(env, node)
    if data is None:
        data = _unknown(3)
    if recurrence is None or len(recurrence) != 3 or len(data) != 3:
        for value in node.outputs:
            env.set(value, dtype, None)
        return
    directions, hidden = recurrence[0], recurrence[2]
    if _int(node, "layout", 0):
        shapes: list[Shape] = [(data[0], data[1], directions, hidden), (data[0], directions, hidden)]
    else:
        shapes = [(data[0], directions, data[1], hidden), (directions, data[1], hidden)]
    for value, shape in zip(node.outputs, [*shapes, shapes[1]], strict=False):
        env.set(value, dtype, shape)


@_on("If")
def _if(env: ShapeEnv, node: Node) -> None:
    first, second = env.infer_subgraphs(node)[:2]
    for value, a, b in zip(node.outputs, first.outputs, second.outputs, strict=False):
        dtype = env.dtype(a) or env.dtype(b)
        if dtype is None and a.type is not None and value.type is None:
            value.type = a.type
        left, right = env.shape(a), env.shape(b)
        if left is None or right is None or len(left) != len(right):
            env.set(value, dtype, None)
        else:
            env.set(value, dtype, [x if x == y else dims.fresh() for x, y in zip(left, right, strict=True)])


MAX_WIDENINGS = 4
"""How often the body of a loop is inferred with ever less known of its carried values, before nothing is believed of them."""


def _infer_carried(env: ShapeEnv, node: Node, carried: Sequence[tuple[Value, Value | None, Value]]) -> None:
    """Infer a loop's body: its carried values (inside, initial, after) have the shapes that no iteration changes."""
    for formal, initial, _ in carried:
        env.set_shape(
            formal,
            None if initial is None else env.dtype(initial),
            None if initial is None else env.shape(initial),
        )
    for attempt in range(MAX_WIDENINGS + 1):
        env.infer_subgraphs(node, repeated=True)
        changed = False
        for formal, _, after in carried:
            known = env.shape(formal)
            widened = None if known is None or attempt == MAX_WIDENINGS else _common_shape(known, env.shape(after))
            if widened != known:
                env.set_shape(formal, env.dtype(formal), widened)
                changed = True
        if not changed:
            return
    env.infer_subgraphs(node, repeated=True)


def _common_shape(a: Shape, b: Shape | None) -> Shape | None:
    """What two shapes have in common; a dim that is not the same is open."""
    if b is None or len(a) != len(b):
        return None
    return tuple(x if x == y or dims.is_fresh(x) else dims.fresh() for x, y in zip(a, b, strict=True))


@_on("Loop")
def _loop(env: ShapeEnv, node: Node) -> None:
    body = node.attributes["body"].as_graph()
    carried = len(node.inputs) - 2
    for formal, kind in zip(body.inputs[:2], (DataType.INT64, DataType.BOOL), strict=False):
        env.set(formal, kind, ())
    _infer_carried(env, node, list(zip(body.inputs[2:], node.inputs[2:], body.outputs[1 : carried + 1], strict=False)))
    for index, value in enumerate(node.outputs):
        inner = body.outputs[index + 1] if index + 1 < len(body.outputs) else None
        if inner is None:
            continue
        if index < carried:
            env.set(value, env.dtype(inner), _seen_outside(env.shape(body.inputs[index + 2])))
        else:
            shape = _seen_outside(env.shape(inner))
            env.set(value, env.dtype(inner), None if shape is None else (dims.fresh(), *shape))


def _seen_outside(shape: Shape | None) -> Shape | None:
    """A shape inside a loop without the dims that each iteration may have anew."""
    return None if shape is None else tuple(dim if _outer(dim) else dims.fresh() for dim in shape)


def _outer(dim: Dim) -> bool:
    return isinstance(dim, int) or not dims.is_fresh(dim)


@_on("Scan")
def _scan(env: ShapeEnv, node: Node) -> None:
    body = node.attributes["body"].as_graph()
    scanned = _int(node, "num_scan_inputs", 1)
    states = len(node.inputs) - scanned
    if env.opset < 9 or states < 0:
        for formal in body.inputs:
            env.set_shape(formal, None, None)
        env.infer_subgraphs(node, repeated=True)
        for index, value in enumerate(node.outputs):
            env.set(value, env.dtype(body.outputs[index]) if index < len(body.outputs) else None, None)
        return
    trips: Dim | None = None
    axes = _ints(node, "scan_input_axes") or [0] * scanned
    for formal, actual, axis in zip(body.inputs[states:], node.inputs[states:], axes, strict=False):
        shape = env.shape(actual) if actual is not None else None
        fits = shape is not None and -len(shape) <= axis < len(shape)
        element = None if shape is None or not fits else shape[: axis % len(shape)] + shape[axis % len(shape) + 1 :]
        env.set_shape(formal, None if actual is None else env.dtype(actual), element)
        if shape is not None and fits and (trips is None or not isinstance(trips, int)):
            trips = shape[axis]
    _infer_carried(
        env, node, list(zip(body.inputs[:states], node.inputs[:states], body.outputs[:states], strict=False))
    )
    axes = _ints(node, "scan_output_axes") or [0] * (len(body.outputs) - states)
    for index, (value, inner) in enumerate(zip(node.outputs, body.outputs, strict=False)):
        if index < states:
            env.set(value, env.dtype(inner), _seen_outside(env.shape(body.inputs[index])))
            continue
        shape = _seen_outside(env.shape(inner))
        axis = axes[index - states]
        if shape is None or not -len(shape) - 1 <= axis <= len(shape):
            env.set(value, env.dtype(inner), None)
            continue
        at = axis % (len(shape) + 1)
        env.set(value, env.dtype(inner), (*shape[:at], dims.fresh() if trips is None else trips, *shape[at:]))


@_on(
    "SequenceMap",
    "SequenceEmpty",
    "SequenceConstruct",
    "SequenceInsert",
    "SequenceErase",
    "SplitToSequence",
    "Optional",
)
def _not_a_tensor(env: ShapeEnv, node: Node) -> None:
    env.infer_subgraphs(node)


@_on("SequenceAt", "ConcatFromSequence", "OptionalGetElement")
def _element_of(env: ShapeEnv, node: Node) -> None:
    value = node.inputs[0] if node.inputs else None
    inner = getattr(value.type, "elem_type", None) if value is not None else None
    env.set(node.outputs[0], inner if isinstance(inner, DataType) else getattr(inner, "dtype", None), None)


@_on("SequenceLength")
def _scalar_integer(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], DataType.INT64, ())


@_on("OptionalHasElement")
def _scalar_boolean(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], DataType.BOOL, ())


def _contrib(name: str, rule: Rule) -> None:
    CONTRIB[name] = rule


_contrib("FusedConv", _conv)
_contrib("FusedMatMul", lambda env, node: env.set(node.outputs[0], _dtype(env, node), None))
for _name in ("Gelu", "FastGelu", "QuickGelu", "BiasGelu"):
    _contrib(_name, _same_as_input)
