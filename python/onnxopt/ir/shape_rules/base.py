"""The table of shape rules and what they read of a node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx_ir import DataType, Node

from onnxopt.ir import dims
from onnxopt.ir.dims import Dim
from onnxopt.ir.shapes import Shape, ShapeEnv
from onnxopt.ir.values import input_at as input_at

Rule = Callable[[ShapeEnv, Node], None]

RULES: dict[str, Rule] = {}
CONTRIB: dict[str, Rule] = {}
"""Rules of onnxruntime's own ops (`com.microsoft`)."""


def on(*op_types: str, contrib: Sequence[str] = ()) -> Callable[[Rule], Rule]:
    """File a rule under op types of the standard, and under those of onnxruntime's own domain."""

    def file(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(op_types, rule))
        CONTRIB.update(dict.fromkeys(contrib, rule))
        return rule

    return file


def attribute(node: Node, name: str, default: object = None) -> object:
    found = node.attributes.get(name)
    return default if found is None or found.ref_attr_name is not None else found.value


def integer(node: Node, name: str, default: int) -> int:
    value = attribute(node, name, default)
    return value if isinstance(value, int) else default


def integers(node: Node, name: str) -> tuple[int, ...] | None:
    value = attribute(node, name)
    return tuple(value) if isinstance(value, (list, tuple)) else None


def shape_at(env: ShapeEnv, node: Node, index: int) -> Shape | None:
    value = input_at(node, index)
    return None if value is None else env.shape(value)


def dtype_at(env: ShapeEnv, node: Node, index: int = 0) -> DataType | None:
    value = input_at(node, index)
    return None if value is None else env.dtype(value)


def known_integers(env: ShapeEnv, node: Node, attribute: str, index: int) -> tuple[int, ...] | None:
    """Integers that are an attribute in old opsets and an input in new ones."""
    found = integers(node, attribute)
    return found if found is not None else env.integers(input_at(node, index))


def is_given(node: Node, attribute: str, index: int) -> bool:
    return attribute in node.attributes or input_at(node, index) is not None


def unknown(rank: int) -> Shape:
    return tuple(dims.fresh() for _ in range(rank))


def broadcast(env: ShapeEnv, shapes: Sequence[Shape]) -> Shape:
    """The shape of a numpy-style broadcast; a dim that cannot be told is a symbol of its own."""
    first = shapes[0]
    if all(shape == first for shape in shapes[1:]):
        return first
    rank = max(map(len, shapes))
    return tuple(
        _broadcast_dim(env, [shape[axis - rank + len(shape)] for shape in shapes if axis >= rank - len(shape)])
        for axis in range(rank)
    )


def _broadcast_dim(env: ShapeEnv, sizes: list[Dim]) -> Dim:
    if sizes[0] is sizes[-1] and len(sizes) == 2:
        return sizes[0]
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
    return whole[0] if whole else env.broadcast_of(different)
