"""How well and how fast landmarks are fitted: against Adam on the same objective, on small faces, with dense points,
and on synthetic truth.

Times are processor seconds of one thread, the least of several runs that alternate between the ways compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from benchmarks.fit_adam import CAMERA, SIZE, Fitted, adam_fit, objective
from benchmarks.fit_clips import Measured
from benchmarks.fit_truth import Truth, errors, rotation_error, speaking_clip
from benchmarks.timing import default_malloc
from lrs3_loader.face.fit.fitter import FitConfig, FitInput, FitResult, LandmarkFitter
from lrs3_loader.face.fit.points import MOUTH
from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.runtime.memory import disable_malloc_trim

SMALL_SHARES = (1 / 3, 1 / 4, 1 / 6)
#: MediaPipe's points on the outer lips that are no iBUG landmark, in two groups that lie between one another: each is
#: held out in turn while the dense fit may use the other.
LIP_FOLDS = ((185, 269, 375, 181), (39, 409, 405, 146))
#: Those on the skin around the mouth.
AROUND_MOUTH = (57, 186, 92, 165, 167, 164, 393, 391, 322, 410, 287, 273, 335, 406, 313, 18, 83, 182, 106, 43)
#: Expressions of the truth: half of it as slow as phrases, half as fast as syllables.
TRUTH_FRAMES = (2.5, 1.0)
NOISE_PX, CORRELATED_NOISE_PX = 0.5, 0.5
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Comparison:
    """One clip, fitted by Adam and by Levenberg-Marquardt under GeneFace++'s objective in a 224 x 224 frame."""

    name: str
    num_frames: int
    adam_seconds: float  # 400 steps
    adam_fine_seconds: float  # with the stage whose result is lost
    seconds: float  # of ours, the clip alone
    adam_objective: float
    objective: float
    adam_px: tuple[float, float]  # mean reprojection error of all landmarks, of the mouth's
    px: tuple[float, float]

    @property
    def gain(self) -> float:
        """By which share our objective is lower."""
        return 1 - self.objective / self.adam_objective


@dataclass(frozen=True)
class Comparisons:
    """All clips; ``seconds``: of ours for all of them in one call, as an extraction fits them."""

    clips: list[Comparison]
    seconds: float

    @property
    def num_frames(self) -> int:
        return sum(clip.num_frames for clip in self.clips)

    @property
    def speedup(self) -> float:
        """Frames a second over Adam's, its lost stage not counted."""
        return sum(clip.adam_seconds for clip in self.clips) / self.seconds

    @property
    def fine_speedup(self) -> float:
        """The same with Adam's lost stage counted."""
        return sum(clip.adam_fine_seconds for clip in self.clips) / self.seconds


def compare_with_adam(model: FaceModel, clips: Sequence[Measured], num_runs: int = 3) -> Comparisons:
    """Both fitters on each clip in turn, and ours on all at once. GeneFace++'s objective knows no bounds.

    Ours runs with memory kept, as in an extraction.
    """
    disable_malloc_trim()
    model = replace(model, exp_bounds=None)
    fitter = LandmarkFitter(model, FitConfig.geneface(model))
    squares = [clip.in_square(SIZE) for clip in clips]
    inputs = [FitInput(square.lm68, square.valid, SIZE, SIZE) for square in squares]
    fitter(inputs[:1])  # tables of the model
    found, together = [], []
    for square, each in zip(squares, inputs, strict=True):
        found.append(_compare(model, fitter, square, each, num_runs))
        together.append(_timed(lambda: fitter(inputs))[0])
    return Comparisons(found, min(together))


def _compare(model: FaceModel, fitter: LandmarkFitter, clip: Measured, given: FitInput, num_runs: int) -> Comparison:
    adam, ours = [], []
    for _ in range(num_runs):
        with default_malloc():
            adam.append(_timed(lambda: adam_fit(model, clip.lm68)))
        ours.append(_timed(lambda: fitter([given])[0]))
    with default_malloc():
        fine_seconds, _ = _timed(lambda: adam_fit(model, clip.lm68, fine_stage=True))
    by_adam, result = adam[0][1], ours[0][1]
    fitted = Fitted(result.id, result.exp, result.pose)
    adam_seconds = min(seconds for seconds, _ in adam)
    return Comparison(
        name=clip.name,
        num_frames=len(clip.lm68),
        adam_seconds=adam_seconds,
        adam_fine_seconds=max(fine_seconds, adam_seconds),
        seconds=min(seconds for seconds, _ in ours),
        adam_objective=objective(model, clip.lm68, by_adam),
        objective=objective(model, clip.lm68, fitted),
        adam_px=_reprojection(model, clip, by_adam),
        px=_reprojection(model, clip, fitted),
    )


def _timed(call: Callable[[], _Out]) -> tuple[float, _Out]:
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def _reprojection(model: FaceModel, clip: Measured, fitted: Fitted) -> tuple[float, float]:
    distance = (project(model.landmarks(fitted.id, fitted.exp), fitted.pose, CAMERA) - clip.lm68).norm(dim=-1)
    distance = distance[clip.valid]
    return float(distance.mean()), float(distance[:, MOUTH].mean())


@dataclass(frozen=True)
class SmallFace:
    """How far the rotation of clips moves, at most over their frames, when the face shrinks to ``share`` of the
    frame; degrees, one entry a clip."""

    share: float
    adam: list[float]
    same_objective: list[float]  # Levenberg-Marquardt on Adam's objective
    default: list[float]  # FitConfig.fast()


def small_faces(model: FaceModel, clips: Sequence[Measured], with_adam: bool = True) -> list[SmallFace]:
    """Each way against its own answer for the face as large as it came, in a 224 x 224 frame."""
    unbounded = replace(model, exp_bounds=None)
    ways: dict[str, Callable[[list[Measured]], list[torch.Tensor]]] = {
        "adam": lambda squares: [adam_fit(unbounded, square.lm68).pose for square in squares],
        "same_objective": lambda squares: _poses(unbounded, FitConfig.geneface(model), squares),
        "default": lambda squares: _poses(model, FitConfig.fast(), squares),
    }
    if not with_adam:
        ways["adam"] = lambda squares: []
    full = {name: way([clip.in_square(SIZE) for clip in clips]) for name, way in ways.items()}
    found = []
    for share in SMALL_SHARES:
        at = [number for number, clip in enumerate(clips) if clip.face_share >= share]
        squares = [clips[number].in_square(SIZE, share / clips[number].face_share) for number in at]
        moved = {}
        for name, way in ways.items():
            poses = zip(at, way(squares), strict=False)
            moved[name] = [float(rotation_error(full[name][number], pose).max()) for number, pose in poses]
        found.append(SmallFace(share, **moved))
    return found


def _poses(model: FaceModel, config: FitConfig, clips: Sequence[Measured]) -> list[torch.Tensor]:
    return [result.pose for result in LandmarkFitter(model, config)([clip.fit_input() for clip in clips])]


@dataclass(frozen=True)
class HeldOut:
    """Mean error at points that a fit did not see, in percent of the face's size; one entry a clip."""

    lips_68: list[float]
    lips_dense: list[float]
    around_68: list[float]
    around_dense: list[float]


def held_out(model: FaceModel, clips: Sequence[Measured], config: FitConfig | None = None) -> HeldOut:
    """Fits to 68 points and to the dense ones less those held out, judged at these. ``config``: without ``dense``."""
    config = config or FitConfig.fast()
    sparse = LandmarkFitter(model, config)([clip.fit_input() for clip in clips])
    dense = LandmarkFitter(model, replace(config, dense=True))

    def judge(results: Sequence[FitResult], points: Sequence[int]) -> list[float]:
        return [_error_at(model, clip, result, points) for clip, result in zip(clips, results, strict=True)]

    def without(points: Sequence[int]) -> list[float]:
        return judge(dense([_hidden(clip, points) for clip in clips]), points)

    lips = [(judge(sparse, fold), without(fold)) for fold in LIP_FOLDS]
    lips_68, lips_dense = (
        [statistics.mean(pair) for pair in zip(*part, strict=True)] for part in zip(*lips, strict=True)
    )
    return HeldOut(lips_68, lips_dense, judge(sparse, AROUND_MOUTH), without(AROUND_MOUTH))


def _hidden(clip: Measured, points: Sequence[int]) -> FitInput:
    assert clip.dense is not None
    seen = clip.dense.clone()
    seen[:, list(points)] = torch.nan
    return replace(clip.fit_input(), lm468=seen)


def _error_at(model: FaceModel, clip: Measured, result: FitResult, points: Sequence[int]) -> float:
    assert clip.dense is not None
    assert model.dense is not None
    camera, at = Camera.for_frame(clip.height, clip.width), list(points)
    verts = model.dense.interpolate(model.vertices(result.id, result.exp), model.triangles)[:, at]
    fitted = project(verts, result.pose, camera)
    distance = (fitted - clip.dense[:, at]).norm(dim=-1).mean(1) / result.face_size_px
    return 100 * float(distance[clip.valid].mean())


@dataclass(frozen=True)
class Recovery:
    """How well one config recovers synthetic truth: means over clips, and the worst clip."""

    expression: float  # relative vertex error, each clip's mean removed
    worst_expression: float
    rotation_degrees: float
    worst_rotation_degrees: float
    reprojection_px: float
    num_unconverged: int


def make_truths(model: FaceModel, num_clips: int, num_frames: int, correlated_noise_px: float = 0.0) -> list[Truth]:
    """Random people of the model's full variety who speak, at 0.5 px of noise in a 224 x 224 frame."""
    return [
        speaking_clip(
            model,
            seed,
            num_frames,
            noise_px=NOISE_PX,
            exp_frames=TRUTH_FRAMES,
            id_share=1.0,
            correlated_noise_px=correlated_noise_px,
        )
        for seed in range(num_clips)
    ]


def recover(model: FaceModel, config: FitConfig, truths: Sequence[Truth]) -> Recovery:
    results = LandmarkFitter(model, config)([truth.clip for truth in truths])
    found = [errors(model, truth, result) for truth, result in zip(truths, results, strict=True)]
    expression, rotation = zip(*found, strict=True)
    return Recovery(
        expression=statistics.mean(expression),
        worst_expression=max(expression),
        rotation_degrees=statistics.mean(rotation),
        worst_rotation_degrees=max(rotation),
        reprojection_px=statistics.mean(float(result.reprojection_px.mean()) for result in results),
        num_unconverged=sum(not result.converged for result in results),
    )


def truth_table(models: Sequence[FaceModel], num_clips: int, num_frames: int) -> Iterator[tuple[str, Recovery]]:
    """(model, noise and config; recovery), row by row."""
    for model in models:
        for correlated_noise_px in (0.0, CORRELATED_NOISE_PX):
            truths = make_truths(model, num_clips, num_frames, correlated_noise_px)
            noise = "0.5 px" if not correlated_noise_px else "0.5 px + 0.5 px correlated"
            configs = {"fast": FitConfig.fast(), "best": FitConfig.best(), "GeneFace++'s": FitConfig.geneface(model)}
            for name, config in configs.items():
                yield f"{model.name}, {noise}, {name}", recover(model, config, truths)
