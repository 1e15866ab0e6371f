"""Shards -> training batches; README.md in this folder lists the modules, what goes in and what comes out."""

from lrs3_loader.stream.dataset import CURSOR, ShardStream
from lrs3_loader.stream.pixel_tasks import Avsr, Wav2Lip
from lrs3_loader.stream.tasks import Audio2Motion, PostNet, Raw, SyncNet, Task

__all__ = ["CURSOR", "Audio2Motion", "Avsr", "PostNet", "Raw", "ShardStream", "SyncNet", "Task", "Wav2Lip"]
