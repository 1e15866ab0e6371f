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
from lrs3_loader.config import CorpusConfig, RegressionConfig, RunConfig, demo_defaults, resolve
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.extract.extractor import Extractor
from lrs3_loader.extract.models import Models
from lrs3_loader.types import ClipFeatures, DecodedChunk
from support.factory import make_clip, make_reject

NUM_COMPANIES = 4


def wavy_pitch(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    return np.abs(waveform[: 320 * num_rows]).reshape(num_rows, 320).mean(1).astype(np.float32), num_rows


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> list[DecodedChunk]:
    """Short clips of two people, one chunk each."""
    where = tmp_path_factory.mktemp("corpus") / "demo"
    corpus = demo.make_demo_corpus(where, num_speakers=2, clips_per_speaker=2, seconds=(0.8, 1.1))
    dataset = ClipDataset(corpus.folder, RunConfig().decode, wavy_pitch)
    found = [dataset[ChunkRequest(clip, 0)] for clip in scan_corpus(CorpusConfig(corpus=corpus.folder))]
    decoded = [chunk for chunk in found if isinstance(chunk, DecodedChunk)]
    assert len(decoded) == len(found) >= 4
    assert len({chunk.num_frames for chunk in decoded}) > 1
    return decoded


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_clip_has_the_same_fields_in_any_company(
    chunks: list[DecodedChunk], assets: Path | None, tmp_path: Path, device: str
) -> None:
    config = demo_defaults(RunConfig())
    config = dataclasses.replace(
        config,
        landmarks=dataclasses.replace(config.landmarks, frame_batch=8),
        speech=dataclasses.replace(config.speech, dtype="float32", store="float32"),
        regression=RegressionConfig(checkpoint=make_deep3d(tmp_path), batch=4, dtype="float32"),
    )
    config = resolve(config, device)
    where = torch.device(device)
    extractor = Extractor(config, Models.load(config, Assets(assets), where), where)

    def extract(company: list[int], with_reject: bool) -> dict[str, ClipFeatures]:
        items = [*[chunks[number] for number in company], *[make_reject(make_clip())] * with_reject]
        results = extractor.extract(items, {}, lambda **counts: None)
        return {result.clip.key: result for result in results if isinstance(result, ClipFeatures)}

    alone = {}
    for number in range(len(chunks)):
        alone |= extract([number], with_reject=False)
    assert len(alone) == len(chunks)
    random = np.random.default_rng(0)
    for _ in range(NUM_COMPANIES):
        company = random.permutation(len(chunks))[: random.integers(2, len(chunks) + 1)].tolist()
        for key, features in extract(company, with_reject=bool(random.integers(2))).items():
            expected = alone[key]
            assert features.arrays.keys() == expected.arrays.keys()
            assert {"lm68", "coeff", "hubert", "mel", "f0", "id", "exp", "pose", "idexp_lm3d"} <= features.arrays.keys()
            for name, value in features.arrays.items():
                np.testing.assert_allclose(
                    value.astype(np.float64), expected.arrays[name], rtol=0, atol=1e-4, err_msg=f"{name} of {key}"
                )
            rounded = pytest.approx(expected.meta["quality"], rel=2e-3, abs=2e-4)  # by one unit of the last digit kept
            assert features.meta["quality"] == rounded
