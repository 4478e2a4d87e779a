"""What a kernel is measured on: a small model in standard ops that becomes the op, and what it computes in float64.

For an op of your own, the model calls the op, and brings its definition as a function in standard ops.
"""

from __future__ import annotations

import dataclasses
import math
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
        expected: the outputs for inputs and constants in float64; None evaluates the body op by op.
        bytes_read, bytes_written: what has to move at least, for elements of the dtype asked for.
        operations: multiplications, additions and functions of elements.
        outputs: their names, with commas between them.
        rate: which rate of `Ceilings` bounds the operations, if it is known.
        largest_error: of the kernel, relative to the largest magnitude of an output.
        functions: definitions of ops of your own, in ONNX's text syntax.
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

    def draw(self, dtype: str, seed: int) -> Arrays:
        """Inputs and constants of one seed."""
        rng = np.random.default_rng(seed)
        shapes = {**self.inputs, **self.constants}
        drawn = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        for name, kind in self.integers.items():
            limits = ml_dtypes.iinfo(kind)  # type: ignore[no-untyped-call]
            drawn[name] = rng.integers(limits.min, limits.max + 1, shapes[name]).astype(np.int8).astype(kind)
        return drawn

    def model(self, arrays: Arrays, dtype: str) -> onnx.ModelProto:
        """The model, with its constants as initializers."""
        kind = _TEXT_TYPES[dtype]
        inputs = ", ".join(f"{kind}[{','.join(map(str, shape))}] {name}" for name, shape in self.inputs.items())
        outputs = ", ".join(f"{kind}[] {name}" for name in self.outputs.split(", "))
        functions = [onnx.parser.parse_function(text) for text in self.functions]
        domains = "".join(f', "{name}" : 1' for name in dict.fromkeys(one.domain for one in functions))
        text = f'<ir_version: 10, opset_import: ["" : 21{domains}]> g ({inputs}) => ({outputs}) {{ {self.body} }}'
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
            OptionError: another number of sizes, a size of 0, or a dtype that the kernel does not compute.
        """
        if dtype not in self.dtypes:
            raise OptionError(f"{op} is measured in {' or '.join(self.dtypes)}, not in '{dtype}'.")
        if len(shape) != len(self.sizes) or not all(shape):
            found = "x".join(map(str, shape))
            raise OptionError(f"The shape of {op} is {'x'.join(self.sizes)}, all at least 1; '{found}' is not.")
        return self.make(*shape, item=np.dtype(dtype).itemsize)


# --- float64 references --------------------------------------------------------------------------------------------
def _erf(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def _layer_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    batch, rows, width = q.shape
    size = width // heads
    split = [one.reshape(batch, -1, heads, size).transpose(0, 2, 1, 3) for one in (q, k, v)]
    scores = _softmax(split[0] @ split[1].transpose(0, 1, 3, 2) / math.sqrt(size))
    return np.asarray((scores @ split[2]).transpose(0, 2, 1, 3).reshape(batch, rows, width))


def _convolve(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    pad = w.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], (2, 3))
    return np.asarray(np.einsum("nchwij,mcij->nmhw", windows, w, optimize=True) + bias[:, None, None])


# --- cases ---------------------------------------------------------------------------------------------------------
def _elementwise(rows: int, width: int, *, item: int) -> Case:
    return Case(
        "s = Sigmoid(x)\n t = Mul(x, s)\n y = Mul(t, z)",
        {"x": (rows, width), "z": (rows, width)},
        lambda a: [a["x"] / (1 + np.exp(-a["x"])) * a["z"]],
        bytes_read=2 * item * rows * width,
        bytes_written=item * rows * width,
        operations=3 * rows * width,
    )


def _norm(rows: int, width: int, *, item: int) -> Case:
    return Case(
        "r = Add(x, z)\n y = LayerNormalization<epsilon=0.00001>(r, s, b)",
        {"x": (rows, width), "z": (rows, width)},
        lambda a: [_layer_norm(a["x"] + a["z"], a["s"], a["b"]), a["x"] + a["z"]],
        bytes_read=2 * item * rows * width,
        bytes_written=2 * item * rows * width,
        operations=8 * rows * width,
        constants={"s": (width,), "b": (width,)},
        outputs="y, r",
    )


def _masked_softmax(rows: int, width: int, *, item: int) -> Case:
    return Case(
        "m = Mul(x, c)\n a = Add(m, z)\n y = Softmax<axis=-1>(a)",
        {"x": (rows, width), "z": (1, width)},
        lambda a: [_softmax(a["x"] * a["c"] + a["z"])],
        bytes_read=item * rows * width,
        bytes_written=item * rows * width,
        operations=6 * rows * width,
        constants={"c": (1,)},
    )


def _gemm(rows: int, depth: int, columns: int, *, item: int) -> Case:
    return Case(
        "p = MatMul(x, w)\n q = Add(p, b)\n y = Gelu(q)",
        {"x": (rows, depth)},
        lambda a: [(lambda t: t * (1 + _erf(t / math.sqrt(2))) / 2)(a["x"] @ a["w"] + a["b"])],
        bytes_read=item * depth * (rows + columns),
        bytes_written=item * rows * columns,
        operations=2 * rows * depth * columns,
        constants={"w": (depth, columns), "b": (columns,)},
    )


def _qgemm(rows: int, depth: int, columns: int, *, item: int) -> Case:
    def expected(a: Arrays) -> list[np.ndarray]:
        x = (np.clip(np.rint(a["x"] / 0.03125) + 128, 0, 255) - 128) * 0.03125
        return [x @ (np.trunc(a["w"] * 20) * np.abs(a["s"]))]

    body = """xs = Constant<value_float=0.03125>()
    xz = Constant<value = uint8 {128}>()
    width = Constant<value_float=20.0>()
    q = QuantizeLinear(x, xs, xz)
    d = DequantizeLinear(q, xs, xz)
    wide = Mul(w, width)
    bytes = Cast<to=3>(wide)
    scales = Abs(s)
    m = DequantizeLinear<axis=1>(bytes, scales)
    y = MatMul(d, m)"""  # onnxruntime multiplies integers only where no bias follows
    return Case(
        body,
        {"x": (rows, depth)},
        expected,
        bytes_read=item * rows * depth + depth * columns,
        bytes_written=item * rows * columns,
        operations=2 * rows * depth * columns,
        constants={"w": (depth, columns), "s": (columns,)},
        rate="int8",
        largest_error=1e-3,  # a number between two integers may become either
    )


def _heads(batch: int, rows: int, heads: int, size: int, *, item: int) -> Case:
    width = heads * size
    split = "\n".join(
        f"{n}r = Reshape({n}, shape)\n {n}t = Transpose<perm={'[0,2,3,1]' if n == 'k' else '[0,2,1,3]'}>({n}r)"
        for n in "qkv"
    )
    body = f"""shape = Constant<value_ints=[0,0,{heads},{size}]>()
    merged = Constant<value_ints=[0,0,{width}]>()
    scale = Constant<value_float={1 / math.sqrt(size)}>()
    {split}
    s = MatMul(qt, kt)
    t = Mul(s, scale)
    p = Softmax<axis=-1>(t)
    o = MatMul(p, vt)
    ot = Transpose<perm=[0,2,1,3]>(o)
    y = Reshape(ot, merged)"""
    return Case(
        body,
        dict.fromkeys("qkv", (batch, rows, width)),
        lambda a: [_attention(a["q"], a["k"], a["v"], heads)],
        bytes_read=3 * item * batch * rows * width,
        bytes_written=item * batch * rows * width,
        operations=4 * batch * rows * rows * width,
    )


def _conv(batch: int, height: int, width: int, channels: int, filters: int, kernel: int, *, item: int) -> Case:
    if kernel % 2 == 0:
        raise OptionError(
            f"The kernel of a FusedConv that is measured is odd, so that the image keeps its size; {kernel} is not."
        )
    pads = f"[{','.join([str(kernel // 2)] * 4)}]"
    # Channels last, as the kernel's neighbours in a model are; onnxruntime's own takes the time of the Transposes as well.
    body = f"""planar = Transpose<perm=[0,3,1,2]>(x)
    c = Conv<kernel_shape=[{kernel},{kernel}], pads={pads}>(planar, w, b)
    h = HardSigmoid(c)
    m = Mul(c, h)
    y = Transpose<perm=[0,2,3,1]>(m)"""
    pixels, weights = batch * height * width, channels * filters * kernel * kernel

    def expected(a: Arrays) -> list[np.ndarray]:
        made = _convolve(a["x"].transpose(0, 3, 1, 2), a["w"], a["b"])
        return [(made * np.clip(made * 0.2 + 0.5, 0, 1)).transpose(0, 2, 3, 1)]

    return Case(
        body,
        {"x": (batch, height, width, channels)},
        expected,
        bytes_read=item * (pixels * channels + weights),
        bytes_written=item * pixels * filters,
        operations=2 * pixels * weights,
        constants={"w": (filters, channels, kernel, kernel), "b": (filters,)},
    )


PROBLEMS: dict[str, Problem] = {
    "FusedElementwise": Problem(("ROWS", "WIDTH"), _elementwise),
    "FusedNorm": Problem(("ROWS", "WIDTH"), _norm),
    "FusedSoftmax": Problem(("ROWS", "WIDTH"), _masked_softmax),
    "FusedGemm": Problem(("ROWS", "DEPTH", "COLUMNS"), _gemm),
    "QGemm": Problem(("ROWS", "DEPTH", "COLUMNS"), _qgemm),
    "FusedAttention": Problem(("BATCH", "ROWS", "HEADS", "SIZE"), _heads),
    "FusedConv": Problem(("BATCH", "HEIGHT", "WIDTH", "CHANNELS", "FILTERS", "KERNEL"), _conv),
}
"""Every op that is measured alone."""


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
