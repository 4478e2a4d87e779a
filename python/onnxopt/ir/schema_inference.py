"""Inference by ONNX's own per-node rules, for ops that `shape_rules` has no rule for. Static dims survive, symbols become unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx_ir import DataType, Node, serde

from onnxopt.ir import constants, dims

if TYPE_CHECKING:
    from onnxopt.ir.shapes import ShapeEnv


def infer(env: ShapeEnv, node: Node) -> None:
    """Set types and shapes of the node's outputs; nothing where ONNX does not know the op or refuses the node."""
    try:
        schema = onnx.defs.get_schema(node.op_type, env.opset, node.domain)
    except onnx.defs.SchemaError:
        return
    types, data = {}, {}
    for value in node.inputs:
        if value is None or not value.name:
            continue
        dtype = env.dtype(value)
        if dtype is None:
            return
        shape = env.shape(value)
        known = None if shape is None else [dim if isinstance(dim, int) else None for dim in shape]
        types[value.name] = onnx.helper.make_tensor_type_proto(dtype.value, known)
        if constants.small_array(value) is not None:
            tensor = constants.constant(value)
            assert tensor is not None
            data[value.name] = serde.serialize_tensor(tensor)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            _with_defaults(node, schema),
            types,
            data,
            opset_imports=[onnx.helper.make_opsetid(node.domain, env.opset)],
        )
    except Exception:
        return
    for value in node.outputs:
        kind = found.get(value.name or "")
        if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.elem_type:
            continue
        tensor_type = kind.tensor_type
        inferred: list[dims.Dim] | None = None
        if tensor_type.HasField("shape"):
            inferred = [dim.dim_value if dim.HasField("dim_value") else dims.fresh() for dim in tensor_type.shape.dim]
        env.set(value, DataType(tensor_type.elem_type), inferred)


def _with_defaults(node: Node, schema: onnx.defs.OpSchema) -> onnx.NodeProto:
    """The node with all attributes spelled out: not every rule takes the schema's default for one that is left out (STFT's does not)."""
    proto = serde.serialize_node(node)
    given = {one.name for one in proto.attribute}
    known = schema.attributes.items()
    proto.attribute.extend(one.default_value for name, one in known if one.default_value.type and name not in given)
    return proto
