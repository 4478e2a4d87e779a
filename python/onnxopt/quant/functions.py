"""What is computed of an activation element by element before anything else reads it: a range is as good as what that makes of it.

A convolution's result is rounded before SiLU or Gelu in the format for any engine. Such functions let hardly anything of negative numbers through,
so that the steps of a range that covers them are better spent on the others.
"""

from __future__ import annotations

import numpy as np
import onnx

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.fused_elementwise import refuse_node
from onnxopt.quant.placement import MOST_IN_ACTIVATION
from onnxopt.quant.ranges import Function
from onnxopt.runtime.library import session

MOVES = frozenset({"Squeeze", "Unsqueeze", "Reshape", "Transpose", "Flatten", "Identity"})
"""Ops of which an element does not change."""


def function_of(value: ir.Value, model: ir.Model, shapes: ir.ShapeEnv) -> Function | None:
    """What all that read a value compute of it together, element by element with the same numbers everywhere; None where they compute nothing
    such, or where something in between is read too."""
    found = _region(value, shapes)
    if found is None:
        return None
    held = session(_proto(value, *found, model), library=False)

    def function(numbers: np.ndarray) -> np.ndarray:
        (result,) = held.run(None, {"x": numbers.astype(np.float32)})
        return np.asarray(result, np.float64)

    return function


def _region(value: ir.Value, shapes: ir.ShapeEnv) -> tuple[list[ir.Node], ir.Value] | None:
    """The nodes between a value and the last one that is a function of it, in order."""
    made, inside = {value}, dict[ir.Node, None]()
    found = None
    while len(inside) < MOST_IN_ACTIVATION:
        users = {user: None for one in made for user, _ in one.uses() if user not in inside}
        node = next((user for user in users if _is_function(user, made, shapes)), None)
        if node is None:
            break
        inside[node] = None
        made.add(node.outputs[0])
        read = [one for one in made if one.is_graph_output() or any(user not in inside for user, _ in one.uses())]
        if read == [node.outputs[0]] and any(one.op_type not in MOVES for one in inside):
            found = list(inside), node.outputs[0]
    return found


def _is_function(node: ir.Node, made: set[ir.Value], shapes: ir.ShapeEnv) -> bool:
    if node.domain or shapes.dtype(node.outputs[0]) is not DataType.FLOAT:
        return False
    if node.op_type in MOVES:
        return node.inputs[0] in made
    return refuse_node(node, shapes) is None and all(one in made or _is_number(one) for one in node.inputs)


def _is_number(value: ir.Value | None) -> bool:
    tensor = ir.constant(value)
    return tensor is not None and tensor.size == 1


def _proto(value: ir.Value, nodes: list[ir.Node], end: ir.Value, model: ir.Model) -> onnx.ModelProto:
    graph = onnx.GraphProto(name="function")
    graph.input.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"]))
    graph.output.append(onnx.ValueInfoProto(name="y"))
    names = {str(value.name): "x", str(end.name): "y"}
    for node in nodes:
        moves = node.op_type in MOVES
        copied = onnx.NodeProto(op_type="Identity") if moves else ir.node_to_proto(node)
        read = node.inputs[:1] if moves else node.inputs
        copied.input[:] = [names.get(str(one.name), str(one.name)) for one in read if one is not None]
        copied.output[:] = [names.get(str(node.outputs[0].name), str(node.outputs[0].name))]
        graph.node.append(copied)
        for one in read:
            tensor = ir.constant(one)
            if (
                tensor is not None
                and one is not None
                and str(one.name) not in {held.name for held in graph.initializer}
            ):
                number = np.asarray(tensor.numpy()).reshape(())
                graph.initializer.append(onnx.numpy_helper.from_array(number, str(one.name)))
    version = min(max(model.ir_version, 8), onnx.IR_VERSION)
    proto = onnx.ModelProto(ir_version=version, graph=graph)
    for domain, opset in model.graph.opset_imports.items():
        proto.opset_import.add(domain=domain, version=opset)
    return proto
