"""Cuts the power after each file call of a scenario, in a model of a disk that keeps only what was synced.

The model is that of ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014), which assumes no more
than POSIX promises. Bytes written to a file survive if the file was synced afterwards; otherwise each write may be
lost, cut off, or there as zeros. A name made, replaced or removed survives if its folder was synced afterwards;
otherwise each such change may be lost or kept, whatever became of those before it, and the two halves of a rename may
come apart.

A command is recorded once. For each moment the states that its disk may be in are written to a real folder, where the
same command then has to end the work with the bytes of a run that nothing disturbed, and whatever was announced before
the cut has to be there: shards that ``RunFolder.publish`` has returned from, and all files when the command has ended.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any
from unittest import mock

from benchmarks.faults.calls import Call, FileCalls, plain_name, watched
from benchmarks.faults.scenarios import SCENARIOS, Laboratory, Scenario, Tree, digest
from benchmarks.faults.sweep import Defect, Known, Point, SweepResult, differences
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import ledger_name, tar_name

FOLDER = -1  # the id of every folder
CUT = "power cut"
_DAMAGES = ("lost", "half", "zeros", "last")  # what may become of writes that were not synced


@dataclass(frozen=True)
class NameChange:
    """A change of one name in a folder."""

    folder: str
    path: str
    file: int | None  # id of the file or ``FOLDER``; None: the name was removed


@dataclass(frozen=True)
class DataChange:
    """A write to a file, or a change of its length (``data`` None)."""

    file: int
    offset: int
    data: bytes | None


@dataclass(frozen=True)
class Sync:
    """A file (by id) or folder (by path) was synced."""

    what: int | str


@dataclass(frozen=True)
class Announced:
    """These files are there now, as the user was told."""

    paths: tuple[str, ...]


Event = NameChange | DataChange | Sync | Announced


class Recorder:
    """Turns the file calls of a command into events; pass its ``call`` as ``FileCalls.after``."""

    def __init__(self, before: Tree):
        self.events: list[Event] = []
        self.moments: list[tuple[int, str]] = []  # (number of events, name of the last call)
        self._files: dict[str, int] = {}
        self._ids: dict[int, int] = {}  # by id() of a handle
        self._handles: list[Any] = []  # keeps those ids in use
        self.contents: dict[int, bytes] = {}  # of the files that were there before
        for path, data in before.items():
            if path.endswith("/"):
                self._files[path.rstrip("/")] = FOLDER
            else:
                self._files[path] = len(self.contents)
                self.contents[self._files[path]] = data
        self.names = dict(self._files)  # before the first event
        self._num_files = len(self.contents)

    def call(self, call: Call) -> None:
        getattr(self, f"_{call.kind}", self._nothing)(call)
        if call.kind not in ("open", "read", "list", "stat", "close", "flock", "chmod"):
            self.moments.append((len(self.events), call.name))

    def announce(self, paths: Iterable[str], what: str) -> None:
        self.events.append(Announced(tuple(paths)))
        self.moments.append((len(self.events), what))

    def _nothing(self, call: Call) -> None:
        pass

    def _name(self, path: str, file: int | None) -> None:
        if file is None:
            self._files.pop(path, None)
        else:
            self._files[path] = file
        self.events.append(NameChange(os.path.dirname(path) or ".", path, file))

    def _know(self, call: Call) -> None:
        self._handles.append(call.handle)
        self._ids[id(call.handle)] = self._files.get(call.path, FOLDER)

    def _create(self, call: Call) -> None:
        self._num_files += 1
        self._name(call.path, self._num_files)
        self._know(call)

    def _open(self, call: Call) -> None:
        self._know(call)
        if call.truncates:
            self.events.append(DataChange(self._ids[id(call.handle)], 0, None))

    def _write(self, call: Call) -> None:
        self.events.append(DataChange(self._ids[id(call.handle)], call.offset, call.data))

    def _truncate(self, call: Call) -> None:
        self.events.append(DataChange(self._ids[id(call.handle)], call.offset, None))

    def _fsync(self, call: Call) -> None:
        file = self._ids[id(call.handle)]
        self.events.append(Sync(call.path if file == FOLDER else file))

    def _rename(self, call: Call) -> None:
        file = self._files[call.path]
        assert file != FOLDER, "folders are not renamed here"
        self._name(call.target, file)
        self._name(call.path, None)

    def _unlink(self, call: Call) -> None:
        self._name(call.path, None)

    def _mkdir(self, call: Call) -> None:
        self._name(call.path, FOLDER)

    def _rmdir(self, call: Call) -> None:
        self._name(call.path, None)


@dataclass
class Disk:
    """What a disk may hold at one moment: what is certain, and the changes that are not."""

    names: dict[str, int]
    contents: dict[int, bytes]
    pending_names: list[NameChange] = field(default_factory=list)
    pending_data: dict[int, list[DataChange]] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        """Let one more event happen."""
        if isinstance(event, NameChange):
            self.pending_names.append(event)
        elif isinstance(event, DataChange):
            self.pending_data.setdefault(event.file, []).append(event)
        elif not isinstance(event, Sync):
            return
        elif isinstance(event.what, str):
            synced = [change for change in self.pending_names if change.folder == event.what]
            self.pending_names = [change for change in self.pending_names if change.folder != event.what]
            self.names = _renamed(self.names, synced)
        else:
            changes = self.pending_data.pop(event.what, [])
            self.contents[event.what] = _written(self.contents.get(event.what, b""), changes)

    def states(self, draw: random.Random, num_random: int) -> Iterator[Tree]:
        """Yield states that the disk may be in after a power cut: the extreme ones, and some drawn at random."""
        count, files = len(self.pending_names), list(self.pending_data)
        everything, nothing = [True] * count, [False] * count
        yield self._state(everything, {})
        yield self._state(nothing, {})
        yield self._state(nothing, dict.fromkeys(files, "lost"))
        for index in range(count):
            for kept in (everything, nothing):
                yield self._state([flag != (number == index) for number, flag in enumerate(kept)], {})
        for file in files:
            for damage in _DAMAGES:
                yield self._state(everything, {file: damage})
        if count + len(files) < 2:
            return
        for _ in range(num_random):
            kept = [draw.random() < 0.5 for _ in range(count)]
            yield self._state(kept, {file: draw.choice((*_DAMAGES, "")) for file in files})

    def _state(self, kept: list[bool], damages: dict[int, str]) -> Tree:
        changes = [change for change, is_kept in zip(self.pending_names, kept, strict=True) if is_kept]
        names = _renamed(self.names, changes)
        tree: Tree = {}
        for path, file in names.items():
            if all(names.get(parent) == FOLDER for parent in _parents(path)):
                if file == FOLDER:
                    tree[f"{path}/"] = b""
                else:
                    tree[path] = self._content(file, damages.get(file, ""))
        return tree

    def _content(self, file: int, damage: str) -> bytes:
        certain, changes = self.contents.get(file, b""), self.pending_data.get(file, [])
        if damage == "lost":
            return certain
        if damage == "last":
            return _written(certain, changes[-1:])
        if damage == "half" and changes and (data := changes[-1].data):
            return _written(certain, [*changes[:-1], replace(changes[-1], data=data[: len(data) // 2])])
        if damage == "zeros":
            return _written(certain, [replace(c, data=c.data and bytes(len(c.data))) for c in changes])
        return _written(certain, changes)


def _renamed(names: dict[str, int], changes: Iterable[NameChange]) -> dict[str, int]:
    names = dict(names)
    for change in changes:
        if change.file is None:
            names.pop(change.path, None)
        else:
            names[change.path] = change.file
    return names


def _written(content: bytes, changes: Iterable[DataChange]) -> bytes:
    data = bytearray(content)
    for change in changes:
        end = change.offset + len(change.data or b"")
        data.extend(bytes(max(0, end - len(data))))
        if change.data is None:
            del data[change.offset :]
        else:
            data[change.offset : end] = change.data
    return bytes(data)


def _parents(path: str) -> Iterator[str]:
    while path := os.path.dirname(path):
        yield path


class PowerCuts:
    """Cuts the power at every moment of a scenario.

    Args:
        laboratory: where the commands run; already entered.
        known: defects that are counted apart.
        num_random: states drawn at random for each moment, beside the extreme ones.
    """

    def __init__(self, laboratory: Laboratory, known: Iterable[Known] = (), num_random: int = 4):
        self._laboratory = laboratory
        self._known = tuple(known)
        self._num_random = num_random

    def record(self, scenario: Scenario) -> Recorder:
        """Run the command of a scenario once and record what it does to the disk."""
        laboratory = self._laboratory
        before = laboratory.start(scenario)
        laboratory.restore(before)
        recorder = Recorder(before)
        publish = RunFolder.publish

        def announce(folder: RunFolder, shard: Any, *args: Any) -> Any:
            ledger = publish(folder, shard, *args)
            run = os.path.relpath(str(folder.path), laboratory.world)
            names = (f"{run}/{tar_name(shard.name, ledger.generation)}", f"{run}/{ledger_name(shard.name)}")
            recorder.announce(names, f"publishing of {shard.name}")
            return ledger

        calls = FileCalls(laboratory.world, after=recorder.call)
        with mock.patch.object(RunFolder, "publish", announce), watched(calls):
            laboratory.run(scenario)
        whole = laboratory.result(scenario)
        recorder.announce((path for path in whole if not path.endswith("/")), "the end of the command")
        return recorder

    def run(self, scenario: Scenario, count: int, seed: int) -> SweepResult:
        """Try up to ``count`` states of a scenario's disk, spread over all moments, and collect what is wrong."""
        result, begun = SweepResult(), perf_counter()
        for point, state, announced in self._chosen(scenario, count, seed):
            result.num_points += 1
            result.endings["cut"] += 1
            for problem in self._problems(scenario, state, announced):
                result.add(Defect(point, problem), self._known)
        result.seconds = perf_counter() - begun
        return result

    def states(self, scenario: Scenario, seed: int) -> Iterator[tuple[Point, Tree, frozenset[str]]]:
        """Yield every distinct state of the disk, with the moment of the cut and the files announced before it."""
        recorder = self.record(scenario)
        before, wanted = digest(self._laboratory.start(scenario)), digest(self._laboratory.result(scenario))
        disk = Disk(dict(recorder.names), dict(recorder.contents))
        announced = {path for path in before if not path.endswith("/") and before[path] == wanted.get(path)}
        if scenario.repairs:
            announced = {path for path in announced if "/ledger/" not in path}
        draw, seen = random.Random(seed), set()
        done = 0
        for number, (end, name) in enumerate(recorder.moments):
            for event in recorder.events[done:end]:
                disk.apply(event)
                if isinstance(event, Announced):
                    announced.update(event.paths)
            done = end
            for state in disk.states(draw, self._num_random):
                key = _key(state, announced)
                if key not in seen:
                    seen.add(key)
                    yield Point(scenario.name, number, name, CUT), state, frozenset(announced)

    def _chosen(self, scenario: Scenario, count: int, seed: int) -> list[tuple[Point, Tree, frozenset[str]]]:
        found = list(self.states(scenario, seed))
        if len(found) <= count:
            return found
        return random.Random(seed).sample(found, count)

    def _problems(self, scenario: Scenario, state: Tree, announced: frozenset[str]) -> Iterator[str]:
        laboratory = self._laboratory
        wanted = digest(laboratory.result(scenario))
        found = digest(state)
        for path in sorted(announced):
            if found.get(path) != wanted.get(path):
                yield f"{path} was announced and is {'damaged' if path in found else 'missing'}"
        laboratory.restore(state)
        yield from laboratory.half_published(scenario, state)
        again = laboratory.run(scenario, again=True)
        if not scenario.has_worked(again):
            yield f"the same command does not resume: {again.crash or again.errors.strip()[-200:]}"
            return
        yield from differences(digest(laboratory.tree()), wanted, "after resuming")


def try_cut(laboratory: Laboratory, scenario: str, number: int, seed: int) -> list[str]:
    """Try all states of one moment of a scenario again; return what was wrong."""
    cuts = PowerCuts(laboratory)
    one = SCENARIOS[scenario]
    states = [found for found in cuts.states(one, seed) if found[0].number == number]
    return [problem for _, state, announced in states for problem in cuts._problems(one, state, announced)]


def _key(state: Tree, announced: set[str]) -> str:
    found = hashlib.sha256()
    for path in sorted(state, key=plain_name):
        found.update(plain_name(path).encode() + b"\0" + hashlib.sha256(state[path]).digest())
    for path in sorted(announced):
        found.update(path.encode() + b"\1")
    return found.hexdigest()
