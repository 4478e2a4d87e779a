"""Shape rules of reductions and of ops that index."""

from __future__ import annotations

from onnx_ir import DataType, Node

from onnxopt.ir import dims
from onnxopt.ir.shape_rules.base import dtype_at, input_at, integer, is_given, known_integers, on, shape_at, unknown
from onnxopt.ir.shapes import Shape, ShapeEnv

_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)


@on(*_REDUCTIONS.split())
def _reduce(env: ShapeEnv, node: Node) -> None:
    shape, axes = shape_at(env, node, 0), known_integers(env, node, "axes", 1)
    dtype, keep = dtype_at(env, node), bool(integer(node, "keepdims", 1))
    if shape is None or (axes is None and is_given(node, "axes", 1)):
        return env.set(node.outputs[0], dtype, unknown(len(shape)) if shape is not None and keep else None)
    if not axes:
        if integer(node, "noop_with_empty_axes", 0):
            return env.set(node.outputs[0], dtype, shape)
        axes = tuple(range(len(shape)))
    elements = env.elements(node.inputs[0])
    total = None
    if elements is not None and len(shape) == 1 and node.op_type in ("ReduceProd", "ReduceSum"):
        total = (dims.product(elements),) if node.op_type == "ReduceProd" else (sum(elements, start=0),)
    gone = {axis % len(shape) for axis in axes} if shape else set()
    result = [1 if axis in gone else dim for axis, dim in enumerate(shape) if keep or axis not in gone]
    return env.set(node.outputs[0], dtype, result, total)


@on("ArgMax", "ArgMin")
def _arg_reduce(env: ShapeEnv, node: Node) -> None:
    shape = shape_at(env, node, 0)
    if not shape:
        return env.set(node.outputs[0], DataType.INT64, shape)
    axis = integer(node, "axis", 0) % len(shape)
    middle = (1,) if integer(node, "keepdims", 1) else ()
    return env.set(node.outputs[0], DataType.INT64, (*shape[:axis], *middle, *shape[axis + 1 :]))


@on("TopK")
def _top_k(env: ShapeEnv, node: Node) -> None:
    shape = shape_at(env, node, 0)
    count: Shape | None = env.elements(input_at(node, 1)) if input_at(node, 1) is not None else (integer(node, "k", 0),)
    result = None
    if shape:
        axis = integer(node, "axis", -1) % len(shape)
        result = (*shape[:axis], count[0] if count else dims.fresh(), *shape[axis + 1 :])
    env.set(node.outputs[0], dtype_at(env, node), result)
    if len(node.outputs) > 1:
        env.set(node.outputs[1], DataType.INT64, result)


@on("GatherElements")
def _gather_elements(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], dtype_at(env, node), shape_at(env, node, 1))


@on("GatherND")
def _gather_nd(env: ShapeEnv, node: Node) -> None:
    data, indices = shape_at(env, node, 0), shape_at(env, node, 1)
    result = None
    if data is not None and indices and isinstance(indices[-1], int):
        result = (*indices[:-1], *data[integer(node, "batch_dims", 0) + indices[-1] :])
    env.set(node.outputs[0], dtype_at(env, node), result)


@on("NonZero")
def _non_zero(env: ShapeEnv, node: Node) -> None:
    rank = shape_at(env, node, 0)
    env.set(node.outputs[0], DataType.INT64, None if rank is None else (max(len(rank), 1), dims.fresh()))


@on("OneHot")
def _one_hot(env: ShapeEnv, node: Node) -> None:
    shape, depth = shape_at(env, node, 0), env.elements(input_at(node, 1))
    if shape is None:
        return env.set(node.outputs[0], dtype_at(env, node, 2), None)
    axis = integer(node, "axis", -1) % (len(shape) + 1)
    size = depth[0] if depth else dims.fresh()
    return env.set(node.outputs[0], dtype_at(env, node, 2), (*shape[:axis], size, *shape[axis:]))
