from __future__ import annotations

import dataclasses
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.deep3d_files import make_weights, write_checkpoint, write_standard_face
from benchmarks.stand_in import Record
from lrs3_loader import demo
from lrs3_loader.assets.locate import STANDARD_FACE, Assets
from lrs3_loader.config import (
    CorpusConfig,
    DecodeConfig,
    FaceConfig,
    RegressionConfig,
    RunConfig,
    demo_defaults,
    resolve,
)
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.decode.frames import read_frames
from lrs3_loader.decode.video import probe_video
from lrs3_loader.errors import NoFaceError, RunError
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.models import Models
from lrs3_loader.face.deep3d import regressor as regress
from lrs3_loader.face.geometry.topology import to_ibug68
from lrs3_loader.face.landmarks.landmarker import FaceLandmarker, load_landmarker_files
from lrs3_loader.face.landmarks.tracks import FaceTrack
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.kernels.trust import choose_kernels
from lrs3_loader.types import ClipFeatures, DecodedChunk
from support import deep3d_reference as reference
from support.face_factory import small_model, speaking_clip

PARITY = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``epoch_20.pth`` with seeded weights and a standard face, laid out as in the original."""
    folder = tmp_path_factory.mktemp("deep3d")
    write_checkpoint(folder / "epoch_20.pth", make_weights())
    (folder / "BFM").mkdir()
    write_standard_face(folder / "BFM" / STANDARD_FACE, small_model().landmark_mean.numpy())
    return folder


@pytest.fixture(scope="module")
def files(folder: Path) -> regress.Deep3DFiles:
    return regress.load_deep3d_files(folder / "epoch_20.pth", folder / "BFM" / STANDARD_FACE)


@pytest.fixture(scope="module")
def regressor(files: regress.Deep3DFiles) -> regress.Deep3DRegressor:
    return regress.Deep3DRegressor(files, batch_size=4)


def synthetic_span(seed: int, num_frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blotches that differ from frame to frame, and the landmarks of a face that moves."""
    random = np.random.default_rng(seed)
    blotches = random.integers(0, 256, (num_frames, 9, 9, 3), dtype=np.uint8)
    frames = [np.asarray(Image.fromarray(b).resize((width, height), Image.Resampling.BICUBIC)) for b in blotches]
    clip = speaking_clip(small_model(), seed, num_frames, (height, width), depth=14.0)[0]
    return torch.from_numpy(np.stack(frames)), clip.lm68


def expected(files: regress.Deep3DFiles, frames: torch.Tensor, landmarks: torch.Tensor) -> np.ndarray:
    pairs = zip(frames.numpy(), landmarks.numpy(), strict=True)
    standard = files.standard.numpy()
    return np.stack([reference.reference_coefficients(files.weights, standard, *pair) for pair in pairs])


def test_coefficients_equal_the_original_steps(files: regress.Deep3DFiles, regressor: regress.Deep3DRegressor) -> None:
    spans = [synthetic_span(0, 3, 224, 224), synthetic_span(1, 2, 300, 480)]
    found = regressor(spans)
    for values, span in zip(found, spans, strict=True):
        assert np.abs(values.numpy() - expected(files, *span)).max() < PARITY
    values = torch.cat(found)
    assert values.std(1).min() > 0.1
    assert values.std(0).mean() > 0.01  # frames differ by far more than the tolerance


def test_coefficients_equal_the_original_steps_on_real_clips(
    files: regress.Deep3DFiles, regressor: regress.Deep3DRegressor, shared_data: Path, shared_assets: Path
) -> None:
    landmarker = FaceLandmarker(load_landmarker_files(shared_assets / "face_landmarker.task"), batch_size=2)
    paths = sorted((shared_data / "clips").glob("*.mp4")) + sorted((shared_data / "lrs3_mini").rglob("*.mp4"))[:2]
    assert len(paths) >= 4
    for path in paths:
        track = probe_video(path, path.name, DecodeConfig())
        frames = read_frames(track, track.frame_indices_25fps()[[0, 20]])
        (found,) = landmarker([(frames, FaceTrack())])
        span = (frames, to_ibug68(found.points)[..., :2])
        assert np.abs(regressor([span])[0].numpy() - expected(files, *span)).max() < PARITY


def test_neighbours_in_a_batch_do_not_matter(regressor: regress.Deep3DRegressor) -> None:
    frames, landmarks = synthetic_span(2, 6, 224, 224)
    together = regressor([(frames, landmarks)])[0]
    apart = regressor([(frames[:1], landmarks[:1]), (frames[1:], landmarks[1:])])
    assert torch.equal(torch.cat(apart), together)
    assert torch.equal(regressor([(frames[5:], landmarks[5:])])[0], together[5:])


def test_frames_without_a_face_get_nan_and_leave_the_others_alone(regressor: regress.Deep3DRegressor) -> None:
    frames, landmarks = synthetic_span(3, 3, 224, 224)
    whole = regressor([(frames, landmarks)])[0]
    gap = landmarks.clone()
    gap[1] = torch.nan
    values = regressor([(frames, gap)])[0]
    assert values[1].isnan().all()
    assert torch.equal(values[[0, 2]], whole[[0, 2]])
    assert regressor([(frames, gap * torch.nan)])[0].isnan().all()
    assert regressor([]) == []


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.03), (torch.float16, 0.005)])
def test_fast_arithmetic_stays_close(files: regress.Deep3DFiles, dtype: torch.dtype, bound: float) -> None:
    span = synthetic_span(4, 1, 224, 224)
    exact = regress.Deep3DRegressor(files, batch_size=1)([span])[0]
    fast = regress.Deep3DRegressor(files, batch_size=1, dtype=dtype)([span])[0]
    assert fast.dtype == torch.float32
    assert 0 < float((fast - exact).abs().mean()) < bound


def test_wrong_arguments_are_named(files: regress.Deep3DFiles, regressor: regress.Deep3DRegressor) -> None:
    with pytest.raises(ValueError, match=r"\[2, 68, 2\]"):
        regressor([(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 68, 2))])


def test_parts_cover_all_coefficients() -> None:
    places = [i for part in regress.COEFFICIENTS.values() for i in range(part.start, part.stop)]
    assert places == list(range(regress.NUM_COEFFICIENTS))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was-here"),))


@pytest.mark.parametrize("kind", ["empty", "text", "other", "list", "tensor", "pickle"])
def test_another_file_is_no_checkpoint(
    files: regress.Deep3DFiles, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    if kind == "other":
        torch.save({"state_dict": {}}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "tensor":
        torch.save(torch.zeros(2, 2), path)
    else:
        path.write_bytes({"empty": b"", "text": b"<html>404</html>", "pickle": pickle.dumps(Evil(), protocol=2)}[kind])
    with pytest.raises(RunError, match=r"x\.pth is not a checkpoint of Deep3DFaceRecon_pytorch"):
        regress.load_deep3d_files(path, folder / "BFM" / STANDARD_FACE)
    assert not (tmp_path / "was-here").exists()


def changed(weights: Mapping[str, torch.Tensor], **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in {**weights, **named}.items() if value is not None}


def test_a_checkpoint_of_another_network_is_refused(files: regress.Deep3DFiles) -> None:
    with pytest.raises(ValueError, match=r"no ResNet-50: .*conv1\.weight"):
        regress.Deep3DNetwork(changed(files.weights, backbone__conv1__weight=None))
    with pytest.raises(ValueError, match=r"no ResNet-50: .*layer5\.weight"):
        regress.Deep3DNetwork(changed(files.weights, backbone__layer5__weight=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"head 4 .* 27 values"):
        regress.Deep3DNetwork(changed(files.weights, final_layers__4__bias=torch.zeros(9)))


def test_gaps_are_filled_linearly() -> None:
    values = torch.arange(12.0)[:, None].repeat(1, regress.NUM_COEFFICIENTS)
    gaps = values.clone()
    gaps[[3, 4, 11]] = torch.nan
    filled = regress.fill_coefficient_gaps(gaps, min_valid_fraction=0.5, max_gap_frames=2)
    assert torch.allclose(filled[:11], values[:11])
    assert torch.equal(filled[11], values[10])
    with pytest.raises(NoFaceError):
        regress.fill_coefficient_gaps(gaps, min_valid_fraction=0.5, max_gap_frames=1)
    with pytest.raises(NoFaceError):
        regress.fill_coefficient_gaps(gaps, min_valid_fraction=0.9, max_gap_frames=9)


def model_of_80_and_64() -> FaceModel:
    """The 68 points of the small model and one vertex more, random modes."""
    small = small_model()
    generator = torch.Generator().manual_seed(0)
    return dataclasses.replace(
        small,
        mean=torch.cat([small.mean, small.mean[-1:]]),
        id_basis=0.05 * torch.randn(69, 3, 80, generator=generator),
        exp_basis=0.05 * torch.randn(69, 3, 64, generator=generator),
        id_sigma=torch.ones(80),
        exp_sigma=torch.ones(64),
        id_names=tuple(f"id{i}" for i in range(80)),
        exp_names=tuple(f"exp{i}" for i in range(64)),
        exp_bounds=None,
    )


@pytest.mark.parametrize("off_by_one", [False, True])
def test_idexp_is_what_geneface_computes(off_by_one: bool) -> None:
    model = model_of_80_and_64()
    regress.check_face_model(model)
    coefficients = torch.randn(2, 257, generator=torch.Generator().manual_seed(1))
    values = regress.idexp_lm3d(model, coefficients, off_by_one=off_by_one)
    one_based = model.landmark_verts + 1
    for t, landmark in ((0, 0), (1, 67), (1, 30)):
        vertex = int(one_based[landmark]) - (0 if off_by_one else 1)
        shape = model.id_basis[vertex] @ coefficients[t, :80] + model.exp_basis[vertex] @ coefficients[t, 80:144]
        assert torch.allclose(values[t, landmark], 10 * shape, atol=1e-5)
    if not off_by_one:
        assert torch.allclose(values, model.idexp_lm3d(coefficients[:, :80], coefficients[:, 80:144]), atol=1e-5)


def test_other_face_models_are_refused() -> None:
    with pytest.raises(ValueError, match="small has 8 and 6"):
        regress.check_face_model(small_model())


def test_files_are_found_and_missing_ones_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRS3_LOADER_CACHE", str(tmp_path / "cache"))
    both = (folder / "epoch_20.pth", folder / "BFM" / STANDARD_FACE)
    assert Assets().deep3d(folder / "epoch_20.pth") == both
    assert Assets(folder).deep3d(Path("epoch_20.pth")) == both
    alone = tmp_path / "epoch_20.pth"
    alone.touch()
    with pytest.raises(RunError, match=f"{STANDARD_FACE}, .*curl -L -o {tmp_path}/{STANDARD_FACE} https://"):
        Assets().deep3d(alone)
    assert Assets(folder).deep3d(alone) == (alone, both[1])
    shutil.copy(both[1], tmp_path)
    assert Assets(folder).deep3d(alone) == (alone, tmp_path / STANDARD_FACE)
    with pytest.raises(RunError, match=r"no Deep3D checkpoint nowhere\.pth"):
        Assets().deep3d(Path("nowhere.pth"))


def test_config_is_checked() -> None:
    with pytest.raises(ValueError, match="idexp-from geneface needs --deep3d"):
        RegressionConfig(idexp="geneface")
    with pytest.raises(ValueError, match="batch"):
        RegressionConfig(batch=0)


# Inside an extraction


def flat_pitch(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    return np.zeros(num_rows, dtype=np.float32), num_rows


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoCorpus:
    where = tmp_path_factory.mktemp("corpus") / "demo"
    return demo.make_demo_corpus(where, num_speakers=1, clips_per_speaker=1, seconds=(0.8, 0.8))


def run_config(folder: Path, face_model: str = "demo", **regression: Any) -> RunConfig:
    config = dataclasses.replace(
        demo_defaults(RunConfig()),
        face=FaceConfig(face_model=face_model),
        regression=RegressionConfig(checkpoint=folder / "epoch_20.pth", **regression),
    )
    return resolve(config, "cpu")


def test_extraction_writes_the_coefficients_of_its_own_landmarks(
    corpus: demo.DemoCorpus, folder: Path, files: regress.Deep3DFiles, shared_assets: Path, tmp_path: Path
) -> None:
    model = model_of_80_and_64()
    model.save(tmp_path / "model.npz")
    config = run_config(folder, str(tmp_path / "model.npz"), idexp="geneface")
    device = torch.device("cpu")
    extractor = ShardExtractor(config, Models.load(config, Assets(shared_assets), device), device)
    (clip,) = scan_corpus(CorpusConfig(corpus=corpus.folder))
    chunk = ClipDataset(corpus.folder, config.decode, flat_pitch)[ChunkRequest(clip, 0)]
    timings: dict[str, float] = {}
    (features,) = extractor.extract([chunk], timings, lambda **_: None)
    assert isinstance(chunk, DecodedChunk)
    assert isinstance(features, ClipFeatures)
    coefficients, landmarks = features.arrays["coeff"], features.arrays["lm68"]
    assert coefficients.shape == (features.num_frames, 257)
    some = [0, features.num_frames - 1]
    want = expected(files, chunk.frames[some], torch.from_numpy(landmarks[some]))
    assert np.abs(coefficients[some] - want).max() < PARITY
    idexp = regress.idexp_lm3d(model, torch.from_numpy(coefficients), off_by_one=True)
    np.testing.assert_allclose(features.arrays["idexp_lm3d"], idexp.numpy(), atol=1e-5)
    assert timings["regression"] > 0
    assert extractor.models.record["regression"] == {
        "name": "epoch_20", "sha256": files.sha256, "standard_face_sha256": files.standard_sha256, "dtype": "float32"
    }  # fmt: skip
    assert features.meta["models"]["regression"] == "epoch_20"
    assert features.meta["conventions"]["idexp_lm3d"] == "geneface"
    assert "p=x@R.T+t" in features.meta["conventions"]["coeff"]


def test_idexp_from_the_regression_needs_a_basel_face(folder: Path, shared_assets: Path) -> None:
    with pytest.raises(RunError, match="Basel Face Model with 80 identity"):
        Models.load(run_config(folder, idexp="regression"), Assets(shared_assets), torch.device("cpu"))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_coefficients(files: regress.Deep3DFiles) -> None:
    spans = [synthetic_span(0, 3, 224, 224), synthetic_span(1, 2, 300, 480)]
    on_gpu = regress.Deep3DRegressor(files, "cuda", batch_size=4)([(frames.cuda(), lm.cuda()) for frames, lm in spans])
    for values, span in zip(on_gpu, spans, strict=True):
        assert values.is_cuda
        assert np.abs(values.cpu().numpy() - expected(files, *span)).max() < PARITY


@pytest.mark.gpu
def test_fast_arithmetic_stays_close_on_a_gpu(files: regress.Deep3DFiles) -> None:
    frames, landmarks = synthetic_span(4, 4, 224, 224)
    want = expected(files, frames, landmarks)
    for dtype, bound in ((torch.bfloat16, 0.03), (torch.float16, 0.005)):
        regressor = regress.Deep3DRegressor(files, "cuda", batch_size=4, dtype=dtype)
        values = regressor([(frames.cuda(), landmarks.cuda())])[0].cpu().numpy()
        assert np.abs(values - want).mean() < bound


@pytest.mark.parametrize(
    ("replacement", "reason"),
    [
        (lambda *_: torch.ones(2, 3) @ torch.ones(2, 3), "mat1 and mat2 shapes"),
        (lambda *arguments: 1.5 * torch.conv2d(*arguments), "of the deviation"),
    ],
    ids=["raises", "wrong"],
)
def test_joined_kernels_are_used_only_if_they_prove_equal(
    files: regress.Deep3DFiles,
    stand_in: Record,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    replacement: Any,
    reason: str,
) -> None:
    frames, landmarks = synthetic_span(4, 2, 224, 224)
    spans = [(frames.cuda(), landmarks.cuda())]
    regressor = regress.Deep3DRegressor(files, "cuda", batch_size=2, dtype=torch.float16)
    path = regressor.fast_path()
    assert path is not None
    assert choose_kernels("auto", [path], regressor.device) == "fast"
    stand_in.clear()
    expected = regressor(spans)[0].cpu()
    names = Counter(kernel.op for kernel in stand_in.kernels)
    assert (names["cudnn_convolution_relu"], names["cudnn_convolution_add_relu"]) == (33, 16)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", replacement)
    assert choose_kernels("auto", [path], regressor.device) == "plain"
    assert re.search(reason, caplog.text)
    assert (regressor(spans)[0].cpu() - expected).abs().mean() < 0.005


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_levels_are_divided_as_in_float32(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(levels.to(dtype).div_(255), levels.float().div(255).to(dtype))


def test_there_is_no_fast_path_in_float32(regressor: regress.Deep3DRegressor) -> None:
    assert regressor.fast_path() is None
