"""Imports a binarised GeneFace set as a run: shards, ledger and manifest.

The set may come from anywhere, so nothing in it is trusted (see ``indexed``). It is read twice: once for names and
lengths, since a run knows its clips before it writes the first shard, and once for the numbers. Like an
extraction, an import that was interrupted goes on where it stopped, and an item that does not fit costs itself alone.
"""

from __future__ import annotations

import logging
import platform
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lrs3_loader import __version__
from lrs3_loader.config import as_json
from lrs3_loader.corpus.plan import make_plan
from lrs3_loader.corpus.scan import key_part
from lrs3_loader.errors import ClipError, LengthMismatchError, RunError, TooShortError, UnreadableError
from lrs3_loader.interop.geneface.exporter import EXPORT_FORMAT, RECORD
from lrs3_loader.interop.geneface.indexed import IndexedReader
from lrs3_loader.interop.geneface.item import ANGLES, BFM_EXP, BFM_ID, EXP, ID, NUM_COEFF, TRANSLATION, five_landmarks
from lrs3_loader.interop.geneface.settings import ImportOptions
from lrs3_loader.io.files import reading
from lrs3_loader.io.safe_load import check_types, decode_json
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.lock import RunLock, guard_store
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.run.record import differences
from lrs3_loader.types import FIELDS, FRAMES_PER_SECOND, ROWS_PER_FRAME, Clip, ClipFeatures, Reject

logger = logging.getLogger(__name__)

PREFIXES = ("train", "val")
MIN_FRAMES = 6  # SyncNet needs as many
MAX_NAME = 200  # characters of an item_id
MAX_ROW_GAP = 25  # half a second: audio and video that differ by more do not belong together
CROP_POSE_CONVENTION = (
    "rx,ry,rz[rad],tx,ty,tz[dm]; R=Rz@Ry@Rx; p=x@R.T+t; x right,y up,z to viewer; "
    "in the aligned 224x224 crop: u=112+1015*px/(10-pz), v=111-1015*py/(10-pz)"
)


def import_geneface(
    source: Path, out: Path, options: ImportOptions, progress: Callable[[int], object] = lambda count: None
) -> RunFolder:
    """Turn the set in ``source`` into a run in ``out``; call it again to resume.

    Args:
        source: folder with ``train.data``, ``val.data`` or both (with ``.idx`` files for the old style).
        progress: told of items as they are written.

    Raises:
        RunError: no set there, its index is damaged, an item holds something that is not admitted (the message names
            it), or ``out`` holds another run or is being written to.
    """
    with ExitStack() as stack:
        readers = {
            prefix: stack.enter_context(IndexedReader(source / prefix))
            for prefix in PREFIXES
            if (source / f"{prefix}.data").exists()
        }
        if not readers:
            raise RunError(f"{source} holds neither train.data nor val.data")
        coeff = _coeff_layout(source)
        lock = stack.enter_context(RunLock(out))
        folder = _open_run(out, source, readers, options, coeff)
        guard_store(folder.store, lock.token)
        convert = partial(_convert, readers=readers, hubert_store=options.hubert_store, coeff=coeff)
        for index in folder.pending():
            shard = folder.shards[index]
            ledger = folder.publish(shard, map(convert, shard.clips), {}, {"software": _software(), "device": "cpu"})
            progress(len(ledger.samples) + len(ledger.rejects))
    return folder


def _open_run(
    out: Path, source: Path, readers: dict[str, IndexedReader], options: ImportOptions, coeff: dict[str, Any]
) -> RunFolder:
    sets = {name: {"num_items": len(reader), "index_sha256": reader.index_sha256} for name, reader in readers.items()}
    config = {"import": "geneface", "sets": sets, "coeff": coeff, **as_json(options)}
    if RunFolder.exists(out):
        folder = RunFolder.open(out)
        lines = differences(folder.record.get("config"), config)
        if lines:
            listed = "\n  ".join(lines)
            raise RunError(f"{out} holds another run (there -> asked for):\n  {listed}\nchoose another folder")
    else:
        clips = _survey(readers)
        shards = make_plan(clips, options.plan, source)
        record = {
            "format": 1,
            "config": config,
            "device_type": "cpu",
            "plan_sha256": plan_sha256(shards),
            "models": {"face_model": {"name": coeff["face_model"]}, "speech": {"model": coeff["speech"]}},
            "fields": {name: as_json(spec) for name, spec in FIELDS.items()},
            "software": _software(),
        }
        folder = RunFolder.create(out, record, shards)
    folder.clear_scratch()
    return folder


def _software() -> dict[str, str]:
    return {"lrs3_loader": __version__, "python": platform.python_version(), "numpy": np.__version__}


def _coeff_layout(source: Path) -> dict[str, Any]:
    """Tell the layout of ``coeff``: BFM's, unless the set was exported by this package and says otherwise."""
    layout = {"layout": "deep3d", "num_id": BFM_ID, "num_exp": BFM_EXP, "face_model": "bfm", "speech": "unknown"}
    path = source / RECORD
    if not path.exists():
        return layout
    try:
        with reading(path):
            record = decode_json(path.read_bytes())
        check_types(record, {"format": str, "models": dict, "coeff": {"layout?": str, "num_id?": int, "num_exp?": int}})
        if record["format"] != EXPORT_FORMAT:
            raise ValueError(f"format {record['format']!r:.100}")
        for name in ("face_model", "speech"):
            layout[name] = str(record["models"].get(name, "unknown"))
        if record["coeff"].get("layout") == "fit":
            check_types(record["coeff"], {"num_id": int, "num_exp": int}, "coeff")
            layout |= {name: record["coeff"][name] for name in ("layout", "num_id", "num_exp")}
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} is not an export record ({error}); remove it to import the set as GeneFace's"
        ) from error
    return layout


def _survey(readers: dict[str, IndexedReader]) -> list[Clip]:
    """List every item as a clip, sorted by key. ``video_path`` says where the item is: ``train.data#17``."""
    clips: dict[str, Clip] = {}
    copies: Counter[str] = Counter()
    for prefix, reader in readers.items():
        for index in range(len(reader)):
            item = reader.item(index)
            speaker, utterance = _names(item, f"{reader.path}, item {index}")
            key = f"{prefix}/{key_part(speaker)}/{key_part(utterance)}"
            while key in clips:
                copies[key] += 1
                renamed = f"{key}~{copies[key] + 1}"
                logger.warning("two items are called %s; the second becomes %s", key, renamed)
                key = renamed
            frames = item.get("idexp_lm3d")
            num_frames = len(frames) if isinstance(frames, np.ndarray) and frames.ndim else 0
            # With an end given, the plan need not guess the length from the size of a video file.
            seconds = num_frames / FRAMES_PER_SECOND
            clips[key] = Clip(key, f"{prefix}.data#{index}", reader.num_bytes(index), end_seconds=seconds)
    return [clips[key] for key in sorted(clips)]


def _names(item: dict[str, Any], where: str) -> tuple[str, str]:
    """(speaker, utterance), from ``item_id`` = ``<speaker>_<utterance>`` and ``spk_id``."""
    item_id, speaker = item.get("item_id"), item.get("spk_id")
    if not isinstance(item_id, str):
        raise RunError(f"{where}: no item_id")
    if len(item_id) > MAX_NAME:
        raise RunError(f"{where}: an item_id of {len(item_id)} characters")
    if not isinstance(speaker, str) or len(speaker) > MAX_NAME:
        speaker, _, utterance = item_id.rpartition("_")
        return speaker or "unknown", utterance
    return speaker, item_id.removeprefix(f"{speaker}_")


def _convert(
    clip: Clip, readers: dict[str, IndexedReader], hubert_store: str, coeff: dict[str, Any]
) -> ClipFeatures | Reject:
    """The features of a clip's item, or a reject."""
    prefix, _, index = clip.video_path.partition(".data#")
    item = readers[prefix].item(int(index))
    try:
        return _features(clip, item, np.dtype(hubert_store), coeff)
    except ClipError as error:
        return Reject(clip, error.reason, str(error))


def _features(clip: Clip, item: dict[str, Any], hubert_dtype: np.dtype, coeff: dict[str, Any]) -> ClipFeatures:
    idexp = _field(item, "idexp_lm3d", 68, 3)
    num_frames = len(idexp)
    if num_frames < MIN_FRAMES:
        raise TooShortError(f"{num_frames} frames, {MIN_FRAMES} needed")
    arrays = {"idexp_lm3d": idexp, "valid": np.ones(num_frames, dtype=bool)}
    num_rows = {}
    if isinstance(item.get("f0"), np.ndarray):
        item = item | {"f0": item["f0"].reshape(-1)}
    for name, width in (("mel", [80]), ("f0", []), ("hubert", [-1])):
        if name in item:
            rows = _field(item, name, *width)
            num_rows[name] = min(len(rows), ROWS_PER_FRAME * num_frames)
            arrays[name] = _align(name, rows, num_frames)
    if not {"mel", "hubert"} <= arrays.keys():
        raise UnreadableError("the item has no mel or no hubert")
    arrays["hubert"] = _store(arrays["hubert"], hubert_dtype)
    for name, shape in (("lm68", [68, 2]), ("coeff", [NUM_COEFF])):
        if name in item:
            arrays[name] = _field(item, name, *shape)
            if len(arrays[name]) != num_frames:
                raise LengthMismatchError(f"{name} has {len(arrays[name])} rows, idexp_lm3d {num_frames}")
    is_bfm = coeff["layout"] == "deep3d"
    if "coeff" in arrays:
        arrays |= _split_coeff(arrays["coeff"] if is_bfm else arrays.pop("coeff"), coeff)
    conventions = {"valid": "not known: all true"}
    if is_bfm:
        conventions |= {"pose": CROP_POSE_CONVENTION, "id": "mean over the frames of coeff"}
    height = _source_height(item, arrays.get("lm68"))
    meta = {
        "key": clip.key,
        "split": clip.split,
        "speaker": clip.speaker,
        "utterance": clip.utterance,
        "num_frames": num_frames,
        "num_rows": num_rows,
        "source": {"item_id": item["item_id"].encode(errors="replace").decode()}
        | ({} if height is None else {"height": height}),
        "models": {"face_model": coeff["face_model"], "speech": {"model": coeff["speech"]}},
        "conventions": conventions,
    }
    return ClipFeatures(clip, num_frames, arrays, meta)


def _split_coeff(coeff: np.ndarray, layout: dict[str, Any]) -> dict[str, np.ndarray]:
    """Split ``coeff`` [T, 257] into ``id``, ``exp`` and ``pose``."""
    num_id, num_exp = layout["num_id"], layout["num_exp"]
    parts = {"pose": np.concatenate((coeff[:, ANGLES], coeff[:, TRANSLATION]), axis=1)}
    if 0 < num_id <= BFM_ID:  # otherwise some modes were left out on export
        parts["id"] = coeff[:, ID][:, :num_id].mean(axis=0, dtype=np.float64).astype(np.float32)
    if 0 < num_exp <= BFM_EXP:
        parts["exp"] = np.ascontiguousarray(coeff[:, EXP][:, :num_exp])
    return parts


def _field(item: dict[str, Any], name: str, *shape: int) -> np.ndarray:
    """An item's array [n, *shape] as f32, n > 0; -1 stands for any width."""
    array = item.get(name)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise UnreadableError(f"the item has no array {name}")
    fits = array.ndim == 1 + len(shape) and all(
        want in (-1, got) for want, got in zip(shape, array.shape[1:], strict=True)
    )
    if not fits or array.size == 0:
        raise UnreadableError(f"{name} has the shape {list(array.shape)}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UnreadableError(f"{name} holds values that are not finite")
    return array


def _align(name: str, rows: np.ndarray, num_frames: int) -> np.ndarray:
    """[n, ...] -> [2T, ...]: cut, or the last row repeated."""
    want = ROWS_PER_FRAME * num_frames
    if abs(len(rows) - want) > MAX_ROW_GAP:
        raise LengthMismatchError(f"{name} has {len(rows)} rows for {num_frames} frames")
    missing = max(0, want - len(rows))
    return np.concatenate((rows[:want], np.repeat(rows[-1:], missing, axis=0)))


def _store(hubert: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = hubert.astype(dtype)
    if not np.isfinite(stored).all():
        raise UnreadableError(f"hubert does not fit into {dtype}; import with --hubert-store float32")
    return stored


def _source_height(item: dict[str, Any], lm68: np.ndarray | None) -> int | None:
    """Height of the source frames, told by how far ``lm5`` is flipped; None where it is not."""
    lm5 = item.get("lm5")
    if lm68 is None or not isinstance(lm5, np.ndarray) or lm5.shape != (len(lm68), 5, 2) or lm5.dtype.kind not in "iuf":
        return None
    heights = lm5[..., 1].astype(np.float64) + five_landmarks(lm68)[..., 1] + 1
    height = float(np.median(heights))
    is_flipped = height > 0 and bool(np.abs(heights - height).max() < 0.5)  # also False where there are NaNs
    return round(height) if is_flipped else None
