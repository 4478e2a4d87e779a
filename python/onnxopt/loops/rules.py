"""Tables of rules, each filed under the ops that it is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Rule = TypeVar("Rule")


def filing(rules: dict[str, Rule]) -> Callable[..., Callable[[Rule], Rule]]:
    """A decorator that files a rule under the op types that it is given, `_on = filing(RULES)`."""

    def on(*op_types: str) -> Callable[[Rule], Rule]:
        def register(rule: Rule) -> Rule:
            rules.update(dict.fromkeys(op_types, rule))
            return rule

        return register

    return on
