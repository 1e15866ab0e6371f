"""Checks by trial: decodes a generated clip and clips of the corpus, computes on the GPU, looks at the model files."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from lrs3_loader.assets.check import AssetStatus, check_assets
from lrs3_loader.assets.locate import FETCH_COMMAND, Assets
from lrs3_loader.assets.reach import why_not_fetched
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import DecodeConfig, PlanConfig, WorkerConfig
from lrs3_loader.corpus.plan import make_plan
from lrs3_loader.corpus.scan import Corpus
from lrs3_loader.decode.loader import ClipLoader
from lrs3_loader.demo.encode import write_mp4
from lrs3_loader.doctor.checks import CheckResult, Level
from lrs3_loader.errors import RunError, UnreadableError, count_of
from lrs3_loader.io.media_file import open_input
from lrs3_loader.io.storage import Location, store_at
from lrs3_loader.kernels import convolution
from lrs3_loader.kernels.trust import FastPath
from lrs3_loader.types import SAMPLE_RATE, SAMPLES_PER_FRAME, Clip, DecodedChunk, Reject

NUM_FRAMES = 30
TONE_HZ = 200.0
NUM_CLIPS = 3  # of the corpus to try
NUM_HEADERS = 64  # of its files to read
MAX_GREY_ERROR = 6.0  # of 255; H.264 changes a uniform frame by less
DEADLINE_SECONDS = 30.0
MIN_GPU_BYTES = 6 << 30
_GPU_REMEDY = "its memory may be full (nvidia-smi), or torch was not built for it; CUDA_VISIBLE_DEVICES selects others"
_REINSTALL = "pip install --force-reinstall --no-deps av praat-parselmouth numpy; on a full disk set TMPDIR"


def check_decoders() -> CheckResult:
    """Encode a clip of grey frames and a tone, decode it in a worker process, and compare."""
    greys = np.linspace(40, 215, NUM_FRAMES)
    time = np.arange(NUM_FRAMES * SAMPLES_PER_FRAME) / SAMPLE_RATE
    tone = sum(0.2 / k * np.sin(2 * np.pi * k * TONE_HZ * time) for k in (1, 2, 3))
    try:
        with tempfile.TemporaryDirectory(prefix="lrs3-loader-") as folder:
            path = Path(folder) / "clip.mp4"
            frames = (np.full((64, 64, 3), round(grey), dtype=np.uint8) for grey in greys)
            write_mp4(path, frames, np.asarray(tone, dtype=np.float32))
            clip = Clip("doctor/trial/clip", path.name, path.stat().st_size)
            (found,) = _decode([clip], Path(folder), DecodeConfig())
    except (RunError, OSError, ImportError) as error:
        return CheckResult("decoders", "fail", f"no clip could be decoded: {error}", _REINSTALL)
    if problem := _compare(found, greys):
        return CheckResult("decoders", "fail", problem, _REINSTALL)
    text = f"{NUM_FRAMES} frames, their audio and its pitch were decoded correctly in a worker process"
    return CheckResult("decoders", "ok", text)


def _compare(found: DecodedChunk | Reject, greys: np.ndarray) -> str:
    """Describe what is wrong with the decoded trial clip; empty if nothing is."""
    if isinstance(found, Reject):
        return f"the trial clip was rejected ({found.reason}): {found.message}"
    assert found.head is not None
    if len(found.frames) != len(greys):
        return f"{len(found.frames)} frames came back of {len(greys)}"
    error = float(np.abs(found.frames.float().mean((1, 2, 3)).numpy() - greys).max())
    if error > MAX_GREY_ERROR:
        return f"frames came back changed, by {error:.0f} of 255"
    voiced = found.head.f0_hz[found.head.f0_hz > 0]
    pitch = float(voiced.median()) if len(voiced) else 0.0
    return f"a tone of {TONE_HZ:.0f} Hz came back as {pitch:.0f} Hz" if abs(pitch - TONE_HZ) > 2 else ""


def check_clips(clips: Sequence[Clip], root: Location, config: DecodeConfig) -> CheckResult:
    """Check that a few evenly spaced clips of a corpus can be decoded."""
    step = max(1, len(clips) // NUM_CLIPS)
    chosen = clips[step // 2 :: step][:NUM_CLIPS]
    try:
        found = _decode(chosen, root, config)
    except RunError as error:
        return CheckResult("corpus", "fail", str(error), "see the message")
    rejects = [result for result in found if isinstance(result, Reject)]
    if rejects:
        text = f"{len(rejects)} of {len(chosen)} clips would be rejected, such as {rejects[0].clip.key} "
        remedy = "look at the file; other clips are not affected, but if most fail, check --layout"
        return CheckResult("corpus", "warn", text + f"({rejects[0].reason}: {rejects[0].message})", remedy)
    return CheckResult("corpus", "ok", f"{len(chosen)} of {len(clips):,} clips tried, all can be decoded")


def check_shards(corpus: Corpus, plan: PlanConfig, num_ranks: int) -> CheckResult:
    """Check that there is a shard for every rank."""
    num_shards = len(make_plan(corpus.clips, plan, corpus.root))
    text = f"{corpus.describe()}, {count_of(num_shards, 'shard')} for {count_of(num_ranks, 'rank')}"
    if num_shards >= num_ranks:
        return CheckResult("shards", "ok", text)
    smaller = max(250, plan.shard_frames * num_shards // (4 * num_ranks))
    return CheckResult(
        "shards", "warn", f"{text}: some have nothing to do", f"--shard-frames {smaller}, or fewer ranks"
    )


def largest_frames(clips: Sequence[Clip], root: Location) -> tuple[int, int]:
    """Height and width of the largest frames that the headers of evenly spaced clips state; (224, 224) without any."""
    sizes = []
    store = store_at(root)
    for clip in clips[:: max(1, -(-len(clips) // NUM_HEADERS))]:
        with (
            contextlib.suppress(UnreadableError),
            store.local_copy(clip.video_path) as folder,
            open_input(folder / clip.video_path, clip.video_path, DEADLINE_SECONDS) as container,
        ):
            sizes += [(stream.height, stream.width) for stream in container.streams.video[:1]]
    return max(sizes, key=math.prod, default=(224, 224))


def _decode(clips: Sequence[Clip], root: Location, config: DecodeConfig) -> list[DecodedChunk | Reject]:
    """Decode in a worker process; returns the first chunk, or the reject, of each clip."""
    workers = WorkerConfig(num_workers=1, deadline_seconds=DEADLINE_SECONDS, attempts=1)
    first: dict[str, DecodedChunk | Reject] = {}
    with ClipLoader(((None, clip) for clip in clips), root, config, workers, pitch=f0_praat) as loader:
        for _, item in loader:
            first.setdefault(item.clip.key, item)
    return list(first.values())


def check_gpu() -> CheckResult:
    """Check that every GPU multiplies two matrices: no GPU is a warning, one that cannot be used a failure."""
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            remedy = "install a driver that is new enough (nvidia-smi names its CUDA version), or a torch built for it"
            return CheckResult("gpu", "fail", f"there is a GPU, but it cannot be used; torch is {built}", remedy)
        return CheckResult("gpu", "warn", "none: everything runs on the CPU", "start one rank per core (torchrun)")
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        names.append(f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)")
        try:
            ones = torch.ones(64, 64, device=f"cuda:{index}")
            right = bool((ones @ ones == 64).all())
        except RuntimeError as error:
            text = f"cuda:{index} cannot compute: {str(error).splitlines()[0]}"
            return CheckResult("gpu", "fail", text, _GPU_REMEDY)
        if not right:
            text = f"cuda:{index} computes wrong results"
            return CheckResult("gpu", "fail", text, "exclude it with CUDA_VISIBLE_DEVICES")
        if properties.total_memory < MIN_GPU_BYTES:
            remedy = "use --frame-batch 64 --hubert-batch-seconds 40"
            return CheckResult("gpu", "warn", f"{names[-1]} has little memory", remedy)
    return CheckResult("gpu", "ok", f"CUDA {torch.version.cuda}: {', '.join(names)}")


def check_kernels() -> CheckResult:
    """Check on every GPU that the operators of ``lrs3_loader.kernels`` give what PyTorch's own give."""
    if not torch.cuda.is_available():
        return CheckResult("kernels", "ok", "plain ones: fast ones are for GPUs")
    for index in range(torch.cuda.device_count()):
        if problem := _operators(torch.device("cuda", index)).problem():
            remedy = "runs use plain ones, and are slower: install triton (and a C compiler, which it needs)"
            return CheckResult("kernels", "warn", f"fast ones cannot be used on cuda:{index} ({problem})", remedy)
    return CheckResult("kernels", "ok", "fast ones give the results of plain ones")


def _operators(device: torch.device) -> FastPath:
    """One block of the landmark networks, by the operator and by its definition."""
    chosen: list[Callable[..., list[torch.Tensor]]] = [convolution.plain_residual_block]

    def trial() -> list[torch.Tensor]:
        numbers = torch.Generator().manual_seed(0)
        shapes = ((2, 16, 16, 8), (3, 3, 8), (8,), (8, 16), (16,), (2, 16, 16, 16), (16,), (16, 8), (8,), (8,))
        tensors = [torch.randn(shape, generator=numbers).to(device) for shape in shapes]
        return chosen[0](*tensors, 1, [1, 1, 1, 1])

    def use(wanted: bool) -> None:
        chosen[0] = convolution.residual_block if wanted else convolution.plain_residual_block

    return FastPath("a block of convolutions", use, trial, 1e-5)


def check_models(
    assets: Assets,
    face_model: str,
    speech: str | Sequence[str],
    why_missing: Callable[[AssetStatus, Assets], str | None] = why_not_fetched,
) -> list[CheckResult]:
    """Check the model files that a run reads: missing ones that it can fetch are warnings, others failures.

    Args:
        why_missing: says why a missing file cannot be fetched; None if it can.
    """
    checks = []
    for row in check_assets(assets, face_model, speech):
        if not row.required:
            continue
        level: Level = "warn"
        if row.state == "damaged":
            level, text, remedy = "fail", row.problem or "damaged", f"delete it and run: {FETCH_COMMAND}"
        elif row.state == "missing":
            problem = row.problem or why_missing(row, assets)
            level = "fail" if problem else "warn"
            text, remedy = f"not on this machine ({row.needed_for})", row.instructions
            text = row.problem or (f"{text}: {problem}" if problem else f"{text}: a run fetches it")
        elif row.state == "differs":
            text = f"{row.path} is another version than was checked with"
            remedy = f"fine if intended; otherwise delete it and run: {FETCH_COMMAND}"
        else:
            level, text, remedy = "ok", str(row.path), ""
        checks.append(CheckResult(row.name, level, text, remedy))
    return checks
