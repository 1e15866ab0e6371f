"""Corpora of every layout made of empty files; transcripts."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lrs3_loader.config import CorpusConfig
from lrs3_loader.corpus.layouts import guess_layout, read_tree
from lrs3_loader.corpus.scan import corpus_root, key_part, scan_corpus
from lrs3_loader.corpus.transcript import MAX_BYTES, read_transcript
from lrs3_loader.errors import BadTranscriptError, RunError
from lrs3_loader.types import Clip, Transcript

pytestmark = pytest.mark.smoke


def make_tree(root: Path, *paths: str) -> Path:
    """Files of one byte each at ``paths`` below ``root``."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def scan(root: Path, **options: object) -> tuple[Clip, ...]:
    return scan_corpus(CorpusConfig(corpus=root, **options))  # type: ignore[arg-type]


def keys(root: Path, **options: object) -> list[str]:
    return [clip.key for clip in scan(root, **options)]


# Layouts


def test_lrs3_pairs_videos_with_transcripts_and_sorts_by_key(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        "trainval/b/50001.mp4",
        "pretrain/a/00002.mp4",
        "pretrain/a/00001.mp4",
        "pretrain/a/00001.txt",
        "filelist.txt",
        "pretrain/a/.00003.mp4",
    )
    assert guess_layout(read_tree(tmp_path)) == "lrs3"
    assert scan(tmp_path) == (
        Clip("pretrain/a/00001", "pretrain/a/00001.mp4", 1, transcript_path="pretrain/a/00001.txt"),
        Clip("pretrain/a/00002", "pretrain/a/00002.mp4", 1),
        Clip("trainval/b/50001", "trainval/b/50001.mp4", 1),
    )


def test_lrs3_takes_any_split_names_when_transcripts_tell(tmp_path: Path) -> None:
    make_tree(tmp_path, "part1/a/1.mp4", "part1/a/1.txt", "part2/a/1.mp4")
    assert guess_layout(read_tree(tmp_path)) == "lrs3"
    assert keys(tmp_path) == ["part1/a/1", "part2/a/1"]


def test_what_does_not_fit_the_layout_is_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_tree(tmp_path, "test/a/1.mp4", "extra/deep/er/2.mp4")
    assert keys(tmp_path, layout="lrs3") == ["test/a/1"]
    assert "do not fit layout lrs3: 1 video file," in caplog.text
    assert "extra/deep/er/2.mp4" in caplog.text


@pytest.mark.parametrize(
    ("video", "audio", "key"),
    [
        ("dev/mp4/id00012/v-1/00001.mp4", "dev/aac/id00012/v-1/00001.m4a", "dev/id00012/v-1_00001"),
        ("mp4/id00012/v-1/00001.mp4", "aac/id00012/v-1/00001.m4a", "all/id00012/v-1_00001"),
        ("id00012/v-1/00001.mp4", "wav/id00012/v-1/00001.wav", "all/id00012/v-1_00001"),
        ("test/id00012/v-1/00001.mp4", None, "test/id00012/v-1_00001"),
        ("test/id00012/v-1/00001.mp4", "dev/aac/id00012/v-1/00001.m4a", "test/id00012/v-1_00001"),
    ],
)
def test_voxceleb2_names_and_separate_audio(tmp_path: Path, video: str, audio: str | None, key: str) -> None:
    make_tree(tmp_path, video, *([audio] if audio else []))
    assert guess_layout(read_tree(tmp_path)) == "voxceleb2"
    same_split = audio is not None and not (video.startswith("test") and audio.startswith("dev"))
    assert scan(tmp_path) == (Clip(key, video, 1, sound_path=audio if same_split else None),)


def test_voxceleb2_prefers_uncompressed_audio(tmp_path: Path) -> None:
    make_tree(tmp_path, "mp4/id00012/v/1.mp4", "aac/id00012/v/1.m4a", "wav/id00012/v/1.wav")
    assert scan(tmp_path)[0].sound_path == "wav/id00012/v/1.wav"


def test_folder_takes_the_first_folder_for_the_speaker(tmp_path: Path) -> None:
    make_tree(tmp_path, "anna/day1/take 3.MP4", "loose.mkv", "bob/1.webm", "bob/1.txt", "bob/1.wav")
    assert guess_layout(read_tree(tmp_path)) == "folder"
    assert keys(tmp_path) == ["all/all/loose", "all/anna/day1_take_3", "all/bob/1"]
    assert all(clip.transcript_path is None and clip.sound_path is None for clip in scan(tmp_path))


def test_folder_knows_split_folders(tmp_path: Path) -> None:
    make_tree(tmp_path, "train/anna/day1/1.mp4", "val/2.mp4")
    assert keys(tmp_path) == ["train/anna/day1_1", "val/all/2"]


def test_folder_takes_whatever_is_read_and_counts_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lrs3_loader")
    make_tree(tmp_path, *(f"a/{suffix}.{suffix}" for suffix in ("ts", "flv", "wmv", "m4v", "mts", "3gp")))
    make_tree(tmp_path, "a/x.jpg", "a/y.jpg", "a/z.JSON", "a/LICENCE", "a/b.c/README", "a/words.txt")
    assert len(keys(tmp_path)) == 6
    assert caplog.messages == ["files passed over, by ending: 2 .jpg, 2 without an ending, 1 .json"]


@pytest.mark.parametrize(
    ("files", "speakers"),
    [
        (["WDA_BarackObama_000", "WDA_BarackObama_001", "WRA_AdamKinzinger0_000"], "WDA_BarackObama WRA_AdamKinzinger"),
        (["RD_Radio10_000", "RD_Radio11_000_2", "WRA_AdamKinzinger1_000"], "RD_Radio10 RD_Radio11 WRA_AdamKinzinger"),
        (["M2Ohb0FAaJU_1", "M2Ohb0FAaJU_2", "-0EpxTkWBEk_0_1"], "-0EpxTkWBEk M2Ohb0FAaJU"),
        (["M2Ohb0FAaJU_1", "holiday"], "all"),
        (["WDA_BarackObama_000", "M2Ohb0FAaJU_1"], "all"),
    ],
)
@pytest.mark.parametrize("split", ["", "train/"])
def test_names_of_known_corpora_tell_the_speakers(
    tmp_path: Path, files: list[str], speakers: str, split: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_tree(tmp_path, *(f"{split}{name}.mp4" for name in files))
    found = scan(tmp_path)
    assert sorted({clip.speaker for clip in found}) == speakers.split()
    assert {clip.utterance for clip in found} == set(files)
    assert ("count as one speaker" in caplog.text) == (speakers == "all")


def test_csv_with_all_columns(tmp_path: Path) -> None:
    make_tree(tmp_path, "v/long.mp4", "v/b.mp4")
    table = tmp_path / "clips.csv"
    table.write_text(
        "\ufeffPath, speaker,split,start,end,text,_note\n"
        'v/long.mp4,ann,train,0,2.5,"hello, you",x\n'
        "v/long.mp4,ann,train,2.5,,,\n\n"
        f"{tmp_path}/v/b.mp4,,,,,,\n",
        encoding="utf-8",
    )
    assert corpus_root(CorpusConfig(corpus=table)) == tmp_path
    assert scan(table) == (
        Clip("all/v/b", f"{tmp_path}/v/b.mp4", 1),
        Clip(
            "train/ann/v_long_0000000_0002500", "v/long.mp4", 1, text="hello, you", start_seconds=0.0, end_seconds=2.5
        ),
        Clip("train/ann/v_long_0002500", "v/long.mp4", 1, start_seconds=2.5),
    )


def test_csv_of_files_elsewhere_is_named_below_their_common_folder(tmp_path: Path) -> None:
    make_tree(tmp_path, "store/x/1.mp4", "store/y/1.mp4", "lists/clips.csv")
    table = tmp_path / "lists/clips.csv"
    table.write_text(f"path\n../store/x/1.mp4\n{tmp_path}/store/y/1.mp4\n")
    assert keys(table) == ["all/x/1", "all/y/1"]
    assert (corpus_root(CorpusConfig(corpus=table)) / scan(table)[0].video_path).is_file()


def test_csv_keeps_a_missing_file_as_a_clip_to_be_rejected(tmp_path: Path) -> None:
    make_tree(tmp_path, "a.mp4")
    (tmp_path / "c.csv").write_text("path\na.mp4\ngone.mp4\n")
    assert [clip.num_bytes for clip in scan(tmp_path / "c.csv")] == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,start\na.mp4,0\n", "no column 'path'; it has file, start"),
        ("", "no column 'path'"),
        ("path\n", "lists no clips"),
        ("path,start\na.mp4,0\na.mp4,soon\n", "line 3: start must be a number of seconds, got 'soon'"),
        ("path,start\na.mp4,-1\n", "line 2: start must be"),
        ("path,end\na.mp4,nan\n", "line 2: end must be"),
        ("path,start,end\na.mp4,3,2\n", "line 2: end 2.0 does not lie after start 3.0"),
        ("path\na.mp4,1\n", "line 2: more fields than columns"),
        ("path,start\n,1\n", "line 2: no path"),
        ("path\nnowhere.mp4\n", "none of the files"),
        ("path\na.mp4\n./\n", "line 3 names a folder, not a video: ./"),
        ("path\na.mp4\n./a.mp4\n", "all/all/a: ./a.mp4 (line 3) and a.mp4 (line 2)"),
        ('path\n"a.mp4\n', "unexpected end of data"),
        ("path,speker\na.mp4,ann\n", "unknown column 'speker'; did you mean 'speaker'?"),
        ("path,weather\na.mp4,dry\n", "unknown column 'weather'; known are path, split, speaker, start, end, text;"),
        ("path,Path\na.mp4,b.mp4\n", "two columns 'path'"),
    ],
)
def test_csv_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    make_tree(tmp_path, "a.mp4")
    table = tmp_path / "clips.csv"
    table.write_text(text)
    with pytest.raises(RunError) as caught:
        scan(table)
    assert message in str(caught.value)


def test_csv_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_bytes(b"path\n\xff.mp4\n")
    with pytest.raises(RunError, match="not UTF-8"):
        scan(tmp_path / "c.csv")


# Keys


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("a.b", "a_b"),
        ("..", "__"),
        ("", "_"),
        ("take 3\n(1)", "take_3__1_"),
        ("Zoë-1_x", "Zoë-1_x"),
        ("a\u2028b\x7f\udcff", "a_b__"),
        ("{0..9}*?\\", "_0__9____"),
    ],
)
def test_key_parts_hold_nothing_a_tar_or_shell_trips_over(name: str, part: str) -> None:
    assert key_part(name) == part


COLLIDING = ("test/a/x.y.mp4", "test/a/x_y.mp4", "test/a/x y.mkv", "test/a/x_y_2.mp4", "test/b/1.mp4", "test/b/1.avi")


def test_all_files_that_share_keys_are_named(tmp_path: Path) -> None:
    make_tree(tmp_path, *COLLIDING)
    with pytest.raises(RunError) as caught:
        scan(tmp_path)
    lines = str(caught.value).split("\n")
    assert lines[0] == "2 keys would belong to more than one clip:"
    assert lines[1:3] == [
        "  test/a/x_y: test/a/x y.mkv and test/a/x.y.mp4 and test/a/x_y.mp4",
        "  test/b/1: test/b/1.avi and test/b/1.mp4",
    ]
    assert "--on-collision rename" in lines[3]


def test_files_that_share_a_key_get_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_tree(tmp_path, *COLLIDING)
    assert {clip.key: clip.video_path for clip in scan(tmp_path, on_collision="rename")} == {
        "test/a/x_y": "test/a/x y.mkv",
        "test/a/x_y_3": "test/a/x.y.mp4",  # _2 is the name of another file
        "test/a/x_y_4": "test/a/x_y.mp4",
        "test/a/x_y_2": "test/a/x_y_2.mp4",
        "test/b/1": "test/b/1.avi",
        "test/b/1_2": "test/b/1.mp4",
    }
    assert "3 clips of files whose keys others have already get a number:" in caplog.text


def test_files_that_share_a_key_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_tree(tmp_path, *COLLIDING)
    assert [clip.video_path for clip in scan(tmp_path, on_collision="skip")] == [
        "test/a/x y.mkv",
        "test/a/x_y_2.mp4",
        "test/b/1.avi",
    ]
    assert "3 clips of files whose keys others have already are left out:" in caplog.text


# The tree


def test_order_of_listing_does_not_matter(tmp_path: Path) -> None:
    paths = [f"{split}/{speaker}/{n}.mp4" for split in ("a", "a-b", "b") for speaker in "xyz" for n in range(4)]
    random.Random(0).shuffle(paths)
    make_tree(tmp_path, *paths)
    found = keys(tmp_path, layout="lrs3")
    assert found == sorted(found)
    assert len(found) == 36


def test_link_loops_end_and_linked_folders_are_followed(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "root", "test/a/1.mp4")
    make_tree(tmp_path / "elsewhere", "b/2.mp4")
    (root / "test/a/up").symlink_to(root, target_is_directory=True)
    (root / "train").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/back").symlink_to(root / "test", target_is_directory=True)
    (root / "self").symlink_to("self")
    (root / "test/a/3.mp4").symlink_to("gone.mp4")
    assert [(clip.key, clip.num_bytes) for clip in scan(root)] == [("test/a/1", 1), ("test/a/3", 0), ("train/b/2", 1)]


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/test/a"
    os.makedirs(folder)
    with open(folder + b"/\xff\n.mp4", "wb"):
        pass
    clips = scan(tmp_path)
    assert [clip.key for clip in clips] == ["test/a/__"]
    assert (tmp_path / clips[0].video_path).is_file()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path, "test/a/1.mp4", "test/b/1.mp4")
    scandir = os.scandir

    def refuse(path: os.PathLike[str]):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # file modes do not stop root
    with pytest.raises(RunError, match=r"cannot list .*test/a: Permission denied"):
        scan(tmp_path)


# What the user asked for


def test_splits_speakers_and_limit(tmp_path: Path) -> None:
    make_tree(tmp_path, *(f"{s}/{p}/{n}.mp4" for s in ("test", "train") for p in ("a.b", "c") for n in range(3)))
    assert keys(tmp_path, limit=2) == ["test/a_b/0", "test/a_b/1", "train/a_b/0", "train/a_b/1"]
    assert keys(tmp_path, splits=("test",), speakers=("c",), limit=1) == ["test/c/0"]
    assert len(keys(tmp_path, speakers=("a.b",))) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": ("test", "tset")}, "no split tset in the corpus; there are test, train"),
        ({"speakers": ("z",)}, "no speaker z in the corpus; there are a, b"),
        ({"splits": ("test",), "speakers": ("b",)}, "no speaker b in the corpus; there are a"),
    ],
)
def test_unknown_names_are_answered_with_those_there_are(tmp_path: Path, options: dict, message: str) -> None:
    make_tree(tmp_path, "test/a/1.mp4", "train/b/1.mp4")
    with pytest.raises(RunError) as caught:
        scan(tmp_path, **options)
    assert str(caught.value) == message


def test_an_empty_corpus_tells_what_was_looked_for(tmp_path: Path) -> None:
    make_tree(tmp_path, "readme.txt")
    with pytest.raises(RunError) as caught:
        scan(tmp_path)
    for layout in ("lrs3", "voxceleb2", "folder", "csv"):
        assert f"\n  {layout}: " in str(caught.value)


def test_a_named_layout_that_does_not_fit(tmp_path: Path) -> None:
    make_tree(tmp_path, "a/1.mp4")
    with pytest.raises(RunError, match=r"no clips found.*\n  lrs3: <split>/<speaker>/<utterance>\.mp4"):
        scan(tmp_path, layout="lrs3")


def test_wrong_places(tmp_path: Path) -> None:
    make_tree(tmp_path, "video.mp4", "clips.csv")
    with pytest.raises(RunError, match="no corpus given"):
        scan_corpus(CorpusConfig())
    with pytest.raises(RunError, match=r"no such corpus: .*nowhere"):
        scan(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"video\.mp4 is a file; layout auto needs a folder"):
        scan(tmp_path / "video.mp4")
    with pytest.raises(RunError, match=r"clips\.csv is a file; layout lrs3 needs <split>"):
        scan(tmp_path / "clips.csv", layout="lrs3")
    with pytest.raises(RunError, match=r"is a folder; layout csv needs a \.csv file"):
        scan(tmp_path, layout="csv")


# Transcripts

_TRANSCRIPT = (
    "Text:  THE QUICK FOX\nConf:  5\nRef:   MayAddr0001\n\n"
    "FRAME \tX \tY \tW \tH \n001000 \t-0.312 \t0.105 \t0.251 \t1.446 \n001001 \t0.312 \t0.105 \t0.251 \t0.446 \n\n"
    "WORD START END ASDSCORE\nTHE 0.00 0.68 4.2\nFOX 2.25 2.92 -5.1\n"
)


def parse(tmp_path: Path, text: str | bytes) -> Transcript:
    path = tmp_path / "t.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_transcript(path)


def test_transcript_whole(tmp_path: Path) -> None:
    transcript = parse(tmp_path, _TRANSCRIPT)
    assert (transcript.text, transcript.conf, transcript.ref) == ("THE QUICK FOX", 5, "MayAddr0001")
    assert transcript.boxes.dtype == np.float64
    assert transcript.boxes.tolist() == [[1000, -0.312, 0.105, 0.251, 1.446], [1001, 0.312, 0.105, 0.251, 0.446]]
    assert transcript.words == (("THE", 0.0, 0.68, 4.2), ("FOX", 2.25, 2.92, -5.1))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\n\n \t\n"),
        lambda text: text.replace(" ", "\t").replace("\t\t", " "),
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("Conf:", "Disc:  x\nConf:"),
    ],
    ids=["crlf", "bom", "blank lines", "tabs", "no last newline", "another header"],
)
def test_transcript_spelling_does_not_matter(tmp_path: Path, change: Callable[[str], str]) -> None:
    want, got = parse(tmp_path, _TRANSCRIPT), parse(tmp_path, change(_TRANSCRIPT))
    assert (got.text.split(), got.conf, got.ref, got.words) == (want.text.split(), want.conf, want.ref, want.words)
    assert np.array_equal(got.boxes, want.boxes)


def test_transcript_parts_that_may_be_missing(tmp_path: Path) -> None:
    bare = parse(tmp_path, "Text: HI\u2028THERE\n")
    assert (bare.text, bare.conf, bare.ref, bare.words, bare.boxes.shape) == ("HI\u2028THERE", None, None, (), (0, 5))
    no_words = parse(tmp_path, _TRANSCRIPT.partition("WORD")[0])
    assert no_words.words == ()
    assert len(no_words.boxes) == 2
    no_frames = parse(tmp_path, "Text: A\n\nWORD START END ASDSCORE\nA 0 1 2\n")
    assert no_frames.words == (("A", 0.0, 1.0, 2.0),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no 'Text:' line"),
        ("hello\n", "line 1: expected 'Text:'"),
        ("Text: A\nText: B\n", "line 2: expected 'Text:'"),
        ("Conf: 5\n", "no 'Text:' line"),
        (_TRANSCRIPT.replace("Conf:  5", "Conf:  five"), "line 2: Conf must be a whole number"),
        (_TRANSCRIPT.replace("Conf:  5", "Conf:  " + "9" * 10_000), "line 2: Conf"),
        (_TRANSCRIPT.replace("0.105", "x", 1), "line 6: not a number"),
        (_TRANSCRIPT.replace("0.105", "nan", 1), "line 6: not a finite number"),
        (_TRANSCRIPT.replace("001001", "1.5"), "line 7: the frame number must be"),
        (_TRANSCRIPT.replace("\t0.105", "", 1), "line 6: expected FRAME X Y W H"),
        (_TRANSCRIPT.replace("0.68", "soon"), "line 10: not a number"),
        (_TRANSCRIPT.replace("0.68 4.2", "0.68"), "line 10: expected WORD START END ASDSCORE"),
        (b"Text: \xff\n", "not UTF-8 text (byte 6)"),
        (b"\0" * 100, "line 1: expected 'Text:'"),
        pytest.param(b"Text: A\n" + b"\n" * MAX_BYTES, "larger than", id="too large"),
    ],
)
def test_transcript_errors_say_where(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(BadTranscriptError) as caught:
        parse(tmp_path, text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_transcript_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadTranscriptError, match="gone"):
        read_transcript(tmp_path / "gone.txt")
    with pytest.raises(BadTranscriptError):
        read_transcript(tmp_path)


@pytest.mark.timeout(30)
def test_a_transcript_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(BadTranscriptError, match="not a regular file"):
        read_transcript(tmp_path / "pipe.txt")


def test_real_corpus(shared_data: Path) -> None:
    root = shared_data / "lrs3_mini"
    assert guess_layout(read_tree(root)) == "lrs3"
    clips = scan(root)
    assert len(clips) == 9
    for clip in clips:
        assert clip.transcript_path is not None
        transcript = read_transcript(root / clip.transcript_path)
        assert transcript.text
        assert len(transcript.boxes) > 0
        assert (np.diff(transcript.boxes[:, 0]) == 1).all()
    assert guess_layout(read_tree(shared_data / "clips")) == "folder"
