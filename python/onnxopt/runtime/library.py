"""The native library, and sessions that use it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from onnxopt.errors import ModelError, OptionError, RuntimeMissingError, first_line

if TYPE_CHECKING:
    import onnxruntime

INSTALL_HINT = (
    "install onnxopt[gpu] (onnxruntime-gpu, runs without a GPU as well) or onnxopt[cpu] (onnxruntime), not both"
)

_registered: weakref.WeakSet[onnxruntime.SessionOptions] = weakref.WeakSet()
"""Options that know the library: onnxruntime makes no session of options that were given a library twice."""

_kernels: list[Path] = []
"""Libraries of kernels of the user's that this process has loaded."""


def library_path() -> Path:
    """The custom-op library, to be registered with onnxruntime from any language.

    Raises:
        RuntimeMissingError: the package was not built with its native part.
    """
    path = Path(__file__).resolve().parent.parent / "libonnxopt_ops.so"
    if not path.exists():
        raise RuntimeMissingError(f"The native library '{path}' is missing: build it with `pip install .`.")
    return path


def cmake_dir() -> Path:
    """Where CMake finds the package: `find_package(onnxopt CONFIG)` with `-Donnxopt_DIR=` this, for `onnxopt_add_kernel`."""
    return Path(__file__).resolve().parent.parent / "cmake"


def native() -> ModuleType:
    """The native module: kernel registry, CPU features, running kernels on arrays.

    Raises:
        RuntimeMissingError: the package was not built with its native part.
        OptionError: ONNXOPT_MAX_ISA names no instruction set.
    """
    library_path()
    module = importlib.import_module("onnxopt._native")
    try:
        module.max_isa()
    except ValueError as error:
        raise OptionError(str(error)) from error
    return module


@functools.cache
def load_nvrtc() -> bool:
    """Load the NVRTC of the packages `nvidia-cuda-nvrtc` and `nvidia-cuda-nvrtc-cu12`, which no linker looks for, so that the native
    library finds it; whether one was there. The newest is taken; ONNXOPT_NVRTC goes before.
    """
    if os.environ.get("ONNXOPT_NVRTC"):
        return os.environ["ONNXOPT_NVRTC"] != "off"
    spec = importlib.util.find_spec("nvidia")
    places = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    found = [path for place in places for path in place.glob("*/lib/libnvrtc.so.[0-9]*")]
    for path in sorted(found, key=lambda path: int(path.suffix[1:]), reverse=True):
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(path))
            return True
    return False


def import_onnxruntime() -> ModuleType:
    """onnxruntime.

    Raises:
        RuntimeMissingError: it is not installed; the text says what to install.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise RuntimeMissingError(f"onnxruntime is not installed: {INSTALL_HINT}.") from error
    except ImportError as error:
        raise RuntimeMissingError(f"onnxruntime cannot be imported ({first_line(error)}): {INSTALL_HINT}.") from error


def load_kernels(path: str | Path) -> None:
    """Load a library of kernels of yours, as CMake's `onnxopt_add_kernel` builds it, for as long as the process lives.

    Its ops run in sessions that `session` and `register` make from then on, and `bench_kernel` measures it. Loading twice is once.

    Raises:
        OptionError: it cannot be loaded, was built for another version of the interface, or has kernels that are there already.
    """
    path = Path(path).resolve()
    if path in _kernels:
        return
    try:
        native().load_kernels(str(path))
    except ValueError as error:
        raise OptionError(f"The library of kernels '{path}' cannot be loaded: {first_line(error)}") from error
    _kernels.append(path)


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Make onnxopt's custom ops, and those of libraries that were loaded, known to sessions that are made with these options.

    Registering twice is once.

    Raises:
        RuntimeMissingError: the native library is missing, or this onnxruntime refuses it.
    """
    if session_options in _registered:
        return
    if not native().cuda_problem():
        load_nvrtc()
    for path in (library_path(), *_kernels):
        try:
            session_options.register_custom_ops_library(str(path))
        except Exception as error:
            raise RuntimeMissingError(f"onnxruntime refuses the library '{path}': {first_line(error)}") from error
    _registered.add(session_options)


def session(
    model: Any,
    *,
    threads: int | None = None,
    library: bool = True,
    optimize: bool = True,
    providers: list[str] | None = None,
    tuning: str | Path | None = None,
) -> onnxruntime.InferenceSession:
    """An onnxruntime session with the custom-op library registered.

    Args:
        model: a path, the bytes of a model, an `onnx.ModelProto` or an `onnx_ir.Model`.
        threads: intra-op threads; None is onnxruntime's choice.
        library: register the library; without it custom ops run as their standard bodies.
        optimize: onnxruntime's own optimizations at their highest level, or none.
        providers: execution providers; None is the CPU.
        tuning: the tuning file that says which kernel variants run; None is that of ONNXOPT_TUNING, if it is set.

    Raises:
        ModelError: onnxruntime cannot load the model.
        RuntimeMissingError: onnxruntime or the native library is missing.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    if library:
        register(options)
    try:
        with tuned_kernels(tuning):
            return ort.InferenceSession(_source(model), options, providers=providers or ["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load the model: {first_line(error)}") from error


_environment = threading.Lock()


@contextlib.contextmanager
def tuned_kernels(tuning: str | Path | None) -> Iterator[None]:
    """Sessions that are made inside run the kernel variants that a tuning file names; None changes nothing.

    The library reads ONNXOPT_TUNING when it makes a kernel, so one thread at a time is inside.
    """
    if tuning is None:
        yield
        return
    with _environment:
        before = os.environ.get("ONNXOPT_TUNING")
        os.environ["ONNXOPT_TUNING"] = str(tuning)
        try:
            yield
        finally:
            del os.environ["ONNXOPT_TUNING"]
            if before is not None:
                os.environ["ONNXOPT_TUNING"] = before


def _source(model: Any) -> str | bytes:
    if isinstance(model, (str, Path)):
        return str(model)
    if isinstance(model, bytes):
        return model
    if hasattr(model, "SerializeToString"):
        return bytes(model.SerializeToString())
    from onnxopt import ir

    return bytes(ir.to_proto(model).SerializeToString())


def describe() -> str:
    """One line with the versions of onnxopt and of what it runs on; it loads all of that, so it also shows that it loads."""
    import onnx

    from onnxopt import __version__, passes
    from onnxopt.passes.base import REGISTRY
    from onnxopt.runtime.target import TARGETS

    passes.load_all()
    parts = [f"onnxopt {__version__}", f"onnx {onnx.__version__}"]
    try:
        parts.append(f"onnxruntime {import_onnxruntime().__version__}")
    except RuntimeMissingError:
        parts.append("no onnxruntime")
    try:
        parts.append(f"kernels {native().max_isa()}")
    except RuntimeMissingError:
        parts.append("no native library")
    return f"{', '.join(parts)}; {len(REGISTRY)} passes; targets {', '.join(TARGETS)}"
