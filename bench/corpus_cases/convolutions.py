"""Convolutions with what stands around them: norms, activations, squeeze-and-excite, residuals, heads of detectors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

from corpus_cases.cases import Call, Function, case, floats

IMAGE = "N 8 H W"

ACTIVATIONS: dict[str, tuple[Any, str, str]] = {
    "relu": (nn.ReLU(), "nn.ReLU", "ts11 ts17 ts17s dyn18"),
    "relu6": (nn.ReLU6(), "nn.ReLU6 (MobileNetV2)", "ts11 ts17 dyn18"),
    "silu": (nn.SiLU(), "nn.SiLU (YOLOv5 and later, EfficientNet)", "ts11 ts17 ts17s dyn18"),
    "hardswish": (nn.Hardswish(), "nn.Hardswish (MobileNetV3)", "ts11 ts14 dyn18"),
    "hardswish_relu6": (lambda x: x * F.relu6(x + 3.0) / 6.0, "x * F.relu6(x + 3) / 6", "ts11 dyn18"),
    "hardsigmoid": (nn.Hardsigmoid(), "nn.Hardsigmoid", "ts11 dyn18"),
    "sigmoid": (nn.Sigmoid(), "nn.Sigmoid", "ts17"),
    "leaky_relu": (nn.LeakyReLU(0.1), "nn.LeakyReLU(0.1) (YOLOv3)", "ts11 dyn18"),
    "mish": (nn.Mish(), "nn.Mish (YOLOv4)", "ts11 ts18 dyn18"),
    "gelu": (nn.GELU(), "nn.GELU", "ts17 ts20 dyn18"),
    "prelu": (nn.PReLU(8), "nn.PReLU by channel", "ts11 ts17 dyn18"),
    "elu": (nn.ELU(), "nn.ELU", "ts17"),
    "tanh": (nn.Tanh(), "nn.Tanh", "ts17"),
    "clamp": (lambda x: torch.clamp(x, 0.0, 20.0), "torch.clamp(x, 0, 20)", "ts11 ts17"),
}


def _conv_activation(name: str) -> None:
    activation, module, variants = ACTIVATIONS[name]

    @case(f"conv_bn_{name}", variants, f"nn.Conv2d(bias=False), nn.BatchNorm2d, {module}")
    def make() -> Any:
        conv, norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        parts = {"conv": conv, "norm": norm} | ({"activation": activation} if isinstance(activation, nn.Module) else {})
        return Function(lambda x: activation(norm(conv(x))), **parts), {"x": floats(IMAGE)}


for name in ACTIVATIONS:
    _conv_activation(name)


def conv(inputs: int, outputs: int, kernel: int = 1, activation: Any = nn.SiLU, **options: Any) -> nn.Sequential:
    """Convolution, batch norm and activation, as most detectors have it."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), *([activation()] if activation else []))


@case("conv_bias_relu_1x1", "ts17 ts17s", "nn.Conv2d(kernel 1, bias), F.relu")
def conv_bias() -> Any:
    layer = nn.Conv2d(8, 16, 1)
    return Function(lambda x: F.relu(layer(x)), layer=layer), {"x": floats(IMAGE)}


@case("conv_same_padding", "ts17 ts17s dyn18", "nn.Conv2d(padding='same'), even kernel")
def same_padding() -> Any:
    return nn.Conv2d(8, 8, 4, padding="same"), {"x": floats(IMAGE)}


@case(
    "conv_pad_constant",
    "ts11 ts17 dyn18",
    "F.pad (0, 1, 0, 1), nn.Conv2d(stride=2) (TensorFlow's padding in transformers MobileNet)",
)
def pad_conv() -> Any:
    layer = nn.Conv2d(8, 8, 3, stride=2)
    return Function(lambda x: F.relu(layer(F.pad(x, (0, 1, 0, 1)))), layer=layer), {"x": floats(IMAGE)}


@case("conv_pad_reflect", "ts17 dyn18", "nn.ReflectionPad2d, nn.Conv2d, nn.InstanceNorm2d, F.relu (style transfer)")
def pad_reflect() -> Any:
    parts = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU())
    return parts, {"x": floats(IMAGE)}


@case("conv_1d_gelu", "ts17 dyn18", "nn.Conv1d twice with F.gelu, permute, add of positions (Whisper's stem)")
def conv_1d() -> Any:
    first, second = nn.Conv1d(8, 16, 3, padding=1), nn.Conv1d(16, 16, 3, stride=2, padding=1)
    positions = nn.Embedding(6, 16)

    def run(x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(second(F.gelu(first(x)))).permute(0, 2, 1)
        return x + positions.weight

    return Function(run, first=first, second=second, positions=positions), {"x": floats("N 8 12")}


@case("conv_depthwise_pointwise", "ts11 ts17 ts17s dyn18", "depthwise 3x3, bn, relu6, pointwise, bn (MobileNet)")
def depthwise() -> Any:
    parts = nn.Sequential(conv(8, 8, 3, nn.ReLU6, groups=8), conv(8, 16, 1, None))
    return parts, {"x": floats(IMAGE)}


@case(
    "conv_inverted_residual", "ts17 ts17s dyn18", "1x1, depthwise 3x3, 1x1 without activation, residual (MobileNetV2)"
)
def inverted() -> Any:
    parts = nn.Sequential(conv(8, 16, 1, nn.ReLU6), conv(16, 16, 3, nn.ReLU6, groups=16), conv(16, 8, 1, None))
    return Function(lambda x: x + parts(x), parts=parts), {"x": floats(IMAGE)}


@case("conv_residual_relu", "ts11 ts17 ts17s dyn18", "basic block: conv bn relu conv bn, + x, relu (ResNet-18)")
def basic_block() -> Any:
    parts = nn.Sequential(conv(8, 8, 3, nn.ReLU), conv(8, 8, 3, None))
    return Function(lambda x: F.relu(parts(x) + x), parts=parts), {"x": floats(IMAGE)}


@case("conv_bottleneck_down", "ts17 ts17s dyn18", "bottleneck with a strided shortcut (ResNet-50)")
def bottleneck() -> Any:
    parts = nn.Sequential(conv(8, 8, 1, nn.ReLU), conv(8, 8, 3, nn.ReLU, stride=2), conv(8, 16, 1, None))
    short = conv(8, 16, 1, None, stride=2)
    return Function(lambda x: F.relu(parts(x) + short(x)), parts=parts, short=short), {"x": floats(IMAGE)}


@case("conv_stem_maxpool", "ts11 ts17s dyn18", "7x7 stride 2, bn, relu, max pool (ResNet's stem)")
def stem() -> Any:
    parts = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return parts, {"x": floats("N 3 H W")}


def _squeeze(name: str, variants: str, module: str, gate: Any, pool: Any) -> None:
    @case(f"conv_se_{name}", variants, f"depthwise conv, bn, activation, squeeze-and-excite ({module}), 1x1 conv")
    def make() -> Any:
        before, after = conv(8, 8, 3, nn.Hardswish, groups=8), conv(8, 16, 1, None)
        down, up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

        def run(x: torch.Tensor) -> torch.Tensor:
            x = before(x)
            return after(x * gate(up(F.relu(down(pool(x))))))

        return Function(run, before=before, after=after, down=down, up=up), {"x": floats(IMAGE)}


_squeeze(
    "adaptive",
    "ts11 ts17 ts17s dyn18",
    "F.adaptive_avg_pool2d, F.hardsigmoid (torchvision MobileNetV3)",
    F.hardsigmoid,
    lambda x: F.adaptive_avg_pool2d(x, 1),
)
_squeeze(
    "mean",
    "ts11 ts17 ts18 dyn18",
    "x.mean((2, 3), keepdim=True), sigmoid (timm EfficientNet)",
    torch.sigmoid,
    lambda x: x.mean((2, 3), keepdim=True),
)
_squeeze(
    "relu6",
    "ts11 dyn18",
    "F.adaptive_avg_pool2d, F.relu6(x + 3) / 6 (PaddleOCR in torch)",
    lambda x: F.relu6(x + 3.0) / 6.0,
    lambda x: F.adaptive_avg_pool2d(x, 1),
)


@case("conv_se_linear", "ts11 ts17 dyn18", "squeeze-and-excite by nn.Linear on a view (SENet)")
def se_linear() -> Any:
    down, up = nn.Linear(8, 4, bias=False), nn.Linear(4, 8, bias=False)

    def run(x: torch.Tensor) -> torch.Tensor:
        batch, channels, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(batch, channels)
        y = torch.sigmoid(up(F.relu(down(y)))).view(batch, channels, 1, 1)
        return x * y.expand_as(x)

    return Function(run, down=down, up=up), {"x": floats(IMAGE)}


@case(
    "conv_se_bottleneck",
    "ts11 ts17 ts17s dyn18",
    "a bottleneck with squeeze-and-excite by nn.Linear and its residual (SE-ResNet)",
)
def se_bottleneck() -> Any:
    convolutions = nn.Sequential(
        *(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)),
    )
    squeeze = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 8), nn.Sigmoid())

    def run(x: torch.Tensor) -> torch.Tensor:
        y = convolutions(x)
        batch, channels, _, _ = y.size()
        gates = squeeze(F.adaptive_avg_pool2d(y, 1).view(batch, channels)).view(batch, channels, 1, 1)
        return F.relu(y * gates.expand_as(y) + x)

    return Function(run, convolutions=convolutions, squeeze=squeeze), {"x": floats(IMAGE)}


@case("conv_eca", "ts17", "efficient channel attention: mean, conv over channels, sigmoid, expand")
def eca() -> Any:
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def run(x: torch.Tensor) -> torch.Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        y = layer(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)

    return Function(run, layer=layer), {"x": floats(IMAGE)}


@case(
    "conv_transpose_bn_relu",
    "ts11 ts17 ts17s dyn18",
    "nn.ConvTranspose2d(kernel 2, stride 2), bn, relu (DB head of PP-OCR, U-Net)",
)
def transpose() -> Any:
    parts = nn.Sequential(
        nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 1, 2, 2), nn.Sigmoid()
    )
    return parts, {"x": floats(IMAGE)}


@case("conv_transpose_overlap", "ts17", "nn.ConvTranspose2d(kernel 4, stride 2, padding 1), leaky relu (GANs)")
def transpose_overlap() -> Any:
    return nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.LeakyReLU(0.2)), {"x": floats(IMAGE)}


@case(
    "conv_upsample_nearest", "ts11 ts17 ts17s dyn18", "nn.Upsample(scale_factor=2, nearest), concat, conv (YOLO's neck)"
)
def upsample() -> Any:
    up, after = nn.Upsample(scale_factor=2, mode="nearest"), conv(16, 8)
    inputs = {"x": floats("N 8 4 4"), "skip": floats("N 8 8 8")}
    return Function(lambda x, skip: after(torch.cat((up(x), skip), 1)), after=after), inputs


@case("conv_interpolate_size", "ts11 ts17 dyn18", "F.interpolate(x, size=skip.shape[2:], bilinear), add (FPN)")
def interpolate() -> Any:
    lateral = nn.Conv2d(8, 8, 1)

    def run(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return lateral(skip) + F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)

    return Function(run, lateral=lateral), {"x": floats("N 8 4 6"), "skip": floats(IMAGE)}


@case("conv_pixel_shuffle", "ts11 ts17 ts17s dyn18", "nn.Conv2d, nn.PixelShuffle(2) (ESPCN)")
def pixel_shuffle() -> Any:
    return nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)), {"x": floats(IMAGE)}


@case("conv_focus", "ts11 ts17 dyn18", "Focus of YOLOv5: four strided slices, concat, conv")
def focus() -> Any:
    after = conv(12, 8, 3)

    def run(x: torch.Tensor) -> torch.Tensor:
        return after(torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1))

    return Function(run, after=after), {"x": floats("N 3 H W")}


@case(
    "conv_channel_shuffle",
    "ts11 ts17 ts17s dyn18",
    "split, depthwise branch, concat, channel shuffle by view and transpose (ShuffleNetV2)",
)
def channel_shuffle() -> Any:
    branch = nn.Sequential(conv(4, 4, 1, nn.ReLU), conv(4, 4, 3, None, groups=4), conv(4, 4, 1, nn.ReLU))

    def run(x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, branch(right)), dim=1)
        batch, channels, height, width = x.size()
        return (
            x.view(batch, 2, channels // 2, height, width)
            .transpose(1, 2)
            .contiguous()
            .view(batch, channels, height, width)
        )

    return Function(run, branch=branch), {"x": floats(IMAGE)}


@case("conv_dense_block", "ts17", "bn relu conv, concat with the input, twice (DenseNet)")
def dense() -> Any:
    norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(12)]
    convs = [nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.Conv2d(12, 4, 3, padding=1, bias=False)]

    def run(x: torch.Tensor) -> torch.Tensor:
        for norm, layer in zip(norms, convs):
            x = torch.cat((x, layer(F.relu(norm(x)))), 1)
        return x

    return Function(run, norms=nn.ModuleList(norms), convs=nn.ModuleList(convs)), {"x": floats(IMAGE)}


# --- blocks of YOLO, written after Ultralytics' description of them -------------------------------------------------------
@case(
    "yolo_c2f", "ts11 ts17 ts17s dyn18", "C2f of YOLOv8: 1x1 conv, chunk in two, bottlenecks, concat of all, 1x1 conv"
)
def c2f() -> Any:
    first, last = conv(8, 16), conv(24, 8)
    steps = nn.ModuleList([nn.Sequential(conv(8, 8, 3), conv(8, 8, 3))])

    def run(x: torch.Tensor) -> torch.Tensor:
        parts = list(first(x).chunk(2, 1))
        for step in steps:
            parts.append(parts[-1] + step(parts[-1]))
        return last(torch.cat(parts, 1))

    return Function(run, first=first, last=last, steps=steps), {"x": floats(IMAGE)}


@case("yolo_c3", "ts11 ts17", "C3 of YOLOv5: two 1x1 convs, bottlenecks on one, concat, 1x1 conv")
def c3() -> Any:
    left, right, last = conv(8, 4), conv(8, 4), conv(8, 8)
    step = nn.Sequential(conv(4, 4, 1), conv(4, 4, 3))

    def run(x: torch.Tensor) -> torch.Tensor:
        a = left(x)
        return last(torch.cat((a + step(a), right(x)), 1))

    return Function(run, left=left, right=right, last=last, step=step), {"x": floats(IMAGE)}


@case("yolo_sppf", "ts11 ts17 ts17s dyn18", "SPPF: 1x1 conv, three max pools of 5 in a row, concat of four, 1x1 conv")
def sppf() -> Any:
    first, last, pool = conv(8, 4), conv(16, 8), nn.MaxPool2d(5, 1, 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        parts = [first(x)]
        for _ in range(3):
            parts.append(pool(parts[-1]))
        return last(torch.cat(parts, 1))

    return Function(run, first=first, last=last), {"x": floats(IMAGE)}


@case(
    "yolo_detect_dfl",
    "ts11 ts17 ts17s dyn18",
    "Detect of YOLOv8: box and class convs, views, concat over levels, softmax over bins by a 1x1 conv (DFL), boxes, sigmoid",
)
def detect() -> Any:
    bins, classes = 4, 3
    boxes = nn.ModuleList([nn.Sequential(conv(8, 8, 3), nn.Conv2d(8, 4 * bins, 1)) for _ in range(2)])
    scores = nn.ModuleList([nn.Sequential(conv(8, 8, 3), nn.Conv2d(8, classes, 1)) for _ in range(2)])
    expectation = nn.Conv2d(bins, 1, 1, bias=False)
    anchors, strides = torch.rand(2, 20) * 4, torch.tensor([8.0] * 16 + [16.0] * 4)

    def run(large: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
        levels = [torch.cat((box(x), score(x)), 1) for box, score, x in zip(boxes, scores, (large, small))]
        merged = torch.cat([x.view(x.shape[0], 4 * bins + classes, -1) for x in levels], 2)
        box, score = merged.split((4 * bins, classes), 1)
        batch, _, count = box.shape
        distance = expectation(box.view(batch, 4, bins, count).transpose(2, 1).softmax(1)).view(batch, 4, count)
        low, high = distance.chunk(2, 1)
        first, last = anchors.unsqueeze(0) - low, anchors.unsqueeze(0) + high
        return torch.cat((torch.cat(((first + last) / 2, last - first), 1) * strides, score.sigmoid()), 1)

    parts = {"boxes": boxes, "scores": scores, "expectation": expectation}
    return Function(run, **parts), {"large": floats("N 8 4 4"), "small": floats("N 8 2 2")}


@case("yolo5_detect", "ts11 ts17", "Detect of YOLOv5: conv, view, permute, sigmoid, split, boxes by grid, view")
def detect5() -> Any:
    layer = nn.Conv2d(8, 2 * 8, 1)
    grid, anchors = torch.rand(1, 2, 4, 4, 2), torch.rand(1, 2, 4, 4, 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = layer(x).shape
        y = layer(x).view(batch, 2, 8, height, width).permute(0, 1, 3, 4, 2).contiguous()
        centre, size, score = y.sigmoid().split((2, 2, 4), 4)
        y = torch.cat(((centre * 2 + grid) * 8, (size * 2) ** 2 * anchors, score), 4)
        return y.view(batch, 2 * height * width, 8)

    return Function(run, layer=layer), {"x": floats("N 8 4 4")}


# --- whole blocks of transformers -----------------------------------------------------------------------------------------
@case("mobilenet_v2_block", "ts17 ts17s dyn18", "transformers MobileNetV2InvertedResidual")
def mobilenet_v2() -> Any:
    from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import MobileNetV2InvertedResidual

    return MobileNetV2InvertedResidual(hf.MobileNetV2Config(), 8, 8, 1), {"x": floats("N 8 H W")}


@case(
    "efficientnet_block",
    "ts17 ts17s",
    "transformers EfficientNetBlock: expand, depthwise, squeeze-and-excite, project, residual",
)
def efficientnet() -> Any:
    from transformers.models.efficientnet.modeling_efficientnet import EfficientNetBlock

    block = EfficientNetBlock(hf.EfficientNetConfig(), 8, 8, 1, 4, 3, 0.0, True, True)
    return block, {"x": floats(IMAGE)}


@case(
    "resnet_classifier",
    "ts11 ts17s dyn18",
    "transformers ResNetForImageClassification, one stage, global pool, flatten, linear",
)
def resnet() -> Any:
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[16], depths=[1], num_labels=4)
    return Call(hf.ResNetForImageClassification(config), "pixel_values"), {"x": floats("N 3 16 16")}


@case(
    "unet_block",
    "ts17 dyn18",
    "group norm, silu, conv, time embedding added by channel, group norm, silu, conv, residual (diffusers ResnetBlock2D)",
)
def unet_block() -> Any:
    norms = nn.ModuleList([nn.GroupNorm(4, 8), nn.GroupNorm(4, 8)])
    convs = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)])
    time = nn.Linear(16, 8)

    def run(x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        y = convs[0](F.silu(norms[0](x))) + time(F.silu(embedding))[:, :, None, None]
        return (x + convs[1](F.silu(norms[1](y)))) / 1.0

    return Function(run, norms=norms, convs=convs, time=time), {"x": floats(IMAGE), "embedding": floats("N 16")}
