"""The face landmarker against MediaPipe's own results, and the independence of frames from their batch."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from golden.landmark_codec import Z_STRIDE, GoldenLandmarks, read_golden
from lrs3_loader.assets.locate import cache_folder
from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode import frames as decoded_frames
from lrs3_loader.decode import video
from lrs3_loader.errors import NoFaceError, RunError
from lrs3_loader.face.geometry.topology import (
    BLENDSHAPE_NAMES,
    BLENDSHAPE_POINTS,
    IBUG68,
    IBUG68_MIRROR,
    to_ibug68,
)
from lrs3_loader.face.landmarks.landmarker import (
    FaceLandmarker,
    FrameLandmarks,
    LandmarkerFiles,
    crop_matrix,
    fill_track_gaps,
    load_landmarker_files,
)
from lrs3_loader.face.landmarks.tracks import FaceTrack
from support.paths import TESTS

GOLDEN = TESTS / "golden"
BATCH = 32
SQUARE, GLASSES, SILENT, SMALL = (
    "may_512_25fps_48k_stereo",
    "glasses_512x480_30fps",
    "silent_480_30fps_44k",
    "smallface_1280x720_30fps",
)


@pytest.fixture(scope="module")
def files(shared_assets: Path) -> LandmarkerFiles:
    return load_landmarker_files(shared_assets / "face_landmarker.task")


@pytest.fixture(scope="module")
def landmarker(files: LandmarkerFiles) -> FaceLandmarker:
    return FaceLandmarker(files, batch_size=BATCH)


@pytest.fixture(scope="module")
def older_files() -> LandmarkerFiles:
    """The 468-point networks, where a former run or the user has put them."""
    places = [Path(place) for place in (os.environ.get("LRS3_LOADER_ASSETS"), cache_folder()) if place]
    for place in places:
        if (place / "face_landmark.tflite").exists():
            return load_landmarker_files(place)
    pytest.skip(f"face_landmark.tflite not found in {', '.join(map(str, places))}")


def read_frames(shared_data: Path, name: str, start: int = 0, stop: int | None = None, step: int = 1) -> Tensor:
    """Frames as they are in the file, which MediaPipe was given, too: the pixels of one are no squares."""
    track = video.probe_video(shared_data / "clips" / f"{name}.mp4", name, DecodeConfig())
    track = replace(track, pixel_aspect=Fraction(1))
    return decoded_frames.read_frames(track, np.arange(start, stop or len(track.pts), step))


def track_clip(landmarker: FaceLandmarker, frames: Tensor) -> FrameLandmarks:
    track = FaceTrack()
    return FrameLandmarks.cat([landmarker([(part, track)])[0] for part in frames.split(BATCH)])


def check_against(golden: GoldenLandmarks, found: FrameLandmarks) -> None:
    """x and y: 0.05 px mean and 0.3 px at most (0.0018 and 0.027 are reached)."""
    assert found.found.all()
    off = np.linalg.norm(found.points[..., :2].numpy() - golden.xy, axis=-1)
    assert off.shape[0] == len(golden.xy)
    assert off.mean(1).max() <= 0.05
    assert off.max() <= 0.3
    assert off.mean() <= 0.012  # of which storing in steps of 1/64 px makes about 0.006


def check_depth(golden: GoldenLandmarks, found: FrameLandmarks) -> None:
    """In square frames only: elsewhere MediaPipe stretches z (see ``FrameLandmarks.points``)."""
    off = np.abs(found.points[::Z_STRIDE, :, 2].numpy() - golden.z)
    assert off.mean() <= 0.05
    assert off.max() <= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", [SQUARE, GLASSES, SILENT, SMALL])
def test_every_frame_equals_mediapipe(shared_data: Path, landmarker: FaceLandmarker, name: str) -> None:
    golden = read_golden(GOLDEN / f"landmarks_task_{name}.xz")
    path = shared_data / "clips" / golden.about["clip"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == golden.about["clip_sha256"]
    frames = read_frames(shared_data, name)
    found = track_clip(landmarker, frames)
    check_against(golden, found)
    if frames.shape[1] == frames.shape[2]:
        check_depth(golden, found)
    assert found.blendshapes is not None
    off = np.abs(found.blendshapes.numpy() - golden.blendshapes)
    assert off.mean() <= 0.001
    assert off.max() <= 0.01


def test_the_older_network_equals_mediapipe(shared_data: Path, older_files: LandmarkerFiles) -> None:
    golden = read_golden(GOLDEN / f"landmarks_legacy_{SQUARE}.xz")
    landmarker = FaceLandmarker(older_files, batch_size=BATCH)
    assert (landmarker.size, landmarker.num_landmarks) == (192, 468)
    found = track_clip(landmarker, read_frames(shared_data, SQUARE, step=golden.about["stride"]))
    check_against(golden, found)
    check_depth(golden, found)
    assert found.blendshapes is None


def test_results_do_not_depend_on_the_batch(shared_data: Path, landmarker: FaceLandmarker) -> None:
    clips = [
        read_frames(shared_data, SQUARE, 0, 9),
        read_frames(shared_data, SMALL, 40, 47),
        read_frames(shared_data, SQUARE, 9, 20)[:, 37:-120, 63:-86].contiguous(),
    ]
    mixed = landmarker([(frames, FaceTrack()) for frames in clips])
    again = landmarker([(frames, FaceTrack()) for frames in clips])
    for frames, one, other in zip(clips, mixed, again, strict=True):
        (alone,) = landmarker([(frames, FaceTrack())])
        assert one.points.shape == (len(frames), 478, 3)
        assert alone.found.all()
        assert (one.points - alone.points).abs().max() <= 0.02
        assert (one.score - alone.score).abs().max() <= 1e-4
        for part in ("points", "score", "found", "blendshapes"):
            assert torch.equal(getattr(one, part), getattr(other, part))


def test_frames_do_not_depend_on_how_a_clip_is_cut(shared_data: Path, landmarker: FaceLandmarker) -> None:
    frames = read_frames(shared_data, SILENT, 0, 21)
    track = FaceTrack()
    spans = [(frames[:5], track), (read_frames(shared_data, SQUARE, 0, 3), FaceTrack()), (frames[5:13], track)]
    first, _, second = landmarker(spans)
    (third,) = landmarker([(frames[13:], track)])
    whole = track_clip(landmarker, frames)
    assert (FrameLandmarks.cat([first, second, third]).points - whole.points).abs().max() <= 0.02
    assert track.num_frames == 21


def test_frames_without_a_face(shared_data: Path, landmarker: FaceLandmarker) -> None:
    frames = read_frames(shared_data, SQUARE, 0, 5).clone()
    frames[1] = 0
    frames[3] = torch.from_numpy(np.random.default_rng(0).integers(0, 256, frames.shape[1:], dtype=np.uint8))
    (found,) = landmarker([(frames, FaceTrack())])
    assert found.found.tolist() == [True, False, True, False, True]
    assert found.blendshapes is not None
    for values in (found.points, found.blendshapes):
        assert torch.equal(values.isfinite().flatten(1).all(1), found.found)
        assert torch.equal(values.isnan().flatten(1).all(1), ~found.found)
    assert torch.equal(found.score > 0, found.found)
    filled = fill_track_gaps(found, min_valid_fraction=0.5, max_gap_frames=1)
    torch.testing.assert_close(filled.points[1], (found.points[0] + found.points[2]) / 2)
    assert filled.blendshapes is not None
    assert filled.blendshapes.isfinite().all()
    assert torch.equal(filled.found, found.found)
    with pytest.raises(NoFaceError, match=r"3 of 5 frames \(60%\), 80% are needed"):
        fill_track_gaps(found, min_valid_fraction=0.8, max_gap_frames=1)


def test_the_track_keeps_to_its_face(shared_data: Path, landmarker: FaceLandmarker) -> None:
    """Two faces side by side; the left one is half as large in the second part of the clip."""
    frames = read_frames(shared_data, SQUARE, 0, 6)
    small = torch.zeros_like(frames)
    small[:, 128:384, 128:384] = frames[:, ::2, ::2]
    start = torch.cat([frames, small], 2)[:3]
    later = torch.cat([small, frames], 2)[3:]
    track = FaceTrack()
    (found,) = landmarker([(torch.cat([start, later]), track)])
    assert found.found.all()
    middle = found.points[..., 0].mean(1)
    assert (middle < 512).all()  # in a frame 1024 wide
    assert track.num_frames_with_several_faces == 6
    width = found.points[..., 0].amax(1) - found.points[..., 0].amin(1)
    assert (width[3:] < 0.6 * width[:3].min()).all()
    (other,) = landmarker([(later, FaceTrack())])
    assert (other.points[..., 0].mean(1) > 512).all()


def test_points_are_right_at_odd_and_small_sizes(shared_data: Path, landmarker: FaceLandmarker) -> None:
    frames = read_frames(shared_data, SQUARE, 0, 4)
    (whole,) = landmarker([(frames, FaceTrack())])
    cut = frames[:, 11:, 7:-2]
    (moved,) = landmarker([(cut, FaceTrack())])
    shift = (whole.points[..., :2] - moved.points[..., :2]).mean((0, 1))
    torch.testing.assert_close(shift, torch.tensor([7.0, 11.0]), atol=1.0, rtol=0)
    chw = frames.permute(0, 3, 1, 2).float()
    halved = torch.nn.functional.avg_pool2d(chw, 2).round().byte().permute(0, 2, 3, 1)
    (half,) = landmarker([(halved, FaceTrack())])
    back = (half.points[..., :2] + 0.5) * 2 - 0.5
    assert (back - whole.points[..., :2]).norm(dim=-1).mean() < 1.0


@pytest.mark.parametrize(("lengths", "message"), [([20, 20], r"1 to 32 .* got \[20, 20\]"), ([4, 0], "0"), ([], "")])
def test_batches_of_another_size_are_refused(landmarker: FaceLandmarker, lengths: list[int], message: str) -> None:
    spans = [(torch.zeros(n, 8, 8, 3, dtype=torch.uint8), FaceTrack()) for n in lengths]
    with pytest.raises(ValueError, match=f"spans must hold.*{message}"):
        landmarker(spans)


def test_a_minimal_score_of_one_finds_nothing(shared_data: Path, files: LandmarkerFiles) -> None:
    strict = FaceLandmarker(replace(files, blendshapes=None), batch_size=8, min_face_score=1.0)
    (found,) = strict([(read_frames(shared_data, SQUARE, 0, 2), FaceTrack())])
    assert not found.found.any()
    assert found.blendshapes is None


def test_files_are_checked(tmp_path: Path, shared_assets: Path, files: LandmarkerFiles) -> None:
    for damaged in (b"", b"text"):
        (tmp_path / "face.task").write_bytes(damaged)
        with pytest.raises(RunError, match=r"face\.task is not a face_landmarker\.task"):
            load_landmarker_files(tmp_path / "face.task")
    with zipfile.ZipFile(tmp_path / "part.task", "w") as task:
        task.writestr("face_detector.tflite", files.detector)
    with pytest.raises(RunError, match=r"face_landmarks_detector\.tflite"):
        load_landmarker_files(tmp_path / "part.task")
    with pytest.raises(RunError, match=r"face_detection_short_range\.tflite"):
        load_landmarker_files(tmp_path)
    with pytest.raises(RunError, match=r"missing\.task"):
        load_landmarker_files(tmp_path / "missing.task")
    shutil.copy(shared_assets / "face_landmarker.task", tmp_path / "other.task")
    copied = load_landmarker_files(tmp_path / "other.task")
    assert copied == replace(files, name="other")
    assert len(copied.sha256) == 64


def test_networks_in_each_other_s_place_are_refused(files: LandmarkerFiles) -> None:
    assert files.blendshapes is not None
    with pytest.raises(ValueError, match="not a short-range face detector"):
        FaceLandmarker(replace(files, detector=files.landmarks))
    with pytest.raises(ValueError, match="not a face landmark network"):
        FaceLandmarker(replace(files, landmarks=files.detector))
    with pytest.raises(ValueError, match="not a face blendshape network"):
        FaceLandmarker(replace(files, blendshapes=files.detector))


def test_blendshapes_need_the_irises(files: LandmarkerFiles, older_files: LandmarkerFiles) -> None:
    with pytest.raises(ValueError, match="468 landmarks do not hold"):
        FaceLandmarker(replace(older_files, blendshapes=files.blendshapes))


def test_crop_follows_box_and_eyes() -> None:
    face = np.zeros((1, 16))
    face[0, :4] = [100, 200, 140, 260]  # 40 x 60 around (120, 230)
    face[0, 4:8] = [110, 210, 110, 230]  # eyes one above the other: a quarter turn
    matrix = crop_matrix(face, 256)[0]
    np.testing.assert_allclose(matrix @ [128, 128, 1], [120, 230])
    np.testing.assert_allclose(matrix @ [256, 128, 1], [120, 260])  # half of 40 x 1.5, along the eyes
    np.testing.assert_allclose(matrix @ [128, 256, 1], [75, 230])
    squared = crop_matrix(face, 192, square=True)[0]
    np.testing.assert_allclose(squared @ [192, 96, 1], [120, 275])


def test_ibug_tables() -> None:
    assert len(set(IBUG68)) == 68
    assert sorted(IBUG68_MIRROR) == list(range(68))
    assert all(IBUG68_MIRROR[IBUG68_MIRROR[i]] == i for i in range(68))
    assert len(set(BLENDSHAPE_POINTS)) == len(BLENDSHAPE_POINTS) == 146
    assert len(set(BLENDSHAPE_NAMES)) == 52
    points = np.arange(2 * 468 * 3).reshape(2, 468, 3)
    np.testing.assert_array_equal(to_ibug68(points)[:, 30], points[:, 4])  # the tip of the nose
    assert to_ibug68(torch.zeros(478, 2)).shape == (68, 2)
    with pytest.raises(ValueError, match="points must be"):
        to_ibug68(np.zeros((68, 2)))


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def protobuf_fields(data: bytes) -> list[tuple[int, bytes]]:
    """(number, content) of the fields of a message that are bytes or 32-bit numbers."""
    at, found = 0, []
    while at < len(data):
        key, at = read_varint(data, at)
        if key & 7 == 0:
            _, at = read_varint(data, at)
            continue
        size, at = (4, at) if key & 7 == 5 else read_varint(data, at)
        found.append((key >> 3, data[at : at + size]))
        at += size
    return found


def test_ibug_points_mirror_on_the_canonical_face(shared_assets: Path) -> None:
    with zipfile.ZipFile(shared_assets / "face_landmarker.task") as task:
        data = task.read("geometry_pipeline_metadata_landmarks.binarypb")
    mesh = dict(protobuf_fields(data)[:1])[1]
    values = b"".join(content for number, content in protobuf_fields(mesh) if number == 3)
    vertices = np.frombuffer(values, "<f4").reshape(468, 5)[:, :3]  # x to the subject's left, y up, z to the camera
    distance = np.linalg.norm(vertices[:, None] * [-1, 1, 1] - vertices[None], axis=-1)
    assert distance.min(1).max() < 1e-5
    mirrored = distance.argmin(1)
    assert [mirrored[i] for i in IBUG68] == [IBUG68[i] for i in IBUG68_MIRROR]
    x, y, z = to_ibug68(vertices).T
    assert (np.diff(x[:17]) > 0)[1:-1].all()  # the contour runs from the subject's right to the left
    assert y[:17].argmin() == 8  # the chin
    assert z.argmax() == 30  # the tip of the nose
    assert x[36:42].max() < 0 < x[42:48].min()
    assert x[36:42].argmin() == 0 and x[36:42].argmax() == 3  # noqa: PT018
    assert y[17:27].min() > y[36:48].max() > y[27:36].min() > y[48:68].max()
    assert y[[50, 51, 52, 61, 62, 63]].min() > y[[56, 57, 58, 65, 66, 67]].max()


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(shared_data: Path, files: LandmarkerFiles, landmarker: FaceLandmarker) -> None:
    on_gpu = FaceLandmarker(files, "cuda", batch_size=BATCH)
    clips = [read_frames(shared_data, SQUARE, 0, 12), read_frames(shared_data, SMALL, 0, 16)]
    expected = landmarker([(frames, FaceTrack()) for frames in clips])
    got = on_gpu([(frames.cuda(), FaceTrack()) for frames in clips])
    again = on_gpu([(frames.cuda(), FaceTrack()) for frames in clips])
    for one, other, same in zip(expected, got, again, strict=True):
        assert torch.equal(one.found, other.found.cpu())
        assert (one.points - other.points.cpu()).abs().max() <= 0.05
        assert torch.equal(other.points, same.points)
        assert one.blendshapes is not None
        assert other.blendshapes is not None
        assert (one.blendshapes - other.blendshapes.cpu()).abs().max() <= 0.01
