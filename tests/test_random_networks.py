"""Random networks: equal outputs after optimize, by kernels and by bodies, wherever fusion is allowed to take place. A failure prints
its seed."""

from __future__ import annotations

import os

import onnx
import pytest

from helpers import assert_same, set_costs
from networks import ImageNetwork, Network, TokenNetwork
from onnxopt import ir
from onnxopt.pipeline import PassManager

pytestmark = pytest.mark.slow

NETWORKS = 48
BATCHES = 6
BASE_SEED = int(os.environ.get("ONNXOPT_RANDOM_SEED", "20261130"))
ALWAYS = {"product_work": 1, "norm_elements": 1, "softmax_width": 1, "border_cost": 0, "image_channels": 1, "separable_pixels": 0, "inverted_part": 0, "small_region_elements": 0}  # fmt: skip
"""Costs by which every fusion pays."""


def check(kind: type[Network], seed: int) -> None:
    network = kind(seed)
    model = network.build()
    loaded = ir.load(onnx.ModelProto.FromString(model.SerializeToString()))
    PassManager("cpu", strict=True).run(loaded)
    optimized = ir.to_proto(loaded)
    for library in (True, False):
        assert_same(model, optimized, network.feeds, rtol=2e-4, atol=2e-5, library=library)


@pytest.mark.parametrize("batch", range(BATCHES))
@pytest.mark.parametrize("costs", [{}, ALWAYS], ids=["measured_costs", "fused_always"])
@pytest.mark.parametrize("kind", [ImageNetwork, TokenNetwork])
def test_random_networks_give_the_same_outputs(
    kind: type[Network], costs: dict[str, float], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_costs(monkeypatch, **costs)
    for seed in range(BASE_SEED + batch, BASE_SEED + NETWORKS, BATCHES):
        try:
            check(kind, seed)
        except Exception as error:
            raise AssertionError(f"seed {seed} of {kind.__name__}: {type(error).__name__}: {error}") from error
