"""Fields are added to a run: what was there keeps its bytes, and whatever interrupts it, the run stays whole."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from transformers import HubertConfig, HubertModel

from lrs3_loader import ShardStream, demo
from lrs3_loader.commands import extract as command
from lrs3_loader.config import LaunchConfig, RunConfig
from lrs3_loader.errors import RunError
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.flags import config_from_json
from lrs3_loader.io.storage import LocalStore
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream import Raw
from support.whole_runs import config_for, extract, shard_bytes

ADDED = ("audio", "face", "mouth", "lm478")
NEW = {"audio.flac", "face.mp4", "face_to_frame.npy", "mouth.mp4", "mouth_to_frame.npy", "lm478.npy"}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, assets: Path | None) -> Path:
    """A run of three clips, one of which is a reject; a shard each."""
    root = tmp_path_factory.mktemp("adding")
    corpus = demo.make_demo_corpus(root / "corpus", num_speakers=1, clips_per_speaker=3, seconds=(0.8, 1.0)).folder
    video = sorted(corpus.rglob("*.mp4"))[1]
    video.write_bytes(video.read_bytes()[:2000])
    extract(config_for(corpus), root / "run", assets)
    return root / "run"


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def add(run: Path, assets: Path | None, *fields: str, config: RunConfig | None = None) -> None:
    extract(config or saved_config(run), run, assets, add=fields)


def saved_config(run: Path) -> RunConfig:
    return config_from_json(RunFolder.open(run).record["config"])


def members(run: Path) -> dict[str, dict[str, bytes]]:
    """The bytes of all members, by key and extension."""
    folder, found = RunFolder.open(run), {}
    for shard in folder.shards:
        with folder.open_tar(shard) as tar:
            for index, sample in enumerate(tar.samples):
                found[sample.key] = {name: bytes(data) for name, data in tar.read_members(index).items()}
    return found


def arrays_of(sample: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in sample.items() if name != "json"}


def problems_of(run: Path) -> list[str]:
    return [problem for _, problems in RunFolder.open(run).check() for problem in problems]


def test_what_was_there_keeps_its_bytes(run: Path, assets: Path | None) -> None:
    before, old_hash = members(run), RunFolder.open(run).run_hash
    rejects = RunFolder.open(run).totals().rejects
    assert len(before) == 2
    assert len(rejects) == 1
    add(run, assets, *ADDED)
    folder, after = RunFolder.open(run), members(run)
    assert after.keys() == before.keys()
    for key, old in before.items():
        assert after[key].keys() == old.keys() | NEW
        assert {name: after[key][name] for name in old if name != "json"} == {
            n: b for n, b in old.items() if n != "json"
        }
    assert folder.run_hash != old_hash
    assert folder.record["earlier"] == [old_hash]
    assert folder.totals().rejects == rejects
    assert problems_of(run) == []
    assert folder.pending() == []
    samples = list(ShardStream(run, Raw(fields=("face", "mouth", "audio", "lm478", "mel"))))
    assert {sample["__key__"] for sample in samples} == before.keys()
    for sample in samples:
        assert len(sample["audio"]) == 320 * len(sample["mel"])
        assert sample["json"]["conventions"].keys() >= {"pose", "mouth"}


def test_resuming_and_adding_again_find_nothing_to_do(run: Path, assets: Path | None) -> None:
    add(run, assets, "audio")
    published = shard_bytes(run)
    assert {name.split(".")[1] for name in published if not name.endswith("1.tar")} <= {"g1", "tar"}
    add(run, assets, "audio")
    extract(saved_config(run), run, assets)
    assert shard_bytes(run) == published
    assert len(RunFolder.open(run).record["earlier"]) == 1
    add(run, assets, "mouth")  # a second generation of fields
    assert len(RunFolder.open(run).record["earlier"]) == 2
    assert all(found.keys() >= {"audio.flac", "mouth.mp4"} for found in members(run).values())
    assert problems_of(run) == []


def test_another_encoder_is_added_by_its_rows_alone(
    run: Path, assets: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    small = HubertConfig(**settings, conv_dim=[16] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
    torch.manual_seed(0)
    HubertModel(small).save_pretrained(tmp_path / "other")
    before = members(run)

    def never(self: ShardExtractor, what: Any, *_: Any) -> None:
        assert what == [], "nothing else is to be extracted again"  # of the clip that was a reject

    monkeypatch.setattr(ShardExtractor, "_detect", never)
    monkeypatch.setattr(ShardExtractor, "_fit", never)
    args = command.parse(["--resume", str(run), "--add", "hubert", "--hubert", str(tmp_path / "other")])
    extract(args.run, run, assets, add=args.launch.add)
    after = members(run)
    for key, old in before.items():
        assert after[key].keys() == {*old, "hubert_2.npy"}
        assert {name: after[key][name] for name in old if name != "json"} == {
            n: b for n, b in old.items() if n != "json"
        }
    (sample, _) = ShardStream(run, Raw(fields=("hubert", "hubert_2")))
    assert sample["hubert_2"].shape == (len(sample["hubert"]), 32)
    assert sample["json"]["models"]["speech"]["model"] == "demo"
    assert sample["json"]["models"]["speech_2"]["width"] == 32
    assert sample["json"]["num_rows"]["hubert_2"] == len(sample["hubert_2"]) - 1
    assert saved_config(run).speech.models == ("demo", str(tmp_path / "other"))


@pytest.mark.parametrize("num_writes", range(1, 7))
def test_interrupted_at_any_step_it_is_whole_and_goes_on(
    run: Path, assets: Path | None, monkeypatch: pytest.MonkeyPatch, num_writes: int, undisturbed: dict[str, bytes]
) -> None:
    before, write, left = members(run), LocalStore.write, [num_writes]

    @contextmanager
    def dying(self: LocalStore, name: str) -> Iterator[IO[bytes]]:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        with write(self, name) as file:
            yield file

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            add(run, assets, "audio")
    now = members(run)
    for key, old in before.items():
        assert arrays_of(now[key]).items() >= arrays_of(old).items()
    assert len(list(ShardStream(run, Raw(fields=("mel", "lm68"))))) == 2  # readers go on meanwhile
    if any("audio.flac" not in found for found in now.values()):
        with pytest.raises(RunError, match="does not hold audio"):
            ShardStream(run, Raw(fields=("audio",)))
    add(run, assets, "audio")
    assert shard_bytes(run) == undisturbed
    assert problems_of(run) == []


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from lrs3_loader.__main__ import main
from lrs3_loader.io.storage import LocalStore

write, left = LocalStore.write, [int(sys.argv.pop(1))]

@contextmanager
def dying(self, name):
    left[0] -= 1
    with write(self, name) as file:
        yield file
        file.flush()
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

LocalStore.write = dying
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_writes", [1, 3])
def test_killed_while_it_writes_it_goes_on(
    run: Path, assets: Path | None, num_writes: int, undisturbed: dict[str, bytes]
) -> None:
    before = members(run)
    folder = ["--assets", str(assets)] if assets else []
    words = ["extract", "--resume", str(run), "--add", "audio", "--workers", "1", *folder]
    ended = subprocess.run([sys.executable, "-c", KILLED, str(num_writes), *words], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    now = members(run)
    for key, old in before.items():
        assert arrays_of(now[key]).items() >= arrays_of(old).items()
    add(run, assets, "audio")
    assert shard_bytes(run) == undisturbed
    assert problems_of(run) == []
    assert not [path for path in run.rglob("*") if path.is_file() and path.parent.name == "tmp"]


@pytest.fixture(scope="module")
def undisturbed(begun: Path, assets: Path | None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tars of a run to which audio was added."""
    run = Path(shutil.copytree(begun, tmp_path_factory.mktemp("undisturbed") / "run"))
    add(run, assets, "audio")
    return shard_bytes(run)


def test_what_cannot_be_added_is_said(run: Path, assets: Path | None, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="needs another encoder"):
        add(run, assets, "hubert")
    with pytest.raises(RunError, match="for a run that has begun"):
        extract(saved_config(run), tmp_path / "none", assets, add=("audio",))
    assert LaunchConfig(out=run).add == ()


def test_a_clip_that_is_gone_leaves_its_shard_as_it_was(run: Path, assets: Path | None) -> None:
    config = saved_config(run)
    corpus = config.corpus.corpus
    assert isinstance(corpus, Path)
    before, video = shard_bytes(run), sorted(corpus.rglob("*.mp4"))[0]
    data = video.read_bytes()
    try:
        video.write_bytes(data[:2000])
        with pytest.raises(RunError, match="was extracted before and cannot be now"):
            add(run, assets, "audio")
    finally:
        video.write_bytes(data)
    assert shard_bytes(run).items() >= {(name, tar) for name, tar in before.items() if name in shard_bytes(run)}
    extract(saved_config(run), run, assets)
    assert problems_of(run) == []
