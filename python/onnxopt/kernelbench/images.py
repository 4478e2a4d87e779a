"""Problems of convolutions and of what else runs on images, all of them channels-last, as their neighbours in a model are."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from onnxopt import ir
from onnxopt.errors import OptionError
from onnxopt.kernelbench.case import Arrays, Case
from onnxopt.ops import fused_pool, fused_resize

OPSET = 21
BESIDES = "transposes the image, there and back"


def conv(batch: int, height: int, width: int, channels: int, filters: int, kernel: int, *, item: int) -> Case:
    """A convolution and a gated activation, at the size of the image."""
    pixels, weights = batch * height * width, channels * filters * kernel * kernel

    def expected(a: Arrays) -> list[np.ndarray]:
        made = _convolve(_planar(a["x"]), a["w"], a["b"])
        return [_last(made * np.clip(made * 0.2 + 0.5, 0, 1))]

    return Case(
        f"""planar = Transpose<perm=[0,3,1,2]>(x)
        c = Conv<{_same(kernel)}>(planar, w, b)
        h = HardSigmoid(c)
        m = Mul(c, h)
        y = Transpose<perm=[0,2,3,1]>(m)""",
        {"x": (batch, height, width, channels)},
        expected,
        bytes_read=item * (pixels * channels + weights),
        bytes_written=item * pixels * filters,
        operations=2 * pixels * weights,
        constants={"w": (filters, channels, kernel, kernel), "b": (filters,)},
        besides=BESIDES,
    )


def qconv(batch: int, height: int, width: int, channels: int, filters: int, kernel: int, *, item: int) -> Case:
    """A convolution of bytes with a scale for each filter, Relu, and bytes again."""
    pixels, weights = batch * height * width, channels * filters * kernel * kernel
    unit = 1 / (100 * math.sqrt(weights / filters))  # so that results are numbers around one

    def expected(a: Arrays) -> list[np.ndarray]:
        scaled = a["w"] * (np.abs(a["s"]) * unit)[:, None, None, None]
        made = _convolve(_planar((a["x"] - 128) * 0.02), scaled, np.zeros(filters))
        return [_last(np.clip(np.rint(made / 0.02), 0, 255))]

    return Case(
        f"""unit = Constant<value_float={unit}>()
        magnitudes = Abs(s)
        scales = Mul(magnitudes, unit)
        scale = Constant<value_float=0.02>()
        middle = Constant<value = uint8 {{128}}>()
        zero = Constant<value = uint8 {{0}}>()
        planar = Transpose<perm=[0,3,1,2]>(x)
        f = DequantizeLinear(planar, scale, middle)
        m = DequantizeLinear<axis=0>(w, scales)
        c = Conv<{_same(kernel)}>(f, m)
        r = Relu(c)
        q = QuantizeLinear(r, scale, zero)
        y = Transpose<perm=[0,2,3,1]>(q)""",
        {"x": (batch, height, width, channels)},
        expected,
        bytes_read=pixels * channels + weights,
        bytes_written=pixels * filters,
        operations=2 * pixels * weights,
        constants={"w": (filters, channels, kernel, kernel), "s": (filters,)},
        integers={"x": np.uint8, "w": np.int8, "y": np.uint8},
        rate="int8",
        largest_error=1e-2,  # a number between two integers may become either
        besides=BESIDES,
    )


def separable(batch: int, height: int, width: int, channels: int, filters: int, kernel: int, *, item: int) -> Case:
    """A depthwise convolution, Relu and a pointwise one."""
    pixels, taps = batch * height * width, kernel * kernel

    def expected(a: Arrays) -> list[np.ndarray]:
        inner = np.maximum(_convolve(_planar(a["x"]), a["w"], a["b"], group=channels), 0)
        return [_last(_convolve(inner, a["v"], a["c"]))]

    return Case(
        f"""planar = Transpose<perm=[0,3,1,2]>(x)
        d = Conv<{_same(kernel)}, group={channels}>(planar, w, b)
        r = Relu(d)
        p = Conv<kernel_shape=[1,1]>(r, v, c)
        y = Transpose<perm=[0,2,3,1]>(p)""",
        {"x": (batch, height, width, channels)},
        expected,
        bytes_read=item * (pixels * channels + channels * (taps + filters)),
        bytes_written=item * pixels * filters,
        operations=2 * pixels * channels * (taps + filters),
        constants={
            "w": (channels, 1, kernel, kernel),
            "b": (channels,),
            "v": (filters, channels, 1, 1),
            "c": (filters,),
        },
        besides=BESIDES,
    )


def inverted_residual(
    batch: int, height: int, width: int, channels: int, expanded: int, filters: int, kernel: int, *, item: int
) -> Case:
    """A pointwise convolution, a depthwise one, each with Relu, and a pointwise one."""
    pixels, taps = batch * height * width, kernel * kernel

    def expected(a: Arrays) -> list[np.ndarray]:
        inner = np.maximum(_convolve(_planar(a["x"]), a["u"], a["a"]), 0)
        inner = np.maximum(_convolve(inner, a["w"], a["b"], group=expanded), 0)
        return [_last(_convolve(inner, a["v"], a["c"]))]

    return Case(
        f"""planar = Transpose<perm=[0,3,1,2]>(x)
        e = Conv<kernel_shape=[1,1]>(planar, u, a)
        f = Relu(e)
        d = Conv<{_same(kernel)}, group={expanded}>(f, w, b)
        r = Relu(d)
        p = Conv<kernel_shape=[1,1]>(r, v, c)
        y = Transpose<perm=[0,2,3,1]>(p)""",
        {"x": (batch, height, width, channels)},
        expected,
        bytes_read=item * (pixels * channels + expanded * (channels + taps + filters)),
        bytes_written=item * pixels * filters,
        operations=2 * pixels * expanded * (channels + taps + filters),
        constants={
            "u": (expanded, channels, 1, 1),
            "a": (expanded,),
            "w": (expanded, 1, kernel, kernel),
            "b": (expanded,),
            "v": (filters, expanded, 1, 1),
            "c": (filters,),
        },
        besides=BESIDES,
    )


def squeeze_excite(batch: int, height: int, width: int, channels: int, squeezed: int, *, item: int) -> Case:
    """Channels scaled by gates that two products make of their means."""
    pixels, weights = batch * height * width, 2 * channels * squeezed

    def expected(a: Arrays) -> list[np.ndarray]:
        inner = np.maximum(a["x"].mean((1, 2)) @ a["s"] + a["b"], 0)
        return [a["x"] / (1 + np.exp(-(inner @ a["e"] + a["c"])))[:, None, None]]

    return Case(
        f"""pixels = Constant<value_ints=[1,2]>()
        shape = Constant<value_ints=[0,1,1,{channels}]>()
        m = ReduceMean<keepdims=0>(x, pixels)
        p = Gemm(m, s, b)
        r = Relu(p)
        q = Gemm(r, e, c)
        gates = Sigmoid(q)
        g = Reshape(gates, shape)
        y = Mul(x, g)""",
        {"x": (batch, height, width, channels)},
        expected,
        bytes_read=item * (pixels * channels + weights),
        bytes_written=item * pixels * channels,
        operations=2 * pixels * channels + batch * 2 * weights,
        constants={"s": (channels, squeezed), "b": (squeezed,), "e": (squeezed, channels), "c": (channels,)},
    )


def conv_transpose(batch: int, height: int, width: int, channels: int, filters: int, factor: int, *, item: int) -> Case:
    """A transposed convolution whose windows lie side by side: an image that grows by a factor."""
    pixels, weights = batch * height * width, channels * filters * factor * factor

    def expected(a: Arrays) -> list[np.ndarray]:
        made = np.einsum("nhwc,cfij->nhiwjf", a["x"], a["w"], optimize=True) + a["b"]
        return [made.reshape(batch, height * factor, width * factor, filters)]

    return Case(
        f"""planar = Transpose<perm=[0,3,1,2]>(x)
        c = ConvTranspose<kernel_shape=[{factor},{factor}], strides=[{factor},{factor}]>(planar, w, b)
        y = Transpose<perm=[0,2,3,1]>(c)""",
        {"x": (batch, height, width, channels)},
        expected,
        bytes_read=item * (pixels * channels + weights),
        bytes_written=item * pixels * filters * factor * factor,
        operations=2 * pixels * weights,
        constants={"w": (channels, filters, factor, factor), "b": (filters,)},
        besides=BESIDES,
    )


def pool(batch: int, height: int, width: int, channels: int, kernel: int, *, item: int) -> Case:
    """The largest numbers of windows at a distance of two pixels."""
    pads, tall, wide = kernel // 2, _halved(height, kernel), _halved(width, kernel)
    windows = {"kernel_shape": [kernel] * 2, "strides": [2, 2], "pads": [pads] * 4}

    def expected(a: Arrays) -> list[np.ndarray]:
        padded = np.pad(a["x"], ((0, 0), (pads, pads), (pads, pads), (0, 0)), constant_values=-np.inf)
        seen = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (1, 2))
        return [seen[:, ::2, ::2].max((-2, -1))]

    return Case(
        f"y = ai.onnxopt.FusedPool<{_text({'kind': 'max', **windows})}>(x)",
        {"x": (batch, height, width, channels)},
        expected,
        bytes_read=item * batch * height * width * channels,
        bytes_written=item * batch * tall * wide * channels,
        operations=batch * tall * wide * channels * kernel * kernel,
        functions=(_definition(fused_pool.body("max", 4, windows, OPSET)),),
        besides=BESIDES,
    )


def resize(batch: int, height: int, width: int, channels: int, factor: int, *, item: int) -> Case:
    """Every pixel repeated."""
    size = batch * height * width * channels
    return Case(
        f"y = ai.onnxopt.FusedResize<{_text({'factors': [factor] * 2})}>(x)",
        {"x": (batch, height, width, channels)},
        lambda a: [a["x"].repeat(factor, 1).repeat(factor, 2)],
        bytes_read=item * size,
        bytes_written=item * size * factor * factor,
        operations=size * factor * factor,
        functions=(_definition(fused_resize.body([factor] * 2, OPSET)),),
    )


def _same(kernel: int) -> str:
    if kernel % 2 == 0:
        raise OptionError(
            f"The kernel of a convolution that is measured is odd, so that the image keeps its size; {kernel} is not."
        )
    return f"kernel_shape=[{kernel},{kernel}], pads=[{','.join([str(kernel // 2)] * 4)}]"


def _halved(size: int, kernel: int) -> int:
    return (size + 2 * (kernel // 2) - kernel) // 2 + 1


def _text(attributes: Mapping[str, object]) -> str:
    return ", ".join(f'{name}="{one}"' if isinstance(one, str) else f"{name}={one}" for name, one in attributes.items())


def _definition(function: ir.Function) -> str:
    """A function as text, without the overload that tells it from others in a model of many."""
    import onnx

    proto = ir.function_to_proto(function)
    proto.overload = ""
    return str(onnx.printer.to_text(proto))


def _planar(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 3, 1, 2)


def _last(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


def _convolve(x: np.ndarray, w: np.ndarray, bias: np.ndarray, group: int = 1) -> np.ndarray:
    """The convolution of planar images by filters of an odd size, in groups, at the size of the images."""
    pad = w.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], (2, 3))
    windows = windows.reshape(len(x), group, -1, *windows.shape[2:])
    made = np.einsum("ngchwij,gmcij->ngmhw", windows, w.reshape(group, -1, *w.shape[1:]), optimize=True)
    return np.asarray(made.reshape(len(x), -1, *x.shape[2:]) + bias[:, None, None])
