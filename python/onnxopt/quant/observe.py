"""What activations are over calibration samples."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from onnxopt import ir
from onnxopt.errors import CalibrationError
from onnxopt.quant.histogram import Histogram


def observe(
    model: ir.Model,
    values: Sequence[ir.Value],
    samples: Iterable[dict[str, np.ndarray]],
    tick: Callable[[str], object] = lambda _: None,
) -> dict[str, Histogram]:
    """A histogram of each of some float values of the main graph, by name. Activations are kept for one sample at a time.

    Args:
        tick: called with a sentence after every sample.

    Raises:
        CalibrationError: a value is not finite for a sample, or onnxruntime cannot run one.
    """
    histograms = {str(value.name): Histogram() for value in values}
    computed = [value for value in values if not value.is_graph_input()]
    with tempfile.TemporaryDirectory() as folder:
        session = _session(model, computed, Path(folder))
        names = [str(value.name) for value in computed]
        for number, sample in enumerate(samples):
            try:
                results = dict(zip(names, session.run(names or None, sample), strict=False)) if names else {}
            except Exception as error:  # onnxruntime's own kinds of errors
                raise CalibrationError(
                    f"Calibration sample {number} cannot be run: {str(error).splitlines()[0]}"
                ) from error
            for name, histogram in histograms.items():
                array = results[name] if name in results else sample[name]
                if not np.isfinite(array).all():
                    raise CalibrationError(f"'{name}' is not finite for calibration sample {number}.")
                histogram.add(array)
            tick(f"{number + 1} samples")
    return histograms


def _session(model: ir.Model, values: Sequence[ir.Value], folder: Path):  # type: ignore[no-untyped-def]
    """A session of the model with further outputs, from a file: models may be larger than 2 GB."""
    from onnxopt.runtime.library import session

    outputs = model.graph.outputs
    given = list(outputs)
    path = folder / "observed.onnx"
    try:
        outputs.extend(value for value in values if value not in given)
        ir.save(model, path)
    finally:
        outputs.clear()
        outputs.extend(given)
    return session(path, library=False)
