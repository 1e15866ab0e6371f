"""Previews of a run's sample and of a clip file: frames, sizes, audio, curves, and what is refused."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image

from draw_conventions import LARGE_PX, SMALL_PX, draw_conventions
from lrs3_loader import demo
from lrs3_loader.assets.locate import Assets
from lrs3_loader.commands import preview as preview_command
from lrs3_loader.config import CorpusConfig, RunConfig, as_json, demo_defaults
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.face.geometry.topology import BLENDSHAPE_NAMES
from lrs3_loader.launch.cli import UsageError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.types import Clip, ClipFeatures, Reject, Shard
from lrs3_loader.viz import chart, preview
from lrs3_loader.viz.layout import wrap
from lrs3_loader.viz.overlay import draw_text, text_width
from lrs3_loader.viz.preview.measures import Measures, measure
from lrs3_loader.viz.preview.page import Page, chosen_frames
from lrs3_loader.viz.preview.subject import nearest
from support.factory import make_clip
from support.media_files import noise, write_media
from support.paths import REPO
from support.run_factory import with_media

KEY = "pretrain/DemoHead000/00001"
REJECTED = "pretrain/DemoHead000/00002"
PENDING = "pretrain/DemoHead000/00003"
PANEL = 96


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoCorpus:
    return demo.make_demo_corpus(
        tmp_path_factory.mktemp("corpus") / "demo", num_speakers=1, clips_per_speaker=1, seconds=(0.8, 0.8)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: demo.DemoCorpus) -> Path:
    """A run over the demo corpus that holds the truth of one clip, one reject, and a shard still to come."""
    (first,) = scan_corpus(CorpusConfig(corpus=corpus.folder))
    second, third = make_clip(REJECTED), make_clip(PENDING)
    shards = (Shard("pretrain-000000", (first, second)), Shard("pretrain-000001", (third,)))
    model = demo.demo_head()
    config = replace(demo_defaults(RunConfig()), corpus=CorpusConfig(corpus=corpus.folder))
    record = {
        "config": as_json(config),
        "plan_sha256": plan_sha256(shards),
        "models": {"face_model": {"name": model.name, "sha256": model.source_sha256}},
        "device_type": "cpu",
    }
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", record, shards)
    results = [true_features(first, corpus), Reject(second, "no_face", "no face found in any of 13 frames")]
    folder.publish(shards[0], results, {}, {})
    return folder.path


def true_features(clip: Clip, corpus: demo.DemoCorpus) -> ClipFeatures:
    """The demo's own coefficients and landmarks; frame 3 counts as one without a face."""
    with np.load(corpus.truth / f"{clip.key}.npz") as truth:
        arrays = {name: truth[name].astype(np.float32) for name in ("id", "exp", "pose", "lm68")}
    num_frames = len(arrays["exp"])
    random = np.random.default_rng(0)
    arrays["mel"] = random.uniform(-4, 0, size=(2 * num_frames, 80)).astype(np.float32)
    arrays["f0"] = np.where(np.arange(2 * num_frames) % 9 < 5, 140.0, 0.0).astype(np.float32)
    arrays["valid"] = np.arange(num_frames) != 3
    meta = {"key": clip.key, "num_frames": num_frames, "source": {"height": 224, "width": 224}}
    meta["quality"] = {"face_size_px": 101.0}
    return ClipFeatures(clip, num_frames, arrays, meta)


@pytest.fixture(scope="module")
def subject(run: Path) -> preview.Subject:
    return preview.from_run(run, KEY, demo_assets())


def demo_assets() -> Assets:
    """No folder holds a model file: the demo's face needs none."""
    return Assets(store=Path("no-such-folder"))


def read_video(path: Path) -> tuple[list[np.ndarray], int]:
    """Frames [h, w, 3] u8, and the number of audio samples."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        rate = container.streams.video[0].average_rate
        assert rate == 25
    with av.open(str(path)) as container:
        has_audio = bool(container.streams.audio)
        num_samples = sum(frame.samples for frame in container.decode(audio=0)) if has_audio else 0
    return frames, num_samples


def test_a_sample_becomes_a_video_with_audio(subject: preview.Subject, tmp_path: Path) -> None:
    out = tmp_path / "x.mp4"
    preview.write_preview(subject, out, PANEL)
    frames, num_samples = read_video(out)
    assert len(frames) == subject.num_frames
    assert {frame.shape for frame in frames} == {(PANEL + header_height(subject) + chart_height(subject), 4 * PANEL, 3)}
    assert abs(num_samples - 640 * subject.num_frames) <= 1024
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]


def header_height(subject: preview.Subject, num_panels: int = 4) -> int:
    return len(Page(subject, PANEL).header(num_panels * PANEL))


def chart_height(subject: preview.Subject) -> int:
    return len(Page(subject, PANEL).chart(4 * PANEL))


def test_the_cursor_moves_through_the_strips(subject: preview.Subject) -> None:
    """What differs between pages below the panels is the column of the cursor, and nothing else."""
    pages = list(Page(subject, PANEL).video())
    below = [page[header_height(subject) + PANEL :] for page in pages]
    for index in (0, 5, subject.num_frames - 1):
        others = np.median(np.stack(below[:index] + below[index + 1 :]), axis=0)
        changed = np.flatnonzero(np.abs(below[index] - others).max(axis=(0, 2)))
        cursor = chart.cursor_column(index, subject.num_frames, 4 * PANEL)
        assert cursor in changed
        assert (below[index][:, cursor] == 255).all()


def test_a_sample_without_its_corpus_is_shown_on_plain_ground(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    with caplog.at_level(logging.WARNING, logger="lrs3_loader"):
        subject = preview.from_run(run, KEY, demo_assets(), corpus=tmp_path / "empty")
    assert subject.video is None
    assert "showing features alone" in caplog.text
    preview.write_preview(subject, tmp_path / "x.mp4", PANEL)
    frames, num_samples = read_video(tmp_path / "x.mp4")
    assert len(frames) == subject.num_frames
    assert frames[0].shape[1] == 3 * PANEL
    assert num_samples == 0


def test_crops_and_audio_that_a_run_stores_are_shown(tmp_path: Path, corpus: demo.DemoCorpus) -> None:
    (clip,) = scan_corpus(CorpusConfig(corpus=corpus.folder))
    shard, model = Shard("pretrain-000000", (clip,)), demo.demo_head()
    record = {
        "config": {"face": {"face_model": "demo"}},
        "plan_sha256": plan_sha256((shard,)),
        "models": {"face_model": {"name": model.name, "sha256": model.source_sha256}},
        "device_type": "cpu",
    }
    folder = RunFolder.create(tmp_path / "run", record, (shard,))
    folder.publish(shard, [with_media(true_features(clip, corpus), size=64)], {}, {})
    subject = preview.from_run(folder.path, KEY, demo_assets())
    page = Page(subject, PANEL)
    *_, face, mouth = page.panels(15, None)
    assert [face.name, mouth.name] == ["stored face, 64 px", "stored mouth, 96 px"]
    for panel in (face, mouth):
        assert panel.image[8:-8, 8:-8].mean() == pytest.approx(4 * 15 / 255, abs=0.02)  # brightness tells the frame
    preview.write_preview(subject, tmp_path / "x.mp4", PANEL)  # the corpus is not where this run looks for it
    frames, num_samples = read_video(tmp_path / "x.mp4")
    assert frames[0].shape[1] == 5 * PANEL
    assert abs(num_samples - 640 * subject.num_frames) <= 1024
    hidden = preview.from_run(folder.path, KEY, demo_assets(), video=False)
    assert not {"face", "mouth", "audio"} & hidden.arrays.keys()
    assert len(Page(hidden, PANEL).panels(15, None)) == 3
    preview.write_preview(hidden, tmp_path / "y.mp4", 64)  # narrower than the chart
    assert read_video(tmp_path / "y.mp4")[1] == 0


def test_a_video_that_has_changed_is_not_shown(
    run: Path, corpus: demo.DemoCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(corpus.folder, moved)
    assert preview.from_run(run, KEY, demo_assets(), corpus=moved).video is not None
    (moved / f"{KEY}.mp4").unlink()
    write_media(moved / f"{KEY}.mp4", num_frames=33, sound=noise(33 / 25, 16_000))
    with caplog.at_level(logging.WARNING, logger="lrs3_loader"):
        assert preview.from_run(run, KEY, demo_assets(), corpus=moved).video is None
    assert "has changed" in caplog.text


def test_a_sheet_shows_panels_strips_and_the_frames_chosen(subject: preview.Subject, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    preview.write_preview(subject, out, PANEL)
    with Image.open(out) as file:
        assert file.format == "PNG"
        image = np.asarray(file)
    page = Page(subject, PANEL)
    width = PANEL * 5
    assert image.shape == (header_height(subject, 5) + 4 * PANEL + len(page.chart(width)), width, 3)
    for index in chosen_frames(page.measures):
        column = chart.cursor_column(index, subject.num_frames, width)
        assert (image[header_height(subject, 5) + 4 * PANEL :, column] == 255).all()


def test_the_panels_agree_with_the_video(subject: preview.Subject) -> None:
    """Landmarks are drawn where the frame shows the face: the source panel differs from theirs only there."""
    page = Page(subject, 224)
    frame = next(iter(page.frames()))
    assert frame is not None
    source, landmarks, mesh, front = (panel.image for panel in page.panels(0, frame))
    face = page._face.show(frame)
    changed = np.abs(landmarks - face).max(2) > 0.05
    points = page._face.to_panel(subject.arrays["lm68"][0])
    rows, columns = np.nonzero(changed)
    assert np.abs(np.array([columns.min(), columns.max()]) - [points[:, 0].min(), points[:, 0].max()]).max() < 4
    assert np.abs(np.array([rows.min(), rows.max()]) - [points[:, 1].min(), points[:, 1].max()]).max() < 4
    assert np.abs(mesh - face).max(2)[tuple(np.rint(points[30, ::-1]).astype(int))] > 0.02
    assert len({panel.shape for panel in (source, landmarks, mesh, front)}) == 1


def test_measures_of_the_truth(subject: preview.Subject) -> None:
    """The truth fits itself; a mouth moved up by 5 pixels shows as an error of 5 pixels."""
    found = measure(subject)
    valid = subject.arrays["valid"]
    assert np.isnan(found.error[3])
    assert np.nanmax(found.error) < 1e-2
    np.testing.assert_allclose(found.opening, found.fitted_opening, atol=1e-2)
    model, arrays = subject.model, subject.arrays
    id, exp, pose = (torch.from_numpy(arrays[name]) for name in ("id", "exp", "pose"))
    points = project(model.landmarks(id, exp), pose, Camera.for_frame(224, 224)).numpy()
    np.testing.assert_allclose(found.fitted, points, atol=1e-4)

    moved = arrays["lm68"].copy()
    moved[:, 48:68, 1] -= 5
    other = measure(replace(subject, arrays={**arrays, "lm68": moved}))
    size = np.sqrt(np.ptp(moved, axis=1).prod(1))
    np.testing.assert_allclose(other.mouth_error[valid], (500 / size)[valid], rtol=0.01)
    np.testing.assert_allclose(other.error[valid], (500 / size * 20 / 68)[valid], rtol=0.02)


def test_the_strongest_expressions_come_first(subject: preview.Subject) -> None:
    names = subject.model.exp_names
    exp = np.zeros_like(subject.arrays["exp"])
    wave = np.sin(np.arange(len(exp)))
    exp[:, names.index("blink_left")] = 0.01 * wave
    exp[:, names.index("jaw_open")] = 0.9 * wave
    exp[:, names.index("frown")] = 0.5  # strong, but it does not move
    found = measure(replace(subject, arrays={**subject.arrays, "exp": exp})).expressions
    assert list(found)[:2] == ["jaw_open", "blink_left"]
    assert len(found) == 6


def test_scores_are_shown_for_the_expressions_that_have_some(subject: preview.Subject) -> None:
    """Under the name of the expression; a model whose modes bear no ARKit names has none."""
    names = ("jawOpen", *subject.model.exp_names[1:])
    scores = np.random.default_rng(0).random((len(subject.arrays["exp"]), len(BLENDSHAPE_NAMES))).astype(np.float16)
    arrays = {**subject.arrays, "blendshapes": scores}
    assert measure(replace(subject, arrays=arrays)).scores == {}
    named = replace(subject, arrays=arrays, model=replace(subject.model, exp_names=names))
    found = measure(named).scores
    assert list(found) == ["jawOpen"]
    np.testing.assert_array_equal(found["jawOpen"], scores[:, BLENDSHAPE_NAMES.index("jawOpen")])
    assert chart_height(named) > chart_height(subject)


def test_frames_are_chosen_for_a_reason() -> None:
    curve = np.zeros(100)
    error = np.zeros(100)
    error[:10] = np.nan
    opening = curve.copy()
    opening[20], error[90] = 5, 3
    measures = Measures(np.zeros((100, 68, 2)), error, curve, opening, curve, {}, {})
    chosen = chosen_frames(measures)
    assert (chosen[20], chosen[90]) == ("mouth widest", "worst fit")
    assert len(chosen) == 5
    assert np.diff(sorted(chosen)).min() >= 9
    error[20] = 9
    assert chosen_frames(measures)[20] == "mouth widest, worst fit"
    short = Measures(np.zeros((3, 68, 2)), curve[:3], curve[:3], curve[:3], curve[:3], {}, {})
    assert sorted(chosen_frames(short)) == [0, 1, 2]


def plot_of(strip: chart.Strip, missing: np.ndarray, width: int = 200) -> np.ndarray:
    """The plot of one strip, [height, width, 3], without margin, gap and the ticks of time."""
    image = chart.draw_chart([strip], chart.LABEL_PX + width, missing)
    return image[chart.GAP_PX : chart.GAP_PX + strip.height, chart.LABEL_PX :]


def colour(name: str) -> np.ndarray:
    return np.array(to_rgb(name))


def test_curves_are_drawn_to_scale_and_missing_frames_marked() -> None:
    missing = np.arange(100) >= 75
    curves = {"flat": np.full(100, 1.0), "top": np.full(100, 4.0)}
    plot = plot_of(chart.curves("name", curves, low=0.0, height=105), missing)
    blue, red = (int(np.argmin(np.abs(plot[:, 55] - colour(name)).sum(1))) for name in chart.COLOURS[:2])
    middle = 105 - red  # of the upper curve, from below: 4 units, the lower one a quarter of it
    assert middle > 80
    assert abs((105 - blue) - middle / 4) <= 2
    np.testing.assert_allclose(plot[40, 147], colour(chart.PAPER), atol=0.01)
    np.testing.assert_allclose(plot[40, 153], colour(chart.MISSING), atol=0.01)


def test_curves_have_names_and_ticks() -> None:
    """In the margin: the name of each curve in its colour, and numbers beside the plot."""
    curves = {"first": np.arange(50.0), "second": np.arange(50.0)}
    image = chart.draw_chart([chart.curves("name", curves)], chart.LABEL_PX + 100, np.zeros(50, dtype=bool))
    margin = image[: chart.GAP_PX + 92, : chart.LABEL_PX]
    for name in chart.COLOURS[:2]:
        assert (np.abs(margin[:, :100] - colour(name)).max(2) < 0.15).any()
    assert np.ptp(margin[:, 180:216], axis=(0, 1)).max() > 0.2
    assert np.ptp(image[-chart.AXIS_PX :, chart.LABEL_PX :], axis=(0, 1)).max() > 0.2  # seconds


def test_the_mel_spectrogram_is_drawn_low_notes_down_and_the_pitch_over_it() -> None:
    mel = np.full((40, 80), -6.0, dtype=np.float32)
    mel[20:, :8] = 0.5  # the second half: low notes
    f0 = np.where(np.arange(40) < 20, 200.0, 0.0)
    plot = plot_of(chart.spectrogram(mel, f0), np.zeros(20, dtype=bool), 160)
    heat = colormaps[chart.HEAT_MAP]
    np.testing.assert_allclose(plot[87, 120], heat(1.0)[:3], atol=0.02)
    np.testing.assert_allclose(plot[10, 120], heat(0.0)[:3], atol=0.02)
    assert abs(int(np.argmax(plot[:, 40, 2])) - 45.5) <= 1  # half of 400 Hz is half way up
    assert plot[:, 100, 1].max() < 1.0


def test_similarity_over_time_equals_single_cosines() -> None:
    rows = np.random.default_rng(0).normal(3, 1, size=(30, 5)).astype(np.float16)
    found = chart.lagged_similarity(rows, 7)
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(0)
    for lag, row in ((1, 0), (4, 11), (7, 22)):
        one, other = centred[row], centred[row + lag]
        np.testing.assert_allclose(found[lag - 1, row], one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    assert np.isnan(found[6, 23:]).all()
    assert not np.isnan(found[6, :23]).any()


def test_speech_that_repeats_shows_at_its_distance() -> None:
    """Rows that come again every 20 rows (0.4 s): bright at 0.4 and 0.8 s, dark between."""
    rows = np.tile(np.random.default_rng(0).normal(size=(20, 64)), (5, 1))
    plot = plot_of(chart.similarity(rows, "hubert"), np.zeros(50, dtype=bool), 100)
    column = plot[:, 5].sum(1)[::-1]  # upwards: 92 pixels for 50 rows
    assert abs(int(np.argmax(column[5:60])) + 5 - 19.5 * 92 / 50) <= 2
    assert column[18] < 0.5 * column[36]
    np.testing.assert_allclose(plot[8, -8], colour(chart.PAPER), atol=0.01)  # beyond the end


def test_speech_features_are_shown_where_there_are_some(
    subject: preview.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    similarity = chart.similarity
    rows = np.random.default_rng(0).normal(size=(2 * subject.num_frames, 4)).astype(np.float16)
    with_speech = replace(
        subject,
        arrays={**subject.arrays, "hubert": rows},
        meta={**subject.meta, "models": {"speech": {"model": "some/encoder", "untrained": True}}},
    )
    titles = []
    monkeypatch.setattr(chart, "similarity", lambda rows, name: titles.append(name) or similarity(rows, name))
    plain, shown = (Page(one, PANEL).chart(4 * PANEL) for one in (subject, with_speech))
    assert titles == ["encoder (untrained)"]
    assert len(shown) == len(plain) + 92 + chart.GAP_PX


def test_a_sample_is_shown_without_its_video_where_asked(run: Path) -> None:
    subject = preview.from_run(run, KEY, demo_assets(), video=False)
    assert subject.video is None
    assert {panel.name for panel in Page(subject, PANEL).panels(0, None)} == {
        "landmarks",
        "mesh",
        "mesh from the front",
    }


def test_the_figure_of_the_conventions_tells_the_truth(tmp_path: Path) -> None:
    """Where the figure says that a positive angle moves the nose, it moves there; every landmark has its dot."""
    image = draw_conventions(demo.demo_head())
    assert image.shape == (LARGE_PX, LARGE_PX + 2 * SMALL_PX, 3)
    model = demo.demo_head()
    id, exp = torch.zeros(len(model.id_names)), torch.zeros(len(model.exp_names))

    def place(landmark: int, *angles: float) -> np.ndarray:
        pose = torch.tensor([*angles, 0.0, 0.0, 0.0])
        return project(model.landmarks(id, exp), pose, Camera.for_frame(224, 224))[landmark].numpy()

    assert place(30, 0.4, 0, 0)[1] > place(30, 0, 0, 0)[1] + 5  # nods: the tip of the nose goes down
    assert place(30, 0, 0.4, 0)[0] > place(30, 0, 0, 0)[0] + 5  # turns: to the right of the image
    assert place(45, 0, 0, 0.4)[1] < place(36, 0, 0, 0.4)[1] - 5  # tilts: the eye on the right rises
    assert place(36, 0, 0, 0)[0] < place(45, 0, 0, 0)[0]  # the person's right eye is on the left
    preview.write_image(tmp_path / "figure.png", image, small=True)
    assert (tmp_path / "figure.png").stat().st_size < 150_000


def test_lines_are_wrapped_to_the_room_there_is() -> None:
    parts = ("0.28 s", "", "frame 7", "worst fit")
    assert wrap(parts, 1000, ", ") == ["0.28 s, frame 7, worst fit"]
    lines = wrap(parts, 91, ", ")
    assert ", ".join(lines) == "0.28 s, frame 7, worst fit"
    assert len(lines) > 1
    assert max(map(text_width, lines)) <= 91


def test_a_clip_in_which_nothing_is_heard_says_so(subject: preview.Subject) -> None:
    silent = "no sound: the audio track is silent"
    for level, says in ((0.0, True), (0.00002, True), (0.001, False), (0.1, False)):
        shown = replace(subject, meta={**subject.meta, "quality": {"sound_rms": level}})
        assert (silent in Page(shown, PANEL).facts()) is says
    assert silent not in Page(replace(subject, meta={**subject.meta, "quality": {}}), PANEL).facts()


def test_text_is_cut_at_the_border() -> None:
    image = np.zeros((30, 60, 3), dtype=np.float32)
    draw_text(image, (4, 8), "a text that is far too long for this", (1.0, 1.0, 1.0))
    assert image[8:22].max() > 0.8
    assert image[:8].max() == image[22:].max() == 0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("00003", r"no key 00003 in .*; the nearest are pretrain/DemoHead000/00003"),
        ("pretrain/DemoHead00/00001", "the nearest are pretrain/DemoHead000/00001"),
        (REJECTED, r"was rejected \(no_face\): no face found in any"),
        (PENDING, "not extracted yet: its shard pretrain-000001"),
    ],
)
def test_keys_without_a_sample_are_explained(run: Path, key: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        preview.from_run(run, key, demo_assets())


def test_nearest_keys() -> None:
    keys = [f"test/speaker{number}/{clip:05d}" for number in range(20) for clip in range(3)]
    assert nearest("speaker7", keys)[:3] == [f"test/speaker7/{clip:05d}" for clip in range(3)]
    assert nearest("test/speakr11/00002", keys)[0] == "test/speaker11/00002"
    assert len(nearest("x", keys)) == 5


def test_another_face_model_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    replace(demo.demo_head(), source_sha256="0" * 64).save(other)
    with pytest.raises(RunError, match=r"the run's face model was demo .*--face-model"):
        preview.from_run(run, KEY, Assets(store=tmp_path), face_model=str(other))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.avi", r"--out must end in \.mp4 or \.png"),
        ("missing/x.mp4", "there is no folder"),
        ("file/x.png", "there is no folder"),
        ("folder.mp4", "it is a folder"),
    ],
)
def test_outputs_that_cannot_be_written_are_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(RunError, match=message):
        preview.check_output(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


def test_an_output_that_fails_late_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(RunError, match="cannot write"):
        preview.write_image(folder / "x.png", np.zeros((2, 2, 3), dtype=np.uint8))
    assert not folder.exists()


@pytest.mark.parametrize("size", [63, 62, 97])
def test_panels_must_be_even_and_not_tiny(subject: preview.Subject, size: int) -> None:
    with pytest.raises(ValueError, match="even and at least 64"):
        Page(subject, size)


def test_a_clip_file_is_extracted_and_shown(shared_assets: Path, corpus: demo.DemoCorpus, tmp_path: Path) -> None:
    """Fitted with the model it was drawn from, the demo head fits within a percent of its size."""
    path = corpus.folder / f"{KEY}.mp4"
    subject = preview.from_file(path, "demo", Assets(shared_assets), torch.device("cpu"))
    assert subject.name == KEY + ".mp4"
    assert subject.video is not None
    found = measure(subject)
    assert np.nanmean(found.mouth_error) < 1.5
    preview.write_preview(subject, tmp_path / "x.png", PANEL)
    with Image.open(tmp_path / "x.png") as image:
        assert image.width == 5 * PANEL


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("no video")
    with pytest.raises(RunError, match=r"cannot show this clip \(unreadable\): notes\.mp4"):
        preview.from_file(path, "demo", demo_assets(), torch.device("cpu"))


def tool(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The tool's body, in this process."""
    monkeypatch.setattr(sys, "argv", ["preview.py", *arguments])
    spec = importlib.util.spec_from_file_location("preview_tool", REPO / "tools" / "preview.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "preview_tool", module)
    spec.loader.exec_module(module)
    return int(module.main())


def test_the_tool_writes_what_is_asked(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.png")
    assert tool(monkeypatch, str(run), KEY, "--out", out, "--panel", "64") == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as image:
        assert image.width == 5 * 64


def test_the_tool_names_wrong_arguments(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, out = tmp_path / "clip.mp4", str(tmp_path / "x.png")
    clip.write_text("")
    with pytest.raises(UsageError, match="go with the folder of a run"):
        tool(monkeypatch, str(clip), "some/key/1", "--out", out)
    with pytest.raises(UsageError, match="--fit goes with a clip file"):
        tool(monkeypatch, str(run), KEY, "--out", out, "--fit", "best")
    with pytest.raises(UsageError, match="--hubert goes with a clip file"):
        tool(monkeypatch, str(run), KEY, "--out", out, "--hubert", "demo")
    with pytest.raises(RunError, match=f"holds 3 clips: give a KEY as well, such as {KEY}"):
        tool(monkeypatch, str(run), "--out", out)
    with pytest.raises(RunError, match="no such clip or run: nowhere"):
        tool(monkeypatch, "nowhere", "--out", out)
    with pytest.raises(RunError, match="holds no run"):
        tool(monkeypatch, str(tmp_path), KEY, "--out", out)
    with pytest.raises(SystemExit) as ended:
        tool(monkeypatch, str(run), KEY, "--out", out, "--panel", "65")
    assert ended.value.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_speaking_has_a_box_and_a_strip_in_its_colour(subject: preview.Subject) -> None:
    scores = np.where(np.arange(subject.num_frames) < 8, 1.5, -2.0).astype(np.float16)
    speaks = replace(subject, arrays={**subject.arrays, "speaking": scores})
    page, plain = Page(speaks, PANEL), Page(subject, PANEL)
    for index, colour, words in ((2, chart.SPEAKING, "speaking +1.5"), (9, chart.SILENT, "not speaking -2.0")):
        drawn, without = (each.panels(index, None)[0] for each in (page, plain))
        assert (drawn.name, drawn.legend[-1]) == ("landmarks", (words, to_rgb(colour)))
        changed = np.abs(drawn.image - without.image).max(2) > 0.2
        assert changed.sum() > 100
        strong = changed & (np.abs(drawn.image - to_rgb(colour)).max(2) < 0.1)
        rows, columns = np.nonzero(strong)
        points = page._face.to_panel(subject.arrays["lm68"][index])
        assert columns.min() < points[:, 0].min() < points[:, 0].max() < columns.max()
        assert rows.min() < points[:, 1].min() < points[:, 1].max() < rows.max()
    strip = page.chart(4 * PANEL)[chart.GAP_PX : chart.GAP_PX + 64]
    for index, colour in ((2, chart.SPEAKING), (15, chart.SILENT)):
        column = strip[:, chart.cursor_column(index, subject.num_frames, 4 * PANEL)]
        assert (np.abs(column - to_rgb(colour)).max(1) < 0.02).sum() > 10


def test_a_clip_is_chosen_by_a_condition(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(preview, "write_preview", lambda subject, *_: drawn.append(subject.name))
    out = ["--out", str(tmp_path / "x.png"), "--face-model", "demo"]
    assert preview_command.main([str(run), *out, "--where", "face_size_px > 100"]) == 0
    assert drawn == [KEY]
    assert f"1 of 1 clips, the first is {KEY}" in capsys.readouterr().out
    with pytest.raises(RunError, match="is true for none of 1 clips"):
        preview_command.main([str(run), *out, "--where", "face_size_px > 200"])
    with pytest.raises(RunError, match="face_size_px"):  # the nearest name
        preview_command.main([str(run), *out, "--where", "face_size > 200"])
    with pytest.raises(UsageError, match="give no KEY"):
        preview_command.main([str(run), KEY, *out, "--where", "face_size_px > 100"])
