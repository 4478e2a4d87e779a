"""The problem of each op that is measured alone."""

from __future__ import annotations

import math

import numpy as np

from onnxopt.kernelbench import images
from onnxopt.kernelbench.case import Arrays, Case, Problem
from onnxopt.ops.base import DOMAIN


# --- float64 references --------------------------------------------------------------------------------------------
def _erf(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def _layer_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, *, rounded: bool = False) -> np.ndarray:
    batch, rows, width = q.shape
    size = width // heads
    q, k, v = (one.reshape(batch, -1, heads, size).transpose(0, 2, 1, 3) for one in (q, k, v))
    if rounded:
        q, k, v = _to_bytes(q, -1), _to_bytes(k, -1), _to_bytes(v, -2)
    weights = _softmax(q @ k.transpose(0, 1, 3, 2) / math.sqrt(size))
    return np.asarray((weights @ v).transpose(0, 2, 1, 3).reshape(batch, rows, width))


def _to_bytes(x: np.ndarray, axis: int) -> np.ndarray:
    """As bytes around 0 with a scale along an axis, in floats again."""
    scale = np.abs(x).max(axis, keepdims=True) / 127
    return np.asarray(np.rint(x / scale) * scale)


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


def _number(value: float, item: int) -> str:
    """The attribute of a Constant of a float that has so many bytes."""
    if item == np.dtype(np.float16).itemsize:
        return f"value = float16 {{{np.float16(value).view(np.uint16)}}}"
    return f"value_float={value}"


def _attention_nodes(heads: int, size: int, item: int = 4) -> str:
    """y of q, k and v, whose heads lie side by side."""
    split = "\n".join(
        f"{n}r = Reshape({n}, shape)\n {n}t = Transpose<perm={'[0,2,3,1]' if n == 'k' else '[0,2,1,3]'}>({n}r)"
        for n in "qkv"
    )
    return f"""shape = Constant<value_ints=[0,0,{heads},{size}]>()
    merged = Constant<value_ints=[0,0,{heads * size}]>()
    scale = Constant<{_number(1 / math.sqrt(size), item)}>()
    {split}
    s = MatMul(qt, kt)
    t = Mul(s, scale)
    p = Softmax<axis=-1>(t)
    o = MatMul(p, vt)
    ot = Transpose<perm=[0,2,1,3]>(o)
    y = Reshape(ot, merged)"""


def _heads(batch: int, rows: int, heads: int, size: int, *, item: int) -> Case:
    width = heads * size
    return Case(
        _attention_nodes(heads, size, item),
        dict.fromkeys("qkv", (batch, rows, width)),
        lambda a: [_attention(a["q"], a["k"], a["v"], heads)],
        bytes_read=3 * item * batch * rows * width,
        bytes_written=item * batch * rows * width,
        operations=4 * batch * rows * rows * width,
        besides="transposes queries, keys, values and the result",
    )


def _qattention(batch: int, rows: int, heads: int, size: int, *, item: int) -> Case:
    """Attention of bytes, which is made where products are quantized, beside attention of floats."""
    sizes = {"heads": heads, "kv_heads": heads, "head_size": size, "value_size": size, "scale": 1 / math.sqrt(size)}
    layouts = dict.fromkeys("qkvy", '"b s hd"')
    attributes = ", ".join(f"{name}={value}" for name, value in (layouts | sizes).items())
    return Case(
        f"y = {DOMAIN}.QAttention<{attributes}>(q, k, v)",
        dict.fromkeys("qkv", (batch, rows, heads * size)),
        lambda a: [_attention(a["q"], a["k"], a["v"], heads, rounded=True)],
        bytes_read=3 * item * batch * rows * heads * size,
        bytes_written=item * batch * rows * heads * size,
        operations=4 * batch * rows * rows * heads * size,
        rate="int8",
        largest_error=2e-2,  # a number between two integers may become either, and values are rounded tile by tile
        functions=(
            f"""<domain: "{DOMAIN}", opset_import: ["" : 21]>
            QAttention <{", ".join(layouts | sizes)}> (q, k, v) => (y) {{ {_attention_nodes(heads, size)} }}""",
        ),
        besides="computes in floats, and transposes queries, keys, values and the result",
    )


def _recurrence(steps: int, rows: int, width: int, *, item: int) -> Case:
    """A leaky integrator, h = (h + tanh(h W) + x) / 2, which no recurrent op of ONNX is."""

    def expected(a: Arrays) -> list[np.ndarray]:
        h, made = a["h"], []
        for x in a["x"]:
            h = (h + np.tanh(h @ (a["w"] / math.sqrt(width))) + x) / 2
            made.append(h)
        return [np.stack(made)]

    state = f"float[{rows},{width}]"
    return Case(
        f"""root = Constant<value_float={math.sqrt(width)}>()
        matrix = Div(w, root)
        half = Constant<value_float=0.5>()
        last, y = Scan<num_scan_inputs=1, body = step ({state} s, {state} e) => ({state} next, {state} out) {{
            p = MatMul(s, matrix)
            t = Tanh(p)
            u = Add(t, e)
            sum = Add(s, u)
            next = Mul(sum, half)
            out = Identity(next)
        }}>(h, x)""",
        {"x": (steps, rows, width), "h": (rows, width)},
        expected,
        bytes_read=item * (steps * rows * width + width * width),
        bytes_written=item * steps * rows * width,
        operations=2 * steps * rows * width * (width + 2),
        constants={"w": (width, width)},
    )


def _loop(steps: int, rows: int, width: int, *, item: int) -> Case:
    """A leaky integrator, h = (h + tanh(h W) + x) / 2, which goes on while h is bounded."""

    def expected(a: Arrays) -> list[np.ndarray]:
        h = a["h"]
        for _ in range(steps):
            h = (h + np.tanh(h @ (a["w"] / math.sqrt(width))) + a["x"]) / 2
        return [h]

    state = f"float[{rows},{width}]"
    return Case(
        f"""root = Constant<value_float={math.sqrt(width)}>()
        matrix = Div(w, root)
        half = Constant<value_float=0.5>()
        bound = Constant<value_float=100.0>()
        limit = Constant<value_int={steps}>()
        begin = Constant<value = bool {{1}}>()
        y = Loop<body = step (int64 i, bool c, {state} s) => (bool again, {state} next) {{
            p = MatMul(s, matrix)
            t = Tanh(p)
            u = Add(t, x)
            sum = Add(s, u)
            next = Mul(sum, half)
            size = Abs(next)
            largest = ReduceMax<keepdims=0>(size)
            again = Less(largest, bound)
        }}>(limit, begin, h)""",
        {"x": (rows, width), "h": (rows, width)},
        expected,
        bytes_read=item * (2 * rows * width + width * width),
        bytes_written=item * rows * width,
        operations=2 * steps * rows * width * (width + 3),
        constants={"w": (width, width)},
    )


_IMAGE = ("BATCH", "HEIGHT", "WIDTH", "CHANNELS")

WITH_HALVES = ("float32", "float16")
"""Of ops that are made of float16 for CUDA devices."""

PROBLEMS: dict[str, Problem] = {
    "FusedAttention": Problem(("BATCH", "ROWS", "HEADS", "SIZE"), _heads, WITH_HALVES),
    "FusedConv": Problem((*_IMAGE, "FILTERS", "KERNEL"), images.conv),
    "FusedConvTranspose": Problem((*_IMAGE, "FILTERS", "FACTOR"), images.conv_transpose),
    "FusedElementwise": Problem(("ROWS", "WIDTH"), _elementwise, WITH_HALVES),
    "FusedGemm": Problem(("ROWS", "DEPTH", "COLUMNS"), _gemm, WITH_HALVES),
    "FusedInvertedResidual": Problem((*_IMAGE, "EXPANDED", "FILTERS", "KERNEL"), images.inverted_residual),
    "FusedLoop": Problem(("STEPS", "ROWS", "WIDTH"), _loop),
    "FusedNorm": Problem(("ROWS", "WIDTH"), _norm),
    "FusedPool": Problem((*_IMAGE, "KERNEL"), images.pool),
    "FusedRecurrence": Problem(("STEPS", "ROWS", "WIDTH"), _recurrence),
    "FusedResize": Problem((*_IMAGE, "FACTOR"), images.resize),
    "FusedSeparableConv": Problem((*_IMAGE, "FILTERS", "KERNEL"), images.separable),
    "FusedSoftmax": Problem(("ROWS", "WIDTH"), _masked_softmax, WITH_HALVES),
    "FusedSqueezeExcite": Problem((*_IMAGE, "SQUEEZED"), images.squeeze_excite),
    "QAttention": Problem(("BATCH", "ROWS", "HEADS", "SIZE"), _qattention),
    "QConv": Problem((*_IMAGE, "FILTERS", "KERNEL"), images.qconv),
    "QGemm": Problem(("ROWS", "DEPTH", "COLUMNS"), _qgemm),
}
"""Every op that has a kernel."""
