"""The tasks that have a name, and their description in the help of ``ShardStream``."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from lrs3_loader.stream.pixel_tasks import Avsr, Wav2Lip
from lrs3_loader.stream.tasks import Audio2Motion, PostNet, Raw, SyncNet, Task
from lrs3_loader.types import FIELDS

TASKS: dict[str, Callable[[], Task]] = {
    "raw": Raw,
    "audio2motion": Audio2Motion,
    "syncnet": SyncNet,
    "postnet": PostNet,
    "wav2lip": Wav2Lip,
    "avsr": Avsr,
}


def make_task(task: str | Task) -> Task:
    """Return a task by its name; a task object is returned as it is."""
    if not isinstance(task, str):
        return task
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known are {', '.join(TASKS)}, or pass a task object")
    return TASKS[task]()


def describe_tasks() -> str:
    """Describe what a batch of each named task holds, from the documentation of its class."""
    letters = "B clips, T frames at 25 fps of the longest, 2T rows at 50 Hz; D, I and E are in run.json"
    parts = ["", f"Batches, by task ({letters}):"]
    for name, kind in TASKS.items():
        parts += ["", f'"{name}":', *inspect.cleandoc(kind.__doc__ or "").splitlines()]
    parts += ["", "Arrays of a sample:"]
    for field, spec in FIELDS.items():
        shape = f"[{', '.join(map(str, spec.shape))}]"
        stored = f" (stored by {spec.flag})" if spec.flag else ""
        parts.append(f"    {field:<12} {shape:<12} {spec.dtype:<8} {spec.unit}: {spec.meaning}{stored}")
    return "\n".join(f"    {line}".rstrip() for line in parts) + "\n    "
