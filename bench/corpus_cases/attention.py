"""Attention as torch and repositories write it by hand: masks, scales, splits of heads, rotary embeddings, caches, biases."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from corpus_cases.cases import Function, booleans, case, floats, half_floats, integers

# --- torch alone ---------------------------------------------------------------------------------------------------
HEADS = {"q": "N 2 S 8", "k": "N 2 S 8", "v": "N 2 S 8"}
CROSS = {"q": "N 2 S 8", "k": "N 2 E 8", "v": "N 2 E 8"}


@case("attention_sdpa", "ts14 ts17s dyn18 dyn23", "F.scaled_dot_product_attention(q, k, v)")
def sdpa() -> Any:
    return Function(F.scaled_dot_product_attention), {name: floats(dims) for name, dims in HEADS.items()}


@case("attention_sdpa_causal", "ts14 ts17s dyn18 dyn18s dyn23", "F.scaled_dot_product_attention(is_causal=True)")
def sdpa_causal() -> Any:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return Function(run), {name: floats(dims) for name, dims in HEADS.items()}


@case("attention_sdpa_bool_mask", "ts14 dyn18 dyn23", "F.scaled_dot_product_attention(attn_mask=boolean)")
def sdpa_bool() -> Any:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return Function(run), {name: floats(dims) for name, dims in CROSS.items()} | {"mask": booleans("N 1 S E")}


@case("attention_sdpa_float_mask", "ts14 dyn18 dyn23", "F.scaled_dot_product_attention(attn_mask=float, scale=0.3)")
def sdpa_float() -> Any:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)

    return Function(run), {name: floats(dims) for name, dims in CROSS.items()} | {"mask": floats("N 1 S E")}


@case("attention_sdpa_gqa", "dyn18 dyn23", "F.scaled_dot_product_attention(enable_gqa=True)")
def sdpa_gqa() -> Any:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    return Function(run), {"q": floats("N 4 S 8"), "k": floats("N 2 S 8"), "v": floats("N 2 S 8")}


@case("attention_multihead", "dyn18 dyn18s", "nn.MultiheadAttention(batch_first=True), self-attention")
def multihead() -> Any:
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    return Function(lambda x: layer(x, x, x, need_weights=False)[0], layer=layer), {"x": floats("N S 16")}


@case("attention_multihead_weights", "ts17 ts17s dyn18", "nn.MultiheadAttention, sequence first, weights returned too")
def multihead_weights() -> Any:
    layer = nn.MultiheadAttention(16, 2)
    return Function(lambda x: layer(x, x, x), layer=layer), {"x": floats("S N 16")}


@case(
    "attention_multihead_cross",
    "ts14 dyn18",
    "nn.MultiheadAttention(batch_first=True), cross attention with key_padding_mask",
)
def multihead_cross() -> Any:
    layer = nn.MultiheadAttention(16, 2, batch_first=True)

    def run(x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return layer(x, memory, memory, key_padding_mask=mask, need_weights=False)[0]

    return Function(run, layer=layer), {"x": floats("N S 16"), "memory": floats("N E 16"), "mask": booleans("N E")}


@case("attention_encoder_layer", "dyn18 dyn18s", "nn.TransformerEncoderLayer(norm_first=False)")
def encoder_layer() -> Any:
    torch.backends.mha.set_fastpath_enabled(False)
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), {"x": floats("N S 16")}


@case(
    "attention_decoder_layer",
    "ts14 dyn18",
    "nn.TransformerDecoderLayer(norm_first=True, activation='gelu') with a causal mask",
)
def decoder_layer() -> Any:
    layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True, norm_first=True, activation="gelu")

    def run(x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        size = x.shape[1]
        mask = torch.triu(torch.full((size, size), float("-inf")), diagonal=1)
        return layer(x, memory, tgt_mask=mask)

    return Function(run, layer=layer), {"x": floats("N S 16"), "memory": floats("N E 16")}


# --- attention written by hand, as repositories have it ---------------------------------------------------------------
class TimmAttention(nn.Module):
    """timm's Attention before it had sdpa: one product for q, k and v; permute(2, 0, 3, 1, 4); scale on q or on scores."""

    def __init__(self, fused: bool = False, unbind: bool = True) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.fused, self.unbind = fused, unbind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, 2, 8).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0) if self.unbind else (qkv[0], qkv[1], qkv[2])
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        elif self.unbind:
            x = (q * 8**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        else:
            x = ((q @ k.transpose(-2, -1)) * 8**-0.5).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, length, width))


@case(
    "attention_timm_scores",
    "ts11 ts13 ts17 ts17s dyn18",
    "timm's Attention of 2021 (DeiT): qkv[0], qkv[1], qkv[2]; scale on the scores",
)
def timm_scores() -> Any:
    return TimmAttention(unbind=False), {"x": floats("N S 16")}


@case("attention_timm_query", "ts11 ts17 ts17s dyn18", "timm's Attention without sdpa: qkv.unbind(0); scale on q")
def timm_query() -> Any:
    return TimmAttention(), {"x": floats("N S 16")}


@case("attention_timm_fused", "ts17 ts17s dyn18 dyn23", "timm's Attention with F.scaled_dot_product_attention")
def timm_fused() -> Any:
    return TimmAttention(fused=True), {"x": floats("N S 16")}


@case(
    "attention_bert4",
    "ts11 ts13 ts17 ts17s dyn18",
    "BertSelfAttention of transformers 4 (eager), written after its source",
)
def bert4() -> Any:
    query, key, value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view((*x.size()[:-1], 2, 8)).permute(0, 2, 1, 3)

    def run(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        extended = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(torch.float32).min
        q, k, v = heads(query(x)), heads(key(x)), heads(value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(8) + extended
        context = torch.matmul(nn.functional.softmax(scores, dim=-1), v).permute(0, 2, 1, 3).contiguous()
        return context.view((*context.size()[:-2], 16))

    return Function(run, query=query, key=key, value=value), {"x": floats("N S 16"), "mask": integers("N S")}


@case(
    "attention_distilbert4",
    "ts11 ts17 dyn18",
    "MultiHeadSelfAttention of transformers 4's DistilBERT: q / sqrt, masked_fill by an expanded mask",
)
def distilbert4() -> Any:
    query, key, value, out = (nn.Linear(16, 16) for _ in range(4))

    def run(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length = x.size(0), x.size(1)

        def shape(t: torch.Tensor) -> torch.Tensor:
            return t.view(batch, -1, 2, 8).transpose(1, 2)

        q = shape(query(x)) / math.sqrt(8)
        scores = torch.matmul(q, shape(key(x)).transpose(2, 3))
        hidden = (mask == 0).view(batch, 1, 1, length).expand_as(scores)
        scores = scores.masked_fill(hidden, torch.tensor(torch.finfo(scores.dtype).min))
        context = torch.matmul(nn.functional.softmax(scores, dim=-1), shape(value(x)))
        return out(context.transpose(1, 2).contiguous().view(batch, -1, 16))

    return Function(run, query=query, key=key, value=value, out=out), {"x": floats("N S 16"), "mask": integers("N S")}


@case(
    "attention_gpt2_4",
    "ts11 ts13 ts17",
    "GPT2Attention of transformers 4 (eager): Conv1D to q, k, v, split, torch.where with a causal table, cache",
)
def gpt2_4() -> Any:
    from transformers.pytorch_utils import Conv1D

    attend, project = Conv1D(48, 16), Conv1D(16, 16)
    causal = torch.tril(torch.ones((16, 16), dtype=torch.bool)).view(1, 1, 16, 16)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view((*x.size()[:-1], 2, 8)).permute(0, 2, 1, 3)

    def run(x: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
        q, k, v = (heads(part) for part in attend(x).split(16, dim=2))
        k, v = torch.cat((key, k), dim=-2), torch.cat((value, v), dim=-2)
        weights = torch.matmul(q, k.transpose(-1, -2)) / torch.full([], 8**0.5)
        past = k.size(-2) - q.size(-2)
        mask = causal[:, :, past : k.size(-2), : k.size(-2)]
        weights = torch.where(mask, weights, torch.full([], torch.finfo(weights.dtype).min))
        y = torch.matmul(nn.functional.softmax(weights, dim=-1), v).permute(0, 2, 1, 3).contiguous()
        return project(y.view((*y.size()[:-2], 16))), k, v

    return Function(run, attend=attend, project=project), {
        "x": floats("N S 16"),
        "key": floats("N 2 P 8"),
        "value": floats("N 2 P 8"),
    }


@case(
    "attention_bart4",
    "ts11 ts17 dyn18",
    "BartAttention of transformers 4 (eager): q scaled, heads folded into the batch, torch.bmm",
)
def bart4() -> Any:
    query, key, value, out = (nn.Linear(16, 16) for _ in range(4))

    def run(x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.size()

        def shape(t: torch.Tensor, size: int) -> torch.Tensor:
            return t.view(batch, size, 2, 8).transpose(1, 2).contiguous()

        k, v = shape(key(memory), -1).view(batch * 2, -1, 8), shape(value(memory), -1).view(batch * 2, -1, 8)
        q = shape(query(x) * 8**-0.5, length).view(batch * 2, -1, 8)
        source = k.size(1)
        weights = torch.bmm(q, k.transpose(1, 2))
        weights = weights.view(batch, 2, length, source) + mask
        weights = nn.functional.softmax(weights.view(batch * 2, length, source), dim=-1)
        y = torch.bmm(weights, v).view(batch, 2, length, 8).transpose(1, 2)
        return out(y.reshape(batch, length, 16))

    return Function(run, query=query, key=key, value=value, out=out), {
        "x": floats("N S 16"),
        "memory": floats("N E 16"),
        "mask": floats("N 1 S E"),
    }


@case(
    "attention_whisper4",
    "ts11 ts17 ts17s",
    "encoder self-attention of openai/whisper: q and k scaled by the fourth root, softmax in float32",
)
def whisper_openai() -> Any:
    query, key, value, out = nn.Linear(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 16), nn.Linear(16, 16)

    def run(x: torch.Tensor) -> torch.Tensor:
        q, k, v = query(x), key(x), value(x)
        scale = 8**-0.25
        q = q.view(*q.shape[:2], 2, -1).permute(0, 2, 1, 3) * scale
        k = k.view(*k.shape[:2], 2, -1).permute(0, 2, 3, 1) * scale
        v = v.view(*v.shape[:2], 2, -1).permute(0, 2, 1, 3)
        weights = F.softmax((q @ k).float(), dim=-1).to(q.dtype)
        return out((weights @ v).permute(0, 2, 1, 3).flatten(start_dim=2))

    return Function(run, query=query, key=key, value=value, out=out), {"x": floats("N S 16")}


@case("attention_softcap", "ts17 dyn18", "scores / cap, tanh, * cap before a float mask (Gemma 2)")
def softcap() -> Any:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = torch.matmul(q, k.transpose(2, 3)) * 0.35
        weights = torch.tanh(weights / 50.0) * 50.0 + mask
        weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
        return torch.matmul(weights, v).transpose(1, 2).contiguous()

    return Function(run), {name: floats(dims) for name, dims in CROSS.items()} | {"mask": floats("N 1 S E")}


@case(
    "attention_yolo11_psa",
    "ts11 ts17 ts17s",
    "Attention of Ultralytics' C2PSA, written after its description: 1x1 conv to q, k, v on N C HW, depthwise position",
)
def yolo_psa() -> Any:
    qkv, project = nn.Conv2d(16, 32, 1), nn.Conv2d(16, 16, 1)
    position = nn.Conv2d(16, 16, 3, 1, 1, groups=16)

    def run(x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        area = height * width
        q, k, v = qkv(x).view(batch, 2, 16, area).split([4, 4, 8], dim=2)
        weights = ((q.transpose(-2, -1) @ k) * 4**-0.5).softmax(dim=-1)
        y = (v @ weights.transpose(-2, -1)).view(batch, channels, height, width)
        return project(y + position(v.reshape(batch, channels, height, width)))

    return Function(run, qkv=qkv, project=project, position=position), {"x": floats("N 16 H W")}


@case(
    "attention_llama4",
    "ts14 ts17s dyn18",
    "LlamaAttention of transformers 4.3x as optimum exports it: rows of rotary tables by positions, repeat_kv, softmax in float32, cache",
)
def llama4() -> Any:
    query, key, value = nn.Linear(32, 32, False), nn.Linear(32, 16, False), nn.Linear(32, 16, False)
    out = nn.Linear(32, 32, False)
    angles = torch.outer(torch.arange(16.0), 10000 ** (-torch.arange(0, 8, 2) / 8))
    table = torch.cat((angles, angles), dim=-1)
    cos_table, sin_table = table.cos(), table.sin()

    def rotate(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)

    def repeat(x: torch.Tensor) -> torch.Tensor:
        batch, heads, length, size = x.shape
        return x[:, :, None, :, :].expand(batch, heads, 2, length, size).reshape(batch, heads * 2, length, size)

    def run(
        x: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, past_k: torch.Tensor, past_v: torch.Tensor
    ) -> Any:
        batch, length, _ = x.size()
        q = query(x).view(batch, length, 4, 8).transpose(1, 2)
        k = key(x).view(batch, length, 2, 8).transpose(1, 2)
        v = value(x).view(batch, length, 2, 8).transpose(1, 2)
        total = k.shape[-2] + past_k.shape[-2]
        cos = cos_table[:total].to(x.dtype)[positions].unsqueeze(1)
        sin = sin_table[:total].to(x.dtype)[positions].unsqueeze(1)
        q, k = q * cos + rotate(q) * sin, k * cos + rotate(k) * sin
        k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        weights = torch.matmul(q, repeat(k).transpose(2, 3)) / math.sqrt(8) + mask
        weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
        y = torch.matmul(weights, repeat(v)).transpose(1, 2).contiguous().reshape(batch, length, 32)
        return out(y), k, v

    return Function(run, query=query, key=key, value=value, out=out), {
        "x": floats("N S 32"),
        "mask": floats("N 1 S T"),
        "positions": integers("N S"),
        "past_k": floats("N 2 P 8"),
        "past_v": floats("N 2 P 8"),
    }


@case("attention_half", "ts17 dyn18", "timm's Attention in float16, q scaled")
def half() -> Any:
    return TimmAttention().half(), {"x": half_floats("N S 16")}


@case("attention_half_sdpa", "ts17 dyn18", "timm's Attention in float16, F.scaled_dot_product_attention")
def half_sdpa() -> Any:
    return TimmAttention(fused=True).half(), {"x": half_floats("N S 16")}


# --- rotary embeddings alone ----------------------------------------------------------------------------------------------
@case(
    "rotary_half_input",
    "ts11 ts17 dyn18",
    "apply_rotary_pos_emb of LLaMA: rotate_half by slices; cos and sin are inputs",
)
def rotary_half() -> Any:
    def rotate(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)

    def run(q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return q * cos.unsqueeze(1) + rotate(q) * sin.unsqueeze(1)

    return Function(run), {"q": floats("N 2 S 8"), "cos": floats("N S 8"), "sin": floats("N S 8")}


@case(
    "rotary_chunk_table", "ts17 dyn18", "rotate_half by chunk; rows of constant tables by position ids (transformers 4)"
)
def rotary_table() -> Any:
    angles = torch.outer(torch.arange(8.0), 10000 ** (-torch.arange(0, 8, 2) / 8))
    table = torch.cat((angles, angles), dim=-1)
    cos_table, sin_table = table.cos(), table.sin()

    def run(q: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cos, sin = cos_table[positions].unsqueeze(1), sin_table[positions].unsqueeze(1)
        first, second = q.chunk(2, dim=-1)
        return q * cos + torch.cat((-second, first), dim=-1) * sin

    return Function(run), {"q": floats("N 2 S 8"), "positions": integers("N S")}


@case("rotary_interleaved", "ts17 dyn18", "rotate_every_two of GPT-J: x[..., ::2], x[..., 1::2], stack, flatten")
def rotary_interleaved() -> Any:
    def run(q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        rotated = torch.stack((-q[..., 1::2], q[..., ::2]), dim=-1).flatten(-2)
        return q * cos + rotated * sin

    return Function(run), {"q": floats("N 2 S 8"), "cos": floats("1 1 S 8"), "sin": floats("1 1 S 8")}


@case("repeat_kv", "ts11 ts17 dyn18", "repeat_kv of LLaMA: unsqueeze, expand, reshape")
def repeat_kv() -> Any:
    from transformers.models.llama.modeling_llama import repeat_kv as repeat

    return Function(lambda k: repeat(k, 2)), {"k": floats("N 2 S 8")}
