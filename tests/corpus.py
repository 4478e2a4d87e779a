"""The corpus of subgraphs from real exports (`fusions/corpus/*.onnxtxt`): reads them, draws their weights and inputs.

    from corpus import draw_inputs, load, stems

    for stem in stems("attention"):
        model = load(stem)
        for feeds in draw_inputs(model):
            ...

A file is ONNX text. A float weight that is declared there without values gets random ones here, the same at each load. What a file
is and where it comes from stands in its `metadata_props`: exporter, module, options, and two sizes of each dynamic dim.

    python tests/corpus.py      rewrites expected.toml: what `optimize` makes of each file today
"""

from __future__ import annotations

import collections
import functools
import tomllib
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FOLDER = Path(__file__).parent / "fusions" / "corpus"
EXPECTED = FOLDER / "expected.toml"

RECOGNIZED = {
    *("Attention", "BatchNormalization", "Clip", "Gelu", "GroupNormalization", "HardSigmoid", "HardSwish"),
    *("InstanceNormalization", "LayerNormalization", "Mish", "RMSNormalization", "RotaryEmbedding", "Sigmoid"),
    *("Softmax", "Softplus", "Swish"),
}
"""Standard ops that a pass may make of what an exporter wrote; the table counts them when they are more than in the file."""

Array = np.ndarray[Any, Any]


def stems(prefix: str = "") -> list[str]:
    """The names of the files whose names begin so, without their suffix."""
    return sorted(path.stem for path in FOLDER.glob(f"{prefix}*.onnxtxt"))


def lines(stem: str) -> int:
    """How many lines a file has, a few more than nodes and weights."""
    return (FOLDER / f"{stem}.onnxtxt").read_text().count("\n")


def load(stem: str) -> onnx.ModelProto:
    """A model of the corpus with all of its weights."""
    return load_file(FOLDER / f"{stem}.onnxtxt")


def load_file(path: Path) -> onnx.ModelProto:
    """A model in the format of the corpus, with all of its weights."""
    model = onnx.parser.parse_model(path.read_text())
    positive = {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[4:]}
    made = {name for node in model.graph.node for name in node.output}
    for value in list(model.graph.value_info):
        if value.name not in made:
            model.graph.value_info.remove(value)
            model.graph.initializer.append(_draw_weight(value, value.name in positive))
    return model


def _draw_weight(value: onnx.ValueInfoProto, positive: bool) -> onnx.TensorProto:
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    array = np.random.default_rng(zlib.crc32(value.name.encode())).normal(0, 0.2, shape)
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return numpy_helper.from_array((np.abs(array) + 0.5 if positive else array).astype(kind), value.name)


def origin(model: onnx.ModelProto) -> dict[str, str]:
    """Where a model comes from: `exporter`, `module`, and where they apply `options` and `sizes`."""
    return {entry.key: entry.value for entry in model.metadata_props}


def sizes(model: onnx.ModelProto) -> list[dict[str, int]]:
    """Sizes of the dynamic dims of a model, once or twice."""
    words = [text.split() for text in origin(model).get("sizes", "").split(", ")]
    return [{name: int(size) for name, size in (word.split("=") for word in some)} for some in words]


def draw_inputs(model: onnx.ModelProto, seed: int = 0) -> Iterator[dict[str, Array]]:
    """Random inputs for each of the model's sizes; integers are 0 or 1, valid as masks, tokens and positions."""
    rng = np.random.default_rng(seed)
    for some in sizes(model):
        yield {value.name: _draw(value, some, rng) for value in model.graph.input}


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16 instead of float32, as converters write it: numbers that are too large become the largest one."""
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    largest = float(np.finfo(np.float16).max)
    made = onnx.ModelProto.FromString(model.SerializeToString())
    for value in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        if value.type.tensor_type.elem_type == single:
            value.type.tensor_type.elem_type = half
    attributes = [one for node in made.graph.node for one in node.attribute]
    for tensor in (*made.graph.initializer, *(one.t for one in attributes if one.HasField("t"))):
        if tensor.data_type == single:
            array = np.clip(numpy_helper.to_array(tensor), -largest, largest).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in made.graph.node:
        for one in node.attribute:
            if node.op_type == "Cast" and one.i == single:
                one.i = half
            if node.op_type == "Constant" and one.name == "value_float":
                one.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(np.array(one.f, np.float16))))
    return made


def tolerance(model: onnx.ModelProto) -> float:
    """The relative difference that a rewrite may make: rounding of the lowest precision that the model computes in."""
    kinds = {value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
    kinds |= {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {attribute.i for node in model.graph.node if node.op_type == "Cast" for attribute in node.attribute}
    return 1e-2 if onnx.TensorProto.FLOAT16 in kinds else 1e-4


def _draw(value: onnx.ValueInfoProto, some: Mapping[str, int], rng: np.random.Generator) -> Array:
    shape = [some[dim.dim_param] if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim]
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    array = rng.normal(0, 1, shape) if kind.kind == "f" else rng.integers(0, 2, shape)
    return array.astype(kind)


@functools.cache
def expected() -> dict[str, dict[str, int]]:
    """Of each file, the ops that must be in the optimized model (target cpu) and how many at least."""
    return tomllib.loads(EXPECTED.read_text())


def tracked_ops(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, int]:
    """Fused ops of the optimized model, and standard ops that it has more of than the original."""
    original, optimized = (collections.Counter(node.op_type for node in model.graph.node) for model in (before, after))
    fused = {node.op_type for node in after.graph.node if node.domain}
    found = {name: number for name, number in optimized.items() if name in fused or original[name] < number}
    return {name: found[name] for name in sorted(found) if name in fused | RECOGNIZED}


def write_expected() -> None:
    from onnxopt import optimize

    lines = [
        "# Written by `python tests/corpus.py`: the ops that `optimize` for target cpu makes of each file, at least so many.",
        "",
    ]
    for stem in stems():
        before = load(stem)
        counts = tracked_ops(before, optimize(before, strict=True))
        lines.append(
            f"{stem} = {{ {', '.join(f'{name} = {number}' for name, number in counts.items())} }}".replace("{  }", "{}")
        )
    EXPECTED.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write_expected()
