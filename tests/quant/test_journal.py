"""Journals survive kills, and another model starts a new one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from onnxopt.quant.journal import Journal


def test_what_was_put_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path, "key")
    assert first.get("noise", "a") is None
    assert first.put("noise", "a", 0.25) == 0.25
    first.put("score", "a", math.inf)
    again = Journal(path, "key")
    assert (again.get("noise", "a"), again.get("score", "a"), again.get("noise", "b")) == (0.25, math.inf, None)


@pytest.mark.parametrize("tail", ['["noise", "b", 0.', '["noise"]\n', "\x00\n"])
def test_an_incomplete_end_is_cut_off(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "journal"
    Journal(path, "key").put("noise", "a", 0.25)
    path.write_text(path.read_text() + tail)
    again = Journal(path, "key")
    again.put("noise", "c", 0.5)
    last = Journal(path, "key")
    assert (last.get("noise", "a"), last.get("noise", "b"), last.get("noise", "c")) == (0.25, None, 0.5)


@pytest.mark.parametrize("text", ["", "no journal", "[1, 2]\n", '{"key": "key"}\n'])
def test_other_files_and_keys_are_begun_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "journal"
    Journal(path, "another").put("noise", "a", 0.25)
    assert Journal(path, "key").get("noise", "a") is None
    path.write_text(text)
    assert Journal(path, "key").get("noise", "a") is None


def test_without_a_path_numbers_are_remembered() -> None:
    journal = Journal(None, "key")
    journal.put("noise", "a", 1.0)
    assert journal.get("noise", "a") == 1.0
