"""Gives a process without a GPU a ``torch.cuda`` with one: the stand-in device."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from benchmarks.stand_in.backward import BackwardEngine
from benchmarks.stand_in.record import Record
from benchmarks.stand_in.streams import Event, Stream, Timeline
from benchmarks.stand_in.tensor import StandInDevice, StandInMode, as_pinned

NAME = "stand-in device"


def why_not() -> str | None:
    """Why there can be no stand-in device in this process; None if there can."""
    if torch.cuda.is_available():
        return "there is a GPU here already: hide it with CUDA_VISIBLE_DEVICES="
    if not hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        return f"the stand-in device needs a newer torch than {torch.__version__}"
    return None


@contextlib.contextmanager
def stand_in_device(free_gib: int = 139) -> Iterator[Record]:
    """Within the block, this process has one CUDA device: tensors on ``cuda:0`` are computed on the host.

    What CUDA refuses is refused: operations on tensors of both memories, ``numpy()`` of a device tensor, integer matrix
    products, reading on one stream what another still writes, reading a copy before it has arrived. Kernels, waits of
    the host and copies are counted.

    Not like a GPU: speed, the last bits of results, limits of memory, several devices, ``torch.compile``, CUDA graphs.

    Args:
        free_gib: free memory that the device reports, which sizes of batches depend on.

    Yields:
        the record, which fills while the block runs.

    Raises:
        RuntimeError: this process has a GPU, or its torch is too old (``why_not``).
    """
    if reason := why_not():
        raise RuntimeError(reason)
    torch._C._ensureCUDADeviceGuardSet()  # one that asks no driver
    record = Record()
    device = StandInDevice(record)
    # Parameters of modules that move there are replaced, since wrappers cannot take another's place.
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with contextlib.ExitStack() as stack:
            for patch in _patches(device, free_gib):
                stack.enter_context(patch)
            stack.enter_context(StandInMode(device))
            yield record
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


def _patches(device: StandInDevice, free_gib: int) -> list[Any]:
    timeline = device.timeline
    total = 139 << 30  # an H200's
    properties = SimpleNamespace(name=NAME, total_memory=total, major=9, minor=0, multi_processor_count=132)

    def synchronize(*_: Any) -> None:
        device.wait("synchronize")
        timeline.synchronize()

    answers = {
        "_lazy_init": None,
        "set_device": None,
        "empty_cache": None,
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "mem_get_info": (free_gib << 30, total),
        "get_device_name": NAME,
        "get_device_properties": properties,
        "get_device_capability": (9, 0),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "reset_peak_memory_stats": None,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "manual_seed": None,
        "manual_seed_all": None,
    }
    stand_ins: dict[str, Any] = {name: partial(_answer, value) for name, value in answers.items()}
    stand_ins |= {
        "synchronize": synchronize,
        "current_stream": lambda *_: timeline.current,
        "default_stream": lambda *_: timeline.default,
        "stream": timeline.use,
        "Stream": _stand_in_class(Stream, timeline),
        "Event": _stand_in_class(Event, timeline),
    }
    inference = torch.autograd.grad_mode.inference_mode
    return [
        mock.patch.multiple(torch.cuda, **stand_ins),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *_: as_pinned(tensor.clone())),
        mock.patch.object(torch.Tensor, "record_stream", partial(_answer, None)),
        mock.patch.object(torch, "tensor", _made_on_the_host(torch.tensor)),
        mock.patch.object(torch, "as_tensor", _made_on_the_host(torch.as_tensor)),
        mock.patch.object(
            torch.autograd.Variable, "_execution_engine", BackwardEngine(torch.autograd.Variable._execution_engine)
        ),
        # Wrappers cannot be inference tensors.
        mock.patch.object(inference, "__enter__", _enter_no_grad),
        mock.patch.object(inference, "__exit__", _exit_no_grad),
        mock.patch.object(threading.Thread, "run", _in_mode(threading.Thread.run, device)),
    ]


def _stand_in_class(of: type, timeline: Timeline) -> type:
    """A class, since annotations name it, whose objects belong to the timeline whatever they are made with."""

    def init(own: Any, *_: Any, **__: Any) -> None:
        of.__init__(own, timeline)  # type: ignore[misc]

    return type(of.__name__, (of,), {"__init__": init})


def _answer(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _made_on_the_host(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """PyTorch would make the tensor behind the back of the mode and copy it itself."""

    def made(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != "cuda":
            return make(data, device=device, **options)
        return make(data, **options).to(device)

    return made


def _enter_no_grad(context: Any) -> None:
    context._no_grad = torch.set_grad_enabled(False if context.mode else torch.is_grad_enabled())
    context._no_grad.__enter__()


def _exit_no_grad(context: Any, *error: Any) -> None:
    context._no_grad.__exit__(*error)


def _in_mode(run: Callable[[threading.Thread], None], device: StandInDevice) -> Callable[[threading.Thread], None]:
    """Modes belong to a thread: each that starts meanwhile gets its own."""

    def run_in_mode(thread: threading.Thread) -> None:
        with StandInMode(device):
            run(thread)

    return run_in_mode
