"""Export models with loops, as users script them: python bench/export_loops.py FOLDER [NAME ...]

Needs torch. The loops are written in Python and scripted, so that the exporter writes Loop nodes.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn


class SelectiveScan(nn.Module):
    """The recurrence of Mamba (A. Gu and T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces")."""

    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        self.a_log = nn.Parameter(torch.log(torch.arange(1, states + 1).float()).repeat(channels, 1))
        self.d = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, delta: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """x, delta: [batch, tokens, channels]; b, c: [batch, tokens, states]."""
        a = -torch.exp(self.a_log)
        h = torch.zeros(x.shape[0], x.shape[2], a.shape[1])
        outputs: list[Tensor] = []
        for t in range(x.shape[1]):
            decay = torch.exp(delta[:, t, :, None] * a)
            h = decay * h + delta[:, t, :, None] * b[:, t, None, :] * x[:, t, :, None]
            outputs.append((h * c[:, t, None, :]).sum(-1))
        return torch.stack(outputs, 1) + x * self.d


class SelectiveAlone(nn.Module):
    """The recurrence with steps of any sign as its input, made positive as Mamba does; negative ones would grow without bound."""

    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        self.scan = SelectiveScan(channels, states)

    def forward(self, x: Tensor, delta: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return self.scan(x, nn.functional.softplus(delta), b, c)


class MambaBlock(nn.Module):
    """A block of Mamba: projections, a causal depthwise convolution, the selective scan, a gate."""

    def __init__(self, width: int, channels: int, states: int, rank: int) -> None:
        super().__init__()
        self.rank, self.states = rank, states
        self.into = nn.Linear(width, 2 * channels, bias=False)
        self.conv = nn.Conv1d(channels, channels, 4, groups=channels, padding=3)
        self.parameters_of = nn.Linear(channels, rank + 2 * states, bias=False)
        self.delta = nn.Linear(rank, channels)
        self.scan = SelectiveScan(channels, states)
        self.out = nn.Linear(channels, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.into(x).chunk(2, -1)
        u = nn.functional.silu(self.conv(u.transpose(1, 2))[:, :, : x.shape[1]].transpose(1, 2))
        delta, b, c = self.parameters_of(u).split([self.rank, self.states, self.states], -1)
        y = self.scan(u, nn.functional.softplus(self.delta(delta)), b, c)
        return self.out(y * nn.functional.silu(gate))


class Cell(nn.Module):
    """An LSTM or GRU cell applied step by step."""

    def __init__(self, kind: str, width: int, hidden: int) -> None:
        super().__init__()
        self.lstm = kind == "lstm"
        gates = 4 if self.lstm else 3
        self.hidden = hidden
        self.x = nn.Linear(width, gates * hidden)
        self.h = nn.Linear(hidden, gates * hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], self.hidden)
        c = torch.zeros(x.shape[0], self.hidden)
        outputs: list[Tensor] = []
        for t in range(x.shape[1]):
            from_x, from_h = self.x(x[:, t]), self.h(h)
            if self.lstm:
                i, f, g, o = (from_x + from_h).chunk(4, -1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                r, z, n = from_x.chunk(3, -1)
                hr, hz, hn = from_h.chunk(3, -1)
                z = torch.sigmoid(z + hz)
                h = (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * h
            outputs.append(h)
        return torch.stack(outputs, 1)


class Independent(nn.Module):
    """A loop whose iterations do not depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for t in range(x.shape[0]):
            outputs.append(torch.relu(self.linear(x[t])) * 2.0)
        return torch.stack(outputs)


class Decay(nn.Module):
    """A discounted sum from the back, as in reinforcement learning."""

    def forward(self, rewards: Tensor) -> Tensor:
        total = torch.zeros(rewards.shape[1])
        out = torch.zeros(0, rewards.shape[1])
        for t in range(rewards.shape[0]):
            total = rewards[rewards.shape[0] - 1 - t] + 0.99 * total
            out = torch.cat([total[None], out])
        return out


class Newton(nn.Module):
    """Square roots by Newton's method, until all of them are exact enough."""

    def forward(self, x: Tensor) -> Tensor:
        root = torch.ones_like(x)
        error = torch.full((), 1.0)
        count = 0
        while count < 100 and bool(error > 1e-5):
            following = 0.5 * (root + x / root)
            error = (following - root).abs().max()
            root = following
            count += 1
        return root


class FixedPoint(nn.Module):
    """A layer that is iterated until it changes its result no more (S. Bai et al., "Deep Equilibrium Models")."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into, self.back = nn.Linear(width, hidden), nn.Linear(hidden, width)
        for layer in (self.into, self.back):
            nn.init.orthogonal_(layer.weight, 0.7)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x)
        change = torch.full((), 1.0)
        while bool(change > 1e-4):
            following = self.back(torch.tanh(self.into(state))) + x
            change = (following - state).square().sum().sqrt()
            state = following
        return state


class Caption(nn.Module):
    """Greedy decoding by an LSTM cell, until all rows have come to their end."""

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.x, self.h = nn.Linear(width, 4 * hidden), nn.Linear(hidden, 4 * hidden)
        self.out = nn.Linear(hidden, tokens)

    def forward(self, h: Tensor) -> Tensor:
        c = torch.zeros_like(h)
        token = torch.ones(h.shape[0], dtype=torch.long)
        done = torch.zeros(h.shape[0], dtype=torch.bool)
        out = torch.zeros(h.shape[0], 0, dtype=torch.long)
        step = 0
        while step < 30 and not bool(done.all()):
            i, f, g, o = (self.x(self.embedding(token)) + self.h(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            token = torch.where(done, torch.zeros_like(token), self.out(h).argmax(-1))
            done = done | (token == 0)
            out = torch.cat([out, token[:, None]], 1)
            step += 1
        return out


class AttentionDecoder(nn.Module):
    """The decoder of Tacotron 2 (J. Shen et al.): an LSTM cell that looks at a memory by additive attention."""

    def __init__(self, frame: int, width: int) -> None:
        super().__init__()
        self.frame, self.width = frame, width
        self.pre, self.keys, self.query = nn.Linear(frame, width), nn.Linear(width, width), nn.Linear(width, width)
        self.x, self.h = nn.Linear(2 * width, 4 * width), nn.Linear(width, 4 * width)
        self.score, self.out = nn.Linear(width, 1, bias=False), nn.Linear(2 * width, frame)

    def forward(self, memory: Tensor, steps: Tensor) -> Tensor:
        keys = self.keys(memory)
        h = torch.zeros(memory.shape[0], self.width)
        c, seen = torch.zeros_like(h), torch.zeros_like(h)
        frame = torch.zeros(memory.shape[0], self.frame)
        frames: list[Tensor] = []
        for _ in range(int(steps)):
            x = torch.cat([torch.relu(self.pre(frame)), seen], -1)
            i, f, g, o = (self.x(x) + self.h(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            scores = self.score(torch.tanh(keys + self.query(h)[:, None, :])).squeeze(-1)
            seen = (torch.softmax(scores, -1)[:, None, :] @ memory).squeeze(1)
            frame = self.out(torch.cat([h, seen], -1))
            frames.append(frame)
        return torch.stack(frames, 1)


class CachedDecoder(nn.Module):
    """Decoding whose attention reads a cache of keys and values, which each step appends to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        size = self.width // self.heads
        keys, values = torch.zeros(1, self.heads, 0, size), torch.zeros(1, self.heads, 0, size)
        outputs: list[Tensor] = []
        for _ in range(int(steps)):
            q, k, v = self.qkv(x).reshape(1, 3 * self.heads, 1, size).chunk(3, 1)
            keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
            weights = torch.softmax(q @ keys.transpose(2, 3) / 4.0, -1)
            x = torch.tanh(x + self.out((weights @ values).reshape(1, self.width)))
            outputs.append(x)
        return torch.stack(outputs, 1)


class NormalizedGru(nn.Module):
    """A GRU with layer normalization inside of its cell (J. Ba et al., "Layer Normalization")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width, bias=False)
        self.norm_x, self.norm_h = nn.LayerNorm(3 * width), nn.LayerNorm(3 * width)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], x.shape[2])
        outputs: list[Tensor] = []
        for t in range(x.shape[1]):
            r, z, n = self.norm_x(self.x(x[:, t])).chunk(3, -1)
            hr, hz, hn = self.norm_h(self.h(h)).chunk(3, -1)
            z = torch.sigmoid(z + hz)
            h = (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * h
            outputs.append(h)
        return torch.stack(outputs, 1)


class ProjectedLstm(nn.Module):
    """An LSTM whose hidden state is projected (H. Sak et al.), of which the standard's LSTM has no form."""

    def __init__(self, width: int, cells: int, hidden: int) -> None:
        super().__init__()
        self.cells, self.hidden = cells, hidden
        self.x, self.h = nn.Linear(width, 4 * cells), nn.Linear(hidden, 4 * cells)
        self.project = nn.Linear(cells, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, c = torch.zeros(x.shape[0], self.hidden), torch.zeros(x.shape[0], self.cells)
        outputs: list[Tensor] = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = self.project(torch.sigmoid(o) * torch.tanh(c))
            outputs.append(h)
        return torch.stack(outputs, 1)


class DeltaRule(nn.Module):
    """The gated delta rule (S. Yang et al., "Gated Delta Networks"): a matrix as state, corrected by what it says of each key."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, rate: Tensor) -> Tensor:
        state = torch.zeros(q.shape[0], q.shape[2], v.shape[2])
        outputs: list[Tensor] = []
        for t in range(q.shape[1]):
            state = state * gate[:, t, None, None]
            seen = (k[:, t, :, None] * state).sum(1)
            state = state + k[:, t, :, None] * (rate[:, t, None] * (v[:, t] - seen))[:, None, :]
            outputs.append((q[:, t, :, None] * state).sum(1))
        return torch.stack(outputs, 1)


class Sinkhorn(nn.Module):
    """Optimal transport by Sinkhorn's iteration, in logarithms."""

    def forward(self, scores: Tensor, steps: Tensor) -> Tensor:
        u, v = torch.zeros(scores.shape[0]), torch.zeros(scores.shape[1])
        for _ in range(int(steps)):
            u = -torch.logsumexp(scores + v[None, :], 1)
            v = -torch.logsumexp(scores + u[:, None], 0)
        return scores + u[:, None] + v[None, :]


class Suppression(nn.Module):
    """Non-maximum suppression of sorted boxes, one after the other."""

    def forward(self, boxes: Tensor) -> Tensor:
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        keep = torch.ones(boxes.shape[0])
        for i in range(boxes.shape[0]):
            box = boxes[i]
            size = (torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])).clamp(min=0.0)
            common = size[:, 0] * size[:, 1]
            overlap = common / (area + area[i] - common)
            gone = (overlap > 0.5) & (torch.arange(boxes.shape[0]) > i) & (keep[i] > 0)
            keep = torch.where(gone, torch.zeros_like(keep), keep)
        return keep


class Viterbi(nn.Module):
    """The best path through states: its score, and where each state came from."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.randn(states, states))

    def forward(self, emissions: Tensor) -> tuple[Tensor, Tensor]:
        score = emissions[0]
        origins: list[Tensor] = []
        for t in range(1, emissions.shape[0]):
            best, index = (score[:, None] + self.transitions).max(0)
            score = best + emissions[t]
            origins.append(index)
        return score, torch.stack(origins)


class ConvLstm(nn.Module):
    """An LSTM whose gates are convolutions of images (X. Shi et al., "Convolutional LSTM Network")."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(channels + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, frames, channels, height, width]."""
        h = torch.zeros(x.shape[0], self.hidden, x.shape[3], x.shape[4])
        c = torch.zeros_like(h)
        outputs: list[Tensor] = []
        for t in range(x.shape[1]):
            i, f, g, o = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1)


class StreamedConvolutions(nn.Module):
    """A causal network that keeps the last samples of each layer, as vocoders do that hear what they have said: depthwise
    convolutions along time, each followed by a mixture of channels."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.first = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.second = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.mix, self.out = nn.Conv1d(channels, channels, 1), nn.Linear(channels, channels)

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        before, between = (
            torch.zeros(x.shape[0], x.shape[1], self.kernel - 1),
            torch.zeros(x.shape[0], x.shape[1], self.kernel - 1),
        )
        outputs: list[Tensor] = []
        for _ in range(int(steps)):
            window = torch.cat([before, x[:, :, None]], 2)
            before = window[:, :, 1:]
            window = torch.cat([between, torch.relu(self.mix(self.first(window)))], 2)
            between = window[:, :, 1:]
            x = torch.tanh(self.out(self.second(window)[:, :, 0]))
            outputs.append(x)
        return torch.stack(outputs, 1)


class Windows(nn.Module):
    """Overlapping windows of a signal, each normalized by what the one before was like."""

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        self.weights = nn.Linear(size, 8)

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, samples]."""
        level = torch.ones(x.shape[0], 1)
        outputs: list[Tensor] = []
        for t in range((x.shape[1] - self.size) // self.hop + 1):
            window = x[:, t * self.hop : t * self.hop + self.size]
            level = 0.9 * level + 0.1 * window.abs().mean(1, keepdim=True)
            outputs.append(torch.tanh(self.weights(window / level)))
        return torch.stack(outputs, 1)


class Prefixes(nn.Module):
    """Attention of each step over the steps before it, whose results it reads from a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [steps, width]."""
        state = x[0]
        outputs: list[Tensor] = []
        for t in range(x.shape[0]):
            seen = x[: t + 1]
            weights = torch.softmax(seen @ self.query(state), 0)
            state = torch.tanh(self.out((weights[:, None] * seen).sum(0)) + x[t])
            outputs.append(state)
        return torch.stack(outputs)


def boxes(count: int) -> Tensor:
    corner = torch.rand(count, 2) * 10
    return torch.cat([corner, corner + torch.rand(count, 2) * 5 + 1], 1)


MODELS = {
    "mamba": lambda: (torch.jit.script(MambaBlock(128, 256, 16, 8)), torch.randn(1, 128, 128)),
    "selective": lambda: (
        torch.jit.script(SelectiveAlone(256, 16)),
        (torch.randn(1, 128, 256), torch.randn(1, 128, 256), torch.randn(1, 128, 16), torch.randn(1, 128, 16)),
    ),
    "lstmcell": lambda: (torch.jit.script(Cell("lstm", 64, 128)), torch.randn(1, 64, 64)),
    "grucell": lambda: (torch.jit.script(Cell("gru", 64, 128)), torch.randn(1, 64, 64)),
    "independent": lambda: (torch.jit.script(Independent()), torch.randn(100, 1, 64)),
    "newton": lambda: (torch.jit.script(Newton()), torch.rand(64, 16) * 100 + 0.5),
    "fixedpoint": lambda: (torch.jit.script(FixedPoint(64, 128)), torch.randn(1, 64)),
    "caption": lambda: (torch.jit.script(Caption(60, 48, 64)), torch.randn(2, 64)),
    "tacotron": lambda: (torch.jit.script(AttentionDecoder(20, 64)), (torch.randn(1, 40, 64), torch.tensor(30))),
    "cache": lambda: (torch.jit.script(CachedDecoder(64, 4)), (torch.randn(1, 64), torch.tensor(64))),
    "normgru": lambda: (torch.jit.script(NormalizedGru(64)), torch.randn(1, 50, 64)),
    "lstmprojected": lambda: (torch.jit.script(ProjectedLstm(64, 64, 32)), torch.randn(1, 50, 64)),
    "deltarule": lambda: (
        torch.jit.script(DeltaRule()),
        (
            torch.randn(2, 64, 16),
            torch.randn(2, 64, 16) / 4,
            torch.randn(2, 64, 16),
            torch.rand(2, 64),
            torch.rand(2, 64),
        ),
    ),
    "sinkhorn": lambda: (torch.jit.script(Sinkhorn()), (torch.randn(24, 24), torch.tensor(20))),
    "suppression": lambda: (torch.jit.script(Suppression()), boxes(50)),
    "viterbi": lambda: (torch.jit.script(Viterbi(12)), torch.randn(50, 12)),
    "convlstm": lambda: (torch.jit.script(ConvLstm(4, 16)), torch.randn(1, 20, 4, 12, 12)),
    "streamed": lambda: (torch.jit.script(StreamedConvolutions(64, 4)), (torch.randn(1, 64), torch.tensor(50))),
    "windows": lambda: (torch.jit.script(Windows(32, 8)), torch.randn(1, 800)),
    "prefixes": lambda: (torch.jit.script(Prefixes(32)), torch.randn(60, 32)),
    "decay": lambda: (torch.jit.script(Decay()), torch.randn(200, 16)),
}


def main() -> None:
    """Write the models that are named, or all."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or MODELS:
        start = time.perf_counter()
        torch.manual_seed(0)
        module, inputs = MODELS[name]()
        with torch.no_grad():
            torch.onnx.export(module.eval(), inputs, str(folder / f"{name}.onnx"), opset_version=17, dynamo=False)
        print(f"{name}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
