"""Attention as libraries compute it: masks, scales, splits of heads, rotary embeddings, caches, biases."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

from corpus_cases.cases import Function, Input, booleans, case, floats, half_floats, integers

TINY = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
"""Sizes of models of the BERT and LLaMA families."""


class Call(nn.Module):
    """A model of transformers called with positional tensors as the given keyword arguments; the first output."""

    def __init__(self, model: nn.Module, names: str, **fixed: Any) -> None:
        super().__init__()
        self.model, self.names, self.fixed = model, names.split(), fixed

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, inputs)), **self.fixed)[0]


class Decode(nn.Module):
    """One step of a decoder with a key/value cache, as optimum exports it: past in, present out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
        cache = hf.DynamicCache()
        cache.update(key, value, 0)
        result = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        layer = result.past_key_values.layers[0]
        return result[0], layer.keys, layer.values


def masked() -> dict[str, Any]:
    return {"ids": integers("N S"), "mask": integers("N S")}


KINDS = ("eager", "sdpa")


def both(
    name: str,
    variants: str,
    module: str,
    make: Callable[[str], Any],
    eager_variants: str | None = None,
    kinds: tuple[str, ...] = KINDS,
) -> None:
    """One case for each implementation of attention; `make` takes its name."""
    for kind in kinds:
        words = variants if kind == "sdpa" or eager_variants is None else eager_variants
        case(f"attention_{name}_{kind}", words, f"{module}, attn_implementation='{kind}'")(
            functools.partial(make, kind)
        )


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


# --- encoders of transformers --------------------------------------------------------------------------------------------
def bert(kind: str) -> Any:
    model = hf.BertModel(hf.BertConfig(**TINY, max_position_embeddings=32, attn_implementation=kind))
    return Call(model, "input_ids attention_mask"), masked()


both("bert", "ts14 ts17 ts17s dyn18 dyn18s dyn23", "transformers BertModel", bert, "ts11 ts13 ts17 ts17s dyn18 dyn23")


def simple(name: str, module: str, variants: str, config: Any, model: Any, **sizes: Any) -> None:
    """A model of token ids and a mask, eager and sdpa."""

    def make(kind: str) -> Any:
        return Call(model(config(**sizes, attn_implementation=kind)), "input_ids attention_mask"), masked()

    both(name, variants, module, make)


simple(
    "roberta",
    "transformers RobertaModel",
    "ts17 dyn18",
    hf.RobertaConfig,
    hf.RobertaModel,
    **TINY,
    max_position_embeddings=32,
    pad_token_id=1,
)
simple(
    "distilbert",
    "transformers DistilBertModel",
    "ts17 dyn18",
    hf.DistilBertConfig,
    hf.DistilBertModel,
    vocab_size=32,
    dim=16,
    n_layers=1,
    n_heads=2,
    hidden_dim=32,
    max_position_embeddings=32,
)
simple(
    "modernbert",
    "transformers ModernBertModel, local attention of 4",
    "ts17 dyn18",
    hf.ModernBertConfig,
    hf.ModernBertModel,
    **TINY,
    local_attention=4,
    global_attn_every_n_layers=2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=1,
    cls_token_id=1,
    sep_token_id=1,
)


@case("attention_mpnet", "ts17 dyn18", "transformers MPNetModel, relative position bias")
def mpnet() -> Any:
    return Call(hf.MPNetModel(hf.MPNetConfig(**TINY, max_position_embeddings=32)), "input_ids attention_mask"), masked()


@case("attention_deberta", "ts17 dyn18", "transformers DebertaV2Model, disentangled attention")
def deberta() -> Any:
    config = hf.DebertaV2Config(
        **TINY,
        max_position_embeddings=32,
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    )
    return Call(hf.DebertaV2Model(config), "input_ids attention_mask"), masked()


def image_model(
    name: str, module: str, variants: str, config: Any, model: Any, dims: str = "N 3 16 16", **sizes: Any
) -> None:
    """A model of images, eager and sdpa."""

    def make(kind: str) -> Any:
        return Call(model(config(**sizes, attn_implementation=kind)), "pixel_values"), {"x": floats(dims)}

    both(name, variants, module, make)


PATCHES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
image_model("vit", "transformers ViTModel", "ts14 ts17s dyn18 dyn18s", hf.ViTConfig, hf.ViTModel, **PATCHES)
image_model(
    "dinov2",
    "transformers Dinov2Model (LayerScale)",
    "ts17s dyn18",
    hf.Dinov2Config,
    hf.Dinov2Model,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    mlp_ratio=2,
    image_size=16,
    patch_size=8,
)
image_model(
    "clip_vision", "transformers CLIPVisionModel", "ts17 dyn18", hf.CLIPVisionConfig, hf.CLIPVisionModel, **PATCHES
)
image_model(
    "beit",
    "transformers BeitModel, relative position bias",
    "ts17s dyn18s",
    hf.BeitConfig,
    hf.BeitModel,
    **PATCHES,
    use_relative_position_bias=True,
)


SWIN = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": [2], "window_size": 2, "mlp_ratio": 2.0}


def swin_layer(kind: str, shift: int) -> Any:
    from transformers.models.swin.modeling_swin import SwinLayer

    layer = SwinLayer(hf.SwinConfig(**SWIN, depths=[2], attn_implementation=kind), 16, (4, 4), 2, shift_size=shift)

    def run(x: torch.Tensor) -> torch.Tensor:
        result = layer(x, (4, 4))
        return result[0] if isinstance(result, tuple) else result

    return Function(run, layer=layer), {"x": floats("N 16 16")}


both(
    "swin_layer",
    "ts14s ts17 dyn18 dyn18s",
    "transformers SwinLayer, windows of 2, relative position bias",
    lambda kind: swin_layer(kind, 0),
    "ts11s ts17s dyn18",
)
both(
    "swin_layer_shifted",
    "ts17 ts17s dyn18 dyn18s",
    "transformers SwinLayer, shifted windows of 2 with their mask",
    lambda kind: swin_layer(kind, 1),
    "ts11s ts17s dyn18",
)


@case("attention_swin_merging", "ts17s dyn18s", "transformers SwinModel, two stages with patch merging between them")
def swin_merging() -> Any:
    config = hf.SwinConfig(
        image_size=16, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, mlp_ratio=2.0
    )
    return Call(hf.SwinModel(config), "pixel_values"), {"x": floats("N 3 16 16")}


@case(
    "attention_swinv2",
    "ts17s dyn18s",
    "transformers Swinv2Model: cosine attention with a learned scale and a bias by an MLP",
)
def swinv2() -> Any:
    config = hf.Swinv2Config(**SWIN, depths=[2])
    return Call(hf.Swinv2Model(config), "pixel_values"), {"x": floats("N 3 16 16")}


@case("attention_segformer", "ts17 ts17s dyn18", "transformers SegformerModel: keys and values of a smaller image")
def segformer() -> Any:
    config = hf.SegformerConfig(
        num_encoder_blocks=1,
        depths=[1],
        sr_ratios=[2],
        hidden_sizes=[16],
        patch_sizes=[3],
        strides=[2],
        num_attention_heads=[2],
        mlp_ratios=[2],
    )
    return Call(hf.SegformerModel(config), "pixel_values"), {"x": floats("N 3 H W")}


# --- encoders and decoders of transformers ------------------------------------------------------------------------------
def clip_text(kind: str) -> Any:
    config = hf.CLIPTextConfig(**TINY, max_position_embeddings=32, eos_token_id=1, attn_implementation=kind)
    return Call(hf.CLIPTextModel(config), "input_ids attention_mask"), masked()


both("clip_text", "ts17 dyn18", "transformers CLIPTextModel (causal and padding mask)", clip_text)

T5 = {
    "vocab_size": 32,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}


def t5_encoder(kind: str) -> Any:
    config = hf.T5Config(**T5, dropout_rate=0.0, is_encoder_decoder=False, use_cache=False, attn_implementation=kind)
    return Call(hf.T5EncoderModel(config), "input_ids attention_mask"), masked()


both("t5_encoder", "ts17 dyn18", "transformers T5EncoderModel, relative position bias", t5_encoder)


@case("attention_t5_decoder", "ts17 dyn18", "transformers T5Model: decoder with cross attention, eager")
def t5_decoder() -> Any:
    model = hf.T5Model(hf.T5Config(**T5, dropout_rate=0.0, attn_implementation="eager"))

    def run(ids: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model.decoder(input_ids=ids, encoder_hidden_states=memory, encoder_attention_mask=mask, use_cache=False)[
            0
        ]

    return Function(run, model=model.decoder), {
        "ids": integers("N S"),
        "memory": floats("N E 16"),
        "mask": integers("N E"),
    }


WHISPER = {
    "vocab_size": 32,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 8,
    "max_source_positions": 8,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
}


def whisper_encoder(kind: str) -> Any:
    model = hf.WhisperModel(hf.WhisperConfig(**WHISPER, attn_implementation=kind))
    return Call(model.encoder, "input_features"), {"x": floats("N 8 16")}


def whisper_decoder(kind: str) -> Any:
    model = hf.WhisperModel(hf.WhisperConfig(**WHISPER, attn_implementation=kind))
    return Call(model.decoder, "input_ids encoder_hidden_states", use_cache=False), {
        "ids": integers("N S"),
        "memory": floats("N E 16"),
    }


both("whisper_encoder", "ts17 ts17s dyn18", "transformers WhisperEncoder", whisper_encoder)
both("whisper_decoder", "dyn18 dyn23", "transformers WhisperDecoder without cache", whisper_decoder)


def bart(kind: str) -> Any:
    config = hf.BartConfig(
        vocab_size=32,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        attn_implementation=kind,
        use_cache=False,
    )
    return Call(hf.BartModel(config).encoder, "input_ids attention_mask"), masked()


both("bart_encoder", "ts17 dyn18", "transformers BartEncoder", bart)


# --- positions in the scores ---------------------------------------------------------------------------------------------
@case("attention_xlnet", "ts17", "transformers XLNetModel, relative positions, einsums")
def xlnet() -> Any:
    config = hf.XLNetConfig(vocab_size=32, d_model=16, n_layer=1, n_head=2, d_inner=32)
    return Call(hf.XLNetModel(config), "input_ids attention_mask"), masked()


@case(
    "attention_wavlm",
    "ts17 dyn18",
    "WavLMAttention of transformers: gated relative positions, a mask for each head of each sample",
)
def wavlm() -> Any:
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    layer = WavLMAttention(16, 2, num_buckets=8, max_distance=16)
    return Function(lambda x: layer(x)[0], layer=layer), {"x": floats("N S 16")}


@case(
    "attention_speecht5",
    "ts17 dyn18",
    "SpeechT5Attention of transformers: torch.bmm, relative keys as a part of the scores",
)
def speecht5() -> Any:
    from transformers.models.speecht5.modeling_speecht5 import SpeechT5Attention

    layer = SpeechT5Attention(16, 2)
    return Function(lambda x, bias: layer(x, position_bias=bias)[0], layer=layer), {
        "x": floats("N S 16"),
        "bias": floats("S S 8"),
    }


CONFORMER = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}


@case("attention_wav2vec2_bert", "ts17 dyn18", "Wav2Vec2BertSelfAttention of transformers: relative keys by an einsum")
def wav2vec2_bert() -> Any:
    from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertSelfAttention

    config = hf.Wav2Vec2BertConfig(**CONFORMER, left_max_position_embeddings=4, right_max_position_embeddings=2)
    layer = Wav2Vec2BertSelfAttention(config)
    return Function(lambda x: layer(x)[0], layer=layer), {"x": floats("N S 16")}


@case(
    "attention_conformer",
    "ts17 dyn18",
    "Wav2Vec2ConformerSelfAttention of transformers: relative positions as in Transformer-XL",
)
def conformer() -> Any:
    from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as conformer

    config = hf.Wav2Vec2ConformerConfig(**CONFORMER, position_embeddings_type="relative", max_source_positions=16)
    layer = conformer.Wav2Vec2ConformerSelfAttention(config)
    positions = conformer.Wav2Vec2ConformerRelPositionalEmbedding(config)
    run = Function(lambda x: layer(x, relative_position_embeddings=positions(x))[0], layer=layer, positions=positions)
    return run, {"x": floats("N S 16")}


@case(
    "attention_sam",
    "ts17s dyn18s",
    "SamVisionAttention of transformers: relative positions along rows and columns by einsums",
)
def sam() -> Any:
    from transformers.models.sam.modeling_sam import SamVisionAttention

    config = hf.SamVisionConfig(hidden_size=16, num_attention_heads=2, image_size=64, patch_size=16)
    layer = SamVisionAttention(config, window_size=4)
    return Function(lambda x: layer(x)[0], layer=layer), {"x": Input(torch.randn(2, 4, 4, 16), (2, 4, 4, 16))}


# --- decoders of transformers -------------------------------------------------------------------------------------------
GROUPED = TINY | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
"""Four heads of eight that share two heads of keys and values."""

DECODERS: dict[str, tuple[str, Any, Any, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM, grouped queries", hf.LlamaConfig, hf.LlamaForCausalLM, GROUPED, "ts14 ts17 ts17s dyn18 dyn18s dyn23"),
    "qwen2": ("Qwen2Model, biases, sliding window of 4", hf.Qwen2Config, hf.Qwen2Model, GROUPED | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "ts17 dyn18"),
    "qwen3": ("Qwen3Model, norms of q and k", hf.Qwen3Config, hf.Qwen3Model, GROUPED | {"head_dim": 8}, "ts17 dyn18"),
    "mistral": ("MistralModel, sliding window of 4", hf.MistralConfig, hf.MistralModel, GROUPED | {"sliding_window": 4}, "ts17 dyn18"),
    "gemma2": ("Gemma2Model, soft-cap of scores", hf.Gemma2Config, hf.Gemma2Model, GROUPED | {"head_dim": 8, "sliding_window": 4}, "ts17 dyn18"),
    "phi3": ("Phi3Model, merged q, k, v and merged gate and up", hf.Phi3Config, hf.Phi3Model, GROUPED | {"pad_token_id": 0}, "ts17 dyn18"),
    "phi": ("PhiModel, rotary over half of the head size", hf.PhiConfig, hf.PhiModel, GROUPED, "ts17 dyn18"),
    "gpt_neox": ("GPTNeoXModel, merged q, k, v by head, partial rotary", hf.GPTNeoXConfig, hf.GPTNeoXModel, TINY | {"max_position_embeddings": 32}, "ts17 dyn18"),
    "stablelm": ("StableLmModel, rotary over a quarter of the head size", hf.StableLmConfig, hf.StableLmModel, GROUPED | {"hidden_size": 64}, "ts17"),
    "gptj": ("GPTJModel, interleaved rotary", hf.GPTJConfig, hf.GPTJModel, {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "n_inner": 32, "n_positions": 16, "bos_token_id": 1, "eos_token_id": 1}, "ts17 dyn18"),
    "gpt2": ("GPT2Model", hf.GPT2Config, hf.GPT2Model, {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "bos_token_id": 1, "eos_token_id": 1}, "ts14 ts17 ts17s dyn18"),
    "opt": ("OPTModel", hf.OPTConfig, hf.OPTModel, {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32, "max_position_embeddings": 32, "word_embed_proj_dim": 16}, "ts17 dyn18"),
    "bloom": ("BloomModel, ALiBi", hf.BloomConfig, hf.BloomModel, {"vocab_size": 32, "hidden_size": 16, "n_layer": 1, "n_head": 2}, "ts17 dyn18"),
}  # fmt: skip


EAGER_ONLY = ("gemma2", "gptj", "bloom")
"""Models for which transformers has no sdpa."""


def decoder(name: str, steps: bool = False) -> None:
    """A decoder without cache, or a step of it with cache, for the implementations of attention that it has."""
    module, config, model, sizes, variants = DECODERS[name]
    heads = sizes.get("num_key_value_heads", 2)

    def whole(kind: str) -> Any:
        made = model(config(**sizes, attn_implementation=kind, use_cache=False))
        return Call(made, "input_ids attention_mask", use_cache=False), masked()

    def step(kind: str) -> Any:
        cache = {part: floats(f"N {heads} P 8") for part in ("key", "value")}
        inputs = {"ids": integers("N S"), "mask": integers("N T"), **cache}
        return Decode(model(config(**sizes, attn_implementation=kind))), inputs

    stem, make = (f"{name}_cache", step) if steps else (name, whole)
    text = f"transformers {module}{', key/value cache in and out' if steps else ''}"
    both(stem, "ts17 dyn18 dyn23" if steps else variants, text, make, kinds=("eager",) if name in EAGER_ONLY else KINDS)


for name in DECODERS:
    decoder(name)
for name in ("llama", "gpt2", "qwen3", "gemma2"):
    decoder(name, steps=True)


@case("attention_llama_no_mask", "dyn18", "transformers LlamaModel without a padding mask, sdpa")
def llama_no_mask() -> Any:
    model = hf.LlamaModel(hf.LlamaConfig(**GROUPED, attn_implementation="sdpa", use_cache=False))
    return Call(model, "input_ids", use_cache=False), {"ids": integers("N S")}


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
