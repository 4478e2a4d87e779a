"""Which variant of a model is fastest: a greedy descent over measured trials, each kept on disk as soon as it is made.

Nothing here knows of models or of clocks: who measures, who verifies and what time it is are given.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxopt.errors import OptionError

VERSION = 1
"""Of the journal; another one is refused, not guessed at."""

SIGNIFICANCE = 0.05
"""The chance at which a contender that is no faster may win one trial by luck. A descent makes many trials, so what it chose must
win once more, in rounds that did not choose it."""

MARGIN = 1.01
"""The least median speed-up of a winner: below, a gain is not worth a model that differs from the default."""

ROUNDS_TO_CHOOSE = 9
"""Rounds of a trial that chooses: the fewest in which one round may be lost to a disturbance of the machine."""

ROUNDS_TO_CONFIRM = 15
"""Rounds of a trial that confirms: three may be lost."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One thing that a candidate does in another way than the default.

    Attributes:
        kind: "without" a pass, "not_at" nodes, "cost", "variant" of a kernel, or "contrib" rule.
        name: of the pass, rule, cost or op. A candidate has one change of a kind and name.
        value: names of passes or nodes, the cost, or the variant's name.
        label: how people call it; labels differ where changes differ.
    """

    kind: str
    name: str
    value: Any
    label: str


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A variant of a model: the original as it is, or optimized with some changes to the default."""

    original: bool = False
    changes: frozenset[Change] = frozenset()

    def with_change(self, change: Change) -> Candidate:
        """The same with one more change, which takes the place of one of the same kind and name."""
        others = (one for one in self.changes if (one.kind, one.name) != (change.kind, change.name))
        return Candidate(changes=frozenset((*others, change)))

    def label(self) -> str:
        if self.original:
            return "the original"
        return ", ".join(sorted(change.label for change in self.changes)) or "the default"


ORIGINAL = Candidate(original=True)
DEFAULT = Candidate()

Measure = Callable[[Candidate, Candidate], Iterator[float]]
"""The speed of the first relative to the second (above 1 is faster), once per round of interleaved bursts, without end."""

Refuse = Callable[[Candidate, Candidate, bool], "str | None"]
"""A sentence where the first is not to be measured against the second: its outputs differ from the original's, or both are the same. With
the flag, verified on more inputs than those that are measured."""


def sign_test(ratios: Sequence[float]) -> float:
    """The chance of at least as many rounds above 1 if either side were as likely to win one (one-sided, exact; a tie is a loss)."""
    rounds = len(ratios)
    wins = sum(ratio > 1 for ratio in ratios)
    return sum(math.comb(rounds, k) for k in range(wins, rounds + 1)) * 0.5**rounds


def is_faster(ratios: Sequence[float]) -> bool:
    """Whether a contender won its trial: by the median of the rounds and by the sign test. The rival wins ties."""
    return bool(ratios) and statistics.median(ratios) >= MARGIN and sign_test(ratios) <= SIGNIFICANCE


def is_lost(ratios: Sequence[float], rounds: int) -> bool:
    """Whether a trial of so many rounds is lost even if the contender wins all that are left."""
    return sign_test([*ratios, *[math.inf] * (rounds - len(ratios))]) > SIGNIFICANCE


_FOREIGN = "'{}' is not a record of tuning: its first line does not say what was tuned."


class Journal:
    """Trials on disk, a JSON object a line after a line that says what was tuned and where.

    Args:
        path: the file. It is begun where it does not exist; else its first line must be `subject`.
        subject: what makes measurements comparable: the model, input shapes, machine, versions, threads.

    Raises:
        OptionError: the file is not a journal, or one of another subject or version.
    """

    def __init__(self, path: Path, subject: Mapping[str, str]) -> None:
        self.path = path
        self.trials: dict[str, list[float] | str] = {}
        header = {"version": VERSION, "subject": dict(subject)}
        whole, newline, cut = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
        if not newline and not _is_beginning(cut):
            raise OptionError(_FOREIGN.format(path))
        if cut:  # an interruption came in the middle of the last line
            os.truncate(path, len(whole) + len(newline))
        if newline:
            self._read(whole.split(b"\n"), header)
        else:
            self._append(header)

    def get(self, key: str) -> list[float] | str | None:
        """The ratios of a trial, the sentence that refused it, or None where it was not made."""
        return self.trials.get(key)

    def put(self, key: str, outcome: list[float] | str) -> None:
        self.trials[key] = outcome
        self._append({"trial": key, "outcome": outcome})

    def _append(self, entry: Mapping[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, lines: list[bytes], header: Mapping[str, Any]) -> None:
        first = self._entry(lines[0], 1)
        if not isinstance(first.get("subject"), dict):
            raise OptionError(_FOREIGN.format(self.path))
        found = {"version": first.get("version"), **first["subject"]}
        for name, expected in {"version": header["version"], **header["subject"]}.items():
            if found.get(name) != expected:
                raise OptionError(
                    f"'{self.path}' is the record of another tuning, whose {name} is {found.get(name)} and not {expected}: "
                    "delete it to begin anew."
                )
        for number, line in enumerate(lines[1:], 2):
            entry = self._entry(line, number)
            key, outcome = entry.get("trial"), _outcome(entry.get("outcome"))
            if not isinstance(key, str) or outcome is None:
                raise OptionError(f"Line {number} of '{self.path}' is not a trial.")
            self.trials[key] = outcome

    def _entry(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise OptionError(f"Line {number} of '{self.path}' is not JSON: {error}.") from error
        if not isinstance(entry, dict):
            raise OptionError(f"Line {number} of '{self.path}' is not a JSON object.")
        return entry


def _is_beginning(cut: bytes) -> bool:
    """Whether a first line that was cut may be one of ours."""
    start = b'{"subject": '
    return cut.startswith(start) or start.startswith(cut)


def _outcome(found: object) -> list[float] | str | None:
    """The outcome of a trial as it is read; None for anything else."""
    if isinstance(found, list) and all(isinstance(one, (int, float)) for one in found):
        return found
    return found if isinstance(found, str) else None


@dataclasses.dataclass(slots=True)
class Search:
    """One descent.

    `clock` and `seconds` bound it: a trial that chooses begins only if as long a one, and what confirms, fit after it. What confirms is
    always measured, so a budget for less than that is exceeded.
    """

    measure: Measure
    refuse: Refuse
    journal: Journal
    clock: Callable[[], float]
    seconds: float
    tell: Callable[[str], None] = lambda _: None
    _end: float = 0.0
    _starts: list[float] = dataclasses.field(default_factory=list)
    _rounds: list[float] = dataclasses.field(default_factory=list)

    def run(self, changes: Sequence[Change]) -> Candidate:
        """The fastest candidate found: `ORIGINAL` unless another beats it, and `DEFAULT` unless another beats it too, both in rounds that
        did not choose it.

        Args:
            changes: what may be done in another way than the default does it, the most promising first.
        """
        self._end = self.clock() + self.seconds
        best = self._descend(changes)
        for chosen in dict.fromkeys((best, DEFAULT)):
            pays = chosen == DEFAULT or self._is_confirmed(chosen, DEFAULT)
            if pays and self._is_confirmed(chosen, ORIGINAL):
                return chosen
        return ORIGINAL

    def ratios(self, candidate: Candidate, rival: Candidate) -> list[float]:
        """The rounds that confirmed a candidate; none where there were none."""
        outcome = self.journal.get(_key("confirm", candidate, rival))
        return outcome if isinstance(outcome, list) else []

    def _descend(self, changes: Sequence[Change]) -> Candidate:
        best, improved = DEFAULT, True
        while improved:
            improved = False
            for change in changes:
                trial = best.with_change(change)
                if trial == best:
                    continue
                key = _key("choose", trial, best)
                if self.journal.get(key) is None and not self._has_time():
                    return best
                if self._wins(key, trial, best, ROUNDS_TO_CHOOSE):
                    best, improved = trial, True
        return best

    def _has_time(self) -> bool:
        """Whether a trial that chooses and the two that confirm fit into what is left, if nothing disturbs them."""
        if not self._rounds:
            return self.clock() < self._end
        rounds = ROUNDS_TO_CHOOSE + 2 * ROUNDS_TO_CONFIRM
        needed = 3 * statistics.median(self._starts) + rounds * statistics.median(self._rounds)
        return self.clock() + needed <= self._end

    def _is_confirmed(self, candidate: Candidate, rival: Candidate) -> bool:
        return self._wins(_key("confirm", candidate, rival), candidate, rival, ROUNDS_TO_CONFIRM)

    def _wins(self, key: str, candidate: Candidate, rival: Candidate, rounds: int) -> bool:
        outcome = self.journal.get(key)
        if outcome is None:
            self.tell(key)
            outcome = self._trial(candidate, rival, rounds)
            self.journal.put(key, outcome)
        return not isinstance(outcome, str) and is_faster(outcome)

    def _trial(self, candidate: Candidate, rival: Candidate, rounds: int) -> list[float] | str:
        start = self.clock()
        refused = self.refuse(candidate, rival, rounds == ROUNDS_TO_CONFIRM)
        if refused is not None:
            return refused
        ratios: list[float] = []
        for ratio in itertools.islice(self.measure(candidate, rival), rounds):
            now = self.clock()
            # Before the first round is measured, models and sessions are made.
            (self._rounds if ratios else self._starts).append(now - start)
            start = now
            ratios.append(ratio)
            if is_lost(ratios, rounds):
                break
        return ratios


def _key(purpose: str, candidate: Candidate, rival: Candidate) -> str:
    return f"{purpose}: {candidate.label()} | {rival.label()}"
