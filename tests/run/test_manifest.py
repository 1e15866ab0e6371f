from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lrs3_loader.errors import RunError
from lrs3_loader.run.manifest import manifest_lines, open_manifest, plan_sha256
from lrs3_loader.types import Clip, Shard
from support.factory import make_shard

pytestmark = pytest.mark.smoke

PLAN = (
    Shard(
        "a-000000",
        (
            Clip("a/b/c", "x/y.mp4", 0, "s.m4a", "t.txt", "naïve\n“text”", 0.1, 2.0),
            Clip("a/b/d", "z.mp4", 2**40),
        ),
    ),
    Shard("b-000000", (Clip("b/b/d", "name\udcff.mp4", 1),)),
)
GOOD = '{"shard":"a-000000","key":"a/b/c","video_path":"v","num_bytes":1}\n'


def test_round_trip_is_exact(tmp_path: Path) -> None:
    lines = list(manifest_lines(PLAN))
    assert lines[1] == '{"shard":"a-000000","key":"a/b/d","video_path":"z.mp4","num_bytes":1099511627776}\n'
    (tmp_path / "m").write_text("".join(lines), encoding="ascii")
    assert tuple(open_manifest(tmp_path / "m", plan_sha256(PLAN), "m")) == PLAN


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("\n", "not a manifest line"),
        ("[]\n", "it must be an object"),
        ("[" * 100_000 + "\n", "not a manifest line"),
        ('{"shard":"a-000000","key":"a/b/d","video_path":"v"}\n', "num_bytes is missing"),
        ('{"key":"a/b/d","video_path":"v","num_bytes":1}\n', "shard is missing"),
        ('{"shard":"a-000000","key":"a/b/d","video_path":"v","num_bytes":true}\n', "num_bytes must be an integer"),
        ('{"shard":"a-000000","key":"a/b/d","video_path":"v","num_bytes":1,"x":1}\n', "unknown field 'x'"),
        ('{"shard":"a-000000","key":"a/b","video_path":"v","num_bytes":1}\n', "split/speaker/utterance"),
        ('{"shard":"a-000000","key":"a/b/d","video_path":"v","num_bytes":1}', "cut off"),
        (GOOD, "does not sort after"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, bad: str, message: str) -> None:
    (tmp_path / "m").write_text(GOOD + bad)
    with pytest.raises(RunError, match="line 2") as caught:
        open_manifest(tmp_path / "m", plan_sha256(PLAN), "m")
    assert message in str(caught.value)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot read the manifest .*gone"):
        open_manifest(tmp_path / "gone", "", "gone")


def test_the_hash_sees_every_change() -> None:
    first, second = PLAN
    others = [
        (first,),
        (second,),
        (replace(first, name="a-000007"), second),
        (replace(first, clips=first.clips[::-1]), second),
        (replace(first, clips=(first.clips[0], replace(first.clips[1], num_bytes=5))), second),
    ]
    hashes = {plan_sha256(plan) for plan in (PLAN, *others)}
    assert len(hashes) == 6
    assert plan_sha256((make_shard(),)) == plan_sha256((make_shard(),))
