"""Finds the clips of a corpus and gives them keys.

| layout | example | key |
|---|---|---|
| lrs3 | ``pretrain/0Fi83BHQsMA/00002.mp4`` + ``.txt`` | ``pretrain/0Fi83BHQsMA/00002`` |
| voxceleb2 | ``dev/mp4/id00012/21Uxsk56VDQ/00001.mp4`` | ``dev/id00012/21Uxsk56VDQ_00001`` |
| folder | ``anna/day1/take 3.mp4`` | ``all/anna/day1_take_3`` |
| csv | ``clips.csv``: columns path, split, speaker, start, end, text | ``split/speaker/path_start_end`` |

The clips, their keys and their order depend only on the names in the tree, never on the order in which the file system
lists them.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, islice

from lrs3_loader.config import CorpusConfig, Layout
from lrs3_loader.corpus import layouts
from lrs3_loader.corpus.csv_table import read_clip_table
from lrs3_loader.corpus.layouts import FileTree, Found
from lrs3_loader.errors import RunError, count_of
from lrs3_loader.io.storage import Location, Url
from lrs3_loader.types import Clip, printable

logger = logging.getLogger(__name__)

_TREE_LAYOUTS: dict[str, Callable[[FileTree], list[Found]]] = {
    "lrs3": layouts.lrs3,
    "voxceleb2": layouts.voxceleb2,
    "folder": layouts.folder,
}
_EXAMPLES = {
    "lrs3": "<split>/<speaker>/<utterance>.mp4 with .txt next to it, such as pretrain/0Fi83BHQsMA/00002.mp4",
    "voxceleb2": "[<split>/][mp4/]<speaker>/<video>/<utterance>.mp4, such as dev/mp4/id00012/21Uxsk56VDQ/00001.mp4",
    "folder": f"video files ({' '.join(layouts.VIDEO_SUFFIXES)}) at any depth",
    "csv": "a .csv file with a column 'path' (and optionally split, speaker, start, end, text)",
}
_MAX_LISTED = 20  # names listed in a message
_MAX_KINDS = 6  # of files that are passed over, listed in a message


@dataclass(frozen=True)
class Corpus:
    """The clips of a corpus, sorted by key, and the layout by which they were found."""

    layout: Layout
    root: Location  # that the paths of the clips are relative to
    clips: tuple[Clip, ...]

    def describe(self) -> str:
        """Return one line: the layout, and how many clips, splits and speakers there are."""
        splits, speakers = ({getattr(clip, name) for clip in self.clips} for name in ("split", "speaker"))
        counts = ((self.clips, "clip"), (splits, "split"), (speakers, "speaker"))
        return f"layout {self.layout}: " + ", ".join(count_of(len(items), name) for items, name in counts)


def find_corpus(config: CorpusConfig) -> Corpus:
    """Find the clips that ``config`` selects, sorted by key, and log what is left out.

    Keys have the form ``split/speaker/utterance``; characters that a tar member or a WebDataset key cannot hold (dots,
    white space, slashes, quotes, brackets...) are replaced by ``_``. ``config.limit`` keeps the first clips of each
    split.

    Raises:
        RunError: no corpus is given or found, two files would get the same key (unless ``config.on_collision`` says
            what to do then), or a requested split or speaker does not exist.
    """
    root = corpus_root(config)
    path = config.corpus
    assert path is not None
    if _is_table(path):
        layout: Layout = "csv"
        found = read_clip_table(path)
    else:
        tree = layouts.read_tree(root)
        layout = layouts.guess_layout(tree) if config.layout == "auto" else config.layout
        found = _TREE_LAYOUTS[layout](tree)
        _log_left_out(tree, found, layout)
    if not found:
        wanted = _EXAMPLES if config.layout == "auto" else {layout: _EXAMPLES[layout]}
        looked_for = "".join(f"\n  {name}: {example}" for name, example in wanted.items())
        raise RunError(f"no clips found in {path}; looked for{looked_for}")
    clips = _name_clips(found, config.on_collision)
    if layout == "folder" and len(clips) > 1 and {clip.speaker for clip in clips} == {layouts.NO_NAME}:
        logger.warning(
            "all %d clips count as one speaker: give each speaker a folder, or name the speakers in a .csv file",
            len(clips),
        )
    return Corpus(layout, root, _select(clips, config))


def scan_corpus(config: CorpusConfig) -> tuple[Clip, ...]:
    """Return the clips of ``find_corpus``."""
    return find_corpus(config).clips


def _log_left_out(tree: FileTree, found: list[Found], layout: str) -> None:
    others = tree.videos.keys() - {item.video_path for item in found}
    if found and others:
        text = "left out because they do not fit layout %s: %s, such as %s"
        logger.warning(text, layout, count_of(len(others), "video file"), min(others))
    if tree.others:
        kinds = [f"{count} {suffix}" for suffix, count in tree.others.most_common(_MAX_KINDS)]
        more = len(tree.others) - len(kinds)
        listed = ", ".join(kinds) + (f" and {count_of(more, 'other kind')}" if more else "")
        logger.info("files passed over, by ending: %s", listed)


def corpus_root(config: CorpusConfig) -> Location:
    """Return the folder or URL that the paths of the clips are relative to.

    Raises:
        RunError: no corpus is given, it does not exist, or it is a file although the layout needs a folder (or vice
            versa).
    """
    path = config.corpus
    if path is None:
        raise RunError("no corpus given: name its folder or .csv file with --corpus")
    if isinstance(path, Url):  # listing it shows whether it exists
        return Url(path.rpartition("/")[0]) if _is_table(path) else path
    if path.is_file():
        if path.suffix.lower() == ".csv" and config.layout in ("auto", "csv"):
            return path.parent
        raise RunError(f"{path} is a file; layout {config.layout} needs {_EXAMPLES.get(config.layout, 'a folder')}")
    if not path.is_dir():
        raise RunError(f"no such corpus: {path}")
    if config.layout == "csv":
        raise RunError(f"{path} is a folder; layout csv needs {_EXAMPLES['csv']}")
    return path


def _is_table(path: Location) -> bool:
    return path.lower().endswith(".csv") if isinstance(path, Url) else path.is_file()


def _name_clips(found: list[Found], on_collision: str) -> list[Clip]:
    """Give each clip a key, and sort them; of files with the same key, the first by path has it.

    Raises:
        RunError: two have the same key, and ``on_collision`` is ``error``.
    """
    by_key: dict[str, list[Found]] = {}
    for item in sorted(found, key=lambda item: (item.video_path, item.line or 0)):
        key = "/".join(key_part(name) for name in (item.split, item.speaker, item.utterance))
        by_key.setdefault(key, []).append(item)
    named = {key: items[0] for key, items in by_key.items()}
    colliding = {key: items for key, items in by_key.items() if len(items) > 1}
    if colliding and on_collision == "error":
        raise RunError(
            f"{count_of(len(colliding), 'key')} would belong to more than one clip:{_list_collisions(colliding)}\n"
            "rename files, or choose --on-collision rename (all but the first get a number) or skip (they are left out)"
        )
    if colliding:
        text = "%s of files whose keys others have already %s:%s"
        done = "get a number" if on_collision == "rename" else "are left out"
        num_others = sum(len(items) - 1 for items in colliding.values())
        logger.warning(text, count_of(num_others, "clip"), done, _list_collisions(colliding))
    if on_collision == "rename":
        for key, items in sorted(colliding.items()):
            free = (name for number in itertools.count(2) if (name := f"{key}_{number}") not in named)
            for item in items[1:]:
                named[next(free)] = item
    names = {field.name for field in dataclasses.fields(Found)} & {field.name for field in dataclasses.fields(Clip)}
    return [Clip(key, **{name: getattr(named[key], name) for name in names}) for key in sorted(named)]


def _list_collisions(colliding: dict[str, list[Found]]) -> str:
    lines = [
        f"\n  {key}: "
        + " and ".join(
            printable(item.video_path) + (f" (line {item.line})" if item.line is not None else "") for item in items
        )
        for key, items in sorted(colliding.items())
    ]
    more = len(lines) - _MAX_LISTED
    return "".join(lines[:_MAX_LISTED]) + (f"\n  ... and {more} more" if more > 0 else "")


_UNSAFE_ASCII = re.compile(r"[^A-Za-z0-9_+=@,~\-\x80-\U0010ffff]")


def key_part(name: str) -> str:
    """Make one part of a key, in which characters with a meaning in tar, shell or WebDataset are replaced by ``_``.

    ASCII letters, digits, ``_+=@,~-`` and printable characters beyond ASCII are kept.
    """
    name = _UNSAFE_ASCII.sub("_", name)
    if not name.isascii():
        name = "".join(c if c.isprintable() and not c.isspace() else "_" for c in name)
    return name or "_"


def _select(clips: list[Clip], config: CorpusConfig) -> tuple[Clip, ...]:
    for kind, names in (("split", config.splits), ("speaker", config.speakers)):
        if not names:
            continue
        wanted, present = {key_part(name) for name in names}, {getattr(clip, kind) for clip in clips}
        if unknown := sorted(wanted - present):
            listed = ", ".join(sorted(present)[:_MAX_LISTED])
            more = f" and {len(present) - _MAX_LISTED} more" if len(present) > _MAX_LISTED else ""
            raise RunError(f"no {kind} {', '.join(unknown)} in the corpus; there are {listed}{more}")
        clips = [clip for clip in clips if getattr(clip, kind) in wanted]
    by_split = groupby(clips, key=lambda clip: clip.split)
    return tuple(clip for _, members in by_split for clip in islice(members, config.limit))
