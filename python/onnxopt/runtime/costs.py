"""Cost data: the measured numbers that decide where a fusion pays. Each has its unit and its sentence in `targets/<name>.toml`."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxopt.errors import OptionError

FOLDER = Path(__file__).parent / "targets"
"""The committed data, one file per kind of device."""


@dataclasses.dataclass(frozen=True, slots=True)
class Costs:
    """What decides where fusions pay; never whether they are right. Units and sentences: `describe`."""

    small_region_elements: int
    small_region_nodes: int
    product_work: int
    norm_elements: int
    softmax_width: int
    border_cost: float
    image_channels: int
    sequence_channels: int
    separable_pixels: int
    inverted_part: float
    leaving_part: float
    minimal_part: float
    planar_channels: int
    recurrent_steps: int
    lstm_hidden: int
    gru_hidden: int
    chunked_steps: int
    chunked_elements: int
    rounding_work: int
    rounding_element_work: int

    @staticmethod
    @functools.cache
    def of(name: str) -> Costs:
        """The committed costs of a kind of device ("cpu")."""
        return Costs(**{key: entry["value"] for key, entry in describe(name).items()})

    def replaced(self, values: Mapping[str, float]) -> Costs:
        """The same with other values for some.

        Raises:
            OptionError: there is no cost of a name, or a value is no number of at least 0.
        """
        known = {field.name: field.type for field in dataclasses.fields(self)}
        for name, value in values.items():
            if name not in known:
                raise OptionError(f"There is no cost '{name}'. The costs are: {', '.join(known)}.")
            allowed = (int,) if known[name] == "int" else (int, float)
            if isinstance(value, bool) or not isinstance(value, allowed) or not value >= 0:
                raise OptionError(f"The cost '{name}' is {value!r}; expected {_KINDS[len(allowed)]} of at least 0.")
        return dataclasses.replace(self, **values)  # type: ignore[arg-type]


_KINDS = {1: "a whole number", 2: "a number"}


def describe(name: str) -> dict[str, dict[str, Any]]:
    """Value, unit and sentence of every cost of a kind of device."""
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
