"""Writes a file of the corpus with the sizes at which it runs."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime

import corpus
from corpus_cases.text import write_model

SIZES = {
    "N": (2, 1),
    "S": (7, 4),
    "P": (3, 5),
    "T": (10, 9),
    "E": (6, 9),
    "H": (8, 16),
    "W": (12, 4),
    "L": (12, 17),
}
"""Two sizes of every dynamic dim: batch, sequence, past, past and sequence, encoder's sequence, height, width, length.
The first ones are those of the exporter's example inputs, which must not be 1."""


def sizes_of(model: onnx.ModelProto) -> str:
    """The sizes that a test gives to dynamic dims, twice: `N=2 S=7, N=1 S=4`."""
    names = {dim.dim_param: 0 for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
    names.pop("", None)
    return ", ".join(" ".join(f"{name}={SIZES[name][k]}" for name in names) for k in range(2)) if names else ""


def write(stem: str, model: onnx.ModelProto, origin: dict[str, str], folder: Path) -> str:
    """Write a model with the sizes of dynamic dims at which onnxruntime runs it; the text of its graph."""
    path = folder / f"{stem}.onnxtxt"
    header, body = write_model(model, origin | {"sizes": sizes_of(model)})
    path.write_text(header + body)
    loaded = corpus.load_file(path)
    runs = [
        text for text, feeds in zip(sizes_of(model).split(", "), corpus.draw_inputs(loaded)) if runs_with(loaded, feeds)
    ]
    if not runs:
        path.unlink()
        raise ValueError("onnxruntime does not run it")
    origin["sizes"] = ", ".join(runs)
    if origin["sizes"] != sizes_of(model):
        origin["options"] += ", sizes of the example fixed by the exporter"
        path.write_text(write_model(model, origin)[0] + body)
    print(f"{stem:60s} {len(model.graph.node)} nodes, {origin['sizes']}", flush=True)
    return body


def runs_with(model: onnx.ModelProto, feeds: dict[str, corpus.Array]) -> bool:
    """Whether onnxruntime runs a model on these inputs; what an exporter writes need not run at other sizes than its example's."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, feeds)
    except Exception:
        return False
    return True
