"""Writing models: whole or not at all, with unchanged weights streamed from file to file."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir
from onnx_ir import ExternalTensor, Model, TensorProtocol, serde

from onnxopt.errors import ModelError, OptionError
from onnxopt.ir import unsupported, wire
from onnxopt.ir.lazy import is_streamed
from onnxopt.ir.load import SOURCE_KEY, TRAINING_KEY, without_collector
from onnxopt.ir.mapped import MappedTensor, is_external
from onnxopt.ir.protos import ArrayTensor
from onnxopt.ir.serialize import serialize
from onnxopt.ir.statistics import walk_graphs

PROTOBUF_LIMIT = (2 << 30) - (16 << 20)
"""Protobuf refuses messages of 2 GiB; the margin is room for the graph around the weights."""

PAGE_ALIGNMENT = 4096
LARGE_ALIGNMENT = 64 << 10
LARGE_TENSOR = 1 << 20
"""Tensors in a data file start on a page, so that runtimes can map them; large ones on 64 KiB, the coarsest unit any platform maps by."""

BYTE = 8
"""Bits."""

MODES = ("auto", "inside", "external", "reference")


def save(model: Model, path: str | os.PathLike[str], *, external_data: str | None = None) -> None:
    """Write a model to `path`. The file appears whole or not at all, whatever happens meanwhile.

    Args:
        model: what to write; it is not changed.
        path: the .onnx file.
        external_data: "inside" keeps weights in the .onnx file; "external" writes them to `<path>.data`; "reference" lets the
            output refer to the data file of the input, which must lie in or below the output's folder; None or "auto" writes
            them where they were read from: inside if they were inside and the model fits into a protobuf, else external.

    Raises:
        OptionError: the mode is unknown or impossible, or the output would overwrite a file that the model reads.
        OSError: the file cannot be written; nothing is left behind.
    """
    mode = external_data or "auto"
    if mode not in MODES:
        raise OptionError(f"external_data '{mode}' is unknown; the modes are {', '.join(MODES)}.")
    target = check_output(path, model)
    _remove_stale(target)
    large, entries = _elsewhere(model, mode, target)
    with without_collector():
        proto = _skeleton(model, entries)
    _Writer(target, proto, large).write(_external(mode, large))


def check_output(path: str | os.PathLike[str], model: Model | None = None) -> Path:
    """The path of an output, if a file can be written there. Long work asks before it begins.

    Raises:
        OptionError: it is a folder, a device or a pipe, its folder does not exist, or it is a file that the model reads.
        OSError: it may not be written.
    """
    target = Path(path)
    if target.is_dir():
        raise OptionError(f"The output '{target}' is a folder.")
    if target.exists() and not target.is_file():
        raise OptionError(f"The output '{target}' is not an ordinary file.")
    if not target.parent.is_dir():
        raise OptionError(f"The folder '{target.parent}' of the output does not exist.")
    if not all(os.access(one, os.W_OK) for one in (target, target.parent) if one.exists()):
        raise PermissionError(errno.EACCES, f"The output cannot be written: {os.strerror(errno.EACCES)}", str(target))
    if model is not None:
        _refuse_overwriting(model, target)
    return target


def to_proto(model: Model) -> onnx.ModelProto:
    """The model as one protobuf in memory, weights included.

    Raises:
        ModelError: it is larger than a protobuf can be.
    """
    size = sum(tensor.nbytes for tensor in _tensors(model))
    if size > PROTOBUF_LIMIT:
        raise ModelError(
            f"The model has {size} bytes of weights, more than a protobuf holds; write it to a file instead."
        )
    proto, large = skeleton(model)
    for initializer in proto.graph.initializer:
        tensor = large.get(initializer.name)
        if tensor is not None:
            _clear_location(initializer)
            initializer.raw_data = tensor.tobytes()
    return proto


def rebuild(model: Model, convert: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """Pass a model through a function over protobufs, in place. Large weights do not take part and keep their tensors.

    Raises:
        ModelError: the function fails, or makes something that is no model.
    """
    proto, large = skeleton(model)
    try:
        converted = serde.deserialize_model(convert(proto))
    except Exception as error:
        raise ModelError(f"The model cannot be converted: {str(error).splitlines()[0]}") from error
    for name, tensor in large.items():
        if name not in converted.graph.initializers:
            raise ModelError(f"The conversion lost the weight '{name}'.")
        converted.graph.initializers[name].const_value = tensor
    model.graph = converted.graph
    model.functions.clear()
    model.functions.update(converted.functions)
    model.ir_version = converted.ir_version


def as_kind_of(source: Any, model: Model) -> Any:
    """The model as the kind of thing that `source` is; a path stands for an `onnx.ModelProto`."""
    if isinstance(source, Model):
        return model
    if type(source).__module__.startswith("onnx_graphsurgeon"):
        from onnxopt.ir.graphsurgeon import to_graphsurgeon

        return to_graphsurgeon(model)
    proto = to_proto(model)
    return proto.SerializeToString() if isinstance(source, bytes) else proto


# --- the protobuf without its weights ------------------------------------------------------------------------------
def skeleton(model: Model) -> tuple[onnx.ModelProto, dict[str, TensorProtocol]]:
    """The model as a protobuf whose large initializers have no bytes, and those tensors by name."""
    large, entries = _elsewhere(model, "inside", None)
    return _skeleton(model, entries), large


def _skeleton(model: Model, entries: Mapping[str, bytes]) -> onnx.ModelProto:
    try:
        proto = serialize(model, entries)
    except Exception as error:
        raise ModelError(f"The model cannot be written: {type(error).__name__}: {error}") from error
    proto.training_info.extend(model.meta.get(TRAINING_KEY) or [])
    if unsupported.KEY in model.meta:
        unsupported.reveal(proto)
    return proto


def _tensors(model: Model) -> Iterator[TensorProtocol]:
    for graph in walk_graphs(model.graph):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _elsewhere(model: Model, mode: str, target: Path | None) -> tuple[dict[str, TensorProtocol], dict[str, bytes]]:
    """The large initializers of the main graph whose bytes the file gets behind the rest, and for these and those that it refers to,
    by name, the fields that say where their bytes lie."""
    large: dict[str, TensorProtocol] = {}
    entries: dict[str, bytes] = {}
    for name, value in model.graph.initializers.data.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype == onnx_ir.DataType.STRING:
            continue
        external = is_external(tensor)
        if not external and tensor.nbytes < wire.LARGE_BYTES:
            continue
        if mode == "reference" and external and tensor.location != wire.INSIDE:  # type: ignore[attr-defined]
            entries[name] = _reference(tensor, target)  # type: ignore[arg-type]
        else:
            large[name] = tensor
            entries[name] = _NOT_YET
    return large, entries


_NOT_YET = wire.external_entries(wire.INSIDE, 0, 0)
"""What says that a tensor's bytes lie elsewhere, until it is known where."""


def _reference(tensor: ExternalTensor, target: Path | None) -> bytes:
    assert target is not None
    data = Path(os.path.realpath(tensor.path))
    folder = Path(os.path.realpath(target.parent))
    if not data.is_relative_to(folder):
        raise OptionError(f"The output in '{folder}' cannot refer to '{data}', which lies outside of its folder.")
    return wire.external_entries(str(data.relative_to(folder)), tensor.offset or 0, tensor.nbytes)


def _external(mode: str, large: dict[str, TensorProtocol]) -> bool:
    if mode == "external":
        return True
    size = sum(tensor.nbytes for tensor in large.values())
    if size > PROTOBUF_LIMIT:
        return True
    was_external = any(_lies_outside(one) for one in large.values())
    return mode == "auto" and was_external


def _lies_outside(tensor: TensorProtocol) -> bool:
    source = _source(tensor)
    return source is not None and source.location != wire.INSIDE


def _source(tensor: TensorProtocol) -> ExternalTensor | None:
    """What a tensor is read from, if that lies in a file."""
    source: Any = tensor.mapped if is_streamed(tensor) else tensor  # type: ignore[attr-defined]
    return source if is_external(source) else None


def _clear_location(proto: onnx.TensorProto) -> None:
    proto.ClearField("external_data")
    proto.ClearField("data_location")


# --- files ---------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(slots=True)
class _Writer:
    """Writes temporary files beside the target and renames them when all is written."""

    target: Path
    proto: onnx.ModelProto
    large: dict[str, TensorProtocol]

    def write(self, external: bool) -> None:
        data_path = self.target.with_name(self.target.name + ".data")
        model_temporary, data_temporary = _temporary(self.target), _temporary(data_path)
        try:
            if external:
                with data_temporary.open("wb", buffering=0) as file:
                    self._write_data(file, data_path.name)
            with model_temporary.open("wb", buffering=0) as file:
                self._write_model(file, inside=not external)
            if external:
                # An old model must never be seen with the new data: it goes first.
                self.target.unlink(missing_ok=True)
                os.replace(data_temporary, data_path)
            os.replace(model_temporary, self.target)
        except OSError as error:
            named = [] if error.filename is None else [Path(error.filename)]
            if error.errno is None or not {model_temporary, data_temporary}.issuperset(named):
                raise  # of a file that the weights are read from
            raise OSError(error.errno, f"The output cannot be written: {error.strerror}", str(self.target)) from error
        finally:
            for temporary in (model_temporary, data_temporary):
                with contextlib.suppress(OSError):  # what could not be made
                    temporary.unlink()

    def _write_data(self, file: BinaryIO, location: str) -> None:
        position = 0
        for initializer in self.proto.graph.initializer:
            tensor = self.large.get(initializer.name)
            if tensor is None or initializer.data_location != onnx.TensorProto.EXTERNAL:
                continue
            alignment = LARGE_ALIGNMENT if tensor.nbytes >= LARGE_TENSOR else PAGE_ALIGNMENT
            padding = -position % alignment
            _write_all(file, bytes(padding))
            position += padding
            _write_tensor(file, tensor)
            _clear_location(initializer)
            initializer.MergeFromString(wire.external_entries(location, position, tensor.nbytes))
            position += tensor.nbytes

    def _write_model(self, file: BinaryIO, *, inside: bool) -> None:
        if not inside or not self.large:
            _write_all(file, self.proto.SerializeToString(deterministic=True))
            return
        headers = self._take_large()
        graph = self.proto.graph.SerializeToString(deterministic=True)
        self.proto.ClearField("graph")
        length = len(graph) + sum(len(prefix) + tensor.nbytes for prefix, tensor in headers)
        _write_all(file, self.proto.SerializeToString(deterministic=True) + wire.field(7, length) + graph)
        for prefix, tensor in headers:
            _write_all(file, prefix)
            _write_tensor(file, tensor)

    def _take_large(self) -> list[tuple[bytes, TensorProtocol]]:
        """Remove the large initializers from the protobuf; what stands before their bytes, in the order of the file."""
        taken: list[tuple[bytes, TensorProtocol]] = []
        kept: list[onnx.TensorProto] = []
        for initializer in self.proto.graph.initializer:
            tensor = self.large.get(initializer.name)
            if tensor is None:
                kept.append(initializer)
                continue
            _clear_location(initializer)
            taken.append((_tensor_prefix(initializer.SerializeToString(deterministic=True), tensor), tensor))
        copies = [onnx.TensorProto.FromString(one.SerializeToString()) for one in kept]
        self.proto.graph.ClearField("initializer")
        self.proto.graph.initializer.extend(copies)
        return taken


def _tensor_prefix(header: bytes, tensor: TensorProtocol) -> bytes:
    """Everything of an initializer field before its bytes."""
    prefix = header + wire.raw_data_header(tensor.nbytes)
    return wire.field(5, len(prefix) + tensor.nbytes) + prefix


def _write_tensor(file: BinaryIO, tensor: TensorProtocol) -> None:
    if is_streamed(tensor) or type(tensor) is MappedTensor:
        tensor.copy_to(file)  # type: ignore[attr-defined]
    else:
        data = _bytes_of(tensor)
        if len(data) != tensor.nbytes:
            raise ModelError(f"The tensor '{tensor.name}' has {len(data)} bytes and should have {tensor.nbytes}.")
        _write_all(file, data)


def _bytes_of(tensor: TensorProtocol) -> bytes | memoryview:
    """The bytes of a tensor, where they lie if they are in memory as they have to be written."""
    if type(tensor) is ArrayTensor:
        return tensor.view()
    if type(tensor) is not onnx_ir.Tensor or tensor.dtype.bitwidth < BYTE or sys.byteorder != "little":
        return tensor.tobytes()
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        written = file.write(view)
        view = view[written:]


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.onnxopt-{os.getpid()}.tmp")


def _remove_stale(target: Path) -> None:
    """Remove temporary files that killed processes left for this output."""
    begins = (f".{target.name}.onnxopt-", f".{target.name}.data.onnxopt-")
    try:
        names = os.listdir(target.parent)
    except PermissionError:  # a folder that may be written and not read
        return
    for name in names:
        if name.startswith(begins) and name.endswith(".tmp"):
            pid = name.rsplit("-", 1)[1].removesuffix(".tmp")
            if pid.isdigit() and int(pid) != os.getpid() and not Path(f"/proc/{pid}").exists():
                (target.parent / name).unlink(missing_ok=True)


def _refuse_overwriting(model: Model, target: Path) -> None:
    """The files that the model's tensors live in are inputs, and inputs are never changed."""
    outputs = [path for path in (target, target.with_name(target.name + ".data")) if path.exists()]
    if not outputs:
        return
    sources = {path for path in map(_file_of, _tensors(model)) if path is not None}
    sources |= {Path(source) for source in [model.meta.get(SOURCE_KEY)] if source}
    for source in sources:
        for output in outputs:
            if source.exists() and output.samefile(source):
                raise OptionError(f"The output '{output}' is a file that the model is read from; choose another name.")


def _file_of(tensor: TensorProtocol) -> Path | None:
    source = _source(tensor)
    if type(source) is MappedTensor:
        return source.source.path
    return None if source is None else Path(source.path)
