"""Random networks of the parts that trained models are made of, in the forms that exporters write them: images and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]


class Network:
    """A graph while it is built. Values have the shapes of the feeds; the dims in `symbols` are symbolic in the model."""

    symbols: dict[int, str] = {}  # by axis of every input

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = self.choose([17, 20])
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shapes: dict[str, Shape] = {}
        self.feeds: dict[str, np.ndarray] = {}

    # --- what graphs are made of ------------------------------------------------------------------------------------
    def chance(self, part: float = 0.5) -> bool:
        return bool(self.rng.random() < part)

    def choose(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def input(self, name: str, array: np.ndarray) -> str:
        self.feeds[name] = array
        self.shapes[name] = array.shape
        return name

    def add(self, op: str, inputs: Sequence[str | np.ndarray], shape: Shape, **attributes: Any) -> str:
        """A node of one output; arrays among its inputs become initializers."""
        names = [one if isinstance(one, str) else self.weight(one) for one in inputs]
        result = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [result], name=f"n{len(self.nodes)}", **attributes))
        self.shapes[result] = shape
        return result

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def numbers(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def either(self, a: str | np.ndarray, b: str | np.ndarray) -> list[str | np.ndarray]:
        """Operands of a commutative op, in any order."""
        return [a, b] if self.chance() else [b, a]

    def unary(self, op: str, x: str, **attributes: Any) -> str:
        return self.add(op, [x], self.shapes[x], **attributes)

    def same(self, op: str, x: str, other: str | np.ndarray) -> str:
        """x op other, of the shape of x; Add and Mul in any order."""
        operands = self.either(x, other) if op in ("Add", "Mul") else [x, other]
        return self.add(op, operands, self.shapes[x])

    def mean(self, x: str, axes: Sequence[int], keepdims: bool = True) -> str:
        """Over some axes, which are an input from opset 18 on."""
        sizes = [
            1 if axis in axes else size for axis, size in enumerate(self.shapes[x]) if keepdims or axis not in axes
        ]
        if self.opset < 18:
            return self.add("ReduceMean", [x], tuple(sizes), axes=axes, keepdims=int(keepdims))
        return self.add("ReduceMean", [x, np.array(axes)], tuple(sizes), keepdims=int(keepdims))

    def activation(self, x: str) -> str:
        one, half = np.float32(1), np.float32(0.5)
        match self.choose(["Relu", "Sigmoid", "Tanh", "silu", "hard_swish", "HardSwish", "gelu", "gelu_tanh", "leaky", "clip", "mish", "elu", "hard_sigmoid", "softplus", *(["Gelu"] if self.opset >= 20 else [])]):  # fmt: skip
            case "silu":
                return self.same("Mul", x, self.unary("Sigmoid", x))
            case "hard_swish":
                shifted = self.same("Add", x, np.float32(3))
                clipped = self.add("Clip", [shifted, np.float32(0), np.float32(6)], self.shapes[x])
                if self.chance():
                    return self.same("Mul", x, self.same("Div", clipped, np.float32(6)))
                return self.same("Div", self.same("Mul", x, clipped), np.float32(6))
            case "hard_sigmoid":
                return self.same("Mul", x, self.unary("HardSigmoid", x, alpha=1 / 6, beta=0.5))
            case "gelu":
                wide = self.same("Div", x, np.float32(2**0.5))
                sum_ = self.same("Add", self.unary("Erf", wide), one)
                if self.chance():
                    return self.same("Mul", self.same("Mul", x, sum_), half)
                return self.same("Mul", self.same("Mul", x, half), sum_)
            case "gelu_tanh":
                cube = self.add("Pow", [x, np.float32(3)], self.shapes[x])
                inner = self.same("Add", x, self.same("Mul", cube, np.float32(0.044715)))
                gate = self.same(
                    "Add", self.unary("Tanh", self.same("Mul", inner, np.float32((2 / np.pi) ** 0.5))), one
                )
                return self.same("Mul", self.same("Mul", x, half), gate)
            case "leaky":
                return self.unary("LeakyRelu", x, alpha=0.1)
            case "clip":
                return self.add("Clip", [x, np.float32(0), np.float32(6)], self.shapes[x])
            case "mish":
                return self.same("Mul", x, self.unary("Tanh", self.unary("Softplus", x)))
            case "elu":
                return self.unary("Elu", x, alpha=1.0)
            case "softplus":
                return self.unary("Softplus", x)
            case plain:
                return self.unary(plain, x)

    def transpose(self, x: str, *perm: int) -> str:
        return self.add("Transpose", [x], tuple(self.shapes[x][axis] for axis in perm), perm=perm)

    def reshape(self, x: str, *shape: int) -> str:
        """-1 and 0 as Reshape takes them."""
        old = self.shapes[x]
        sizes = [old[axis] if size == 0 else size for axis, size in enumerate(shape)]
        known = int(np.prod([size for size in sizes if size >= 0]))
        actual = tuple(int(np.prod(old)) // known if size == -1 else size for size in sizes)
        return self.add("Reshape", [x, np.array(shape, np.int64)], actual)

    def decomposed_norm(self, x: str, axis: int, width: int, mean: bool) -> str:
        """LayerNorm, or RMSNorm without the mean, over one axis, from its parts."""
        shape = self.shapes[x]
        weights = (width,) + (1,) * (len(shape) - axis - 1)
        centred = self.same("Sub", x, self.mean(x, [axis])) if mean else x
        squared = (
            self.add("Pow", [centred, np.float32(2)], shape) if self.chance() else self.same("Mul", centred, centred)
        )
        variance = self.same("Add", self.mean(squared, [axis]), np.float32(1e-5))
        root = self.unary("Sqrt", variance)
        scaled = (
            self.same("Div", centred, root)
            if self.chance()
            else self.same("Mul", centred, self.unary("Reciprocal", root))
        )
        result = self.same("Mul", scaled, self.numbers(*weights))
        return self.same("Add", result, self.numbers(*weights)) if mean else result

    def finish(self, results: Sequence[str]) -> onnx.ModelProto:
        def info(name: str, symbolic: bool) -> onnx.ValueInfoProto:
            array = self.feeds.get(name)
            dtype = TensorProto.FLOAT if array is None else helper.np_dtype_to_tensor_dtype(array.dtype)
            shape = self.shapes[name]
            dims = (
                [self.symbols.get(axis, size) for axis, size in enumerate(shape)] if symbolic else [None] * len(shape)
            )
            return helper.make_tensor_value_info(name, dtype, dims)

        graph = helper.make_graph(
            self.nodes, "network", [info(name, True) for name in self.feeds], [info(name, False) for name in results], self.weights
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)


class ImageNetwork(Network):
    """Convolutions and what stands around them. A few feature maps are alive at a time; each part takes some of them."""

    def build(self) -> onnx.ModelProto:
        self.symbols = self.choose([{}, {0: "N"}, {0: "N", 2: "H", 3: "W"}])
        batch, channels = int(self.rng.integers(1, 3)), self.choose([1, 3, 8, 16, 24, 40])
        height, width = (int(size) for size in self.rng.integers(8, 24, 2))
        self.alive = [self.input("x", self.numbers(batch, channels, height, width))]
        parts = [self.convolution] * 3 + [self.inverted_residual, self.residual, self.excite, self.join, self.split, self.pool,
            self.enlarge, self.norm, self.scale, self.shuffle, self.pad, self.one_activation, self.sums]  # fmt: skip
        for _ in range(int(self.rng.integers(3, 9))):
            self.alive.append(self.choose(parts)(self.choose(self.alive[-2:])))
        read = {name for node in self.nodes for name in node.input}
        ends = [name for name in self.alive if name not in read and name != "x"] or [self.alive[-1]]
        return self.finish([self.head(name) if self.chance(0.3) else name for name in ends])

    # --- parts ------------------------------------------------------------------------------------------------------
    def one_activation(self, x: str) -> str:
        return self.activation(x)

    def convolve(
        self, x: str, channels: int, kernel: int = 1, groups: int = 1, stride: int = 1, dilation: int = 1
    ) -> str:
        """A convolution that keeps the size, or divides it by its stride."""
        batch, depth, *sizes = self.shapes[x]
        fan = depth // groups * kernel * kernel
        inputs: list[str | np.ndarray] = [x, self.numbers(channels, depth // groups, kernel, kernel, scale=fan**-0.5)]
        if self.chance(0.7):
            inputs.append(self.numbers(channels, scale=0.2))
        reach = dilation * (kernel - 1)
        before, after = reach // 2, reach - reach // 2
        shape = (batch, channels, *((size + reach - reach - 1) // stride + 1 for size in sizes))
        return self.add(
            "Conv", inputs, shape, kernel_shape=[kernel, kernel], group=groups,
            strides=[stride, stride], dilations=[dilation, dilation], pads=[before, before, after, after],
        )  # fmt: skip

    def normalize(self, x: str) -> str:
        width = self.shapes[x][1]
        positive = self.rng.uniform(0.5, 2, width).astype(np.float32)
        parameters = [self.numbers(width), self.numbers(width, scale=0.3), self.numbers(width, scale=0.3), positive]
        return self.add("BatchNormalization", [x, *parameters], self.shapes[x], epsilon=1e-5)

    def convolution(self, x: str) -> str:
        depth = self.shapes[x][1]
        groups = self.choose([1, 1, 1, depth, depth, *(size for size in (2, 4) if depth % size == 0)])
        channels = groups * self.choose([1, 1, 2]) if groups == depth else groups * self.choose([2, 4, 8, 10, 32])
        kernel, stride, dilation = self.choose([1, 3, 3, 5, 7, 2]), self.choose([1, 1, 2]), self.choose([1, 1, 1, 2])
        x = self.convolve(x, channels, kernel, groups, stride, dilation)
        if self.chance():
            x = self.normalize(x)
        return self.activation(x) if self.chance(0.7) else x

    def inverted_residual(self, x: str) -> str:
        depth = self.shapes[x][1]
        wide, stride = depth * self.choose([1, 3, 4]), self.choose([1, 1, 2])
        y = self.activation(self.convolve(x, wide))
        y = self.convolve(y, wide, self.choose([3, 5]), wide, stride)
        y = self.activation(y) if self.chance(0.8) else y
        y = self.excite(y) if self.chance(0.3) else y
        y = self.convolve(y, depth if stride == 1 else depth + 8)
        return self.same("Add", y, x) if stride == 1 and self.chance(0.8) else y

    def residual(self, x: str) -> str:
        depth = self.shapes[x][1]
        y = self.convolve(self.activation(self.convolve(x, depth, 3)), depth, self.choose([1, 3]))
        y = self.same("Add", self.normalize(y) if self.chance() else y, x)
        return self.activation(y) if self.chance(0.7) else y

    def sums(self, x: str) -> str:
        """Branches that are added, as RepVGG is trained."""
        depth = self.shapes[x][1]
        branches = [self.convolve(x, depth, 3), self.convolve(x, depth, 1), self.normalize(x)]
        y = branches[0]
        for other in branches[1 : int(self.rng.integers(2, 4))]:
            y = self.same("Add", y, other)
        return self.activation(y)

    def means(self, x: str) -> str:
        if self.chance():
            return self.mean(x, [2, 3])
        return self.add("GlobalAveragePool", [x], (*self.shapes[x][:2], 1, 1))

    def excite(self, x: str) -> str:
        depth = self.shapes[x][1]
        gate = self.convolve(self.unary("Relu", self.convolve(self.means(x), max(depth // 4, 1))), depth)
        gate = self.unary("Sigmoid", gate) if self.chance() else self.unary("HardSigmoid", gate, alpha=0.2, beta=0.5)
        return self.same("Mul", x, gate)

    def join(self, x: str) -> str:
        """Concat with whatever has the same pixels; channels of a third one as well."""
        batch, _, *sizes = self.shapes[x]
        others = [name for name in self.alive if list(self.shapes[name][2:]) == sizes]
        chosen = [x, *(self.choose(others) for _ in range(int(self.rng.integers(1, 3))))]
        y = self.add("Concat", chosen, (batch, sum(self.shapes[name][1] for name in chosen), *sizes), axis=1)
        return self.convolve(y, self.choose([8, 20]))

    def split(self, x: str) -> str:
        """One half goes through a convolution, as in CSP and ShuffleNetV2."""
        batch, depth, *sizes = self.shapes[x]
        if depth < 2:
            return self.activation(x)
        first = depth // 2
        bounds = [(0, first), (first, depth)]
        halves = [
            self.add("Slice", [x, *(np.array([number]) for number in (begin, end, 1))], (batch, end - begin, *sizes))
            for begin, end in bounds
        ]
        halves[1] = self.activation(self.convolve(halves[1], depth - first, 3))
        y = self.add("Concat", halves, (batch, depth, *sizes), axis=1)
        return self.shuffle(y)

    def shuffle(self, x: str) -> str:
        """Channels of two groups in turn."""
        batch, depth, *sizes = self.shapes[x]
        if depth % 2:
            return self.scale(x)
        y = self.add("Reshape", [x, np.array([0, 2, depth // 2, *sizes])], (batch, 2, depth // 2, *sizes))
        y = self.transpose(y, 0, 2, 1, 3, 4)
        return self.add("Reshape", [y, np.array([0, depth, *sizes])], (batch, depth, *sizes))

    def pool(self, x: str) -> str:
        batch, depth, *sizes = self.shapes[x]
        kernel, stride = self.choose([(2, 2), (3, 2), (3, 1), (5, 1)])
        pad = kernel // 2 if kernel % 2 else 0
        if min(sizes) + 2 * pad < kernel:
            return self.activation(x)
        shape = (batch, depth, *((size + 2 * pad - kernel) // stride + 1 for size in sizes))
        common = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        if self.chance():
            return self.add("MaxPool", [x], shape, **common)
        return self.add("AveragePool", [x], shape, **common, count_include_pad=int(self.chance()))

    def enlarge(self, x: str) -> str:
        batch, depth, *sizes = self.shapes[x]
        shape = (batch, depth, *(2 * size for size in sizes))
        if max(shape[2:]) > 48:
            return self.pool(x)
        if depth % 4 == 0 and self.chance(0.3):
            return self.add(
                "DepthToSpace", [x], (batch, depth // 4, *shape[2:]), blocksize=2, mode=self.choose(["DCR", "CRD"])
            )
        if self.chance():
            channels = self.choose([4, 8, 12])
            filters = self.numbers(depth, channels, 2, 2, scale=(4 * depth) ** -0.5)
            return self.add("ConvTranspose", [x, filters, self.numbers(channels)], (batch, channels, *shape[2:]), strides=[2, 2], kernel_shape=[2, 2])  # fmt: skip
        mode = self.choose(["nearest", "linear"])
        how = {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"} if mode == "nearest" else {
            "coordinate_transformation_mode": self.choose(["half_pixel", "align_corners", "pytorch_half_pixel"])}  # fmt: skip
        return self.add("Resize", [x, "", np.array([1, 1, 2, 2], np.float32)], shape, mode=mode, **how)

    def norm(self, x: str) -> str:
        """Over the channels: channels-last for the op, as ConvNeXt is exported, or where they are, from its parts."""
        depth = self.shapes[x][1]
        if self.chance():
            return self.decomposed_norm(x, 1, depth, mean=True)
        y = self.transpose(x, 0, 2, 3, 1)
        y = self.add("LayerNormalization", [y, self.numbers(depth), self.numbers(depth)], self.shapes[y], axis=-1)
        if self.chance():
            hidden = self.add(
                "MatMul", [y, self.numbers(depth, 2 * depth, scale=depth**-0.5)], (*self.shapes[y][:3], 2 * depth)
            )
            hidden = self.activation(self.same("Add", hidden, self.numbers(2 * depth)))
            y = self.add("MatMul", [hidden, self.numbers(2 * depth, depth, scale=(2 * depth) ** -0.5)], self.shapes[y])
        y = self.transpose(y, 0, 3, 1, 2)
        return self.same("Add", y, x) if self.chance() else y

    def scale(self, x: str) -> str:
        depth = self.shapes[x][1]
        y = self.same("Mul", x, self.numbers(depth, 1, 1))
        return self.same("Add", y, self.numbers(1, depth, 1, 1)) if self.chance() else y

    def pad(self, x: str) -> str:
        batch, depth, *sizes = self.shapes[x]
        mode = self.choose(["constant", "edge", *(["reflect"] if min(sizes) > 2 else [])])
        y = self.add(
            "Pad", [x, np.array([0, 0, 1, 0, 0, 0, 1, 2])], (batch, depth, sizes[0] + 2, sizes[1] + 2), mode=mode
        )
        return self.convolve(y, self.choose([6, 16]), 3)

    def head(self, x: str) -> str:
        """A classifier."""
        batch, depth, *_ = self.shapes[x]
        y = self.means(x)
        y = (
            self.add("Flatten", [y], (batch, depth))
            if self.chance()
            else self.add("Squeeze", [y, np.array([2, 3])], (batch, depth))
        )
        y = self.add("Gemm", [y, self.numbers(10, depth, scale=depth**-0.5), self.numbers(10)], (batch, 10), transB=1)
        return self.add("Softmax", [y], (batch, 10), axis=-1)


class TokenNetwork(Network):
    """A transformer's stream of tokens [batch, tokens, width]: norms, attention and products, each in one of many forms."""

    def build(self) -> onnx.ModelProto:
        self.symbols = self.choose([{}, {0: "N"}, {0: "N", 1: "S"}])
        self.batch, self.tokens = int(self.rng.integers(1, 4)), int(self.rng.integers(2, 20))
        self.heads, self.depth = self.choose([1, 2, 3, 4]), self.choose([4, 8, 10, 16])
        self.width = self.heads * self.depth
        x = self.input("x", self.numbers(self.batch, self.tokens, self.width))
        if self.chance():
            self.input("mask", (self.rng.random((self.batch, self.tokens)) < 0.8).astype(np.int64))
            self.feeds["mask"][:, 0] = 1
        for _ in range(int(self.rng.integers(1, 5))):
            part = self.choose([self.attention, self.attention, self.perceptron, self.gated, self.linear])
            if self.chance():
                x = self.residual(part(self.norm(x)), x)
            else:
                x = self.norm(self.residual(part(x), x))
        if self.chance(0.3):
            x = self.mean(x, [1], keepdims=False)
        elif self.chance(0.3):
            x = self.add("Gather", [x, np.array(0)], (self.batch, self.width), axis=1)
            x = self.unary("Tanh", self.affine(x, self.width))
        return self.finish([x])

    def residual(self, y: str, x: str) -> str:
        return self.same("Add", y, x) if self.chance(0.8) else y

    def norm(self, x: str) -> str:
        shape = self.shapes[x]
        match self.choose(["op", "parts", "rms", "none"]):
            case "op":
                return self.add(
                    "LayerNormalization", [x, self.numbers(self.width), self.numbers(self.width)], shape, axis=-1
                )
            case "parts":
                return self.decomposed_norm(x, 2, self.width, mean=True)
            case "rms":
                return self.decomposed_norm(x, 2, self.width, mean=False)
        return x

    def affine(self, x: str, columns: int, bias: bool | None = None) -> str:
        rows = self.shapes[x][-1]
        matrix = self.numbers(rows, columns, scale=rows**-0.5)
        shape = (*self.shapes[x][:-1], columns)
        if len(shape) == 2 and self.chance():
            return self.add("Gemm", [x, np.ascontiguousarray(matrix.T), self.numbers(columns)], shape, transB=1)
        y = self.add("MatMul", [x, matrix], shape)
        return self.same("Add", y, self.numbers(columns, scale=0.2)) if (self.chance() if bias is None else bias) else y

    def linear(self, x: str) -> str:
        return self.affine(x, self.width)

    def perceptron(self, x: str) -> str:
        return self.affine(self.activation(self.affine(x, self.width * 2)), self.width)

    def gated(self, x: str) -> str:
        inner = self.width + 8
        gate, up = self.activation(self.affine(x, inner)), self.affine(x, inner)
        return self.affine(self.same("Mul", gate, up), self.width)

    # --- attention --------------------------------------------------------------------------------------------------
    def attention(self, x: str) -> str:
        shared = self.choose([1, self.heads]) if self.chance(0.3) else self.heads  # heads of keys and values
        q, k, v = self.projections(x, shared)
        if self.chance(0.3) and self.depth % 2 == 0:
            q, k = self.rotate(q), self.rotate(k)
        if shared != self.heads:
            k, v = self.repeat(k), self.repeat(v)
        shape = (self.batch, self.heads, self.tokens, self.tokens)
        scale = np.float32(self.depth**-0.5)
        how = self.choose(["query", "both", "divide", "scores", "none"])
        if how == "query":
            q = self.same("Mul", q, scale)
        k = self.transpose(k, 0, 1, 3, 2)
        if how == "both":
            q, k = self.same("Mul", q, np.sqrt(scale)), self.same("Mul", k, np.sqrt(scale))
        scores = self.add("MatMul", [q, k], shape)
        if how == "divide":
            scores = self.same("Div", scores, 1 / scale)
        elif how == "scores":
            scores = self.same("Mul", scores, scale)
        if self.chance(0.2):
            scores = self.same("Mul", self.unary("Tanh", self.same("Div", scores, np.float32(5))), np.float32(5))
        weights = self.add("Softmax", [self.masked(scores)], shape, axis=self.choose([-1, 3]))
        y = self.add("MatMul", [weights, v], (self.batch, self.heads, self.tokens, self.depth))
        y = self.reshape(self.transpose(y, 0, 2, 1, 3), 0, self.choose([-1, 0]), self.width)
        return self.affine(y, self.width)

    def projections(self, x: str, shared: int) -> list[str]:
        """Queries, keys and values, [batch, heads, tokens, depth]: by a product each, or by one that is divided."""
        bias = self.chance()
        if shared == self.heads and self.chance(0.4):
            y = self.affine(x, 3 * self.width, bias)
            y = self.transpose(self.reshape(y, 0, -1, 3, self.heads, self.depth), 2, 0, 3, 1, 4)
            shape = self.shapes[y][1:]
            return [self.add("Gather", [y, np.array(index)], shape, axis=0) for index in range(3)]
        return [
            self.split_heads(self.affine(x, heads * self.depth, bias), heads) for heads in (self.heads, shared, shared)
        ]

    def split_heads(self, x: str, heads: int) -> str:
        return self.transpose(self.reshape(x, 0, -1, heads, self.depth), 0, 2, 1, 3)

    def repeat(self, x: str) -> str:
        """One head of keys for all."""
        if self.shapes[x][1] != 1 or self.chance():
            return x
        shape = (self.batch, self.heads, self.tokens, self.depth)
        return self.add("Expand", [x, np.array([1, self.heads, 1, 1])], shape)

    def rotate(self, x: str) -> str:
        """Rotary embedding of halves, as transformers writes it."""
        if 1 in self.symbols:
            return x
        angles = np.arange(self.tokens)[:, None] * 0.5 ** np.arange(self.depth // 2)
        cos, sin = (np.tile(function(angles), 2).astype(np.float32) for function in (np.cos, np.sin))
        half, most = self.depth // 2, np.iinfo(np.int64).max
        shape = (*self.shapes[x][:3], half)
        first, second = (
            self.add("Slice", [x, *(np.array([number]) for number in (begin, end, 3))], shape)
            for begin, end in ((0, half), (half, most))
        )
        turned = self.add("Concat", [self.unary("Neg", second), first], self.shapes[x], axis=-1)
        return self.same("Add", self.same("Mul", x, cos), self.same("Mul", turned, sin))

    def masked(self, scores: str) -> str:
        if "mask" in self.feeds and self.chance(0.7):
            mask = self.add("Unsqueeze", ["mask", np.array([1, 2])], (self.batch, 1, 1, self.tokens))
            if self.chance():
                keeps = self.add("Cast", [mask], self.shapes[mask], to=TensorProto.BOOL)
                return self.add("Where", [keeps, scores, np.float32(-3e38)], self.shapes[scores])
            numbers = self.add("Cast", [mask], self.shapes[mask], to=TensorProto.FLOAT)
            hidden = self.add("Sub", [np.float32(1), numbers], self.shapes[mask])
            return self.same("Add", scores, self.same("Mul", hidden, np.float32(-3.4e38)))
        if 1 not in self.symbols and self.chance(0.5):
            if self.chance():
                return self.same("Add", scores, self.numbers(self.choose([1, self.heads]), self.tokens, self.tokens))
            causal = np.tril(np.ones((1, 1, self.tokens, self.tokens), bool))
            return self.add("Where", [causal, scores, np.float32(-np.inf)], self.shapes[scores])
        return scores
