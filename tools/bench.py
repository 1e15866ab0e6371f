#!/usr/bin/env python3
"""Measure how fast things are, beside what else could be used for them.

python tools/bench.py stages                      # each stage alone, beside what the machine can do

python tools/bench.py peers                       # the same clips through what people use today

python tools/bench.py e2e                         # whole runs, cold and warm, on 1..N ranks

python tools/bench.py scale                       # how time and memory grow with the number of clips

python tools/bench.py stream                      # samples a second from shards

python tools/bench.py train                       # is the loader the bottleneck? its clips/s beside those of a step

python tools/bench.py scan                        # finding and planning 151,819 clips

python tools/bench.py fit --clips FOLDER          # landmark fitting: against Adam, on small faces, on truth

python tools/bench.py coefficients --clips FOLDER # do fitted coefficients mean what they are called?

python tools/bench.py landmarks --clips FOLDER    # the 68 landmarks beside dlib's

python tools/bench.py speaking --clips FOLDER     # active-speaker scores with own sound, silence, another's voice

python tools/bench.py figures --clips FOLDER      # figures of every clip: cost, two people in one clip, the table

python tools/bench.py cluster                     # 100,000 shards, 2,000 ranks, no models

python tools/bench.py large                       # long clips in 1080p and 4K, in 1 GiB of shared memory

python tools/bench.py roofline --card h200        # a model of an extraction on a GPU, which need not be here

python tools/bench.py gpu --out FOLDER            # all that is worth knowing about a GPU, within ten minutes

python tools/bench.py faults                      # failing file calls, kills, power cuts, unlucky timing
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from benchmarks.faults.options import FaultOptions
from benchmarks.options import BenchOptions
from lrs3_loader.launch import cli

if TYPE_CHECKING:
    import torch

    from benchmarks.results import Figure, Remark

    Measured = Iterator[Figure | Remark]

EXTRACT = Path(__file__).with_name("extract.py")


@dataclass(frozen=True)
class Stream:
    """Samples a second from shards: ShardStream, plain webdataset, and torch over .npy files."""

    samples: int = 10_000
    """Synthetic samples to make."""
    workers: int = 0
    """DataLoader workers."""
    passes: int = 3
    """Passes over all samples, of each way in turn."""
    scratch: Path | None = None
    """Folder to work in (a temporary one otherwise); 0.8 GB for 10000 samples."""

    def __call__(self) -> int:
        from benchmarks import stream as bench_stream  # torch takes seconds to import: not before the arguments fit

        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            for line in bench_stream.run_benchmark(Path(folder), self.samples, self.workers, self.passes):
                print(line, flush=True)
        return cli.EXIT_OK


@dataclass(frozen=True)
class Train:
    """Clips a second that the loader reads, beside those of a training step on this CPU and, modelled, on a GPU."""

    passes: int = 3
    """Passes of the loader over all clips."""
    card: str = "h200"
    """GPU to model: h200, h100, a100, l40s, 4090, or a JSON file like those of roofline."""
    share: float = 1.0
    """Share of the clips (600 of the demo's size, 240 of LRS3's) to make and read."""
    scratch: Path | None = None
    """Folder to work in (a temporary one otherwise); 0.5 GB."""

    def __call__(self) -> int:
        from benchmarks import training
        from benchmarks.roofline.cards import find_card

        card = find_card(self.card)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            for line in training.describe(training.measure(Path(folder), self.passes, card, self.share), card):
                print(line, flush=True)
        return cli.EXIT_OK


@dataclass(frozen=True)
class Scan:
    """Finding and planning the clips of an LRS3-sized tree of empty files."""

    share: float = 1.0
    """Size of the tree as a share of LRS3's 151,819 clips."""
    scratch: Path | None = None
    """Folder to work in (a temporary one otherwise)."""

    def __call__(self) -> int:
        from benchmarks import scan

        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            for line in scan.run_benchmark(Path(folder), self.share):
                print(line, flush=True)
        return cli.EXIT_OK


@dataclass(frozen=True)
class Stages(BenchOptions):
    """Each stage alone: frames/s, share of what the machine can do, error of each precision against float32."""

    def __call__(self) -> int:
        from benchmarks import inputs, stages

        def measure(device: torch.device, scratch: Path) -> Measured:
            return stages.StageBench(inputs.Workbench(self, device, scratch, stages.NUM_FRAMES)).figures()

        return report(self, measure, pin=True)


@dataclass(frozen=True)
class Peers(BenchOptions):
    """The same clips, on the same cores, through what people use today: ratio of each stage and of the whole."""

    def __call__(self) -> int:
        from benchmarks import compare, inputs

        def measure(device: torch.device, scratch: Path) -> Measured:
            return compare.PeerBench(inputs.Workbench(self, device, scratch, compare.NUM_FRAMES), EXTRACT).figures()

        return report(self, measure, pin=True)


@dataclass(frozen=True)
class EndToEnd(BenchOptions):
    """Whole runs of extract.py on clips on disk, cold and warm, on 1..N ranks, and the time each resource was busy."""

    repeats: int = 1
    """Warm runs of each number of ranks, after the cold one."""
    ranks: int | None = None
    """Up to so many ranks (as many as there are cores or GPUs when not given)."""
    full: bool = True
    """With HuBERT-large and the Deep3D network (of random weights); else the small speech encoder alone."""

    def __call__(self) -> int:
        from benchmarks import e2e

        def measure(device: torch.device, scratch: Path) -> Measured:
            return e2e.measure(self, device, scratch, EXTRACT, self.ranks, self.full)

        return report(self, measure, pin=False)


@dataclass(frozen=True)
class Scale(BenchOptions):
    """How time and memory of whole runs grow with the number of clips."""

    repeats: int = 1
    """Not used: each size is run once."""
    factors: tuple[int, ...] = (1, 4, 16)
    """Sizes, in multiples of the smallest corpus."""

    def __call__(self) -> int:
        from benchmarks import scale

        def measure(device: torch.device, scratch: Path) -> Measured:
            return scale.measure(self, device, scratch, EXTRACT, self.factors)

        return report(self, measure, pin=False)


@dataclass(frozen=True)
class Roofline(BenchOptions):
    """A model of an extraction on a GPU that need not be here: bytes, FLOPs and launches of each stage, priced."""

    card: str = "h200"
    """h200, h100, a100, l40s, 4090, or a JSON file with the ceilings of another."""
    validate: bool = False
    """Compare the model with what is measured on this CPU, and with published speeds, instead."""

    def __call__(self) -> int:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the stand-in device takes the place of those that there are
        from benchmarks.roofline import cards, measure, validation

        def model(_: torch.device, scratch: Path) -> Measured:
            card = cards.find_card(self.card)
            return validation.compare(self, scratch) if self.validate else measure.measure(self, card, scratch)

        return report(self, model, pin=True)


@dataclass(frozen=True)
class Gpu:
    """The first hour with a GPU in ten minutes: doctor, stages, a trace, whole runs, the model beside them, tests."""

    out: Path
    """Folder for all outputs, figures, a trace of one shard and summary.md."""
    clips: Path | None = None
    """A corpus of real clips to measure on; generated ones when not given."""
    assets: Path | None = None
    """Folder with model files, looked in first. Nothing is fetched meanwhile."""
    card: str | None = None
    """For the model, as of roofline; the GPU's own where it is known."""
    quick: bool = False
    """Tiny inputs, to see that everything runs; the figures mean nothing."""

    def __call__(self) -> int:
        from benchmarks.gpu import session

        options = [
            *(["--clips", str(self.clips.resolve())] if self.clips else []),
            *(["--quick"] if self.quick else []),
        ]
        options += ["--assets", str(self.assets.resolve())] if self.assets else []
        try:
            for line in session.run_session(self.out, options, self.card):
                print(line, flush=True)
        except ValueError as error:
            raise cli.UsageError(str(error)) from error
        return cli.EXIT_OK


@dataclass(frozen=True)
class Cluster:
    """How a launch of a very large run begins, and what leases cost with thousands of ranks; without models."""

    shards: int = 100_000
    """Shards of the run, all but one of them published."""
    clips: int = 60
    """Clips in each."""
    ranks: int = 2_000
    """Ranks that draw all the shards again."""
    scratch: Path | None = None
    """Folder to work in (a temporary one otherwise); 2 GB for 100000 shards of 60 clips."""

    def __call__(self) -> int:
        from benchmarks import cluster

        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            for line in cluster.run_benchmark(Path(folder), self.shards, self.clips, self.ranks):
                print(line, flush=True)
        return cli.EXIT_OK


@dataclass(frozen=True)
class Large:
    """Long clips in 1080p and 4K, decoded in a budget of shared memory. Exit code 1 if it was not kept."""

    sizes: tuple[Literal["1080p", "4K"], ...] = ("1080p", "4K")
    """Sizes of the frames."""
    seconds: float = 300.0
    """Length of each clip."""
    clips: int = 1
    """Clips of each size."""
    mebibytes: int = 1024
    """The budget, as of extract --decode-mebibytes."""
    workers: int = 2
    """Decode processes."""
    scratch: Path | None = None
    """Folder to work in (a temporary one otherwise)."""

    def __call__(self) -> int:
        from benchmarks import large_frames

        is_good = True
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            for line, is_kept in large_frames.run_benchmark(
                Path(folder), self.sizes, self.seconds, self.clips, self.mebibytes, self.workers
            ):
                print(line, flush=True)
                is_good &= is_kept
        return cli.EXIT_OK if is_good else cli.EXIT_PROBLEM


@dataclass(frozen=True)
class Faults(FaultOptions):
    """Fail every file call of every command, kill it, cut the power, fail requests to object storage, draw schedules
    of ranks, launches and readers, kill real ranks, publish shards again under readers, and have damaged clips and
    files read.

    Without models: decoding is replaced but for damaged clips, and all the rest is what a run does. Exit code 1 if
    anything was found that is not known.
    """

    def __call__(self) -> int:
        from benchmarks.faults import report, scenarios

        if unknown := set(self.scenario) - set(scenarios.SCENARIOS):
            raise cli.UsageError(f"no scenario {', '.join(unknown)}; there are {', '.join(scenarios.SCENARIOS)}")
        num_defects = 0
        for line, count in report.run_benchmark(self):
            print(line, flush=True)
            num_defects += count
        return cli.EXIT_PROBLEM if num_defects else cli.EXIT_OK


@dataclass(frozen=True)
class Fit:
    """Landmark fitting: against Adam on GeneFace++'s objective, on small faces, with dense points, and on truth."""

    clips: Path | None = None
    """Folder of real clips; synthetic ones when not given."""
    face_model: str = "ict"
    """ict, demo, or a model file FILE.npz."""
    assets: Path | None = None
    """Folder of model files, looked in first."""
    truths: int = 12
    """Synthetic clips for each row of the table of truth."""
    frames: int = 125
    """Frames of each of these."""
    runs: int = 3
    """Runs of each timing; the fastest counts."""

    def __call__(self) -> int:
        from benchmarks import fit_report
        from lrs3_loader.assets.locate import Assets

        found = Assets(self.assets)
        for line in fit_report.run_benchmark(self.clips, self.face_model, found, self.truths, self.frames, self.runs):
            print(line, flush=True)
        return cli.EXIT_OK


@dataclass(frozen=True)
class Coefficients:
    """Expression coefficients of real clips against the blendshape scores of their names, and of neutral faces."""

    clips: Path
    """Folder of real clips, in any layout."""
    assets: Path | None = None
    """Folder of model files, looked in first."""
    face_model: str = "ict"
    """ict, or a model file FILE.npz whose expression modes bear ARKit's names."""
    people: tuple[str, ...] = ()
    """Words in the names of clips, each of one person (of others each clip is one): also calibrate the expression prior
    on all people but one, and measure that one."""

    def __call__(self) -> int:
        from benchmarks import coefficients
        from lrs3_loader.assets.locate import Assets

        for line in coefficients.run_benchmark(self.clips, self.face_model, Assets(self.assets), self.people):
            print(line, flush=True)
        return cli.EXIT_OK


@dataclass(frozen=True)
class Landmarks:
    """The 68 landmarks of real clips beside those of dlib's shape predictor (pip install dlib-bin)."""

    clips: Path
    """Folder of real clips, in any layout."""
    assets: Path | None = None
    """Folder of model files, looked in first."""
    predictor: Path = Path("/usr/share/dlib/shape_predictor_68_face_landmarks.dat")
    """dlib's file; the default is where Debian's package libdlib-data puts it."""
    step: int = 5
    """Every so many frames; dlib's detector is slow."""

    def __call__(self) -> int:
        from benchmarks import landmarks
        from lrs3_loader.assets.locate import Assets

        for line in landmarks.run_benchmark(self.clips, Assets(self.assets), self.predictor, self.step):
            print(line, flush=True)
        return cli.EXIT_OK


@dataclass(frozen=True)
class Speaking:
    """Active-speaker scores of real clips with their own sound, silence, noise, another's voice, and late sound."""

    clips: Path
    """Folder of real clips, in any layout."""
    assets: Path | None = None
    """Folder of model files, looked in first."""

    def __call__(self) -> int:
        from benchmarks import speaking
        from lrs3_loader.assets.locate import Assets

        for line in speaking.run_benchmark(self.clips, Assets(self.assets)):
            print(line, flush=True)
        return cli.EXIT_OK


@dataclass(frozen=True)
class Figures:
    """Figures of every clip: their CPU time, how far two people in one clip stand out, and the table of many clips."""

    clips: Path
    """Folder of real clips, in any layout."""
    assets: Path | None = None
    """Folder of model files, looked in first."""
    repeats: int = 4
    """Extractions of all clips at each level, in turn."""
    table_clips: int = 150_000
    """Clips of the made-up run whose table is read."""
    scratch: Path | None = None
    """Folder to work in (a temporary one otherwise); 0.1 GB for 150000 clips."""

    def __call__(self) -> int:
        from benchmarks import figures
        from lrs3_loader.assets.locate import Assets
        from lrs3_loader.runtime.device import configure_torch

        configure_torch(1)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            found = Assets(self.assets)
            for line in figures.run_benchmark(self.clips, found, self.repeats, self.table_clips, Path(folder)):
                print(line, flush=True)
        return cli.EXIT_OK


def report(options: BenchOptions, measure: Callable[[torch.device, Path], Measured], pin: bool) -> int:
    """Print figures as they come, then write what was asked for; the exit code says whether all bounds were reached.

    pin: keep this process on ``options.threads`` cores; else the measurement does so for what it starts.
    """
    from benchmarks import machine, plot, results, timing
    from lrs3_loader.runtime.device import pick_device

    device = pick_device(options.device)
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.scratch)))
            record = results.Record(machine.describe_machine(device, options.threads))
            for line in (*results.machine_lines(record.machine), "", results.TABLE_HEAD):
                print(line, flush=True)
            if pin:
                stack.enter_context(timing.pinned(options.threads))
            for item in measure(device, folder):
                record.add(item)
                print(results.item_line(item), flush=True)
    except ValueError as error:
        raise cli.UsageError(str(error)) from error
    if options.json is not None:
        record.write(options.json)
        print(f"figures written to {options.json}")
    if options.plot is not None:
        plot.draw(record, options.plot)
        print(f"picture written to {options.plot}")
    for figure in record.missed():
        print(f"MISSED: {figure.group} {figure.name.strip()}: {figure.value:.2f} {figure.unit}, {figure.bound}")
    return cli.EXIT_OK if options.quick or not record.missed() else cli.EXIT_PROBLEM


COMMANDS: dict[str, Any] = {
    "stages": Stages(),
    "peers": Peers(),
    "e2e": EndToEnd(),
    "scale": Scale(),
    "roofline": Roofline(),
    "gpu": Gpu(tyro.MISSING),
    "stream": Stream(),
    "train": Train(),
    "scan": Scan(),
    "fit": Fit(),
    "coefficients": Coefficients(Path()),
    "landmarks": Landmarks(Path()),
    "speaking": Speaking(Path()),
    "figures": Figures(Path()),
    "cluster": Cluster(),
    "large": Large(),
    "faults": Faults(),
}

if TYPE_CHECKING:
    Command = (
        Stages
        | Peers
        | EndToEnd
        | Scale
        | Roofline
        | Stream
        | Train
        | Scan
        | Fit
        | Coefficients
        | Landmarks
        | Speaking
        | Figures
        | Cluster
        | Large
        | Faults
    )
else:
    Command = tyro.extras.subcommand_type_from_defaults(COMMANDS)


@dataclass(frozen=True)
class Args:
    command: tyro.conf.OmitSubcommandPrefixes[Command]


if __name__ == "__main__":
    cli.main(lambda: cli.parse(Args, __doc__ or "").command())
