"""Adds fields to a run: the settings of the run with them, and its samples completed by what was extracted alone.

``run.json`` is replaced first, by one rename. From then on the shards that were published before count as incomplete:
they can be read, and any launch completes them, one after the other, as it would make missing ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from lrs3_loader.config import RunConfig, as_json
from lrs3_loader.errors import RunError
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.flags import config_from_json
from lrs3_loader.launch.identity import what_decides_bytes
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import Ledger
from lrs3_loader.run.record import with_fields_added, write_record
from lrs3_loader.run.shards import CompletedSample, Result
from lrs3_loader.run.tar import DamagedError
from lrs3_loader.types import FIELDS, ClipFeatures, Reject, Shard, member_name

FACE_SIZE = 256  # of faces that are added without a size


def config_with_added(folder: RunFolder, given: RunConfig, fields: Sequence[str]) -> RunConfig:
    """Return the settings of a run with those of the fields to add, whose details are taken from ``given``.

    Raises:
        RunError: there is nothing to add.
    """
    try:
        saved = config_from_json(folder.record["config"])
    except ValueError as error:
        raise RunError(f"fields cannot be added to {folder.path}: {error}") from error
    media = dataclasses.replace(saved.media, store_mouth=saved.media.store_mouth or "mouth" in fields)
    if {"face", "mouth"} & set(fields) and not (saved.media.store_face or saved.media.store_mouth):
        media = dataclasses.replace(media, codec=given.media.codec, quality=given.media.quality)
    if "face" in fields and media.store_face is None:
        media = dataclasses.replace(media, store_face=given.media.store_face or FACE_SIZE)
    if "audio" in fields and not media.store_audio:
        media = dataclasses.replace(media, store_audio=True, audio_bits=given.media.audio_bits)
    landmarks, speech = saved.landmarks, saved.speech
    if "lm478" in fields:
        landmarks = dataclasses.replace(landmarks, store_lm478=True)
    if "hubert" in fields:
        if given.speech.models == speech.models:
            raise RunError("--add hubert needs another encoder: --hubert NAME_OR_FOLDER")
        new = dict.fromkeys(name for name in given.speech.models if name not in speech.models)
        speech = dataclasses.replace(speech, also=(*speech.also, *new))
    return dataclasses.replace(saved, media=media, landmarks=landmarks, speech=speech)


def record_added(folder: RunFolder, extractor: ShardExtractor) -> RunFolder:
    """Write what the run holds from now on into its ``run.json``, and open it again; nothing if it does already."""
    now = what_decides_bytes(extractor)
    if now["config"] == folder.record["config"]:
        return folder
    models = {**now["models"], **folder.record["models"]}
    fields = {name: as_json(spec) for name, spec in FIELDS.items()}
    write_record(folder.store, with_fields_added(folder.record, {**now, "models": models, "fields": fields}))
    return RunFolder.open(str(folder.path))


def missing_fields(extractor: ShardExtractor, ledger: Ledger) -> frozenset[str]:
    """Return the fields that the samples of an incomplete shard lack."""
    return frozenset(field for field in extractor.addable_fields() if member_name(field) not in ledger.checksums)


def completed(
    folder: RunFolder, shard: Shard, ledger: Ledger, added: Iterable[ClipFeatures | Reject]
) -> Iterator[Result]:
    """Yield the samples and rejects of an incomplete shard, in the order of the plan, with what was added.

    Args:
        ledger: of the shard before.
        added: the new fields of each of its samples, in order.

    Raises:
        RunError: a sample that was extracted before is a reject now, or cannot be read any more.
    """
    results = iter(added)
    rejects = {key: Reject(clip, *why) for clip in shard.clips for key, *why in ledger.rejects if key == clip.key}
    with _remedied(shard), folder.open_tar(shard) as tar:
        for clip in shard.clips:
            if clip.key in rejects:
                yield rejects[clip.key]
                continue
            fresh = next(results)
            if isinstance(fresh, Reject):
                raise RunError(
                    f"{clip.key} was extracted before and cannot be now ({fresh.reason}: {fresh.message}); its shard "
                    f"{shard.name} stays as it is. Restore the clip, then run the same command again"
                )
            yield CompletedSample(clip, tar.read_members(ledger.places[clip.key]), fresh)


@contextmanager
def _remedied(shard: Shard) -> Iterator[None]:
    """Turn damage of a shard that was found sound into a ``RunError``: the next launch looks again."""
    try:
        yield
    except DamagedError as error:
        raise RunError(
            f"{shard.name} could not be completed: {error}; run the same command again: a shard that cannot be read "
            "then is extracted whole"
        ) from error
