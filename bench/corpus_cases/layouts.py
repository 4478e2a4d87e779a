"""Windows, rolls, patches, embeddings, pooling and heads: what moves data around the products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.swin.modeling_swin import window_partition, window_reverse

from corpus_cases.cases import Function, case, floats, integers


@case("window_partition", "ts11 ts17 ts17s dyn18 dyn18s", "transformers window_partition of Swin: view, permute, view")
def partition() -> Any:
    return Function(lambda x: window_partition(x, 4)), {"x": floats("N 8 12 16")}


@case("window_reverse", "ts11 ts17s dyn18 dyn18s", "transformers window_reverse of Swin")
def reverse() -> Any:
    return Function(lambda x: window_reverse(x, 4, 8, 12)), {"x": floats("12 4 4 16")}


@case(
    "window_roll_partition",
    "ts11s ts17 ts17s dyn18 dyn18s",
    "torch.roll(-2, -2), window_partition, window_reverse, torch.roll(2, 2) (shifted windows)",
)
def roll() -> Any:
    def run(x: torch.Tensor) -> torch.Tensor:
        windows = window_partition(torch.roll(x, shifts=(-2, -2), dims=(1, 2)), 4)
        merged = window_reverse(F.gelu(windows), 4, 8, 12)
        return torch.roll(merged, shifts=(2, 2), dims=(1, 2))

    return Function(run), {"x": floats("N 8 12 16")}


@case(
    "window_pad_partition",
    "ts17s dyn18s",
    "F.pad to a multiple of the window, window_partition, window_reverse, slice (Swin, odd sizes)",
)
def pad_partition() -> Any:
    def run(x: torch.Tensor) -> torch.Tensor:
        windows = window_partition(F.pad(x, (0, 0, 0, 2, 0, 1)), 4)
        return window_reverse(F.gelu(windows), 4, 8, 12)[:, :7, :10, :].contiguous()

    return Function(run), {"x": floats("N 7 10 16")}


@case(
    "patch_merging",
    "ts11 ts17s dyn18 dyn18s",
    "transformers SwinPatchMerging: four strided slices, concat, norm, linear",
)
def merging() -> Any:
    from transformers.models.swin.modeling_swin import SwinPatchMerging

    layer = SwinPatchMerging(8)
    return Function(lambda x: layer(x, (8, 12)), layer=layer), {"x": floats("N 96 8")}


@case(
    "patch_embed",
    "ts11 ts17 ts17s dyn18",
    "convolution of patches, flatten, transpose, class token expanded and joined, positions added (ViT)",
)
def patch_embed() -> Any:
    layer = nn.Conv2d(3, 16, 4, 4)

    class Embed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer
            self.token, self.positions = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 7, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(x).flatten(2).transpose(1, 2)
            return torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions

    return Embed(), {"x": floats("N 3 8 12")}


@case("patch_embed_norm", "ts17 dyn18", "convolution of patches, flatten, transpose, nn.LayerNorm (Swin, SegFormer)")
def patch_embed_norm() -> Any:
    layer, norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
    return Function(lambda x: norm(layer(x).flatten(2).transpose(1, 2)), layer=layer, norm=norm), {
        "x": floats("N 3 H W")
    }


@case(
    "embedding_bert",
    "ts11 ts17 ts17s dyn18",
    "word, type and position embeddings, sum, nn.LayerNorm (BERT); positions by slice of a table",
)
def embedding_bert() -> Any:
    words, types, positions, norm = nn.Embedding(32, 16), nn.Embedding(2, 16), nn.Embedding(16, 16), nn.LayerNorm(16)
    table = torch.arange(16).expand((1, -1))

    def run(ids: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        return norm(words(ids) + types(kinds) + positions(table[:, : ids.size(1)]))

    parts = {"words": words, "types": types, "positions": positions, "norm": norm}
    return Function(run, **parts), {"ids": integers("N S"), "kinds": integers("N S")}


@case("embedding_roberta", "ts11 ts17 dyn18", "positions by cumsum of ids != padding (RoBERTa)")
def embedding_roberta() -> Any:
    words, positions, norm = nn.Embedding(32, 16), nn.Embedding(16, 16), nn.LayerNorm(16)

    def run(ids: torch.Tensor) -> torch.Tensor:
        mask = ids.ne(1).int()
        places = ((torch.cumsum(mask, dim=1).type_as(mask)) * mask).long() + 1
        return norm(words(ids) + positions(places))

    return Function(run, words=words, positions=positions, norm=norm), {"ids": integers("N S")}


@case("embedding_arange", "ts11 ts17 dyn18", "positions by torch.arange(length), both sums (GPT-2)")
def embedding_arange() -> Any:
    words, positions = nn.Embedding(32, 16), nn.Embedding(32, 16)

    def run(ids: torch.Tensor) -> torch.Tensor:
        return words(ids) + positions(torch.arange(ids.shape[1], device=ids.device)).unsqueeze(0)

    return Function(run, words=words, positions=positions), {"ids": integers("N S")}


@case("pool_mean_masked", "ts11 ts17 dyn18", "mean over unmasked tokens, F.normalize (sentence-transformers)")
def mean_masked() -> Any:
    def run(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        wide = mask.unsqueeze(-1).expand(x.size()).float()
        return F.normalize(torch.sum(x * wide, 1) / torch.clamp(wide.sum(1), min=1e-9), p=2, dim=1)

    return Function(run), {"x": floats("N S 16"), "mask": integers("N S")}


@case("pool_first_token", "ts11 ts17 dyn18", "x[:, 0], linear, tanh, linear (BERT's pooler and classifier)")
def first_token() -> Any:
    pool, head = nn.Linear(16, 16), nn.Linear(16, 4)
    return Function(lambda x: head(torch.tanh(pool(x[:, 0]))), pool=pool, head=head), {"x": floats("N S 16")}


@case("pool_eos_argmax", "ts17 dyn18", "x[arange, ids.argmax(-1)], linear (CLIP's text)")
def eos() -> Any:
    project = nn.Linear(16, 8, bias=False)

    def run(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return project(x[torch.arange(x.shape[0]), ids.to(dtype=torch.int).argmax(dim=-1)])

    return Function(run, project=project), {"x": floats("N S 16"), "ids": integers("N S")}


@case("pool_global_linear", "ts11 ts17 ts17s dyn18", "nn.AdaptiveAvgPool2d(1), flatten, linear, softmax")
def global_pool() -> Any:
    head = nn.Linear(16, 4)
    pool = nn.AdaptiveAvgPool2d(1)
    return Function(lambda x: head(pool(x).flatten(1)).softmax(-1), head=head), {"x": floats("N 16 H W")}


@case("pool_attention", "ts17 dyn18", "a learned query attends to all tokens (SigLIP, CoCa)")
def attention_pool() -> Any:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.probe, self.kv = nn.Parameter(torch.randn(1, 2, 1, 8)), nn.Linear(16, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            k, v = self.kv(x).view(x.shape[0], -1, 2, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
            weights = (self.probe @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
            return (weights @ v).transpose(1, 2).reshape(x.shape[0], 1, 16)

    return Pool(), {"x": floats("N S 16")}


@case("head_topk", "ts11 ts17 dyn18", "linear, softmax, torch.topk(3)")
def topk() -> Any:
    head = nn.Linear(16, 8)
    return Function(lambda x: torch.topk(head(x).softmax(-1), 3), head=head), {"x": floats("N 16")}


@case("head_argmax", "ts11 ts17 dyn18", "linear, argmax and max (CTC, token classification)")
def argmax() -> Any:
    head = nn.Linear(16, 8)

    def run(x: torch.Tensor) -> Any:
        scores = head(x).softmax(-1)
        return scores.argmax(-1), scores.max(-1).values

    return Function(run, head=head), {"x": floats("N S 16")}


@case("head_log_softmax", "ts17 dyn18", "linear to the vocabulary tied to the embedding, log_softmax")
def log_softmax() -> Any:
    words = nn.Embedding(32, 16)
    return Function(lambda x: F.linear(x, words.weight).log_softmax(-1), words=words), {"x": floats("N S 16")}


@case("head_span", "ts11 ts17 dyn18", "linear to two, split, squeeze (question answering)")
def span() -> Any:
    head = nn.Linear(16, 2)

    def run(x: torch.Tensor) -> Any:
        start, end = head(x).split(1, dim=-1)
        return start.squeeze(-1).contiguous(), end.squeeze(-1).contiguous()

    return Function(run, head=head), {"x": floats("N S 16")}


@case("softmax_scaled_masked", "ts11 ts17 dyn18", "softmax of scores / sqrt + mask over the last axis")
def softmax_masked() -> Any:
    return Function(lambda x, mask: (x / 2.8284271 + mask).softmax(-1)), {
        "x": floats("N 2 S E"),
        "mask": floats("N 1 1 E"),
    }


@case("softmax_channels", "ts11 ts17 dyn18", "softmax over channels of NCHW (segmentation)")
def softmax_channels() -> Any:
    return Function(lambda x: x.softmax(1)), {"x": floats("N 8 H W")}


@case("qkv_three_linears", "ts17 ts17s dyn18", "three nn.Linear of one input")
def three_linears() -> Any:
    parts = {name: nn.Linear(16, 16) for name in ("query", "key", "value")}
    return Function(lambda x: tuple(part(x) for part in parts.values()), **parts), {"x": floats("N S 16")}


@case("qkv_grouped_linears", "ts17 dyn18", "three nn.Linear without bias, keys and values narrower (LLaMA)")
def grouped_linears() -> Any:
    parts = {"query": nn.Linear(16, 16, False), "key": nn.Linear(16, 8, False), "value": nn.Linear(16, 8, False)}
    return Function(lambda x: tuple(part(x) for part in parts.values()), **parts), {"x": floats("N S 16")}
