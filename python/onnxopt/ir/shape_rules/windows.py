"""Shape rules of matrix products, convolutions, pools and resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx_ir import DataType, Node

from onnxopt.ir import constants, dims, schema_inference
from onnxopt.ir.dims import Dim
from onnxopt.ir.equations import read_equation
from onnxopt.ir.shape_rules.base import (
    attribute,
    broadcast,
    dtype_at,
    input_at,
    integer,
    integers,
    on,
    shape_at,
    unknown,
)
from onnxopt.ir.shapes import Shape, ShapeEnv


@on("MatMul")
def _matmul(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], dtype_at(env, node), _matmul_shape(env, shape_at(env, node, 0), shape_at(env, node, 1)))


@on("Einsum")
def _einsum(env: ShapeEnv, node: Node) -> None:
    shapes = [shape_at(env, node, index) for index in range(len(node.inputs))]
    equation = attribute(node, "equation", "")
    read = read_equation(str(equation), [None if shape is None else len(shape) for shape in shapes])
    if read is None:
        return schema_inference.infer(env, node)
    sizes: dict[str, list[Shape]] = {}
    for letters, shape in zip(read[0], shapes, strict=True):
        for letter, size in zip(letters, shape or (), strict=True):
            sizes.setdefault(letter, []).append((size,))
    return env.set(node.outputs[0], dtype_at(env, node), tuple(broadcast(env, sizes[letter])[0] for letter in read[1]))


@on("Attention")
def _attention(env: ShapeEnv, node: Node) -> None:
    q, k, v = (shape_at(env, node, index) for index in range(3))
    heads, kv_heads = (integer(node, f"{one}_num_heads", 0) for one in ("q", "kv"))
    result: Shape | None = None
    if q is not None and k is not None and v is not None and len(q) == 3 and heads and kv_heads:
        columns = dims.floordiv(v[2], kv_heads)
        result = (*q[:2], columns * heads)
        q = (q[0], heads, *q[1:])
        k, v = ((one[0], kv_heads, one[1], dims.floordiv(one[2], kv_heads)) for one in (k, v))
    elif q is not None and v is not None and len(q) == len(v) == 4:
        result = (*q[:3], v[3])
    past, dtype = shape_at(env, node, 4), dtype_at(env, node)
    earlier = past[2] if past is not None and len(past) == 4 else 0 if input_at(node, 4) is None else dims.fresh()
    known = q is not None and k is not None and v is not None and len(q) == len(k) == len(v) == 4
    presents = [(*one[:2], earlier + one[2], one[3]) if known and one else None for one in (k, v)]
    scores = (*q[:3], presents[0][2]) if known and q and presents[0] else None
    for output, shape in zip(node.outputs, (result, *presents, scores), strict=False):
        env.set(output, dtype, shape)


@on(contrib=["FusedMatMul"])
def _fused_matmul(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], dtype_at(env, node), None)


@on("MatMulInteger")
def _matmul_integer(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], DataType.INT32, _matmul_shape(env, shape_at(env, node, 0), shape_at(env, node, 1)))


@on("QLinearMatMul")
def _qlinear_matmul(env: ShapeEnv, node: Node) -> None:
    env.set(node.outputs[0], dtype_at(env, node, 7), _matmul_shape(env, shape_at(env, node, 0), shape_at(env, node, 3)))


def _matmul_shape(env: ShapeEnv, a: Shape | None, b: Shape | None) -> Shape | None:
    if not a or not b:
        return None
    batch = broadcast(env, [a[:-2], b[:-2]])
    rows = () if len(a) == 1 else (a[-2],)
    columns = () if len(b) == 1 else (b[-1],)
    return (*batch, *rows, *columns)


@on("Gemm")
def _gemm(env: ShapeEnv, node: Node) -> None:
    a, b = shape_at(env, node, 0), shape_at(env, node, 1)
    rows = a[1 if integer(node, "transA", 0) else 0] if a is not None and len(a) == 2 else dims.fresh()
    columns = b[0 if integer(node, "transB", 0) else 1] if b is not None and len(b) == 2 else dims.fresh()
    env.set(node.outputs[0], dtype_at(env, node), (rows, columns))


def _windows(node: Node, sizes: Sequence[Dim], kernel: Sequence[int]) -> list[Dim]:
    """Sizes of the spatial axes after a window slides over them."""
    spatial = len(sizes)
    strides = integers(node, "strides") or (1,) * spatial
    dilations = integers(node, "dilations") or (1,) * spatial
    pads = integers(node, "pads") or (0,) * (2 * spatial)
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return [dims.floordiv(size + strides[axis] - 1, strides[axis]) for axis, size in enumerate(sizes)]
    if mode == "VALID":
        pads = (0,) * (2 * spatial)
    window = _rounded_up if node.op_type != "Conv" and integer(node, "ceil_mode", 0) else _rounded_down
    return [
        window(size, pads[axis], pads[axis + spatial], dilations[axis] * (kernel[axis] - 1) + 1, strides[axis])
        for axis, size in enumerate(sizes)
    ]


def _rounded_down(size: Dim, before: int, after: int, reach: int, stride: int) -> Dim:
    """How many windows of `reach` elements lie inside the padded axis."""
    return dims.floordiv(size + (before + after - reach), stride) + 1


def _rounded_up(size: Dim, before: int, after: int, reach: int, stride: int) -> Dim:
    """The same with a last window that reaches over the end, where it does not start in the padding."""
    if not isinstance(size, int):
        return dims.fresh()
    count = -(-(size + before + after - reach) // stride) + 1
    return count - 1 if (count - 1) * stride >= size + before else count


@on("Conv", "ConvInteger", contrib=["FusedConv"])
def _conv(env: ShapeEnv, node: Node) -> None:
    dtype = DataType.INT32 if node.op_type == "ConvInteger" else dtype_at(env, node)
    _convolution(env, node, dtype, 1)


@on("QLinearConv")
def _qlinear_conv(env: ShapeEnv, node: Node) -> None:
    _convolution(env, node, dtype_at(env, node, 7), 3)


def _convolution(env: ShapeEnv, node: Node, dtype: DataType | None, weight_index: int) -> None:
    data, weight = shape_at(env, node, 0), shape_at(env, node, weight_index)
    if data is None or weight is None or len(data) != len(weight):
        return env.set(node.outputs[0], dtype, unknown(len(weight)) if weight else None)
    spatial = len(data) - 2
    kernel = integers(node, "kernel_shape") or weight[2:]
    if any(not isinstance(size, int) for size in kernel):
        return env.set(node.outputs[0], dtype, (data[0], weight[0], *unknown(spatial)))
    sizes = _windows(node, data[2:], kernel)  # type: ignore[arg-type]
    if node.graph is env.model.graph:
        # Runtimes refuse windows that are larger than the padded data.
        for size in sizes:
            env.bounds.assume_at_least(size, 1)
    return env.set(node.outputs[0], dtype, (data[0], weight[0], *sizes))


@on("MaxPool", "AveragePool", "LpPool")
def _pool(env: ShapeEnv, node: Node) -> None:
    data, kernel = shape_at(env, node, 0), integers(node, "kernel_shape")
    if data is None or kernel is None or len(kernel) != len(data) - 2:
        return env.set(node.outputs[0], dtype_at(env, node), None)
    spread = any(step != 1 for step in integers(node, "dilations") or ())
    if spread and str(attribute(node, "auto_pad", "")).startswith("SAME"):
        sizes = list(
            unknown(len(kernel))
        )  # onnxruntime pads as if there were no gaps, and makes less than the standard says
    else:
        sizes = _windows(node, data[2:], kernel)
    env.set(node.outputs[0], dtype_at(env, node), (*data[:2], *sizes))
    if len(node.outputs) > 1:
        env.set(node.outputs[1], DataType.INT64, (*data[:2], *sizes))
    return None


@on("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(env: ShapeEnv, node: Node) -> None:
    data = shape_at(env, node, 0)
    env.set(node.outputs[0], dtype_at(env, node), None if data is None else (*data[:2], *(1,) * (len(data) - 2)))


@on("ConvTranspose")
def _conv_transpose(env: ShapeEnv, node: Node) -> None:
    data, weight = shape_at(env, node, 0), shape_at(env, node, 1)
    if data is None or weight is None or len(data) < 3 or "output_shape" in node.attributes:
        return schema_inference.infer(env, node)
    spatial = len(data) - 2
    strides = integers(node, "strides") or (1,) * spatial
    dilations = integers(node, "dilations") or (1,) * spatial
    pads = integers(node, "pads") or (0,) * (2 * spatial)
    extra = integers(node, "output_padding") or (0,) * spatial
    sizes: list[Dim] = []
    for axis in range(spatial):
        kernel = weight[2 + axis]
        if attribute(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
            sizes.append(data[2 + axis] * strides[axis])
        else:
            reach = (kernel - 1) * dilations[axis] + 1
            sizes.append((data[2 + axis] - 1) * strides[axis] + extra[axis] + reach - pads[axis] - pads[axis + spatial])
    return env.set(node.outputs[0], dtype_at(env, node), (data[0], weight[1] * integer(node, "group", 1), *sizes))


@on("Resize", "Upsample")
def _resize(env: ShapeEnv, node: Node) -> None:
    shape = shape_at(env, node, 0)
    if shape is None:
        return env.set(node.outputs[0], dtype_at(env, node), None)
    sizes = env.elements(input_at(node, 3))
    scales_input = input_at(node, 1 if node.op_type == "Upsample" or env.opset < 11 else 2)
    plain = "axes" not in node.attributes and attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
    if plain and sizes is not None and len(sizes) == len(shape):
        return env.set(node.outputs[0], dtype_at(env, node), sizes)
    scales = constants.small_array(scales_input)
    factors = None if scales is None else scales.reshape(-1).tolist()
    if factors is None and isinstance(attribute(node, "scales"), (list, tuple)):
        factors = list(attribute(node, "scales"))  # type: ignore[call-overload]
    if not plain or factors is None or len(factors) != len(shape):
        return env.set(node.outputs[0], dtype_at(env, node), unknown(len(shape)))
    return env.set(
        node.outputs[0], dtype_at(env, node), [_scaled(dim, f) for dim, f in zip(shape, factors, strict=True)]
    )


def _scaled(dim: Dim, factor: float) -> Dim:
    if isinstance(dim, int):
        return math.floor(np.float32(dim) * np.float32(factor))  # as runtimes do: 10 times 0.7 is 7
    return dim * int(factor) if factor == int(factor) else dims.fresh()


@on("DepthToSpace")
def _depth_to_space(env: ShapeEnv, node: Node) -> None:
    shape, block = shape_at(env, node, 0), integer(node, "blocksize", 1)
    result = None
    if shape is not None and len(shape) == 4:
        result = (shape[0], dims.floordiv(shape[1], block * block), shape[2] * block, shape[3] * block)
    env.set(node.outputs[0], dtype_at(env, node), result)
