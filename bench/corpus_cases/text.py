"""A model as short readable text: results named after their op, large weights by their shape alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

INLINE_ELEMENTS = 16
"""Float tensors up to this size keep their values in the text; of larger ones only the shape matters to a fusion."""

MAX_INLINE_ELEMENTS = 600
"""Tables of integers, booleans or masks are part of what an exporter wrote; beyond this size a case is too large for the corpus."""

MASK_VALUE = 100.0
"""Elements beyond this are those of a mask, not of a weight."""


def write_model(model: onnx.ModelProto, origin: dict[str, str]) -> tuple[str, str]:
    """The header (versions and origin) and the graph of a model as text for `onnx.parser.parse_model`.

    A float weight of more than INLINE_ELEMENTS is declared with type and shape, without values: whoever reads the file draws them.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.metadata_props[:]
    model.doc_string = ""
    for field in ("doc_string", "producer_name", "producer_version"):
        if not getattr(model, field):
            model.ClearField(field)
    model.graph.name = "subgraph"
    for key, value in origin.items():
        if value:
            model.metadata_props.add(key=key, value=value)
    for graph in [model.graph, *model.functions]:
        _strip(graph)
    if model.producer_name == "tf2onnx":  # takes nodes and constants from sets
        _sort_from_outputs(model.graph)
        _sort_by_first_use(model.graph)
    _rename(model)
    _drop_unused_domains(model)
    declared = _declare_weights(model.graph)
    del model.graph.value_info[:]
    model.graph.value_info.extend(declared)
    _open_dims(model.graph)
    header, body = onnx.printer.to_text(model).split("\n>\n", 1)
    header = re.sub(r'(\[|, )("\w+": ")', r"\1\n      \2", header).replace(", \n", ",\n")
    return header + "\n>\n", _break_lines(body)


def _break_lines(body: str) -> str:
    """One initializer a line, no empty names of nodes."""
    body = re.sub(r'^( *)\[""\] ', r"\1", body, flags=re.MULTILINE)
    declarations, nodes = body.split("{\n", 1)
    declarations = re.sub(r", (\w+(?:\[[\d,]*\])? \w+)(?=,| =|>\n)", r",\n    \1", declarations).replace("=  {", "= {")
    signature, *weights = declarations.rstrip().split("\n   <", 1)
    signature = signature.replace(",\n    ", ", ")
    return "\n".join([signature.rstrip(), *(f"   <{one}" for one in weights), "{", nodes.rstrip()]) + "\n"


def _sort_from_outputs(graph: onnx.GraphProto) -> None:
    """Nodes in the order in which a walk from the outputs back over the inputs has seen all they need."""
    makers = {name: node for node in graph.node for name in node.output}
    done: dict[int, onnx.NodeProto] = {}

    def visit(node: onnx.NodeProto) -> None:
        if id(node) not in done:
            for name in node.input:
                if name in makers:
                    visit(makers[name])
            done[id(node)] = node

    for value in graph.output:
        visit(makers[value.name])
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in done.values()]
    del graph.node[:]
    graph.node.extend(nodes)


def _sort_by_first_use(graph: onnx.GraphProto) -> None:
    """The order of initializers is part of no model."""
    uses = [name for node in graph.node for name in node.input]
    place = {name: number for number, name in reversed(list(enumerate(uses)))}
    tensors = sorted(graph.initializer, key=lambda tensor: place.get(tensor.name, len(uses)))
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    used = {node.domain for graph in [model.graph, *model.functions] for node in graph.node}
    imports = [one for one in model.opset_import if not one.domain or one.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _strip(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Leave out names of nodes, doc strings and what exporters note about the source."""
    del graph.metadata_props[:]
    graph.doc_string = ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = node.name = ""
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.ClearField("name")
        for subgraph in _subgraphs(node):
            del subgraph.value_info[:]
            _strip(subgraph)
    if isinstance(graph, onnx.GraphProto):
        for value in [*graph.input, *graph.output, *graph.initializer]:
            del value.metadata_props[:]
            value.doc_string = ""


def _rename(model: onnx.ModelProto) -> None:
    """Results are named after their op and place, other values keep their names as far as the text format can hold them."""
    # tf2onnx merges equal constants under the name of whichever comes first in a set.
    merged = [tensor for tensor in model.graph.initializer if model.producer_name == "tf2onnx"]
    unstable = {tensor.name for tensor in merged if np.prod(tensor.dims) <= INLINE_ELEMENTS}
    names: dict[str, str] = {"": ""}
    taken: set[str] = set()

    def name(old: str, wanted: str) -> None:
        wanted = re.sub(r"__\d+\b", "", wanted)  # tf2onnx numbers what it makes
        wanted = re.sub(r"\W+", "_", wanted).strip("_") or "value"
        if wanted[0].isdigit():
            wanted = f"_{wanted}"
        number, new = 1, wanted
        while new in taken:
            number += 1
            new = f"{wanted}_{number}"
        taken.add(new)
        names[old] = new

    def visit(graph: onnx.GraphProto) -> None:
        for value in [*graph.input, *graph.initializer]:
            if value.name not in names:
                name(value.name, "constant" if value.name in unstable else value.name)
        outputs = {value.name for value in graph.output}
        for node in graph.node:
            for subgraph in _subgraphs(node):
                visit(subgraph)
            for old in node.output:
                if old not in names:
                    stem = "y" if old in outputs and graph is model.graph else node.op_type.lower()
                    name(old, stem)
        for node in graph.node:
            node.input[:] = [names.get(old, old) for old in node.input]
            node.output[:] = [names[old] for old in node.output]
        for value in [*graph.input, *graph.output, *graph.initializer]:
            value.name = names[value.name]

    visit(model.graph)


def _declare_weights(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Take large float weights out of the initializers; round small ones, so that the last bits of an export do not matter."""
    declared, kept = [], []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        is_weight = array.dtype.kind == "f" and array.size > 0 and not _is_mask(array)
        if is_weight and array.size > INLINE_ELEMENTS:
            declared.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(array.shape)))
            continue
        assert array.size <= MAX_INLINE_ELEMENTS, f"{tensor.name} has {array.size} elements"
        if is_weight and array.ndim and array.size > 1 and array.dtype == np.float32:
            rounded = np.array([float(f"{element:.3g}") for element in array.ravel()], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded.reshape(array.shape), tensor.name))
        kept.append(tensor)
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return declared


def _is_mask(array: np.ndarray) -> bool:
    """Whether a tensor hides something: it has elements that no weight has, or zeros and ones alone."""
    return float(np.max(np.abs(array))) >= MASK_VALUE or bool(np.isin(array, (0, 1)).all())


def _open_dims(graph: onnx.GraphProto) -> None:
    """A dim of an output stays if it is a number or a dim of an input; the text format cannot hold others, such as expressions."""
    known = {dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim}
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param not in known:
                dim.Clear()
