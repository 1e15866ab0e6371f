"""Animations: as long as the sound, a mouth that opens with a loud vowel, truth beside it, and what is refused.

The generator is planted: it opens the jaw as loud as the sound is, so that what is drawn can be told.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.mel import MelSpectrogram
from lrs3_loader.demo import demo_head
from lrs3_loader.errors import RunError
from lrs3_loader.face.model.morphable import IDEXP_SCALE
from lrs3_loader.io.media_codec import encode_flac
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.run.reader import open_run
from lrs3_loader.train.checkpoint import feature_models
from lrs3_loader.types import ClipFeatures, Shard
from lrs3_loader.viz import animate
from lrs3_loader.viz.animate.scene import Scene
from lrs3_loader.viz.view import GROUND
from support import media_files as files
from support.factory import make_clip
from support.planted_generator import FACE, SPEECH, Planted, vowel, write_wav

pytestmark = pytest.mark.smoke

PANEL = 160
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("sounds") / "vowel.wav")


def assets() -> Assets:
    """No folder holds a model file: the demo's models need none."""
    return Assets(store=Path("no-such-folder"))


def animation_of(sound: Path, trained: Planted, **options: Any) -> animate.Animation:
    source = animate.from_sound(sound, trained, assets(), CPU, **options)
    return animate.animate(source, trained, trained.target, animate.face_model_of(trained, None, assets()))


def read_video(path: Path) -> tuple[list[np.ndarray], float, tuple[str, str]]:
    """Frames [h, w, 3] u8, seconds of sound, and the names of the codecs."""
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 25
        names = container.streams.video[0].codec_context.name, container.streams.audio[0].codec_context.name
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        num_samples = sum(frame.samples for frame in container.decode(audio=0))
    return frames, num_samples / 16_000, names


@pytest.mark.parametrize("target", ["idexp_lm3d", "exp"])
def test_a_video_lasts_as_long_as_its_sound_and_the_mouth_opens_with_the_vowel(
    target: str, sound: Path, tmp_path: Path
) -> None:
    animation, out = animation_of(sound, Planted(target)), tmp_path / "x.mp4"
    summary = animate.write_animation(animation, out, PANEL)
    frames, seconds, names = read_video(out)
    assert names == ("h264", "aac")
    assert summary.num_frames == len(frames) == 39  # 38.25
    assert seconds == pytest.approx(1.53, abs=0.04 + 1024 / 16_000)  # AAC fills up its last block
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]

    loud, quiet = frames[18], frames[4]
    assert animation.motion.mouth_opening[18] > animation.motion.mouth_opening[4] + 8
    height = loud.shape[0] - chart_height(animation)
    mesh, landmarks = slice(0, PANEL), slice(PANEL, 2 * PANEL)
    top = height - PANEL
    for panel in (mesh, landmarks):  # the chin goes down, as drawn
        assert chin(loud[top:height, panel]) > chin(quiet[top:height, panel]) + 1
    assert dark_in_mouth(loud[top:height, mesh]) > dark_in_mouth(quiet[top:height, mesh]) + 5


def chart_height(animation: animate.Animation) -> int:
    return int(Scene(animation, PANEL).chart(2 * PANEL).shape[0])


def chin(panel: np.ndarray) -> int:
    """The lowest row in the middle of a panel that is brighter than the ground, above the text at its bottom."""
    middle = panel[: PANEL - 18, PANEL // 2 - 8 : PANEL // 2 + 8].astype(int).max(2).max(1)
    return int(np.flatnonzero(middle > 255 * max(GROUND) + 30).max())


def dark_in_mouth(panel: np.ndarray) -> int:
    """Pixels of the lower half of the face, well inside it, that are much darker than its skin."""
    part = panel[PANEL // 2 : PANEL - 24, PANEL // 2 - 8 : PANEL // 2 + 8].astype(int).max(2)
    return int((part < 0.5 * np.median(part)).sum())


def test_a_contact_sheet_shows_the_widest_mouth(sound: Path, tmp_path: Path) -> None:
    animation = animation_of(sound, Planted())
    scene = Scene(animation, PANEL)
    widest = next(frame for frame, reason in scene.chosen_frames().items() if reason == "mouth widest")
    assert 12 <= widest <= 25  # within the vowel
    animate.write_animation(animation, tmp_path / "x.png", PANEL)
    assert (tmp_path / "x.png").stat().st_size > 5000
    with pytest.raises(RunError, match=r"must end in .mp4 or .png"):
        animate.write_animation(animation, tmp_path / "x.gif", PANEL)


def test_a_silent_track_is_said_to_be(sound: Path) -> None:
    animation = animation_of(sound, Planted())
    assert not any("silent" in fact for fact in Scene(animation, PANEL).facts())
    silent = replace(animation, waveform=0 * animation.waveform)
    assert any("silent" in fact for fact in Scene(silent, PANEL).facts())


def test_the_mesh_has_the_landmarks_that_were_generated(sound: Path) -> None:
    animation = animation_of(sound, Planted())
    motion, model = animation.motion, animation.model
    on_mesh = model.vertices(motion.id, motion.exp)[:, model.landmark_verts]
    assert 100 * (on_mesh - motion.landmarks).norm(dim=-1).max() < 1.0  # mm


def test_what_interrupts_it_leaves_nothing(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.mp4"
    out.write_bytes(b"an earlier one")
    panels, animation = Scene.panels, animation_of(sound, Planted())

    def interrupted(self: Scene, index: int, frame: np.ndarray | None) -> Any:
        if index == 7:
            raise KeyboardInterrupt
        return panels(self, index, frame)

    monkeypatch.setattr(Scene, "panels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        animate.write_animation(animation, out, PANEL)
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
    assert out.read_bytes() == b"an earlier one"


def test_a_video_is_shown_beside(tmp_path: Path) -> None:
    clip = files.write_media(tmp_path / "talk.mp4", num_frames=30, sound=vowel(1.2, 16_000)[None])
    animation = animation_of(clip, Planted(), beside=clip)
    assert animation.num_frames == 30
    for index, frame in enumerate(Scene(animation, PANEL).frames()):
        assert frame is not None
        assert files.frame_number(frame) == index
    longer = animation_of(write_wav(tmp_path / "longer.wav", 1.6), Planted(), beside=clip)
    shown = list(Scene(longer, PANEL).frames())
    assert len(shown) == 40
    assert [frame is None for frame in shown] == [False] * 30 + [True] * 10
    assert len(Scene(longer, PANEL).panels(39, None)) == 3  # pages keep their size when the video is over


def test_the_encoder_is_the_one_it_was_trained_with(sound: Path) -> None:
    trained = Planted(speech="hubert")
    source = animate.from_sound(sound, trained, assets(), CPU)
    assert source.speech.shape == (78, 64)
    other = replace(trained, features={**trained.features, "speech": {**SPEECH, "sha256": "0" * 64}})
    with pytest.raises(RunError, match=r"demo is not the speech encoder .*sha256: \"000.*Name the right one with"):
        animate.from_sound(sound, other, assets(), CPU)
    missing = replace(trained, features={**trained.features, "speech": {**SPEECH, "layer": 9}})
    with pytest.raises(RunError, match=r"demo is not the speech encoder .*layer must lie in"):
        animate.from_sound(sound, missing, assets(), CPU)
    with pytest.raises(RunError, match="trained on hubert_2, whose encoder its checkpoint does not name"):
        animate.from_sound(sound, Planted(speech="hubert_2"), assets(), CPU)


def test_the_face_model_is_the_one_it_was_trained_with() -> None:
    other = Planted(features={"speech": SPEECH, "face_model": {"name": "ict", "sha256": "1" * 64}})
    with pytest.raises(RunError, match=r"trained on the face model ict .* demo here has .*--face-model"):
        animate.face_model_of(other, "demo", assets())
    geneface = Planted(features={"speech": SPEECH, "face_model": FACE, "idexp": "geneface"})
    with pytest.raises(RunError, match=r"GeneFace's landmark offsets.*--idexp-from fit"):
        animate.face_model_of(geneface, None, assets())


def test_sounds_that_cannot_be_animated(tmp_path: Path) -> None:
    for path, problem in (
        (tmp_path / "gone.wav", r"unreadable.*No such file"),
        (files.write_media(tmp_path / "silent.mp4"), r"no_sound.*no audio track"),
        (write_wav(tmp_path / "short.wav", 0.1), r"lasts 0.12 s, 0.2 s are the least"),
    ):
        with pytest.raises(RunError, match=problem):
            animate.from_sound(path, Planted(), assets(), CPU)
    with pytest.raises(RunError, match="no video to show beside"):
        animate.from_sound(write_wav(tmp_path / "x.wav"), Planted(), assets(), CPU, beside=tmp_path / "gone.mp4")


KEY = "pretrain/someone/00001"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose one clip is the vowel, said by somebody with a wide face, with its sound stored."""
    clip = make_clip(KEY)
    shard = Shard("pretrain-000000", (clip,))
    record = {
        "config": {},
        "plan_sha256": plan_sha256((shard,)),
        "models": {"speech": SPEECH, "face_model": FACE},
        "device_type": "cpu",
    }
    folder = RunFolder.create(tmp_path / "run", record, (shard,))
    waveform = vowel(1.2, 16_000)
    mel = MelSpectrogram()([torch.from_numpy(waveform)])[0]
    exp = 0.5 * Planted("exp").generate(mel)
    id = torch.zeros(16)
    id[0] = 1.5
    arrays = {
        "mel": mel.numpy(),
        "f0": np.zeros(60, np.float32),
        "id": id.numpy(),
        "exp": exp.numpy(),
        "idexp_lm3d": demo_head().idexp_lm3d(id, exp).numpy(),
        "valid": np.ones(30, dtype=bool),
    }
    audio, scale = encode_flac(waveform, 16)
    meta = {"key": KEY, "num_frames": 30, "audio_scale": scale}
    folder.publish(shard, [ClipFeatures(clip, 30, arrays, meta, {"audio": audio})], {}, {})
    return folder


@pytest.mark.parametrize("target", ["idexp_lm3d", "exp"])
def test_a_sample_of_a_run_brings_its_sound_its_face_and_its_truth(run: RunFolder, target: str) -> None:
    trained = Planted(target)
    features = feature_models(run.record)
    source = animate.from_sample(open_run(run.path), KEY, trained, features, None, video=True)
    assert np.abs(source.waveform - vowel(1.2, 16_000)).max() < 1e-4
    assert source.video is None
    animation = animate.animate(source, trained, target, demo_head())
    assert animation.truth is not None
    assert torch.equal(animation.motion.id, torch.from_numpy(open_run(run.path)[KEY].arrays["id"]))
    wide = animation.motion.landmarks[:, 16, 0] - animation.motion.landmarks[:, 0, 0]
    mean = demo_head().landmark_mean
    assert (wide > mean[16, 0] - mean[0, 0] + 0.05).all()
    offsets = open_run(run.path)[KEY].arrays["idexp_lm3d"] / IDEXP_SCALE
    np.testing.assert_allclose(animation.truth.landmarks.numpy(), mean.numpy() + offsets, atol=1e-5)
    assert len(Scene(animation, PANEL).panels(3, None)) == 3  # true motion, generated, landmarks


def test_samples_that_cannot_be_animated(run: RunFolder) -> None:
    features, opened = feature_models(run.record), open_run(run.path)
    with pytest.raises(RunError, match=r"no clip pretrain/someone/2"):
        animate.from_sample(opened, "pretrain/someone/2", Planted(), features, None, video=True)
    with pytest.raises(RunError, match=r"has no hubert: nothing to animate it from"):
        animate.from_sample(opened, KEY, Planted(speech="hubert"), features, None, video=True)
    other = Planted(features={**Planted().features, "face_model": {"name": "ict", "sha256": "1" * 64}})
    with pytest.raises(RunError, match=r"trained on other features than those of .*face_model.name: \"ict\" -> \"demo"):
        animate.from_sample(opened, KEY, other, features, None, video=True)
