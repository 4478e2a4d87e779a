"""Export what paddle2onnx writes for layers of PaddlePaddle, for `export_corpus.py --binary`.

    python bench/export_corpus_paddle.py FOLDER [--only TEXT]

Needs paddlepaddle 3.3 and paddle2onnx 2.1.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import paddle
import paddle.nn.functional as F
import paddle2onnx
from paddle import nn
from paddle.static import InputSpec


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A layer and its dims: `N 8 H W`, or `int64 N S` for integers."""

    name: str
    module: str
    make: Callable[[], nn.Layer]
    inputs: dict[str, str]
    opsets: tuple[int, ...]


CASES: list[Case] = []


def case(name: str, module: str, *, opsets: tuple[int, ...] = (11, 17), **inputs: str) -> Callable[..., Any]:
    """Register a function that returns a layer."""

    def register(make: Callable[[], nn.Layer]) -> Callable[[], nn.Layer]:
        CASES.append(Case(name, module, make, inputs, opsets))
        return make

    return register


class Function(nn.Layer):
    """A function of one tensor as a layer; `parts` are the layers whose weights it uses."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Layer) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_sublayer(name, part)

    def forward(self, x: paddle.Tensor) -> Any:
        return self.function(x)


class FunctionOfTwo(Function):
    """A function of two tensors as a layer."""

    def forward(self, x: paddle.Tensor, y: paddle.Tensor) -> Any:
        return self.function(x, y)


def split_dims(text: str) -> tuple[str, list[str]]:
    words = text.split()
    return ("int64", words[1:]) if words[0] == "int64" else ("float32", words)


def randomize(layer: nn.Layer) -> None:
    """Values that no exporter can fold away; variances are positive."""
    paddle.seed(0)
    for name, value in layer.state_dict().items():
        drawn = paddle.round(paddle.randn(value.shape) * 20) / 100
        value.set_value(drawn.abs() + 0.5 if name.endswith("_variance") else drawn)


def export(one: Case, opset: int) -> onnx.ModelProto:
    layer = one.make()
    randomize(layer)
    layer.eval()
    dims = [split_dims(text) for text in one.inputs.values()]
    specs = [
        InputSpec([int(word) if word.isdigit() else None for word in words], kind, name)
        for name, (kind, words) in zip(one.inputs, dims)
    ]
    with tempfile.TemporaryDirectory() as folder:
        paddle.onnx.export(layer, f"{folder}/model", input_spec=specs, opset_version=opset)
        model = onnx.load(f"{folder}/model.onnx")
    for value, (_, words) in zip(model.graph.input, dims):
        for dim, word in zip(value.type.tensor_type.shape.dim, words):
            if not word.isdigit():
                dim.dim_param = word
    return model


# --- cases -------------------------------------------------------------------------------------------------------------
def conv(
    inputs: int, outputs: int, kernel: int = 1, activation: Callable[..., Any] | None = None, **options: Any
) -> nn.Layer:
    """Convolution, batch norm and activation."""
    layer = nn.Conv2D(inputs, outputs, kernel, padding=kernel // 2, bias_attr=False, **options)
    norm = nn.BatchNorm2D(outputs)
    return Function(lambda x: activation(norm(layer(x))) if activation else norm(layer(x)), layer=layer, norm=norm)


for _name, _activation in {
    "relu": F.relu,
    "hardswish": F.hardswish,
    "swish": F.swish,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
}.items():
    case(f"paddle_conv_bn_{_name}", f"nn.Conv2D, nn.BatchNorm2D, F.{_name}", x="N 8 H W")(
        lambda activation=_activation: conv(8, 8, 3, activation)
    )


@case("paddle_conv_bias_hardsigmoid", "nn.Conv2D with bias, F.hardsigmoid(slope=0.2)", x="N 8 H W")
def conv_hardsigmoid() -> nn.Layer:
    layer = nn.Conv2D(8, 8, 1)
    return Function(lambda x: F.hardsigmoid(layer(x), slope=0.2, offset=0.5), layer=layer)


@case(
    "paddle_squeeze_excite", "nn.AdaptiveAvgPool2D(1), nn.Conv2D twice, F.hardsigmoid, multiply (PP-LCNet)", x="N 8 H W"
)
def squeeze() -> nn.Layer:
    pool, down, up = nn.AdaptiveAvgPool2D(1), nn.Conv2D(8, 4, 1), nn.Conv2D(4, 8, 1)
    before = conv(8, 8, 3, F.hardswish, groups=8)

    def run(x: paddle.Tensor) -> paddle.Tensor:
        x = before(x)
        return paddle.multiply(x, F.hardsigmoid(up(F.relu(down(pool(x))))))

    return Function(run, before=before, down=down, up=up)


@case("paddle_learnable_affine", "conv, scale * x + bias of one element each, F.hardswish (PP-LCNetV3)", x="N 8 H W")
def affine() -> nn.Layer:
    class Block(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2D(8, 8, 1)
            self.scale, self.bias = self.create_parameter([1]), self.create_parameter([1])

        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            return F.hardswish(self.scale * self.conv(x) + self.bias)

    return Block()


@case(
    "paddle_db_head",
    "conv, bn, relu, nn.Conv2DTranspose(2, stride 2), bn, relu, nn.Conv2DTranspose, sigmoid",
    x="N 8 H W",
)
def head() -> nn.Layer:
    parts = nn.Sequential(
        conv(8, 8, 3, F.relu),
        nn.Conv2DTranspose(8, 8, 2, 2),
        nn.BatchNorm2D(8),
        nn.ReLU(),
        nn.Conv2DTranspose(8, 1, 2, 2),
    )
    return Function(lambda x: F.sigmoid(parts(x)), parts=parts)


@case("paddle_layer_norm", "nn.LayerNorm(16, epsilon=1e-6)", x="N S 16")
def layer_norm() -> nn.Layer:
    return nn.LayerNorm(16, epsilon=1e-6)


@case("paddle_group_norm", "nn.GroupNorm(4, 16), F.silu", x="N 16 8 12")
def group_norm() -> nn.Layer:
    norm = nn.GroupNorm(4, 16)
    return Function(lambda x: F.silu(norm(x)), norm=norm)


@case("paddle_instance_norm", "nn.InstanceNorm2D(8)", x="N 8 H W")
def instance_norm() -> nn.Layer:
    return nn.InstanceNorm2D(8)


@case("paddle_linear_gelu", "nn.Linear, F.gelu", opsets=(11, 17, 20), x="N S 16")
def linear_gelu() -> nn.Layer:
    layer = nn.Linear(16, 32)
    return Function(lambda x: F.gelu(layer(x)), layer=layer)


@case("paddle_linear_gelu_tanh", "nn.Linear, F.gelu(approximate=True)", x="N S 16")
def linear_gelu_tanh() -> nn.Layer:
    layer = nn.Linear(16, 32)
    return Function(lambda x: F.gelu(layer(x), approximate=True), layer=layer)


@case("paddle_linear_swish", "nn.Linear, F.swish (SVTR)", x="N S 16")
def linear_swish() -> nn.Layer:
    layer = nn.Linear(16, 32)
    return Function(lambda x: F.swish(layer(x)), layer=layer)


@case("paddle_linear_mish", "nn.Linear, F.mish", x="N S 16")
def linear_mish() -> nn.Layer:
    layer = nn.Linear(16, 32)
    return Function(lambda x: F.mish(layer(x)), layer=layer)


@case(
    "paddle_attention_svtr",
    "global Attention of SVTR in PaddleOCR: one product for q, k, v, reshape with 0, transpose, q scaled",
    x="N S 16",
)
def attention_svtr() -> nn.Layer:
    qkv, proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def run(x: paddle.Tensor) -> paddle.Tensor:
        parts = qkv(x).reshape((0, -1, 3, 2, 8)).transpose((2, 0, 3, 1, 4))
        q, k, v = parts[0] * 8**-0.5, parts[1], parts[2]
        weights = F.softmax(q.matmul(k.transpose((0, 1, 3, 2))), axis=-1)
        return proj(weights.matmul(v).transpose((0, 2, 1, 3)).reshape((0, -1, 16)))

    return Function(run, qkv=qkv, proj=proj)


@case("paddle_attention_multihead", "nn.MultiHeadAttention(16, 2) with an additive mask", x="N S 16", mask="N 1 S S")
def attention_multihead() -> nn.Layer:
    layer = nn.MultiHeadAttention(16, 2)
    return FunctionOfTwo(lambda x, mask: layer(x, x, x, mask), layer=layer)


@case("paddle_embedding_ernie", "word and position embeddings, sum, nn.LayerNorm (ERNIE)", ids="int64 N S")
def embedding() -> nn.Layer:
    words, positions, norm = nn.Embedding(32, 16), nn.Embedding(16, 16), nn.LayerNorm(16)

    def run(ids: paddle.Tensor) -> paddle.Tensor:
        ones = paddle.ones_like(ids)
        return norm(words(ids) + positions(paddle.cumsum(ones, axis=1) - ones))

    return Function(run, words=words, positions=positions, norm=norm)


@case("paddle_pool_classifier", "nn.AdaptiveAvgPool2D(1), flatten, nn.Linear, F.softmax", x="N 8 H W")
def pool() -> nn.Layer:
    average, linear = nn.AdaptiveAvgPool2D(1), nn.Linear(8, 4)
    return Function(lambda x: F.softmax(linear(paddle.flatten(average(x), 1))), linear=linear)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="a regular expression over the names of cases")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for one in CASES:
        for opset in one.opsets if re.search(options.only, one.name) else ():
            try:
                with paddle.utils.unique_name.guard():  # names of weights start over
                    model = export(one, opset)
            except (Exception, SystemExit) as error:
                print(f"{one.name}_{opset} FAILED {type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}")
                continue
            origin = {
                "exporter": f"paddle2onnx {paddle2onnx.__version__} (paddlepaddle {paddle.__version__})",
                "module": one.module,
                "options": "dynamic dims",
            }
            onnx.helper.set_model_props(model, origin)
            onnx.save(model, options.folder / f"{one.name}_{opset}.onnx")


if __name__ == "__main__":
    main()
