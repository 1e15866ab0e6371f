"""The same clips through this package and through what people use today, stage by stage and as a whole.

Both sides are kept on the same cores and timed in turn; each ratio comes with how far the two results lie apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peers
from benchmarks.chain import Peers, Source, run_chain
from benchmarks.e2e import extract_options
from benchmarks.extraction import ExtractRunner, copy_clips
from benchmarks.extrapolate import lrs3_remark
from benchmarks.fit_adam import SIZE as FIT_SIZE
from benchmarks.fit_adam import Fitted, adam_fit, objective
from benchmarks.inputs import RANDOM_WEIGHTS, Take, Workbench, describe_takes
from benchmarks.results import Bound, Figure, Remark
from benchmarks.stages import relative_error
from benchmarks.timing import Work, default_malloc, in_turn, limited_threads
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.face.fit.fitter import FitConfig, FitInput, FitResult, LandmarkFitter
from lrs3_loader.face.geometry.topology import to_ibug68
from lrs3_loader.face.landmarks.landmarker import FrameLandmarks
from lrs3_loader.face.landmarks.tracks import fill_gaps

NUM_FRAMES = {"cpu": 1024, "cuda": 1024}
MAX_WHOLE_REPEATS = 2  # they take minutes
NUM_RESNET_FRAMES = 64  # the peer's network is slow: this many of them, on a CPU
BOUNDS = {
    "mel": Bound(1.4),
    "HuBERT-large": Bound(1.9),
    "landmarks": Bound(1),
    "align + ResNet-50": Bound(2.3),
    "fit": Bound(25),
    "whole": Bound(2),
}
MISSING = "not measured, since {} is not installed: pip install -e '.[bench]'"


@dataclass(frozen=True)
class Match:
    """A stage done by both sides over the same frames."""

    stage: str
    num_frames: int
    ours: Work
    our_name: str
    peer: Work
    peer_name: str
    apart: Callable[[Any, Any], tuple[float, str]]  # (ours, peer's) -> how far, in what
    bound: Bound | None = None
    ratio_name: str = "times as fast"


class PeerBench:
    """``figures()`` measures the stages in turn, then both whole ways. ``script``: extract.py."""

    def __init__(self, bench: Workbench, script: Path) -> None:
        self.bench = bench
        self.script = script
        self.repeats, self.device = bench.options.repeats, bench.device
        self.waveforms = [take.waveform for take in bench.takes]
        self._landmarks: list[FrameLandmarks] = []

    def figures(self) -> Iterator[Figure | Remark]:
        yield describe_takes(self.bench.takes, self.bench.options)
        yield Remark(RANDOM_WEIGHTS)
        self._landmarks = self.bench.find_faces(self.bench.models.landmarker)
        for stage in (self._mel, self._pitch, self._hubert, self._landmark, self._regression, self._fit):
            try:
                for match in stage():
                    yield from self._measure(match)
            except ImportError as error:
                yield Remark(f"{stage.__name__.strip('_')}: {MISSING.format(error.name)}")
            except peers.UnavailableError as error:
                yield Remark(f"{stage.__name__.strip('_')}: not measured, since {error}")
        try:
            yield from self._whole()
        except ImportError as error:
            yield Remark(f"whole: {MISSING.format(error.name)}")
        except peers.UnavailableError as error:
            yield Remark(f"whole: not measured, since {error}")

    def _measure(self, match: Match) -> Iterator[Figure | Remark]:
        apart, unit = match.apart(match.ours(), match.peer())
        seconds = in_turn({"ours": match.ours, "peer": default_malloc()(match.peer)}, self.repeats, self.device)
        yield Figure.rate(match.stage, match.our_name, match.num_frames, seconds["ours"], "frames/s")
        yield Figure.rate(match.stage, match.peer_name, match.num_frames, seconds["peer"], "frames/s")
        ratio = Figure.ratio(match.stage, f"  {match.ratio_name}", seconds["peer"], seconds["ours"], match.bound)
        yield ratio.with_error(apart, f"{unit} between the two")

    def _mel(self) -> Iterator[Match]:
        arrays = [waveform.numpy() for waveform in self.waveforms]
        for name, keep in (("librosa, per file", False), ("librosa, filters kept", True)):
            mel = peers.LibrosaMel(keep)
            yield Match(
                "mel",
                self.bench.num_frames,
                partial(self.bench.models.mel, self.waveforms),
                "ours, batched",
                partial(_each, mel, arrays),
                name,
                _mels_apart,
                None if keep else BOUNDS["mel"],
                "times, filters kept" if keep else "times as fast",
            )

    def _pitch(self) -> Iterator[Match]:
        arrays = [waveform.numpy() for waveform in self.waveforms]

        def ours() -> list[np.ndarray]:
            return [f0_praat(array, len(array) // 320)[0] for array in arrays]

        def apart(a: list[np.ndarray], b: list[np.ndarray]) -> tuple[float, str]:
            return max(float(np.abs(x[: len(y)] - y).max()) for x, y in zip(a, b, strict=True)), "Hz at most"

        peer = partial(_each, peers.praat_pitch, arrays)
        yield Match("pitch", self.bench.num_frames, ours, "ours (Praat)", peer, "parselmouth, per file", apart)

    def _hubert(self) -> Iterator[Match]:
        config = self.bench.config.speech
        arrays = [waveform.numpy() for waveform in self.waveforms]
        peer = peers.TransformersHubert(config.model, self.device)

        def apart(ours: list[torch.Tensor], theirs: list[np.ndarray]) -> tuple[float, str]:
            cut = [rows[: len(other)].cpu() for rows, other in zip(ours, theirs, strict=True)]
            return relative_error(torch.cat(cut), peers.concatenated(theirs))

        yield Match(
            "HuBERT-large",
            self.bench.num_frames,
            partial(self.bench.models.speech, self.waveforms),
            f"ours, {config.dtype}",
            partial(_each, peer, arrays),
            "transformers, per clip",
            apart,
            BOUNDS["HuBERT-large"],
        )

    def _landmark(self) -> Iterator[Match]:
        landmarker = self.bench.models.landmarker
        mediapipe = peers.MediaPipeLandmarks(self.bench.assets.landmarker())
        frames = [frame for take in self.bench.takes for frame in take.frames.numpy()]

        def apart(ours: list[FrameLandmarks], theirs: list[np.ndarray]) -> tuple[float, str]:
            points = torch.cat([part.points for part in ours])[..., :2].cpu()
            return float((points - torch.from_numpy(np.stack(theirs))).norm(dim=-1).nanmean()), "px"

        yield Match(
            "landmarks",
            self.bench.num_frames,
            partial(self.bench.find_faces, landmarker),
            "ours, batched",
            partial(_each, mediapipe, frames),
            "mediapipe, per frame",
            apart,
            BOUNDS["landmarks"],
        )
        mediapipe.close()

    def _regression(self) -> Iterator[Match]:
        regressor = self.bench.models.regressor
        assert regressor is not None
        pairs = self._frames_with_landmarks()
        peer = peers.PillowResNet(self.bench.deep3d_files(), self.device)
        arrays = [(take.frames.numpy(), points.numpy()) for take, points in pairs]
        spans = [(take.frames.to(self.device), points.to(self.device)) for take, points in pairs]

        def apart(ours: list[torch.Tensor], theirs: list[np.ndarray]) -> tuple[float, str]:
            return relative_error(torch.cat(ours).cpu(), peers.concatenated(theirs))

        yield Match(
            "align + ResNet-50",
            sum(take.num_frames for take, _ in pairs),
            partial(regressor, spans),
            f"ours, {self.bench.config.regression.dtype}",
            lambda: [peer(*pair) for pair in arrays],
            "Pillow + torchvision",
            apart,
            BOUNDS["align + ResNet-50"],
        )

    def _frames_with_landmarks(self) -> list[tuple[Take, torch.Tensor]]:
        """Takes with landmarks in every frame, cut to as many frames as the slow side can bear."""
        left = self.bench.num_frames if self.device.type == "cuda" else NUM_RESNET_FRAMES
        pairs = []
        for take, found in zip(self.bench.takes, self._landmarks, strict=True):
            if left and bool(found.found.any()):
                cut = take.beginning(left)
                filled = fill_gaps(found.points, found.found, min_valid_fraction=0, max_gap_frames=take.num_frames)
                pairs.append((cut, to_ibug68(filled)[: cut.num_frames, :, :2].cpu()))
                left -= cut.num_frames
        return pairs

    def _fit(self) -> Iterator[Match]:
        """The same clips for both, in a frame of 224 pixels, where GeneFace++'s objective is defined, no bounds.

        Adam clip by clip, its last stage with it, whose result is thrown away; ours all in one call, as in extraction.
        """
        model = replace(self.bench.models.face_model, exp_bounds=None)
        inputs = [_in_224(clip) for clip in self.bench.fit_inputs(self._landmarks) if bool(clip.valid.all())]
        landmarks = [clip.lm68 for clip in inputs]

        def apart(ours: list[FitResult], theirs: list[Fitted]) -> tuple[float, str]:
            pairs = zip(ours, theirs, landmarks, strict=True)
            ratios = [objective(model, lm68, _fitted(a)) / objective(model, lm68, b) for a, b, lm68 in pairs]
            return statistics.mean(ratios), "times its objective"

        for name, config in (("same objective", FitConfig.geneface(model)), ("as extracted", FitConfig.fast())):
            yield Match(
                "fit",
                sum(len(clip.valid) for clip in inputs),
                partial(LandmarkFitter(model, config), inputs),
                f"ours, {name}",
                lambda: [adam_fit(model, lm68, fine_stage=True) for lm68 in landmarks],
                "Adam, as GeneFace++ runs it",
                apart,
                BOUNDS["fit"] if name == "same objective" else None,
                "times as fast" if name == "same objective" else "times, as extracted",
            )

    def _whole(self) -> Iterator[Figure | Remark]:
        """Files in, files out: the scripts one after another against one run of extract.py, models loaded before."""
        models = Peers(
            peers.LibrosaMel(),
            peers.TransformersHubert(self.bench.config.speech.model, self.device),
            peers.MediaPipeLandmarks(self.bench.assets.landmarker()),
            peers.PillowResNet(self.bench.deep3d_files(), self.device),
            self._adam_of_file,
        )
        clips = list({take.path: take.clip for take in self.bench.takes}.values())
        if any(clip.sound_path or clip.start_seconds or clip.end_seconds for clip in clips):
            yield Remark("whole: not measured, since the clips are stretches of files, or have their sound elsewhere")
            return
        corpus = copy_clips(self.bench.root, clips, self.bench.scratch / "whole")
        folder = self.bench.scratch / "peer-files"
        folder.mkdir()
        sources = [Source(clip.key.replace("/", "_"), corpus / f"{clip.key}.mp4") for clip in clips]
        options = extract_options(self.bench.options, self.device, self.bench.scratch, full=True)
        runner = ExtractRunner(self.script, options, self.bench.options.threads, self.device.type == "cuda")
        ours: list[float] = []
        theirs: list[float] = []
        scripts: list[dict[str, float]] = []
        for number in range(min(self.repeats, MAX_WHOLE_REPEATS)):
            run = runner.run(corpus, self.bench.scratch / f"whole-{number}", 1, ["--workers", "1"])
            ours.append(run.seconds)
            with default_malloc(), limited_threads():
                scripts.append(run_chain(sources, folder, models))
            theirs.append(sum(scripts[-1].values()))
        yield Figure.rate("whole", "ours, one run", run.num_frames, ours, "frames/s")
        yield Figure.rate("whole", "peers, chained by files", run.num_frames, theirs, "frames/s")
        yield Figure.ratio("whole", "  times as fast", theirs, ours, BOUNDS["whole"])
        middle = {name: statistics.median(each[name] for each in scripts) for name in scripts[0]}
        yield Remark("peers, seconds a script: " + ", ".join(f"{name} {each:.1f}" for name, each in middle.items()))
        stages = ", ".join(f"{name} {each:.1f}" for name, each in run.stage_seconds.items())
        yield Remark(f"ours, seconds a stage: {stages}")
        rate = run.num_frames / statistics.median(ours)
        yield lrs3_remark(rate, 1, f"rank of {self.bench.options.threads} core(s)", "ranks add up")

    def _adam_of_file(self, lm68: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
        clip = FitInput(torch.from_numpy(lm68).float(), torch.ones(len(lm68), dtype=torch.bool), height, width)
        found = adam_fit(self.bench.models.face_model, _in_224(clip).lm68, fine_stage=True)  # as its script does
        return {name: getattr(found, name).numpy() for name in ("id", "exp", "pose")}


def _in_224(clip: FitInput) -> FitInput:
    """The 68 landmarks of a clip, its frame scaled (and at the lower or right side filled up) to 224 x 224."""
    scale = FIT_SIZE / max(clip.height, clip.width)
    return FitInput((clip.lm68 + 0.5) * scale - 0.5, clip.valid, FIT_SIZE, FIT_SIZE)


def _fitted(result: FitResult) -> Fitted:
    return Fitted(result.id, result.exp, result.pose)


def _each(function: Callable[[Any], Any], inputs: list[Any]) -> list[Any]:
    return [function(each) for each in inputs]


def _mels_apart(ours: list[torch.Tensor], theirs: list[np.ndarray]) -> tuple[float, str]:
    apart = [
        float((a.cpu()[: b.shape[1]] - torch.from_numpy(b.T)).abs().max()) for a, b in zip(ours, theirs, strict=True)
    ]
    return max(apart), "log10 at most"
