"""Inputs of the benchmarks: clips, decoded or on disk, and models that need no hub and no licence."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import HubertConfig, HubertModel
from transformers.utils import logging as transformers_logging

from benchmarks.deep3d_files import make_deep3d
from benchmarks.machine import has_fast_bfloat16
from benchmarks.options import BenchOptions
from benchmarks.results import Remark
from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.checkpoint import demo_checkpoint
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import CorpusConfig, FaceConfig, RegressionConfig, RunConfig, SpeechConfig, resolve
from lrs3_loader.corpus.scan import corpus_root, scan_corpus
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.demo import make_demo_corpus
from lrs3_loader.errors import RunError
from lrs3_loader.extraction.batch import FrameSpan, fixed_batches
from lrs3_loader.extraction.models import Models
from lrs3_loader.face.deep3d.regressor import Deep3DFiles, load_deep3d_files
from lrs3_loader.face.fit.fitter import FitInput
from lrs3_loader.face.geometry.topology import to_ibug68
from lrs3_loader.face.landmarks.landmarker import FaceLandmarker, FrameLandmarks
from lrs3_loader.face.landmarks.tracks import FaceTrack
from lrs3_loader.runtime.device import configure_torch
from lrs3_loader.runtime.memory import disable_malloc_trim
from lrs3_loader.types import SAMPLES_PER_FRAME, Clip, DecodedChunk

SPEECH_FOLDER = "hubert-large-random"
RANDOM_WEIGHTS = (
    "HuBERT and the Deep3D network have random weights of the original's shapes: the speed is that of the trained "
    "ones, their features mean nothing"
)


@dataclass(frozen=True)
class Take:
    """The decoded beginning of a clip."""

    clip: Clip
    path: Path
    frames: torch.Tensor  # [T, H, W, 3] u8
    waveform: torch.Tensor  # [640 T] f32

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    def beginning(self, num_frames: int) -> Take:
        cut = min(num_frames, self.num_frames)
        return replace(self, frames=self.frames[:cut], waveform=self.waveform[: cut * SAMPLES_PER_FRAME])


def generate_clips(folder: Path, quick: bool, num_clips: int = 4) -> Path:
    """An LRS3-shaped corpus of rendered heads: 224 x 224, 25 fps, AAC at 16 kHz, 2 to 4 seconds each."""
    speakers = 1 if quick else max(1, num_clips // 2)
    clips = 1 if quick else -(-num_clips // speakers)
    make_demo_corpus(folder, speakers, clips, seconds=(0.8, 0.9) if quick else (2.0, 4.0))
    return folder


def local_root(corpus: CorpusConfig) -> Path:
    """Folder that the clips' paths are relative to."""
    root = corpus_root(corpus)
    assert isinstance(root, Path), "the options take folders only"
    return root


def decode_takes(corpus: CorpusConfig, config: RunConfig, num_frames: int) -> list[Take]:
    """The first clips of a corpus, decoded, ``num_frames`` frames together; over again where the corpus has fewer.

    Raises:
        RunError: no clip of the corpus can be decoded.
    """
    root = local_root(corpus)
    dataset = ClipDataset(root, config.decode, f0_praat)
    takes = []
    missing = num_frames
    for clip in scan_corpus(corpus):
        if missing <= 0:
            break
        chunk = dataset[ChunkRequest(clip)]
        if isinstance(chunk, DecodedChunk) and chunk.head is not None:
            waveform = chunk.head.waveform[: len(chunk.frames) * SAMPLES_PER_FRAME]
            takes.append(Take(clip, root / clip.video_path, chunk.frames, waveform).beginning(missing))
            missing -= takes[-1].num_frames
    if not takes:
        raise RunError(f"no clip of {root} can be decoded")
    return list(_repeated(takes, num_frames))


def _repeated(takes: list[Take], num_frames: int) -> Iterator[Take]:
    for take in itertools.cycle(takes):
        part = take.beginning(num_frames)
        yield part
        num_frames -= part.num_frames
        if num_frames < 6:  # no clip is shorter
            return


def describe_takes(takes: Iterable[Take], options: BenchOptions) -> Remark:
    """Where the frames come from."""
    takes = list(takes)
    sizes = sorted({f"{take.frames.shape[2]}x{take.frames.shape[1]}" for take in takes})
    files = len({take.path for take in takes})
    origin = "of the corpus given" if options.clips else "rendered for this (synthetic talking heads)"
    again = f", some {-(-len(takes) // files)} times" if files < len(takes) else ""
    total = sum(take.num_frames for take in takes)
    return Remark(f"{total} frames of {', '.join(sizes)} in {len(takes)} clips: {files} files {origin}{again}")


def make_speech_encoder(folder: Path, quick: bool) -> Path:
    """HuBERT-large's shape with random weights, as a Hugging Face folder; with ``quick`` a tiny one."""
    folder.mkdir(parents=True, exist_ok=True)
    if quick:
        model: Any = demo_checkpoint().model
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = HubertModel(large_config()).eval()
    with no_progress_bars():
        model.save_pretrained(folder)
    extractor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": True,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 16_000,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor, indent=1), encoding="utf-8")
    return folder


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """transformers draws none meanwhile."""
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def large_config() -> HubertConfig:
    """The shape of facebook/hubert-large-ls960-ft."""
    return HubertConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
    )


def network_dtype(options: BenchOptions, device: torch.device) -> Literal["float32", "bfloat16", "float16"]:
    """Arithmetic of HuBERT and ResNet-50."""
    if options.precision != "auto":
        return options.precision
    return "bfloat16" if has_fast_bfloat16(device) else "float32"


def full_config(options: BenchOptions, device: torch.device, scratch: Path) -> RunConfig:
    """Every stage of extraction: landmarks, fit, mel, pitch, HuBERT-large, Deep3D; resolved for the device.

    ICT-FaceKit where its files are available, else the generated face model.
    """
    face_model = "ict" if Assets(options.assets).has_ict() else "demo"
    dtype = network_dtype(options, device)
    config = RunConfig(
        face=FaceConfig(face_model=face_model),
        regression=RegressionConfig(checkpoint=make_deep3d(scratch / "deep3d"), dtype=dtype),
        speech=SpeechConfig(model=str(make_speech_encoder(scratch / SPEECH_FOLDER, options.quick)), dtype=dtype),
        threads=options.threads,
    )
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return resolve(config, device.type, free_bytes)


class Workbench:
    """Decoded clips and loaded models, with the frames on the device.

    Raises ``RunError`` where clips or model files are missing.
    """

    def __init__(
        self, options: BenchOptions, device: torch.device, scratch: Path, num_frames: Mapping[str, int]
    ) -> None:
        """``num_frames``: by kind of device, where the options do not say."""
        configure_torch(options.threads)
        disable_malloc_trim()  # as extraction does
        self.options = options
        self.device = device
        self.scratch = scratch
        self.assets = Assets(options.assets)
        self.assets.ensure_landmarker()
        self.config = full_config(options, device, scratch)
        generated = scratch / "clips"
        corpus = options.corpus(generated if options.clips else generate_clips(generated, options.quick))
        self.root = local_root(corpus)
        wanted = options.frames or (12 if options.quick else num_frames[device.type])
        self.takes = decode_takes(corpus, self.config, wanted)
        self.num_frames = sum(take.num_frames for take in self.takes)
        self.models = Models.load(self.config, self.assets, device)
        self.frames = [take.frames.to(device) for take in self.takes]

    def find_faces(self, landmarker: FaceLandmarker) -> list[FrameLandmarks]:
        """Landmarks of each take, by way of the same batches as in extraction."""
        tracks = [FaceTrack() for _ in self.takes]
        found: list[list[FrameLandmarks]] = [[] for _ in self.takes]
        spans = (FrameSpan(number, 0, frames) for number, frames in enumerate(self.frames))
        for batch in fixed_batches(spans, landmarker.batch_size, 1 << 30):
            parts = landmarker([(span.frames, tracks[span.owner]) for span in batch])
            for span, part in zip(batch, parts, strict=True):
                found[span.owner].append(part)
        return [FrameLandmarks.cat(parts) for parts in found]

    def deep3d_files(self) -> Deep3DFiles:
        checkpoint = self.config.regression.checkpoint
        assert checkpoint is not None
        return load_deep3d_files(*self.assets.deep3d(checkpoint))

    def fit_inputs(self, landmarks: Sequence[FrameLandmarks]) -> list[FitInput]:
        """Of the takes with a face, with dense points."""
        inputs = []
        for frames, part in zip(self.frames, landmarks, strict=True):
            if bool(part.found.any()):
                lm68, dense = to_ibug68(part.points)[..., :2].cpu(), part.points[..., :2].cpu()
                inputs.append(FitInput(lm68, part.found.cpu(), frames.shape[1], frames.shape[2], lm468=dense))
        return inputs
