"""The long versions of the fault tests, with figures: file calls that fail, kills, power cuts and schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from benchmarks.faults.known import KNOWN
from benchmarks.faults.power import PowerCuts
from benchmarks.faults.scenarios import SCENARIOS, Laboratory
from benchmarks.faults.simulation import simulate
from benchmarks.faults.sweep import Sweep, SweepResult, choose

MAX_LISTED = 20  # defects that are printed of each part


def run_benchmark(
    scratch: Path | None, points: int, states: int, schedules: int, seed: int, names: tuple[str, ...] = ()
) -> Iterator[tuple[str, int]]:
    """Yield lines to print, each with the number of defects that it stands for.

    Args:
        scratch: folder to work in; memory where there is some.
        points: file calls that fail, at most, of each scenario.
        states: states of the disk after a power cut, at most, of each scenario.
        schedules: schedules of ranks, launches and readers; of a single one the log is printed.
        seed: of the first schedule, and of what is chosen of points and states.
        names: scenarios (default: all).
    """
    with Laboratory(scratch) as laboratory:
        chosen = [SCENARIOS[name] for name in names or SCENARIOS]
        if points:
            sweep, total = Sweep(laboratory, KNOWN), SweepResult()
            for scenario in chosen:
                found = sweep.run(choose(sweep.points(scenario), points, seed))
                yield f"  {scenario.name:<14} {_counts(found)}", 0
                _add(total, found)
            yield from _summary("failing file calls", total)
        if states:
            cuts, total = PowerCuts(laboratory, KNOWN), SweepResult()
            for scenario in chosen:
                found = cuts.run(scenario, states, seed)
                yield f"  {scenario.name:<14} {_counts(found)}", 0
                _add(total, found)
            yield from _summary("power cuts", total)
        if schedules:
            yield from _simulate(laboratory, schedules, seed)


def _simulate(laboratory: Laboratory, schedules: int, seed: int) -> Iterator[tuple[str, int]]:
    laboratory.tars()
    begun, events, problems, num_bad, num_known = perf_counter(), Counter[str](), [], 0, 0
    for number in range(seed, seed + schedules):
        found = simulate(laboratory, number)
        events += found.events
        num_known += bool(found.known)
        num_bad += bool(found.problems)
        problems += [f"--seed {number} --schedules 1: {problem}" for problem in found.problems]
        if schedules == 1:
            yield from ((line, 0) for line in found.log)
    seconds = perf_counter() - begun
    happened = ", ".join(f"{count:,} {name}" for name, count in sorted(events.items()))
    yield f"schedules: {schedules:,} in {seconds:.0f} s ({60 * schedules / seconds:,.0f} a minute): {happened}", 0
    yield f"  {num_bad} with problems, {num_known} with known ones", num_bad
    yield from ((f"  {problem}", 0) for problem in problems[:MAX_LISTED])


def _counts(found: SweepResult) -> str:
    endings = ", ".join(f"{count:,} {name}" for name, count in sorted(found.endings.items()))
    return f"{found.num_points:>6,}: {endings}; {len(found.defects)} defects, {len(found.known)} known"


def _summary(what: str, total: SweepResult) -> Iterator[tuple[str, int]]:
    pace = 60 * total.num_points / max(total.seconds, 1e-9)
    yield f"{what}: {_counts(total).strip()}; {total.seconds:.0f} s ({pace:,.0f} a minute)", len(total.defects)
    yield from ((f"  {defect}", 0) for defect in total.defects[:MAX_LISTED])


def _add(total: SweepResult, found: SweepResult) -> None:
    total.num_points += found.num_points
    total.seconds += found.seconds
    total.endings += found.endings
    total.defects += found.defects
    total.known += found.known
