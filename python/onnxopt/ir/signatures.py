"""What the standard says of the inputs and attributes of its ops.

It is read from a table: `onnx.defs` makes the schemas of all ops and opsets when it is first asked for one, which takes as long as
reading a model. `python -m onnxopt.ir.signatures` writes the table.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx.defs

TABLE = Path(__file__).with_suffix(".txt")
"""The newest opset that the table knows; then a line per op and opset that changed it: least and most inputs, required ones, attributes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """How many inputs an op has at least and at most, which are required, and the types of its attributes."""

    least: int
    most: int
    required: tuple[int, ...]
    attributes: Mapping[str, int]


@functools.cache
def signature(op_type: str, opset: int) -> Signature | None:
    """None for what this ONNX does not know: other ops, and opsets newer than its own."""
    newest, lines = _table()
    if opset > newest:
        return defined(op_type, opset)
    known = None
    for since, line in lines.get(op_type, ()):
        if since <= opset:
            known = line
    return None if known is None else _parsed(known)


def defined(op_type: str, opset: int) -> Signature | None:
    """The same, of the schemas themselves."""
    if not 0 < opset <= onnx.defs.onnx_opset_version():
        return None
    try:
        schema = onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return None
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    required = tuple(index for index, formal in enumerate(schema.inputs) if formal.option == single)
    types = {
        name: int(attribute.type.value)  # type: ignore[attr-defined]
        for name, attribute in schema.attributes.items()
        if name != "sparse_value"
    }
    return Signature(schema.min_input, schema.max_input, required, types)


@functools.cache
def _table() -> tuple[int, Mapping[str, list[tuple[int, str]]]]:
    newest, *lines = TABLE.read_text().splitlines()
    found: dict[str, list[tuple[int, str]]] = {}
    for line in lines:
        op_type, since, rest = line.split(" ", 2)
        found.setdefault(op_type, []).append((int(since), rest))
    return int(newest), found


def _parsed(line: str) -> Signature:
    least, most, required, *attributes = line.split(" ")
    types = {name: int(kind) for name, _, kind in (one.partition(":") for one in attributes)}
    return Signature(int(least), int(most), tuple(map(int, filter(None, required.split(",")))), types)


def _line(found: Signature) -> str:
    required = ",".join(map(str, found.required))
    attributes = [f"{name}:{kind}" for name, kind in sorted(found.attributes.items())]
    return " ".join([str(found.least), str(found.most), required, *attributes])


def table_lines() -> Iterator[str]:
    """The lines of the table, as the installed `onnx` has them."""
    newest = onnx.defs.onnx_opset_version()
    yield str(newest)
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    for name in sorted(names):
        last = None
        for opset in range(1, newest + 1):
            found = defined(name, opset)
            line = None if found is None else _line(found)
            if line is not None and line != last:
                yield f"{name} {opset} {line}"
            last = line


if __name__ == "__main__":
    TABLE.write_text("\n".join(table_lines()) + "\n")
