"""The benchmarks of reading measure what they say: every sample, in every way, beside a training that uses them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import scan, training
from benchmarks import stream as bench_stream
from benchmarks.roofline.cards import find_card

TRAININGS = [(training, size) for size in ("demo", "real") for training in ("syncnet", "audio2motion")]


def test_every_way_reads_every_sample(tmp_path: Path) -> None:
    lines = list(bench_stream.run_benchmark(tmp_path, num_samples=30, num_workers=0, num_passes=2))
    assert lines[0].startswith("30 samples in 1 shards")
    rates = {line[:34].strip(): float(line[34:45]) for line in lines[2:]}
    assert list(rates) == [
        "ShardStream raw",
        "webdataset, same tars",
        "torch over .npy files, shuffled",
        "ShardStream audio2motion",
    ]
    assert min(rates.values()) > 0


def test_a_way_that_loses_samples_is_not_timed(tmp_path: Path) -> None:
    run = bench_stream.make_synthetic_run(tmp_path / "run", 12, samples_per_shard=5)
    files = bench_stream.ArrayFiles.write(tmp_path / "files", run)
    short = bench_stream.ArrayFiles(tmp_path / "files", [clip.key for clip in run.shards[0].clips], ["mel"])
    assert len(files) == 12
    with pytest.raises(RuntimeError, match="5 of 12 samples came out"):
        list(bench_stream.compare(run, short, num_workers=0, num_passes=1))


def test_scan_finds_every_clip_of_the_tree(tmp_path: Path) -> None:
    lines = list(scan.run_benchmark(tmp_path / "tree", share=0.001))
    assert [line.split(" in ")[0] for line in lines[:3]] == [f"scan {k}: 152 clips of 152" for k in (1, 2, 3)]
    assert lines[3].startswith("plan: 3 shards")


def test_paces_of_both_sizes_are_measured_and_modelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (training.Size("demo", 32, 8, (30, 40)), training.Size("real", 32, 16, (30, 40)))
    monkeypatch.setattr(training, "SIZES", sizes)
    card = find_card("h200")
    paces = list(training.measure(tmp_path, 1, card))
    assert [(pace.training, pace.size) for pace in paces] == TRAININGS
    lines = list(training.describe(paces, card))
    assert "MODEL of a H200" in lines[0]
    for pace, line in zip(paces, lines[2:], strict=True):
        assert min(pace.read, pace.worker, pace.step) > 0
        if pace.gpu is not None:
            assert pace.gpu.num_kernels > 100, "forwards, backwards and AdamW"
            assert pace.gpu.clips_per_second <= pace.num_clips / (pace.gpu.num_kernels * training.DISPATCH_SECONDS)
            assert f"{math.ceil(pace.gpu.clips_per_second / pace.worker)} (" in line
