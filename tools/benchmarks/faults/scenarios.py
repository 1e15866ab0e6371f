"""The commands that are disturbed, each on a tiny run whose extraction needs no models.

Everything but decoding and the models is the product's own: the command line, planning, leases, publishing, ledgers,
the manifest and the run lock. To disturb another command, add a line to ``SCENARIOS``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import lrs3_loader
from benchmarks.faults.calls import Killed
from lrs3_loader.__main__ import COMMANDS
from lrs3_loader.assets.locate import Assets
from lrs3_loader.doctor import checks
from lrs3_loader.interop.geneface import indexed, item
from lrs3_loader.launch import cli, identity, prepare, runner
from lrs3_loader.run import ledger_index, lock
from lrs3_loader.run.ledger import Ledger, tar_name
from lrs3_loader.run.shards import check_tar
from lrs3_loader.types import Clip, ClipFeatures, Reject, Shard

KEYS = tuple(f"pretrain/{speaker}/{number:05d}" for speaker in ("anna", "ben", "eve") for number in range(2))
NUM_FRAMES = 4
REJECTED = KEYS[1], KEYS[4]  # by an extraction that is not the second one
_EXTRACT = (
    "extract --corpus {corpus} --out {world}/run --shard-clips 2 --device cpu --workers 1 --face-model demo "
    "--hubert demo"
)
_CHOSEN = "--where (face_size_px>99)and(speaker!='eve')"


@dataclass(frozen=True)
class Scenario:
    """One command on one kind of folder.

    Attributes:
        name: for messages and ``--scenario``.
        command: words of the command; ``{world}`` stands for the folder or bucket that is disturbed, ``{local}`` for
            the folder of this machine (the same, but for runs on object storage), ``{corpus}`` for the corpus and
            ``{small}`` for half of it.
        after: names of the scenarios whose results it starts from.
        again: words that resume it after a fault (default: the same ones).
        is_second: the clips that an extraction rejects at first are accepted in this one.
        damage: done to the folder before the command.
        remedy: what its message tells the user to do before running it again.
        keeps_order: a ledger is never there before its tar.
        many_ledgers: even this small run has an index of its ledgers.
        repairs: shards are damaged at first; their ledgers go, and come back after their tars.
        exit_code: of the undisturbed command.
        says: what it prints at its end, where the exit code alone does not tell that it has worked.
    """

    name: str
    command: str
    after: tuple[str, ...] = ()
    again: str = ""
    is_second: bool = False
    keeps_order: bool = True
    many_ledgers: bool = False
    repairs: bool = False
    exit_code: int = 0
    damage: Callable[[Path], None] | None = None
    remedy: Callable[[Path], None] | None = None
    says: str = ""

    def has_worked(self, ending: Ending) -> bool:
        """Tell whether the command did all that it was asked for."""
        return ending.code == self.exit_code and not ending.crash and self.says in ending.output


def half_run(world: Path) -> None:
    """Take a finished run back to where it was when it was killed in its second shard."""
    run = world / "run"
    for path in sorted((run / "ledger").iterdir())[1:]:
        path.unlink()
    sorted((run / "shards").iterdir())[2].unlink()
    (run / "tmp" / ".pretrain-000002.tar.abcdefgh.tmp").write_bytes(b"half a tar")


def damage_shards(world: Path) -> None:
    """Flip a bit of a finished run's first tar, cut its second ledger, and remove its third tar."""
    run = world / "run"
    first, _, third = sorted((run / "shards").iterdir())
    flipped = bytearray(first.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    first.write_bytes(flipped)
    ledger = sorted((run / "ledger").iterdir())[1]
    ledger.write_bytes(ledger.read_bytes()[:100])
    third.unlink()


def remove_figures(world: Path) -> None:
    """Make the ledgers of a finished run those of an older version, which held no figures."""
    for path in (world / "run" / "ledger").iterdir():
        plain = json.loads(path.read_bytes())
        path.write_text(json.dumps({name: value for name, value in plain.items() if "figures" not in name}))


def remove_parts(world: Path) -> None:
    """Remove the parts of an archive that was not finished."""
    for path in (world / "parts").glob("run.tar*"):
        path.unlink()


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("fresh", _EXTRACT),
        Scenario("resumed", _EXTRACT, after=("fresh",), damage=half_run),
        Scenario("retry-rejects", f"{_EXTRACT} --retry-rejects", after=("fresh",), is_second=True),
        Scenario("indexed", _EXTRACT, many_ledgers=True),
        Scenario("small", _EXTRACT.replace("{corpus}", "{small}")),
        Scenario("extend", f"{_EXTRACT} --extend", after=("small",)),
        Scenario("repair", f"{_EXTRACT} --repair", after=("fresh",), damage=damage_shards, repairs=True),
        Scenario("verify", "verify {world}/run", after=("fresh",)),
        Scenario(
            "verify-repair",
            "verify {world}/run --repair",
            after=("fresh",),
            damage=damage_shards,
            repairs=True,
            exit_code=1,
            says="missing or damaged: 3 shards; run the extraction again to make them again",
        ),
        Scenario("add-figures", "verify {world}/run --add-figures", after=("fresh",), damage=remove_figures),
        Scenario("add", "extract --resume {world}/run --add lm478 --device cpu --workers 1", after=("fresh",)),
        Scenario("stats", "export stats {world}/run", after=("fresh",)),
        Scenario(
            "select",
            f"select {{world}}/run {_CHOSEN} --out {{local}}/keys.txt --csv {{local}}/figures.csv "
            "--parquet {local}/figures.parquet",
            after=("fresh",),
        ),
        Scenario("filter", f"filter {{world}}/run {_CHOSEN} --out {{local}}/chosen", after=("fresh",)),
        Scenario("files", "export files {world}/run {local}/plain", after=("fresh",)),
        Scenario(
            "export",
            "export geneface {world}/run {world}/set",
            after=("fresh",),
            again="export geneface {world}/run {world}/set --overwrite",
        ),
        Scenario("import", "export import-geneface {world}/set {world}/imported", after=("fresh", "export")),
        Scenario(
            "pack",
            "bundle pack {world}/run --to {world}/parts --part-size 8192",
            after=("fresh",),
            remedy=remove_parts,
        ),
        Scenario(
            "unpack",
            "bundle unpack {world}/parts/run.tar.manifest.json --out {world}/unpacked",
            after=("fresh", "pack"),
            keeps_order=False,  # files appear in the order of the archive
        ),
    )
}


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    code: int | None  # None: killed
    errors: str = ""  # what it wrote to stderr
    output: str = ""  # and to stdout
    crash: str = ""  # a traceback in short, if it ended with one

    @property
    def is_killed(self) -> bool:
        return self.code is None

    def complaint(self, world: str) -> str:
        """Return what is wrong with the way it failed: it must print one line, ``error: ...``, that names a file.

        Args:
            world: the folder or URL in which the file is.

        A command that looks for problems may name the file among those that it has found.
        """
        if self.crash:
            return f"traceback: {self.crash}"
        lines = [line for line in self.errors.splitlines() if line.startswith("error:")]
        told = lines[0] if lines else self.output
        if self.code == cli.EXIT_PROBLEM and len(lines) <= 1 and "Traceback" not in self.errors:
            return "" if world in told else f"no file is named: {told[-300:]!r}"
        return f"exit code {self.code} with {len(lines)} error lines: {self.errors.strip()[-300:]!r}"


Tree = dict[str, bytes]  # contents of files by path; folders end in a slash


class Laboratory:
    """A context manager that runs commands in a scratch folder, with a stand-in for decoding and the models.

    Attributes:
        world: the folder whose file calls are disturbed; every command works inside it.
    """

    def __init__(self, scratch: Path | None = None):
        memory = Path("/dev/shm")
        self._place = scratch or (memory if os.access(memory, os.W_OK) else None)
        self._stack = ExitStack()
        self._parsed: dict[tuple[str, ...], Any] = {}
        self._starts: dict[str, Tree] = {}
        self._tars: dict[str, str] = {}
        self._damage: dict[str, list[str]] = {}
        self.is_second = False

    def __enter__(self) -> Laboratory:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="lrs3-faults-", dir=self._place)))
        self.world, self.corpus, self.small = folder / "world", folder / "corpus", folder / "small"
        for path in (*(self.corpus / f"{key}.mp4" for key in KEYS), *(self.small / f"{key}.mp4" for key in KEYS[:3])):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no video: nothing is decoded here")
        self.world.mkdir()
        for patch in self._patches():
            self._stack.enter_context(patch)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _patches(self) -> Iterator[contextlib.AbstractContextManager[Any]]:
        software = {"lrs3_loader": lrs3_loader.__version__}
        parse = cli.parse

        def parse_once(kind: Any, description: str, command: str, argv: Sequence[str] | None = None, *rest: Any) -> Any:
            words = (str(kind), *(argv or ()))
            if words not in self._parsed:
                self._parsed[words] = parse(kind, description, command, argv, *rest)
            return self._parsed[words]

        def extractor(config: Any, models: Any, device: Any) -> _Extractor:
            return _Extractor(config, device, self.is_second)

        yield mock.patch.object(prepare, "Models", _Models)
        yield mock.patch.object(prepare, "ShardExtractor", extractor)
        yield mock.patch.object(prepare, "adopt_names")
        for module in (identity, prepare, runner):
            yield mock.patch.object(module, "software", return_value=software)
        yield mock.patch("lrs3_loader.corpus.plan.calibrate", return_value=100)
        yield mock.patch("lrs3_loader.doctor.disk_space.calibrate", return_value=100)
        yield mock.patch.object(runner, "ClipLoader", _Loader)
        yield mock.patch.object(runner, "import_ahead")
        yield mock.patch.object(runner, "configure_torch")
        yield mock.patch.object(Assets, "ensure")
        yield mock.patch.object(checks, "check_software", list)
        yield mock.patch.object(checks, "check_torch_loads", return_value=checks.CheckResult("torch", "ok", ""))
        yield mock.patch.object(cli, "parse", parse_once)
        yield mock.patch.object(lock, "SETTLE_SECONDS", 0.0)
        yield mock.patch.object(lock, "STALE_SECONDS", 0.2)
        yield mock.patch.object(indexed, "INDEX_BYTES", 4096)
        yield mock.patch.object(item, "MIN_MEL_ROWS", 1)
        yield mock.patch("lrs3_loader.interop.geneface.exporter.MIN_MEL_ROWS", 1)
        yield mock.patch.dict(os.environ, {"TORCHELASTIC_RUN_ID": "none"})
        yield mock.patch.object(cli, "_kill_on_parent_exit")

    def start(self, scenario: Scenario) -> Tree:
        """Return the folder in which a scenario begins."""
        if scenario.name not in self._starts:
            tree: Tree = {}
            for name in scenario.after:
                tree |= self.result(SCENARIOS[name])
            self.restore(tree)
            if scenario.damage is not None:
                scenario.damage(self.world)
            self._starts[scenario.name] = self.tree()
            self._damage[scenario.name] = half_published(self.world, self._starts[scenario.name])
        return self._starts[scenario.name]

    def half_published(self, scenario: Scenario, tree: Tree) -> list[str]:
        """Return the ledgers of the folder that do not describe their tars, but for those that were there at first."""
        self.start(scenario)
        if not scenario.keeps_order:
            return []
        return [problem for problem in half_published(self.world, tree) if problem not in self._damage[scenario.name]]

    def result(self, scenario: Scenario) -> Tree:
        """Return the folder that a scenario leaves when nothing disturbs it."""
        key = f"result of {scenario.name}"
        if key not in self._starts:
            self.restore(self.start(scenario))
            ending = self.run(scenario)
            if not scenario.has_worked(ending):
                raise AssertionError(f"undisturbed, {scenario.name} ends with {ending}")
            self._starts[key] = self.tree()
        return self._starts[key]

    def tars(self) -> dict[str, str]:
        """Return the SHA-256 of each tar of an undisturbed run with one clip a shard, by its shard."""
        if not self._tars:
            self.restore({})
            words = _EXTRACT.replace("--shard-clips 2", "--shard-clips 1")
            ending = run_command(words.format(world=self.world, corpus=self.corpus).split())
            assert ending.code == cli.EXIT_OK, ending
            for path in (self.world / "run" / "shards").iterdir():
                self._tars[path.stem] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._tars

    def run(self, scenario: Scenario, again: bool = False) -> Ending:
        """Run the command of a scenario in this process, or the one that resumes it."""
        self.is_second = scenario.is_second
        if again and scenario.remedy is not None:
            scenario.remedy(self.world)
        words = (scenario.again if again and scenario.again else scenario.command).split()
        words = [word.format(**self.places(str(self.world))) for word in words]
        least = 1 if scenario.many_ledgers else ledger_index.SAVE_FROM
        with mock.patch.object(ledger_index, "SAVE_FROM", least), mock.patch.object(runner, "INDEX_EVERY", least):
            return run_command(words)

    def places(self, world: str) -> dict[str, str]:
        """Return what stands for what in commands that work in ``world``, a folder or URL."""
        return {"world": world, "local": str(self.world), "corpus": str(self.corpus), "small": str(self.small)}

    def restore(self, tree: Tree) -> None:
        """Make the folder what it was when ``tree`` was taken."""
        shutil.rmtree(self.world)
        self.world.mkdir()
        write_tree(self.world, tree)

    def tree(self) -> Tree:
        return read_tree(self.world)


def run_command(words: Sequence[str]) -> Ending:
    """Run one of the package's commands in this process, as ``python -m lrs3_loader`` would."""
    assert words[0] in COMMANDS, words
    command = __import__(f"lrs3_loader.commands.{words[0].replace('-', '_')}", fromlist=["main"])
    package = logging.getLogger("lrs3_loader")
    handlers, level, propagate = list(package.handlers), package.level, package.propagate
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    errors, output = io.StringIO(), io.StringIO()
    package.handlers = []
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
            cli.main(lambda: command.main(list(words[1:])))
    except SystemExit as request:
        return Ending(int(request.code or 0), errors.getvalue(), output.getvalue())
    except Killed:
        return Ending(None, errors.getvalue())
    except BaseException as error:
        return Ending(1, errors.getvalue(), output.getvalue(), in_short(error))
    finally:
        package.handlers, package.level, package.propagate = handlers, level, propagate
        for number, handler in signals.items():
            signal.signal(number, handler)
    raise AssertionError("a command ends with SystemExit")


def in_short(error: BaseException) -> str:
    """Name an uncaught error and the last line of the package that it passed."""
    package = str(Path(lrs3_loader.__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(package)]
    where = f"{Path(frames[-1].filename).relative_to(Path(package).parent)}:{frames[-1].lineno}" if frames else "?"
    return f"{where}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def read_tree(folder: Path) -> Tree:
    """Read all files below a folder."""
    tree: Tree = {}
    for here, folders, files in os.walk(folder):
        prefix = "" if here == str(folder) else f"{os.path.relpath(here, folder)}/"
        for name in folders:
            tree[f"{prefix}{name}/"] = b""
        for name in files:
            with open(f"{here}/{name}", "rb") as file:
                tree[f"{prefix}{name}"] = file.read()
    return tree


def write_tree(folder: Path, tree: Tree) -> None:
    """Write all files of a tree into an empty folder."""
    for path in sorted(tree):
        place = f"{folder}/{path}"
        if path.endswith("/"):
            os.makedirs(place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "wb") as file:
                file.write(tree[path])


def digest(tree: Tree) -> dict[str, str]:
    """Return what has to be equal of each file: its hash, without the times that a ledger records."""
    return {path: "" if path.endswith("/") else _digest(path, data) for path, data in tree.items()}


def _digest(path: str, data: bytes) -> str:
    name = path.rpartition("/")[2]
    try:
        if "/ledger/" in f"/{path}" and name.endswith(".json"):
            plain = json.loads(data)
            kept = ("shard", "run", "sha256", "samples", "rejects", "checksums", "figures", "figures_version")
            data = json.dumps([plain.get(key) for key in kept]).encode()
        elif name == "index.jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            data = json.dumps([[line[0], line[3:]] for line in lines]).encode()
        elif name == "export.json":
            plain = json.loads(data)
            plain["options"].pop("overwrite")
            data = json.dumps(plain).encode()
    except (ValueError, KeyError, TypeError, IndexError):
        return f"damaged {hashlib.sha256(data).hexdigest()}"
    return hashlib.sha256(data).hexdigest()


def half_published(world: Path, tree: Tree) -> list[str]:
    """Return the ledgers of a folder that do not describe the tar that is there."""
    problems = []
    for path, data in tree.items():
        run, _, name = path.partition("/ledger/")
        if not name.endswith(".json"):
            continue
        try:
            ledger = Ledger.parse(data, path)
        except lrs3_loader.errors.RunError as error:
            problems.append(str(error))
            continue
        tar = world / run / tar_name(name.removesuffix(".json"), ledger.generation)
        if not tar.exists():
            problems.append(f"{path} is there without its tar")
        else:
            problems += check_tar(tar, ledger)
    return problems


# Stand-ins -------------------------------------------------------------------------------------------------------


def tiny_features(clip: Clip, only: Collection[str] | None = None, dense: bool = False) -> ClipFeatures:
    """Make small features that follow from a clip's key.

    Args:
        only: the fields that are wanted (default: all).
        dense: whether all landmarks of MediaPipe are among them.
    """
    random = np.random.default_rng([len(clip.key), *clip.key.encode()])

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    arrays = {
        "mel": normal(2 * NUM_FRAMES, 80),
        "f0": np.full(2 * NUM_FRAMES, 110, dtype=np.float32),
        "hubert": normal(2 * NUM_FRAMES, 4).astype(np.float16),
        "lm68": normal(NUM_FRAMES, 68, 2),
        "idexp_lm3d": normal(NUM_FRAMES, 68, 3),
    }
    if dense:
        arrays["lm478"] = normal(NUM_FRAMES, 478, 3)
    if only is not None:
        arrays = {name: array for name, array in arrays.items() if name in only}
    quality = {"face_size_px": float(100 + clip.key.encode()[-1] % 2)}
    meta = {"key": clip.key, "num_frames": NUM_FRAMES, "source": {"height": 224}, "quality": quality}
    return ClipFeatures(clip, NUM_FRAMES, arrays, meta)


class _Models:
    record: dict[str, Any] = {}  # noqa: RUF012  (read only)
    kernels = "plain"

    @classmethod
    def load(cls, *_: Any) -> type[_Models]:
        return cls


@dataclass
class _Extractor:
    config: Any
    device: Any
    is_second: bool
    models: Any = _Models
    device_name: str = "cpu"
    clip_stream: Callable[[], Any] = contextlib.nullcontext
    wanted: frozenset[str] | None = None  # fields; None: all

    def only(self, fields: Collection[str]) -> _Extractor:
        return replace(self, wanted=frozenset(fields))

    def addable_fields(self) -> frozenset[str]:
        return frozenset({"lm478"} if self.config.landmarks.store_lm478 else ())

    def process_frames(
        self, items: Iterable[Clip], timings: dict[str, float], count: Callable[..., None]
    ) -> list[Clip]:
        clips = list(items)
        count(clips=len(clips), frames=NUM_FRAMES * len(clips))
        return clips

    def process_clips(self, clips: list[Clip]) -> Iterator[ClipFeatures | Reject]:
        for clip in clips:
            if clip.key in REJECTED and not self.is_second:
                yield Reject(clip, "no_face", "no face in 4 of 4 frames")
            else:
                yield tiny_features(clip, self.wanted, self.config.landmarks.store_lm478)


class _Loader:
    def __init__(self, clips: Iterable[tuple[Shard, Clip]], *_: Any, **__: Any):
        self._clips = clips

    def __enter__(self) -> _Loader:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[tuple[Shard, Clip]]:
        return iter(self._clips)

    def stop(self) -> None:
        pass
