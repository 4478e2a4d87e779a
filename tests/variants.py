"""The variants of an op's kernels, as tests run them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest

LACKS = re.compile(
    r"ONNXOPT_MAX_(ISA|SM) excludes it\."
    r"|This processor cannot run it\."
    r"|This build of onnxopt has no CUDA kernels\."
    r"|This machine has no (NVIDIA driver|CUDA device)\."
    r"|CUDA could not find a device: .*"
    r"|The CUDA device (has compute capability|is of the architecture) .*"
)
"""What a machine, a build or a cap may lack. Any other reason of a kernel is a defect, which a skipped test would hide."""


def skip_if_lacking(problem: str) -> None:
    """Skip a test whose kernel cannot run here, and fail where what it says is none of the known reasons."""
    if not problem:
        return
    if LACKS.fullmatch(problem):
        pytest.skip(problem)
    pytest.fail(f"A kernel refuses to run: {problem}")


def variant_fixture(op: dict[str, Any], *others: str, names: Iterable[str] | None = None) -> Any:
    """A fixture of the names of an op's variants (all of them where `names` does not say which) and of `others`, which the op does not
    list: the code of kernels for CUDA devices on the host. Those that this machine or build lacks are skipped with what the op says.

    Args:
        op: of `native.ops()`.
    """
    problems = {one["name"]: one["problem"] for one in op["variants"]}
    assert all(one["usable"] == (not one["problem"]) for one in op["variants"])

    @pytest.fixture(params=[*(problems if names is None else names), *others])
    def variant(request: pytest.FixtureRequest) -> str:
        skip_if_lacking(problems.get(request.param, ""))
        return str(request.param)

    return variant
