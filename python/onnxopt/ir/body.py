"""Functions of custom ops as the steps that they consist of: most are copied into others, or written, and never looked into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onnx_ir import Attr, AttributeType, Function, Graph, Node, Value

from onnxopt.ir.nodes import PlainGraph, make_node, no_attributes

Step = tuple[str, Sequence[Value | None], Sequence[Attr], Sequence[Value]]
"""What a node of the default domain would be: op type, inputs, attributes, outputs."""


class Body(Function):
    """A function without attributes of its own, of nodes of the default domain. They are made when its graph is asked for."""

    __slots__ = ("_inputs", "_made", "_opsets", "_outputs", "_steps")

    def __init__(
        self,
        domain: str,
        name: str,
        overload: str,
        *,
        inputs: Sequence[Value],
        steps: Sequence[Step],
        outputs: Sequence[Value],
        opset_imports: Mapping[str, int],
    ) -> None:
        self._domain, self._name, self._overload = domain, name, overload
        self._attributes = no_attributes(self)
        self._inputs, self._steps, self._outputs = inputs, steps, outputs
        self._opsets = dict(opset_imports)
        self._made: Graph | None = None

    @property
    def steps(self) -> Sequence[Step] | None:
        """The steps, as long as no nodes were made of them."""
        return None if self._made is not None else self._steps

    @property
    def _graph(self) -> Graph:  # type: ignore[override]
        if self._made is None:
            nodes = nodes_of(self._steps)
            self._made = PlainGraph(
                self._inputs, self._outputs, nodes=nodes, opset_imports=self._opsets, name=self._name
            )
        return self._made

    @property
    def inputs(self) -> Sequence[Value]:  # type: ignore[override]
        return self._inputs if self._made is None else self._made.inputs

    @property
    def outputs(self) -> Sequence[Value]:  # type: ignore[override]
        return self._outputs if self._made is None else self._made.outputs

    @property
    def opset_imports(self) -> dict[str, int]:  # type: ignore[override]
        return self._opsets


def step_name(number: int, prefix: str = "") -> str:
    """What the node of a step is called."""
    return f"{prefix}n{number}"


def nodes_of(steps: Iterable[Step], prefix: str = "") -> list[Node]:
    """The nodes that steps stand for."""
    return [
        make_node("", op_type, inputs, attributes, outputs=outputs, name=step_name(number, prefix))
        for number, (op_type, inputs, attributes, outputs) in enumerate(steps)
    ]


def steps_of(nodes: Iterable[Node]) -> Iterable[Step]:
    """The steps that nodes of the default domain are, in topological order; a `Body` has them."""
    steps = nodes.steps if type(nodes) is Body else None
    if steps is not None:
        return steps
    return [(node.op_type, node.inputs, list(node.attributes.values()), node.outputs) for node in nodes]


def is_graph_of(function: Function, graph: Graph | None) -> bool:
    """Whether a graph is that of the function."""
    unmade = type(function) is Body and function.steps is not None
    return not unmade and function.graph is graph


def graphs_of(function: Function) -> list[Graph]:
    """The graphs whose nodes may be of any domain: that of a function, or those that a `Body` holds."""
    steps = function.steps if type(function) is Body else None
    if steps is None:
        return [function.graph]
    attributes = (attr for _, _, held, _ in steps for attr in held)
    return [attr.as_graph() for attr in attributes if attr.type is AttributeType.GRAPH and not attr.is_ref()]
