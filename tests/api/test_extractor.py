"""The functions ``extract`` and ``Extractor`` against a run of the same clips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lrs3_loader
from lrs3_loader import demo
from lrs3_loader.config import PlanConfig, RunConfig, resolve
from lrs3_loader.errors import NoFaceError, UnreadableError
from lrs3_loader.launch.runner import Outcome
from lrs3_loader.run.shards import encode_sample
from support.media_files import noise, write_media
from support.whole_runs import config_for, extract

DEMO = {"face_model": "demo", "hubert": "demo", "device": "cpu"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoCorpus:
    return demo.make_demo_corpus(tmp_path_factory.mktemp("corpus") / "demo", 1, 2, seconds=(1.0, 1.3))


@pytest.fixture(scope="module")
def extractor(assets: Path | None) -> lrs3_loader.Extractor:
    return lrs3_loader.Extractor(assets=assets, **DEMO)


def run_of(corpus: demo.DemoCorpus, assets: Path | None, out: Path, shard_clips: int) -> Outcome:
    return extract(config_for(corpus.folder, plan=PlanConfig(shard_clips=shard_clips)), out, assets)


def clips_of(run: lrs3_loader.Run, corpus: demo.DemoCorpus) -> list[lrs3_loader.Clip]:
    """The clips of a run as the run saw them, with their keys and transcripts."""
    names = ("video_path", "transcript_path")
    found = (run[key].clip for key in corpus.keys)
    return [
        lrs3_loader.Clip(clip.key, num_bytes=0, **{name: str(corpus.folder / getattr(clip, name)) for name in names})
        for clip in found
    ]


@pytest.mark.shared
def test_numbers_are_those_of_a_run_to_the_bit(
    corpus: demo.DemoCorpus, assets: Path | None, extractor: lrs3_loader.Extractor, tmp_path: Path
) -> None:
    """A clip alone against a shard of its own; two together against a shard of both, decoded by worker processes."""
    alone = lrs3_loader.Run(run_of(corpus, assets, tmp_path / "alone", shard_clips=1).folder)
    together = lrs3_loader.Run(run_of(corpus, assets, tmp_path / "together", shard_clips=2).folder)
    clips = clips_of(alone, corpus)
    for clip in clips:
        assert encode_sample(extractor(clip)) == encode_sample(alone[clip.key])
    both = lrs3_loader.Extractor(assets=assets, workers=1, batch_clips=2, **DEMO)
    for result in both(clips):
        assert isinstance(result, lrs3_loader.ClipFeatures)
        assert encode_sample(result) == encode_sample(together[result.clip.key])


def test_a_path_alone_gives_the_same_arrays(
    corpus: demo.DemoCorpus, extractor: lrs3_loader.Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(corpus.folder.glob("pretrain/*/*.mp4"))
    monkeypatch.chdir(path.parent)
    named, relative = extractor(path), extractor(path.name)
    assert named.clip.key == f"all/{path.parent.name}/{path.stem}"
    assert encode_sample(named) == encode_sample(relative)
    assert "words" not in named.meta


def test_many_come_in_order_each_when_it_is_asked_for(
    corpus: demo.DemoCorpus, extractor: lrs3_loader.Extractor, tmp_path: Path
) -> None:
    first, second = sorted(corpus.folder.glob("*/*/*.mp4"))
    drawn: list[Path] = []

    def paths() -> Iterator[Path]:
        for path in (first, tmp_path / "nowhere.mp4", second, second):
            drawn.append(path)
            yield path

    results = extractor(paths())
    assert isinstance(next(results), lrs3_loader.ClipFeatures)
    assert len(drawn) <= 2
    reject, third, fourth = results
    assert isinstance(reject, lrs3_loader.Reject)
    assert reject.reason == "unreadable"
    assert str(tmp_path / "nowhere.mp4") in reject.message
    assert isinstance(third, lrs3_loader.ClipFeatures)
    assert isinstance(fourth, lrs3_loader.ClipFeatures)
    assert encode_sample(third) == encode_sample(fourth)


def test_a_clip_given_twice_is_two_clips_of_one_batch_or_of_two(corpus: demo.DemoCorpus, assets: Path | None) -> None:
    path = min(corpus.folder.glob("*/*/*.mp4"))
    once, again = lrs3_loader.extract([path, path], assets=assets, batch_clips=4, **DEMO)
    assert isinstance(once, lrs3_loader.ClipFeatures)
    assert isinstance(again, lrs3_loader.ClipFeatures)
    assert encode_sample(once) == encode_sample(again)


def test_one_that_cannot_be_extracted_raises_by_its_reason(extractor: lrs3_loader.Extractor, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"nowhere\.mp4: No such file"):
        extractor(tmp_path / "nowhere.mp4")
    write_media(tmp_path / "grey.mp4", num_frames=20, sound=noise(0.8, 16_000))
    with pytest.raises(NoFaceError) as caught:
        extractor(str(tmp_path / "grey.mp4"))
    assert isinstance(caught.value, lrs3_loader.ClipError)
    assert caught.value.reason == "no_face"
    with pytest.raises(ValueError, match=r"s3://bucket/a\.mp4 is a URL: copy the file"):
        extractor("s3://bucket/a.mp4")


def test_torch_keeps_the_settings_of_the_program(corpus: demo.DemoCorpus, extractor: lrs3_loader.Extractor) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.set_float32_matmul_precision("high")
        extractor(min(corpus.folder.glob("*/*/*.mp4")))
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (3, "high")
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")


def test_wrong_settings_are_refused_before_models_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no setting 'min_framez'; did you mean 'min_frames'"):
        lrs3_loader.Extractor(min_framez=3)
    with pytest.raises(ValueError, match="fit must be one of 'fast', 'best', 'geneface', 'photometric', got 'good'"):
        lrs3_loader.Extractor(fit="good")
    with pytest.raises(ValueError, match="batch_clips 1, got 0 and 0"):
        lrs3_loader.Extractor(batch_clips=0)
    with pytest.raises(lrs3_loader.RunError, match="--device gpu7 cannot be used here"):
        lrs3_loader.Extractor(device="gpu7")
    with pytest.raises(lrs3_loader.RunError, match="names a folder that does not exist"):
        lrs3_loader.Extractor(assets=tmp_path / "none")


def test_a_script_without_a_main_block_is_told_so(corpus: demo.DemoCorpus, assets: Path | None) -> None:
    import multiprocessing

    process = multiprocessing.current_process()
    process._inheriting = True  # type: ignore[attr-defined]  # as while a child imports the main script
    try:
        with pytest.raises(RuntimeError, match="under `if __name__ == '__main__':`"):
            lrs3_loader.Extractor(assets=assets, **DEMO)
    finally:
        del process._inheriting  # type: ignore[attr-defined]


def test_the_config_is_complete_and_the_settings_are_in_it(extractor: lrs3_loader.Extractor) -> None:
    assert extractor.config.face.face_model == "demo"
    assert extractor.config.landmarks.frame_batch == resolve(RunConfig(), "cpu").landmarks.frame_batch
    assert extractor.face_model.num_exp == 14
