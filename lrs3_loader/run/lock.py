"""One launch at a time in a run folder: the file ``run.lock``, which its holder keeps touching.

Only rank 0 takes it, for all ranks of its launch on however many machines. What tells a live holder from a dead one:

1. A kernel lock (``flock``) on the file, which goes with its process however that ends. Where two processes share a
   kernel, or a network file system that carries such locks, it decides alone.
2. Where there are no such locks: on the same boot of the same machine, whether the process is still there.
3. On another machine: whether the holder goes on counting. It adds one to a number in the file every few seconds, and
   whoever wants the folder watches that number for ``STALE_SECONDS`` of its own steady clock. No time of day is ever
   compared, so a clock that jumps, or two machines that disagree on the hour, change nothing.
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
from pathlib import Path
from types import TracebackType

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import cannot_write

logger = logging.getLogger(__name__)

FILE_NAME = "run.lock"
HEARTBEAT_SECONDS = 5.0  # between two counts of a holder
STALE_SECONDS = 60.0  # a holder elsewhere that has not counted for this long is dead
SETTLE_SECONDS = 1.0  # where nothing else decides between two that take a lock at once: the last to write has it
_RECORD_BYTES = 1024  # written in place, always whole
#: Attributes of ``Holder`` by the names that they have in the file: older versions write and read these.
_ATTRIBUTES = {"space": "pid_namespace", "born": "start_ticks"}
_FIELDS = {attribute: field for field, attribute in _ATTRIBUTES.items()}
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """Who has a run folder, as its lock file says."""

    token: str  # of this one holding
    host: str
    boot: str  # this boot of the machine: who shares it shares a kernel
    pid_namespace: str  # the process namespace there: who shares it, too, can look for the process
    pid: int
    start_ticks: int  # when the process began, in ticks after the boot: process ids come again
    launch: str  # torchrun's id of the launch where it has one, else nothing
    attempt: int  # its elastic restarts
    since: str  # for people to read
    count: int = 0

    @classmethod
    def me(cls) -> Holder:
        """This process."""
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
        """What a lock file says; None where it says nothing, or something else."""
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
        """Whether its process is there; only for a holder on the same boot."""
        return _start_ticks(self.pid) == self.start_ticks

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, begun {self.since}"


class RunLock:
    """Holds a run folder while its block runs; makes the folder where there is none yet.

    Args:
        folder: the run's.
        on_lost: called, in a thread, if another launch has taken the folder (this process had been stopped, or cut off
            from the disk, for over ``stale_seconds``). Ends this process by SIGTERM when not given.

    Raises (on entering):
        RunError: another launch has it, or the folder cannot be written.
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
        self._handle = -1
        self._made_folder = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._heartbeat, name="run-lock", daemon=True)

    def __enter__(self) -> RunLock:
        try:
            self._made_folder = not self.path.parent.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
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

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2.0)
        with suppress(OSError):
            if self._is_ours(_read(self.path)):
                self.path.unlink()
        self._close()
        if self._made_folder:
            with suppress(OSError):  # something is in it
                self.path.parent.rmdir()

    def _take(self) -> bool:
        """Try once. False: the file went away or changed hands meanwhile, so look again."""
        self._close()
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        has_locks = self._lock_file()
        with suppress(FileNotFoundError):
            if os.fstat(self._handle).st_ino == os.stat(self.path).st_ino:
                return self._succeed(Holder.parse(os.pread(self._handle, _RECORD_BYTES, 0)), has_locks)
        return False

    def _lock_file(self) -> bool:
        """Take the kernel's lock. False: this file system has none."""
        begun = time.monotonic()
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                holder = _read(self.path)
                patience = 0.0
                if holder is None:  # it has only just begun, or just ended
                    patience = SETTLE_SECONDS
                elif self._is_same_launch(holder):  # restarted by torchrun, and still ending
                    patience = self._stale_seconds
                if time.monotonic() - begun >= patience:
                    raise self._refusal(holder) from None
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in _NO_LOCKS_HERE:
                    raise
                return False

    def _succeed(self, last: Holder | None, has_locks: bool) -> bool:
        """Follow ``last`` as the holder, if it is dead; the kernel's lock, where there is one, is ours."""
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
        """Whether ``last`` stays silent for long enough. False: the file went away.

        Raises:
            RunError: it counts on.
        """
        logger.warning("%s: held by %s; waiting %.0f s for a sign of life", self.path, last, self._stale_seconds)
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
        os.ftruncate(self._handle, _RECORD_BYTES)  # of whatever else was there
        os.fsync(self._handle)

    def _heartbeat(self) -> None:
        while not self._stop.wait(self._heartbeat_seconds):
            try:
                found = _read(self.path)
                if found is not None and not self._is_ours(found):
                    logger.error("%s was taken over by %s: this launch ends", self.path, found)
                    self._on_lost()
                    return
                self._holder = replace(self._holder, count=self._holder.count + 1)
                self._write()
            except OSError as error:  # writing a shard meets the same and stops the run
                logger.debug("%s: %s", self.path, error)

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _read(path: Path) -> Holder | None:
    """What a lock file says now. Opened anew: a network file system looks for news only then."""
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
    """When a process began, in ticks after the boot; None where there is none, or it has ended already."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields[0] not in ("Z", "X") else None


def _end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
