"""Fails the requests that a scenario makes to object storage, and checks what is left.

The k-th request is refused, answered by 503, or carried out without an answer: once, or from then on, as when the
service goes away. What has to hold after that is the same as on a disk (see ``sweep``).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter

import fsspec

from benchmarks.faults.s3_service import Bucket, Proxy, make_bucket, s3_service
from benchmarks.faults.scenarios import SCENARIOS, Ending, Laboratory, Scenario, Tree, digest, run_command
from benchmarks.faults.sweep import Defect, Point, SweepResult, add_ending, differences

#: What may become of a request, and whether of one or of all from then on.
FAILURES = tuple(
    f"{failure}{lasting}" for failure in ("refused", "busy", "unanswered") for lasting in ("", " for good")
)
#: The scenarios that work on object storage.
REMOTE = (
    *("fresh", "resumed", "extend", "retry-rejects", "repair", "verify", "verify-repair"),
    *("select", "filter", "files", "add-figures", "add"),
)


@contextmanager
def quick_service() -> Iterator[Proxy]:
    """An S3 service whose client does not wait before it tries again."""
    import s3fs

    with s3_service() as proxy:
        before, s3fs.core.S3FileSystem.retries = s3fs.core.S3FileSystem.retries, 1
        yield proxy
        s3fs.core.S3FileSystem.retries = before


class RequestSweep:
    """Runs scenarios with failing requests.

    Args:
        laboratory: where the commands run; already entered.
        proxy: of the service.
    """

    def __init__(self, laboratory: Laboratory, proxy: Proxy):
        self._laboratory = laboratory
        self._proxy = proxy
        self._wanted: dict[str, tuple[Tree, list[str]]] = {}

    def run(self, scenario: Scenario, count: int, seed: int, failures: Iterable[str] = FAILURES) -> SweepResult:
        """Try up to ``count`` requests of a scenario with each failure, and collect what is wrong."""
        result, begun = SweepResult(), perf_counter()
        _, requests = self._undisturbed(scenario)
        for failure in failures:
            numbers = random.Random(f"{seed} {failure}").sample(range(len(requests)), min(count, len(requests)))
            for number in numbers:
                point = Point(scenario.name, number, requests[number], failure)
                ending, problems = self.try_point(point)
                result.num_points += 1
                add_ending(result, scenario, ending)
                for problem in problems:
                    result.add(Defect(point, problem), ())
        result.seconds = perf_counter() - begun
        return result

    def try_point(self, point: Point) -> tuple[Ending, list[str]]:
        """Run a scenario with one failure and again without; return how the first ended and what was wrong."""
        scenario, proxy = SCENARIOS[point.scenario], self._proxy
        wanted, _ = self._undisturbed(scenario)
        bucket = self._bucket(scenario)
        failure, lasts, _ = point.fault.partition(" for good")
        proxy.failure, proxy.fail_from = failure, point.number
        proxy.fail_to = None if lasts else point.number + 1
        ending = self._run(scenario, bucket)
        proxy.fail_from = None
        return ending, list(self._problems(scenario, bucket, ending, wanted))

    def _problems(self, scenario: Scenario, bucket: Bucket, ending: Ending, wanted: Tree) -> Iterator[str]:
        if not scenario.has_worked(ending):
            if complaint := ending.complaint(bucket.url):
                yield complaint
            local = self._laboratory.tree()
            left = self._tree(bucket)
            self._laboratory.restore(left)
            yield from self._laboratory.half_published(scenario, left)
            self._laboratory.restore(local)
            again = self._run(scenario, bucket)
            if not scenario.has_worked(again):
                yield f"the same command does not resume: {again.crash or again.errors.strip()[-200:]}"
                return
        yield from differences(digest(self._tree(bucket)), digest(wanted), "in the end")

    def _undisturbed(self, scenario: Scenario) -> tuple[Tree, list[str]]:
        """Return what a scenario leaves when nothing disturbs it, and its requests."""
        if scenario.name not in self._wanted:
            bucket = self._bucket(scenario)
            ending = self._run(scenario, bucket)
            if not scenario.has_worked(ending):
                raise AssertionError(f"undisturbed, {scenario.name} ends with {ending}")
            requests = [
                request.split("?")[0].replace(bucket.url.removeprefix("s3:/"), "") for request in self._requests
            ]
            self._wanted[scenario.name] = self._tree(bucket), requests
        return self._wanted[scenario.name]

    def _bucket(self, scenario: Scenario) -> Bucket:
        """Make a bucket that holds what a scenario begins with, and empty the local folder."""
        bucket, files = make_bucket(self._proxy), fsspec.filesystem("s3", use_listings_cache=False)
        for path, data in self._laboratory.start(scenario).items():
            if not path.endswith("/") and "/tmp/" not in path:
                files.pipe_file(f"{bucket.url}/{path}", data)
        self._laboratory.restore({})
        return bucket

    def _tree(self, bucket: Bucket) -> Tree:
        """Return what is in a bucket and in the local folder."""
        return objects(bucket) | self._laboratory.tree()

    def _run(self, scenario: Scenario, bucket: Bucket) -> Ending:
        self._laboratory.is_second = scenario.is_second
        places = self._laboratory.places(bucket.url)
        self._proxy.requests.clear()
        ending = run_command([word.format(**places) for word in scenario.command.split()])
        self._requests = list(self._proxy.requests)
        return ending


def objects(bucket: Bucket) -> Tree:
    """Return all objects of a bucket."""
    files = fsspec.filesystem("s3", use_listings_cache=False)
    root = bucket.url.removeprefix("s3://")
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}
