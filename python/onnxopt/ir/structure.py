"""Whether a model hangs together: every name defined once and before its use, no cycles, outputs that exist."""

from __future__ import annotations

from onnx_ir import AttributeType, Graph, Model, Node, Value

from onnxopt.errors import ModelError

_GRAPH_TYPES = frozenset({AttributeType.GRAPH, AttributeType.GRAPHS})

MAX_NESTING = 200
"""Depth of subgraphs in subgraphs; beyond it onnxruntime and protobuf refuse a model as well."""


def check_structure(model: Model) -> None:
    """Check the main graph with its subgraphs, and the bodies of functions. Nodes that are merely out of order are sorted.

    Linear in the size of the model.

    Raises:
        ModelError: a value is used and never made, made twice, or there is a cycle; the text names node and value.
    """
    _check_graph(model.graph, {}, 0)
    for function in model.functions.values():
        _check_graph(function.graph, {}, 0)


def _check_graph(graph: Graph, outer: dict[Value, str], depth: int) -> None:
    if depth > MAX_NESTING:
        raise ModelError(f"Subgraphs are nested more than {MAX_NESTING} deep.")
    scope = _Scope(graph, outer)
    if not all(scope.define(node) for node in graph):
        _sort(graph)
        scope = _Scope(graph, outer)
        for node in graph:
            if not scope.define(node):
                raise ModelError(_dangling(node, scope))
    for node in graph:
        for attr in node.attributes.values():
            if attr.type in _GRAPH_TYPES and not attr.is_ref():
                for inner in [attr.as_graph()] if attr.type is AttributeType.GRAPH else attr.as_graphs():
                    _check_graph(inner, scope.values, depth + 1)
    for output in graph.outputs:
        if output not in scope.values:
            raise ModelError(f"The graph output '{output.name}' is made by no node.")


class _Scope:
    """The values that are visible at a point of a graph."""

    def __init__(self, graph: Graph, outer: dict[Value, str]) -> None:
        self.graph = graph
        self.values = dict(outer) if outer else {}
        self.names: set[str] = set()
        for value in graph.inputs:
            self._add(value, "graph input")
        for value in graph.initializers.values():
            if value not in self.values:
                self._add(value, "initializer")

    def _add(self, value: Value, what: str) -> None:
        name = value.name or ""
        if name in self.names:
            raise ModelError(f"The name '{name}' is defined twice; the second is the {what} of that name.")
        if name:
            self.names.add(name)
        self.values[value] = what

    def define(self, node: Node) -> bool:
        """Add the node's outputs; False when an input is not visible yet."""
        values = self.values
        for value in node.inputs:
            if value is not None and value not in values:
                return False
        for value in node.outputs:
            if value.name:
                self._add(value, f"output of {node.op_type} node '{node.name}'")
            else:
                values[value] = "unnamed output"
        return True


def _sort(graph: Graph) -> None:
    try:
        graph.sort()
    except ValueError as error:
        raise ModelError(f"The graph '{graph.name}' contains a cycle.") from error
    except RecursionError as error:
        raise ModelError("Subgraphs are nested too deep.") from error


def _dangling(node: Node, scope: _Scope) -> str:
    missing = next(value.name for value in node.inputs if value is not None and value not in scope.values)
    return f"The {node.op_type} node '{node.name}' uses '{missing}', which nothing defines."
