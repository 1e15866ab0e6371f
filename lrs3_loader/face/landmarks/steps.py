"""A network as a list of steps on numbered tensors, and which of them read and write each tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lrs3_loader.face.landmarks.tflite_ops import Layer

#: A layer, the tensors that it reads, and the one that it writes.
LayerStep = tuple[Layer, tuple[int, ...], int]


@dataclass(frozen=True)
class Step:
    """One or some layers as one function, which takes the tensors ``reads`` and returns the tensors ``writes``."""

    compute: Callable[..., Sequence[Tensor]]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    unused: tuple[int, ...] = ()  # tensors that are not needed after it


def single_step(step: LayerStep) -> Step:
    """Return the step that runs a layer by itself."""
    layer, reads, write = step
    return Step(lambda *tensors: [layer(*tensors)], reads, (write,))


def note_unused(steps: Sequence[Step], results: Sequence[int]) -> list[Step]:
    """Note after which step each tensor is not needed any more; ``results`` are needed at the end."""
    last_use = {tensor: number for number, step in enumerate(steps) for tensor in (*step.reads, *step.writes)}
    return [
        Step(
            step.compute,
            step.reads,
            step.writes,
            tuple(tensor for tensor, last in last_use.items() if last == number and tensor not in results),
        )
        for number, step in enumerate(steps)
    ]


def run_steps(steps: Sequence[Step], values: dict[int, Tensor]) -> dict[int, Tensor]:
    """Run steps on tensors by number; returns the old and new tensors that are still needed."""
    for step in steps:
        values.update(zip(step.writes, step.compute(*[values[i] for i in step.reads]), strict=True))
        for i in step.unused:
            del values[i]
    return values


class StepGraph:
    """The layers of a network by their positions, with the readers and the maker of each tensor."""

    def __init__(self, steps: Sequence[LayerStep], results: Sequence[int]) -> None:
        self.steps, self.results = steps, results
        self.maker = {write: position for position, (_, _, write) in enumerate(steps)}
        self.readers: dict[int, list[int]] = {}
        for position, (_, reads, _) in enumerate(steps):
            for tensor in dict.fromkeys(reads):
                self.readers.setdefault(tensor, []).append(position)

    def name(self, position: int) -> str:
        """Return the operator's name of the layer at a position."""
        return self.steps[position][0].name

    def sole_reader(self, tensor: int) -> int | None:
        """Return the position of the only layer that reads a tensor; None if more do, or if it is a result."""
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.results else None
