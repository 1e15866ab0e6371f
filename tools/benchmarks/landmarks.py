"""How far the 68 landmarks are from those of dlib's shape predictor, which shares no data, code or authors with them.

One Millisecond Face Alignment with an Ensemble of Regression Trees (Kazemi and Sullivan, CVPR 2014), trained on iBUG
300-W, in a face that dlib's own detector (histograms of oriented gradients) finds.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fit_clips import chunks_of
from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import CorpusConfig, DecodeConfig
from lrs3_loader.corpus.scan import corpus_root, scan_corpus
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.topology import to_ibug68
from lrs3_loader.face.landmarks.landmarker import FaceLandmarker, load_landmarker_files
from lrs3_loader.face.landmarks.tracks import FaceTrack
from lrs3_loader.types import Clip

#: Where Debian's package libdlib-data puts it.
PREDICTOR = Path("/usr/share/dlib/shape_predictor_68_face_landmarks.dat")
REGIONS = {
    "contour": slice(0, 17),
    "brows": slice(17, 27),
    "nose": slice(27, 36),
    "eyes": slice(36, 48),
    "mouth": slice(48, 68),
}
_OVERLAP = 0.3  # of two faces' boxes, from which on they are the same face


@dataclass(frozen=True)
class Agreement:
    """Distances of one clip's landmarks from dlib's, in the frames in which both find the same face."""

    name: str
    num_frames: int  # looked at
    distances: np.ndarray  # [n, 68], in shares of the face's size: the geometric mean of its landmarks' extents

    def of(self, region: str) -> float:
        return float(self.distances[:, REGIONS[region]].mean())


class DlibLandmarks:
    """Finds 68 landmarks by dlib: ``find(frame)`` -> [68, 2] of every face, pixels.

    Raises ``RunError`` where dlib, or its predictor's file, is not there.
    """

    def __init__(self, predictor: Path = PREDICTOR) -> None:
        try:
            dlib: Any = importlib.import_module("dlib")
        except ImportError as error:
            raise RunError("dlib is not installed: pip install dlib-bin") from error
        if not predictor.is_file():
            raise RunError(f"there is no {predictor}: apt-get install libdlib-data, or name the file with --predictor")
        self._detect = dlib.get_frontal_face_detector()
        self._predict = dlib.shape_predictor(str(predictor))

    def find(self, frame: np.ndarray) -> list[np.ndarray]:
        """Landmarks of the faces in a frame [H, W, 3] u8."""
        shapes = (self._predict(frame, box) for box in self._detect(frame, 0))
        return [np.array([(point.x, point.y) for point in shape.parts()], dtype=np.float64) for shape in shapes]


def compare_clip(
    clip: Clip, dataset: ClipDataset, landmarker: FaceLandmarker, dlib: DlibLandmarks, step: int
) -> Agreement:
    """Compare every ``step``-th frame of a clip."""
    track, distances, num_frames = FaceTrack(), [], 0
    for chunk in chunks_of(clip, dataset):
        for first in range(0, len(chunk.frames), landmarker.batch_size):
            frames = chunk.frames[first : first + landmarker.batch_size]
            (found,) = landmarker([(frames, track)])
            ours = to_ibug68(found.points)[..., :2].double().numpy()
            for at in range(-(chunk.start + first) % step, len(frames), step):
                num_frames += 1
                if found.found[at]:
                    distances += _distances(ours[at], dlib.find(frames[at].numpy()))
    return Agreement(clip.key, num_frames, np.array(distances).reshape(-1, 68))


def _distances(ours: np.ndarray, faces: list[np.ndarray]) -> list[np.ndarray]:
    """Distances [68] from the one of ``faces`` that is the same; nothing where none is."""
    same = [face for face in faces if _overlap(ours, face) > _OVERLAP]
    size = np.sqrt(np.ptp(ours, axis=0).prod())
    return [np.linalg.norm(ours - face, axis=-1) / size for face in same[:1]]


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of the boxes around two sets of points."""
    low, high = np.maximum(first.min(0), second.min(0)), np.minimum(first.max(0), second.max(0))
    common = float(np.clip(high - low, 0, None).prod())
    return common / (float(np.ptp(first, axis=0).prod() + np.ptp(second, axis=0).prod()) - common)


def run_benchmark(corpus: Path, assets: Assets, predictor: Path, step: int) -> Iterator[str]:
    """A row of text for each clip, in percent of the face's size, and one for all of their frames."""
    dlib = DlibLandmarks(predictor)
    config = CorpusConfig(corpus=corpus, layout="folder")
    landmarker = FaceLandmarker(load_landmarker_files(assets.ensure_landmarker()))
    dataset = ClipDataset(corpus_root(config), DecodeConfig(), f0_praat)
    yield f"| clip | frames, both found | {' | '.join(REGIONS)} |"
    yield "|---|---|" + "---|" * len(REGIONS)
    found = []
    for clip in scan_corpus(config):
        each = compare_clip(clip, dataset, landmarker, dlib, step)
        if len(each.distances):
            found.append(each)
            yield _row(each)
    if found:
        distances = np.concatenate([each.distances for each in found])
        yield _row(Agreement("all", sum(each.num_frames for each in found), distances))


def _row(each: Agreement) -> str:
    cells = (f"{100 * each.of(region):.2f}" for region in REGIONS)
    return f"| {each.name} | {len(each.distances)} of {each.num_frames} | {' | '.join(cells)} |"
