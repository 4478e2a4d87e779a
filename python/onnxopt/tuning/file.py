"""The tuning file: what was faster for one model on one machine, for `optimize` and for the library."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxopt import ir
from onnxopt.errors import OptionError
from onnxopt.passes.base import Options
from onnxopt.runtime.target import Target

VERSION = 1
"""Of the file; another one is refused, not guessed at."""

HEADER = """\
# Made by `onnxopt tune`. Read by `onnxopt optimize --tuning FILE` and, for kernel variants, by the library (ONNXOPT_TUNING=FILE).
"""

Dims = Mapping[str, "int | tuple[int, int]"]


@dataclasses.dataclass(frozen=True, slots=True)
class Tuning:
    """What a tuning file says. The result of `optimize` depends on it and on the model alone.

    Attributes:
        model: the fingerprint of the model it is for.
        target: the target it is for.
        keep_original: nothing was faster than the model as it is.
        without: passes to leave out.
        allow_contrib: onnxruntime's own contrib ops are used.
        not_at: nodes at which a rule is not applied, by rule.
        costs: cost data that differs from the target's.
        variants: the kernel variant of an op.
        dims: sizes or bounds of dims that the model is optimized for.
        machine: where it was measured.
        measured: what was measured: shapes of inputs, and speed relative to the original and to the default.
    """

    model: str
    target: str = "cpu"
    keep_original: bool = False
    without: tuple[str, ...] = ()
    allow_contrib: bool = False
    not_at: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    costs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    variants: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dims: Dims = dataclasses.field(default_factory=dict)
    machine: Mapping[str, str] = dataclasses.field(default_factory=dict)
    measured: Mapping[str, str | float] = dataclasses.field(default_factory=dict)

    @staticmethod
    def read(path: str | Path) -> Tuning:
        """Read a file.

        Raises:
            OptionError: there is none, or it is no tuning file of this version; the text says what is wrong.
        """
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise OptionError(f"The tuning file '{path}' cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise OptionError(f"'{path}' is not a tuning file: {error}.") from error
        version = content.pop("version", None)
        if version != VERSION:
            raise OptionError(f"'{path}' is not a tuning file of version {VERSION}: its version is {version}.")
        for name, value in content.items():
            if name not in _FORMS or not _FORMS[name](value):
                raise OptionError(f"'{path}' is not a tuning file: '{name}' is unknown or of a wrong form.")
        if "model" not in content:
            raise OptionError(f"'{path}' is not a tuning file: it does not say which model it is for.")
        return Tuning(**{name: _frozen(value) for name, value in content.items()})

    def text(self) -> str:
        """The file's content; equal tunings have equal texts."""
        content = {"version": VERSION, **dataclasses.asdict(self)}
        plain = [f"{name} = {_toml(value)}" for name, value in content.items() if not isinstance(value, Mapping)]
        tables = [_table(name, value) for name, value in content.items() if isinstance(value, Mapping) and value]
        return "\n".join([HEADER.rstrip(), *plain, *tables]) + "\n"

    def write(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(self.text(), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def target_of(self, target: Target) -> Target:
        """The target with the costs of the tuning.

        Raises:
            OptionError: it is for another target, or a cost is unknown.
        """
        if target.name != self.target:
            raise OptionError(
                f"The tuning is for the target '{self.target}', and the model is optimized for '{target.name}'."
            )
        return dataclasses.replace(target, costs=target.costs.replaced(self.costs))

    def options_of(self, options: Options) -> Options:
        """The options with what the tuning leaves out; dims that are stated already stay."""
        not_at = {rule: frozenset(nodes) for rule, nodes in self.not_at.items()}
        return dataclasses.replace(
            options,
            dims=options.dims or dict(self.dims),
            without=options.without | set(self.without),
            allow_contrib=options.allow_contrib or self.allow_contrib,
            not_at={**options.not_at, **not_at},
        )

    def check(self, model: ir.Model) -> list[str]:
        """Warnings about where the tuning comes from.

        Raises:
            OptionError: it is for another model.
        """
        found = ir.fingerprint(model)
        if found != self.model:
            raise OptionError(
                f"The tuning is for another model: its graph and weights have the fingerprint {self.model[:16]}, this model's have "
                f"{found[:16]}. Tune this model."
            )
        here = describe_machine()
        return [
            f"The tuning was measured with {name} '{value}', and this machine has '{here[name]}': the model is right, but may be slower."
            for name, value in self.machine.items()
            if name in here and here[name] != value
        ]


def describe_machine() -> dict[str, str]:
    """What measurements depend on: processor, instruction set, and versions of onnxruntime and onnxopt."""
    import onnxopt
    from onnxopt.runtime.library import import_onnxruntime, native

    return {
        "processor": _processor(),
        "instructions": str(native().max_isa()),
        "onnxruntime": str(import_onnxruntime().__version__),
        "onnxopt": onnxopt.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


# --- the form of the file ------------------------------------------------------------------------------------------
def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    parts = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(isinstance(one, int) and not isinstance(one, bool) for one in parts)


def _table_of(form: Any) -> Any:
    return lambda value: isinstance(value, dict) and all(map(form, value.values()))


_FORMS: Mapping[str, Any] = {
    "model": _is_text,
    "target": _is_text,
    "keep_original": lambda value: isinstance(value, bool),
    "allow_contrib": lambda value: isinstance(value, bool),
    "without": _is_texts,
    "not_at": _table_of(_is_texts),
    "costs": _table_of(_is_number),
    "variants": _table_of(_is_text),
    "dims": _table_of(_is_size),
    "machine": _table_of(_is_text),
    "measured": _table_of(lambda value: _is_text(value) or _is_number(value)),
}


def _frozen(value: Any) -> Any:
    """Lists as tuples."""
    if isinstance(value, dict):
        return {name: _frozen(one) for name, one in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _table(name: str, values: Mapping[str, Any]) -> str:
    rows = (f"{_key(key)} = {_toml(value)}" for key, value in sorted(values.items()))
    return "\n".join([f"\n[{name}]", *rows])


def _key(name: str) -> str:
    """A bare key where it may be one: the library looks for ops by their bare names."""
    return name if name.isascii() and name.replace("_", "").isalnum() else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
