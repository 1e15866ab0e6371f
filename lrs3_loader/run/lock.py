"""Admits one launch at a time to a run folder, by the file ``run.lock`` with a heartbeat.

Rank 0 takes the lock for all ranks of its launch. A live holder is told from a dead one by

1. a kernel lock (``flock``) on the file, which ends with its process. It suffices where two processes share a kernel,
   or a network file system that supports such locks;
2. where there are no such locks, but the same boot of the same machine: whether the process exists;
3. on another machine: the heartbeat. The holder increments a number in the file every few seconds, and whoever wants
   the folder watches that number for ``STALE_SECONDS`` of its own monotonic clock. Times of day are never compared, so
   clocks that jump or disagree do not matter.

A holder that was suspended or cut off from the disk, and taken for dead, learns it from the token in the file: all
ranks of its launch look at it before each change of the run (``check_holder``).
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import cannot_write, make_durable_folder, reading
from lrs3_loader.io.storage import LocalStore, Store

logger = logging.getLogger(__name__)

FILE_NAME = "run.lock"
HEARTBEAT_SECONDS = 5.0  # between two heartbeats of a holder
STALE_SECONDS = 60.0  # a holder on another machine without a heartbeat for this long is dead
SETTLE_SECONDS = 1.0  # where two take a lock at once and nothing else decides, the last to write has it
_RECORD_BYTES = 1024  # the file is overwritten in place
#: Attributes of ``Holder`` by the names that they have in the file: older versions write and read these.
_ATTRIBUTES = {"space": "pid_namespace", "born": "start_ticks"}
_FIELDS = {attribute: field for field, attribute in _ATTRIBUTES.items()}
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """The process that holds a run folder, as its lock file says."""

    token: str  # identifies this lock, not only its process
    host: str
    boot: str  # id of the boot of the machine: processes with the same one share a kernel
    pid_namespace: str  # pid namespace: processes with the same one see each other
    pid: int
    start_ticks: int  # start of the process in ticks after the boot, because process ids are reused
    launch: str  # torchrun's id of the launch, if any
    attempt: int  # number of its elastic restarts
    since: str  # time of day, for messages only
    count: int = 0  # of heartbeats

    @classmethod
    def me(cls) -> Holder:
        launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname()[:200],
            boot=_boot(),
            pid_namespace=_pid_namespace(),
            pid=os.getpid(),
            start_ticks=_start_ticks(os.getpid()) or 0,
            launch="" if launch == "none" else launch[:200],
            attempt=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """Parse the contents of a lock file; None if they are not a record."""
        try:
            plain = json.loads(data)
            holder = cls(**{_ATTRIBUTES.get(name, name): value for name, value in plain.items()})
            kinds_fit = all(type(getattr(holder, name)).__name__ == kind for name, kind in cls.__annotations__.items())
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None
        return holder if kinds_fit else None

    def encode(self) -> bytes:
        plain = {_FIELDS.get(name, name): value for name, value in asdict(self).items()}
        return json.dumps(plain).encode().ljust(_RECORD_BYTES - 1) + b"\n"

    @property
    def is_alive_here(self) -> bool:
        """True if the process exists; only valid on the same boot and in the same pid namespace."""
        return _start_ticks(self.pid) == self.start_ticks

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, begun {self.since}"


class TakenOverError(RunError):
    """Another launch holds the run folder, or has held it since."""


def check_holder(folder: Path, token: str) -> None:
    """Check that the launch whose lock has this token still holds a run folder.

    Raises:
        TakenOverError: another launch holds it, or has held and left it.
        RunError: the lock file cannot be read.
    """
    path = folder / FILE_NAME
    holder: Holder | None = None
    try:
        with reading(path):
            holder = Holder.parse(path.read_bytes())
    except FileNotFoundError:
        pass
    else:
        if holder is None or holder.token == token:  # None: the file is just being written
            return
    other = holder or "another launch, which has ended"
    raise TakenOverError(
        f"{folder} was taken over by {other}: this launch was suspended or cut off from the disk for over "
        f"{STALE_SECONDS:.0f} s; it changes nothing more, and what it published is kept"
    )


def guard_store(store: Store, token: str) -> None:
    """Have this process change a run only while the launch whose lock has this token holds its folder.

    Object storage has no locks, and is not guarded.
    """
    if isinstance(store, LocalStore):
        store.guard = partial(check_holder, store.root, token)


class RunLock:
    """A context manager that holds a run folder, and makes it if it does not exist.

    Args:
        on_lost: called in a thread if another launch has taken the folder, because this process was stopped or cut off
            from the disk for more than ``stale_seconds``. Default: interrupt the main thread by SIGTERM.

    Raises:
        RunError: on entering, if another launch holds the folder, or it cannot be written.
        TakenOverError: on leaving by a ``KeyboardInterrupt``, if another launch has taken the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self.path = folder / FILE_NAME
        self._heartbeat_seconds = heartbeat_seconds
        self._stale_seconds = stale_seconds
        self._on_lost = on_lost or _end_this_process
        self._holder = Holder.me()
        self.token = self._holder.token
        self.lost: TakenOverError | None = None
        self._handle = -1
        self._made_folder = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._heartbeat, name="run-lock", daemon=True)

    def __enter__(self) -> RunLock:
        try:
            self._made_folder = not self.path.parent.exists()
            make_durable_folder(self.path.parent)
            while not self._take():
                pass
        except OSError as error:
            self._close()
            raise RunError(f"{cannot_write(self.path, error)}, or choose another --out") from error
        except BaseException:
            self._close()
            raise
        self._thread.start()
        return self

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> None:
        self._stop.set()
        self._thread.join(timeout=2.0)
        with suppress(OSError):
            if self._is_ours(_read(self.path)):
                self.path.unlink()
        self._close()
        if self._made_folder:
            with suppress(OSError):  # something is in it
                self.path.parent.rmdir()
        if self.lost is not None and isinstance(value, KeyboardInterrupt):
            raise self.lost from value

    def _take(self) -> bool:
        """Try once to take the lock; return False if the file was removed or replaced meanwhile."""
        self._close()
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        has_locks = self._lock_file()
        with suppress(FileNotFoundError):
            if os.fstat(self._handle).st_ino == os.stat(self.path).st_ino:
                return self._succeed(Holder.parse(os.pread(self._handle, _RECORD_BYTES, 0)), has_locks)
        return False

    def _lock_file(self) -> bool:
        """Take the kernel lock; return False if this file system has none."""
        begun = time.monotonic()
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                holder = _read(self.path)
                patience = 0.0
                if holder is None:  # it is just beginning or ending
                    patience = SETTLE_SECONDS
                elif self._is_same_launch(holder):  # restarted by torchrun, still ending
                    patience = self._stale_seconds
                if time.monotonic() - begun >= patience:
                    raise self._refusal(holder) from None
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in _NO_LOCKS_HERE:
                    raise
                return False

    def _succeed(self, last: Holder | None, has_locks: bool) -> bool:
        """Take over from the last holder if it is dead; this process has the kernel lock, if there is one."""
        is_here = last is None or (
            last.boot == self._holder.boot and (has_locks or last.pid_namespace == self._holder.pid_namespace)
        )
        if last is not None:
            if is_here and not has_locks and last.is_alive_here:
                raise self._refusal(last)
            is_restarted = self._is_same_launch(last) and self._holder.attempt > last.attempt
            if not is_here and not is_restarted and not self._watch(last):
                return False
            logger.warning("%s: taken over from %s, which has ended", self.path, last)
        self._write()
        if not (is_here and has_locks):
            time.sleep(SETTLE_SECONDS)
        return self._is_ours(_read(self.path))

    def _watch(self, last: Holder) -> bool:
        """Wait until the last holder is known to be dead; return False if the file was removed meanwhile.

        Raises:
            RunError: there was a heartbeat.
        """
        logger.warning("%s: held by %s; waiting %.0f s for its heartbeat", self.path, last, self._stale_seconds)
        until = time.monotonic() + self._stale_seconds
        while time.monotonic() < until:
            time.sleep(min(1.0, self._heartbeat_seconds))
            now = _read(self.path)
            if now is None:
                return self.path.exists()
            if now != last:
                raise self._refusal(now)
        return True

    def _is_same_launch(self, other: Holder) -> bool:
        return bool(other.launch) and other.launch == self._holder.launch

    def _is_ours(self, other: Holder | None) -> bool:
        return other is not None and other.token == self._holder.token

    def _refusal(self, holder: Holder | None) -> RunError:
        return RunError(
            f"{self.path.parent} is being written by another launch ({holder or 'which has only just begun'}): "
            "wait for it or end it, or choose another --out"
        )

    def _write(self) -> None:
        os.pwrite(self._handle, self._holder.encode(), 0)
        os.ftruncate(self._handle, _RECORD_BYTES)  # the file may have held something longer
        os.fsync(self._handle)

    def _heartbeat(self) -> None:
        while not self._stop.wait(self._heartbeat_seconds):
            try:
                check_holder(self.path.parent, self.token)
                self._holder = replace(self._holder, count=self._holder.count + 1)
                self._write()
            except TakenOverError as error:
                self.lost = error
                self._on_lost()
                return
            except (OSError, RunError) as error:  # writing a shard fails as well and stops the run
                logger.debug("%s: %s", self.path, error)

    def _close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            with suppress(OSError):  # it ends the kernel lock all the same, and what was written is synced
                os.close(handle)


def _read(path: Path) -> Holder | None:
    """Read a lock file. It is opened each time, because network file systems look for changes only then."""
    try:
        return Holder.parse(path.read_bytes())
    except FileNotFoundError:
        return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    """Return the start of a process in ticks after the boot; None if it does not exist or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields[0] not in ("Z", "X") else None


def _end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
