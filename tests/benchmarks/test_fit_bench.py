"""The fitting benchmark measures what it says, and the fitter reaches what is promised of it."""

from __future__ import annotations

import dataclasses
import math
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import coefficients, fit, fit_adam, fit_report
from benchmarks.fit_clips import Measured, read_clips
from benchmarks.fit_truth import bfm_shaped_model, expression_error, rotation_error, speaking_clip
from golden.landmark_codec import read_golden
from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import CorpusConfig, FaceConfig, RunConfig, demo_defaults, resolve
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.demo import demo_head
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.models import Models
from lrs3_loader.face.fit.fitter import FitConfig, FitResult, LandmarkFitter
from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.face.geometry.topology import to_ibug68
from lrs3_loader.face.model.correspondence import with_dense
from lrs3_loader.face.model.ict import convert_ict
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.types import ClipFeatures
from support.paths import TESTS

SIZES = {
    "glasses_512x480_30fps": (480, 512),
    "may_512_25fps_48k_stereo": (512, 512),
    "silent_480_30fps_44k": (480, 480),
    "smallface_1280x720_30fps": (720, 1280),
}
NUM_FRAMES = 30


@pytest.fixture(scope="module")
def ict(shared_assets: Path) -> FaceModel:
    return with_dense(convert_ict(shared_assets / "ict_facekit.tar.xz"), shared_assets / "face_landmarker.task")


@pytest.fixture(scope="module")
def clips() -> list[Measured]:
    """MediaPipe's landmarks of real clips."""
    found = []
    for name, size in SIZES.items():
        golden = read_golden(TESTS / "golden" / f"landmarks_task_{name}.xz")
        dense = torch.tensor(golden.xy[:NUM_FRAMES], dtype=torch.float32)
        valid, scores = torch.ones(NUM_FRAMES, dtype=torch.bool), torch.tensor(golden.blendshapes[:NUM_FRAMES]).float()
        found.append(Measured(name, to_ibug68(dense), valid, *size, dense=dense, blendshapes=scores))
    return found


def speaking(model: FaceModel, seed: int, num_frames: int) -> Measured:
    clip = speaking_clip(model, seed, num_frames).clip
    return Measured(f"synthetic {seed}", clip.lm68, clip.valid, clip.height, clip.width)


def slow_objective(model: FaceModel, landmarks: np.ndarray, fitted: fit_adam.Fitted) -> float:
    """GeneFace++'s objective, one number at a time."""
    weights = np.array([1.0] * 36 + [3.0] * 12 + [5.0] * 20)
    weights[[37, 38, 43, 44]] = 20
    weights[[0, 1, 2, 3, 13, 14, 15, 16]] = 0
    points = project(model.landmarks(fitted.id, fitted.exp), fitted.pose, Camera.for_frame(224, 224)).numpy()
    num_frames, total = len(landmarks), 0.0
    for t in range(num_frames):
        for k in range(68):
            for axis in range(2):
                total += weights[k] * (points[t, k, axis] - landmarks[t, k, axis]) ** 2 / (num_frames * 68 * 2)
    people = (fitted.id / model.id_sigma).numpy()
    speech = (fitted.exp / model.exp_sigma).numpy()
    total += 0.2 * np.mean(people**2) + 0.6 * np.mean(speech**2)
    for weight, values in ((1.0, speech), (0.3, fitted.pose[:, :3].numpy()), (0.3, fitted.pose[:, 3:].numpy())):
        for t in range(num_frames):
            bend = values[t] - 0.5 * values[max(t - 1, 0)] - 0.5 * values[min(t + 1, num_frames - 1)]
            total += weight * np.mean(bend**2) / num_frames
    return float(total)


def test_coefficients_mean_their_names(ict: FaceModel, clips: list[Measured]) -> None:
    """Opposites exclude each other, coefficients follow their scores, and the mouth still fits."""
    found = {
        name: coefficients.judge(ict, clips, LandmarkFitter(ict, config)(inputs))
        for name, (config, inputs) in coefficients.ways(clips).items()
    }
    ours, plain = found["with scores"], found["without scores"]
    assert all(share < 0.05 for share, _ in ours.both_on.values())
    for name, least in (("jawOpen", 0.85), ("mouthPucker", 0.6), ("mouthSmile", 0.6), ("eyeBlink", 0.6)):
        assert ours.of(name).correlation > least, name
        assert ours.of(name).correlation >= plain.of(name).correlation, name
    assert ours.relative_mouth_error < 0.0053  # measured: 0.0039
    assert ours.id_norm < 15  # measured: 11; with the release's own landmark vertices 25


def test_neutral_faces_have_hardly_any_expression(ict: FaceModel) -> None:
    """In standard deviations over speech; the truth of speaking clips has 1."""
    for model in (ict, bfm_shaped_model()):
        _, mean = coefficients.neutral_expression(model, FitConfig.fast())
        assert mean < 0.3  # measured: 0.2 at most


def test_the_objective_matches_a_slow_one() -> None:
    model = demo_head()
    truth = speaking_clip(model, 0, 6)
    fitted = fit_adam.Fitted(truth.id, truth.exp, truth.pose)
    expected = slow_objective(model, truth.clip.lm68.numpy(), fitted)
    assert fit_adam.objective(model, truth.clip.lm68, fitted) == pytest.approx(expected, rel=1e-4)


def test_adam_is_a_fair_rival() -> None:
    """On an easy clip the reference gets to within a percent of the minimum; its lost stage changes nothing."""
    model = dataclasses.replace(demo_head(), exp_bounds=None)
    clip = speaking(model, 1, 12)
    config = dataclasses.replace(
        FitConfig.geneface(model),
        num_keyframes=1024,
        max_iterations=30,
        num_cg=8,
        hessian_reuse_tol=0.01,
        tolerance=1e-7,
    )
    (best,) = LandmarkFitter(model, config)([clip.fit_input()])
    least = fit_adam.objective(model, clip.lm68, fit_adam.Fitted(best.id, best.exp, best.pose))
    found = fit_adam.adam_fit(model, clip.lm68)
    assert fit_adam.objective(model, clip.lm68, found) < 1.03 * least
    again = fit_adam.adam_fit(model, clip.lm68, fine_stage=True)
    assert torch.equal(found.exp, again.exp)
    assert torch.equal(found.pose, again.pose)


def test_ours_ends_as_low_as_adam_and_sooner_on_real_clips(ict: FaceModel, clips: list[Measured]) -> None:
    found = fit.compare_with_adam(ict, clips[1:3], num_runs=1)
    for clip in found.clips:
        assert (
            clip.gain > -0.02
        )  # measured: -0.004; with the release's landmark vertices Adam ended 0.16 to 0.18 higher
    assert found.speedup > 10  # measured on an idle machine: over 25; clips are short here and machines busy
    assert found.num_frames == 2 * NUM_FRAMES


def test_small_faces_hardly_turn(ict: FaceModel, clips: list[Measured]) -> None:
    """Of the frame's size down to a sixth, within 3 degrees of the answer for the clip as it is."""
    for row in fit.small_faces(ict, clips, with_adam=False):
        assert len(row.default) >= 3
        assert max(row.default) < 3.3  # measured: 3.0 at most
        assert row.adam == []


def test_adam_is_lost_on_small_faces_where_ours_is_not() -> None:
    """Synthetic, under one and the same objective."""
    model = demo_head()
    *_, smallest = fit.small_faces(model, [speaking(model, 2, 12)])
    assert max(smallest.same_objective) < 3.0
    assert max(smallest.default) < 3.0
    assert max(smallest.adam) > 5.0


def test_dense_points_lower_the_error_around_the_mouth_held_out(ict: FaceModel, clips: list[Measured]) -> None:
    found = fit.held_out(ict, clips)
    assert statistics.mean(found.lips_dense) < 1.02 * statistics.mean(found.lips_68)  # measured: 0.99
    assert statistics.mean(found.lips_68) < 0.75  # measured: 0.6; 0.9 with the release's own landmark vertices
    assert statistics.mean(found.around_dense) < 0.92 * statistics.mean(found.around_68)
    for dense, sparse in zip(found.around_dense, found.around_68, strict=True):
        assert dense < sparse


def test_held_out_points_are_not_seen(ict: FaceModel, clips: list[Measured]) -> None:
    """Wherever they lie, the fit stays the same; its error at them does not."""
    points = fit.LIP_FOLDS[0]
    clip = clips[1]
    assert clip.dense is not None
    moved = clip.dense.clone()
    moved[:, list(points)] += 30.0
    other = dataclasses.replace(clip, dense=moved)
    fitter = LandmarkFitter(ict, FitConfig(dense=True))
    first, second = (fitter([fit._hidden(each, points)])[0] for each in (clip, other))
    assert torch.equal(first.exp, second.exp)
    assert fit._error_at(ict, other, second, points) > 5 * fit._error_at(ict, clip, first, points)


def assert_recovered(found: fit.Recovery) -> None:
    assert found.expression < 0.25
    assert found.worst_expression < 0.30
    assert found.rotation_degrees < 0.7
    assert found.num_unconverged == 0


def test_truth_is_recovered_with_a_model_of_bfms_shape() -> None:
    model = bfm_shaped_model()
    assert (model.num_id, model.num_exp, model.exp_bounds) == (80, 64, None)
    modes = model.exp_basis.flatten(0, 1)
    gram = modes.T @ modes
    assert (gram - torch.diag(gram.diagonal())).abs().max() < 1e-4 * gram.max()  # principal components
    truths = fit.make_truths(model, 12, 60)
    fast = fit.recover(model, FitConfig.fast(), truths)
    assert_recovered(fast)
    assert fast.expression < fit.recover(model, FitConfig.geneface(model), truths).expression


def test_truth_is_recovered_with_ict(ict: FaceModel) -> None:
    truths = fit.make_truths(ict, 6, 60)
    fast = fit.recover(ict, FitConfig.fast(), truths)
    assert_recovered(fast)
    assert fast.expression < 0.9 * fit.recover(ict, FitConfig.geneface(ict), truths).expression


def test_errors_are_those_of_known_changes() -> None:
    model = demo_head()
    exp = torch.rand(20, model.num_exp, generator=torch.Generator().manual_seed(0))
    assert expression_error(model, exp, exp + 0.3) < 1e-3  # a constant is each clip's mean
    assert expression_error(model, exp, exp.mean(0).expand(20, -1)) == pytest.approx(1.0)
    assert expression_error(model, exp, 1.25 * exp) == pytest.approx(0.25, rel=1e-3)
    pose = torch.zeros(1, 6)
    turned = torch.tensor([[0.0, math.radians(2.0), 0.0, 1.0, 1.0, 1.0]])
    assert float(rotation_error(pose, turned)) == pytest.approx(2.0, rel=1e-3)


def test_a_clip_in_a_square_keeps_its_middle_and_shrinks() -> None:
    landmarks = torch.full((1, 68, 2), 0.0)
    landmarks[..., 0], landmarks[..., 1] = 319.5, 179.5
    landmarks[:, 0, 0] += 64
    square = Measured("x", landmarks, torch.ones(1, dtype=torch.bool), 360, 640).in_square(224, 0.5)
    assert torch.allclose(square.lm68[0, 1], torch.tensor([111.5, 111.5]))
    assert float(square.lm68[0, 0, 0]) == pytest.approx(111.5 + 64 * 224 / 640 / 2)


def test_real_clips_are_measured_as_a_run_does(shared_data: Path, shared_assets: Path, tmp_path: Path) -> None:
    shutil.copy(shared_data / "lrs3_mini" / "trainval" / "MayAddr0001" / "50004.mp4", tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (clip,) = read_clips(tmp_path, Assets(shared_assets))
    assert clip.dense is not None
    assert clip.dense.shape == (len(clip.lm68), 478, 2)
    assert clip.valid.all()
    assert 0.3 < clip.face_share < 0.7
    (result,) = LandmarkFitter(demo_head())([clip.fit_input()])
    assert isinstance(result, FitResult)
    assert result.relative_error < 0.05


def test_the_report_works_without_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_report, "_SYNTHETIC_FRAMES", (6,))
    monkeypatch.setattr(fit, "SMALL_SHARES", (1 / 6,))
    lines = list(fit_report.run_benchmark(None, "demo", Assets(store=tmp_path), num_clips=1, num_frames=8, num_runs=1))
    assert lines[0].startswith("1 clips, face model demo")
    text = "\n".join(lines)
    assert "| synthetic 0 | 6 |" in text
    assert "| 1/6 | 1 |" in text
    assert "dense" not in text
    rows = [line for line in lines if line.startswith(("| demo,", "| bfm-shaped,"))]
    assert len(rows) == 12


def test_a_best_fit_gets_its_dense_points(shared_data: Path, shared_assets: Path, tmp_path: Path) -> None:
    """Through a whole extraction: what is stored is a fit of the dense points too."""
    model = with_dense(demo_head(), shared_assets / "face_landmarker.task")
    model.save(tmp_path / "model.npz")
    face = FaceConfig(face_model=str(tmp_path / "model.npz"), fit="best")
    config = resolve(dataclasses.replace(demo_defaults(RunConfig()), face=face), "cpu")
    device = torch.device("cpu")
    models = Models.load(config, Assets(shared_assets), device)
    assert models.fitter.config.dense
    folder = shared_data / "lrs3_mini" / "trainval" / "MayAddr0001"
    (clip,) = scan_corpus(CorpusConfig(corpus=folder, layout="folder"))
    chunk = ClipDataset(folder, config.decode, f0_praat)[ChunkRequest(clip, 0)]
    (features,) = ShardExtractor(config, models, device).extract([chunk], {}, lambda **_: None)
    assert isinstance(features, ClipFeatures)
    (measured,) = read_clips(folder, Assets(shared_assets))
    (expected,) = models.fitter([measured.fit_input()])
    assert np.abs(features.arrays["exp"] - expected.exp.numpy()).max() < 1e-3
    (sparse,) = LandmarkFitter(model, FitConfig.best())([measured.fit_input()])
    assert np.abs(features.arrays["exp"] - sparse.exp.numpy()).max() > 1e-2
