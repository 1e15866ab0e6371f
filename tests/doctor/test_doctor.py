"""The doctor: each problem is seen and comes with its remedy, and a healthy machine is told so."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import resource
import subprocess
import sys
import threading
from collections import namedtuple
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType

import huggingface_hub.constants
import pytest
import torch

from lrs3_loader import demo
from lrs3_loader.assets import reach
from lrs3_loader.assets.locate import Assets, Catalogue
from lrs3_loader.config import CorpusConfig, DecodeConfig, LandmarkConfig, RunConfig, SpeechConfig, demo_defaults
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.doctor import checks, disk_space, trial
from lrs3_loader.doctor.checks import CheckResult, check_software, check_torch_loads, format_checks, is_fit
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.types import Clip, Shard
from support.media_files import noise, write_media
from support.paths import REPO
from support.run_factory import full_features

GOOD = {"torch": "2.11.0", "torchvision": "0.26.0", "torchaudio": "2.11.0"}
OTHERS = ("transformers", "huggingface_hub", "numpy", "scipy", "av", "praat-parselmouth", "webdataset")


def software(**versions: str | None) -> dict[str, CheckResult]:
    known = {**dict.fromkeys(OTHERS, "1.0"), **GOOD, **versions}

    def find(package: str) -> str:
        version = known[package]
        if version is None:
            raise metadata.PackageNotFoundError(package)
        return version

    return {check.name: check for check in check_software(find)}


def test_this_environment_is_fit() -> None:
    found = check_software()
    assert is_fit(found)
    assert f"torch {metadata.version('torch')}" in found[1].text


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ({"torchvision": "0.25.1"}, "not of one release"),
        ({"torchaudio": "2.10.0"}, "not of one release"),
        ({"torchaudio": "2.11.1"}, "built for a later torch"),
        ({"torch": "2.11.0+cpu"}, "built for different CUDA versions"),
        ({"torch": "2.12.0"}, "torch must be 2.6 to 2.11"),
        ({"torch": "2.5.1"}, "torch must be 2.6 to 2.11"),
        ({"torchaudio": None}, "torchaudio is not installed"),
    ],
)
def test_torch_packages_that_do_not_belong_together(versions: dict[str, str | None], problem: str) -> None:
    check = software(**versions)["torch packages"]
    assert check.level == "fail"
    assert problem in check.text
    assert '"torchvision==0.26.*" "torchaudio==2.11.*,<2.11.1"' in check.remedy


@pytest.mark.parametrize(
    "trio",
    [("2.6.0", "0.21.0", "2.6.0"), ("2.9.1+cu128", "0.24.1+cu128", "2.9.1+cu128"), ("2.11.0a0", "0.26.0", "2.11")],
)
def test_older_trios_belong_together(trio: tuple[str, str, str]) -> None:
    assert software(**dict(zip(GOOD, trio, strict=True)))["torch packages"].level == "ok"


@pytest.mark.parametrize(
    "error", [OSError("libtorch.so: undefined symbol: x\nmore"), RuntimeError("CUDA 13.2 against 13.0"), ImportError()]
)
def test_torch_packages_that_do_not_load(error: Exception) -> None:
    def load(package: str) -> ModuleType:
        if package == "torchaudio":
            raise error
        return torch

    check = check_torch_loads(load)
    assert check.level == "fail"
    assert "torchaudio does not load (" in check.text
    assert "\n" not in check.text
    assert "pip install --force-reinstall" in check.remedy
    assert check_torch_loads().level == "ok"


@pytest.mark.parametrize("tool", ["extract.py", "doctor.py"])
def test_a_torch_package_that_does_not_load_ends_in_one_line(tool: str, tmp_path: Path) -> None:
    """Its version is right, so that only an attempt can tell."""
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('libtorchaudio.so: undefined symbol')")
    arguments = [sys.executable, str(REPO / "tools" / tool), "--out", str(tmp_path / "out")]
    arguments += ["--demo"] if tool == "extract.py" else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "torchaudio does not load (libtorchaudio.so: undefined symbol)" in done.stdout + done.stderr
    assert "pip install --force-reinstall" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_missing_packages_are_named() -> None:
    check = software(scipy=None, av=None)["packages"]
    assert (check.level, check.text) == ("fail", "not installed: scipy, av")


Disk = namedtuple("Disk", "f_bavail f_frsize f_files f_favail f_blocks")


def test_cores_are_weighed_against_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    levels = [checks.check_cores(ranks).level for ranks in (1, 2, 3, 8, 9, 64)]
    assert levels == ["ok", "ok", "warn", "warn", "fail", "fail"]
    assert "at most 2 ranks" in checks.check_cores(64).remedy


def test_memory_is_weighed_against_ranks_workers_and_frames(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "available_bytes", lambda: 10 << 30)
    assert checks.check_memory(2, 2).level == "ok"
    check = checks.check_memory(2, 2, 2160, 3840)
    assert check.level == "warn"
    assert check.text == (
        "10.0 GiB free, about 10.9 GiB needed by 2 ranks with 2 decode workers each, for frames of 3840x2160"
    )
    for size in ((48, 64), (80, 40)):
        write_media(tmp_path / f"a{size[0]}.mp4", size=size, num_frames=3)
    (tmp_path / "text.mp4").write_text("no film")
    clips = [Clip(f"a/b/{path.stem}", path.name, 1) for path in sorted(tmp_path.iterdir())]
    assert trial.largest_frames(clips, tmp_path) == (80, 40)
    assert trial.largest_frames(clips[2:], tmp_path) == (224, 224)


def test_limits_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    limits = checks.check_limits()
    assert [(check.name, check.level) for check in limits] == [
        ("open files", "warn"),
        ("processes", "warn"),
        ("address space", "warn"),
    ]
    assert [check.text.split(";")[0] for check in limits] == [
        "at most 100, 1024 wanted",
        "at most 100, 512 wanted",
        "limited to 0 MiB",
    ]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert [check.level for check in checks.check_limits()] == ["ok"] * 3


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert checks.check_disk(tmp_path / "a" / "b").level == "ok"
    (tmp_path / "file").write_text("")
    assert checks.check_disk(tmp_path / "file").level == "fail"
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(10, 4096, 10, 10, 100))
    assert checks.check_disk(tmp_path).level == "warn"
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(1 << 30, 4096, 10, 0, 100))
    assert "no inodes left" in checks.check_disk(tmp_path).text


def test_every_problem_has_a_remedy_and_the_verdict_counts() -> None:
    with pytest.raises(ValueError, match="needs a remedy"):
        CheckResult("disk", "warn", "full")
    with pytest.raises(ValueError, match="needs a remedy"):
        CheckResult("disk", "ok", "empty", "fill it")
    good, odd, bad = (
        CheckResult("a", "ok", "x"),
        CheckResult("bb", "warn", "y", "do this"),
        CheckResult("c", "fail", "z", "do that"),
    )
    assert format_checks([good, odd]).splitlines() == [
        "ok    a   x",
        "warn  bb  y",
        "          -> do this",
        "fit to run, 1 worth a look",
    ]
    assert format_checks([good, odd, bad]).endswith("1 to fix, 1 worth a look")


def test_an_extraction_is_stopped_before_torch_is_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        checks, "check_software", lambda: [CheckResult("torch packages", "fail", "unlike", "install these")]
    )
    with pytest.raises(RunError, match=r"torch packages: unlike\. install these"):
        checks.stop_if_unfit(tmp_path, 2)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        checks.stop_if_unfit(tmp_path, 2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(checks, "check_software", lambda: [CheckResult("python", "warn", "odd", "take another")])
    checks.stop_if_unfit(tmp_path, 2)
    assert "python: odd; take another" in caplog.text
    code = """
import sys, pathlib
from lrs3_loader import errors
from lrs3_loader.doctor import checks
checks.check_software = lambda: [checks.CheckResult("torch packages", "fail", "unlike", "install these")]
try:
    checks.stop_if_unfit(pathlib.Path("."), 1)
except errors.RunError:
    assert not {"torch", "numpy", "av"} & set(sys.modules)
    print("stopped")
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "stopped\n"


def test_shards_take_the_room_that_was_estimated(tmp_path: Path) -> None:
    """Against real tars of clips of many lengths, for the widths that the factory makes."""
    config = demo_defaults(RunConfig())
    clips = [replace(scan_clip(tmp_path, k), end_seconds=length / 25) for k, length in enumerate([20, 75, 300])]
    shard = Shard("all-000000", tuple(clips))
    record = {"config": {}, "plan_sha256": plan_sha256([shard]), "models": {}, "device_type": "cpu"}
    run = RunFolder.create(tmp_path / "run", record, (shard,))
    samples = [full_features(clip, length) for clip, length in zip(clips, [20, 75, 300], strict=True)]
    ledger = run.publish(shard, samples, {}, {})
    num_bytes, num_frames = disk_space.estimate_bytes(config, clips, tmp_path, Assets(store=tmp_path))
    # The factory's speech rows are 8 wide instead of 64, its json is short, its face model has fewer modes.
    extra = 2 * num_frames * 2 * (64 - 8) + 4 * num_frames * (14 - 6) + disk_space.META_BYTES * 3
    assert num_frames == pytest.approx(395)
    assert num_bytes == pytest.approx(ledger.num_bytes + extra, rel=0.05)


def scan_clip(folder: Path, number: int) -> object:
    from support.factory import make_clip

    return make_clip(f"all/speaker/{number:05d}")


def test_what_is_stored_decides_the_room(tmp_path: Path) -> None:
    def size(config: RunConfig) -> float:
        return disk_space.bytes_per_clip(config, 1000, Assets(store=tmp_path), transcript=False) / 1000

    plain = size(RunConfig())
    assert plain == pytest.approx(
        2 * 80 * 4 + 2 * 4 + 2 * 1024 * 2 + 68 * 8 + 104 + 53 * 4 + 24 + 68 * 12 + 1, rel=0.02
    )
    full = replace(RunConfig(), landmarks=LandmarkConfig(store_lm478=True, store_blendshapes=False))
    assert size(full) - plain == pytest.approx(478 * 12 - 104, rel=0.01)
    wide = replace(RunConfig(), speech=SpeechConfig(model="facebook/hubert-base-ls960", store="float32"))
    assert size(wide) - plain == pytest.approx(2 * 768 * 4 - 2 * 1024 * 2, rel=0.01)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoCorpus:
    folder = tmp_path_factory.mktemp("corpus") / "demo"
    return demo.make_demo_corpus(folder, num_speakers=1, clips_per_speaker=1, seconds=(0.8, 0.8))


def test_a_disk_that_is_too_small_is_said_before_the_run(
    corpus: demo.DemoCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clips = scan_corpus(CorpusConfig(corpus=corpus.folder))
    config = replace(demo_defaults(RunConfig()), corpus=CorpusConfig(corpus=corpus.folder))
    assets = Assets(store=tmp_path)
    check = disk_space.check_disk_space(config, clips, corpus.folder, tmp_path / "out", assets)
    assert check.level == "ok"
    assert check.text.startswith("1 clip, about 1 second long: 0.1 MB to write")
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(1, 4096, 10, 10, 100))
    disk_space.warn_if_short_of_space(config, (Shard("pretrain-000000", clips),), tmp_path / "out", assets)
    assert "the disk may fill up: 1 clip," in caplog.text


def test_decoders_are_tried_out_in_a_process(corpus: demo.DemoCorpus, tmp_path: Path) -> None:
    check = trial.check_decoders()
    assert check.level == "ok", check.text
    (clip,) = scan_corpus(CorpusConfig(corpus=corpus.folder))
    assert trial.check_clips([clip], corpus.folder, DecodeConfig()).level == "ok"
    write_media(tmp_path / "short.mp4", num_frames=3, sound=noise(0.12, 16000))
    clips = scan_corpus(CorpusConfig(corpus=tmp_path, layout="folder"))
    found = trial.check_clips(clips, tmp_path, DecodeConfig())
    assert found.level == "warn"
    assert "(too_short: short.mp4: 3 frames" in found.text


def test_a_decoder_that_gives_wrong_frames_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = trial._decode

    def darker(*arguments: object) -> list[object]:
        (chunk,) = real(*arguments)  # type: ignore[arg-type]
        return [replace(chunk, frames=chunk.frames // 2)]  # type: ignore[union-attr]

    monkeypatch.setattr(trial, "_decode", darker)
    check = trial.check_decoders()
    assert check.level == "fail"
    assert "frames came back changed" in check.text


def test_the_gpu_or_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(trial.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert trial.check_gpu().level == "fail"
    monkeypatch.setattr(trial.shutil, "which", lambda _: None)
    if not Path("/dev/nvidia0").exists():
        assert trial.check_gpu().level == "warn"


@pytest.mark.gpu
def test_a_gpu_computes() -> None:
    check = trial.check_gpu()
    assert check.level == "ok"
    assert torch.cuda.get_device_name(0) in check.text


def test_missing_and_damaged_models_are_told_apart(tmp_path: Path) -> None:
    (check,) = trial.check_models(Assets(store=tmp_path), "demo", "demo", lambda row, assets: None)
    assert (check.level, check.text) == ("warn", "not on this machine (face landmarks): a run fetches it")
    assert "lrs3-loader assets fetch" in check.remedy
    (tmp_path / "face_landmarker.task").write_text("no zip")
    (check,) = trial.check_models(Assets(store=tmp_path), "demo", "demo")
    assert check.level == "fail"


def test_models_that_are_missing_without_a_network_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = "http://127.0.0.1:9"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", nobody)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    catalogue = Catalogue(task_url=f"{nobody}/task", ict_url=f"{nobody}/ict")
    found = trial.check_models(Assets(store=tmp_path, catalogue=catalogue), "ict", "some/encoder")
    assert [check.level for check in found] == ["fail", "fail", "fail"]
    assert f"{nobody}/task cannot be reached" in found[0].text
    assert f"{nobody}/ict cannot be reached" in found[1].text
    assert "the Hugging Face hub does not give some/encoder" in found[2].text
    (_, model) = trial.check_models(Assets(store=tmp_path, catalogue=catalogue), "mine.npz", "demo")
    assert (model.level, model.text) == ("fail", "not on this machine (face model): there is no such file")


def test_models_that_can_be_fetched_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of the landmarker answers; without it, pip lists the wheel that has the older networks."""
    monkeypatch.setattr(reach, "versions_command", lambda name: ["echo", f"Available versions: 0.1, {name}, 0.2"])
    (tmp_path / "task").write_bytes(b"task")
    answers = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            for task, wheel, level in (
                ("task", "x==9", "warn"),
                ("none", "x==0.2", "warn"),
                ("none", "x==0.3", "fail"),
            ):
                catalogue = Catalogue(task_url=f"{url}/{task}", wheel=wheel)
                (check,) = trial.check_models(Assets(store=tmp_path, catalogue=catalogue), "demo", "demo")
                assert check.level == level, (task, wheel, check)
        finally:
            server.shutdown()


def test_the_tool_prints_a_verdict(
    corpus: demo.DemoCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("doctor_tool", REPO / "tools" / "doctor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "doctor_tool", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(trial, "check_decoders", lambda: CheckResult("decoders", "ok", "tried elsewhere"))
    monkeypatch.setattr(trial, "check_gpu", lambda: CheckResult("gpu", "ok", "tried elsewhere"))
    monkeypatch.setenv("LRS3_LOADER_CACHE", str(tmp_path / "cache"))
    options = ["--corpus", str(corpus.folder), "--face-model", "demo", "--hubert", "demo", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["doctor.py", *options])
    assert module.main() == 0
    printed = capsys.readouterr().out
    assert "1 of 1 clips tried, all can be decoded" in printed
    assert "fit to run" in printed.splitlines()[-1]
    monkeypatch.setattr(
        checks, "check_software", lambda: [CheckResult("torch packages", "fail", "unlike", "install these")]
    )
    assert module.main() == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 to fix")
