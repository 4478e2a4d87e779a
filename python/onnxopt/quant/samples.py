"""Calibration data: samples that are read one after the other, so that memory does not grow with their number."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from onnxopt import ir
from onnxopt.errors import CalibrationError, first_line

Sample = Mapping[str, np.ndarray]
Source = str | Path | Iterable[Sample] | Callable[[], Iterable[Sample]]
"""A folder of .npz files (an array per input) or .npy files (of a model with one input), samples, or a function that gives them."""


def read(source: Source, model: ir.Model) -> Iterator[dict[str, np.ndarray]]:
    """Samples that have an array of the right type for every input of the model.

    Raises:
        CalibrationError: there are none, a file cannot be read, or a sample does not fit the model's inputs.
    """
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    empty = True
    for origin, sample in _origins(source, inputs):
        empty = False
        yield _checked(sample, inputs, origin)
    if empty:
        raise CalibrationError(
            f"There is no calibration sample in {source}." if _is_path(source) else "There is no calibration sample."
        )


def is_repeatable(source: Source) -> bool:
    """Whether a source gives its samples again when it is read again: all but iterators do."""
    return not isinstance(source, Iterator)


def sizes(model: ir.Model, sample: Sample) -> dict[str, int]:
    """The sizes that open dims of the inputs have in a sample, by their names."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        name = str(value.name)
        if value.shape is None or name not in sample:
            continue
        for axis, (dim, size) in enumerate(zip(value.shape, sample[name].shape, strict=False)):
            if not isinstance(dim, int):
                found.setdefault(ir.given_name(dim) or ir.unnamed_dim(name, axis), int(size))
    return found


def _is_path(source: Source) -> bool:
    return isinstance(source, (str, Path))


def _origins(source: Source, inputs: list[ir.Value]) -> Iterator[tuple[str, Sample]]:
    if isinstance(source, (str, Path)):
        for path in _files(Path(source)):
            yield f"'{path}'", _load(path, inputs)
        return
    for number, sample in enumerate(_given(source)):
        if not isinstance(sample, Mapping):
            raise CalibrationError(
                f"Calibration sample {number} is of type {type(sample).__name__}; expected a dict of arrays."
            )
        yield f"calibration sample {number}", sample


def _given(source: Iterable[Sample] | Callable[[], Iterable[Sample]]) -> Iterator[Sample]:
    """The samples of a program; what it raises is an error of the samples."""
    number = 0
    try:
        given = source() if callable(source) else source
        if not isinstance(given, Iterable):
            raise CalibrationError(
                f"The calibration data are of type {type(given).__name__}; expected a folder, an iterable of dicts of arrays, or a "
                "function that returns one."
            )
        for sample in given:
            yield sample
            number += 1
    except CalibrationError:
        raise
    except Exception as error:
        raise CalibrationError(
            f"Calibration sample {number} cannot be had: {type(error).__name__}: {first_line(error)}"
        ) from error


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CalibrationError(f"'{folder}' is no folder of calibration samples (.npz or .npy).")
    return sorted(path for path in folder.iterdir() if path.suffix in (".npz", ".npy"))


def _load(path: Path, inputs: list[ir.Value]) -> Sample:
    try:
        held = np.load(path, allow_pickle=False)
        if isinstance(held, np.ndarray):
            if len(inputs) != 1:
                raise CalibrationError(
                    f"'{path}' has one array, but the model has {len(inputs)} inputs: use .npz files."
                )
            return {str(inputs[0].name): held}
        with held:
            return dict(held)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"The calibration sample '{path}' cannot be read: {error}") from error


def _checked(sample: Sample, inputs: list[ir.Value], origin: str) -> dict[str, np.ndarray]:
    checked = {}
    for value in inputs:
        name = str(value.name)
        if name not in sample:
            raise CalibrationError(f"{_capital(origin)} has no array '{name}'; it has {', '.join(sample) or 'none'}.")
        array = np.asarray(sample[name])
        wanted = None if value.dtype is None else value.dtype.numpy()
        if wanted is not None and array.dtype != wanted:
            raise CalibrationError(f"{_capital(origin)}: '{name}' is of type {array.dtype} and should be {wanted}.")
        if value.shape is not None and len(value.shape) != array.ndim:
            raise CalibrationError(
                f"{_capital(origin)}: '{name}' has {array.ndim} dims and should have {len(value.shape)}."
            )
        if value.shape is not None and any(
            isinstance(dim, int) and 0 < dim != size for dim, size in zip(value.shape, array.shape, strict=True)
        ):
            raise CalibrationError(
                f"{_capital(origin)}: '{name}' has the shape {_text(array.shape)} and should have {_text(value.shape)}."
            )
        checked[name] = array
    return checked


def _text(shape: Iterable[int | ir.SymbolicDim]) -> str:
    return (
        "["
        + ", ".join(str(dim) if isinstance(dim, int) and dim > 0 else ir.given_name(dim) or "?" for dim in shape)
        + "]"
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
