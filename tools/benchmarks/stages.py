"""Each stage of extraction alone: how fast, how much of what the machine can do, and how exact in which arithmetic."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks.extrapolate import lrs3_remark
from benchmarks.handover import CHUNK_SHAPE, measure_handover
from benchmarks.inputs import RANDOM_WEIGHTS, Workbench, describe_takes
from benchmarks.machine import CEILING, ceiling_figures, decode_all, precisions
from benchmarks.results import Figure, Remark
from benchmarks.timing import Work, in_turn, wait_for
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.audio.hubert import SpeechEncoder
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.decode.frames import read_frames
from lrs3_loader.decode.video import probe_video
from lrs3_loader.face.deep3d.align import align, crop_faces, five_points
from lrs3_loader.face.deep3d.regressor import Deep3DRegressor
from lrs3_loader.face.fit.fitter import FitConfig, LandmarkFitter
from lrs3_loader.face.geometry.topology import to_ibug68
from lrs3_loader.face.landmarks.landmarker import FaceLandmarker, FrameLandmarks
from lrs3_loader.types import ROWS_PER_FRAME

NUM_FRAMES = {"cpu": 256, "cuda": 4096}
GOAL_FRAMES_PER_SECOND = 10_000  # of one large GPU


@dataclass(frozen=True)
class Way:
    """A stage in one kind of arithmetic (None: not counted in FLOPs)."""

    work: Work
    precision: str | None = None
    note: str = ""


class StageBench:
    """Decoded clips, loaded models and ceilings; ``figures()`` measures the stages one after another."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.options, self.device, self.config = bench.options, bench.device, bench.config
        self.ceilings: dict[str, Figure] = {}
        self.landmarks: list[FrameLandmarks] = []
        self._seconds: dict[str, float] = {}  # of each stage as extraction runs it

    def figures(self) -> Iterator[Figure | Remark]:
        yield describe_takes(self.bench.takes, self.options)
        yield Remark(RANDOM_WEIGHTS)
        self.ceilings = ceiling_figures(self.device, self.options.quick)
        yield from self.ceilings.values()
        yield from self._decode()
        yield self._handover()
        if self.device.type == "cuda":
            yield from self._upload()
        yield from self._sound()
        yield from self._speech()
        yield from self._landmarks()
        yield from self._regression()
        yield from self._fit()
        yield from self._together()

    def _decode(self) -> Iterator[Figure | Remark]:
        """What decode workers do; the share is of FFmpeg without conversion to RGB, on one thread."""
        files = {take.path: take for take in self.bench.takes}
        num_frames = sum(take.num_frames for take in files.values())
        paths = list(files)

        def pictures() -> None:
            for take in files.values():
                track = probe_video(take.path, take.clip.video_path, self.config.decode)
                read_frames(track, track.frame_indices_25fps()[: take.num_frames])

        dataset = ClipDataset(self.bench.root, self.config.decode, f0_praat)

        def whole() -> None:
            for take in files.values():
                dataset[ChunkRequest(take.clip)]

        num_decoded = decode_all(paths)
        ways: dict[str, Work] = {"bare": lambda: decode_all(paths), "pictures": pictures, "whole": whole}
        for work in ways.values():
            work()
        seconds = in_turn(ways, self.options.repeats, torch.device("cpu"))
        ceiling = Figure.rate(CEILING, "FFmpeg, one thread", num_decoded, seconds["bare"], "frames/s")
        yield ceiling
        for name, text in (("pictures", "pictures"), ("whole", "pictures, sound, pitch")):
            figure = Figure.rate("decode", text, num_frames, seconds[name], "frames/s")
            yield dataclasses.replace(figure, share=figure.value / ceiling.value)
        self._seconds["decode"] = statistics.median(seconds["whole"]) / num_frames

    def _handover(self) -> Figure:
        """Written, handed over and read once, by one decode process; the share is of copying memory."""
        measured = [measure_handover(4 if self.options.quick else 100) for _ in range(self.options.repeats)]
        num_bytes = measured[0][0]
        figure = Figure.rate("hand-over", "shared memory", num_bytes / 1e9, [each for _, each in measured], "GB/s")
        note = f"{1e9 * figure.value / math.prod(CHUNK_SHAPE[1:]):.0f} frames/s of 224x224"
        return dataclasses.replace(figure, share=figure.value / self.ceilings["copy"].value, note=note)

    def _upload(self) -> Iterator[Figure | Remark]:
        pinned = [take.frames.pin_memory() for take in self.bench.takes]

        def work() -> None:
            for frames in pinned:
                frames.to(self.device, non_blocking=True)

        yield from self._measure("upload", {"frames, pinned memory": Way(work)})

    def _sound(self) -> Iterator[Figure | Remark]:
        waveforms = [take.waveform for take in self.bench.takes]
        rows = [ROWS_PER_FRAME * take.num_frames for take in self.bench.takes]

        def pitch() -> None:
            for waveform, num_rows in zip(waveforms, rows, strict=True):
                f0_praat(waveform.numpy(), num_rows)

        yield from self._measure("pitch", {"Praat": Way(pitch)}, counts=False)
        yield from self._measure("mel", {"float64 FFT": Way(lambda: self.bench.models.mel(waveforms))})

    def _speech(self) -> Iterator[Figure | Remark]:
        waveforms = [take.waveform for take in self.bench.takes]
        ways: dict[str, Way] = {}
        for precision in self._loadable():
            config = dataclasses.replace(self.config.speech, dtype=precision)
            encoder = SpeechEncoder.load(config, self.device)
            ways[precision] = Way(partial(_joined, encoder, waveforms), precision)
        yield from self._measure("HuBERT-large", ways, error=relative_error, used=self.config.speech.dtype)

    def _landmarks(self) -> Iterator[Figure | Remark]:
        self.landmarks = self.bench.find_faces(self.bench.models.landmarker)
        ways = {"float32": Way(lambda: self.bench.find_faces(self.bench.models.landmarker), "float32")}
        if self.device.type == "cuda":
            batch = self.bench.models.landmarker.batch_size
            fast = FaceLandmarker(self.bench.models.landmarker_files, self.device, batch_size=batch, allow_tf32=True)
            ways["tf32"] = Way(lambda: self.bench.find_faces(fast), "tf32")
        yield from self._measure("landmarks", ways, error=pixels_apart)
        found = torch.cat([part.found for part in self.landmarks]).float().mean()
        yield Remark(f"a face was found in {100 * float(found):.0f} % of the frames")

    def _points(self) -> list[torch.Tensor]:
        return [to_ibug68(part.points)[..., :2] for part in self.landmarks]

    def _regression(self) -> Iterator[Figure | Remark]:
        assert self.config.regression.batch is not None
        files = self.bench.deep3d_files()
        spans = list(zip(self.bench.frames, self._points(), strict=True))

        def crops() -> None:
            for frames, points in spans:
                height, width = frames.shape[1:3]
                crop_faces(frames, align(five_points(points).float(), files.standard, height, width))

        yield from self._measure("alignment", {"as Pillow, to the bit": Way(crops)})
        ways: dict[str, Way] = {}
        for precision in self._loadable():
            dtype = getattr(torch, precision)
            batch = self.config.regression.batch
            regressor = Deep3DRegressor(files, self.device, batch_size=batch, dtype=dtype)
            ways[precision] = Way(partial(_joined, regressor, spans), precision)
        used = self.config.regression.dtype
        yield from self._measure("align + ResNet-50", ways, error=relative_error, used=used)

    def _fit(self) -> Iterator[Figure | Remark]:
        inputs = self.bench.fit_inputs(self.landmarks)
        if not inputs:
            yield Remark("fit: not measured, since no clip has a face")
            return
        model = self.bench.models.face_model
        ways = {}
        for mode in ("fast", "best"):
            fitter = LandmarkFitter(model, FitConfig.named(mode, model))
            ways[mode] = Way(partial(fitter, inputs), "float64", f"{model.name}, {mode}")
        num_frames = sum(len(each.valid) for each in inputs)
        yield from self._measure("fit", ways, num_frames=num_frames, used=self.config.face.fit)

    def _together(self) -> Iterator[Figure | Remark]:
        """All stages of the compute process one after another, and what decoding has to keep up with."""
        # Decode workers do the pitch, and the alignment is in the regression.
        parts = {name: each for name, each in self._seconds.items() if name not in ("decode", "pitch", "alignment")}
        total = sum(parts.values())
        rate = 1 / total
        yield Figure("together", "compute, in a row", rate, "frames/s")
        listed = ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in parts.items())
        yield Remark(f"where that time goes: {listed}")
        yield Figure("together", "decode, of one core", 1 / self._seconds["decode"], "frames/s")
        if self.device.type == "cuda":
            needed = GOAL_FRAMES_PER_SECOND * self._seconds["decode"]
            yield Figure("together", f"cores for {GOAL_FRAMES_PER_SECOND} fps", needed, "cores")
            yield Figure("together", "distance to it", GOAL_FRAMES_PER_SECOND / rate, "x")
            yield lrs3_remark(rate, 1, "GPU", "decoding keeps up and copies are hidden behind the computing")
        else:
            both = 1 / (total + self._seconds["decode"])
            yield Figure("together", "decode + compute, one rank", both, "frames/s")
            cores = self.options.threads
            yield lrs3_remark(both, 1, f"rank of {cores} core(s)", "stages as measured here, one after another")

    def _loadable(self) -> list[Literal["float32", "bfloat16", "float16"]]:
        """The precisions that the networks can be loaded in."""
        return [precision for precision in precisions(self.device) if precision != "tf32"]

    def _measure(
        self,
        group: str,
        ways: Mapping[str, Way],
        *,
        num_frames: int | None = None,
        error: Callable[[Any, Any], tuple[float, str]] | None = None,
        used: str | None = None,
        counts: bool = True,
    ) -> Iterator[Figure | Remark]:
        """Run each way once, counting its FLOPs, then all in turn; errors are against the first way's result.

        ``used``: the way that extraction takes (the first when not given).
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        flops: dict[str, int] = {}
        errors: dict[str, tuple[float, str]] = {}
        first: Any = None
        for name, way in ways.items():
            with flop_counter() as counter:
                result = way.work()
            wait_for(self.device)
            flops[name] = counter.get_total_flops()
            first = result if first is None else first
            if error is not None and result is not first:
                errors[name] = error(result, first)
            del result
        num_frames = num_frames or self.bench.num_frames
        seconds = in_turn({name: way.work for name, way in ways.items()}, self.options.repeats, self.device)
        for name, way in ways.items():
            figure = Figure.rate(group, name, num_frames, seconds[name], "frames/s", note=way.note)
            if counts and way.precision is not None and flops[name]:
                gflops = flops[name] / num_frames / 1e9
                share = gflops * figure.value / self.ceilings[way.precision].value
                note = ", ".join(filter(None, [f"{gflops:.2g} GFLOP/frame", figure.note]))
                figure = dataclasses.replace(figure, share=share, note=note)
            if name in errors:
                figure = dataclasses.replace(figure, error=errors[name][0], error_unit=errors[name][1])
            yield figure
        chosen = used if used is not None and used in ways else next(iter(ways))
        self._seconds[group] = statistics.median(seconds[chosen]) / num_frames
        if self.device.type == "cuda":
            yield Figure(group, "peak memory", torch.cuda.max_memory_allocated(self.device) / 2**20, "MiB")


def _joined(network: Callable[[Any], list[torch.Tensor]], inputs: Any) -> torch.Tensor:
    return torch.cat(network(inputs))


def flop_counter() -> FlopCounterMode:
    """torch's own, taught the convolutions that it does not know."""

    def count(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return conv_flop_count(x, weight, out_shape)

    def count_added(total: Any, *rest: Any, **named: Any) -> int:
        return count(*rest, **named)

    mapping: dict[Any, Any] = {torch.ops.aten.mkldnn_convolution: count}
    if torch.backends.mkldnn.is_available():
        mapping[torch.ops.mkldnn._convolution_pointwise] = count
        mapping[torch.ops.mkldnn._convolution_pointwise_] = count_added
    return FlopCounterMode(display=False, custom_mapping=mapping)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> tuple[float, str]:
    """Root mean square of the difference over the deviation of the exact values; rows that hold no number left out."""
    exact, found = exact.float(), found.float()
    rows = exact.isfinite().all(-1)
    difference = (found[rows] - exact[rows]).square().mean().sqrt()
    return float(difference / exact[rows].std()), "of the deviation"


def pixels_apart(found: list[FrameLandmarks], exact: list[FrameLandmarks]) -> tuple[float, str]:
    """Mean distance of the landmarks of frames in which both found a face."""
    distances = []
    for a, b in zip(found, exact, strict=True):
        both = a.found & b.found
        distances.append((a.points - b.points)[both][..., :2].norm(dim=-1).flatten())
    return float(torch.cat(distances).mean()), "px"
