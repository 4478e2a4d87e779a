"""Whether a model hangs together: every name defined once and before its use, no cycles, outputs that exist."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from onnx_ir import AttributeType, Graph, Model, Node, Value

from onnxopt.errors import ModelError
from onnxopt.ir.nodes import drop_inputs
from onnxopt.ir.protos import inputs_with_captures
from onnxopt.ir.signatures import Signature, signature
from onnxopt.ir.statistics import walk_graphs

_GRAPH_TYPES = frozenset({AttributeType.GRAPH, AttributeType.GRAPHS})

MAX_NESTING = 200
"""Depth of subgraphs in subgraphs; beyond it onnxruntime and protobuf refuse a model as well."""


def check_structure(model: Model) -> None:
    """Check the main graph with its subgraphs, and the bodies of functions.

    Nodes that are merely out of order are sorted. Linear in the size of the model, but for models that need sorting.

    Raises:
        ModelError: a value is used and never made, made twice, or there is a cycle; the text names node and value.
    """
    bodies = [(function.graph, function.opset_imports) for function in model.functions.values()]
    for graph, opsets in [(model.graph, model.graph.opset_imports), *bodies]:
        try:
            _Checker(opsets.get("", 0)).check(graph, 0)
        except _NotVisibleError as error:
            raise ModelError(str(error)) from None


def release_strays(model: Model) -> None:
    """Let nodes that are in no graph use no value of the model any more: those that were built, and then something failed."""
    graphs = [inner for graph in _outer_graphs(model) for inner in walk_graphs(graph)]
    inside = {node for graph in graphs for node in graph}
    for graph in graphs:
        values = itertools.chain(graph.inputs, graph.initializers.values(), *(node.outputs for node in graph))
        for stray in {user for value in values for user, _ in value.uses()} - inside:
            drop_inputs(stray)


def _outer_graphs(model: Model) -> list[Graph]:
    return [model.graph, *(function.graph for function in model.functions.values())]


def _check_signature(node: Node, opset: int) -> None:
    known = signature(node.op_type, opset)
    if known is None:
        return
    inputs = node.inputs
    if not known.least <= len(inputs) <= known.most:
        raise ModelError(f"The {_describe(node)} has {len(inputs)} inputs; {node.op_type} takes {_range(known)}.")
    for index in known.required:
        if inputs[index] is None:
            raise ModelError(f"The {_describe(node)} leaves out its input {index}, which {node.op_type} needs.")
    for name, attribute in node.attributes.data.items():
        if attribute.is_ref() and attribute.type is AttributeType.UNDEFINED:
            continue  # as the function's caller gives it
        if known.attributes.get(name, attribute.type) != attribute.type:
            raise ModelError(
                f"The attribute '{name}' of the {_describe(node)} is of type {attribute.type.name}, which is wrong."
            )


def _check_body(node: Node, body: Graph) -> None:
    """Branches and bodies have as many inputs and outputs as their node needs."""
    expected = {
        "If": (0, len(node.outputs)),
        "Loop": (len(node.inputs), len(node.outputs) + 1),
    }.get(node.op_type)
    found = len(body.inputs), len(body.outputs)
    if expected is not None and not node.domain and found != expected:
        raise ModelError(
            f"The body of the {_describe(node)} has {found[0]} inputs and {found[1]} outputs; "
            f"{expected[0]} and {expected[1]} are needed."
        )


def _range(known: Signature) -> str:
    return str(known.least) if known.least == known.most else f"{known.least} to {known.most}"


class _NotVisibleError(Exception):
    """A value is used where nothing has defined it yet: the graph is out of order, or nothing defines it at all."""


class _Checker:
    """Follows a graph and its subgraphs in the order of execution, with the values that are visible at each point."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.visible: set[Value] = set()
        self.sorted: set[Graph] = set()

    def check(self, graph: Graph, depth: int) -> None:
        if depth > MAX_NESTING:
            raise ModelError(f"Subgraphs are nested more than {MAX_NESTING} deep.")
        try:
            self._follow(graph, depth)
        except _NotVisibleError:
            if graph in self.sorted:
                raise
            self.sorted.add(graph)
            _sort(graph)
            self._follow(graph, depth)

    def _follow(self, graph: Graph, depth: int) -> None:
        scope = _Scope(self.visible)
        try:
            for value in graph.inputs:
                scope.define(value, "a graph input")
            for value in graph.initializers.values():
                if not value.is_graph_input():
                    scope.define(value, "an initializer")
            for node in graph:
                self._enter(node, depth)
                for value in node.outputs:
                    scope.define(value, node)
            for output in graph.outputs:
                if output not in self.visible:
                    raise _NotVisibleError(f"The graph output '{output.name}' is made by no node.")
        finally:
            self.visible.difference_update(scope.values)

    def _enter(self, node: Node, depth: int) -> None:
        _check_text(node.op_type, node.domain, node.name, node.overload)
        if not node.domain:
            _check_signature(node, self.opset)
        for value in node.inputs:
            if value is not None and value not in self.visible:
                raise _NotVisibleError(f"The {_describe(node)} uses '{value.name}', which nothing defines before it.")
        for graph in _subgraphs(node):
            _check_body(node, graph)
            self.check(graph, depth + 1)


class _Scope:
    """The values of one graph. Names are unique in it."""

    def __init__(self, visible: set[Value]) -> None:
        self.visible = visible
        self.values: list[Value] = []
        self.names: set[str] = set()

    def define(self, value: Value, definer: Node | str) -> None:
        name = value._name
        if name:
            if name.__class__ is not str:
                _check_text(name)
            if name in self.names:
                what = definer if isinstance(definer, str) else f"an output of the {_describe(definer)}"
                raise ModelError(f"The name '{name}' is defined twice; the second is {what}.")
            self.names.add(name)
        self.values.append(value)
        self.visible.add(value)


def _subgraphs(node: Node) -> Iterator[Graph]:
    for attr in node.attributes.data.values():
        if attr.type in _GRAPH_TYPES and not attr.is_ref():
            yield from [attr.as_graph()] if attr.type is AttributeType.GRAPH else attr.as_graphs()


def _check_text(*names: str | None) -> None:
    for name in names:
        if name.__class__ is not str and name is not None:
            raise ModelError(f"The name {name!r} is not UTF-8 text.")


def _describe(node: Node) -> str:
    return f"{node.op_type} node '{node.name}'"


def sort_nodes(graph: Graph) -> None:
    """Sort the nodes of a graph topologically, which onnx-ir does at length: most graphs are in order already.

    Raises:
        ModelError: there is a cycle.
    """
    if not _is_sorted(graph):
        _sort(graph)


def _is_sorted(graph: Graph) -> bool:
    made: set[Node] = set()
    for node in graph:
        for value in inputs_with_captures(node):
            maker = value.producer()
            if maker is not None and maker not in made and maker.graph is graph:
                return False
        if not all(map(_is_sorted, _subgraphs(node))):
            return False
        made.add(node)
    return True


def _sort(graph: Graph) -> None:
    try:
        graph.sort()
    except ValueError as error:
        raise ModelError(f"The graph '{graph.name}' contains a cycle.") from error
    except RecursionError as error:
        raise ModelError("Subgraphs are nested too deep.") from error
