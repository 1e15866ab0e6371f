"""Settings from YAML files and from run.json, and the flags that they belong to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lrs3_loader.commands import extract
from lrs3_loader.config import (
    CorpusConfig,
    DecodeConfig,
    LandmarkConfig,
    LaunchConfig,
    RegressionConfig,
    RunConfig,
    SpeechConfig,
    as_json,
    resolve,
)
from lrs3_loader.errors import RunError
from lrs3_loader.flags import config_from_json, flag_names
from lrs3_loader.io.storage import Url
from lrs3_loader.launch.cli import UsageError
from lrs3_loader.launch.settings import as_file, words_from_file
from support.run_factory import make_run

CONFIG = RunConfig(
    corpus=CorpusConfig(corpus=Path("/data/lrs3"), splits=("test", "train"), limit=3, on_collision="skip"),
    decode=DecodeConfig(min_frames=8, max_damaged_fraction=0.1),
    landmarks=LandmarkConfig(store_lm478=True, store_blendshapes=False),
    regression=RegressionConfig(checkpoint=Path("net/epoch_20.pth"), idexp="regression"),
    speech=SpeechConfig(model="my hubert", layer=-2),
    threads=2,
)


def test_every_flag_is_one_that_the_command_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        extract.main(["--help"])
    shown = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    names = flag_names()
    assert len(names) > 30
    assert names["speech", "layer"] == "--hubert-layer"
    assert {*names.values(), *flag_names(LaunchConfig).values()} <= shown


@pytest.mark.parametrize("config", [RunConfig(), CONFIG, resolve(CONFIG, "cpu")])
def test_a_config_comes_back_from_json(config: RunConfig) -> None:
    assert config_from_json(as_json(config)) == config
    remote = RunConfig(corpus=CorpusConfig(corpus=Url("s3://bucket/lrs3")))
    found = config_from_json(as_json(remote))
    assert found == remote
    assert isinstance(found.corpus.corpus, Url)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"decode": {"min_frames": 0}}, "min_frames"),
        ({"decode": {"shape": 1}}, "does not know the setting shape"),
        ({"decode": {"min_frames": "many"}}, "'>' not supported"),
    ],
)
def test_a_config_of_another_version_is_refused(saved: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_json(saved)


def test_printed_settings_are_a_file_that_gives_them_again(tmp_path: Path) -> None:
    launch = LaunchConfig(out=Path("runs/x"), device="cpu")
    (tmp_path / "c.yaml").write_text(as_file(CONFIG, launch))
    args = extract.parse(["--config", str(tmp_path / "c.yaml")])
    assert (args.run, args.launch) == (CONFIG, launch)
    changed = extract.parse([f"--config={tmp_path / 'c.yaml'}", "--splits", "val", "--no-store-lm478", "--limit=9"])
    assert changed.run.corpus == CorpusConfig(Path("/data/lrs3"), splits=("val",), limit=9, on_collision="skip")
    assert not changed.run.landmarks.store_lm478
    assert changed.run.decode == CONFIG.decode


def test_a_file_may_name_flags_as_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("min_frames: 8\nsplits: [a, b]\nspeakers: []\nlimit: null\nstore-lm478: yes\n")
    words = words_from_file(tmp_path / "c.yaml", [])
    assert words == ["--min-frames", "8", "--splits", "a", "b", "--store-lm478"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min-frmes: 8", "sets min-frmes, which is no flag; did you mean min-frames?"),
        ("repair: true", "sets repair, which is no flag"),
        ("- min-frames", "is not a list of flags and their values"),
        ("[", "is not YAML: while parsing"),
        ("a: " + "[" * 5000, "is not YAML"),
        ("!!python/object/apply:os.system [ls]", "is not YAML: could not determine a constructor"),
        ("", "is not a list of flags"),
    ],
)
def test_wrong_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(RunError) as caught:
        words_from_file(path, [])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError):
        extract.main(["--config", str(path), "--demo", "--out", "x"])
    with pytest.raises(UsageError, match="there is no file"):
        extract.main(["--config", str(tmp_path / "none.yaml")])


def test_a_run_is_resumed_by_its_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [[9]])
    record = run.record | {"config": as_json(CONFIG)}
    with run.store.write("run.json") as file:
        file.write(json.dumps(record).encode())
    args = extract.parse(["--resume", str(tmp_path / "run"), "--workers", "3"])
    assert args.run == CONFIG
    assert (args.launch.out, args.launch.device, args.launch.workers.num_workers) == (tmp_path / "run", "cpu", 3)
    with pytest.raises(UsageError, match="either --resume or --out"):
        extract.parse(["--resume", str(tmp_path / "run"), "--out", "elsewhere"])
    with pytest.raises(RunError, match="holds no run"):
        extract.parse(["--resume", str(tmp_path)])
