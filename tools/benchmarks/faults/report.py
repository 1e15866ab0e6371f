"""The long versions of the fault tests, with figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter

from benchmarks.faults import kills, republishing
from benchmarks.faults.known import KNOWN
from benchmarks.faults.options import FaultOptions
from benchmarks.faults.power import PowerCuts
from benchmarks.faults.requests import REMOTE, RequestSweep, quick_service
from benchmarks.faults.scenarios import SCENARIOS, Laboratory, Scenario
from benchmarks.faults.simulation import simulate
from benchmarks.faults.sweep import Sweep, SweepResult, choose
from benchmarks.fuzz import media, readers

NUM_READERS = 3  # of shards that are published again
MAX_LISTED = 20  # defects that are printed of each part


def run_benchmark(options: FaultOptions) -> Iterator[tuple[str, int]]:
    """Yield lines to print, each with the number of defects that it stands for."""
    with Laboratory(options.scratch) as laboratory:
        chosen = [SCENARIOS[name] for name in options.scenario or SCENARIOS]
        if options.points:
            sweep = Sweep(laboratory, KNOWN)

            def fail(scenario: Scenario) -> SweepResult:
                return sweep.run(choose(sweep.points(scenario), options.points, options.seed))

            yield from _each("failing file calls", chosen, fail)
        if options.states:
            cuts = PowerCuts(laboratory, KNOWN)
            yield from _each("power cuts", chosen, lambda one: cuts.run(one, options.states, options.seed))
        if options.requests:
            remote = [scenario for scenario in chosen if scenario.name in REMOTE]
            with quick_service() as proxy:
                requests = RequestSweep(laboratory, proxy)
                yield from _each(
                    "failing requests", remote, lambda one: requests.run(one, options.requests, options.seed)
                )
        if options.schedules:
            yield from _simulate(laboratory, options.schedules, options.seed)
        if options.kills:
            yield from kills.run_benchmark(laboratory, options.kills, options.seed)
    if options.republish_seconds:
        yield from republishing.run_benchmark(options.scratch, options.republish_seconds, NUM_READERS, options.seed)
    for count, run in ((options.clips, media.run_benchmark), (options.files, readers.run_benchmark)):
        if count:
            yield from run(options.scratch, count, options.seed, options.workers)


def _each(
    what: str, scenarios: Iterable[Scenario], run: Callable[[Scenario], SweepResult]
) -> Iterator[tuple[str, int]]:
    """Run one part for each scenario, with a line for each and for all together."""
    total = SweepResult()
    for scenario in scenarios:
        found = run(scenario)
        yield f"  {scenario.name:<14} {_counts(found)}", 0
        _add(total, found)
    yield from _summary(what, total)


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
