"""The errors that onnxopt raises: one family, each with a sentence that says what is wrong and where."""

from __future__ import annotations


class OnnxOptError(Exception):
    """Base of every error that onnxopt raises on purpose. Its text is a sentence for the user."""


class ModelError(OnnxOptError):
    """The model is malformed, inconsistent or unsafe to read (truncated file, cycle, dangling input, escaping data path)."""


class OptionError(OnnxOptError):
    """An option, a pass name or an argument is unknown or out of range."""


class RuntimeMissingError(OnnxOptError):
    """onnxruntime, or the native library, is not installed; the text says what to install."""


class PassError(OnnxOptError):
    """A pass failed or broke the graph; the text names the pass, its position and the passes already run."""


class PatchError(PassError):
    """A rewrite proposed a patch that does not fit: another type, another shape, or a value that is not available."""


class VerificationError(OnnxOptError):
    """Outputs of the optimized model differ from the original's; the text names pass, rule and node when they are known."""


class CalibrationError(OnnxOptError):
    """Calibration data are missing or do not fit the model, or a tensor is not finite for a sample; the text names both."""


class MetricError(OnnxOptError):
    """The user's metric fails or gives no number; the text says for which model."""


def first_line(error: BaseException) -> str:
    """The first line of what another library says, for our own sentence; the kind of error where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
