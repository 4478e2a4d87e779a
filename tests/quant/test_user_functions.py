"""Functions of the user's, by the names that the command line takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxopt.errors import OptionError
from onnxopt.quant.user_functions import load_function


def test_functions_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_functions.py").write_text("def good(session):\n    return 1.5\n")
    monkeypatch.chdir(tmp_path)
    for text in ("my_functions:good", f"{tmp_path / 'my_functions.py'}:good"):
        assert load_function(text, "--metric")(None) == 1.5  # type: ignore[arg-type]
    for text, sentence in (
        ("my_functions", "--metric my_functions: expected module:function"),
        ("my_functions:bad", "has no function 'bad'"),
        ("missing_module:f", "cannot be loaded: ModuleNotFoundError"),
    ):
        with pytest.raises(OptionError, match=sentence):
            load_function(text, "--metric")
