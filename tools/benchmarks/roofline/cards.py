"""What a card can do at most, after its data sheet, and how long it takes for a kernel."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

from benchmarks.stand_in import Kernel

TRANSFER_EFFICIENCY = 0.8  # of the data sheet's speed between host and device


@dataclass(frozen=True)
class Card:
    """Ceilings of one card. Products in bfloat16 and float16 are dense, with sums in float32."""

    name: str
    bytes_per_second: float  # of its memory
    half: float  # FLOP/s
    tf32: float
    float32: float
    float64: float
    transfer_bytes_per_second: float  # to and from the host
    memory_gib: int

    @classmethod
    def load(cls, path: Path) -> Card:
        """Read a card from a JSON file with these names.

        Raises:
            ValueError: the file cannot be read, or a name is missing or is not a positive number.
        """
        names = {each.name for each in fields(cls)}
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a card's JSON file: {error}") from error
        given = set(values) if isinstance(values, dict) else set()
        if given != names:
            raise ValueError(f"{path} must hold {', '.join(sorted(names))}; {', '.join(sorted(names ^ given))} differ")
        wrong = [name for name in names - {"name"} if type(values[name]) not in (int, float) or values[name] <= 0]
        if wrong:
            raise ValueError(f"{path}: {', '.join(sorted(wrong))} must be positive numbers")
        return cls(**values)


#: Data sheets of the SXM versions where there are several; a 4090's products in half precision sum in float32.
CARDS = {
    "h200": Card("H200", 4.8e12, 989e12, 494e12, 67e12, 34e12, 64e9, 141),
    "h100": Card("H100", 3.35e12, 989e12, 494e12, 67e12, 34e12, 64e9, 80),
    "a100": Card("A100", 2.04e12, 312e12, 156e12, 19.5e12, 9.7e12, 32e9, 80),
    "l40s": Card("L40S", 0.864e12, 362e12, 183e12, 91.6e12, 1.43e12, 32e9, 48),
    "4090": Card("RTX 4090", 1.008e12, 165e12, 82.6e12, 82.6e12, 1.29e12, 32e9, 24),
}


def find_card(name: str) -> Card:
    """A card by its name in ``CARDS``, or from a file.

    Raises:
        ValueError: there is no such card, or the file is no card's.
    """
    if name.lower() in CARDS:
        return CARDS[name.lower()]
    if not Path(name).exists():
        raise ValueError(f"no card {name}: give {', '.join(CARDS)} or a JSON file")
    return Card.load(Path(name))


@dataclass
class Price:
    """What kernels cost on a card, added up."""

    num_kernels: int = 0
    num_bytes: int = 0
    num_flops: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"memory": 0.0, "arithmetic": 0.0, "launches": 0.0})

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def bound_by(self) -> str:
        """What most of the time is spent on, with its share."""
        name, seconds = max(self.seconds.items(), key=lambda item: item[1])
        return f"{name} {100 * seconds / max(self.total_seconds, 1e-12):.0f} %"


@dataclass(frozen=True)
class Efficiency:
    """What good kernels reach of a card's ceilings, and how long one takes at least."""

    memory: float = 0.75
    arithmetic: float = 0.6
    launch_seconds: float = 2e-6


def price(kernels: Iterable[Kernel], card: Card, efficiency: Efficiency | None = None) -> Price:
    """Price kernels that run one after another: each takes what is longest of memory, arithmetic and its launch.

        seconds = max(bytes / (0.75 * bytes per second), FLOPs / (0.6 * FLOP/s), 2 microseconds)

    Williams et al., "Roofline: An Insightful Visual Performance Model for Multicore Architectures", 2009.
    """
    reached = efficiency or Efficiency()
    found = Price()
    for kernel in kernels:
        peak = card.float32 if kernel.arithmetic == "integer" else getattr(card, kernel.arithmetic)
        ways = {
            "memory": kernel.num_bytes / (card.bytes_per_second * reached.memory),
            "arithmetic": kernel.num_flops / (peak * reached.arithmetic),
            "launches": reached.launch_seconds,
        }
        longest = max(ways, key=ways.__getitem__)
        found.seconds[longest] += ways[longest]
        found.num_kernels += 1
        found.num_bytes += kernel.num_bytes
        found.num_flops += kernel.num_flops
    return found
