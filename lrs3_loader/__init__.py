"""lrs3_loader: talking-face clips in, training-ready WebDataset shards out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrs3_loader.run.folder import open_run
    from lrs3_loader.stream import ShardStream

__version__ = "0.2.0"
__all__ = ["ShardStream", "open_run"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, because they need torch, which takes seconds."""
    if name == "ShardStream":
        from lrs3_loader.stream import ShardStream

        return ShardStream
    if name == "open_run":
        from lrs3_loader.run.folder import open_run

        return open_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
