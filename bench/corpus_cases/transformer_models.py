"""Attention as the models of transformers compute it: encoders, decoders, steps with a cache, positions in the scores."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn

from corpus_cases.cases import Call, Function, Input, case, floats, integers

TINY = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
"""Sizes of models of the BERT and LLaMA families."""


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
@case("attention_xlm", "ts17", "transformers XLMModel, a mask expanded to the shape of the scores")
def xlm() -> Any:
    config = hf.XLMConfig(vocab_size=32, emb_dim=16, n_layers=2, n_heads=2, max_position_embeddings=32)
    return Call(hf.XLMModel(config), "input_ids attention_mask"), masked()


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
    "openai_gpt": ("OpenAIGPTModel, scores b - 1e4 (1 - b)", hf.OpenAIGPTConfig, hf.OpenAIGPTModel, {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}, "ts17 ts17s dyn18"),
    "xglm": ("XGLMModel, scores and masks not below the lowest number", hf.XGLMConfig, hf.XGLMModel, {"vocab_size": 32, "d_model": 16, "num_layers": 1, "attention_heads": 2, "ffn_dim": 32, "max_position_embeddings": 32}, "ts17 dyn18"),
    "bloom": ("BloomModel, ALiBi", hf.BloomConfig, hf.BloomModel, {"vocab_size": 32, "hidden_size": 16, "n_layer": 1, "n_head": 2}, "ts17 dyn18"),
}  # fmt: skip


EAGER_ONLY = ("gemma2", "gptj", "openai_gpt", "xglm", "bloom")
"""Models for which transformers has no sdpa."""


def decoder(name: str, steps: str = "") -> None:
    """A decoder without cache, or in some variants a step of it with cache, for the implementations of attention that it has."""
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
    both(stem, steps or variants, text, make, kinds=("eager",) if name in EAGER_ONLY else KINDS)


for name in DECODERS:
    decoder(name)
for name in ("llama", "gpt2", "qwen3", "gemma2"):
    decoder(name, steps="ts17 dyn18 dyn23")
decoder("opt", steps="ts17")


@case("attention_llama_no_mask", "dyn18", "transformers LlamaModel without a padding mask, sdpa")
def llama_no_mask() -> Any:
    model = hf.LlamaModel(hf.LlamaConfig(**GROUPED, attn_implementation="sdpa", use_cache=False))
    return Call(model, "input_ids", use_cache=False), {"ids": integers("N S")}
