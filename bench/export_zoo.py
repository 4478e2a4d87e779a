"""Export a zoo of architectures beside those of the tables: real widths, few layers, random weights, by both exporters of torch.

    python bench/export_zoo.py OUT_DIR [NAME ...]

Needs torch and transformers. `python bench/bench_models.py OUT_DIR/*.onnx` measures them; what is slower than onnxruntime there is a defect.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

Export = tuple[torch.nn.Module, tuple[torch.Tensor, ...], str]
TOKENS = torch.randint(0, 1000, (1, 64))
LABELS = {"num_labels": 1000}


class First(torch.nn.Module):
    """The first output of a model, as a tensor."""

    def __init__(self, model: torch.nn.Module, **kwargs: Any) -> None:
        super().__init__()
        self.model, self.kwargs = model, kwargs

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.model(*args, **self.kwargs)[0]


def image(size: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(1, 3, size, size),)


def text(model: type, config: Any) -> Export:
    return First(model(config), use_cache=False) if config.is_decoder else First(model(config)), (TOKENS,), "script"


def vision(model: type, config: Any, size: int = 224, exporter: str = "script") -> Export:
    return First(model(config)), image(size), exporter


def decoder(model: type, config: Any, exporter: str = "dynamo") -> Export:
    return First(model(config), use_cache=False), (TOKENS,), exporter


def block(inputs: int, outputs: int, stride: int = 1) -> torch.nn.Sequential:
    layers = torch.nn
    return layers.Sequential(
        layers.Conv2d(inputs, outputs, 3, stride, 1, bias=False), layers.BatchNorm2d(outputs), layers.SiLU()
    )


class Bottleneck(torch.nn.Module):
    """Two convolutions around a residual, as in YOLO."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = block(channels, channels), block(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x))


class CrossStage(torch.nn.Module):
    """Split channels, bottlenecks on a half, concat, 1x1: the C2f block of YOLOv8."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.half = channels // 2
        self.enter = torch.nn.Sequential(torch.nn.Conv2d(channels, channels, 1), torch.nn.SiLU())
        self.inner = torch.nn.ModuleList(Bottleneck(self.half) for _ in range(count))
        self.leave = torch.nn.Sequential(torch.nn.Conv2d(self.half * (2 + count), channels, 1), torch.nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.enter(x).split(self.half, 1))
        for one in self.inner:
            parts.append(one(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Detector(torch.nn.Module):
    """A small one-stage detector: stages down, one stage up with nearest resize and concat, heads flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(block(3, 16, 2), block(16, 32, 2), CrossStage(32, 1))
        self.middle = torch.nn.Sequential(block(32, 64, 2), CrossStage(64, 2))
        self.deep = torch.nn.Sequential(block(64, 128, 2), CrossStage(128, 2))
        self.merge = torch.nn.Sequential(torch.nn.Conv2d(192, 64, 1), CrossStage(64, 1))
        self.heads = torch.nn.ModuleList(
            torch.nn.Sequential(block(c, 64), torch.nn.Conv2d(64, 84, 1)) for c in (64, 128)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        middle = self.middle(self.stem(x))
        deep = self.deep(middle)
        up = torch.nn.functional.interpolate(deep, scale_factor=2.0, mode="nearest")
        merged = self.merge(torch.cat([up, middle], 1))
        return torch.cat([head(level).flatten(2) for head, level in zip(self.heads, (merged, deep), strict=True)], 2)


class Unet(torch.nn.Module):
    """Convolutions with GroupNorm and SiLU, transposed convolutions up, skips by concat."""

    def __init__(self) -> None:
        super().__init__()
        layers = torch.nn

        def stage(inputs: int, outputs: int) -> torch.nn.Sequential:
            return layers.Sequential(
                layers.Conv2d(inputs, outputs, 3, 1, 1), layers.GroupNorm(8, outputs), layers.SiLU()
            )

        self.one, self.two, self.three = stage(3, 32), stage(32, 64), stage(64, 128)
        self.up_two, self.up_one = layers.ConvTranspose2d(128, 64, 2, 2), layers.ConvTranspose2d(64, 32, 2, 2)
        self.join_two, self.join_one, self.out = stage(128, 64), stage(64, 32), layers.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pool = torch.nn.functional.max_pool2d
        one = self.one(x)
        two = self.two(pool(one, 2))
        three = self.three(pool(two, 2))
        two = self.join_two(torch.cat([self.up_two(three), two], 1))
        return self.out(self.join_one(torch.cat([self.up_one(two), one], 1)))


class Separable(torch.nn.Module):
    """Inverted residuals with squeeze-and-excitation and hard-swish, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        layers = torch.nn

        class Inverted(layers.Module):
            def __init__(self, channels: int, wide: int, kernel: int) -> None:
                super().__init__()
                self.expand = layers.Sequential(
                    layers.Conv2d(channels, wide, 1), layers.BatchNorm2d(wide), layers.Hardswish()
                )
                self.depth = layers.Sequential(
                    layers.Conv2d(wide, wide, kernel, 1, kernel // 2, groups=wide),
                    layers.BatchNorm2d(wide),
                    layers.Hardswish(),
                )
                self.squeeze = layers.Sequential(
                    layers.AdaptiveAvgPool2d(1),
                    layers.Conv2d(wide, wide // 4, 1),
                    layers.ReLU(),
                    layers.Conv2d(wide // 4, wide, 1),
                    layers.Hardsigmoid(),
                )
                self.project = layers.Sequential(layers.Conv2d(wide, channels, 1), layers.BatchNorm2d(channels))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = self.depth(self.expand(x))
                return x + self.project(y * self.squeeze(y))

        def down(inputs: int, outputs: int) -> torch.nn.Sequential:
            return layers.Sequential(
                layers.Conv2d(inputs, outputs, 3, 2, 1), layers.BatchNorm2d(outputs), layers.Hardswish()
            )

        self.body = layers.Sequential(
            down(3, 16),
            Inverted(16, 64, 3),
            down(16, 24),
            Inverted(24, 72, 3),
            down(24, 40),
            Inverted(40, 120, 5),
            Inverted(40, 240, 5),
            down(40, 80),
            Inverted(80, 200, 3),
            Inverted(80, 480, 3),
        )
        self.head = layers.Linear(80, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Branched(torch.nn.Module):
    """Blocks of several convolutions and a normalization of one tensor, added, as RepVGG and MobileOne are trained."""

    def __init__(self) -> None:
        super().__init__()
        layers = torch.nn

        class Block(layers.Module):
            def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 1) -> None:
                super().__init__()
                self.branches = layers.ModuleList(
                    layers.Sequential(
                        layers.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False),
                        layers.BatchNorm2d(outputs),
                    )
                    for side in (3, 1)
                )
                if stride == 1 and inputs == outputs:
                    self.branches.append(layers.BatchNorm2d(inputs))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return sum((branch(x) for branch in self.branches[1:]), self.branches[0](x)).relu()

        stages = (
            (3, 48, 2),
            (48, 48, 2),
            (48, 48, 1),
            (48, 96, 2),
            (96, 96, 1),
            (96, 96, 1),
            (96, 192, 2),
            (192, 192, 1),
        )
        self.body = layers.Sequential(*(Block(*stage) for stage in stages), Block(192, 192, 1, 192))
        self.head = layers.Linear(192, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Shuffled(torch.nn.Module):
    """Half of the channels through a residual of separable convolutions, then all of them shuffled, as in ShuffleNetV2."""

    def __init__(self) -> None:
        super().__init__()
        layers = torch.nn

        def branch(channels: int) -> torch.nn.Sequential:
            return layers.Sequential(
                layers.Conv2d(channels, channels, 1, bias=False), layers.BatchNorm2d(channels), layers.ReLU(),
                layers.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False), layers.BatchNorm2d(channels),
                layers.Conv2d(channels, channels, 1, bias=False), layers.BatchNorm2d(channels), layers.ReLU(),
            )  # fmt: skip

        self.stem = layers.Sequential(layers.Conv2d(3, 116, 3, 2, 1), layers.ReLU(), layers.MaxPool2d(3, 4, 1))
        self.branches = layers.ModuleList(branch(58) for _ in range(6))
        self.head = layers.Linear(116, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for branch in self.branches:
            kept, taken = x.chunk(2, 1)
            x = torch.cat((kept, branch(taken)), 1)
            x = x.view(-1, 2, 58, *x.shape[2:]).transpose(1, 2).reshape(-1, 116, *x.shape[2:])
        return self.head(x.mean((2, 3)))


class Pyramid(torch.nn.Module):
    """Dilated convolutions of one map and its mean, resized back, as in DeepLab."""

    def __init__(self) -> None:
        super().__init__()
        layers = torch.nn
        self.stem = layers.Sequential(block(3, 32, 2), block(32, 64, 2), block(64, 96, 2), block(96, 160, 2))
        self.maps = layers.ModuleList(
            [layers.Conv2d(160, 96, 1), *(layers.Conv2d(160, 96, 3, 1, rate, rate) for rate in (6, 12, 18))]
        )
        self.mean = layers.Conv2d(160, 96, 1)
        self.head = layers.Sequential(layers.Conv2d(480, 96, 1), layers.ReLU(), layers.Conv2d(96, 21, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        resize = torch.nn.functional.interpolate
        y = self.stem(x)
        mean = resize(self.mean(y.mean((2, 3), keepdim=True)).relu(), y.shape[2:], mode="bilinear")
        return resize(
            self.head(torch.cat([*(one(y).relu() for one in self.maps), mean], 1)), x.shape[2:], mode="bilinear"
        )


class Separator(torch.nn.Module):
    """Encoder, dilated depthwise residuals with global norms, masks, decoder: Conv-TasNet."""

    def __init__(self) -> None:
        super().__init__()
        layers = torch.nn

        def residual(rate: int) -> torch.nn.Sequential:
            return layers.Sequential(
                layers.Conv1d(64, 128, 1), layers.PReLU(), layers.GroupNorm(1, 128),
                layers.Conv1d(128, 128, 3, 1, rate, rate, 128), layers.PReLU(), layers.GroupNorm(1, 128),
                layers.Conv1d(128, 64, 1),
            )  # fmt: skip

        self.encoder = layers.Conv1d(1, 128, 16, 8, bias=False)
        self.enter = layers.Sequential(layers.GroupNorm(1, 128), layers.Conv1d(128, 64, 1))
        self.residuals = layers.ModuleList(residual(2**i) for i in range(6))
        self.masks = layers.Sequential(layers.PReLU(), layers.Conv1d(64, 256, 1), layers.Sigmoid())
        self.decoder = layers.ConvTranspose1d(128, 1, 16, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        coded = self.encoder(x).relu()
        y = self.enter(coded)
        for one in self.residuals:
            y = y + one(y)
        masked = self.masks(y).unflatten(1, (2, 128)) * coded.unsqueeze(1)
        return self.decoder(masked.flatten(0, 1))


class Recognizer(torch.nn.Module):
    """Convolutions, then two bidirectional LSTMs over the width: CRNN."""

    def __init__(self) -> None:
        super().__init__()
        layers = torch.nn
        widths = (1, 64, 128, 256, 256)
        self.body = layers.Sequential(
            *(
                layers.Sequential(
                    layers.Conv2d(a, b, 3, 1, 1),
                    layers.BatchNorm2d(b),
                    layers.ReLU(),
                    layers.MaxPool2d((2, 2 if i < 2 else 1)),
                )
                for i, (a, b) in enumerate(itertools.pairwise(widths))
            )
        )
        self.rnn = layers.LSTM(512, 128, 2, bidirectional=True, batch_first=True)
        self.head = layers.Linear(256, 97)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x).flatten(1, 2).transpose(1, 2)
        return self.head(self.rnn(y)[0]).softmax(-1)


ZOO: dict[str, Callable[[], Export]] = {
    "roberta": lambda: text(hf.RobertaModel, hf.RobertaConfig(num_hidden_layers=3, vocab_size=1000)),
    "distilbert": lambda: (
        First(hf.DistilBertModel(hf.DistilBertConfig(n_layers=3, vocab_size=1000))),
        (TOKENS,),
        "dynamo",
    ),
    "albert": lambda: (
        First(
            hf.AlbertModel(
                hf.AlbertConfig(
                    hidden_size=768,
                    num_attention_heads=12,
                    intermediate_size=3072,
                    num_hidden_layers=3,
                    vocab_size=1000,
                )
            )
        ),
        (TOKENS,),
        "script",
    ),
    "electra": lambda: (
        First(hf.ElectraModel(hf.ElectraConfig(num_hidden_layers=4, vocab_size=1000))),
        (TOKENS,),
        "dynamo",
    ),
    "deberta": lambda: (
        First(
            hf.DebertaV2Model(
                hf.DebertaV2Config(
                    hidden_size=768,
                    num_attention_heads=12,
                    intermediate_size=3072,
                    num_hidden_layers=2,
                    vocab_size=1000,
                    relative_attention=True,
                    pos_att_type=["p2c", "c2p"],
                    position_biased_input=False,
                )
            )
        ),
        (TOKENS,),
        "script",
    ),
    "t5enc": lambda: (
        First(hf.T5EncoderModel(hf.T5Config(num_layers=3, vocab_size=1000, d_model=512))),
        (TOKENS,),
        "script",
    ),
    "gpt2": lambda: decoder(hf.GPT2Model, hf.GPT2Config(n_layer=3, vocab_size=1000), "script"),
    "gptneox": lambda: decoder(
        hf.GPTNeoXModel,
        hf.GPTNeoXConfig(
            hidden_size=512, num_hidden_layers=3, num_attention_heads=8, intermediate_size=2048, vocab_size=1000
        ),
    ),
    "qwen2": lambda: decoder(
        hf.Qwen2Model,
        hf.Qwen2Config(
            hidden_size=512,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=2,
            intermediate_size=1536,
            vocab_size=1000,
        ),
    ),
    "gemma": lambda: decoder(
        hf.GemmaModel,
        hf.GemmaConfig(
            hidden_size=512,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=64,
            intermediate_size=2048,
            vocab_size=1000,
        ),
    ),
    "phi": lambda: decoder(
        hf.PhiModel,
        hf.PhiConfig(
            hidden_size=512, num_hidden_layers=3, num_attention_heads=8, intermediate_size=2048, vocab_size=1000
        ),
    ),
    # The loops over tokens of these are written out by the exporter, step by step.
    "mamba": lambda: decoder(hf.MambaModel, hf.MambaConfig(num_hidden_layers=2, vocab_size=1000), "script"),
    "rwkv": lambda: decoder(
        hf.RwkvModel, hf.RwkvConfig(hidden_size=768, num_hidden_layers=2, vocab_size=1000), "script"
    ),
    "recurrentgemma": lambda: decoder(
        hf.RecurrentGemmaModel,
        hf.RecurrentGemmaConfig(
            hidden_size=512, num_hidden_layers=3, num_attention_heads=8, intermediate_size=2048, vocab_size=1000
        ),
    ),
    "clipvision": lambda: vision(hf.CLIPVisionModel, hf.CLIPVisionConfig(num_hidden_layers=3)),
    "beit": lambda: vision(hf.BeitModel, hf.BeitConfig(num_hidden_layers=3, use_relative_position_bias=True)),
    "swinv2": lambda: vision(
        hf.Swinv2ForImageClassification,
        hf.Swinv2Config(depths=[1, 1, 2, 1], image_size=256, window_size=8, **LABELS),
        256,
    ),
    "segformer": lambda: vision(hf.SegformerForSemanticSegmentation, hf.SegformerConfig(), 256),
    "mobilevit": lambda: vision(hf.MobileViTForImageClassification, hf.MobileViTConfig(**LABELS), 256),
    "regnet": lambda: vision(hf.RegNetForImageClassification, hf.RegNetConfig(**LABELS)),
    "resnet18": lambda: vision(
        hf.ResNetForImageClassification,
        hf.ResNetConfig(layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], **LABELS),
    ),
    "mobilenetv1": lambda: vision(hf.MobileNetV1ForImageClassification, hf.MobileNetV1Config(**LABELS)),
    "efficientnet": lambda: vision(
        hf.EfficientNetForImageClassification,
        hf.EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, image_size=224, hidden_dim=1280, **LABELS),
    ),
    "convnextv2": lambda: vision(
        hf.ConvNextV2ForImageClassification, hf.ConvNextV2Config(depths=[2, 2, 3, 2], **LABELS), exporter="dynamo"
    ),
    "poolformer": lambda: vision(hf.PoolFormerForImageClassification, hf.PoolFormerConfig(**LABELS)),
    "levit": lambda: vision(hf.LevitForImageClassification, hf.LevitConfig(**LABELS)),
    "wav2vec2": lambda: (
        First(hf.Wav2Vec2Model(hf.Wav2Vec2Config(num_hidden_layers=2))),
        (torch.randn(1, 16000),),
        "script",
    ),
    "detector": lambda: (Detector(), image(320), "script"),
    "detector_dynamo": lambda: (Detector(), image(320), "dynamo"),
    "unet": lambda: (Unet(), image(128), "script"),
    "separable": lambda: (Separable(), image(224), "script"),
    "branched": lambda: (Branched(), image(224), "script"),
    "shuffled": lambda: (Shuffled(), image(224), "script"),
    "pyramid": lambda: (Pyramid(), image(256), "script"),
    "separator": lambda: (Separator(), (torch.randn(1, 1, 8000),), "script"),
    "recognizer": lambda: (Recognizer(), (torch.randn(1, 1, 32, 160),), "script"),
}


SEQUENCES = {
    "vocab_size": 1000,
    "d_model": 512,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
}
"""Sizes of encoders with decoders."""

LAYERS = {
    "hidden_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "intermediate_size": 1536,
    "vocab_size": 1000,
}
PATCHES = {"hidden_size": 384, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 1536}
SOUND = {"num_hidden_layers": 2, "vocab_size": 32}


def sound(model: type, config: Any) -> Export:
    return First(model(config)), (torch.randn(1, 16000),), "script"


class Step(torch.nn.Module):
    """One step of a decoder with a cache of keys and values, in and out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cache = hf.DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(*past[2 * layer : 2 * layer + 2], layer)
        result = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        layers = result.past_key_values.layers
        return result[0], *(tensor for layer in layers for tensor in (layer.keys, layer.values))


def step(model: type, config: Any, heads: int, size: int, exporter: str = "script") -> Export:
    past = [torch.randn(1, heads, 128, size) for _ in range(2 * config.num_hidden_layers)]
    return Step(model(config)), (torch.randint(0, 1000, (1, 1)), *past), exporter


ZOO |= {
    "bart": lambda: (First(hf.BartModel(hf.BartConfig(**SEQUENCES)), use_cache=False), (TOKENS,), "script"),
    "bloom": lambda: decoder(
        hf.BloomModel, hf.BloomConfig(hidden_size=512, n_layer=3, n_head=8, vocab_size=1000), "script"
    ),
    "falcon": lambda: step(
        hf.FalconForCausalLM,
        hf.FalconConfig(hidden_size=512, num_hidden_layers=3, num_attention_heads=8, vocab_size=1000),
        1,
        64,
    ),
    "gptj": lambda: decoder(
        hf.GPTJModel, hf.GPTJConfig(n_embd=512, n_layer=3, n_head=8, rotary_dim=32, vocab_size=1000), "script"
    ),
    "opt": lambda: decoder(
        hf.OPTModel,
        hf.OPTConfig(
            hidden_size=512,
            num_hidden_layers=3,
            num_attention_heads=8,
            ffn_dim=2048,
            vocab_size=1000,
            word_embed_proj_dim=512,
        ),
    ),
    "qwen3_step": lambda: step(
        hf.Qwen3ForCausalLM, hf.Qwen3Config(**LAYERS, num_key_value_heads=2, head_dim=64), 2, 64
    ),
    "stablelm": lambda: decoder(hf.StableLmModel, hf.StableLmConfig(**LAYERS, num_key_value_heads=8), "script"),
    "mpnet": lambda: text(hf.MPNetModel, hf.MPNetConfig(num_hidden_layers=3, vocab_size=1000)),
    "xlnet": lambda: (
        First(hf.XLNetModel(hf.XLNetConfig(vocab_size=1000, d_model=768, n_layer=2, n_head=12, d_inner=3072))),
        (TOKENS,),
        "script",
    ),
    "funnel": lambda: (
        First(hf.FunnelModel(hf.FunnelConfig(vocab_size=1000, block_sizes=[1, 1, 1], num_decoder_layers=1))),
        (TOKENS,),
        "script",
    ),
    "dinov2": lambda: vision(hf.Dinov2Model, hf.Dinov2Config(**PATCHES, patch_size=14)),
    "yolos": lambda: vision(hf.YolosModel, hf.YolosConfig(**PATCHES, image_size=[224, 224], num_detection_tokens=20)),
    "samvision": lambda: vision(
        hf.SamVisionModel,
        hf.SamVisionConfig(
            hidden_size=192,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=256,
            global_attn_indexes=[1],
            window_size=7,
            output_channels=64,
        ),
        256,
    ),
    "hubert": lambda: sound(hf.HubertModel, hf.HubertConfig(**SOUND)),
    "wavlm": lambda: sound(hf.WavLMModel, hf.WavLMConfig(**SOUND)),
    "conformer": lambda: sound(hf.Wav2Vec2ConformerModel, hf.Wav2Vec2ConformerConfig(**SOUND)),
}


def export(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    module, inputs, exporter = ZOO[name]()
    path = str(folder / f"{name}.onnx")
    with torch.no_grad():
        if exporter == "dynamo":
            torch.onnx.export(module.eval(), inputs, dynamo=True).save(path)  # type: ignore[union-attr]
        else:
            torch.onnx.export(module.eval(), inputs, path, opset_version=17, dynamo=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ZOO))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or ZOO:
        try:
            export(name, arguments.folder)
            print(name, flush=True)
        except Exception as error:  # an exporter's failure is no reason to go without the others
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:160]}", flush=True)


if __name__ == "__main__":
    main()
