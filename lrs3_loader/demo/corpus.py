"""A small LRS3-shaped corpus of synthetic talking heads, with ground truth for every frame.

FOLDER/{pretrain,trainval,test}/<speaker>/<utterance>.mp4 + .txt
FOLDER/truth/<split>/<speaker>/<utterance>.npz      id, exp, pose, lm68, mouth_opening
FOLDER/demo.json                                    the parameters; an equal corpus is not made twice
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lrs3_loader.demo.encode import write_mp4
from lrs3_loader.demo.head import IDENTITY_MODES
from lrs3_loader.demo.motion import make_motion
from lrs3_loader.demo.paint import make_look
from lrs3_loader.demo.render import Painter
from lrs3_loader.demo.voice import Speech, Voice, make_speech, synthesise
from lrs3_loader.errors import RunError, count_of
from lrs3_loader.io.files import sync_folder, writing
from lrs3_loader.runtime.progress import with_progress
from lrs3_loader.types import FRAMES_PER_SECOND

PARAMETERS_FILE, TRUTH_FOLDER = "demo.json", "truth"
_VERSION = 1  # raised when the same parameters would give another corpus
_UPPER_LIP, _LOWER_LIP = 62, 66  # middle of the inner lips
_STEADY = slice(17, 48)  # brows, nose and eyes: the part of the face that speech hardly moves
_SIZE = 224
_DRAWING_THREADS = min(8, os.cpu_count() or 1)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoCorpus:
    """A demo corpus on disk."""

    folder: Path
    keys: tuple[str, ...]  # of its clips, sorted

    @property
    def truth(self) -> Path:
        return self.folder / TRUTH_FOLDER


def make_demo_corpus(
    folder: Path,
    num_speakers: int = 4,
    clips_per_speaker: int = 3,
    seconds: tuple[float, float] = (1.6, 3.0),
    seed: int = 0,
) -> DemoCorpus:
    """Write the corpus into ``folder``, or reuse an equal one found there; the same arguments give the same corpus.

    The folder appears whole: it is made under a temporary name beside it and renamed. The last speakers are held out
    for trainval and test.

    Args:
        seconds: shortest and longest duration of a clip, at least 0.8.

    Raises:
        ValueError: an argument is out of range.
        RunError: ``folder`` holds something else, or cannot be written.
    """
    if num_speakers < 1 or clips_per_speaker < 1:
        raise ValueError(f"need at least one speaker and one clip, got {num_speakers}, {clips_per_speaker}")
    if not 0.8 <= seconds[0] <= seconds[1]:
        raise ValueError(f"seconds must be (shortest, longest), at least 0.8, got {seconds}")
    parameters = {
        "num_speakers": num_speakers,
        "clips_per_speaker": clips_per_speaker,
        "seconds": [float(seconds[0]), float(seconds[1])],
        "seed": seed,
        "version": _VERSION,
    }
    speakers = [f"{_split(number, num_speakers)}/DemoHead{number:03d}" for number in range(num_speakers)]
    keys = [f"{speaker}/{clip + 1:05d}" for speaker in speakers for clip in range(clips_per_speaker)]
    corpus = DemoCorpus(folder, tuple(sorted(keys)))
    if folder.exists():
        _check_reusable(folder, parameters)
        return corpus
    logger.info("rendering a demo corpus of %s into %s", count_of(len(keys), "clip"), folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            clips = _clips(num_speakers, clips_per_speaker, seconds, seed)
            for key, clip in zip(keys, with_progress(clips, len(keys), "clips rendered", logger), strict=True):
                _write_clip(scratch, key, *clip)
            (scratch / PARAMETERS_FILE).write_text(json.dumps(parameters, indent=1) + "\n", encoding="utf-8")
            scratch.chmod(0o755)
            os.rename(scratch, folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        sync_folder(folder.parent)
    return corpus


def _split(number: int, num_speakers: int) -> str:
    from_last, held_out = num_speakers - 1 - number, max(1, num_speakers // 10)
    if num_speakers > 2 and from_last < held_out:
        return "test"
    return "trainval" if num_speakers > 1 and from_last < 2 * held_out else "pretrain"


def _check_reusable(folder: Path, parameters: dict[str, object]) -> None:
    try:
        found = json.loads((folder / PARAMETERS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is there but holds no demo corpus; remove it or choose another folder") from error
    if found != parameters:
        raise RunError(
            f"{folder} holds a demo corpus of other parameters ({found}); remove it or choose another folder"
        )


def _clips(
    num_speakers: int, clips_per_speaker: int, seconds: tuple[float, float], seed: int
) -> Iterator[tuple[int, Painter, Voice, np.random.Generator]]:
    """Yield the length in frames, the looks, the voice and the generator of each clip, speaker by speaker."""
    for number in range(num_speakers):
        generator = np.random.default_rng([seed, number])
        look, voice = make_look(number, generator), Voice.of(number, generator)
        id = torch.from_numpy(np.clip(generator.normal(0, 0.9, len(IDENTITY_MODES)), -2, 2).astype(np.float32))
        painter = Painter(look, id, seed=1000 * seed + number, size=_SIZE)
        for clip in range(clips_per_speaker):
            generator = np.random.default_rng([seed, number, clip])
            yield round(float(generator.uniform(*seconds)) * FRAMES_PER_SECOND), painter, voice, generator


def _write_clip(
    folder: Path, key: str, num_frames: int, painter: Painter, voice: Voice, generator: np.random.Generator
) -> None:
    speech = make_speech(num_frames, voice, generator)
    waveform = synthesise(speech, voice, generator)
    exp, pose = make_motion(speech, generator)
    video = folder / f"{key}.mp4"
    video.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_DRAWING_THREADS) as pool:  # numpy's loops over pixels run beside one another
        write_mp4(video, pool.map(painter.draw, exp, pose), waveform)
    video.with_suffix(".txt").write_text(_transcript(key, num_frames, speech), encoding="utf-8")

    lm68 = painter.landmarks(exp, pose).numpy()
    truth = folder / TRUTH_FOLDER / f"{key}.npz"
    truth.parent.mkdir(parents=True, exist_ok=True)
    id = painter.id.numpy()
    np.savez(truth, id=id, exp=exp.numpy(), pose=pose.numpy(), lm68=lm68, mouth_opening=mouth_opening(lm68))


def _transcript(key: str, num_frames: int, speech: Speech) -> str:
    """A transcript in LRS3's format; its boxes lie in the middle of a frame of 1280 x 720."""
    lines = [f"Text:  {' '.join(word for word, _, _ in speech.words)}", "Conf:  5", f"Ref:   {key.split('/')[1]}", ""]
    width, height = _SIZE / 1280, _SIZE / 720
    box = f"{0.5 - width / 2:.3f} \t{0.5 - height / 2:.3f} \t{width:.3f} \t{height:.3f} "
    lines += ["FRAME \tX \tY \tW \tH ", *(f"{frame:06d} \t{box}" for frame in range(num_frames)), ""]
    lines += ["WORD START END ASDSCORE", *(f"{word} {start:.2f} {end:.2f} 9.9" for word, start, end in speech.words)]
    return "\n".join(lines) + "\n"


def mouth_opening(lm68: np.ndarray) -> np.ndarray:
    """Return the distance [T] between the middles of the inner lips, in the units of ``lm68`` [T, 68, 2]."""
    return np.linalg.norm(lm68[:, _UPPER_LIP] - lm68[:, _LOWER_LIP], axis=-1)


def _relative_opening(lm68: np.ndarray) -> np.ndarray:
    """``mouth_opening`` [T] divided by the face's size: the RMS distance of brows, nose and eyes from their mean."""
    steady = lm68[:, _STEADY]
    size = np.sqrt(((steady - steady.mean(1, keepdims=True)) ** 2).sum(-1).mean(1))
    return mouth_opening(lm68) / size


@dataclass(frozen=True)
class MouthRecovery:
    """Pearson's correlation of the extracted mouth opening with the truth."""

    by_clip: Mapping[str, float]
    overall: float  # over the frames of all clips together


def mouth_recovery(truth: Path, extracted: Mapping[str, np.ndarray]) -> MouthRecovery:
    """Compare extracted landmarks, ``{key: lm68 [T, 68, 2]}``, with those in the folder ``truth`` of a demo corpus.

    Raises ``ValueError`` without any clip, or if the length of a clip differs from the truth.
    """
    if not extracted:
        raise ValueError("no clips to compare")
    pairs = {}
    for key, lm68 in extracted.items():
        with np.load(truth / f"{key}.npz", allow_pickle=False) as file:
            true = file["lm68"]
        if len(true) != len(lm68):
            raise ValueError(f"{key} has {len(lm68)} frames, the truth {len(true)}")
        pairs[key] = _relative_opening(true), _relative_opening(np.asarray(lm68, dtype=np.float64))
    by_clip = {key: float(np.corrcoef(pair)[0, 1]) for key, pair in pairs.items()}
    return MouthRecovery(by_clip, float(np.corrcoef(np.concatenate(list(pairs.values()), axis=1))[0, 1]))
