"""Finding the rewrite to blame: the pipeline is run again with ever fewer patches until one patch separates right from wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from onnxopt import ir
from onnxopt.passes.base import AppliedPatch

if TYPE_CHECKING:
    from onnxopt.pipeline import PassManager


def first_bad_patch(
    load: Callable[[], ir.Model], manager: PassManager, is_right: Callable[[ir.Model], bool]
) -> AppliedPatch | None:
    """The first patch of a run after which the model's outputs are wrong.

    Args:
        load: loads the original model afresh; it is called about log2(number of patches) times.
        manager: the manager whose run went wrong; passes are deterministic, so a shorter run is a prefix of a longer one.
        is_right: whether a model gives the original's outputs.

    Returns:
        The patch, or None when the outputs are wrong without any patch (loading, saving or the runtime is to blame).
    """
    if not is_right(_run(load, manager, 0)[0]):
        return None
    good, bad = 0, len(_run(load, manager, None)[1])
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_right(_run(load, manager, middle)[0]):
            good = middle
        else:
            bad = middle
    return _run(load, manager, bad)[1][bad - 1]


def _run(
    load: Callable[[], ir.Model], manager: PassManager, stop_after: int | None
) -> tuple[ir.Model, list[AppliedPatch]]:
    model = load()
    report = manager.with_budget(stop_after).run(model)
    return model, report.patches
