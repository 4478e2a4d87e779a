"""Protobuf's wire format around an ONNX model: finding large tensors in a file without parsing it, and splicing them back.

A tensor's `raw_data` is a byte range of the .onnx file, and so is `float_data` or `double_data`, whose elements lie packed as they do
there. `split` walks only length-delimited fields that are large enough to hold
one, and copies everything else into a skeleton whose large tensors point at their range.

Source: https://protobuf.dev/programming-guides/encoding/ and onnx.proto for the field numbers.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

import onnx

from onnxopt.errors import ModelError

INSIDE = "onnxopt:inside"
"""The `location` by which a skeleton says that a tensor's data is a range of the .onnx file itself."""

LARGE_BYTES = 4096
"""Tensors below this stay in the skeleton: a page is the least that mapping can save."""

Buffer = bytes | mmap.mmap

_LENGTH_DELIMITED = 2
_DATA_TYPE = 2
_RAW_DATA = 9
_PACKED_DATA = {4: onnx.TensorProto.FLOAT, 10: onnx.TensorProto.DOUBLE}
"""Fields of one element after the other, and the type of tensors whose elements these are (those of complex numbers are pairs)."""
_DATA_LOCATION = 14
_EXTERNAL_DATA = 13
# message: {field number: message type of that field}; fields that can hold a tensor, and nothing else, are walked.
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
    "SparseTensor": {},
}
MAX_DEPTH = 100
"""Nesting of messages that protobuf's own parser accepts; deeper files are refused before they can exhaust the stack."""


def varint(number: int) -> bytes:
    """Encode an unsigned integer."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, payload_length: int) -> bytes:
    """The tag and length of a length-delimited field."""
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(payload_length)


def _read_varint(buffer: Buffer, position: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while position < end:
        byte = buffer[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            break
    raise ModelError(f"The file is not a valid ONNX model: a number that starts before byte {position} does not end.")


def split(buffer: Buffer) -> bytes:
    """The model's bytes with every tensor of at least `LARGE_BYTES` replaced by a reference to its range of `buffer`.

    Raises:
        ModelError: the bytes are not the wire format of a model (truncated, or nested too deep).
    """
    return b"".join(_walk(buffer, 0, len(buffer), "Model", 0))


def _walk(buffer: Buffer, start: int, end: int, message: str, depth: int) -> list[bytes]:
    if depth > MAX_DEPTH:
        raise ModelError(f"The file nests messages more than {MAX_DEPTH} deep, which no ONNX parser reads.")
    children = _CHILDREN[message]
    parts: list[bytes] = []
    kept = position = start
    while position < end:
        field_start = position
        tag, position = _read_varint(buffer, position, end)
        position, payload = _skip(buffer, position, end, tag & 7)
        if payload < 0 or position - payload < LARGE_BYTES:
            continue
        child = children.get(tag >> 3)
        if child is None:
            continue
        handle: Callable[[Buffer, int, int, int], list[bytes]] = _tensor if child == "Tensor" else _walker(child)
        replaced = handle(buffer, payload, position, depth + 1)
        parts.append(buffer[kept:field_start])
        parts.append(field(tag >> 3, sum(map(len, replaced))))
        parts.extend(replaced)
        kept = position
    parts.append(buffer[kept:end])
    return parts


def _walker(message: str) -> Callable[[Buffer, int, int, int], list[bytes]]:
    return lambda buffer, start, end, depth: _walk(buffer, start, end, message, depth)


def _skip(buffer: Buffer, position: int, end: int, kind: int) -> tuple[int, int]:
    """The position after a field's value, and where a length-delimited payload starts (-1 for other kinds)."""
    payload = -1
    if kind == _LENGTH_DELIMITED:
        length, payload = _read_varint(buffer, position, end)
        position = payload + length
    elif kind == 0:
        _, position = _read_varint(buffer, position, end)
    elif kind == 1:
        position += 8
    elif kind == 5:
        position += 4
    else:
        raise ModelError(f"The file is not a valid ONNX model: unknown wire type {kind} before byte {position}.")
    if position > end:
        raise ModelError(
            f"The file is truncated: a field that ends at byte {position} lies in a message that ends at {end}."
        )
    return position, payload


def _tensor(buffer: Buffer, start: int, end: int, _: int) -> list[bytes]:
    """A TensorProto with its data replaced by external_data entries that name its range; one whose data is no one range of bytes as
    it is."""
    position = start
    data_type = 0
    found: list[tuple[int, int, int, int]] = []
    while position < end:
        field_start = position
        tag, position = _read_varint(buffer, position, end)
        value = position
        position, payload = _skip(buffer, position, end, tag & 7)
        number = tag >> 3
        if number == _DATA_TYPE and payload < 0:
            data_type = _read_varint(buffer, value, end)[0]
        elif number == _RAW_DATA or number in _PACKED_DATA:
            found.append((number, field_start, payload, position))
    if len(found) != 1:
        return [buffer[start:end]]
    ((number, field_start, payload, position),) = found
    is_range = number == _RAW_DATA or _PACKED_DATA[number] == data_type
    if not is_range or payload < 0 or position - payload < LARGE_BYTES:
        return [buffer[start:end]]
    return [
        buffer[start:field_start],
        buffer[position:end],
        external_entries(INSIDE, payload, position - payload),
    ]


def external_entries(location: str, offset: int, length: int) -> bytes:
    """The fields of a TensorProto that say where its data lies."""
    entries = bytearray()
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        pair = field(1, len(key)) + key.encode() + field(2, len(value)) + value.encode()
        entries += field(_EXTERNAL_DATA, len(pair)) + pair
    return bytes(entries) + varint(_DATA_LOCATION << 3) + b"\x01"


def raw_data_header(length: int) -> bytes:
    """What stands before the bytes of `raw_data` in a TensorProto."""
    return field(_RAW_DATA, length)
