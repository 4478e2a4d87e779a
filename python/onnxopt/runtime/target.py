"""What a model is optimized for."""

from __future__ import annotations

import dataclasses

from onnxopt.errors import OptionError
from onnxopt.runtime.costs import Costs


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A frozen description of a target. It decides benefit, never correctness.

    Attributes:
        name: "cpu", "cuda" or "generic".
        custom_ops: whether onnxopt's custom ops may be emitted (always with a standard function body).
        costs: where fusions pay.
    """

    name: str
    custom_ops: bool
    costs: Costs = dataclasses.field(default_factory=lambda: Costs.of("cpu"))

    @staticmethod
    def named(name: Target | str) -> Target:
        """The target of that name; a target is itself.

        Raises:
            OptionError: there is none.
        """
        if isinstance(name, Target):
            return name
        if not isinstance(name, str) or name not in TARGETS:
            raise OptionError(f"There is no target '{name}'. The targets are: {', '.join(TARGETS)}.")
        return TARGETS[name]

    def runs_phase(self, phase: str) -> bool:
        return phase not in ("quantize", "fuse") or self.custom_ops


TARGETS = {
    "cpu": Target("cpu", custom_ops=True),
    "cuda": Target("cuda", custom_ops=True),
    "generic": Target("generic", custom_ops=False),
}
