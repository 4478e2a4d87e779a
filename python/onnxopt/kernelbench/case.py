"""What a kernel is measured on: a small model in standard ops that becomes the op, and what it computes in float64.

Where nothing becomes the op by itself, and for ops of your own, the model calls the op, and brings its definition as a function in standard ops.
"""

from __future__ import annotations

import dataclasses
import os
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from onnxopt.errors import OptionError
from onnxopt.kernelbench.float64 import evaluate_in_float64

Arrays = dict[str, np.ndarray]

LARGEST_ERROR = 1e-4
"""Relative to the largest magnitude of an output; of float16, its own rounding is added."""

_TEXT_TYPES = {"float32": "float", "float16": "float16"}


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A problem of one size.

    Attributes:
        body: nodes in ONNX's text syntax.
        inputs, constants: shapes by name; all are drawn from a normal distribution, but those of `integers` evenly from all of their type.
        integers: types of inputs, constants and outputs that are no floats.
        expected: the outputs for inputs and constants in float64; None evaluates the body op by op.
        bytes_read, bytes_written: what has to move at least, for elements of the dtype asked for.
        operations: multiplications, additions and functions of elements.
        outputs: their names, with commas between them.
        rate: which rate of `Ceilings` bounds the operations, if it is known.
        largest_error: of the kernel, relative to the largest magnitude of an output.
        functions: definitions of the ops that the body calls, in ONNX's text syntax.
        besides: what onnxruntime does besides, because the body in standard ops asks for it.
    """

    body: str
    inputs: Mapping[str, tuple[int, ...]]
    expected: Callable[[Arrays], list[np.ndarray]] | None
    bytes_read: int
    bytes_written: int
    operations: int
    constants: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    outputs: str = "y"
    rate: str = "float32"
    largest_error: float = LARGEST_ERROR
    integers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    functions: tuple[str, ...] = ()
    besides: str = ""

    def draw(self, dtype: str, seed: int) -> Arrays:
        """Inputs and constants of one seed."""
        rng = np.random.default_rng(seed)
        shapes = {**self.inputs, **self.constants}
        drawn = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        for name, kind in self.integers.items():
            if name in shapes:
                limits = ml_dtypes.iinfo(kind)  # type: ignore[no-untyped-call]
                drawn[name] = rng.integers(limits.min, limits.max + 1, shapes[name]).astype(np.int8).astype(kind)
        return drawn

    def model(self, arrays: Arrays, dtype: str) -> onnx.ModelProto:
        """The model, with its constants as initializers."""
        outputs = self.outputs.split(", ")
        kinds = dict.fromkeys([*self.inputs, *outputs], _TEXT_TYPES[dtype])
        kinds |= {name: np.dtype(kind).name for name, kind in self.integers.items()}
        declared = ", ".join(
            f"{kinds[name]}[{','.join(map(str, shape))}] {name}" for name, shape in self.inputs.items()
        )
        made_of_them = ", ".join(f"{kinds[name]} {name}" for name in outputs)
        functions = [onnx.parser.parse_function(text) for text in self.functions]
        domains = "".join(f', "{name}" : 1' for name in dict.fromkeys(one.domain for one in functions))
        text = (
            f'<ir_version: 10, opset_import: ["" : 21{domains}]> g ({declared}) => ({made_of_them}) {{ {self.body} }}'
        )
        model = onnx.parser.parse_model(text)
        model.functions.extend(functions)
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")
        made = [onnx.numpy_helper.from_array(arrays[name], name) for name in self.constants]
        model.graph.initializer.extend(made)
        return model

    def exact(self, arrays: Arrays, dtype: str) -> list[np.ndarray]:
        """The outputs in float64."""
        if self.expected is None:
            return evaluate_in_float64(self.model(arrays, dtype), arrays)
        return self.expected({name: array.astype(np.float64) for name, array in arrays.items()})


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Problems of one op: the names of the sizes that a shape states, dtypes, and the case for such sizes."""

    sizes: tuple[str, ...]
    make: Callable[..., Case]
    dtypes: tuple[str, ...] = ("float32",)

    def case(self, op: str, shape: tuple[int, ...], dtype: str) -> Case:
        """The case of a shape.

        Raises:
            OptionError: another number of sizes, a size of 0, more than the machine's memory holds, or a dtype that the kernel does not
                compute.
        """
        if dtype not in self.dtypes:
            raise OptionError(f"{op} is measured in {' or '.join(self.dtypes)}, not in '{dtype}'.")
        if len(shape) != len(self.sizes) or not all(shape):
            found = "x".join(map(str, shape))
            raise OptionError(f"The shape of {op} is {'x'.join(self.sizes)}, all at least 1; '{found}' is not.")
        made = self.make(*shape, item=np.dtype(dtype).itemsize)
        needed, held = made.bytes_read + made.bytes_written, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > held:
            found = "x".join(map(str, shape))
            raise OptionError(
                f"{op} of {found} reads and writes {needed >> 20} MiB, and this machine has {held >> 20} MiB of memory."
            )
        return made


def load_problems(file: Path) -> dict[str, Problem]:
    """The PROBLEMS of a Python file: of ops of your own, or others than ours of our ops.

    Raises:
        OptionError: it cannot be run, or defines no such thing.
    """
    try:
        found = runpy.run_path(str(file)).get("PROBLEMS")
    except Exception as error:
        raise OptionError(f"The problems '{file}' cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(one, Problem) for one in found.values()):
        raise OptionError(
            f"The file '{file}' defines no PROBLEMS: a dictionary from ops to onnxopt.kernelbench.Problem."
        )
    return found
