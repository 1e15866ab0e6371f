"""Damage that containers tell: checksums of Matroska, the chain of chunks of AVI, and gaps at a constant rate."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.avi import check_avi
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.decode.frames import FrameReader
from lrs3_loader.decode.matroska import damaged_ranges
from lrs3_loader.decode.timing import is_after_loss
from lrs3_loader.decode.video import VideoTrack, probe_video
from lrs3_loader.errors import UnreadableError
from lrs3_loader.types import Clip, DecodedChunk
from support.media_files import noise, write_media
from support.pitch_stubs import flat_pitch

CLUSTER = bytes.fromhex("1f43b675")


def damaged_frames(path: Path) -> set[int]:
    track = probe_video(path, path.name, DecodeConfig())
    reader = FrameReader(track, track.frame_indices_25fps())
    return set(reader.read(reader.num_left)[1])


@pytest.fixture
def mkv(tmp_path: Path) -> Path:
    """Seven seconds with sound, in clusters that begin with key frames, of which every twelfth frame is one."""
    return write_media(
        tmp_path / "a.mkv", num_frames=175, sound=noise(7.0, 16_000), container_options={"cluster_time_limit": "1000"}
    )


def test_every_byte_of_a_cluster_is_checked(mkv: Path) -> None:
    whole = mkv.read_bytes()
    assert damaged_ranges(mkv) == ()
    assert damaged_frames(mkv) == set()
    starts = [at for at in range(len(whole)) if whole[at : at + 4] == CLUSTER]
    assert len(starts) > 2
    for at in range(starts[1] + 20, starts[2], 97):
        spoilt = bytearray(whole)
        spoilt[at] ^= 4
        mkv.write_bytes(spoilt)
        [found] = damaged_ranges(mkv)
        assert at in found
        assert found.stop == starts[2]


def test_frames_of_a_damaged_cluster_are_damaged_up_to_a_key_frame(mkv: Path) -> None:
    whole = bytearray(mkv.read_bytes())
    starts = [at for at in range(len(whole)) if whole[at : at + 4] == CLUSTER]
    at = starts[2] - 3  # in the sound, which decodes all the same
    whole[at] ^= 1
    mkv.write_bytes(whole)
    damaged = damaged_frames(mkv)
    assert 0 < len(damaged) < 60
    assert damaged == set(range(min(damaged), max(damaged) + 1))
    assert (max(damaged) + 1) % 12 == 0


def test_what_follows_a_break_in_the_structure_is_damaged(mkv: Path) -> None:
    whole = mkv.read_bytes()
    starts = [at for at in range(len(whole)) if whole[at : at + 4] == CLUSTER]
    mkv.write_bytes(whole[: starts[1]] + bytes(50) + whole[starts[1] :])
    assert damaged_ranges(mkv) == (range(starts[1], starts[1] + 50),)
    assert damaged_frames(mkv) == set()  # nothing was lost, and the next cluster begins with a key frame
    mkv.write_bytes(whole[: starts[1]] + bytes(4) + whole[starts[1] + 4 :])
    assert damaged_ranges(mkv) == (range(starts[1], starts[2]),)


def element(kind: str, contents: bytes) -> bytes:
    return bytes.fromhex(kind) + (len(contents) | 1 << 28).to_bytes(4, "big") + contents


def test_blocks_without_checksums_must_fill_their_clusters(tmp_path: Path) -> None:
    blocks = [element("a3", bytes([0x81, 0, number, 0]) + bytes(30)) for number in range(4)]
    cluster = element("1f43b675", element("e7", b"\0") + b"".join(blocks))
    head = element("1a45dfa3", b"")
    start = len(head) + 8 + len(cluster)
    path = tmp_path / "a.webm"

    def found(second: bytes) -> tuple[range, ...]:
        path.write_bytes(head + element("18538067", cluster + second + cluster))
        return damaged_ranges(path)

    assert found(cluster) == ()
    third = cluster.index(blocks[2])
    too_long = cluster[: third + 1] + (900 | 1 << 28).to_bytes(4, "big") + cluster[third + 5 :]
    lost = cluster[:third] + cluster[third + 6 :]
    second = start + cluster.index(blocks[1])  # its length may be what is wrong
    assert found(too_long) == (range(second, start + len(cluster)),)
    assert found(lost)[0].start == second
    assert found(cluster[:third]) == (range(start + third, start + third),)  # what is there is whole


def test_frames_after_a_break_are_damaged_up_to_a_key_frame(tmp_path: Path) -> None:
    options = {"cluster_time_limit": "1000"}
    webm = write_media(
        tmp_path / "a.webm",
        num_frames=100,
        video_codec="libvpx",
        video_options={"g": "25"},
        container_options=options,
    )
    whole = webm.read_bytes()
    assert damaged_frames(webm) == set()
    starts = [at for at in range(len(whole)) if whole[at : at + 4] == CLUSTER]
    at = (starts[1] + starts[2]) // 2
    webm.write_bytes(whole[:at] + whole[at + 7 :])
    damaged = damaged_frames(webm)
    assert 25 < min(damaged) < 50  # the key frame after it is lost as well
    assert set(range(50, 75)) <= damaged
    assert max(damaged) == 74


def test_files_without_checksums_and_of_other_formats_pass(tmp_path: Path) -> None:
    webm = write_media(tmp_path / "a.webm", video_codec="libvpx")
    data = bytearray(webm.read_bytes())
    data[-200] ^= 1
    webm.write_bytes(data)
    assert damaged_ranges(webm) == ()
    for name, contents in (("empty", b""), ("text", b"hello"), ("head", bytes.fromhex("1a45dfa3"))):
        (tmp_path / name).write_bytes(contents)
        assert damaged_ranges(tmp_path / name) == ()


@pytest.fixture
def avi(tmp_path: Path) -> Path:
    path = tmp_path / "a.avi"
    return write_media(path, video_codec="mpeg4", sound=noise(2.0, 16_000), sound_codec="pcm_s16le")


def check(path: Path) -> None:
    check_avi(path, path.name)


@pytest.mark.parametrize("change", ["insert", "lose", "cut", "noise"])
def test_a_broken_chain_of_chunks_is_refused(avi: Path, change: str) -> None:
    whole = avi.read_bytes()
    check(avi)
    at = whole.index(b"movi") + 4
    size = struct.unpack("<I", whole[at + 4 : at + 8])[0]
    second = at + 8 + size + size % 2
    changed = {
        "insert": whole[: at + 20] + bytes(20) + whole[at + 20 :],
        "lose": whole[: at + 20] + whole[at + 40 :],
        "cut": whole[: len(whole) // 2],
        "noise": whole[:second] + b"\xff\xfe\x01\x02" + whole[second + 4 :],
    }[change]
    avi.write_bytes(changed)
    with pytest.raises(UnreadableError, match=r"a\.avi: (cut short|damaged: no chunk at byte)"):
        check(avi)


def test_odd_avi_files_pass(avi: Path) -> None:
    whole = bytearray(avi.read_bytes())
    check(avi)
    avi.write_bytes(whole + b"trailing bytes")
    check(avi)
    movi = whole.index(b"movi") - 4
    for at in (4, movi):  # a recording whose writer was stopped
        stopped = bytearray(whole)
        stopped[at : at + 4] = bytes(4)
        avi.write_bytes(stopped)
        check(avi)


def test_chunks_that_are_not_filled_up_to_even_lengths_pass(tmp_path: Path) -> None:
    frames = b"".join(b"00dc" + struct.pack("<I", size) + bytes(size) for size in (3, 4, 5, 7))
    movi = b"LIST" + struct.pack("<I", len(frames) + 4) + b"movi" + frames
    (tmp_path / "a.avi").write_bytes(b"RIFF" + struct.pack("<I", len(movi) + 4) + b"AVI " + movi)
    check(tmp_path / "a.avi")


def test_gaps_at_a_constant_rate_are_losses() -> None:
    pts = 40 * np.arange(100)
    assert not is_after_loss(pts).any()
    lost = is_after_loss(np.delete(pts, [30, 31, 32, 60]))
    assert np.flatnonzero(lost).tolist() == [29, 56]


@pytest.mark.parametrize(
    "pts",
    [
        np.arange(0, 3300, 33)[:90],
        np.rint(np.arange(100) * 1000 / 30),  # rounded to milliseconds
        np.rint(np.arange(100) * 1001 / 24),
        np.cumsum(np.random.default_rng(0).integers(30, 50, 100)),  # the rate varies
        np.cumsum(np.where(np.arange(100) % 10 == 0, 80, 40)),  # every tenth is shown twice as long
        np.cumsum(np.where(np.arange(100) == 50, 57, 40)),  # a step that is no whole number of frames
        np.delete(np.arange(100), 50),  # numbers of frames, as in AVI
        np.array([0]),
        np.array([0, 40, 80, 400]),
    ],
)
def test_no_loss_is_seen_where_the_rate_may_vary(pts: np.ndarray) -> None:
    assert not is_after_loss(pts.astype(np.int64)).any()


def test_only_frames_that_stand_in_for_lost_ones_count() -> None:
    pts = np.delete(40 * np.arange(50), [20, 21])
    track = VideoTrack(Path("a"), "a", pts, 2000, Fraction(1, 1000), 8, 8, pts[:1])
    assert np.flatnonzero(track.frames_lost_25fps()).tolist() == [20, 21]
    slow = np.delete(80 * np.arange(50), 20)  # 12.5 frames a second: each is shown twice
    track = VideoTrack(Path("a"), "a", slow, 4000, Fraction(1, 1000), 8, 8, slow[:1])
    assert np.flatnonzero(track.frames_lost_25fps()).tolist() == [40, 41]


@pytest.mark.parametrize("start_seconds", [None, 0.4])
def test_lost_frames_of_a_clip_are_damaged(tmp_path: Path, start_seconds: float | None) -> None:
    times = [number / 25 for number in range(50) if number not in (20, 21, 22)]
    write_media(tmp_path / "a.mp4", num_frames=47, frame_times=times, sound=noise(2.0, 16_000))
    clip = Clip("a/b/c", "a.mp4", 1, start_seconds=start_seconds)
    chunk = ClipDataset(tmp_path, DecodeConfig(), flat_pitch)[ChunkRequest(clip)]
    assert isinstance(chunk, DecodedChunk)
    first = 10 if start_seconds else 0
    assert chunk.damaged == (20 - first, 21 - first, 22 - first)
