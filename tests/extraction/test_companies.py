"""Every field of a clip, extracted alone and in the company of others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.deep3d_files import make_deep3d
from lrs3_loader import demo
from lrs3_loader.assets.locate import Assets
from lrs3_loader.config import CorpusConfig, QualityConfig, RegressionConfig, RunConfig, demo_defaults, resolve
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.models import Models
from lrs3_loader.face.deep3d.regressor import NUM_COEFFICIENTS, Deep3DNetwork
from lrs3_loader.quality.figures import FIGURES, figure_numbers
from lrs3_loader.types import ClipFeatures, DecodedChunk, Reject
from support.factory import make_clip, make_reject

NUM_COMPANIES = 7


def wavy_pitch(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    return np.abs(waveform[: 320 * num_rows]).reshape(num_rows, 320).mean(1).astype(np.float32), num_rows


def shorten(network: Deep3DNetwork) -> None:
    """Leave the first of 16 blocks: ``tests/face/test_regress.py`` has neighbours of frames in the whole network."""
    network.blocks = network.blocks[:1]
    torch.manual_seed(0)
    network.head = torch.nn.Linear(256, NUM_COEFFICIENTS).requires_grad_(False).to(network.head.weight.device)


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> list[DecodedChunk]:
    """Short clips of two people, one chunk each."""
    where = tmp_path_factory.mktemp("corpus") / "demo"
    corpus = demo.make_demo_corpus(where, num_speakers=2, clips_per_speaker=2, seconds=(0.8, 1.0))
    dataset = ClipDataset(corpus.folder, RunConfig().decode, wavy_pitch)
    found = [dataset[ChunkRequest(clip, 0)] for clip in scan_corpus(CorpusConfig(corpus=corpus.folder))]
    decoded = [chunk for chunk in found if isinstance(chunk, DecodedChunk)]
    assert len(decoded) == len(found) >= 4
    assert len({chunk.num_frames for chunk in decoded}) > 1
    return decoded


def joined(first: DecodedChunk, second: DecodedChunk) -> DecodedChunk:
    """A clip that cuts from one person to another."""
    frames, heads = torch.cat([first.frames, second.frames]), (first.head, second.head)
    assert heads[0] is not None
    assert heads[1] is not None
    head = dataclasses.replace(
        heads[0],
        waveform=torch.cat([head.waveform for head in heads if head]),
        f0_hz=torch.cat([head.f0_hz for head in heads if head]),
    )
    return DecodedChunk(first.clip, len(frames), 0, frames, head)


def test_two_people_cut_together_show_and_can_be_rejected(chunks: list[DecodedChunk], assets: Path | None) -> None:
    first, second = chunks[0], next(chunk for chunk in chunks if chunk.clip.speaker != chunks[0].clip.speaker)
    both = joined(first, second)
    found = {}
    for most in (None, 0):
        config = resolve(
            dataclasses.replace(demo_defaults(RunConfig()), quality=QualityConfig(max_scene_cuts=most)), "cpu"
        )
        models = Models.load(config, Assets(assets), torch.device("cpu"))
        extractor = ShardExtractor(config, models, torch.device("cpu"))
        found[most] = list(extractor.extract([first, second, both], {}, lambda **counts: None))
    alone, other, two = (result.meta["quality"] for result in found[None] if isinstance(result, ClipFeatures))
    assert alone["num_scene_cuts"] == other["num_scene_cuts"] == 0
    assert [frame for frame, _ in two["scene_cuts"]] == [first.num_frames]
    assert two["identity_change"] > 1.5 * max(alone["identity_change"], other["identity_change"])
    always = {name for name, figure in FIGURES.items() if not name.startswith(("photometric", "speaking"))}
    assert always - set(two) <= {"mouth_audio_correlation", "mouth_audio_lag", "audio_snr_db"}
    kept, also_kept, reject = found[0]
    assert isinstance(kept, ClipFeatures)
    assert isinstance(also_kept, ClipFeatures)
    assert isinstance(reject, Reject)
    assert reject.reason == "scene_cut"
    assert f"at frame {first.num_frames} (" in reject.message


def test_levels_hold_what_they_say(chunks: list[DecodedChunk], assets: Path | None) -> None:
    found = {}
    for level in ("none", "basic"):
        config = resolve(dataclasses.replace(demo_defaults(RunConfig()), quality=QualityConfig(level=level)), "cpu")
        models = Models.load(config, Assets(assets), torch.device("cpu"))
        extractor = ShardExtractor(config, models, torch.device("cpu"))
        (result,) = extractor.extract(chunks[:1], {}, lambda **counts: None)
        assert isinstance(result, ClipFeatures)
        found[level] = {FIGURES[name].level for name in result.meta["quality"]}
    assert found == {"none": {"none"}, "basic": {"none", "basic"}}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_clip_has_the_same_fields_in_any_company(
    chunks: list[DecodedChunk], assets: Path | None, tmp_path: Path, device: str
) -> None:
    config = demo_defaults(RunConfig())
    config = dataclasses.replace(
        config,
        landmarks=dataclasses.replace(config.landmarks, frame_batch=8),
        speech=dataclasses.replace(config.speech, dtype="float32", store="float32", batch_seconds=4.0),
        regression=RegressionConfig(checkpoint=make_deep3d(tmp_path), batch=4, dtype="float32"),
    )
    config = resolve(config, device)
    where = torch.device(device)
    models = Models.load(config, Assets(assets), where)
    assert models.regressor is not None
    shorten(models.regressor.network)
    extractor = ShardExtractor(config, models, where)
    chunks = chunks if device == "cpu" else chunks[:2]

    def extract(company: list[int], with_reject: bool) -> dict[str, ClipFeatures]:
        items = [*[chunks[number] for number in company], *[make_reject(make_clip())] * with_reject]
        results = extractor.extract(items, {}, lambda **counts: None)
        return {result.clip.key: result for result in results if isinstance(result, ClipFeatures)}

    alone = {}
    for number in range(len(chunks)):
        alone |= extract([number], with_reject=False)
    assert len(alone) == len(chunks)
    random = np.random.default_rng(0)
    for _ in range(NUM_COMPANIES if device == "cpu" else 1):
        company = random.permutation(len(chunks))[: random.integers(2, len(chunks) + 1)].tolist()
        for key, features in extract(company, with_reject=bool(random.integers(2))).items():
            expected = alone[key]
            assert features.arrays.keys() == expected.arrays.keys()
            assert {"lm68", "coeff", "hubert", "mel", "f0", "id", "exp", "pose", "idexp_lm3d"} <= features.arrays.keys()
            for name, value in features.arrays.items():
                np.testing.assert_allclose(
                    value.astype(np.float64), expected.arrays[name], rtol=0, atol=1e-4, err_msg=f"{name} of {key}"
                )
            rounded = pytest.approx(figure_numbers(expected.meta), rel=2e-3, abs=1e-3)
            assert figure_numbers(features.meta) == rounded
            assert features.meta["quality"]["scene_cuts"] == expected.meta["quality"]["scene_cuts"]
