"""A model evaluated in float64: what a kernel's results are compared with where its definition is a function in standard ops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def evaluate_in_float64(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs for values of inputs and initializers, op by op in numpy; constants and casts inside become float64 as well."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for holder in (wide.graph, *wide.functions):
        _widen(holder)
    widened = {name: one.astype(np.float64) if one.dtype.kind == "f" else one for name, one in values.items()}
    return [np.asarray(one) for one in ReferenceEvaluator(wide).run(None, widened)]


def _widen(holder: onnx.GraphProto | onnx.FunctionProto) -> None:
    nodes = list(holder.node)
    del holder.node[:]
    for node in nodes:
        for graph in _subgraphs(node):
            _widen(graph)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = onnx.TensorProto.DOUBLE
        if not _makes_floats(node):
            holder.node.append(node)
            continue
        (name,) = node.output
        node.output[0] = f"{name}_narrow"
        holder.node.extend([node, onnx.helper.make_node("Cast", [node.output[0]], [name], to=onnx.TensorProto.DOUBLE)])


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _makes_floats(node: onnx.NodeProto) -> bool:
    """Whether a node makes floats of nothing."""
    if node.domain or node.op_type not in ("Constant", "ConstantOfShape"):
        return False
    kinds = {one.name: one.t.data_type for one in node.attribute}
    if "value" in kinds:
        return kinds["value"] in FLOATS
    return node.op_type == "ConstantOfShape" or not {"value_float", "value_floats"}.isdisjoint(kinds)
