"""Lists the files of a corpus in one pass, and derives the names of clips from their paths.

A layout is a function ``FileTree -> list[Found]`` that gives each video file a split, a speaker and the name of the
utterance; ``corpus.scan`` makes keys of these.
"""

from __future__ import annotations

import heapq
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from lrs3_loader.errors import RunError
from lrs3_loader.io.storage import Location, RemoteStore, Url

VIDEO_SUFFIXES = (
    *(".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".f4v"),
    *(".wmv", ".asf", ".vob", ".3gp", ".3g2", ".ogv", ".mxf", ".dv", ".nut", ".rm", ".rmvb"),
)
AUDIO_SUFFIXES = (".wav", ".flac", ".m4a", ".aac", ".mp3", ".ogg", ".opus")  # in order of preference
TRANSCRIPT_SUFFIX = ".txt"

#: Folder names that are recognized as splits in layouts that do not define them.
SPLIT_NAMES = frozenset(
    ["pretrain", "trainval", "train", "training", "val", "valid", "validation", "dev", "test", "testing", "main"]
)
NO_NAME = "all"  # the split or speaker of clips whose path does not contain one

_VOXCELEB_SPEAKER = re.compile(r"id\d{5}")
_VOXCELEB_VIDEO_FOLDERS = frozenset({"mp4", "video"})
_VOXCELEB_AUDIO_FOLDERS = frozenset({"aac", "m4a", "wav", "flac", "mp3", "audio"})
#: Names of files in one folder that tell the speaker: HDTF's WDA_BarackObama_000.mp4 (the number behind a name counts
#: videos of one person, except for RD_Radio10_000), and CelebV's, which begin with the 11 characters of a video's id.
_SPEAKER_NAMES = (
    re.compile(r"(?P<speaker>RD_[A-Za-z]+\d*|(?:WDA|WRA)_[A-Za-z]+)\d*(?:_\d+)+"),
    re.compile(r"(?P<speaker>[A-Za-z0-9_-]{11})(?:_\d+)+"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """A clip that has no key yet: names as they are in the corpus, paths relative to its root."""

    split: str
    speaker: str
    utterance: str
    video_path: str
    num_bytes: int
    sound_path: str | None = None
    transcript_path: str | None = None
    text: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    line: int | None = None  # of the csv file, for messages


@dataclass(frozen=True)
class FileTree:
    """All files below a folder that may belong to clips, by relative path with POSIX separators."""

    videos: dict[str, int]  # path -> bytes
    audio: list[str]
    transcripts: set[str]
    others: Counter[str] = field(default_factory=Counter)  # number of files passed over, by suffix


def read_tree(root: Location) -> FileTree:
    """List a corpus in one pass, with the sizes of video files only.

    In a folder, hidden files and folders are skipped. A broken link, a pipe or a device counts as a video of
    0 bytes, so that it becomes a reject.

    Raises:
        RunError: ``root`` is not a folder, a folder below it cannot be listed, or the storage cannot be reached.
    """
    tree = FileTree({}, [], set())
    files: Iterable[tuple[str, int | os.DirEntry[str]]]
    files = RemoteStore(root).tree().items() if isinstance(root, Url) else _walk(root)
    for path, file in files:
        suffix = _suffix(path)
        if suffix == TRANSCRIPT_SUFFIX:
            tree.transcripts.add(path)
        elif suffix in VIDEO_SUFFIXES:
            tree.videos[path] = file if isinstance(file, int) else file_size(file)
        elif suffix in AUDIO_SUFFIXES:
            tree.audio.append(path)
        else:
            tree.others[suffix if "." in path.rpartition("/")[2] else "without an ending"] += 1
    return tree


def file_size(file: os.PathLike[str]) -> int:
    """Return the size of a file in bytes. It is 0 for a missing file, whose clip is rejected when it is decoded."""
    try:
        return os.stat(file).st_size
    except OSError:
        return 0


def _walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the relative path and the entry of every file below ``root``, visiting each folder once.

    Linked folders follow after all real ones, in sorted order. So the result does not depend on the order in which the
    file system lists entries, and loops end.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        prefix = folders.pop() if folders else heapq.heappop(links)
        try:
            state = os.stat(root / prefix)
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    path = prefix + entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path + "/")
                    elif entry.is_symlink() and os.path.isdir(entry):
                        heapq.heappush(links, path + "/")
                    else:
                        yield path, entry
        except OSError as error:
            raise RunError(f"cannot list {root / prefix}: {error.strerror}") from error


def guess_layout(tree: FileTree) -> Literal["lrs3", "voxceleb2", "folder"]:
    """Guess the layout of a tree.

    It is ``voxceleb2`` if there are ``id00012`` or ``mp4`` folders; ``lrs3`` if all videos lie at the third level, with
    transcripts or below folders named as splits; otherwise ``folder``.
    """
    if any(_is_voxceleb2(path.split("/")) for path in tree.videos):
        return "voxceleb2"
    if tree.videos and all(path.count("/") == 2 for path in tree.videos):
        has_transcripts = any(_transcript_of(path) in tree.transcripts for path in tree.videos)
        if has_transcripts or all(path.partition("/")[0] in SPLIT_NAMES for path in tree.videos):
            return "lrs3"
    return "folder"


def _is_voxceleb2(parts: list[str]) -> bool:
    named = len(parts) >= 3 and _VOXCELEB_SPEAKER.fullmatch(parts[-3]) is not None
    return named or (len(parts) >= 4 and parts[-4] in _VOXCELEB_VIDEO_FOLDERS)


def lrs3(tree: FileTree) -> list[Found]:
    """Find clips at ``<split>/<speaker>/<utterance>.mp4`` with transcripts next to them, as in LRS3 and LRS2."""
    found = []
    for path, num_bytes in tree.videos.items():
        parts = path.split("/")
        if len(parts) == 3:
            transcript = _transcript_of(path)
            known = transcript if transcript in tree.transcripts else None
            found.append(Found(parts[0], parts[1], _stem(parts[2]), path, num_bytes, transcript_path=known))
    return found


def voxceleb2(tree: FileTree) -> list[Found]:
    """Find clips at ``[<split>/][mp4/]<speaker>/<video>/<utterance>.mp4``, with audio in ``[<split>/]aac/...``.

    The published videos have no audio track: each is paired with the audio file of equal split, speaker, video and
    utterance. Without a split folder the split is ``all``.
    """
    audio: dict[tuple[str, ...], str] = {}
    for path in sorted(tree.audio, key=lambda p: (AUDIO_SUFFIXES.index(_suffix(p)), p)):
        names = _voxceleb2_names(path, _VOXCELEB_AUDIO_FOLDERS | _VOXCELEB_VIDEO_FOLDERS)
        if names is not None:
            audio.setdefault(names, path)
    found = []
    for path, num_bytes in tree.videos.items():
        names = _voxceleb2_names(path, _VOXCELEB_VIDEO_FOLDERS)
        if names is not None:
            split, speaker, video, utterance = names
            found.append(Found(split, speaker, f"{video}_{utterance}", path, num_bytes, audio.get(names)))
    return found


def _voxceleb2_names(path: str, kind_folders: frozenset[str]) -> tuple[str, str, str, str] | None:
    """Return (split, speaker, video, utterance) of a path, or None if it does not have this form."""
    parts = path.split("/")
    prefix = parts[:-3]
    if prefix and prefix[-1] in kind_folders:
        prefix.pop()
    if len(parts) < 3 or len(prefix) > 1:
        return None
    return prefix[0] if prefix else NO_NAME, parts[-3], parts[-2], _stem(parts[-1])


def folder(tree: FileTree) -> list[Found]:
    """Find clips in any tree: the first folder is the speaker, the rest of the path the utterance (joined by ``_``).

    If every video lies below a folder with the name of a split (``train``, ``val``, ``test``...), that level is the
    split; otherwise the split is ``all``. Videos outside of any folder have the speaker ``all``, unless all their names
    tell speakers, as those of HDTF and CelebV do; a csv file can tell them as well.
    """
    has_splits = all("/" in path and path.split("/")[0] in SPLIT_NAMES for path in tree.videos)
    found = []
    for path, num_bytes in tree.videos.items():
        split, _, rest = path.partition("/") if has_splits else (NO_NAME, "", path)
        speaker, utterance = names_from_path(rest)
        found.append(Found(split, speaker, utterance, path, num_bytes))
    loose = [item for item in found if item.speaker == NO_NAME and item.video_path.count("/") == has_splits]
    for pattern in _SPEAKER_NAMES:
        matches = [pattern.fullmatch(item.utterance) for item in loose]
        if loose and all(matches):
            speakers = {item: match["speaker"] for item, match in zip(loose, matches, strict=True) if match}
            return [replace(item, speaker=speakers.get(item, item.speaker)) for item in found]
    return found


def names_from_path(path: str) -> tuple[str, str]:
    """Return (speaker, utterance) of a relative path: its first folder, and the rest joined by ``_``."""
    *folders, file = PurePosixPath(path).parts
    speaker, *below = folders or [NO_NAME]
    return speaker, "_".join([*below, _stem(file)])


def _stem(file: str) -> str:
    return file.rpartition(".")[0]


def _suffix(path: str) -> str:
    """Return the lowercase suffix, such as ``.mp4`` of ``clip.MP4``. Several times faster than ``os.path.splitext``."""
    return "." + path.rpartition(".")[2].lower()


def _transcript_of(video_path: str) -> str:
    return _stem(video_path) + TRANSCRIPT_SUFFIX
