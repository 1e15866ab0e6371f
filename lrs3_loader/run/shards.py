"""Published shards: WebDataset tars whose bytes depend on their samples alone, and the ledger beside each.

A shard exists when its ledger does. The tar is written whole (see ``storage``) and hashed on the way, then the ledger.
To publish a shard again, its old ledger is removed first, so that at no instant a ledger stands beside a tar that it
does not describe.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import webdataset

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import file_sha256, utc_now
from lrs3_loader.io.safe_load import decode_npy
from lrs3_loader.io.storage import Store
from lrs3_loader.run.ledger import Ledger, ledger_name, read_ledger
from lrs3_loader.types import ClipFeatures, Reject, Shard, check_field

TAR_FOLDER = "shards"
MAX_MEMBER_BYTES = 4 << 30  # no array of a clip comes near this; a header that claims more is damage


def tar_name(shard: str) -> str:
    """Where a shard's tar lies in a run."""
    return f"{TAR_FOLDER}/{shard}.tar"


class _HashingFile:
    """Passes bytes on to a file while it hashes and counts them."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.num_bytes += len(data)
        return self._file.write(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def encode_sample(features: ClipFeatures) -> dict[str, Any]:
    """A clip's features as WebDataset expects them: ``__key__``, ``json`` and one ``<field>.npy`` per array."""
    sample: dict[str, Any] = {"__key__": features.clip.key}
    meta = json.dumps(features.meta, sort_keys=True, ensure_ascii=False, allow_nan=False)
    sample["json"] = meta.encode()
    for name, array in features.arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
        sample[f"{name}.npy"] = buffer.getvalue()
    return sample


class _UnchangedError(Exception):
    """Leaves the block of ``Store.write`` without replacing anything."""


def publish_shard(
    shard: Shard,
    results: Iterable[ClipFeatures | Reject],
    store: Store,
    *,
    run: str,
    timings: dict[str, float],
    provenance: dict[str, Any],
) -> Ledger:
    """Write a shard's results, in plan order, as a tar and then its ledger; both appear whole or not at all.

    A shard that was published before by the same run and comes out the same is left as it is.
    ``timings`` is read after the last result was drawn, so that the producer may fill it as it goes.

    Raises:
        ValueError: the results are not exactly the shard's clips, in order.
    """
    try:
        old = read_ledger(store, shard.name)
    except FileNotFoundError:
        old = None
    previous = old if old is not None and old.run == run and _is_sound(store, old) else None
    try:
        with store.write(tar_name(shard.name)) as file:
            stream = _HashingFile(file)
            samples, rejects = _write_tar(stream, shard, results)
            if previous and (previous.sha256, previous.rejects) == (stream.sha256, rejects):
                raise _UnchangedError
            if old is not None:
                store.delete(ledger_name(shard.name))
    except _UnchangedError:
        assert previous is not None
        return previous
    ledger = Ledger(
        shard=shard.name,
        run=run,
        sha256=stream.sha256,
        num_bytes=stream.num_bytes,
        samples=samples,
        rejects=rejects,
        timings={stage: round(seconds, 3) for stage, seconds in timings.items()},
        provenance={**provenance, "finished_at": utc_now()},
    )
    with store.write(ledger_name(shard.name)) as file:
        file.write(ledger.to_json().encode())
    return ledger


def _is_sound(store: Store, ledger: Ledger) -> bool:
    name = tar_name(ledger.shard)
    with store.local_copy(name) as folder:
        return (folder / name).exists() and not check_tar(folder / name, ledger)


def _write_tar(
    stream: _HashingFile, shard: Shard, results: Iterable[ClipFeatures | Reject]
) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, str, str], ...]]:
    samples: list[tuple[str, int]] = []
    rejects: list[tuple[str, str, str]] = []
    # No clock, no user and no host in the headers.
    with webdataset.TarWriter(stream, user="", group="", mtime=0, encoder=False) as tar:
        for clip, result in zip(shard.clips, results, strict=True):
            if result.clip.key != clip.key:
                raise ValueError(f"{shard.name}: expected {clip.key}, got {result.clip.key}")
            if isinstance(result, Reject):
                rejects.append((clip.key, result.reason, result.message))
            else:
                tar.write(encode_sample(result))
                samples.append((clip.key, result.num_frames))
    return tuple(samples), tuple(rejects)


def read_shard(path: Path) -> Iterator[dict[str, Any]]:
    """Samples of a tar, one at a time: ``{"__key__": str, "json": dict, "<field>": ndarray, ...}``.

    Reads with ``tarfile`` alone and unpickles nothing.

    Raises:
        RunError: the tar is damaged, or a member is not what a shard holds; the message names both.
    """
    sample: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                key, _, field = member.name.partition(".")
                if not member.isfile() or member.issparse() or not field or member.size > MAX_MEMBER_BYTES:
                    raise RunError(f"{path}: unexpected member {member.name!r}")
                if sample and sample["__key__"] != key:
                    yield sample
                    sample = {}
                data = tar.extractfile(member)
                assert data is not None  # regular files only
                sample["__key__"] = key
                sample[field.removesuffix(".npy")] = _decode(field, data.read())
    except (tarfile.TarError, ValueError, EOFError, OSError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if sample:
        yield sample


def _decode(field: str, data: bytes) -> Any:
    if field == "json":
        return json.loads(data)
    if field.endswith(".npy"):
        return decode_npy(bytearray(data))
    raise ValueError(f"unknown member kind .{field}")


def check_tar(tar_path: Path, ledger: Ledger) -> list[str]:
    """Whether a tar is the file its ledger describes (size, then hash): what is wrong, or nothing."""
    size = tar_path.stat().st_size
    if size != ledger.num_bytes:
        return [f"{tar_path} has {size} bytes, its ledger says {ledger.num_bytes}"]
    digest = file_sha256(tar_path)
    if digest != ledger.sha256:
        return [f"{tar_path} has sha256 {digest[:12]}..., its ledger says {ledger.sha256[:12]}..."]
    return []


def check_shard(shard: Shard, store: Store, ledger: Ledger) -> list[str]:
    """Everything wrong with a published shard, one sentence each; empty when it is sound.

    Re-reads the tar whole: size, hash, members, shapes, and that samples and rejects are exactly the shard's clips.
    """
    name = tar_name(shard.name)
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
        problems.append(f"ledger of {shard.name} records {len(recorded)} clips, not the {len(planned)} of the plan")
    try:
        found = tuple((sample["__key__"], _check_sample(sample)) for sample in read_shard(tar_path))
        if found != ledger.samples:
            problems.append(f"{tar_path} holds other samples than its ledger names")
    except (RunError, ValueError) as error:
        problems.append(str(error))
    return problems


def _check_sample(sample: dict[str, Any]) -> int:
    if "json" not in sample:
        raise ValueError(f"sample {sample['__key__']} has no .json")
    num_frames = int(sample["json"]["num_frames"])
    for name, array in sample.items():
        if name not in ("__key__", "json"):
            check_field(name, array, num_frames)
    return num_frames
