"""The search with a made-up machine and clock: nothing is timed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onnxopt.errors import OptionError
from onnxopt.tuning.search import (
    DEFAULT,
    ORIGINAL,
    ROUNDS_TO_CHOOSE,
    ROUNDS_TO_CONFIRM,
    Candidate,
    Change,
    Journal,
    Search,
    is_faster,
    is_lost,
    sign_test,
)

SUBJECT = {"model": "abc", "machine": "m", "library": "1"}
ROUND_SECONDS = 1.0


def change(name: str, value: object = None) -> Change:
    return Change("without", name, value, f"without {name}" + (f" {value}" if value is not None else ""))


def changes(names: str) -> list[Change]:
    return [change(name) for name in names]


def candidate(names: str) -> Candidate:
    return Candidate(changes=frozenset(changes(names)))


class Machine:
    """`cost` gives a candidate's time; each round takes a second of the clock. Rounds of `noise` are disturbed: the contender loses them."""

    def __init__(
        self,
        cost: Callable[[Candidate], float],
        wrong: str = "",
        stop_after: int | None = None,
        noise: tuple[int, ...] = (),
    ) -> None:
        self.cost, self.wrong, self.stop_after, self.noise = cost, set(wrong), stop_after, noise
        self.now, self.made, self.thorough = 0.0, [], []

    def clock(self) -> float:
        return self.now

    def refuse(self, one: Candidate, rival: Candidate, thorough: bool) -> str | None:
        self.thorough.append((one, rival, thorough))
        return "The outputs differ." if {each.name for each in one.changes} & self.wrong else None

    def measure(self, one: Candidate, rival: Candidate) -> Iterator[float]:
        if self.stop_after == len(self.made):
            raise KeyboardInterrupt
        self.made.append((one, rival))
        for number in itertools.count():
            self.now += ROUND_SECONDS
            yield 0.5 if number in self.noise else self.cost(rival) / self.cost(one)


def cost(original: float = 10.0, **saved: float) -> Callable[[Candidate], float]:
    def of(one: Candidate) -> float:
        return original if one.original else 8.0 - sum(saved.get(each.name, -0.1) for each in one.changes)

    return of


def search(machine: Machine, path: Path, seconds: float = 1e9) -> Search:
    return Search(machine.measure, machine.refuse, Journal(path, SUBJECT), machine.clock, seconds)


# --- the statistic ---
def test_sign_test_is_exact() -> None:
    assert sign_test([1.1] * 9) == 1 / 512
    assert sign_test([1.1] * 8 + [0.9]) == 10 / 512
    assert sign_test([1.0] * 9) == 1.0


@pytest.mark.parametrize(
    ("ratios", "faster"),
    [
        ([1.2] * 9, True),
        ([1.2] * 8 + [0.5], True),
        ([1.0] * 9, False),
        ([1.005] * 9, False),
        ([1.2] * 7 + [0.9] * 2, False),
        ([1.2] * 4, False),
        ([], False),
    ],
)
def test_a_winner_needs_margin_and_sign(ratios: list[float], faster: bool) -> None:
    assert is_faster(ratios) is faster


@pytest.mark.parametrize(("rounds", "losses"), [(ROUNDS_TO_CHOOSE, 1), (ROUNDS_TO_CONFIRM, 3)])
def test_so_many_rounds_may_be_lost(rounds: int, losses: int) -> None:
    assert not is_lost([0.9] * losses, rounds)
    assert is_lost([0.9] * (losses + 1), rounds)
    assert is_faster([0.9] * losses + [1.2] * (rounds - losses))


# --- the descent ---
def test_takes_every_change_that_pays(tmp_path: Path) -> None:
    machine = Machine(cost(b=1.0, d=0.5))
    assert search(machine, tmp_path / "j").run(changes("abcd")) == candidate("bd")


def test_takes_one_change_of_a_kind_and_name(tmp_path: Path) -> None:
    machine = Machine(lambda one: 8.0 - sum(each.value for each in one.changes) if not one.original else 10.0)
    found = search(machine, tmp_path / "j").run([change("a", 1), change("a", 3), change("a", 2)])
    assert found == Candidate(changes=frozenset([change("a", 3)]))


def test_default_where_nothing_pays(tmp_path: Path) -> None:
    assert search(Machine(cost()), tmp_path / "j").run(changes("a")) == DEFAULT


@pytest.mark.parametrize("original", [8.0, 5.0])
def test_original_wins_ties_and_where_it_is_faster(tmp_path: Path, original: float) -> None:
    assert search(Machine(cost(original)), tmp_path / "j").run(changes("a")) == ORIGINAL


def test_wrong_candidate_never_wins(tmp_path: Path) -> None:
    assert search(Machine(cost(a=5.0), wrong="a"), tmp_path / "j").run(changes("ab")) == DEFAULT


def test_wrong_default_is_not_confirmed(tmp_path: Path) -> None:
    machine = Machine(cost())
    machine.refuse = lambda *_: "The outputs differ."  # type: ignore[method-assign]
    assert search(machine, tmp_path / "j").run(changes("a")) == ORIGINAL
    assert not machine.made


def test_what_is_returned_was_confirmed_against_default_and_original(tmp_path: Path) -> None:
    machine = Machine(cost(b=1.0))
    one = search(machine, tmp_path / "j")
    assert one.run(changes("ab")) == candidate("b")
    assert machine.made[-2:] == [(candidate("b"), DEFAULT), (candidate("b"), ORIGINAL)]
    assert [thorough for *_, thorough in machine.thorough][-2:] == [True, True]
    assert [len(one.ratios(candidate("b"), rival)) for rival in (DEFAULT, ORIGINAL)] == [ROUNDS_TO_CONFIRM] * 2


def test_luck_that_chose_does_not_confirm(tmp_path: Path) -> None:
    """A change that gains nothing wins the trial that chooses, and loses the one that confirms."""
    machine = Machine(cost(a=0.0))
    true = machine.measure

    def lucky(one: Candidate, rival: Candidate) -> Iterator[float]:
        first = not machine.made
        return (1.5 if first else ratio for ratio in true(one, rival))

    machine.measure = lucky  # type: ignore[method-assign]
    assert search(machine, tmp_path / "j").run(changes("a")) == DEFAULT
    assert (candidate("a"), DEFAULT) in machine.made[1:]


def test_disturbed_rounds_are_borne(tmp_path: Path) -> None:
    assert search(Machine(cost(a=1.0), noise=(3,)), tmp_path / "j").run(changes("ab")) == candidate("a")


def test_a_trial_stops_when_it_is_lost(tmp_path: Path) -> None:
    one = search(Machine(cost()), tmp_path / "j")
    one.run(changes("a"))
    assert one.journal.trials["choose: without a | the default"] == pytest.approx([8 / 8.1] * 2)


# --- the journal ---
def test_interruption_loses_no_trial(tmp_path: Path) -> None:
    whole = Machine(cost(b=1.0))
    expected = search(whole, tmp_path / "whole").run(changes("abcd"))
    first = Machine(cost(b=1.0), stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        search(first, tmp_path / "j").run(changes("abcd"))
    second = Machine(cost(b=1.0))
    assert search(second, tmp_path / "j").run(changes("abcd")) == expected
    assert first.made + second.made == whole.made


def test_more_time_goes_on_where_the_last_run_ended(tmp_path: Path) -> None:
    machine = Machine(cost(h=1.0))
    assert search(machine, tmp_path / "j", seconds=42).run(changes("abcdefgh")) == DEFAULT
    again = Machine(cost(h=1.0))
    assert search(again, tmp_path / "j").run(changes("abcdefgh")) == candidate("h")
    assert not set(again.made) & {pair for pair in machine.made if pair[1] == DEFAULT}


def test_line_cut_by_interruption_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    search(Machine(cost()), path).run(changes("a"))
    path.write_bytes(path.read_bytes()[:-5])
    again = Machine(cost())
    assert search(again, path).run(changes("a")) == DEFAULT
    assert len(again.made) == 1
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("left", [0, 1, 5, 20, 40])
def test_first_line_cut_by_interruption_is_begun_again(tmp_path: Path, left: int) -> None:
    Journal(tmp_path / "j", SUBJECT)
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(whole[:left])
    Journal(tmp_path / "j", SUBJECT)
    assert (tmp_path / "j").read_bytes() == whole


@pytest.mark.parametrize("name", SUBJECT)
def test_refuses_journal_of_another_subject(tmp_path: Path, name: str) -> None:
    Journal(tmp_path / "j", SUBJECT)
    with pytest.raises(OptionError, match=f"another tuning, whose {name} is {SUBJECT[name]} and not other: delete it"):
        Journal(tmp_path / "j", {**SUBJECT, name: "other"})


@pytest.mark.parametrize("text", ["nonsense\n", "[]\n", "{}\n", "\n", '{"version": 1}\n', "no line", "\xff\n"])
def test_refuses_what_is_no_journal(tmp_path: Path, text: str) -> None:
    (tmp_path / "j").write_text(text, encoding="latin-1")
    with pytest.raises(OptionError):
        Journal(tmp_path / "j", SUBJECT)
    assert (tmp_path / "j").read_text(encoding="latin-1") == text


@pytest.mark.parametrize(
    "line", ['{"trial": 3, "outcome": []}', '{"trial": "a", "outcome": ["x"]}', '{"trial": "a"}', "[]"]
)
def test_refuses_lines_that_are_no_trials(tmp_path: Path, line: str) -> None:
    Journal(tmp_path / "j", SUBJECT)
    with (tmp_path / "j").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(OptionError, match="Line 2 of"):
        Journal(tmp_path / "j", SUBJECT)


# --- the budget ---
@pytest.mark.parametrize("seconds", [0, 20, 60, 100, 1000])
def test_budget_holds_and_leaves_room_to_confirm(tmp_path: Path, seconds: float) -> None:
    machine = Machine(cost())
    assert search(machine, tmp_path / "j", seconds).run(changes("abcdefgh")) == DEFAULT
    confirmation = (ROUNDS_TO_CHOOSE + 2 * ROUNDS_TO_CONFIRM) * ROUND_SECONDS
    assert machine.now <= max(seconds, confirmation)
    assert machine.made[-1] == (DEFAULT, ORIGINAL)


def test_without_time_only_the_default_is_confirmed(tmp_path: Path) -> None:
    machine = Machine(cost(a=1.0))
    assert search(machine, tmp_path / "j", seconds=0).run(changes("a")) == DEFAULT
    assert machine.made == [(DEFAULT, ORIGINAL)]
