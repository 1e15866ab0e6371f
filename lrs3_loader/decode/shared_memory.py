"""Memory that processes share, and messages that carry decoded frames in it, without a copy.

It comes from ``memfd_create``, not from files in ``/dev/shm``, whose size containers limit to 64 MB.
"""

from __future__ import annotations

import errno
import io
import math
import mmap
import os
import pickle
import socket
import struct
from typing import Any

import torch

from lrs3_loader.runtime.free_memory import available_bytes
from lrs3_loader.types import DecodedChunk

SMALL_BYTES = 1 << 20  # taken without a look at what is free
_HEADER = struct.Struct("=qqq")  # number of the message, bytes of its frames, bytes of all


def create_shared(num_bytes: int) -> int:
    """Reserve shared memory; returns its file descriptor.

    Raises:
        MemoryError: there is not so much.
    """
    # The kernel would hand out pages to the last one, and then kill a process.
    if num_bytes > SMALL_BYTES and num_bytes > (free := available_bytes()):
        raise MemoryError(f"{num_bytes / 2**20:.0f} MiB wanted, {free / 2**20:.0f} MiB free")
    descriptor = os.memfd_create("lrs3-loader")
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOSPC, errno.ENOMEM):
            raise MemoryError(f"{num_bytes / 2**20:.0f} MiB wanted: {error.strerror}") from error
        raise
    return descriptor


def map_shared(descriptor: int, num_bytes: int) -> torch.Tensor:
    """Map shared memory to a tensor, [num_bytes] u8, which may outlive the descriptor.

    Raises:
        MemoryError: the address space is exhausted.
    """
    try:
        return torch.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=torch.uint8)
    except OSError as error:
        raise MemoryError(f"{num_bytes / 2**20:.0f} MiB cannot be mapped: {error.strerror}") from error


class Channel:
    """One end of a connection between two processes: sends and receives numbered objects.

    A message is a descriptor of shared memory with the frames, if it is a chunk of a clip, and then the pickled object.
    The socket carries a few bytes for each, whole or not at all, so a sender neither waits for its receiver nor can
    leave half a message behind when it is killed.
    """

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self._descriptor: int | None = None
        self._frames: torch.Tensor | None = None

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(first), cls(second)

    def close(self) -> None:
        self.link.close()

    def allocate(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Make an uninitialized u8 tensor for the frames of the next message."""
        self._forget()
        num_bytes = math.prod(shape)
        self._descriptor = create_shared(num_bytes)
        self._frames = map_shared(self._descriptor, num_bytes).view(shape)
        return self._frames

    def send(self, number: int, item: Any) -> None:
        """Send an object; the frames of a chunk must come from ``allocate``, and are not copied.

        Raises:
            OSError: the other process has ended.
            MemoryError: there is no memory for the message.
        """
        frames = item.frames if isinstance(item, DecodedChunk) else None
        stream = io.BytesIO()
        _Pickler(stream, frames).dump(item)
        if frames is None:
            self._forget()
            self._descriptor = create_shared(stream.tell())
        assert frames is self._frames
        assert self._descriptor is not None
        start = 0 if frames is None else frames.numel()
        try:
            os.pwrite(self._descriptor, stream.getbuffer(), start)
            socket.send_fds(self.link, [_HEADER.pack(number, start, start + stream.tell())], [self._descriptor])
        finally:
            self._forget()

    def receive(self) -> tuple[int, Any]:
        """Receive an object and its number.

        Raises:
            EOFError: the other process has ended.
            MemoryError: the address space is exhausted; ``args[1]`` is the number.
        """
        header, descriptors, _, _ = socket.recv_fds(self.link, _HEADER.size, 1)
        if not header:
            raise EOFError
        number, start, stop = _HEADER.unpack(header)
        try:
            data = map_shared(descriptors[0], stop)
        except MemoryError as error:
            raise MemoryError(*error.args, number) from error
        finally:
            os.close(descriptors[0])
        return number, _Unpickler(io.BytesIO(data[start:].numpy().data), data[:start]).load()

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._frames = None


class _Pickler(pickle.Pickler):
    """Leaves out the frames, and stores other tensors as arrays, which is faster."""

    def __init__(self, stream: io.BytesIO, frames: torch.Tensor | None) -> None:
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self.frames = frames

    def persistent_id(self, item: Any) -> Any:
        return tuple(item.shape) if item is self.frames and item is not None else None

    def reducer_override(self, item: Any) -> Any:
        return (torch.from_numpy, (item.numpy(),)) if isinstance(item, torch.Tensor) else NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, frames: torch.Tensor) -> None:
        super().__init__(stream)
        self.frames = frames

    def persistent_load(self, shape: Any) -> torch.Tensor:
        return self.frames.view(shape)
