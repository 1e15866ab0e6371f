"""Passes every file call below a folder to a hook, which may let it fail or end the process there.

Python's own calls are replaced for a while (``os.open``, ``os.replace``, ``open``, ``fcntl.flock``...), so that one
process can try thousands of faults. After a ``Killed`` no call below the folder has any effect: what a real process
would leave behind when killed is what this one leaves behind, whatever its ``finally`` blocks attempt.

Calls made by C libraries (memory maps) are not seen. Python 3.11 or later: earlier ones keep their own references.
"""

from __future__ import annotations

import builtins
import fcntl
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

_RANDOM_NAME = re.compile(r"(?<=\.)[a-z0-9_]{8}(?=\.tmp$)")


class Killed(BaseException):
    """Ends the simulated process; nothing in the product catches it."""


@dataclass(eq=False)
class Handle:
    """An open file or folder, by the path that it was opened with."""

    path: str
    is_written: bool = False


@dataclass(frozen=True)
class Call:
    """One file call. Paths are relative to the watched folder, which itself is ``.``.

    Kinds are open, create (an open that makes the file), read, write, truncate, fsync, close, rename, unlink, mkdir,
    rmdir, chmod, flock, list and stat.
    """

    kind: str
    path: str
    target: str = ""  # of a rename
    handle: Handle | None = None
    offset: int = 0  # of a write, or the new length
    data: bytes = b""
    truncates: bool = False  # an open that empties the file
    is_read_only: bool = False  # a close of a file that was not written

    @property
    def name(self) -> str:
        """The call without the random part of temporary names, such as ``rename tmp/.a.*.tmp -> shards/a``."""
        path = plain_name(self.path)
        return f"{self.kind} {path} -> {plain_name(self.target)}" if self.target else f"{self.kind} {path}"


def close_call(handle: Handle) -> Call:
    """Describe the closing of a file."""
    return Call("close", handle.path, handle=handle, is_read_only=not handle.is_written)


def plain_name(path: str) -> str:
    """Replace the random part of a temporary name by ``*``."""
    return _RANDOM_NAME.sub("*", path)


@dataclass
class FileCalls:
    """Hooks into all file calls below a folder.

    Args:
        root: the folder.
        before: called with each call before it happens, from the thread that makes it. It may raise an ``OSError``,
            which the call then raises (of a failing write, half of the data is written), or ``Killed``.
        after: called with each call that has happened.
        skips_sync: do not really flush to disk; for speed.
        lock: takes or ends the kernel lock of an open file; by default, the kernel does.
    """

    root: Path
    before: Callable[[Call], object] = lambda call: None
    after: Callable[[Call], object] = lambda call: None
    skips_sync: bool = True
    lock: Callable[[Handle, int, Callable[[], None]], None] = lambda handle, operation, real: real()
    _is_dead: bool = False  # the simulated process was killed
    _handles: dict[int, Handle] = field(default_factory=dict)
    _unowned: set[int] = field(default_factory=set)  # descriptors of os.open that no file object has
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # What the replaced functions use ----------------------------------------------------------------------------------

    def relative(self, path: Any) -> str | None:
        """Return the path of a watched file relative to the root, None for any other."""
        if isinstance(path, int) or path is None:
            return None
        text, root = os.fsdecode(path), str(self.root)
        if not text.startswith(root):
            return None
        if text == root:
            return "."
        return os.path.normpath(text[len(root) + 1 :]) if text[len(root)] == "/" else None

    def handle(self, descriptor: int) -> Handle | None:
        return self._handles.get(descriptor)

    def is_dead(self) -> bool:
        """Tell whether the process that makes a call was killed."""
        return self._is_dead

    def die(self) -> None:
        """The process that makes a call is killed."""
        self._is_dead = True

    def make(self, call: Call, real: Callable[[], Any], on_fault: Callable[[], object] | None = None) -> Any:
        """Make a call, unless the hook objects."""
        if self.is_dead():
            raise Killed
        try:
            self.before(call)
        except Killed:
            if on_fault is not None:
                on_fault()
            self.die()
            raise
        except OSError as error:
            if on_fault is not None:
                on_fault()
            if call.handle is None or call.kind in ("open", "create"):
                error.filename = str(self.root / call.path)
            raise
        with self._lock:
            result = real()
            if call.handle is not None and call.kind in ("create", "write", "truncate"):
                call.handle.is_written = True
            self.after(call)
        return result

    def opened(self, descriptor: int, handle: Handle, is_owned: bool) -> None:
        self._handles[descriptor] = handle
        if not is_owned:
            self._unowned.add(descriptor)

    def closed(self, descriptor: int) -> None:
        self._handles.pop(descriptor, None)
        self._unowned.discard(descriptor)

    def owned(self, descriptor: int) -> None:
        self._unowned.discard(descriptor)

    def close_left(self) -> None:
        """Close what a killed process had open, as its end does."""
        for descriptor in list(self._unowned):
            with suppress(OSError):
                _REAL["close"](descriptor)
        self._unowned.clear()
        self._handles.clear()


#: The functions of ``os`` before any is replaced.
_REAL: dict[str, Any] = {
    name: getattr(os, name)
    for name in (
        *("open", "close", "read", "write", "pread", "pwrite", "fsync", "fdatasync", "ftruncate", "rename", "replace"),
        *("unlink", "remove", "mkdir", "rmdir", "chmod", "scandir", "listdir", "stat", "lstat", "lseek"),
    )
}
_REAL_OPEN = io.open
_REAL_FLOCK = fcntl.flock


@contextmanager
def watched(calls: FileCalls) -> Iterator[FileCalls]:
    """Context in which all file calls of this process below ``calls.root`` pass through its hooks."""
    functions = _Functions(calls)
    with ExitStack() as stack:
        stack.callback(calls.close_left)
        stack.enter_context(mock.patch.multiple(os, **functions.of_os()))
        stack.enter_context(mock.patch.object(fcntl, "flock", functions.flock))
        for module in (io, builtins):
            stack.enter_context(mock.patch.object(module, "open", functions.open_file))
        stack.enter_context(_traced_classes(functions.traced))
        stack.enter_context(_quiet_kills())
        yield calls


@contextmanager
def _traced_classes(traced: type[io.FileIO]) -> Iterator[None]:
    """Let the package's own kinds of ``io.FileIO`` pass through the hooks as well."""
    with ExitStack() as patches:
        for name, module in list(sys.modules.items()):
            if not name.startswith("lrs3_loader."):
                continue
            for attribute, value in list(vars(module).items()):
                if isinstance(value, type) and issubclass(value, io.FileIO) and value is not io.FileIO:
                    mixed = type(value.__name__, (value, traced), {})
                    patches.enter_context(mock.patch.object(module, attribute, mixed))
        yield


@contextmanager
def _quiet_kills() -> Iterator[None]:
    """Buffered files that a killed process left are flushed in vain when they are collected: say nothing of it."""
    previous = sys.unraisablehook

    def hook(what: Any) -> None:
        if not isinstance(what.exc_value, (Killed, OSError, ValueError)):
            previous(what)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = previous


class _Functions:
    """Replacements of the functions of ``os`` and ``io``."""

    def __init__(self, calls: FileCalls):
        self.calls = calls
        self.traced = self._file_class()

    def of_os(self) -> dict[str, Any]:
        on_path = {"mkdir": "mkdir", "rmdir": "rmdir", "unlink": "unlink", "remove": "unlink", "chmod": "chmod"}
        on_path |= {"scandir": "list", "listdir": "list", "stat": "stat", "lstat": "stat"}
        replaced = {name: self._on_path(name, kind) for name, kind in on_path.items()}
        replaced |= {name: self._rename(name) for name in ("rename", "replace")}
        replaced |= {name: self._sync(name) for name in ("fsync", "fdatasync")}
        for name in ("open", "close", "read", "write", "pread", "pwrite", "ftruncate"):
            replaced[name] = getattr(self, f"os_{name}")
        return replaced

    def _on_path(self, name: str, kind: str) -> Callable[..., Any]:
        real, calls = _REAL[name], self.calls

        def function(path: Any = ".", *args: Any, **more: Any) -> Any:
            relative = calls.relative(path)
            if relative is None:
                return real(path, *args, **more)
            return calls.make(Call(kind, relative), lambda: real(path, *args, **more))

        return function

    def _rename(self, name: str) -> Callable[..., Any]:
        real, calls = _REAL[name], self.calls

        def function(source: Any, target: Any, **more: Any) -> Any:
            old, new = calls.relative(source), calls.relative(target)
            if old is None or new is None:
                return real(source, target, **more)
            return calls.make(Call("rename", old, new), lambda: real(source, target, **more))

        return function

    def _sync(self, name: str) -> Callable[..., Any]:
        real, calls = _REAL[name], self.calls

        def function(file: Any) -> Any:
            descriptor = file if isinstance(file, int) else file.fileno()
            handle = calls.handle(descriptor)
            if handle is None:
                return real(file)
            done = (lambda: None) if calls.skips_sync else (lambda: real(file))
            return calls.make(Call("fsync", handle.path, handle=handle), done)

        return function

    def open_call(self, relative: str, flags: int) -> Call:
        """Describe an ``open`` before it happens."""
        path = self.calls.root / relative
        exists = _exists(path)
        kind = "create" if flags & os.O_CREAT and not exists else "open"
        return Call(kind, relative, handle=Handle(relative), truncates=bool(exists and flags & os.O_TRUNC))

    def os_open(self, path: Any, flags: int, *args: Any, **more: Any) -> int:
        relative = None if more.get("dir_fd") is not None else self.calls.relative(path)
        if relative is None:
            return int(_REAL["open"](path, flags, *args, **more))
        call = self.open_call(relative, flags)
        descriptor = int(self.calls.make(call, lambda: _REAL["open"](path, flags, *args, **more)))
        assert call.handle is not None
        self.calls.opened(descriptor, call.handle, is_owned=False)
        return descriptor

    def os_close(self, descriptor: int) -> None:
        handle = self.calls.handle(descriptor)
        self.calls.closed(descriptor)
        try:
            if handle is not None and not self.calls.is_dead():
                self.calls.make(close_call(handle), lambda: None)
        finally:
            _REAL["close"](descriptor)

    def _transfer(self, name: str, kind: str, descriptor: int, *args: Any) -> Any:
        handle = self.calls.handle(descriptor)
        real = _REAL[name]
        if handle is None:
            return real(descriptor, *args)
        if kind == "read":
            return self.calls.make(Call("read", handle.path, handle=handle), lambda: real(descriptor, *args))
        if kind == "truncate":
            call = Call("truncate", handle.path, handle=handle, offset=args[0])
            return self.calls.make(call, lambda: real(descriptor, *args))
        data = bytes(args[0])
        offset = args[1] if name == "pwrite" else _REAL["lseek"](descriptor, 0, os.SEEK_CUR)
        call = Call("write", handle.path, handle=handle, offset=offset, data=data)
        half = data[: len(data) // 2]
        return self.calls.make(call, lambda: real(descriptor, *args), lambda: real(descriptor, half, *args[1:]))

    def os_read(self, descriptor: int, size: int) -> bytes:
        return bytes(self._transfer("read", "read", descriptor, size))

    def os_pread(self, descriptor: int, size: int, offset: int) -> bytes:
        return bytes(self._transfer("pread", "read", descriptor, size, offset))

    def os_write(self, descriptor: int, data: Any) -> int:
        return int(self._transfer("write", "write", descriptor, data))

    def os_pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        return int(self._transfer("pwrite", "write", descriptor, data, offset))

    def os_ftruncate(self, descriptor: int, length: int) -> None:
        self._transfer("ftruncate", "truncate", descriptor, length)

    def flock(self, file: Any, operation: int) -> None:
        handle = self.calls.handle(file if isinstance(file, int) else file.fileno())
        if handle is None:
            _REAL_FLOCK(file, operation)
            return
        call = Call("flock", handle.path, handle=handle)
        self.calls.make(call, lambda: self.calls.lock(handle, operation, lambda: _REAL_FLOCK(file, operation)))

    def open_file(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        """``open``, made of Python's own layers, the lowest of which passes through the hooks."""
        is_watched = self.calls.handle(file) is not None if isinstance(file, int) else self.calls.relative(file)
        if not is_watched or opener is not None:
            return _REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = self.traced(file, mode.replace("b", "").replace("t", ""), closefd)
        if buffering == 0:
            return raw
        buffer: Any
        if "+" in mode:
            buffer = io.BufferedRandom(raw)
        elif "r" in mode:
            buffer = io.BufferedReader(raw)
        else:
            buffer = io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        return io.TextIOWrapper(buffer, encoding, errors, newline)

    def _file_class(self) -> type[io.FileIO]:
        """Make the lowest layer of files whose calls pass through the hooks."""
        functions, calls = self, self.calls

        class TracedFile(io.FileIO):
            def __init__(self, file: Any, mode: str = "r", closefd: bool = True, opener: Any = None) -> None:
                self._traced: Handle | None = None
                if isinstance(file, int):
                    super().__init__(file, mode, closefd, opener)
                    self._traced = calls.handle(file)
                    if closefd:
                        calls.owned(file)
                    return
                relative = calls.relative(file)
                if relative is None:
                    super().__init__(file, mode, closefd, opener)
                    return
                call = functions.open_call(relative, _flags(mode))
                calls.make(call, lambda: io.FileIO.__init__(self, file, mode, closefd, opener))
                self._traced = call.handle
                assert call.handle is not None
                calls.opened(self.fileno(), call.handle, is_owned=True)

            def _make(self, kind: str, real: Callable[[], Any]) -> Any:
                if self._traced is None:
                    return real()
                return calls.make(Call(kind, self._traced.path, handle=self._traced), real)

            def read(self, size: int | None = -1, /) -> Any:
                return self._make("read", lambda: io.FileIO.read(self, -1 if size is None else size))

            def readall(self) -> Any:
                return self._make("read", lambda: io.FileIO.readall(self))

            def readinto(self, buffer: Any, /) -> Any:
                return self._make("read", lambda: io.FileIO.readinto(self, buffer))

            def write(self, data: Any, /) -> int:
                if self._traced is None:
                    return super().write(data)
                plain = bytes(data)
                call = Call("write", self._traced.path, handle=self._traced, offset=self.tell(), data=plain)
                half = plain[: len(plain) // 2]
                real = io.FileIO.write
                return int(calls.make(call, lambda: real(self, plain), lambda: real(self, half)))

            def truncate(self, size: int | None = None, /) -> int:
                length = self.tell() if size is None else size
                if self._traced is None:
                    return super().truncate(length)
                call = Call("truncate", self._traced.path, handle=self._traced, offset=length)
                return int(calls.make(call, lambda: io.FileIO.truncate(self, length)))

            def close(self) -> None:
                if self.closed:
                    return
                traced, self._traced = getattr(self, "_traced", None), None
                try:
                    if traced is not None:
                        calls.closed(self.fileno())
                        if not calls.is_dead():
                            calls.make(close_call(traced), lambda: None)
                finally:
                    super().close()

        return TracedFile


def read_unwatched(path: Path) -> bytes:
    """Read a file without passing through any hook."""
    descriptor = _REAL["open"](path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: _REAL["read"](descriptor, 1 << 20), b""))
    finally:
        _REAL["close"](descriptor)


def _exists(path: Path) -> bool:
    try:
        _REAL["lstat"](path)
    except OSError:
        return False
    return True


def _flags(mode: str) -> int:
    """Return the flags of ``os.open`` that decide whether a mode makes or empties a file."""
    if "w" in mode:
        return os.O_CREAT | os.O_TRUNC
    if "a" in mode or "x" in mode:
        return os.O_CREAT
    return 0
