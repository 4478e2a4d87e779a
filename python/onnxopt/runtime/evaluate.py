"""Evaluating a piece of a graph: what moves elements with numpy, the rest with onnxruntime, many small constants in one session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxopt import ir
from onnxopt.errors import RuntimeMissingError
from onnxopt.runtime.library import import_onnxruntime
from onnxopt.runtime.moves import moved

MAX_SPLITS = 64
"""Sessions that one failing batch may cost: bisection over 1,000 nodes with a few bad ones stays below it."""


def evaluate(
    nodes: Sequence[ir.Node], wanted: Sequence[ir.Value], opsets: Mapping[str, int], ir_version: int
) -> dict[ir.Value, np.ndarray]:
    """Compute `wanted` values of `nodes`, whose other inputs are constants.

    Args:
        nodes: in topological order; every input is constant or made by an earlier one of them.
        wanted: outputs of these nodes.
        opsets: opset imports of the model.
        ir_version: IR version of the model.

    Returns:
        The values that could be computed. A node that onnxruntime refuses or fails on costs its own results, and those of what depends
        on it, not the others.

    Raises:
        RuntimeMissingError: onnxruntime is missing.
    """
    results = moved(nodes)
    batches = [[node for node in nodes if node.outputs[0] not in results]]
    sessions = 0
    missing = set(wanted) - results.keys()
    while batches and sessions < MAX_SPLITS:
        batch = batches.pop()
        outputs = _outputs_of(batch, missing)
        if not outputs:
            continue
        sessions += 1
        try:
            found = _run(batch, outputs, results, opsets, ir_version)
        except RuntimeMissingError:
            raise
        except Exception:
            if len(batch) > 1:
                middle = len(batch) // 2
                batches += [batch[middle:], batch[:middle]]
                missing |= {
                    value for node in batch[:middle] for value in node.outputs if _crosses(value, batch[middle:])
                }
            continue
        results.update(found)
    needed = set(wanted)
    made = [value for node in nodes for value in node.outputs if value in needed and value in results]
    return {value: np.array(results[value]) for value in made}


def _crosses(value: ir.Value, nodes: Sequence[ir.Node]) -> bool:
    return any(user in set(nodes) for user, _ in value.uses())


def _outputs_of(batch: Sequence[ir.Node], wanted: set[ir.Value]) -> list[ir.Value]:
    return [value for node in batch for value in node.outputs if value in wanted]


def _run(
    batch: Sequence[ir.Node],
    outputs: Sequence[ir.Value],
    known: Mapping[ir.Value, np.ndarray],
    opsets: Mapping[str, int],
    ir_version: int,
) -> dict[ir.Value, np.ndarray]:
    onnxruntime = import_onnxruntime()
    graph, feeds = _graph(batch, outputs, known)
    model = onnx.ModelProto(ir_version=min(max(ir_version, 8), onnx.IR_VERSION), graph=graph)
    for domain, version in opsets.items():
        model.opset_import.add(domain=domain, version=version)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays = session.run([value.name for value in outputs], feeds)
    return {value: array for value, array in zip(outputs, arrays, strict=True) if _is_numeric(array)}


def _is_numeric(result: object) -> bool:
    """Whether a result is a tensor of numbers: neither a sequence, nor strings."""
    return isinstance(result, np.ndarray) and result.dtype.kind != "O"


EMBEDDED_BYTES = 1 << 16
"""Constants up to this size travel inside the small model; larger ones are fed as arrays, so that mapped weights are not copied."""


def _graph(
    batch: Sequence[ir.Node], outputs: Sequence[ir.Value], known: Mapping[ir.Value, np.ndarray]
) -> tuple[onnx.GraphProto, dict[str, np.ndarray]]:
    graph = onnx.GraphProto(name="fold")
    feeds: dict[str, np.ndarray] = {}
    made = {value for node in batch for value in node.outputs}
    seen: set[ir.Value] = set()
    for node in batch:
        graph.node.append(ir.node_to_proto(node))
        for value in ir.inputs_with_captures(node):
            if value in made or value in seen:
                continue
            seen.add(value)
            name = value.name or ""
            tensor = ir.constant(value)
            if value in known:
                feeds[name] = known[value]
            elif tensor is None:
                raise ValueError(f"'{name}' is not constant")
            elif tensor.nbytes <= EMBEDDED_BYTES or tensor.dtype.numpy().kind not in "fiub":
                graph.initializer.append(ir.tensor_to_proto(tensor, name))
                continue
            else:
                feeds[name] = tensor.numpy()
            array = feeds[name]
            graph.input.append(
                onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            )
    for value in outputs:
        graph.output.append(onnx.ValueInfoProto(name=value.name))
    return graph, feeds
