"""Whole runs: corpus in, shards out, on several ranks, killed, resumed, refused, retried."""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from lrs3_loader import demo
from lrs3_loader.config import (
    LaunchConfig,
    MediaConfig,
    PlanConfig,
    WorkerConfig,
    as_json,
    inherit_auto_values,
    resolve,
)
from lrs3_loader.errors import RunError
from lrs3_loader.launch import runner
from lrs3_loader.launch.identity import check_compatible
from lrs3_loader.launch.leases import WorkQueue
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.shards import read_shard
from lrs3_loader.runtime.device import pick_device
from lrs3_loader.types import FIELDS
from support.whole_runs import EXTRACT, command, config_for, extract, processes_naming, shard_bytes

ALWAYS = {"mel", "f0", "hubert", "lm68", "id", "exp", "pose", "idexp_lm3d", "valid"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoCorpus:
    """Four clips of about a second, two speakers."""
    return demo.make_demo_corpus(
        tmp_path_factory.mktemp("corpus") / "demo", num_speakers=2, clips_per_speaker=2, seconds=(1.0, 1.3)
    )


@pytest.fixture(scope="module")
def undisturbed(
    corpus: demo.DemoCorpus, assets: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> runner.Outcome:
    """The demo clips, extracted in this process without any trouble."""
    return extract(config_for(corpus.folder), tmp_path_factory.mktemp("run") / "out", assets)


@pytest.mark.shared
def test_every_clip_becomes_a_sample_with_every_field(undisturbed: runner.Outcome, corpus: demo.DemoCorpus) -> None:
    folder = undisturbed.folder
    assert all(problems == [] for _, problems in folder.check())
    samples = [sample for shard in folder.shards for sample in read_shard(folder.tar_path(shard))]
    assert [sample["__key__"] for sample in samples] == list(corpus.keys)
    for sample in samples:
        assert set(sample) - {"__key__", "json"} >= ALWAYS
        assert set(sample) - {"__key__", "json"} <= set(FIELDS)
        meta = sample["json"]
        assert len(sample["mel"]) == 2 * meta["num_frames"] == 2 * len(sample["lm68"])
        assert meta["models"]["speech"]["untrained"] is True
        assert meta["words"]
        assert sample["valid"].all()


def test_ledgers_say_when_each_shard_was_made_and_by_whom(undisturbed: runner.Outcome) -> None:
    folder = undisturbed.folder
    made = [folder.ledger(shard).provenance for shard in folder.shards]
    assert {(record["rank"], record["device"]) for record in made} == {(0, "cpu")}
    for record in made:
        assert record["started_at"] < record["finished_at"]
    for first, second in pairwise(made):  # one may be published while the next is begun
        assert first["started_at"] <= second["started_at"]
        assert first["finished_at"] <= second["finished_at"]


@pytest.mark.shared
def test_the_mouth_is_followed(undisturbed: runner.Outcome, corpus: demo.DemoCorpus) -> None:
    folder = undisturbed.folder
    landmarks = {
        sample["__key__"]: sample["lm68"] for shard in folder.shards for sample in read_shard(folder.tar_path(shard))
    }
    assert demo.mouth_recovery(corpus.truth, landmarks).overall > 0.9


def test_running_again_finds_nothing_to_do(
    undisturbed: runner.Outcome, corpus: demo.DemoCorpus, assets: Path | None
) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.folder.path.rglob("*.*")}
    outcome = extract(config_for(corpus.folder), undisturbed.folder.path, assets)
    assert outcome.num_frames == 0
    assert {path: path.stat().st_mtime_ns for path in undisturbed.folder.path.rglob("*.*")} == before


def test_other_settings_are_refused_with_the_difference(
    undisturbed: runner.Outcome, corpus: demo.DemoCorpus, assets: Path | None
) -> None:
    other = config_for(corpus.folder, plan=PlanConfig(shard_clips=2))
    with pytest.raises(RunError, match=r"--shard-clips 1 -> 2"):
        extract(other, undisturbed.folder.path, assets)


def test_corpus_and_run_may_move(
    undisturbed: runner.Outcome, corpus: demo.DemoCorpus, assets: Path | None, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.folder.path, tmp_path / "run")
    shutil.copytree(corpus.folder, tmp_path / "corpus")
    moved = RunFolder.open(tmp_path / "run")
    moved.unpublish(moved.shards[1])
    outcome = extract(config_for(tmp_path / "corpus"), tmp_path / "run", assets)
    assert outcome.num_frames > 0
    assert shard_bytes(tmp_path / "run") == shard_bytes(undisturbed.folder.path)
    (tmp_path / "corpus" / undisturbed.folder.shards[0].clips[0].video_path).unlink()
    with pytest.raises(RunError, match="1 clip not there"):
        extract(config_for(tmp_path / "corpus"), tmp_path / "run", assets)


def test_a_run_that_grows_has_the_bytes_of_one_begun_later(
    undisturbed: runner.Outcome, corpus: demo.DemoCorpus, assets: Path | None, tmp_path: Path
) -> None:
    shutil.copytree(corpus.folder, tmp_path / "corpus")
    last = tmp_path / "corpus" / undisturbed.folder.shards[3].clips[0].video_path
    last.rename(tmp_path / "aside.mp4")
    config = config_for(tmp_path / "corpus")
    first = extract(config, tmp_path / "out", assets)
    assert len(first.folder.shards) == 3
    (tmp_path / "aside.mp4").rename(last)
    outcome = extract(config, tmp_path / "out", assets, extend=True)
    assert outcome.totals.num_shards == 4
    assert shard_bytes(tmp_path / "out") == shard_bytes(undisturbed.folder.path)


def test_a_run_is_resumed_that_knows_a_setting_by_its_earlier_name(
    undisturbed: runner.Outcome, corpus: demo.DemoCorpus
) -> None:
    record = copy.deepcopy(undisturbed.folder.record)
    decode = record["config"]["decode"]
    decode["max_sound_gap_seconds"] = decode.pop("max_av_mismatch_seconds")
    folder = RunFolder(undisturbed.folder.path, record, undisturbed.folder.shards)
    config = resolve(inherit_auto_values(config_for(corpus.folder), record["config"]), "cpu")
    now = {"config": as_json(config), "models": record["models"], "device_type": "cpu"}
    check_compatible(folder, now)
    decode["max_sound_gap_seconds"] = 0.75
    with pytest.raises(RunError, match=r"--max-av-mismatch-seconds 0\.75 -> 0\.5"):
        check_compatible(folder, now)


def test_a_changed_model_file_is_named_and_earlier_runs_are_compared_by_what_they_hold(
    undisturbed: runner.Outcome, corpus: demo.DemoCorpus
) -> None:
    record = copy.deepcopy(undisturbed.folder.record)
    folder = RunFolder(undisturbed.folder.path, record, undisturbed.folder.shards)
    config = resolve(inherit_auto_values(config_for(corpus.folder), record["config"]), "cpu")
    models = copy.deepcopy(record["models"])
    assert models["speech"]["files"] == {}  # the demo encoder has none
    assert models["face_model"]["files"].keys() <= {"ict"}
    models["speech"]["files"] = {"config.json": "a" * 64, "model.safetensors": "b" * 64}
    models["face_model"]["files"] = {"mine.npz": "c" * 64}
    record["models"] = copy.deepcopy(models)
    now = {"config": as_json(config), "models": models, "device_type": "cpu"}
    check_compatible(folder, now)
    record["models"]["speech"]["files"]["config.json"] = "d" * 64
    with pytest.raises(RunError, match=r'--hubert: files\.config\.json: "d{64}" -> "a{64}"'):
        check_compatible(folder, now)
    for kind in ("speech", "face_model"):
        del record["models"][kind]["files"]
    check_compatible(folder, now)
    record["models"]["speech"]["sha256"] = "0" * 64
    with pytest.raises(RunError, match=r"--hubert: sha256"):
        check_compatible(folder, now)


def test_more_workers_give_the_same_bytes(
    undisturbed: runner.Outcome, corpus: demo.DemoCorpus, assets: Path | None, tmp_path: Path
) -> None:
    queue = WorkQueue(dist.HashStore(), 0, 1)
    launch = LaunchConfig(out=tmp_path / "out", assets=assets, device="cpu", workers=WorkerConfig(num_workers=3))
    runner.run(config_for(corpus.folder), launch, queue)
    assert shard_bytes(tmp_path / "out") == shard_bytes(undisturbed.folder.path)


def test_two_ranks_give_the_same_bytes(corpus: demo.DemoCorpus, assets: Path | None, tmp_path: Path) -> None:
    """Those of features, pixels and audio."""
    media = MediaConfig(store_audio=True, store_face=64, store_mouth=True)
    alone = extract(config_for(corpus.folder, media=media), tmp_path / "alone", assets)
    options = ("--shard-clips", "1", "--store-audio", "--store-face", "64", "--store-mouth")
    done = subprocess.run(
        command(corpus.folder, tmp_path / "out", assets, 2, *options), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "4 samples, 0 rejects in 4 of 4 shards" in done.stdout
    assert shard_bytes(tmp_path / "out") == shard_bytes(alone.folder.path)
    with alone.folder.open_tar(alone.folder.shards[0]) as tar:
        assert tar.read_members(0).keys() >= {"hubert.npy", "lm68.npy", "audio.flac", "face.mp4", "mouth.mp4"}


@pytest.mark.slow
def test_real_clips_give_the_same_bytes_on_1_and_4_ranks(
    shared_data: Path, shared_assets: Path, tmp_path: Path
) -> None:
    written = []
    for ranks in (1, 4):
        out = tmp_path / f"ranks{ranks}"
        options = ("--face-model", "ict", "--shard-frames", "250")
        done = subprocess.run(
            command(shared_data / "lrs3_mini", out, shared_assets, ranks, *options),
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        written.append(shard_bytes(out))
    assert len(written[0]) >= 4
    assert written[0] == written[1]
    folder = RunFolder.open(out)
    assert folder.totals().num_samples == 9
    for shard in folder.shards:
        for sample in read_shard(folder.tar_path(shard)):
            rows = (
                len(
                    (shared_data / "lrs3_mini" / f"{sample['__key__']}.txt")
                    .read_text()
                    .split("FRAME")[1]
                    .split("\n\n")[0]
                    .splitlines()
                )
                - 1
            )
            assert len(sample["lm68"]) == rows
            assert sample["json"]["quality"]["relative_mouth_error"] < 0.012
            assert sample["json"]["quality"]["relative_error"] < 0.03


def kill_at_random(arguments: list[str], generator: random.Random, seconds: tuple[float, float]) -> bool:
    """Start a command and SIGKILL all its processes at a random moment; False where it had ended before."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(generator.uniform(*seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def test_no_rank_outlives_torchrun(corpus: demo.DemoCorpus, assets: Path | None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(corpus.folder, out, assets, 2, "--shard-clips", "1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(processes_naming(str(out))) < 3 or not (out / "tmp").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while processes_naming(str(out)):
        assert time.monotonic() < deadline, "ranks go on without torchrun"
        time.sleep(0.1)


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_on_other_ranks_gives_the_same_bytes(
    undisturbed: runner.Outcome, corpus: demo.DemoCorpus, assets: Path | None, tmp_path: Path
) -> None:
    """``LRS3_LOADER_KILLS`` says how often (3): each kill hits a run that has work left, on 1, 2 or 3 ranks."""
    out, generator = tmp_path / "out", random.Random(0)
    good = shard_bytes(undisturbed.folder.path)
    num_killed = 0
    while num_killed < int(os.environ.get("LRS3_LOADER_KILLS", "3")):
        ranks = num_killed % 3 + 1
        killed = kill_at_random(
            command(corpus.folder, out, assets, ranks, "--shard-clips", "1"), generator, (3.0, 20.0)
        )
        num_killed += killed
        if RunFolder.exists(out):
            folder = RunFolder.open(out)
            for name in folder.published():
                assert (out / "shards" / f"{name}.tar").read_bytes() == good[f"{name}.tar"]
            if not folder.pending():
                shutil.rmtree(out)
    done = subprocess.run(
        command(corpus.folder, out, assets, 1, "--shard-clips", "1"), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert shard_bytes(out) == good
    assert list((out / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_stops_within_seconds_and_leaves_nothing_half_done(
    corpus: demo.DemoCorpus, assets: Path | None, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(corpus.folder, out, assets, 1, "--shard-clips", "1"), stderr=subprocess.PIPE, text=True
    )
    while not list(out.glob("tmp/*.tar.*")) and not list(out.glob("ledger/*.json")):  # a shard is begun
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert "run the same command again" in errors
    assert not list(out.glob("tmp/*"))
    assert len(list(out.glob("ledger/*.json"))) == len(list(out.glob("shards/*.tar")))


def test_interrupted_before_the_first_shard_it_says_that_it_resumes(
    corpus: demo.DemoCorpus, assets: Path | None, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(corpus.folder, out, assets, 1), stderr=subprocess.PIPE, text=True)
    while not out.exists():  # it is locked, and models are loaded then
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1:] == ["interrupted; the same command resumes"], errors
    assert not list(out.glob("ledger/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x"], "give either --corpus PATH or --demo"),
        (["--demo", "--corpus", "y", "--out", "x"], "give either --corpus PATH or --demo"),
        (["--corpus", "y"], "--out"),
        (["--demo", "--out", "x", "--workers", "0"], "num_workers must be above 0"),
        (["--demo", "--out", "x", "--nonsense"], "nonsense"),
    ],
)
def test_wrong_arguments_are_named(options: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, *EXTRACT, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere"):
        extract(config_for(tmp_path / "nowhere"), tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(RunError, match="--device cuda:63 cannot be used here"):
        pick_device("cuda:63")


def test_rejects_can_be_retried(corpus: demo.DemoCorpus, assets: Path | None, tmp_path: Path) -> None:
    """A damaged clip is repaired; only the shard that holds it changes."""
    copy = tmp_path / "corpus"
    shutil.copytree(corpus.folder, copy)
    broken = copy / f"{corpus.keys[1]}.mp4"
    whole = broken.read_bytes()
    broken.write_bytes(b"this is no video")
    config = config_for(copy)
    first = extract(config, tmp_path / "out", assets)
    assert dict(first.totals.reasons) == {"unreadable": 1}
    before = shard_bytes(tmp_path / "out")

    assert extract(config, tmp_path / "out", assets, retry_rejects=("no_face",)).num_frames == 0
    assert shard_bytes(tmp_path / "out") == before
    with pytest.raises(ValueError, match="unknown reject reason nonsense"):
        LaunchConfig(out=tmp_path / "out", retry_rejects=("nonsense",))

    broken.write_bytes(whole)
    second = extract(config, tmp_path / "out", assets, retry_rejects=())
    assert second.totals.num_samples == 4
    after = shard_bytes(tmp_path / "out")
    (retried,) = [shard.name for shard in second.folder.shards if shard.clips[0].key == corpus.keys[1]]
    assert before.keys() - after.keys() == {f"{retried}.tar"}
    assert after.keys() - before.keys() == {f"{retried}.g1.tar"}
    assert all(before[name] == after[name] for name in before.keys() & after.keys())
    assert all(problems == [] for _, problems in second.folder.check())


def test_damage_of_the_same_size_is_repaired(
    undisturbed: runner.Outcome, corpus: demo.DemoCorpus, assets: Path | None, tmp_path: Path
) -> None:
    good = shard_bytes(undisturbed.folder.path)
    out = tmp_path / "out"
    shutil.copytree(undisturbed.folder.path, out)
    flipped, zeroed, *_ = (out / "shards" / name for name in good)
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    zeroed.write_bytes(bytes(zeroed.stat().st_size))
    assert extract(config_for(corpus.folder), out, assets).num_frames == 0
    assert shard_bytes(out) != good
    assert extract(config_for(corpus.folder), out, assets, repair=True).num_frames > 0
    assert shard_bytes(out) == good


def test_idexp_is_what_the_model_says(undisturbed: runner.Outcome) -> None:
    import torch

    model = demo.demo_head()
    folder = undisturbed.folder
    sample = next(iter(read_shard(folder.tar_path(folder.shards[0]))))
    offsets = model.landmarks(torch.from_numpy(sample["id"]), torch.from_numpy(sample["exp"])) - model.landmark_mean
    np.testing.assert_allclose(sample["idexp_lm3d"], 10 * offsets.numpy(), atol=1e-4)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bytes_each_time_and_nearly_a_cpus_numbers(
    undisturbed: runner.Outcome, corpus: demo.DemoCorpus, assets: Path | None, tmp_path: Path
) -> None:
    """Shards are watched, finished and published on three threads and two streams at once there."""
    for name in ("one", "two"):
        queue = WorkQueue(dist.HashStore(), 0, 1)
        launch = LaunchConfig(out=tmp_path / name, assets=assets, device="cuda", workers=WorkerConfig(num_workers=2))
        assert runner.run(config_for(corpus.folder), launch, queue) is not None
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "two")
    for shard in undisturbed.folder.shards:
        ours = read_shard(RunFolder.open(tmp_path / "one").tar_path(shard))
        for gpu, cpu in zip(ours, read_shard(undisturbed.folder.tar_path(shard)), strict=True):
            assert np.abs(gpu["lm68"] - cpu["lm68"]).max() < 0.05
            assert np.abs(gpu["mel"] - cpu["mel"]).max() < 1e-3
            assert np.array_equal(gpu["f0"], cpu["f0"])
            assert np.abs(gpu["idexp_lm3d"] - cpu["idexp_lm3d"]).max() < 0.05
