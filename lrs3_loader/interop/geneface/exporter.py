"""Exports a run as a set that GeneFace trains from: ``train.data``, ``val.data`` and their companions.

DEST/
  train.data, val.data              items (see ``indexed`` and ``item``)
  sizes_train.npy, sizes_val.npy    [n] i64, mel rows of each item; without them GeneFace reads the whole set first
  spk_id2spk_idx.npy                {speaker: number}, saved as GeneFace saves it
  export.json                       what was exported and how; written last: its presence says that the set is whole

Samples pass through one at a time, in the order of the run's plan.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from lrs3_loader.errors import RunError, count_of
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.interop.geneface.indexed import IndexedWriter
from lrs3_loader.interop.geneface.item import MIN_MEL_ROWS, ItemMaker, NotExportedError, describe_coeff
from lrs3_loader.interop.geneface.pickle_writer import write_dict_npy
from lrs3_loader.interop.geneface.settings import ExportOptions
from lrs3_loader.io.files import make_folder, write_result
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.selection.smaller_run import chosen_keys
from lrs3_loader.types import Shard

logger = logging.getLogger(__name__)

EXPORT_FORMAT = "lrs3_loader geneface export 1"
RECORD = "export.json"
HUBERT_WIDTH = 1024  # GeneFace's networks are built for HuBERT-large
_EVERY = 100
_SPEAKERS = "spk_id2spk_idx.npy"


@dataclass(frozen=True)
class ExportReport:
    """Counts of an export, and notes on it."""

    num_train: int
    num_val: int
    dropped: dict[str, int]  # why -> clips
    num_bytes: int  # of both .data files, the 32 MiB of their heads included
    notes: tuple[str, ...]  # what a user of the set has to know


def export_geneface(
    folder: RunFolder,
    dest: Path,
    options: ExportOptions,
    face_model: FaceModel | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> ExportReport:
    """Write a run as a GeneFace set.

    Args:
        folder: the run; it must be finished unless ``options.partial``.
        dest: made if needed.
        face_model: the run's, for ``options.items.keypoint_off_by_one`` only.
        progress: told of clips as they pass.

    Raises:
        RunError: the run is not finished, ``dest`` already holds a set, or a sample lacks a field.
    """
    _check_model(folder, face_model)
    maker = ItemMaker(options.items, face_model)
    where = options.choice.expression()
    keys = None if where is None else chosen_keys(folder, where)
    shards, speaker_index, held_out = _choose(folder, options, keys)
    _prepare(dest, options.overwrite)
    dropped: Counter[str] = Counter()
    notes: dict[str, Any] = {}
    with ExitStack() as stack:
        sets = {name: _SetWriter(stack, dest, name) for name in ("train", "val")}
        for sample in itertools.chain.from_iterable(map(folder.samples, shards)):
            progress(1)
            if keys is not None and sample["__key__"] not in keys:
                continue
            notes = notes or _notes(sample, folder)
            key = sample["__key__"]
            speaker = key.split("/")[1]
            if speaker not in speaker_index:
                raise RunError(
                    f"{key} is not in the plan of {folder.path}; lrs3-loader verify lists what does not match"
                )
            try:
                item = maker(sample, speaker_index[speaker])
            except NotExportedError as reason:
                dropped[str(reason)] += 1
                continue
            sets["val" if key in held_out or speaker in held_out else "train"].add(item)
        for writer in sets.values():
            writer.finish()
    with write_result(dest / _SPEAKERS) as file:
        write_dict_npy(file, speaker_index)
    report = ExportReport(
        num_train=len(sets["train"]),
        num_val=len(sets["val"]),
        dropped=dict(dropped),
        num_bytes=sum(writer.num_bytes for writer in sets.values()),
        notes=(*notes.get("texts", []), *_count_notes(sets, dropped)),
    )
    _write_record(dest, folder, options, report, notes.get("coeff", {}))
    for note in report.notes:
        logger.warning("%s", note)
    return report


def _write_record(
    dest: Path, folder: RunFolder, options: ExportOptions, report: ExportReport, coeff: dict[str, Any]
) -> None:
    """Write what the set was made of; its presence marks a set as complete."""
    record = {
        "format": EXPORT_FORMAT,
        "run": folder.run_hash,
        "coeff": coeff,
        "models": {name: value.get("name", value.get("model")) for name, value in folder.record["models"].items()},
        "options": asdict(options),
        "report": asdict(report),
    }
    with write_result(dest / RECORD) as file:
        file.write((json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


class _SetWriter(IndexedWriter):
    """One ``.data`` file and the sizes of its items; both appear when the stack closes."""

    def __init__(self, stack: ExitStack, dest: Path, name: str):
        super().__init__(stack.enter_context(write_result(dest / f"{name}.data")))
        self._sizes_file: IO[bytes] = stack.enter_context(write_result(dest / f"sizes_{name}.npy"))
        self._sizes: list[int] = []

    def add(self, item: Mapping[str, Any]) -> None:
        super().add(item)
        self._sizes.append(len(item["mel"]))

    def finish(self) -> None:
        super().finish()
        buffer = io.BytesIO()  # into a file numpy would write past it, and its errors would name no file
        np.lib.format.write_array(buffer, np.array(self._sizes, dtype=np.int64), allow_pickle=False)
        self._sizes_file.write(buffer.getvalue())


def _choose(
    folder: RunFolder, options: ExportOptions, keys: Container[str] | None
) -> tuple[list[Shard], dict[str, int], Container[str]]:
    """The shards to export, the numbers of their speakers, and the keys (or speakers) held out for validation.

    ``keys`` are those of the clips to export (None: all). The numbers of speakers do not depend on them.
    """
    splits = {clip.split for shard in folder.shards for clip in shard.clips}
    unknown = set(options.splits) - splits
    if unknown:
        raise RunError(f"no split {', '.join(sorted(unknown))} in the run; there are {', '.join(sorted(splits))}")
    splits = set(options.splits) or splits
    published = folder.published()
    num_left = len(folder.shards) - len(published)
    if num_left and not options.partial:
        raise RunError(
            f"{num_left} of {len(folder.shards)} shards of {folder.path} are still to be extracted: "
            "finish the run, or export what is there with --partial"
        )
    planned = [shard for shard in folder.shards if shard.clips[0].split in splits]
    shards = [shard for shard in planned if shard.name in published]
    clips = [clip for shard in planned for clip in shard.clips]
    chosen = [clip for clip in clips if keys is None or clip.key in keys]
    speaker_index = {name: number for number, name in enumerate(sorted({clip.speaker for clip in clips}))}
    if options.validation == "every100":
        return shards, speaker_index, {clip.key for clip in chosen[::_EVERY]}
    samples = [sample for shard in shards for sample in folder.ledger(shard).samples]
    long_enough = [key for key, num_frames in samples if 2 * num_frames - 1 >= MIN_MEL_ROWS]
    exportable = {key.split("/")[1] for key in long_enough if keys is None or key in keys}
    return shards, speaker_index, held_out_speakers(exportable, options.val_fraction)


def held_out_speakers(speakers: set[str], fraction: float) -> set[str]:
    """Choose about ``fraction`` of the speakers: those whose hash lies in that share of its range.

    A speaker's place depends on the name alone, so sets made from parts of a corpus agree. Of two speakers or more at
    least one is held out, and not all.
    """
    ranked = sorted((hashlib.sha256(name.encode()).digest(), name) for name in speakers)
    bound = round(fraction * 2**64).to_bytes(8, "big")
    count = sum(digest[:8] < bound for digest, _ in ranked)
    count = min(max(count, 1), len(ranked) - 1)
    return {name for _, name in ranked[: max(count, 0)]}


def _check_model(folder: RunFolder, face_model: FaceModel | None) -> None:
    known = folder.record["models"].get("face_model", {}).get("sha256")
    if face_model is not None and known is not None and face_model.source_sha256 != known:
        raise RunError(f"face model {face_model.name} is not the one that {folder.path} was fitted with")


def _prepare(dest: Path, overwrite: bool) -> None:
    make_folder(dest)
    there = [name for name in (RECORD, "train.data", "val.data") if (dest / name).exists()]
    if there and not overwrite:
        raise RunError(f"{dest} already holds {there[0]}; choose another folder, or replace the set with --overwrite")
    (dest / RECORD).unlink(missing_ok=True)  # from here on the set there is not whole


def _notes(sample: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Notes on the whole set that its first sample tells."""
    models = folder.record["models"]
    coeff = describe_coeff(sample, models.get("face_model", {}).get("name", "the face model"))
    texts = [coeff["note"]] if coeff["layout"] != "deep3d" else []
    width = sample["hubert"].shape[1] if "hubert" in sample else 0
    if width != HUBERT_WIDTH:
        texts.append(f"hubert has {width} columns; GeneFace's networks expect {HUBERT_WIDTH} (HuBERT-large)")
    if models.get("speech", {}).get("untrained"):
        texts.append("hubert comes from an untrained demo encoder: its numbers mean nothing")
    return {"coeff": coeff, "texts": texts}


def _count_notes(sets: dict[str, _SetWriter], dropped: Counter[str]) -> Iterator[str]:
    for reason, count in sorted(dropped.items()):
        yield f"{count_of(count, 'clip')} left out: {reason}"
    for name, writer in sets.items():
        if not len(writer):
            yield f"{name}.data is empty: too few clips or speakers for this validation rule"
