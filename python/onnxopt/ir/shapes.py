"""What is known of every value: element type, dims, and the elements of small integer tensors, over named symbols."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir
from onnx_ir import AttributeType, DataType, Function, Graph, Model, Node, TensorType, Value

from onnxopt.ir import constants, dims, schema_inference
from onnxopt.ir.dims import Bounds, Dim, Expr
from onnxopt.ir.statistics import walk_graphs
from onnxopt.ir.values import input_at

if TYPE_CHECKING:
    from onnxopt.ir.shape_rules import Rule

Shape = tuple[Dim, ...]

MAX_ELEMENTS = 1024
"""Integer tensors up to this many elements are followed element by element: shapes, axes and index vectors are far smaller."""

MAX_FUNCTION_DEPTH = 16
"""Calls of model-local functions inside each other that are followed; functions must not be recursive, files may lie."""

MAX_FUNCTION_CALLS = 100_000
"""Calls that are followed in all: functions that call functions several times grow exponentially, a file of a few lines included."""

_BROKEN_RULES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a rule raises for a node that does not follow the standard (too few inputs, an attribute of a wrong type): nothing is known of it."""

_PLACEHOLDERS = frozenset({"", "-1", "None", "*"})
"""Names of dims that exporters give to several dims without meaning that they are equal; so is every name that starts with `?`."""

_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_INTEGERS = frozenset({DataType.INT64, DataType.INT32, DataType.BOOL})


def _fit(elements: Sequence[Dim], dtype: DataType | None) -> bool:
    """Whether the type holds these numbers: arithmetic that overflows wraps at run time, and is left to the runtime."""
    limit = 1 << (31 if dtype is DataType.INT32 else 63)
    return all(-limit <= one < limit for one in elements if isinstance(one, int))


def is_open(dim: int | onnx_ir.SymbolicDim) -> bool:
    """Whether a declared dim has no size; some exporters write -1 for that."""
    return not isinstance(dim, int) or dim < 0


def given_name(dim: int | onnx_ir.SymbolicDim) -> str | None:
    """The name that a model gives an open dim. Equal names mean equal sizes, except for what exporters write where they know nothing."""
    name = None if isinstance(dim, int) else dim.value
    return None if name is None or name in _PLACEHOLDERS or name.startswith("?") else name


def unnamed_dim(owner: str, axis: int) -> str:
    """What a dim that the model gives no name is called: by the input that has it, and its axis."""
    return f"{owner}_{axis}"


def open_dims(model: Model) -> list[str]:
    """Names of the dims of a model's inputs that are no numbers, in order."""
    return list(dict.fromkeys(_dim_names(model.graph.inputs)))


def unknown_dims(model: Model, stated: Iterable[str]) -> list[str]:
    """A sentence for every stated name that no dim of the model's inputs and outputs has."""
    known = {*_dim_names(model.graph.inputs), *_dim_names(model.graph.outputs)}
    names = ", ".join(open_dims(model)) or "none, all are numbers"
    return [f"No dim is named '{name}'; the inputs' dims are: {names}." for name in stated if name not in known]


def _dim_names(values: Iterable[Value]) -> Iterator[str]:
    for value in values:
        for axis, dim in enumerate(value.shape or ()):
            if is_open(dim):
                yield given_name(dim) or unnamed_dim(value.name or "", axis)


@functools.cache
def _rules() -> tuple[Mapping[str, Rule], Mapping[str, Rule]]:
    """The rules of the standard ops and of onnxruntime's own, which are written over this module."""
    from onnxopt.ir import shape_rules

    return shape_rules.RULES, shape_rules.CONTRIB


class ShapeEnv:
    """Facts about the values of one model, kept by value identity. Rewrites keep it current with `infer_node` and `learn`."""

    def __init__(self, model: Model, fixed: Mapping[str, int | tuple[int, int]] | None = None) -> None:
        self.model = model
        self.bounds = Bounds()
        self.fixed: dict[str, int] = {}
        for name, size in (fixed or {}).items():
            if isinstance(size, int):
                self.fixed[name] = size
            else:
                self.bounds.set(name, *size)
        self.opset = model.graph.opset_imports.get("", 1)
        self._dtypes: dict[Value, DataType] = {}
        self._shapes: dict[Value, Shape] = {}
        self._elements: dict[Value, Shape] = {}
        self._by_name: dict[str, Dim] = {}
        self._broadcasts: dict[frozenset[Dim], Dim] = {}
        self._broadcast_parts: dict[Dim, frozenset[Dim]] = {}
        self._depth = 0
        self._calls = 0
        self._repeated = 0
        self._in_bodies: set[Value] = set()

    def broadcast_of(self, sizes: Iterable[Dim]) -> Dim:
        """The symbol of the broadcast of dims of which none is known to be another one or 1.

        A broadcast with one of its own dims changes nothing, so a symbol of a broadcast stands for its dims.
        """
        parts = frozenset[Dim]().union(*(self._broadcast_parts.get(size, {size}) for size in sizes))
        made = self._broadcasts.get(parts)
        if made is None:
            made = self._broadcasts[parts] = dims.fresh()
            self._broadcast_parts[made] = parts
        return made

    # --- questions
    def dtype(self, value: Value) -> DataType | None:
        """Element type of a tensor, None where it is unknown or the value is no tensor."""
        known, found = value.type, self._dtypes.get(value)
        if known is not None:
            if not isinstance(known, TensorType):
                return None
            if found is None:
                found = known.dtype
        return None if found is DataType.UNDEFINED else found

    def shape(self, value: Value) -> Shape | None:
        return self._shapes.get(value)

    def rank(self, value: Value) -> int | None:
        shape = self._shapes.get(value)
        return None if shape is None else len(shape)

    def static_shape(self, value: Value) -> tuple[int, ...] | None:
        """The shape when every dim is an int."""
        shape = self._shapes.get(value)
        if shape is None:
            return None
        for dim in shape:
            if dim.__class__ is not int:
                return None
        return shape  # type: ignore[return-value]

    def elements(self, value: Value | None) -> Shape | None:
        """The elements of a small integer tensor, flat, as far as they can be written with symbols; None where one cannot."""
        if value is None:
            return None
        found = self._elements.get(value)
        if found is None and value not in self._elements:
            found = self._constant_elements(value)
        return found

    def _constant_elements(self, value: Value) -> Shape | None:
        tensor = constants.constant(value)
        if tensor is None or tensor.dtype not in _INTEGERS or tensor.size > MAX_ELEMENTS:
            return None
        array = constants.small_array(value)
        found = None if array is None else tuple(int(one) for one in array.reshape(-1).tolist())
        if found is not None:
            self._elements[value] = found
        return found

    @property
    def known_elements(self) -> Mapping[Value, Shape]:
        """The values whose elements were inferred (constants join when they are asked for)."""
        return self._elements

    def integers(self, value: Value | None) -> tuple[int, ...] | None:
        """The elements when all are known ints."""
        found = self.elements(value)
        if found is None or any(one.__class__ is not int for one in found):
            return None
        return found  # type: ignore[return-value]

    def equal(self, a: Dim, b: Dim) -> bool | None:
        return a == b if a.__class__ is int and b.__class__ is int else self.bounds.prove_equal(a, b)

    def same_shape(self, a: Value, b: Value) -> bool | None:
        """Whether two values have the same shape: True, False, or None where that is not known."""
        first, second = self._shapes.get(a), self._shapes.get(b)
        if first is None or second is None:
            return None
        if first == second:
            return True
        if len(first) != len(second):
            return False
        verdicts = [self.equal(x, y) for x, y in zip(first, second, strict=True)]
        return False if False in verdicts else None if None in verdicts else True

    # --- learning
    def set(
        self, value: Value, dtype: DataType | None, shape: Sequence[Dim] | None, elements: Sequence[Dim] | None = None
    ) -> None:
        if dtype is not None:
            self._dtypes[value] = dtype
        if shape is not None:
            self._shapes[value] = tuple(shape)
        if elements is not None and len(elements) <= MAX_ELEMENTS and _fit(elements, dtype):
            self._elements[value] = tuple(elements)

    def set_shape(self, value: Value, dtype: DataType | None, shape: Shape | None) -> None:
        """Let exactly this be known of a value's type and shape: what was known of its shape and elements is forgotten."""
        self.forget(value)
        self.set(value, dtype, shape)

    def set_constant(self, value: Value) -> None:
        tensor = value.const_value
        if tensor is None:
            tensor = constants.constant(value)
        if tensor is not None:
            self._dtypes[value] = tensor.dtype
            self._shapes[value] = tuple(tensor.shape)  # type: ignore[arg-type]

    def learn(self, new: Value, old: Value) -> None:
        """Let `new` know what is known of `old`, whose place it takes, where that is more."""
        if new not in self._dtypes and (dtype := self.dtype(old)) is not None:
            self._dtypes[new] = dtype
        known, shape = self._shapes.get(new), self._shapes.get(old)
        if shape is not None:
            if known is None or len(known) != len(shape):
                self._shapes[new] = shape
            elif known != shape:
                self._shapes[new] = tuple(
                    theirs if dims.is_fresh(own) else own for own, theirs in zip(known, shape, strict=True)
                )
        if old in self._elements and new not in self._elements:
            self._elements[new] = self._elements[old]

    def forget(self, value: Value) -> None:
        for facts in (self._dtypes, self._shapes, self._elements):
            facts.pop(value, None)

    # --- inference
    def infer_model(self) -> None:
        """Infer everything forward: inputs as declared, then node by node, subgraphs where their node stands."""
        self._calls = 0
        graph = self.model.graph
        for value in graph.inputs:
            self._declare(value, is_input=True)
        self._infer_graph(graph)

    def _infer_graph(self, graph: Graph) -> None:
        for value in graph.initializers.values():
            if not value.is_graph_input():
                self.set_constant(value)
        for node in graph:
            self.infer_node(node)

    def infer_node(self, node: Node) -> None:
        """Recompute what is known of a node's outputs from its inputs."""
        outputs = node.outputs
        for value in outputs:
            self._elements.pop(value, None)
        if self._repeated:
            self._in_bodies.update(outputs)
        try:
            self._apply_rule(node)
        except _BROKEN_RULES:
            for value in outputs:
                self.forget(value)
        for value in outputs:
            self._merge_declared(value)

    def infer_new(self, node: Node) -> None:
        """Infer a node that comes into the graph; what a custom op makes may have been said by who built it."""
        if not node.domain or not all(value in self._shapes and value in self._dtypes for value in node.outputs):
            self.infer_node(node)

    def _apply_rule(self, node: Node) -> None:
        standard, contrib_rules = _rules()
        if node.domain == "":
            rule = standard.get(node.op_type)
            if rule is None:
                schema_inference.infer(self, node)
            else:
                rule(self, node)
        elif (function := self.model.functions.get(node.op_identifier())) is not None:
            self._infer_call(node, function)
        elif node.domain == "com.microsoft":
            contrib = contrib_rules.get(node.op_type)
            if contrib is not None:
                contrib(self, node)

    def propagate(self, users: Iterable[Node]) -> None:
        """Recompute what nodes make of values of which more became known, and what follows, as far as that makes more known."""
        stack = list(users)
        while stack:
            node = stack.pop()
            before = [self._precision(value) for value in node.outputs]
            if node.graph is None or node.op_type in _BODIES:
                continue
            self.infer_node(node)
            for value, old in zip(node.outputs, before, strict=True):
                if self._precision(value) > old:
                    stack.extend(user for user, _ in value.uses())

    def _precision(self, value: Value) -> int:
        """A number that grows with what is known of the value."""
        facts = (self._shapes.get(value), self._elements.get(value))
        return sum(1 + sum(not dims.is_fresh(dim) for dim in known) for known in facts if known is not None)

    def knows_more(self, new: Value, old: Value) -> bool:
        same = self._shapes.get(new) == self._shapes.get(old) and self._elements.get(new) == self._elements.get(old)
        if not same and self._precision(new) > self._precision(old):
            return True
        if old in self._elements or math.prod(self.static_shape(new) or ()) > MAX_ELEMENTS:
            return False
        return constants.constant(new) is not None and constants.constant(old) is None

    def infer_subgraphs(self, node: Node, *, repeated: bool = False) -> list[Graph]:
        """Infer the bodies that a node holds; inputs of bodies keep what was set for them. Returns the bodies.

        Shapes that a file declares inside a repeated body are often those of the first iteration alone, so they are not believed.
        """
        found = [attr.as_graph() for attr in node.attributes.values() if attr.type == AttributeType.GRAPH]
        self._repeated += repeated
        try:
            for graph in found:
                for value in graph.inputs:
                    if value not in self._shapes and not self._repeated:
                        self._declare(value, is_input=False)
                self._infer_graph(graph)
        finally:
            self._repeated -= repeated
        return found

    def _infer_call(self, node: Node, function: Function) -> None:
        if self._depth >= MAX_FUNCTION_DEPTH or self._calls >= MAX_FUNCTION_CALLS:
            return
        self._depth += 1
        self._calls += 1
        opset, self.opset = self.opset, function.opset_imports.get("", self.opset)
        try:
            for index, formal in enumerate(function.inputs):
                actual = input_at(node, index)
                self.forget(formal)
                if actual is not None:
                    self.set(formal, self.dtype(actual), self.shape(actual), self.elements(actual))
            for inner in function:
                for value in inner.outputs:
                    self.forget(value)
                self.infer_node(inner)
            for value, result in zip(node.outputs, function.outputs, strict=False):
                self.set(value, self.dtype(result), self.shape(result), self.elements(result))
        finally:
            self._depth -= 1
            self.opset = opset

    # --- what the model declares
    def declared_dims(self, shape: onnx_ir.Shape, *, is_input: bool, owner: str = "") -> Shape:
        found: list[Dim] = []
        for axis, dim in enumerate(shape):
            if isinstance(dim, int) and dim >= 0:
                found.append(dim)
                continue
            name = given_name(dim) or self._stated_name(owner, axis)
            if name is None:
                found.append(dims.fresh())
            elif name in self.fixed:
                found.append(self.fixed[name])
            else:
                found.append(self._named(name))
            last = found[-1]
            if is_input and isinstance(last, Expr) and last.symbol and not self.bounds.known(last.symbol):
                # The data a model is fed is not empty unless the user says so with bounds.
                self.bounds.set(last.symbol, 1, float("inf"))
        return tuple(found)

    def _named(self, name: str) -> Dim:
        """The dim that has this name: exporters call what they compute by its expression over the names of inputs' dims."""
        known = self._by_name.get(name)
        if known is None:
            computed = None if name.isidentifier() or self.bounds.known(name) else dims.parse(name, self._inputs_dims())
            known = self._by_name[name] = dims.symbol(name) if computed is None else computed
        return known

    def _inputs_dims(self) -> dict[str, Dim]:
        names = [given_name(dim) for value in self.model.graph.inputs for dim in value.shape or () if is_open(dim)]
        return {
            name: self.fixed.get(name, dims.symbol(name)) for name in names if name is not None and name.isidentifier()
        }

    def _stated_name(self, owner: str, axis: int) -> str | None:
        """The name by which the user sized or bounded a dim without a name, None where that was not done."""
        name = unnamed_dim(owner, axis)
        return name if owner and (name in self.fixed or self.bounds.known(name)) else None

    def _declare(self, value: Value, *, is_input: bool) -> None:
        if value.shape is not None and isinstance(value.type, TensorType):
            owner = (value.name or "") if is_input else ""
            self._shapes[value] = self.declared_dims(value.shape, is_input=is_input, owner=owner)

    def _merge_declared(self, value: Value) -> None:
        """Take from the declared shape what inference left open; what ops imply wins over what a file says."""
        shape = value._shape
        if shape is None or self._repeated or value in self._in_bodies:
            return
        known = self._shapes.get(value)
        if known is None:
            if isinstance(value.type, TensorType):
                self._shapes[value] = self.declared_dims(shape, is_input=False)
        elif any(dim.__class__ is not int and dims.is_fresh(dim) for dim in known) and len(known) == len(shape):
            declared = self.declared_dims(shape, is_input=False)
            self._shapes[value] = tuple(
                theirs if dims.is_fresh(own) and not dims.is_fresh(theirs) else own
                for own, theirs in zip(known, declared, strict=True)
            )

    def write_back(self, model: Model) -> None:
        """Store types and shapes on the values of the main graph and its subgraphs, as far as a model can express them."""
        for graph in walk_graphs(model.graph):
            for value in graph.inputs:
                self._store(value)
            for value in graph.outputs:
                self._store(value)
            for node in graph:
                for value in node.outputs:
                    self._store(value)

    def _store(self, value: Value) -> None:
        dtype, shape = self._dtypes.get(value), self._shapes.get(value)
        if value.type is None and dtype is not None:
            value.type = TensorType(dtype)
        if shape is None or not isinstance(value.type, TensorType):
            return
        if all(map(dims.is_plain, shape)):
            plain = [dim if isinstance(dim, int) else dim.symbol for dim in shape]
            if value.shape is None or list(value.shape) != plain:
                value.shape = onnx_ir.Shape(plain)
