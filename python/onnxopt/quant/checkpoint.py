"""Calibration that goes on: the histograms after some samples, in a file, with digests of the model and of the samples."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from onnxopt.quant.histogram import Histogram

VERSION = 1

SECONDS = 5.0
"""Between two writes of a file: what a kill costs at most, and long beside what a write takes. What takes less altogether leaves no file."""


def digest_of(sample: Mapping[str, np.ndarray]) -> str:
    """A short text that is equal for equal samples."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(sample):
        array = np.ascontiguousarray(sample[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.data)
    return digest.hexdigest()


@dataclasses.dataclass(slots=True)
class Checkpoint:
    """Histograms by tensor, and the digests of the samples that they have seen, in order.

    Attributes:
        path: the file; None keeps nothing.
        key: stands for the model and the tensors: a file of another key is begun anew.
    """

    path: Path | None
    key: str
    seen: list[str] = dataclasses.field(default_factory=list)
    histograms: dict[str, Histogram] = dataclasses.field(default_factory=dict)
    _on_disk: bool = False
    _written: float = dataclasses.field(default_factory=time.monotonic)

    @staticmethod
    def open(path: Path | None, key: str, samples: Iterable[Mapping[str, np.ndarray]]) -> Checkpoint:
        """What a file holds for the first of these samples; nothing if there is none, or if it is of another model or of other samples."""
        empty = Checkpoint(path, key)
        held = None if path is None else _read(path, key)
        if held is None:
            return empty
        seen, histograms = held
        found = [digest_of(sample) for sample, _ in zip(samples, seen, strict=False)]
        return Checkpoint(path, key, seen, histograms, _on_disk=True) if found == seen else empty

    def note(self, sample: Mapping[str, np.ndarray]) -> None:
        """The histograms have seen one more sample; the file is written from time to time."""
        if self.path is None:
            return
        self.seen.append(digest_of(sample))
        if time.monotonic() - self._written > SECONDS:
            self._write(self.path)

    def close(self) -> None:
        """There are no more samples."""
        if self.path is not None and self._on_disk:
            self._write(self.path)

    def _write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        head = {"version": VERSION, "key": self.key, "seen": self.seen, "names": list(self.histograms)}
        kept = self.histograms.values()
        limits = np.array([(one.low, one.high, one.least, one.largest) for one in kept]).reshape(-1, 4)
        counts = np.array([one.counts for one in kept], np.int64)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, head=np.array(json.dumps(head)), limits=limits, counts=counts)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._on_disk, self._written = True, time.monotonic()


def _read(path: Path, key: str) -> tuple[list[str], dict[str, Histogram]] | None:
    """Digests and histograms of a file of that key; None if there is none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as held:
            head = json.loads(str(held["head"]))
            if head["version"] != VERSION or head["key"] != key:
                return None
            rows = zip(head["names"], held["counts"], held["limits"], strict=True)
            return head["seen"], {name: Histogram(counts, *map(float, limits)) for name, counts, limits in rows}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
