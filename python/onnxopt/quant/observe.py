"""What activations are over calibration samples."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from onnxopt import ir
from onnxopt.errors import CalibrationError
from onnxopt.quant.checkpoint import Checkpoint
from onnxopt.quant.histogram import Histogram

MAPPED_BYTES = 64 << 20
"""Weights of more than that are left in a file of their own."""


def observe(
    model: ir.Model,
    values: Sequence[ir.Value],
    samples: Iterable[dict[str, np.ndarray]],
    tick: Callable[[str], object] = lambda _: None,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Histogram]:
    """A histogram of each of some float values of the main graph, by name. Activations are kept for one sample at a time.

    Args:
        tick: called with a sentence after every sample.
        checkpoint: what was observed of the first samples before; it is kept up to date.

    Raises:
        CalibrationError: a value is not finite for a sample, or onnxruntime cannot run one.
    """
    checkpoint = checkpoint or Checkpoint(None, "")
    histograms = checkpoint.histograms = {
        name: checkpoint.histograms.get(name) or Histogram() for name in (str(value.name) for value in values)
    }
    known = len(checkpoint.seen)
    computed = [value for value in values if not value.is_graph_input()]
    session = None
    names = [str(value.name) for value in computed]
    for number, sample in enumerate(samples):
        if number < known:
            continue
        session = session or (_session(model, computed) if computed else None)
        try:
            results = {} if session is None else dict(zip(names, session.run(names, sample), strict=True))
        except Exception as error:  # onnxruntime's own kinds of errors
            raise CalibrationError(
                f"Calibration sample {number} cannot be run: {str(error).splitlines()[0]}"
            ) from error
        for name, histogram in histograms.items():
            array = results[name] if name in results else sample[name]
            if not np.isfinite(array).all():
                raise CalibrationError(f"'{name}' is not finite for calibration sample {number}.")
            histogram.add(array)
        checkpoint.note(sample)
        tick(f"{number + 1} samples")
    if len(checkpoint.seen) > known:
        checkpoint.close()
    return histograms


def _session(model: ir.Model, values: Sequence[ir.Value]):  # type: ignore[no-untyped-def]
    """A session of the model with further outputs."""
    outputs = model.graph.outputs
    given = list(outputs)
    try:
        outputs.extend(value for value in values if value not in given)
        return session_of(model, library=False)
    finally:
        outputs.clear()
        outputs.extend(given)


def session_of(model: ir.Model, *, library: bool, threads: int | None = None):  # type: ignore[no-untyped-def]
    """A session of a model of any size: from a file, whose weights onnxruntime maps."""
    from onnxopt.runtime.library import session

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="external" if ir.weight_bytes(model) > MAPPED_BYTES else "inside")
        return session(path, library=library, threads=threads)
