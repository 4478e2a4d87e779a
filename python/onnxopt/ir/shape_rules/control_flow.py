"""Shape rules of recurrences, If, Loop and Scan, sequences and optionals."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_ir import DataType, Node, Value

from onnxopt.ir import dims
from onnxopt.ir.dims import Dim
from onnxopt.ir.shape_rules.base import dtype_at, integer, integers, on, shape_at, unknown
from onnxopt.ir.shapes import Shape, ShapeEnv


@on("LSTM", "GRU", "RNN")
def _recurrent(env: ShapeEnv, node: Node) -> None:
    data, recurrence, dtype = shape_at(env, node, 0), shape_at(env, node, 2), dtype_at(env, node)
    if data is None:
        data = unknown(3)
    if recurrence is None or len(recurrence) != 3 or len(data) != 3:
        for value in node.outputs:
            env.set(value, dtype, None)
        return
    directions, hidden = recurrence[0], recurrence[2]
    if integer(node, "layout", 0):
        shapes: list[Shape] = [(data[0], data[1], directions, hidden), (data[0], directions, hidden)]
    else:
        shapes = [(data[0], directions, data[1], hidden), (directions, data[1], hidden)]
    for value, shape in zip(node.outputs, [*shapes, shapes[1]], strict=False):
        env.set(value, dtype, shape)


@on("If")
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


@on("Loop")
def _loop(env: ShapeEnv, node: Node) -> None:
    body = node.attributes["body"].as_graph()
    carried = len(node.inputs) - 2
    for formal, kind in zip(body.inputs[:2], (DataType.INT64, DataType.BOOL), strict=False):
        # onnxruntime gives both the rank that the body declares.
        env.set(formal, kind, (1,) if formal.shape is not None and len(formal.shape) == 1 else ())
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


@on("Scan")
def _scan(env: ShapeEnv, node: Node) -> None:
    body = node.attributes["body"].as_graph()
    scanned = integer(node, "num_scan_inputs", 1)
    states = len(node.inputs) - scanned
    if env.opset < 9 or states < 0:
        for formal in body.inputs:
            env.set_shape(formal, None, None)
        env.infer_subgraphs(node, repeated=True)
        for index, value in enumerate(node.outputs):
            env.set(value, env.dtype(body.outputs[index]) if index < len(body.outputs) else None, None)
        return
    trips: Dim | None = None
    axes = integers(node, "scan_input_axes") or [0] * scanned
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
    axes = integers(node, "scan_output_axes") or [0] * (len(body.outputs) - states)
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


@on(
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


@on("SequenceAt", "ConcatFromSequence", "OptionalGetElement")
def _element_of(env: ShapeEnv, node: Node) -> None:
    value = node.inputs[0] if node.inputs else None
    inner = getattr(value.type, "elem_type", None) if value is not None else None
    env.set(node.outputs[0], inner if isinstance(inner, DataType) else getattr(inner, "dtype", None), None)


@on("SequenceLength")
def _scalar_integer(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], DataType.INT64, ())


@on("OptionalHasElement")
def _scalar_boolean(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], DataType.BOOL, ())
