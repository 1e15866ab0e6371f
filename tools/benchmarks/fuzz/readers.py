"""Feeds damaged files to every reader of files from elsewhere, one case after another from a seed.

Each has to end soon, in bounded memory, in a value or in its own kind of error, whose message is one line that names
the file. Commands have to end as users are promised: with one line, and no traceback.
"""

from __future__ import annotations

import io
import json
import logging
import os
import random
import shutil
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import torch

from benchmarks.faults.scenarios import SCENARIOS, Laboratory, Tree, run_command, write_tree
from benchmarks.fuzz.damage import damage
from benchmarks.fuzz.supervise import Lost, run_cases
from lrs3_loader import demo
from lrs3_loader.config import LaunchConfig, RunConfig, demo_defaults
from lrs3_loader.corpus.csv_table import read_clip_table
from lrs3_loader.corpus.transcript import read_transcript
from lrs3_loader.decode.mp4 import check_mp4
from lrs3_loader.errors import ClipError, RunError
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.flags import config_from_json
from lrs3_loader.interop.bundle.archive import list_members
from lrs3_loader.interop.bundle.parts import BundleManifest, PartsReader
from lrs3_loader.interop.geneface.importer import import_geneface
from lrs3_loader.interop.geneface.settings import ImportOptions
from lrs3_loader.io import unpickle
from lrs3_loader.io.mat_files import read_mat
from lrs3_loader.io.safe_load import decode_npy
from lrs3_loader.launch.settings import as_file, words_from_file
from lrs3_loader.run import ledger_index
from lrs3_loader.run.figure_table import TEXT_COLUMNS, FigureTable
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import Ledger
from lrs3_loader.run.lock import Holder
from lrs3_loader.run.shards import read_shard
from lrs3_loader.run.tar import DamagedError, TarIndex
from lrs3_loader.selection.expression import Expression, ExpressionError
from lrs3_loader.syncnet.checkpoint import SyncNetCheckpoint
from lrs3_loader.syncnet.model import SyncNetModel

MAX_SECONDS = 10.0
MAX_BYTES = 1 << 30
_MAX_LISTED = 20
#: Values that JSON may hold where another is expected.
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1 << 40, 1 << 70, 1.5, -0.0, 1e308, "", "x", "../..", "\ud800", "a/b/c", [], {}, [[]]),
    *({"": None}, ["x"] * 3, [0] * 1000, "x" * 5000),
)
_JSON_TOKENS = (b"NaN", b"1e999", b"Infinity", b"null", b"[" * 50, b"{}", b'""', b"\\ud800", b"\xff", b"-", b"9" * 400)


class Target(NamedTuple):
    """A reader, and what it reads when nothing is damaged."""

    files: tuple[bytes, ...]
    read: Callable[[Path, bytes], object]  # given a path at which the bytes lie, and the bytes
    errors: tuple[type[Exception], ...]  # in which it may end
    suffix: str = ""
    tokens: tuple[bytes, ...] = ()
    is_json: bool = False
    names_file: bool = True  # its errors name the file


@dataclass(frozen=True)
class Verdict:
    """What became of one case; no problem if it ended as it should."""

    is_read: bool
    problem: str = ""


class ReaderFuzz:
    """A context manager that damages files and has them read.

    Args:
        scratch: folder to work in.
        names: of the targets (default: all).
    """

    def __init__(self, scratch: Path | None, names: Sequence[str] = ()):
        self._stack = ExitStack()
        self._scratch = scratch
        self._names = names

    def __enter__(self) -> ReaderFuzz:
        torch.set_num_threads(1)
        laboratory = self._stack.enter_context(Laboratory(self._scratch))
        memory = Path("/dev/shm")
        place = self._scratch or (memory if memory.is_dir() else None)
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="lrs3-fuzz-", dir=place)))
        found = make_targets(laboratory, self.folder)
        self.targets = {name: found[name] for name in self._names or found}
        logging.disable(logging.CRITICAL)
        self._stack.callback(logging.disable, logging.NOTSET)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, count: int, seed: int, num_workers: int) -> Iterator[tuple[int, Verdict | Lost]]:
        """Yield (number, verdict) for ``count`` damaged files, from number ``seed`` on."""
        return run_cases(self.judge, range(seed, seed + count), num_workers, 6 * MAX_SECONDS, MAX_BYTES)

    def target_of(self, number: int) -> str:
        return list(self.targets)[number % len(self.targets)]

    def damaged(self, number: int) -> bytes:
        """Return the bytes of a damaged file."""
        target, draw = self.targets[self.target_of(number)], random.Random(number)
        data = draw.choice(target.files)
        if target.is_json and draw.random() < 0.5:
            return damage_json(data, draw)
        return damage(data, draw, target.tokens)[0]

    def judge(self, number: int) -> Verdict:
        """Have one damaged file read."""
        return self.read(self.target_of(number), self.damaged(number))

    def read(self, name: str, data: bytes) -> Verdict:
        """Have a file read by a target, in bounded time."""
        target = self.targets[name]
        path = self.folder / f"case{os.getpid()}{target.suffix}"
        path.write_bytes(data)
        signal.signal(signal.SIGALRM, _too_late)
        signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
        try:
            target.read(path, data)
        except target.errors as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return Verdict(False, _complaint(error, path if target.names_file else None))
        except Exception as error:  # the fuzzer is to find these
            return Verdict(False, f"{type(error).__name__}: {str(error)[:300]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return Verdict(True)


def _too_late(*_: object) -> None:
    raise TimeoutError(f"no end after {MAX_SECONDS:.0f} s")


def _complaint(error: Exception, path: Path | None) -> str:
    text = str(error)
    if len(text.splitlines()) > 1 or not text:
        return f"a message that is not one line: {text[:300]!r}"
    if path is not None and path.name not in text:
        return f"a message that does not name the file: {text[:300]!r}"
    return ""


def damage_json(data: bytes, draw: random.Random) -> bytes:
    """Put another value somewhere into JSON, or into one line of a file of JSON lines."""
    lines = data.splitlines() if b"\n{" in data or b"\n[" in data else [data]
    try:
        number = draw.randrange(len(lines))
        plain = json.loads(lines[number])
    except ValueError:
        lines, number = [data], 0
        plain = json.loads(data)
    place: Any = plain
    while True:
        if not isinstance(place, (dict, list)) or not place:
            break
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], (dict, list)) or not place[key] or draw.random() < 0.3:
            if draw.random() < 0.2:
                del place[key]
            else:
                place[key] = draw.choice(_VALUES)
            break
        place = place[key]
    lines[number] = json.dumps(plain).encode()
    return b"\n".join(lines) + b"\n"


def make_targets(laboratory: Laboratory, folder: Path) -> dict[str, Target]:
    """Make every target, with files to damage."""
    tree = laboratory.result(SCENARIOS["import"]) | laboratory.result(SCENARIOS["pack"])
    run = {path.removeprefix("run/"): data for path, data in tree.items() if path.startswith("run/") and path != "run/"}
    tars = tuple(data for path, data in run.items() if path.endswith(".tar"))
    ledgers = tuple(data for path, data in run.items() if path.startswith("ledger/") and path.endswith(".json"))
    index = laboratory.result(SCENARIOS["indexed"])["run/index.jsonl"]
    manifest = next(data for path, data in tree.items() if path.endswith(".manifest.json") and "parts/" in path)
    whole = b"".join(data for path, data in sorted(tree.items()) if ".part_" in path)
    arrays = tuple(_npy(array) for array in (np.zeros((3, 4), "f4"), np.arange(6, dtype="i8"), np.ones(2, "?")))
    typed = (RunError,)
    json_file: dict[str, Any] = {"suffix": ".json", "tokens": _JSON_TOKENS, "is_json": True}
    return {
        "tar": Target(tars, _read_tar, (RunError, DamagedError), ".tar", (b"ustar", b"\0" * 512, b"30 path=", b"x")),
        "npy": Target(arrays, lambda path, data: decode_npy(data), (ValueError,), names_file=False, tokens=_NPY_TOKENS),
        "ledger": Target(ledgers, _read_ledger, typed, **json_file),
        "expression": Target(_EXPRESSIONS, _choose, (ExpressionError,), names_file=False, tokens=_EXPRESSION_TOKENS),
        "run.json": Target((run["run.json"],), _Opened(folder, run, "run.json"), typed, names_file=False, **json_file),
        "manifest": Target(
            (run["manifest.jsonl"],), _Opened(folder, run, "manifest.jsonl"), typed, names_file=False, **json_file
        ),
        "index": Target((index,), _Opened(folder, run, "index.jsonl"), (), names_file=False, **json_file),
        "offsets": Target((_OFFSETS,), _Opened(folder, run, "sync.jsonl"), typed, names_file=False, **json_file),
        "YAML": Target((_yaml(),), lambda path, _: words_from_file(path, ()), typed, ".yaml", _YAML_TOKENS),
        "lock": Target((Holder.me().encode(),), lambda path, data: Holder.parse(data), (), **json_file),
        "transcript": Target((_TRANSCRIPT,), lambda path, _: read_transcript(path), (ClipError,), ".txt", _WORDS),
        "table": Target((_TABLE,), lambda path, _: read_clip_table(path), typed, ".csv", (b'"', b",", b"\r", b"\0")),
        "bundle manifest": Target((manifest,), lambda path, _: BundleManifest.read(path), typed, **json_file),
        "archive": Target((whole, _zip(run)), _list_archive, typed, ".part_0000", (b"PK\1\2", b"PK\3\4", b"ustar")),
        "mp4 header": Target((_clip(folder),), lambda path, _: check_mp4(path, path.name), (ClipError,), ".mp4"),
        "pickle": Target(_pickles(tree), lambda path, data: unpickle.loads(data), typed, names_file=False),
        "GeneFace set": Target(_sets(tree), _Import(folder, tree), typed, names_file=False),
        "checkpoint": Target((_checkpoint(folder),), lambda path, _: SyncNetCheckpoint.load(path), typed, ".pt"),
        "face model": Target(_models(folder), _load_model, typed, ".npz", tokens=_NPY_TOKENS),
        "mat": Target((_mat(),), lambda path, _: read_mat(path, ("a", "b")), (ValueError,), ".mat", names_file=False),
        "commands": Target(_entries(run), _Commands(folder, run), (), names_file=False),
    }


_NPY_TOKENS = (b"'|O'", b"'<f8'", b"'<U999'", b"True", b"(1099511627776,)", b"(-1,)", b"(", b"\x93NUMPY\x02\0")
_YAML_TOKENS = (
    b"&a [",
    b"*a",
    b"]\n",
    b": ",
    b"- ",
    b"!!python/object:os.system",
    b"? ",
    b"{",
    b"1e9",
    b"0x",
    b"\t",
    b"--- ",
)
_WORDS = (b"Text:", b"Conf:", b"FRAME X Y W H", b"WORD START END ASDSCORE", b"\n\n", b"nan", b"1e999", b"\xff", b"\0")
_OFFSETS = b'{"key": "pretrain/anna/00000", "in_training": true, "offset_frames": 1, "confidence": 3.5}\n'
_TRANSCRIPT = b"""Text:  THE QUICK BROWN FOX
Conf:  5
Ref:   MayAddr0001

FRAME \tX \tY \tW \tH
001000 \t0.312 \t0.105 \t0.251 \t0.446

WORD START END ASDSCORE
THE 0.00 0.68 4.2
QUICK 0.68 0.9 1.1
"""
_TABLE = b"path,split,speaker,start,end,text\n/etc/hostname,test,anna,0,1.5,hello\n/etc/hostname,test,anna,2,3,\n"


def _yaml() -> bytes:
    return as_file(demo_defaults(RunConfig()), LaunchConfig(out=Path("runs/a"))).encode()


_EXPRESSIONS = (
    b"face_size_px > 150 and abs(yaw_p95) < 40 or not split in ('test', 'val')",
    b"-30 < yaw_p50 + 2 * (roll_p50 - 1) / 3 <= 30.5 and known(speech_fraction)",
)
_EXPRESSION_TOKENS = (
    b"(",
    b"[",
    b"not ",
    b"**",
    b"9" * 400,
    b"'",
    b"lambda: ",
    b".x",
    b"f'{a}'",
    b" if ",
    b"1e999",
    b"\n",
)


def _choose(path: Path, data: bytes) -> None:
    expression = Expression(data.decode("utf-8", "replace"))
    texts, numbers = np.array(["a", "b", "test"], object), np.array([0.0, np.nan, 200.0])
    expression.chooses({name: texts if name in TEXT_COLUMNS else numbers for name in expression.names}, 3)


def _read_ledger(path: Path, data: bytes) -> None:
    FigureTable.of_ledgers([Ledger.parse(data, str(path))], str(path))


def _read_tar(path: Path, data: bytes) -> None:
    list(read_shard(path))
    with TarIndex(path) as index:
        for number in range(len(index.samples)):
            index.read(number, None)


@dataclass(frozen=True)
class _Opened:
    """Opens a run in which one file is damaged."""

    folder: Path
    run: Tree
    name: str

    def __call__(self, path: Path, data: bytes) -> None:
        place = self.folder / f"run-{path.stem}"
        if not place.exists():
            place.mkdir()
            write_tree(place, self.run)
        whole = self.run.get(self.name)
        (place / self.name).write_bytes(data)
        before, ledger_index.SAVE_FROM = ledger_index.SAVE_FROM, 1
        try:
            opened = RunFolder.open(place)
            opened.summaries()
            opened.figures()  # and the offsets
            with suppress(ValueError):
                config_from_json(opened.record["config"])
        except RunError as error:
            if str(place) not in str(error):
                raise AssertionError(f"the message does not name the file: {error}") from error
            raise
        finally:
            ledger_index.SAVE_FROM = before
            if whole is None:
                (place / self.name).unlink()
            else:
                (place / self.name).write_bytes(whole)


@dataclass(frozen=True)
class _Import:
    """Imports a set of GeneFace of which one file is damaged: its name stands before its bytes."""

    folder: Path
    tree: Tree

    def __call__(self, path: Path, data: bytes) -> None:
        place = self.folder / f"set-{path.stem}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        write_tree(place, {name: whole for name, whole in self.tree.items() if name.startswith("set/")})
        (place / "set" / "train.data").write_bytes(data)
        import_geneface(place / "set", place / "imported", ImportOptions())


@dataclass(frozen=True)
class _Commands:
    """Runs commands on a run of which one file is damaged: a number stands for its name before its bytes."""

    folder: Path
    run: Tree

    def __call__(self, path: Path, data: bytes) -> None:
        place = self.folder / f"commands-{path.stem}"
        shutil.rmtree(place, ignore_errors=True)
        (place / "run").mkdir(parents=True)
        files = sorted(name for name in self.run if not name.endswith("/"))
        name = files[(data[0] if data else 0) % len(files)]
        write_tree(place / "run", self.run | {name: data[1:]})
        draw = random.Random(len(data))
        words = draw.choice(
            (
                f"verify {place}/run",
                f"verify {place}/run --repair",
                f"export stats {place}/run",
                f"export geneface {place}/run {place}/set",
                f"bundle pack {place}/run --to {place}/parts --part-size 8192",
            )
        )
        ending = run_command(words.split())
        complaint = ending.complaint(str(place)) if ending.code else ""
        if complaint:
            raise AssertionError(f"{words.replace(str(place), '')} with {name} damaged: {complaint}")


def _list_archive(path: Path, data: bytes) -> None:
    with PartsReader([path]) as reader:
        list_members(reader, path.name)


def _load_model(path: Path, data: bytes) -> None:
    """Load a model in which one array is damaged, though not its checksum; a number stands for its name."""
    arrays = _demo_arrays()
    name = sorted(arrays)[(data[0] if data else 0) % len(arrays)]
    with zipfile.ZipFile(path, "w") as archive:
        for other, whole in arrays.items():
            archive.writestr(other, data[1:] if other == name else whole)
    FaceModel.load(path)


_ARRAYS: dict[str, bytes] = {}


def _demo_arrays() -> dict[str, bytes]:
    return _ARRAYS


def _models(folder: Path) -> tuple[bytes, ...]:
    demo.demo_head().save(folder / "face.npz")
    with zipfile.ZipFile(folder / "face.npz") as archive:
        _ARRAYS.update({name: archive.read(name) for name in archive.namelist()})
    return tuple(bytes([number]) + _ARRAYS[name] for number, name in enumerate(sorted(_ARRAYS)))


def _entries(run: Tree) -> tuple[bytes, ...]:
    files = sorted(name for name in run if not name.endswith("/"))
    return tuple(bytes([number]) + run[name] for number, name in enumerate(files))


def _sets(tree: Tree) -> tuple[bytes, ...]:
    return (tree["set/train.data"],)


def _pickles(tree: Tree) -> tuple[bytes, ...]:
    data = tree["set/train.data"]
    return data[32:4096].rstrip(b"\0"), data[4096:]


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _zip(run: Tree) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in run.items():
            archive.writestr(f"run/{name}", data)
    return buffer.getvalue()


def _mat() -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"a": np.eye(3), "b": np.arange(4, dtype="f4")}, do_compression=True)
    return buffer.getvalue()


def _checkpoint(folder: Path) -> bytes:
    path = folder / "whole.pt"
    model = SyncNetModel(4, 4)
    SyncNetCheckpoint(model.state_dict(), {}, {}, 0, -1, {"width": 4}, {}, ["anna"]).save(path)
    return path.read_bytes()


def _clip(folder: Path) -> bytes:
    path = folder / "whole.mp4"
    demo.encode.write_mp4(path, [np.zeros((16, 16, 3), np.uint8)] * 3, np.zeros(2000, np.float32))
    return path.read_bytes()


def run_benchmark(scratch: Path | None, count: int, seed: int, num_workers: int) -> Iterator[tuple[str, int]]:
    """Yield lines to print, each with the number of defects that it stands for."""
    begun, problems, num_read = perf_counter(), [], 0
    with ReaderFuzz(scratch) as fuzz:
        for number, found in fuzz.run(count, seed, num_workers):
            problem = found.why if isinstance(found, Lost) else found.problem
            num_read += isinstance(found, Verdict) and found.is_read
            if problem:
                problems.append(f"case {number} ({fuzz.target_of(number)}): {problem}")
        names = ", ".join(fuzz.targets)
    seconds = perf_counter() - begun
    yield f"damaged files: {count:,} ({names}); {num_read:,} could be read all the same", 0
    yield f"  {len(problems)} defects; {seconds:.0f} s ({60 * count / seconds:,.0f} a minute)", len(problems)
    yield from ((f"  {problem}", 0) for problem in problems[:_MAX_LISTED])
