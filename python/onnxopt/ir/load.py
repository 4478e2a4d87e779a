"""Reading models: files with their weights left in place, protobufs, onnx-ir models, GraphSurgeon graphs."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx_ir import ExternalTensor, Model, TensorProtocol, serde

from onnxopt.errors import ModelError, OptionError
from onnxopt.ir import unsupported, wire
from onnxopt.ir.deserialize import Resolve, deserialize
from onnxopt.ir.mapped import DataFile, MappedTensor
from onnxopt.ir.structure import check_structure

TRAINING_KEY = "onnxopt.training_info"
SOURCE_KEY = "onnxopt.source"


def load(source: Any) -> Model:
    """Read a model: a path, bytes, an `onnx.ModelProto`, or an `onnx_graphsurgeon.Graph`; an `onnx_ir.Model` is returned as it is.

    Weights of a file are not read: tensors are ranges of the .onnx file or of its external data, mapped when they are needed.

    Raises:
        ModelError: the model cannot be read, is malformed, or refers to data outside of its folder.
        OptionError: `source` is of another kind.
    """
    if isinstance(source, Model):
        check_structure(source)
        return source
    if isinstance(source, (str, os.PathLike)):
        return _load_file(Path(source))
    if isinstance(source, bytes):
        return from_proto(_parse(source), _refuse_external)
    if isinstance(source, onnx.ModelProto):
        return from_proto(source, _refuse_external)
    if type(source).__module__.startswith("onnx_graphsurgeon"):
        from onnxopt.ir.graphsurgeon import from_graphsurgeon

        return from_graphsurgeon(source)
    raise OptionError(
        f"Expected a path, ModelProto, onnx_ir.Model or onnx_graphsurgeon.Graph, got {type(source).__name__}."
    )


def load_copy(source: Any) -> Model:
    """Like `load`, but an `onnx_ir.Model` is copied, so that the caller may change the result."""
    return source.clone() if isinstance(source, Model) else load(source)


def _load_file(path: Path) -> Model:
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise ModelError(f"There is no model file '{path}'.") from error
    if not stat.S_ISREG(kind):
        raise ModelError(f"'{path}' is not a file.")
    data = DataFile(path)
    if data.size == 0:
        raise ModelError(f"The model file '{path}' is empty.")
    try:
        resolve = functools.partial(_attach, folder=path.parent, files={wire.INSIDE: data})
        model = from_proto(_parse(wire.split(data.map())), resolve)
    except ModelError as error:
        raise ModelError(f"'{path}' cannot be loaded: {error}") from error
    model.meta[SOURCE_KEY] = str(path)
    # The walk touched pages all over the file; its weights are not needed now.
    data.release(0, data.size)
    return model


def _parse(skeleton: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(skeleton)
    except Exception as error:
        raise ModelError(f"It is not a valid ONNX protobuf ({error}).") from error
    return proto


def from_proto(proto: onnx.ModelProto, resolve: Resolve) -> Model:
    """The model of a protobuf, checked; `resolve` says what a tensor that keeps its data elsewhere stands for.

    Raises:
        ModelError: the model is malformed.
    """
    if not proto.HasField("graph"):
        raise ModelError("It holds no graph.")
    try:
        with without_collector():
            model = _deserialized(proto, resolve)
    except ModelError:
        raise
    except RecursionError as error:
        raise ModelError("Its subgraphs are nested too deep.") from error
    except Exception as error:
        raise ModelError(_first_cause(error)) from error
    if proto.training_info:
        model.meta[TRAINING_KEY] = list(proto.training_info)
    check_structure(model)
    return model


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Millions of objects are made and none is garbage: collections in between, and one of all of them at the end, would cost a
    third of the time."""
    if not gc.isenabled():  # also within another such block
        yield
        return
    _collect_what_is_due()
    gc.disable()
    try:
        yield
    finally:
        _make_old()
        gc.enable()


def _collect_what_is_due() -> None:
    global _unseen
    if _unseen > MOST_UNSEEN:
        gc.collect()
        _unseen = 0


def _make_old() -> None:
    """Let the collector take what was made since it was stopped as long-lived, without looking at it."""
    global _unseen
    if gc.get_freeze_count():  # the program keeps frozen objects of its own, which `unfreeze` would give back
        return
    _unseen += gc.get_count()[0]
    gc.freeze()
    gc.unfreeze()


_unseen = 0
MOST_UNSEEN = 2_000_000
"""Objects that models of earlier calls may leave behind, about 200 MB, before they are collected at the start of another call."""


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_cause(error: BaseException) -> str:
    error = _root(error)
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}."


def _deserialized(proto: onnx.ModelProto, resolve: Resolve) -> Model:
    if not proto.graph.sparse_initializer:
        try:
            return deserialize(proto, resolve)
        except serde.SerdeError as error:
            if not isinstance(_root(error), NotImplementedError):
                raise
    disguised = onnx.ModelProto()
    disguised.CopyFrom(proto)
    unsupported.disguise(disguised)
    model = deserialize(disguised, resolve)
    model.meta[unsupported.KEY] = True
    return model


def _refuse_external(tensor: ExternalTensor) -> TensorProtocol:
    raise ModelError(
        f"The tensor '{tensor.name}' keeps its data in '{tensor.location}', and a model in memory has no folder: "
        "load it from its file."
    )


# --- external data -------------------------------------------------------------------------------------------------
def _attach(tensor: ExternalTensor, folder: Path, files: dict[str, DataFile]) -> TensorProtocol:
    location = str(tensor.location)
    if location not in files:
        files[location] = DataFile(contained(folder, location, tensor.name))
    source = files[location]
    shape, dtype, offset = tensor.shape, tensor.dtype, tensor.offset or 0
    if any(not isinstance(dim, int) or dim < 0 for dim in shape):
        raise ModelError(f"The tensor '{tensor.name}' has the impossible shape {shape}.")
    expected = tensor.nbytes
    length = expected if tensor.length is None else tensor.length
    if length != expected:
        raise ModelError(f"The tensor '{tensor.name}' needs {expected} bytes and has {length}.")
    if offset < 0 or offset + expected > source.size:
        raise ModelError(
            f"The tensor '{tensor.name}' lies at bytes {offset} to {offset + expected} of '{source.path}', which has {source.size}."
        )
    mapped = MappedTensor(source, location, offset, expected, dtype, shape, tensor.name or "")
    mapped.doc_string = tensor.doc_string
    mapped.metadata_props.update(tensor.metadata_props)
    return mapped


def contained(folder: Path, location: str, tensor: str | None) -> Path:
    """The path of an external data file, which must lie in the model's folder, links resolved.

    Raises:
        ModelError: the location is absolute, leads out of the folder, or there is no such file.
    """
    where = f"The tensor '{tensor}' keeps its data in '{location}'"
    if not location or "\0" in location or os.path.isabs(location):
        raise ModelError(f"{where}, which is not a path relative to the model's folder.")
    path = folder / location
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ModelError(f"{where}, which leads out of the model's folder.")
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        is_file = False
    if not is_file:
        raise ModelError(f"{where}, and there is no such file.")
    return path
