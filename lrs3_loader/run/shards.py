"""Writes, reads and checks shards: WebDataset tars whose bytes depend only on their samples, with a ledger each.

A shard is published when its ledger exists. The tar is written atomically (see ``io.storage``) and hashed meanwhile;
then the ledger is written. A shard that replaces a sound one has another name, so that the old one stays valid until
the ledger, which names the tar, is replaced; then the old tar is removed.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import HashingFile, file_sha256, utc_now
from lrs3_loader.io.safe_load import check_types, decode_json
from lrs3_loader.io.storage import Store
from lrs3_loader.quality.figures import FIGURES_VERSION, figure_numbers
from lrs3_loader.run.ledger import REPAIR, Ledger, join_checksums, join_figures, ledger_name, tar_name
from lrs3_loader.run.tar import DamagedError, Sample, TarIndex, checksum
from lrs3_loader.types import (
    MEDIA_FIELDS,
    Clip,
    ClipFeatures,
    Reject,
    Shard,
    check_field,
    field_of_member,
    member_name,
    printable,
)


def encode_sample(features: ClipFeatures) -> dict[str, Any]:
    """Convert features to a WebDataset sample: ``__key__``, ``json`` and one member per field, as bytes."""
    if decoded := features.arrays.keys() & MEDIA_FIELDS:
        raise ValueError(f"{', '.join(sorted(decoded))} must be encoded to be written")
    sample: dict[str, Any] = {"__key__": features.clip.key}
    meta = json.dumps(features.meta, sort_keys=True, ensure_ascii=False, allow_nan=False)
    sample["json"] = meta.encode()
    for name, array in features.arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
        sample[member_name(name)] = buffer.getvalue()
    return {**sample, **{member_name(name): data for name, data in features.media.items()}}


@dataclasses.dataclass(frozen=True)
class CompletedSample:
    """A sample that was published before, as bytes by member, and fields that are added to it."""

    clip: Clip
    members: Mapping[str, bytes | bytearray]  # by extension, with the json
    added: ClipFeatures

    @property
    def num_frames(self) -> int:
        return self.added.num_frames

    @property
    def meta(self) -> dict[str, Any]:
        """The json of the sample, with what the added fields need in it."""
        meta: dict[str, Any] = decode_json(self.members["json"])
        if meta.get("num_frames") != self.num_frames:
            raise RunError(f"{self.clip.key} had {meta.get('num_frames')} frames and has {self.num_frames} now")
        for name in ("models", "conventions", "num_rows"):
            if name in self.added.meta:
                meta[name] = {**self.added.meta[name], **meta.get(name, {})}
        return meta | {name: self.added.meta[name] for name in ("audio_scale",) if name in self.added.meta}

    def encode(self) -> dict[str, Any]:
        """Return the members as ``encode_sample`` does; those that were there are the same bytes."""
        fresh = encode_sample(dataclasses.replace(self.added, meta=self.meta))
        return {**fresh, **{name: bytes(data) for name, data in self.members.items() if name != "json"}}


Result = ClipFeatures | CompletedSample | Reject


class _UnchangedError(Exception):
    """Leaves the block of ``Store.write`` without writing the file."""


def publish_shard(
    shard: Shard,
    results: Iterable[Result],
    store: Store,
    *,
    run: str,
    earlier: Collection[str] = (),
    timings: dict[str, float],
    provenance: dict[str, Any],
) -> Ledger:
    """Write the results of a shard, in the order of the plan, as a tar and then its ledger, each atomically.

    A shard that the same run has published before with the same contents is not changed.

    Args:
        run: hash of the run.
        earlier: hashes that it had before fields were added: shards under these are replaced, but sound until then.
        timings: seconds per stage; read after the last result, so the producer of the results may fill it.
        provenance: software, device and rank.

    Raises:
        ValueError: the results are not exactly the shard's clips, in order.
    """
    old = _previous_ledger(shard, store)
    sound = old if old is not None and old.run in (run, *earlier) and is_sound(store, old) else None
    generation = 0 if sound is None else sound.generation + 1
    try:
        with store.write(tar_name(shard.name, generation)) as file:
            stream = HashingFile(file)
            samples, rejects, checksums, figures = _write_tar(stream, shard, results)
            if sound and (sound.run, sound.sha256, sound.rejects) == (run, stream.sha256, rejects):
                raise _UnchangedError
            if sound is None:  # the tar may take the place of the one that the ledger describes
                store.delete(ledger_name(shard.name))
    except _UnchangedError:
        assert sound is not None
        return add_figures(store, sound) if any(figures) and not sound.figures_version else sound
    ledger = Ledger(
        shard=shard.name,
        run=run,
        sha256=stream.sha256,
        num_bytes=stream.num_bytes,
        samples=samples,
        rejects=rejects,
        timings={stage: round(seconds, 3) for stage, seconds in timings.items()},
        provenance={**provenance, "finished_at": utc_now()},
        generation=generation,
        checksums=join_checksums(checksums),
        figures=join_figures(figures),
        figures_version=FIGURES_VERSION if any(figures) else 0,
    )
    with store.write(ledger_name(shard.name)) as file:
        file.write(ledger.to_json().encode())
    if old is not None and old.generation != generation:
        store.delete(tar_name(shard.name, old.generation))
    return ledger


def _previous_ledger(shard: Shard, store: Store) -> Ledger | None:
    """Read the ledger that a shard has; None if there is none or it is damaged. An unreadable one may be sound."""
    try:
        data = store.read(ledger_name(shard.name))
    except FileNotFoundError:
        return None
    try:
        return Ledger.parse(data, store.where(ledger_name(shard.name)))
    except RunError:
        return None


def is_sound(store: Store, ledger: Ledger) -> bool:
    name = tar_name(ledger.shard, ledger.generation)
    with store.local_copy(name) as folder:
        return (folder / name).exists() and not check_tar(folder / name, ledger)


def _write_tar(
    stream: HashingFile, shard: Shard, results: Iterable[Result]
) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, str, str], ...], list[dict[str, str]], list[dict[str, float]]]:
    """Write the samples; return samples and rejects as the ledger records them, and checksums and figures of each."""
    samples: list[tuple[str, int]] = []
    rejects: list[tuple[str, str, str]] = []
    checksums: list[dict[str, str]] = []
    figures: list[dict[str, float]] = []
    # The headers hold no time, user or host.
    with webdataset.TarWriter(stream, user="", group="", mtime=0, encoder=False) as tar:
        for clip, result in zip(shard.clips, results, strict=True):
            if result.clip.key != clip.key:
                raise ValueError(f"{shard.name}: expected {clip.key}, got {result.clip.key}")
            if isinstance(result, Reject):
                rejects.append((clip.key, result.reason, result.message))
                continue
            sample = result.encode() if isinstance(result, CompletedSample) else encode_sample(result)
            tar.write(sample)
            samples.append((clip.key, result.num_frames))
            checksums.append({name: checksum(data) for name, data in sample.items() if name != "__key__"})
            figures.append(figure_numbers(result.meta))
    return tuple(samples), tuple(rejects), checksums, figures


def open_tar(store: Store, name: str, ledger: Ledger | None) -> TarIndex:
    """Open a tar of a run; that of a remote run is downloaded for it. Raises ``DamagedError``."""
    with store.local_copy(name) as folder:  # the open file outlives its name
        try:
            index = TarIndex(folder / name, ledger)
        except DamagedError as error:
            raise DamagedError(str(error).replace(str(folder / name), store.where(name))) from error
    index.path = store.where(name)
    return index


def add_figures(store: Store, ledger: Ledger) -> Ledger:
    """Write the ledger of a shard again, with the figures that the json of its samples hold.

    Raises:
        RunError: the tar is damaged.
    """
    name = tar_name(ledger.shard, ledger.generation)
    try:
        with open_tar(store, name, ledger) as tar:
            found = {sample.key: figure_numbers(tar.read(i, ())["json"]) for i, sample in enumerate(tar.samples)}
            figures = [found[key] for key, _ in ledger.samples]
    except (DamagedError, OSError, KeyError) as error:
        raise RunError(f"{store.where(name)} is damaged ({error}); {REPAIR}") from error
    version = FIGURES_VERSION if any(figures) else 0
    completed = dataclasses.replace(ledger, figures=join_figures(figures), figures_version=version)
    with store.write(ledger_name(ledger.shard)) as file:
        file.write(completed.to_json().encode())
    return completed


def read_shard(path: Path, ledger: Ledger | None = None) -> Iterator[Sample]:
    """Yield the samples of a published tar: ``{"__key__": str, "json": dict, "<field>": ndarray, ...}``.

    Unlike ``TarIndex``, which reads tars of other programs as well, this accepts no member but json and arrays. With
    the ledger of the tar, the checksum of each member is compared.

    Raises:
        RunError: the tar is damaged, or holds a member that no shard has; the message names both.
    """
    try:
        with TarIndex(path, ledger) as tar:
            unknown = [f"{s.key}.{ext}" for s in tar.samples for ext in s.members if not _is_known(ext)]
            if unexpected := tar.ignored + unknown:
                raise DamagedError(f"{path}: unexpected member {unexpected[0]!r}")
            for index in range(len(tar.samples)):
                yield check_sample(str(path), tar.read(index, None))
    except DamagedError as error:
        raise RunError(str(error)) from error


def _is_known(extension: str) -> bool:
    return extension == "json" or field_of_member(extension) is not None


def check_tar(tar_path: Path, ledger: Ledger) -> list[str]:
    """Compare size and hash of a tar with its ledger; return a list of problems."""
    size = tar_path.stat().st_size
    if size != ledger.num_bytes:
        return [f"{tar_path} has {size} bytes, its ledger says {ledger.num_bytes}"]
    digest = file_sha256(tar_path)
    if digest != ledger.sha256:
        return [f"{tar_path} has sha256 {digest[:12]}..., its ledger says {ledger.sha256[:12]}..."]
    return []


def check_shard(shard: Shard, store: Store, ledger: Ledger) -> list[str]:
    """Check a published shard; return a list of problems, one sentence each.

    Reads the whole tar and checks its size, hash, members and shapes, and that samples and rejects are exactly the
    shard's clips.
    """
    name = tar_name(shard.name, ledger.generation)
    with store.local_copy(name) as folder:
        if not (folder / name).exists():
            return [f"{store.where(name)} is missing although its ledger is there"]
        problems = _check_contents(shard, folder / name, ledger)
        return [problem.replace(str(folder / name), store.where(name)) for problem in problems]


def _check_contents(shard: Shard, tar_path: Path, ledger: Ledger) -> list[str]:
    problems = check_tar(tar_path, ledger)
    planned = sorted(clip.key for clip in shard.clips)
    recorded = sorted([key for key, _ in ledger.samples] + [key for key, _, _ in ledger.rejects])
    if recorded != planned:
        problems.append(
            f"the ledger of {tar_path} records other clips than the plan: {len(recorded)} and {len(planned)}"
        )
    try:
        found = tuple((sample["__key__"], sample["json"]["num_frames"]) for sample in read_shard(tar_path))
        if found != ledger.samples:
            problems.append(f"{tar_path} holds other samples than its ledger names")
    except RunError as error:
        problems.append(str(error))
    return problems


_META = {
    "num_frames": int,
    "num_rows?": {str: int},
    "quality?": {"relative_error?": float},
    "source?": {"height?": int, "width?": int},
    "models?": {"speech?": {"model?": str}},
    "audio_scale?": int,
}


def check_sample(where: str, sample: Sample) -> Sample:
    """Return a sample whose json and arrays keep the contract of a run (see ``types.FIELDS``).

    Raises:
        DamagedError: they do not; the message names the tar, which it calls ``where``, and the field.
    """
    try:
        check_types(sample.get("json"), _META, "json")
        num_frames = sample["json"]["num_frames"]
        source = sample["json"].get("source", {})
        if num_frames < 1 or not all(0 < source.get(side, 1) < 1 << 16 for side in ("height", "width")):
            raise ValueError("json has a length or size that cannot be")
        for name, array in sample.items():
            if name != "json" and not name.startswith("__"):
                check_field(name, array, num_frames)
    except ValueError as error:
        raise DamagedError(f"{where}: {printable(sample['__key__'])}: {error}") from error
    return sample
