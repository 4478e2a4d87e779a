"""Functions of the user's that the command line names: metrics, and samples to calibrate with."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxopt.errors import OptionError


def load_function(text: str, option: str) -> Callable[..., Any]:
    """The function that "module:function" or "file.py:function" names; modules are also looked for in the working directory.

    Args:
        option: what the text was given to, for errors.

    Raises:
        OptionError: there is no such module, or no such function in it.
    """
    place, separator, name = text.rpartition(":")
    if not (separator and place and name):
        raise OptionError(f"{option} {text}: expected module:function or file.py:function.")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else _import_module(place)
    except Exception as error:
        raise OptionError(f"{option} {text}: '{place}' cannot be loaded: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise OptionError(f"{option} {text}: '{place}' has no function '{name}'.")
    return found  # type: ignore[no-any-return]


def _import_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
