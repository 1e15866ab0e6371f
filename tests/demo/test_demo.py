"""The synthetic talking heads: face model, rasteriser, speech and movement, and the corpus on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from lrs3_loader.config import CorpusConfig
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.corpus.transcript import read_transcript
from lrs3_loader.demo import DemoCorpus, demo_head, make_demo_corpus, mouth_recovery
from lrs3_loader.demo.corpus import mouth_opening
from lrs3_loader.demo.encode import write_mp4
from lrs3_loader.demo.head import EXPRESSION_MODES, IDENTITY_MODES
from lrs3_loader.demo.motion import MAX_PITCH, MAX_ROLL, MAX_YAW, make_motion
from lrs3_loader.demo.paint import make_look
from lrs3_loader.demo.raster import rasterize
from lrs3_loader.demo.render import Painter
from lrs3_loader.demo.voice import Voice, make_speech, synthesise
from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.topology import IBUG68_MIRROR
from lrs3_loader.face.model.morphable import FaceModel

MIRRORED_PAIRS = {"smile_left": "smile_right", "blink_left": "blink_right"}
MIRROR = torch.tensor([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpus:
    """Three speakers with one short clip each."""
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    return make_demo_corpus(folder, num_speakers=3, clips_per_speaker=1, seconds=(0.8, 0.9), seed=5)


def expression(**amounts: float) -> torch.Tensor:
    exp = torch.zeros(len(EXPRESSION_MODES))
    for name, amount in amounts.items():
        exp[EXPRESSION_MODES.index(name)] = amount
    return exp


# --- the face model ---------------------------------------------------------------------------------------------------


def test_head_is_mirror_symmetric() -> None:
    model = demo_head()
    distance = torch.cdist(model.mean * MIRROR, model.mean, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert distance.max() < 1e-5
    torch.testing.assert_close(
        model.landmark_mean[list(IBUG68_MIRROR)] * MIRROR, model.landmark_mean, atol=1e-6, rtol=0
    )


def test_modes_are_symmetric_or_paired() -> None:
    model = demo_head()
    mirror = list(IBUG68_MIRROR)
    for names, basis in ((model.id_names, model.landmark_id_basis), (model.exp_names, model.landmark_exp_basis)):
        for index, name in enumerate(names):
            partner = names.index(MIRRORED_PAIRS.get(name, name)) if name not in MIRRORED_PAIRS.values() else None
            if partner is not None:
                mirrored = basis[mirror, :, index] * MIRROR
                torch.testing.assert_close(mirrored, basis[..., partner], atol=1e-6, rtol=0, msg=name)


def test_every_mode_moves_the_head_and_none_repeats_another() -> None:
    model = demo_head()
    both = torch.cat([model.id_basis, model.exp_basis], dim=2).flatten(0, 1).double()
    assert (both.abs().amax(0) > 0.008).all()
    seen = torch.cat([model.landmark_id_basis, model.landmark_exp_basis], dim=2).abs().amax((0, 1))
    unseen = [name for name, most in zip(model.id_names + model.exp_names, seen, strict=True) if most < 0.005]
    assert unseen == ["skull_height"], "every other mode shows in the landmarks"
    unit = both / both.norm(dim=0)
    assert torch.linalg.svdvals(unit)[-1] > 0.02, "some modes are nearly combinations of others"


def test_landmarks_are_where_ibug_wants_them() -> None:
    x, y, z = demo_head().landmark_mean.T
    assert (x[1:16].diff() > 0).all()  # contour from the image's left to its right
    assert (y[:9].diff() < 0).all()
    assert y[8] == y.min()
    assert (x[17:27].diff() > 0).all()
    assert (y[17:27] > y[36:48].max()).all()  # brows above the eyes
    assert (y[27:31].diff() < 0).all()
    assert z[30] == z.max()
    assert (x[36:40].diff() > 0).all()
    assert (y[[37, 38]] > y[[41, 40]]).all()
    assert x[36] < x[39] < x[42] < x[45]
    assert (x[48:55].diff() > 0).all()
    assert (x[54:60].diff() < 0).all()
    assert (y[[61, 62, 63]] - y[[67, 66, 65]]).abs().max() < 1e-3  # the resting mouth is closed
    assert x[48] < x[60] < x[61] < x[62] < x[63] < x[64] < x[54]
    assert (y[51] > y[62]) & (y[66] > y[57])


def test_expressions_do_what_they_are_called() -> None:
    model = demo_head()

    def moved(name: str, amount: float = 1.0) -> torch.Tensor:
        return model.landmarks(torch.zeros(len(IDENTITY_MODES)), expression(**{name: amount}))

    rest = model.landmark_mean
    gap = moved("jaw_open")[62, 1] - moved("jaw_open")[66, 1]
    assert 0.15 < gap < 0.4
    half = moved("jaw_open", 0.5)
    torch.testing.assert_close(half[62, 1] - half[66, 1], gap / 2, atol=1e-3, rtol=0)
    assert moved("lip_wide")[54, 0] > rest[54, 0] + 0.03
    assert moved("lip_pucker")[54, 0] < rest[54, 0] - 0.05
    assert moved("smile_left")[54, 1] > rest[54, 1] + 0.05  # the subject's left is the image's right
    assert (moved("smile_left")[48] - rest[48]).norm() < 0.005
    lids = moved("blink_left")
    assert (lids[[43, 44], 1] - lids[[47, 46], 1]).abs().max() < 0.012
    torch.testing.assert_close(lids[36:42], rest[36:42])
    assert (moved("brow_up")[17:27, 1] > rest[17:27, 1] + 0.03).all()


def test_triangles_face_outwards_and_model_survives_its_file(tmp_path: Path) -> None:
    model = demo_head()
    normals = model.normals(model.mean)
    nose, crown = model.landmark_verts[30], model.mean[:, 1].argmax()
    assert normals[nose, 2] > 0.5
    assert normals[crown, 1] > 0.9
    model.save(tmp_path / "demo.npz")
    again = FaceModel.load(tmp_path / "demo.npz")
    assert again.exp_names == EXPRESSION_MODES
    assert torch.equal(again.mean, model.mean)
    assert torch.equal(again.exp_basis, model.exp_basis)
    assert 2000 < model.num_vertices < 8000


# --- images -----------------------------------------------------------------------------------------------------------


def slow_rasterize(
    points: np.ndarray, depth: np.ndarray, values: np.ndarray, triangles: np.ndarray, size: int
) -> dict[int, np.ndarray]:
    """Every pixel against every triangle, in double precision."""
    seen: dict[int, tuple[float, np.ndarray]] = {}
    for corners in triangles:
        (ax, ay), (bx, by), (cx, cy) = points[corners].astype(float)
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= 0:
            continue
        for row in range(size):
            for column in range(size):
                px, py = column + 0.5, row + 0.5
                u = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) / area
                v = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) / area
                if min(u, v, 1 - u - v) < 0:
                    continue
                weights = np.array([1 - u - v, u, v])
                z = float(weights @ depth[corners])
                if z < seen.get(row * size + column, (np.inf,))[0]:
                    seen[row * size + column] = z, weights @ values[corners]
    return {pixel: value for pixel, (_, value) in sorted(seen.items())}


def test_rasterizer_equals_slow_reference() -> None:
    generator = np.random.default_rng(1)
    size, num = 24, 40
    points = generator.uniform(-6, size + 6, (3 * num, 2)).astype(np.float32)  # some reach out of the image
    depth = generator.uniform(1, 9, 3 * num).astype(np.float32)
    values = generator.uniform(-1, 1, (3 * num, 4)).astype(np.float32)
    triangles = np.arange(3 * num).reshape(num, 3)
    pixel, found = rasterize(points, depth, values, triangles, size, size)
    want = slow_rasterize(points, depth, values, triangles, size)
    assert list(pixel) == list(want)
    assert 100 < len(pixel) <= size * size
    np.testing.assert_allclose(found, np.stack(list(want.values())), atol=2e-4)


def test_rasterizer_leaves_no_seams() -> None:
    grid = np.stack(np.meshgrid(np.linspace(2.3, 29.7, 12), np.linspace(1.9, 30.2, 9)), -1).reshape(-1, 2)
    a = (np.arange(8)[:, None] * 12 + np.arange(11)).ravel()
    triangles = np.concatenate([np.stack([a, a + 12, a + 1], 1), np.stack([a + 1, a + 12, a + 13], 1)])
    flat = np.ones(len(grid), dtype=np.float32)
    pixel, values = rasterize(grid.astype(np.float32), flat, flat[:, None], triangles, 32, 32)
    inside = [row * 32 + column for row in range(2, 30) for column in range(2, 30)]
    assert sorted(set(inside) - set(pixel.tolist())) == []
    np.testing.assert_allclose(values, 1.0, atol=1e-5)


def test_frames_are_deterministic_and_show_the_mouth() -> None:
    id, pose = torch.zeros(len(IDENTITY_MODES)), torch.tensor([0.0, 0.0, 0.0, 0.0, -0.1, -2.2])

    def frames() -> tuple[np.ndarray, np.ndarray]:
        painter = Painter(make_look(0, np.random.default_rng(3)), id, seed=3)
        return painter.draw(expression(), pose), painter.draw(expression(jaw_open=0.9), pose)

    closed, opened = frames()
    again = frames()
    assert np.array_equal(closed, again[0])
    assert np.array_equal(opened, again[1])
    assert closed.shape == (224, 224, 3)
    assert closed.dtype == np.uint8
    painter = Painter(make_look(0, np.random.default_rng(3)), id, seed=3)
    marks = painter.landmarks(expression(jaw_open=0.9)[None], pose[None])[0]
    x, y = (marks[62] + marks[66]).div(2).round().int().tolist()
    assert opened[y, x].max() < 90, "the inside of an open mouth is dark"
    assert closed[y - 12, x].max() > 90


# --- speech and movement ----------------------------------------------------------------------------------------------


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize("speaker", range(4))
def test_mouth_and_audio_belong_together(speaker: int) -> None:
    generator = np.random.default_rng([7, speaker])
    voice = Voice.of(speaker, generator)
    num_frames = 150
    speech = make_speech(num_frames, voice, generator)
    waveform = synthesise(speech, voice, generator)
    exp, _ = make_motion(speech, generator)
    assert waveform.shape == (640 * num_frames,)
    assert waveform.dtype == np.float32
    assert 0.3 < np.abs(waveform).max() <= 0.7

    jaw = exp[:, EXPRESSION_MODES.index("jaw_open")].numpy()
    loudness = np.sqrt((waveform.reshape(-1, 640) ** 2).mean(1))
    in_time = correlation(jaw, loudness)
    assert in_time > 0.85
    for shift in (-4, 4):
        assert correlation(jaw, np.roll(loudness, shift)) < in_time - 0.3

    # Rounded lips lower the second formant: the audio is duller than with spread ones.
    spectrum = np.abs(np.fft.rfft(waveform.reshape(-1, 640) * np.hanning(640), axis=1)) ** 2
    hertz = np.fft.rfftfreq(640, 1 / 16_000)
    bright = spectrum[:, (hertz > 1600) & (hertz < 3000)].sum(1) / spectrum[:, hertz < 3000].sum(1)
    lips, voiced = speech.at_frames(speech.lips), speech.at_frames(speech.voiced) > 0.8
    assert np.median(bright[voiced & (lips > 0.5)]) > 2 * np.median(bright[voiced & (lips < -0.5)])


def test_motion_stays_within_limits() -> None:
    generator = np.random.default_rng(11)
    speech = make_speech(400, Voice.of(0, generator), generator)
    exp, pose = make_motion(speech, generator)
    assert exp.min() >= 0
    assert exp.max() <= 1
    limits = torch.tensor([MAX_PITCH, MAX_YAW, MAX_ROLL], dtype=torch.float32)
    assert (pose[:, :3].abs() <= limits).all()
    assert pose[:, :3].diff(dim=0).abs().max() < 0.06, "radians a frame: no jumps"
    blink = exp[:, EXPRESSION_MODES.index("blink_left")]
    assert (blink == 1).any()
    assert (blink == 0).float().mean() > 0.7
    starts, ends = [w[1] for w in speech.words], [w[2] for w in speech.words]
    assert all(start < end for start, end in zip(starts, ends, strict=True))
    assert all(end <= start for end, start in zip(ends[:-1], starts[1:], strict=True))
    assert ends[-1] <= 16.0


# --- the corpus -------------------------------------------------------------------------------------------------------


def test_corpus_is_lrs3_shaped(corpus: DemoCorpus) -> None:
    for layout in ("auto", "lrs3"):
        clips = scan_corpus(CorpusConfig(corpus=corpus.folder, layout=layout))  # type: ignore[arg-type]
        assert tuple(clip.key for clip in clips) == corpus.keys
        assert all(clip.transcript_path for clip in clips)
    assert {key.split("/")[0] for key in corpus.keys} == {"pretrain", "trainval", "test"}


def test_media_and_truth_agree(corpus: DemoCorpus) -> None:
    for key in corpus.keys:
        with av.open(str(corpus.folder / f"{key}.mp4")) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, video.pix_fmt, video.average_rate) == ("h264", "yuv420p", 25)
            assert (video.width, video.height) == (224, 224)
            assert (audio.codec_context.name, audio.sample_rate, audio.channels) == ("aac", 16_000, 1)
            assert video.start_time == 0
            assert audio.start_time == 0
            num_frames = sum(1 for _ in container.decode(video=0))
        with av.open(str(corpus.folder / f"{key}.mp4")) as container:
            samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        assert 0 <= len(samples) - 640 * num_frames < 1024  # AAC ends on a whole packet
        with np.load(corpus.truth / f"{key}.npz") as truth:
            shapes = {name: truth[name].shape for name in truth.files}
            jaw = truth["exp"][:, EXPRESSION_MODES.index("jaw_open")]
            assert truth["lm68"].min() > 0
            assert truth["lm68"].max() < 223
            np.testing.assert_allclose(truth["mouth_opening"], mouth_opening(truth["lm68"]))
        assert shapes["id"] == (len(IDENTITY_MODES),)
        assert shapes["exp"] == (num_frames, len(EXPRESSION_MODES))
        assert shapes["pose"] == (num_frames, 6)
        assert shapes["lm68"] == (num_frames, 68, 2)
        loudness = np.sqrt((samples[: 640 * num_frames].reshape(-1, 640) ** 2).mean(1))
        assert correlation(jaw, loudness) > 0.8, "frames and audio are in step after decoding"


def test_transcripts_parse(corpus: DemoCorpus) -> None:
    for key in corpus.keys:
        transcript = read_transcript(corpus.folder / f"{key}.txt")
        with np.load(corpus.truth / f"{key}.npz") as truth:
            num_frames = len(truth["pose"])
        assert transcript.text == " ".join(word for word, *_ in transcript.words)
        assert transcript.words
        assert transcript.ref == key.split("/")[1]
        assert transcript.boxes.shape == (num_frames, 5)
        assert transcript.words[-1][2] <= num_frames / 25


def test_encoder_is_deterministic(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    noise = generator.integers(0, 40, (12, 224, 224, 3), dtype=np.uint8)
    frames = [np.uint8(90) + np.roll(noise[0], 3 * i, axis=1) // 2 + noise[i] // 8 for i in range(12)]
    waveform = generator.uniform(-0.3, 0.3, 12 * 640).astype(np.float32)
    seen = set()
    for _ in range(8):
        write_mp4(tmp_path / "clip.mp4", frames, waveform)
        seen.add((tmp_path / "clip.mp4").read_bytes())
    assert len(seen) == 1


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_parameters_give_the_same_bytes(corpus: DemoCorpus, tmp_path: Path) -> None:
    again = make_demo_corpus(tmp_path / "again", num_speakers=3, clips_per_speaker=1, seconds=(0.8, 0.9), seed=5)
    assert digests(again.folder) == digests(corpus.folder)
    other = make_demo_corpus(tmp_path / "other", num_speakers=1, clips_per_speaker=1, seconds=(0.8, 0.8), seed=6)
    assert not set(digests(other.folder).values()) & set(digests(corpus.folder).values())


def test_existing_corpus_is_reused_or_refused(corpus: DemoCorpus, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*")}
    again = make_demo_corpus(corpus.folder, num_speakers=3, clips_per_speaker=1, seconds=(0.8, 0.9), seed=5)
    assert again == corpus
    assert {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*")} == before
    with pytest.raises(RunError, match="other parameters"):
        make_demo_corpus(corpus.folder, num_speakers=2)
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="holds no demo corpus"):
        make_demo_corpus(tmp_path / "mine")
    with pytest.raises(ValueError, match="at least one speaker"):
        make_demo_corpus(tmp_path / "none", num_speakers=0)
    with pytest.raises(ValueError, match="seconds"):
        make_demo_corpus(tmp_path / "none", seconds=(2.0, 1.0))


def test_failed_corpus_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("lrs3_loader.demo.corpus.write_mp4", fail)
    with pytest.raises(RunError, match=r"cannot write .*corpus: no space left"):
        make_demo_corpus(tmp_path / "corpus", num_speakers=1, clips_per_speaker=1)
    assert list(tmp_path.iterdir()) == []


def test_mouth_recovery(corpus: DemoCorpus) -> None:
    found = {}
    for key in corpus.keys:
        with np.load(corpus.truth / f"{key}.npz") as truth:
            found[key] = truth["lm68"]
    exact = mouth_recovery(corpus.truth, found)
    assert exact.overall == pytest.approx(1.0)
    assert set(exact.by_clip) == set(corpus.keys)
    larger = mouth_recovery(corpus.truth, {key: 2.5 * lm68 + 10 for key, lm68 in found.items()})
    assert larger.overall == pytest.approx(1.0), "the size of the image does not matter"
    noise = np.random.default_rng(2)
    noisy = mouth_recovery(corpus.truth, {k: lm + noise.normal(0, 2, lm.shape) for k, lm in found.items()})
    assert 0.3 < noisy.overall < 0.99
    late = mouth_recovery(corpus.truth, {key: np.roll(lm68, 5, axis=0) for key, lm68 in found.items()})
    assert late.overall < 0.6
    with pytest.raises(ValueError, match="frames"):
        mouth_recovery(corpus.truth, {corpus.keys[0]: found[corpus.keys[0]][:-1]})
    with pytest.raises(ValueError, match="no clips"):
        mouth_recovery(corpus.truth, {})
