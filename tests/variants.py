"""The variants of an op's kernels, as tests run them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def variant_fixture(op: dict[str, Any], *others: str, names: Iterable[str] | None = None) -> Any:
    """A fixture of the names of an op's variants (all of them where `names` does not say which) and of `others`, which the op does not
    list: the code of kernels for CUDA devices on the host. Those that cannot run here are skipped with what the op says of them.

    Args:
        op: of `native.ops()`.
    """
    problems = {one["name"]: "" if one["usable"] else one["problem"] for one in op["variants"]}

    @pytest.fixture(params=[*(problems if names is None else names), *others])
    def variant(request: pytest.FixtureRequest) -> str:
        if problem := problems.get(request.param):
            pytest.skip(problem)
        return str(request.param)

    return variant
