"""Activations, gated pairs and what stands before them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, T5Config
from transformers import activations as hf_activations
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

from corpus_cases.cases import Function, case, floats, half_floats


def _linear(activation: Any, module: str, name: str, variants: str) -> None:
    """A Linear layer followed by an activation."""

    @case(f"linear_{name}", variants, module)
    def make() -> Any:
        layer = nn.Linear(16, 32)
        return Function(lambda x: activation(layer(x)), layer=layer), {"x": floats("N S 16")}


HF = "nn.Linear, transformers.activations."
_linear(F.relu, "nn.Linear, F.relu", "relu", "ts11 ts17s dyn18")
_linear(F.gelu, "nn.Linear, F.gelu", "gelu", "ts11 ts17 ts17s ts20 dyn18 dyn20")
_linear(
    lambda x: F.gelu(x, approximate="tanh"),
    "nn.Linear, F.gelu(approximate='tanh')",
    "gelu_tanh",
    "ts11 ts17 ts20 dyn18 dyn20",
)
_linear(hf_activations.NewGELUActivation(), HF + "NewGELUActivation (GPT-2)", "gelu_new", "ts17 dyn18")
_linear(hf_activations.FastGELUActivation(), HF + "FastGELUActivation", "gelu_fast", "ts17 dyn18")
_linear(hf_activations.QuickGELUActivation(), HF + "QuickGELUActivation (CLIP)", "quick_gelu", "ts17 dyn18")
_linear(
    hf_activations.GELUActivation(use_gelu_python=True),
    HF + "GELUActivation(use_gelu_python=True)",
    "gelu_python",
    "ts17 dyn18",
)
_linear(hf_activations.AccurateGELUActivation(), HF + "AccurateGELUActivation", "gelu_accurate", "ts17")
_linear(F.silu, "nn.Linear, F.silu", "silu", "ts11 ts17 dyn18")
_linear(lambda x: x * torch.sigmoid(x), "nn.Linear, x * torch.sigmoid(x)", "swish", "ts17")
_linear(F.mish, "nn.Linear, F.mish", "mish", "ts11 ts18 dyn18")
_linear(F.hardswish, "nn.Linear, F.hardswish", "hardswish", "ts11 ts14 dyn18")
_linear(F.hardsigmoid, "nn.Linear, F.hardsigmoid", "hardsigmoid", "ts11 dyn18")
_linear(
    lambda x: x * F.relu6(x + 3) / 6,
    "nn.Linear, x * F.relu6(x + 3) / 6 (MobileNetV3)",
    "hardswish_relu6",
    "ts11 ts17 dyn18",
)
_linear(lambda x: F.relu(x) ** 2, "nn.Linear, F.relu(x) ** 2 (Primer)", "relu_squared", "ts17 dyn18")
_linear(torch.tanh, "nn.Linear, torch.tanh", "tanh", "ts17")
_linear(F.softplus, "nn.Linear, F.softplus", "softplus", "ts17 dyn18")
_linear(F.elu, "nn.Linear, F.elu", "elu", "ts17")
_linear(lambda x: F.leaky_relu(x, 0.1), "nn.Linear, F.leaky_relu(x, 0.1)", "leaky_relu", "ts17")
_linear(lambda x: F.glu(x, -1), "nn.Linear, F.glu", "glu", "ts11 ts17 dyn18")
_linear(lambda x: torch.clamp(x, -1.0, 1.0), "nn.Linear, torch.clamp(x, -1, 1)", "clamp", "ts11 ts17 dyn18")


@case("linear_2d_gelu", "ts11 ts17 ts17s dyn18", "nn.Linear on a matrix, F.gelu")
def linear_2d() -> Any:
    layer = nn.Linear(16, 32)
    return Function(lambda x: F.gelu(layer(x)), layer=layer), {"x": floats("N 16")}


@case("linear_2d_relu_no_bias", "ts17 dyn18", "nn.Linear(bias=False) on a matrix, F.relu")
def linear_without_bias() -> Any:
    layer = nn.Linear(16, 32, bias=False)
    return Function(lambda x: F.relu(layer(x)), layer=layer), {"x": floats("N 16")}


@case("linear_residual", "ts17 dyn18", "x + nn.Linear(F.gelu(nn.Linear(x)))")
def residual() -> Any:
    up, down = nn.Linear(16, 32), nn.Linear(32, 16)
    return Function(lambda x: x + down(F.gelu(up(x))), up=up, down=down), {"x": floats("N S 16")}


@case("swiglu_llama", "ts17 ts17s dyn18", "transformers LlamaMLP")
def swiglu() -> Any:
    return LlamaMLP(LlamaConfig(hidden_size=16, intermediate_size=32, num_attention_heads=2)), {"x": floats("N S 16")}


@case(
    "swiglu_merged_chunk",
    "ts11 ts17 dyn18",
    "nn.Linear to both halves, chunk, F.silu(gate) * up, nn.Linear (Phi-3, ViT-SwiGLU)",
)
def swiglu_merged() -> Any:
    both, down = nn.Linear(16, 64, bias=False), nn.Linear(32, 16, bias=False)

    def run(x: torch.Tensor) -> torch.Tensor:
        gate, up = both(x).chunk(2, dim=-1)
        return down(up * F.silu(gate))

    return Function(run, both=both, down=down), {"x": floats("N S 16")}


@case("geglu_t5", "ts17 dyn18", "transformers T5DenseGatedActDense, gated-gelu (T5 v1.1)")
def geglu_t5() -> Any:
    config = T5Config(d_model=16, d_ff=32, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    return T5DenseGatedActDense(config), {"x": floats("N S 16")}


@case("geglu_diffusers", "ts17 dyn18", "GEGLU as in diffusers: one nn.Linear, chunk, hidden * F.gelu(gate)")
def geglu_diffusers() -> Any:
    both = nn.Linear(16, 64)

    def run(x: torch.Tensor) -> torch.Tensor:
        hidden, gate = both(x).chunk(2, dim=-1)
        return hidden * F.gelu(gate)

    return Function(run, both=both), {"x": floats("N S 16")}


@case("linear_conv1d_gpt2", "ts17 dyn18", "transformers Conv1D (GPT-2): torch.addmm on a flattened view, NewGELU")
def gpt2_conv1d() -> Any:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(32, 16)
    gelu = hf_activations.NewGELUActivation()
    return Function(lambda x: gelu(layer(x)), layer=layer), {"x": floats("N S 16")}


@case("gelu_manual_half_after", "ts17", "x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))) (transformers 4, older BERT)")
def gelu_manual() -> Any:
    return Function(lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))), {"x": floats("N S 16")}


@case(
    "gelu_manual_half_before",
    "ts17",
    "0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))",
)
def gelu_manual_tanh() -> Any:
    def run(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))

    return Function(run), {"x": floats("N S 16")}


@case("linear_gelu_half", "ts17 dyn18", "nn.Linear, F.gelu in float16")
def gelu_half() -> Any:
    layer = nn.Linear(16, 32).half()
    return Function(lambda x: F.gelu(layer(x)), layer=layer), {"x": half_floats("N S 16")}
