"""Normalizations, alone and with what stands around them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from corpus_cases.cases import Function, case, floats, half_floats


@case("layer_norm", "ts11 ts17 ts17s ts18 dyn18 dyn18s", "nn.LayerNorm")
def layer_norm() -> Any:
    return nn.LayerNorm(16), {"x": floats("N S 16")}


@case("layer_norm_no_affine", "ts11 ts17 dyn18", "nn.LayerNorm(elementwise_affine=False) (DiT)")
def layer_norm_no_affine() -> Any:
    return nn.LayerNorm(16, elementwise_affine=False, eps=1e-6), {"x": floats("N S 16")}


@case("layer_norm_no_bias", "ts17 dyn18", "nn.LayerNorm(bias=False) (ModernBERT)")
def layer_norm_no_bias() -> Any:
    return nn.LayerNorm(16, bias=False), {"x": floats("N S 16")}


@case("layer_norm_half", "ts11 ts17 dyn18", "nn.LayerNorm in float16")
def layer_norm_half() -> Any:
    return nn.LayerNorm(16).half(), {"x": half_floats("N S 16")}


@case("layer_norm_two_axes", "ts11 ts17", "nn.LayerNorm((4, 16))")
def layer_norm_two_axes() -> Any:
    return nn.LayerNorm((4, 16)), {"x": floats("N 4 16")}


@case(
    "layer_norm_residual", "ts11 ts17 dyn18", "nn.LayerNorm(nn.Linear(x) + residual), both used after (post-norm, BERT)"
)
def layer_norm_residual() -> Any:
    norm, linear = nn.LayerNorm(16), nn.Linear(16, 16)
    return Function(lambda x, residual: norm(linear(x) + residual), norm=norm, linear=linear), {
        "x": floats("N S 16"),
        "residual": floats("N S 16"),
    }


@case("layer_norm_prenorm", "ts11 ts17 dyn18", "sum = x + residual; norm(sum) and sum are both used (pre-norm)")
def layer_norm_prenorm() -> Any:
    norm, linear = nn.LayerNorm(16), nn.Linear(16, 16)

    def run(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        total = x + residual
        return total + linear(norm(total))

    return Function(run, norm=norm, linear=linear), {"x": floats("N S 16"), "residual": floats("N S 16")}


@case("layer_norm_gelu", "ts17 dyn18", "F.gelu(nn.LayerNorm(x))")
def layer_norm_gelu() -> Any:
    norm = nn.LayerNorm(16)
    return Function(lambda x: F.gelu(norm(x)), norm=norm), {"x": floats("N S 16")}


@case("layer_norm_modulated", "ts17 dyn18", "norm without affine * (1 + scale) + shift (adaLN, DiT)")
def layer_norm_modulated() -> Any:
    norm = nn.LayerNorm(16, elementwise_affine=False, eps=1e-6)
    return Function(lambda x, scale, shift: norm(x) * (1 + scale[:, None]) + shift[:, None], norm=norm), {
        "x": floats("N S 16"),
        "scale": floats("N 16"),
        "shift": floats("N 16"),
    }


@case(
    "layer_norm_manual_tf",
    "ts11 ts17 dyn18",
    "TF style: torch.mean, (x - u).pow(2).mean, / torch.sqrt(s + eps), weight * x + bias",
)
def layer_norm_manual() -> Any:
    weight, bias = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(16))

    class Manual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = weight, bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            u = x.mean(-1, keepdim=True)
            s = (x - u).pow(2).mean(-1, keepdim=True)
            x = (x - u) / torch.sqrt(s + 1e-12)
            return self.weight * x + self.bias

    return Manual(), {"x": floats("N S 16")}


@case(
    "layer_norm_manual_rsqrt", "ts17 dyn18", "torch.rsqrt of the biased torch.var, (x - mean) * rsqrt * weight + bias"
)
def layer_norm_rsqrt() -> Any:
    class Manual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = x.mean(-1, keepdim=True)
            variance = x.var(-1, keepdim=True, unbiased=False)
            return (x - mean) * torch.rsqrt(variance + 1e-5) * self.weight + self.bias

    return Manual(), {"x": floats("N S 16")}


@case(
    "layer_norm_std_deberta",
    "ts17",
    "float32 cast, mean, centred square mean, sqrt, back to the input's type (DeBERTa's LayerNorm)",
)
def layer_norm_deberta() -> Any:
    class Manual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(16))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            kind = hidden.dtype
            hidden = hidden.float()
            mean = hidden.mean(-1, keepdim=True)
            variance = (hidden - mean).pow(2).mean(-1, keepdim=True)
            hidden = ((hidden - mean) / torch.sqrt(variance + 1e-7)).to(kind)
            return self.weight * hidden + self.bias

    return Manual(), {"x": floats("N S 16")}


class ChannelsFirstNorm(nn.Module):
    """ConvNeXt's LayerNorm over channels of NCHW, computed by hand (original repository)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


@case(
    "layer_norm_channels_first",
    "ts11 ts17 ts17s dyn18",
    "ConvNeXt's channels_first LayerNorm of the original repository",
)
def channels_first() -> Any:
    return ChannelsFirstNorm(16), {"x": floats("N 16 H W")}


@case(
    "layer_norm_channels_last",
    "ts11 ts17 ts17s dyn18",
    "permute to NHWC, nn.LayerNorm, permute back (transformers ConvNextLayerNorm)",
)
def channels_last() -> Any:
    norm = nn.LayerNorm(16)
    return Function(lambda x: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=norm), {"x": floats("N 16 H W")}


@case("convnext_layer", "ts11 ts17 ts17s dyn18", "transformers ConvNextLayer")
def convnext_layer() -> Any:
    from transformers import ConvNextConfig
    from transformers.models.convnext.modeling_convnext import ConvNextLayer

    return ConvNextLayer(ConvNextConfig(), dim=16), {"x": floats("N 16 H W")}


@case("rms_norm_llama", "ts17 ts17s dyn18 dyn23", "transformers LlamaRMSNorm")
def rms_norm_llama() -> Any:
    return LlamaRMSNorm(16), {"x": floats("N S 16")}


@case("rms_norm_llama_half", "ts17 dyn18", "transformers LlamaRMSNorm in float16: statistics in float32 between Casts")
def rms_norm_llama_half() -> Any:
    norm = LlamaRMSNorm(16)
    return Function(lambda x: norm(x.half() * norm.weight.half()), norm=norm), {"x": floats("N S 16")}


@case("rms_norm_gemma", "ts17 dyn18", "transformers GemmaRMSNorm: (1 + weight), * torch.rsqrt")
def rms_norm_gemma() -> Any:
    return GemmaRMSNorm(16), {"x": floats("N S 16")}


@case("rms_norm_t5", "ts17 dyn18", "transformers T5LayerNorm")
def rms_norm_t5() -> Any:
    return T5LayerNorm(16), {"x": floats("N S 16")}


@case("rms_norm_torch", "dyn18 dyn23", "nn.RMSNorm")
def rms_norm_torch() -> Any:
    return nn.RMSNorm(16, eps=1e-6), {"x": floats("N S 16")}


@case("rms_norm_residual", "ts17 dyn18", "total = x + residual; LlamaRMSNorm(total) and total are both used")
def rms_norm_residual() -> Any:
    norm, linear = LlamaRMSNorm(16), nn.Linear(16, 16, bias=False)

    def run(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        total = x + residual
        return total + linear(norm(total))

    return Function(run, norm=norm, linear=linear), {"x": floats("N S 16"), "residual": floats("N S 16")}


@case("qk_norm_qwen3", "ts17 dyn18", "LlamaRMSNorm over the head size of a view by heads, before the transpose (Qwen3)")
def qk_norm() -> Any:
    norm, linear = LlamaRMSNorm(8), nn.Linear(16, 32, bias=False)

    def run(x: torch.Tensor) -> torch.Tensor:
        return norm(linear(x).view(x.shape[0], x.shape[1], -1, 8)).transpose(1, 2)

    return Function(run, norm=norm, linear=linear), {"x": floats("N S 16")}


@case("l2_normalize", "ts11 ts17 dyn18", "F.normalize(x, dim=-1) (CLIP, sentence-transformers)")
def l2_normalize() -> Any:
    return Function(lambda x: F.normalize(x, dim=-1)), {"x": floats("N 16")}


@case("group_norm", "ts11 ts17 ts17s ts18 dyn18 dyn21", "nn.GroupNorm(4, 16)")
def group_norm() -> Any:
    return nn.GroupNorm(4, 16), {"x": floats("N 16 H W")}


@case("group_norm_silu", "ts17 dyn18", "F.silu(nn.GroupNorm(4, 16)(x)) (diffusers ResnetBlock2D)")
def group_norm_silu() -> Any:
    norm = nn.GroupNorm(4, 16)
    return Function(lambda x: F.silu(norm(x)), norm=norm), {"x": floats("N 16 H W")}


@case("group_norm_one_group", "ts17 dyn18", "nn.GroupNorm(1, 16) (PoolFormer)")
def group_norm_one() -> Any:
    return nn.GroupNorm(1, 16), {"x": floats("N 16 H W")}


@case("group_norm_1d", "ts17 dyn18", "nn.GroupNorm(16, 16) on N C L (wav2vec 2.0)")
def group_norm_1d() -> Any:
    norm = nn.GroupNorm(16, 16)
    return Function(lambda x: F.gelu(norm(x)), norm=norm), {"x": floats("N 16 L")}


@case("instance_norm", "ts11 ts17 dyn18", "nn.InstanceNorm2d(16, affine=True), F.relu (style transfer)")
def instance_norm() -> Any:
    norm = nn.InstanceNorm2d(16, affine=True)
    return Function(lambda x: F.relu(norm(x)), norm=norm), {"x": floats("N 16 H W")}


@case("instance_norm_no_affine", "ts17 dyn18", "nn.InstanceNorm2d(16)")
def instance_norm_no_affine() -> Any:
    return nn.InstanceNorm2d(16), {"x": floats("N 16 H W")}


@case("batch_norm_alone", "ts17 dyn18", "F.relu(nn.BatchNorm2d(16)(x)) with nothing before it (DenseNet)")
def batch_norm() -> Any:
    norm = nn.BatchNorm2d(16)
    return Function(lambda x: F.relu(norm(x)), norm=norm), {"x": floats("N 16 H W")}


@case("batch_norm_1d", "ts17 dyn18", "nn.BatchNorm1d(16) on a matrix after nn.Linear")
def batch_norm_1d() -> Any:
    linear, norm = nn.Linear(16, 16), nn.BatchNorm1d(16)
    return Function(lambda x: F.relu(norm(linear(x))), linear=linear, norm=norm), {"x": floats("N 16")}


@case("grn_convnext2", "ts17 dyn18", "transformers ConvNextV2GRN: global response normalization of NHWC")
def grn() -> Any:
    from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN

    return ConvNextV2GRN(16), {"x": floats("N H W 16")}
