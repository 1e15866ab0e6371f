"""Draw the motion that a trained generator makes of a sound: a face that speaks, as a video with the sound.

lrs3-loader animate runs/audio2motion/best.pt speech.wav --out speech.mp4

lrs3-loader animate runs/audio2motion/best.pt talk.mp4 --beside talk.mp4 --out talk-animated.mp4

lrs3-loader animate runs/audio2motion/best.pt --run runs/demo --key pretrain/DemoHead000/00001 --out x.mp4

The mesh of the face model is drawn beside the 68 landmarks. A generator of exp moves the mesh by itself; of a generator
of idexp_lm3d, which makes 68 points, the mesh is the most likely face of the model that has them (least squares with
the model's priors, one identity for all frames). An .mp4 has all frames at 25 fps, a .png a few of them and the curves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lrs3_loader.config import rarely
from lrs3_loader.launch import cli

if TYPE_CHECKING:
    import torch

    from lrs3_loader.assets.locate import Assets
    from lrs3_loader.audio2motion.checkpoint import Audio2MotionCheckpoint
    from lrs3_loader.viz.animate import Source


@dataclass(frozen=True)
class Models:
    """Where models are, and the device."""

    assets: Path | None = None
    """Folder with model files, looked in first (then $LRS3_LOADER_ASSETS, then the cache)."""
    hubert: str | None = None
    """Where the speech encoder is now: a Hugging Face name or a folder (when not given, what the checkpoint names)."""
    face_model: str | None = None
    """Where the face model is now: ict, demo, or a model file FILE.npz (when not given, what the checkpoint names)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class Drawing:
    """Settings of the drawing."""

    panel: int = 384
    """Side of a panel in pixels (even, at least 64)."""
    small: bool = False
    """Write a .png of 256 colours, a quarter of the size."""
    video: bool = True
    """Show the video of a run's sample if available; --no-video shows nobody's face."""

    def __post_init__(self) -> None:
        if self.panel < 64 or self.panel % 2:
            raise ValueError(f"panel must be even and at least 64, got {self.panel}")


@dataclass(frozen=True)
class Args:
    model: Annotated[Path, tyro.conf.Positional]
    """A checkpoint that train-audio2motion wrote."""
    out: Path
    """The .mp4 or .png to write."""
    sound: Annotated[Path | None, tyro.conf.Positional] = None
    """Any file with sound that FFmpeg reads: .wav, .mp3, .m4a, .mp4 ..."""
    beside: Path | None = None
    """A video to show at the left, as the clip that the sound is of."""
    run: str | None = None
    """Folder or URL of a run: take sound, identity and the true motion from its clip --key."""
    key: str | None = None
    """Which sample of the run: <split>/<speaker>/<utterance>."""
    corpus: Path | None = None
    """Where the run's corpus is now, if it was moved."""
    seed: int = 0
    """Of the motion that is drawn from the generator's distribution."""
    temperature: float = 1.0
    """1: motion as varied as in the training; 0: the most likely one."""
    json: bool = False
    """Print the result as JSON, for scripts."""
    models: Annotated[Models, rarely("models and device")] = field(default_factory=Models)
    drawing: Annotated[Drawing, rarely("drawing")] = field(default_factory=Drawing)


def main(argv: Sequence[str] | None = None) -> int:
    args = cli.parse(Args, __doc__ or "", "animate", argv)
    if (args.sound is None) == (args.run is None):
        raise cli.UsageError("give either a sound file, or --run RUN --key KEY")
    if (args.run is None) != (args.key is None):
        raise cli.UsageError("--run and --key go together: they name a clip")
    if args.run is not None and args.beside is not None:
        raise cli.UsageError("--beside goes with a sound file; the video of a run's clip is shown by itself")
    if args.run is None and args.corpus is not None:
        raise cli.UsageError("--corpus goes with --run")
    if not args.temperature >= 0 or args.seed < 0:
        raise cli.UsageError(f"temperature and seed must be at least 0, got {args.temperature} and {args.seed}")
    if args.sound is not None and args.sound.exists() and args.out.exists() and args.out.samefile(args.sound):
        raise cli.UsageError(f"--out {args.out} is the sound itself: it would be overwritten")

    from lrs3_loader.assets.locate import Assets
    from lrs3_loader.audio2motion.checkpoint import Audio2MotionCheckpoint
    from lrs3_loader.runtime.device import pick_device
    from lrs3_loader.viz import animate

    animate.check_output(args.out)
    assets, device = Assets(args.models.assets), pick_device(args.models.device)
    checkpoint = Audio2MotionCheckpoint.load(args.model)
    model = animate.face_model_of(checkpoint, args.models.face_model, assets)
    source = _source(args, checkpoint, assets, device)
    animation = animate.animate(
        source, checkpoint.network(device), checkpoint.target, model, args.seed, args.temperature
    )
    summary = animate.write_animation(animation, args.out, args.drawing.panel, args.drawing.small)
    print(json.dumps(asdict(summary)) if args.json else summary.describe())
    return cli.EXIT_OK


def _source(args: Args, checkpoint: Audio2MotionCheckpoint, assets: Assets, device: torch.device) -> Source:
    """Return the clip that the arguments name."""
    from lrs3_loader.run.reader import open_run
    from lrs3_loader.train.checkpoint import feature_models
    from lrs3_loader.viz import animate

    if args.sound is not None:
        return animate.from_sound(args.sound, checkpoint, assets, device, args.models.hubert, args.beside)
    assert args.run is not None, "checked before"
    assert args.key is not None, "checked before"
    run = open_run(args.run)
    features = feature_models(run.record)
    return animate.from_sample(run, args.key, checkpoint, features, args.corpus, video=args.drawing.video)
