"""The cases of the corpus, by family; importing a module registers its cases."""

from __future__ import annotations

import importlib

FAMILIES = ("activations", "norms", "attention", "transformer_models", "convolutions", "layouts")


def load_all() -> None:
    for family in FAMILIES:
        importlib.import_module(f"corpus_cases.{family}")
