"""What was measured on the way, kept in a file: after a kill, or with another budget, nothing is measured twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

VERSION = 1


class Journal:
    """Numbers by kind and name, each written through as soon as it is known. Without a path they are only remembered.

    The file starts with a key that stands for everything the numbers depend on; a file with another key is begun anew. A last line that
    a kill left incomplete is cut off.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path = path
        self._known: dict[tuple[str, str], float] = {}
        if path is not None:
            head = {"onnxopt_journal": VERSION, "key": key}
            lines = self._read(path, head)
            text = "".join(f"{json.dumps(line)}\n" for line in [head, *lines])
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)

    def _read(self, path: Path, head: dict[str, object]) -> list[list[object]]:
        """The entries of a file with this head; none of any other file."""
        try:
            first, *rest = path.read_text(encoding="utf-8").splitlines()
            if json.loads(first) != head:
                return []
        except (OSError, ValueError):
            return []
        kept: list[list[object]] = []
        for line in rest:
            try:
                kind, name, value = json.loads(line)
                self._known[str(kind), str(name)] = float(value)
            except (ValueError, TypeError):
                break
            kept.append([kind, name, value])
        return kept

    def get(self, kind: str, name: str) -> float | None:
        return self._known.get((kind, name))

    def put(self, kind: str, name: str, value: float) -> float:
        self._known[kind, name] = value
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps([kind, name, value])}\n")
                file.flush()
                os.fsync(file.fileno())
        return value
