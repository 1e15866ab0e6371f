"""Fails each file call of a scenario once, or kills the process there, and checks what is left.

After each fault: an error is one line; every file is what it was or what it is to be, and no ledger describes another
tar than the one that is there; the same command then ends the work, with the bytes of a run that nothing disturbed and
without anything left over.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

from benchmarks.faults.calls import Call, FileCalls, Killed, plain_name, watched
from benchmarks.faults.scenarios import SCENARIOS, Ending, Laboratory, Scenario, Tree, digest
from lrs3_loader.run.ledger_index import INDEX_FILE
from lrs3_loader.run.lock import FILE_NAME as LOCK_NAME

KILL = "kill"
_FULL = ("ENOSPC", "EDQUOT")
_GONE = ("EIO", "ESTALE")
#: What each kind of call may fail with. A process may be killed at any of them.
FAULTS: dict[str, tuple[str, ...]] = {
    "open": (*_GONE, "EACCES"),
    "create": (*_GONE, *_FULL, "EACCES"),
    "read": _GONE,
    "write": (*_GONE, *_FULL),
    "truncate": (*_GONE, *_FULL),
    "fsync": (*_GONE, *_FULL),
    "close": (*_GONE, *_FULL),
    "rename": (*_GONE, *_FULL, "EACCES"),
    "unlink": (*_GONE, "EACCES"),
    "mkdir": (*_GONE, *_FULL, "EACCES"),
    "rmdir": (*_GONE, "EACCES"),
    "chmod": (*_GONE, "EACCES"),
    "flock": (*_GONE, "ENOLCK"),
    "list": (*_GONE, "EACCES"),
    "stat": (*_GONE, "EACCES"),
}
_HARMLESS_KILLS = ("open", "read", "close", "stat", "list", "flock", "fsync")  # the state is that of the call before


@dataclass(frozen=True)
class Point:
    """One fault: what happens instead of one file call of a scenario."""

    scenario: str
    number: int  # of the file call, from 0
    call: str  # its name, see ``Call.name``
    fault: str  # the name of an error, or ``kill``

    def __str__(self) -> str:
        return f"{self.scenario} #{self.number}: {self.fault} at {self.call}"


@dataclass(frozen=True)
class Defect:
    """A fault after which something was not as it should be."""

    point: Point
    problem: str

    def __str__(self) -> str:
        return f"{self.point}: {self.problem}"


@dataclass(frozen=True)
class Known:
    """A defect that is known, by patterns (``*``) of its scenario, fault, call and problem."""

    scenario: str
    fault: str
    call: str
    problem: str
    why: str

    def covers(self, defect: Defect) -> bool:
        parts = (
            (defect.point.scenario, self.scenario),
            (defect.point.fault, self.fault),
            (defect.point.call, self.call),
            (defect.problem, self.problem),
        )
        return all(fnmatch.fnmatchcase(text, pattern) for text, pattern in parts)


@dataclass
class SweepResult:
    """What a sweep did and found."""

    num_points: int = 0
    seconds: float = 0.0
    endings: Counter[str] = field(default_factory=Counter)  # killed, refused, unharmed
    defects: list[Defect] = field(default_factory=list)
    known: list[tuple[Defect, Known]] = field(default_factory=list)

    def add(self, defect: Defect, known: Iterable[Known]) -> None:
        """Count a defect, apart if it is known."""
        mark = next((one for one in known if one.covers(defect)), None)
        if mark is None:
            self.defects.append(defect)
        else:
            self.known.append((defect, mark))


class Sweep:
    """Runs scenarios with one fault each.

    Args:
        laboratory: where the commands run; already entered.
        known: defects that are counted apart.
    """

    def __init__(self, laboratory: Laboratory, known: Iterable[Known] = ()):
        self._laboratory = laboratory
        self._known = tuple(known)

    def points(self, scenario: Scenario) -> list[Point]:
        """List all points of a scenario: every fault of every file call of the undisturbed command."""
        laboratory = self._laboratory
        calls: list[Call] = []
        laboratory.restore(laboratory.start(scenario))
        with watched(FileCalls(laboratory.world, before=calls.append)):
            ending = laboratory.run(scenario)
        assert scenario.has_worked(ending), f"undisturbed, {scenario.name} ends with {ending}"
        found = []
        for number, call in enumerate(calls):
            faults = () if call.is_read_only else FAULTS[call.kind]
            faults += () if call.kind in _HARMLESS_KILLS else (KILL,)
            found += [Point(scenario.name, number, call.name, fault) for fault in faults]
        return found

    def run(self, points: Iterable[Point]) -> SweepResult:
        """Try points and collect what is wrong after each."""
        result = SweepResult()
        begun = perf_counter()
        for point in points:
            ending, problems = self.try_point(point)
            result.num_points += 1
            add_ending(result, SCENARIOS[point.scenario], ending)
            for problem in problems:
                result.add(Defect(point, problem), self._known)
        result.seconds = perf_counter() - begun
        return result

    def try_point(self, point: Point) -> tuple[Ending, list[str]]:
        """Run a scenario with one fault and again without; return how the first ended and what was wrong."""
        laboratory, scenario = self._laboratory, SCENARIOS[point.scenario]
        before, wanted = laboratory.start(scenario), laboratory.result(scenario)
        laboratory.restore(before)
        number = -1

        def fail(call: Call) -> None:
            nonlocal number
            number += 1
            if number == point.number:
                if point.fault == KILL:
                    raise Killed
                code = getattr(errno, point.fault)
                raise OSError(code, os.strerror(code))

        with watched(FileCalls(laboratory.world, before=fail)):
            ending = laboratory.run(scenario)
        return ending, list(self._problems(scenario, ending, before, wanted))

    def _problems(self, scenario: Scenario, ending: Ending, before: Tree, wanted: Tree) -> Iterator[str]:
        laboratory = self._laboratory
        left = laboratory.tree()
        goal = digest(wanted)
        if scenario.has_worked(ending):
            yield from differences(_without_locks(digest(left)), goal, "after it was said to have worked")
            return
        if not ending.is_killed and (complaint := ending.complaint(str(laboratory.world))):
            yield complaint
        yield from laboratory.half_published(scenario, left)
        yield from _torn(digest(left), digest(before), goal)
        if not ending.is_killed:
            yield from _left_over(left, before, wanted)
        again = laboratory.run(scenario, again=True)
        if not scenario.has_worked(again):
            yield f"the same command does not resume: {again.crash or again.errors.strip()[-200:]}"
            return
        yield from differences(digest(laboratory.tree()), goal, "after resuming")


def add_ending(result: SweepResult, scenario: Scenario, ending: Ending) -> None:
    """Count how a disturbed command ended."""
    word = "killed" if ending.is_killed else "unharmed" if scenario.has_worked(ending) else "refused"
    result.endings[word] += 1


def differences(found: dict[str, str], wanted: dict[str, str], when: str) -> Iterator[str]:
    """Name every file in which two digests of a folder differ."""
    for path in sorted(found.keys() | wanted.keys()):
        if path not in found:
            yield f"{path} is missing {when}"
        elif path not in wanted:
            yield f"{plain_name(path)} is left over {when}"
        elif found[path] != wanted[path]:
            yield f"{path} has other contents {when}"


def is_hidden(path: str) -> bool:
    """Tell whether a path is a temporary file, a lock or a cache, which may hold anything at any time."""
    parts = path.split("/")
    return any(part.startswith(".") for part in parts) or parts[-1] in (LOCK_NAME, INDEX_FILE)


def _without_locks(tree: dict[str, str]) -> dict[str, str]:
    """Leave out run locks: one that could not be removed is nobody's, and the next launch takes it at once."""
    return {path: contents for path, contents in tree.items() if path.rpartition("/")[2] != LOCK_NAME}


def _torn(found: dict[str, str], before: dict[str, str], wanted: dict[str, str]) -> Iterator[str]:
    for path, contents in found.items():
        if not is_hidden(path) and contents not in (before.get(path), wanted.get(path)):
            yield f"{path} is neither what it was nor what it is to be"


def _left_over(left: Tree, before: Tree, wanted: Tree) -> Iterator[str]:
    for path in left:
        if path not in before and path not in wanted and path.rpartition("/")[2] != LOCK_NAME:
            yield f"{plain_name(path)} is left over after an error"


def choose(points: list[Point], count: int, seed: int) -> list[Point]:
    """Choose some of the points, the same for the same seed, so that each kind of call has its share."""
    draw = random.Random(seed)
    kinds: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        kinds.setdefault((point.call, KILL if point.fault == KILL else "error"), []).append(point)
    groups = list(kinds.values())
    draw.shuffle(groups)
    for group in groups:
        draw.shuffle(group)
    chosen: list[Point] = []
    while groups and len(chosen) < count:
        chosen += [group.pop() for group in groups[: count - len(chosen)]]
        groups = [group for group in groups if group]
    return chosen
