"""Decides whether a launch continues a run: its clips, models and settings must be equal, wherever they lie.

Paths are not compared. The clips of a corpus that has moved are compared by name and size, and models by the hashes of
their files.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from lrs3_loader import __version__
from lrs3_loader.config import CorpusConfig, as_json, upgrade_saved
from lrs3_loader.corpus.scan import find_corpus
from lrs3_loader.errors import RunError, count_of
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.models import record_name
from lrs3_loader.flags import flag_names
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.record import differences
from lrs3_loader.types import Clip

logger = logging.getLogger(__name__)

SOFTWARE = ("torch", "torchaudio", "transformers", "numpy", "av", "praat-parselmouth", "webdataset")
_MAX_LISTED = 5
#: Settings that say where something is. What is there is compared instead.
_PLACES = {
    ("corpus", "corpus"),
    ("face", "face_model"),
    ("speech", "model"),
    ("speech", "also"),
    ("regression", "checkpoint"),
}
_MODEL_FLAGS = {
    "face_model": "--face-model",
    "speech": "--hubert",
    "regression": "--deep3d",
    "speech_detector": "--speech-detector",
}


def what_decides_bytes(extractor: ShardExtractor) -> dict[str, Any]:
    """Return what this launch would write into ``run.json`` as ``config``, ``models`` and ``device_type``."""
    return {
        "config": as_json(extractor.config),
        "models": extractor.models.record,
        "device_type": extractor.device.type,
    }


def check_compatible(folder: RunFolder, now: dict[str, Any]) -> None:
    """Check that this launch (see ``what_decides_bytes``) would write the same bytes as the one that started the run.

    Raises:
        RunError: they differ from those of the run; the message lists each difference by the flag that makes it.
    """
    lines = [
        *_config_differences(upgrade_saved(folder.record["config"]), now["config"]),
        *_model_differences(folder.record["models"], now["models"]),
    ]
    if folder.record.get("device_type") != now["device_type"]:
        lines.append(f"--device {folder.record.get('device_type')} -> {now['device_type']}")
    if lines:
        listed = "\n  ".join(lines)
        raise RunError(
            f"{folder.path} holds a run with other settings (saved -> given now):\n  {listed}\n"
            f"give the same settings and model files to resume it (lrs3-loader extract --resume {folder.path} takes "
            "them from there), or another --out to start a new one"
        )
    if folder.record.get("software") != software():
        changed = ", ".join(differences(folder.record.get("software", {}), software()))
        logger.warning("software changed since the run began (%s): last bits may differ between shards", changed)


def _config_differences(saved: dict[str, Any], now: dict[str, Any]) -> Iterable[str]:
    for name in sorted(saved.keys() - now.keys()):  # of a run that `filter` wrote, or of a later version
        yield f"{name} {json.dumps(saved[name])} -> (none)"
    for place, flag in flag_names().items():
        old, new = (_setting(config, place) for config in (saved, now))
        same_kind = place in _PLACES and _count(old) == _count(new)
        if place == ("corpus", "layout"):  # of a run that has begun, it says only how its clips were found
            same_kind = "auto" in (old, new)
        if old != new and not same_kind:
            yield f"{flag} {_shown(old)} -> {_shown(new)}"


def _count(places: Any) -> int:
    return len(places) if isinstance(places, (list, tuple)) else int(places is not None)


def _setting(config: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _model_differences(saved: dict[str, Any], now: dict[str, Any]) -> Iterable[str]:
    for kind in sorted(saved.keys() & now.keys()):  # settings tell which models there are
        old, new = saved[kind], now[kind]
        # Runs of version 0.1 recorded no ``files``. The speech encoder's ``model`` is a name or a path.
        ignored = {"model"} | ({"files"} - old.keys())
        old, new = ({name: value for name, value in model.items() if name not in ignored} for model in (old, new))
        flag = _MODEL_FLAGS.get(kind, "--hubert" if kind.startswith("speech_") else kind)
        for line in differences(old, new):
            yield f"{flag}: {line}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "(none)"
    return "(none)" if value is None else str(value)


def find_new_clips(folder: RunFolder, config: CorpusConfig, extend: bool) -> tuple[Clip, ...]:
    """Compare the corpus of a run with what it was, if it has moved or if the run is to be extended.

    Args:
        extend: the corpus may have more clips now; of clips that are gone or have changed, it is only said.

    Returns:
        the clips that are new, if ``extend`` is true.

    Raises:
        RunError: the corpus has moved, and its clips are others; the message names some.
    """
    before, now = folder.record["config"].get("corpus", {}).get("corpus"), str(config.corpus)
    if before == now and not extend:
        return ()
    clips = find_corpus(config).clips
    missing, added, changed = compare_clips(folder, clips)
    problems = _name_some({"not there": missing, "with another size or path": changed})
    if before != now:
        problems += _name_some({} if extend else {"not of the run": added})
        if problems:
            listed = "\n  ".join(problems)
            raise RunError(
                f"{folder.path} was begun with the corpus {before}, and {now} holds other clips:\n  {listed}\n"
                "name the corpus that the run was begun with, or another --out to start a new run"
            )
        logger.info("the corpus has moved from %s to %s", before, now)
    _warn_of_changes(problems)
    wanted = {*added} if extend else set[str]()
    return tuple(clip for clip in clips if clip.key in wanted)


def tell_changes(folder: RunFolder, config: CorpusConfig) -> None:
    """Log which clips have come to the corpus of a finished run, and which are gone."""
    try:
        missing, added, changed = compare_clips(folder, find_corpus(config).clips)
    except RunError as error:
        logger.info("the corpus is not compared with the run: %s", str(error).partition("\n")[0])
        return
    for problem in _name_some({"that the run does not have (--extend adds them)": added}):
        logger.warning("the corpus holds %s", problem)
    _warn_of_changes(_name_some({"not there": missing, "with another size or path": changed}))


def _warn_of_changes(problems: Iterable[str]) -> None:
    for problem in problems:
        logger.warning("in the corpus now: %s; what was published stays", problem)


def _name_some(keys_by_problem: dict[str, list[str]]) -> list[str]:
    return [
        f"{count_of(len(keys), 'clip')} {problem}: {', '.join(keys[:_MAX_LISTED])}{', ...' * (len(keys) > _MAX_LISTED)}"
        for problem, keys in keys_by_problem.items()
        if keys
    ]


def compare_clips(folder: RunFolder, clips: Iterable[Clip]) -> tuple[list[str], list[str], list[str]]:
    """Compare the clips of a run with those of its corpus now.

    Returns:
        the keys of clips that are gone, of clips that are new, and of clips that have another file or size.
    """
    before = {clip.key: clip for shard in folder.shards for clip in shard.clips}
    now = {clip.key: clip for clip in clips}
    common = before.keys() & now.keys()  # offsets are the run's own, and no property of the corpus
    changed = [key for key in common if dataclasses.replace(before[key], audio_offset_frames=None) != now[key]]
    return sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys()), sorted(changed)


def check_offsets(folder: RunFolder, offsets: Mapping[str, int]) -> None:
    """Check that a run was begun with these audio-video offsets, by key; raises ``RunError`` otherwise."""
    for shard in folder.shards:
        for clip in shard.clips:
            if clip.audio_offset_frames != offsets.get(clip.key):
                begun, now = clip.audio_offset_frames or 0, offsets.get(clip.key, 0)
                raise RunError(
                    f"{folder.path} was begun with other offsets ({clip.key}: {begun} frames there, {now} now); "
                    "leave --offsets out to resume it, or name another --out to start a new run"
                )


def adopt_names(extractor: ShardExtractor, folder: RunFolder) -> None:
    """Give a model whose files are those of the run the name that it has there: names are stored in samples."""
    for field, (encoder, number) in extractor.models.speech_fields.items():
        saved = folder.record["models"].get(record_name(field), {})
        now = encoder.description(number) | {"files": dict(encoder.files)}
        if isinstance(saved.get("model"), str) and now | {"model": saved["model"]} == now | saved:
            encoder.name = saved["model"]


def software() -> dict[str, str]:
    """Return the versions of all software that can change a number."""
    versions = {name: metadata.version(name) for name in SOFTWARE}
    return {"lrs3_loader": __version__, "python": platform.python_version(), **versions}
