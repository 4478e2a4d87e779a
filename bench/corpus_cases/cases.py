"""What a case of the corpus is: a small module, its inputs with their dims, and the exporters that write it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from corpus_cases.files import SIZES


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """An example tensor and its dims, dynamic ones by name."""

    tensor: torch.Tensor
    dims: tuple[str | int, ...]

    def dynamic_axes(self) -> dict[int, str]:
        return {axis: dim for axis, dim in enumerate(self.dims) if isinstance(dim, str)}


def _dims(text: str) -> tuple[tuple[str | int, ...], tuple[int, ...]]:
    dims = tuple(int(dim) if dim.isdigit() else dim for dim in text.split())
    return dims, tuple(dim if isinstance(dim, int) else SIZES[dim][0] for dim in dims)


def floats(text: str) -> Input:
    dims, shape = _dims(text)
    return Input(torch.randn(shape), dims)


def half_floats(text: str) -> Input:
    made = floats(text)
    return Input(made.tensor.half(), made.dims)


def integers(text: str, high: int = 2) -> Input:
    dims, shape = _dims(text)
    return Input(torch.randint(0, high, shape), dims)


def booleans(text: str) -> Input:
    dims, shape = _dims(text)
    return Input(torch.rand(shape) > 0.3, dims)


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One module and how it is exported.

    `variants` are words such as `ts17`, `ts17s`, `dyn18s`: the exporter (TorchScript or dynamo), the opset, and an `s` where
    dims are static.
    """

    name: str
    module: str
    variants: tuple[str, ...]
    make: Callable[[], tuple[torch.nn.Module | Callable[..., Any], dict[str, Input]]]
    options: str = ""


CASES: list[Case] = []


def case(name: str, variants: str, module: str, options: str = "") -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a function that returns a module (or a function of tensors) and its inputs by name."""

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        CASES.append(Case(name, module, tuple(variants.split()), make, options))
        return make

    return register


class Function(torch.nn.Module):
    """A function of tensors as a module; `parts` are the modules whose weights it uses."""

    def __init__(self, function: Callable[..., Any], **parts: torch.nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


class Call(torch.nn.Module):
    """A model of transformers called with positional tensors as the given keyword arguments; the first output."""

    def __init__(self, model: torch.nn.Module, names: str, **fixed: Any) -> None:
        super().__init__()
        self.model, self.names, self.fixed = model, names.split(), fixed

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, inputs)), **self.fixed)[0]
