"""Shards -> training batches.

sources    runs and tars -> what samples there are          (remote: opening URLs; tarindex: looking into tars)
catalog    numbers them
schedule   seed, epoch, lengths -> batches of numbers       (pure; plans: for a finished run, and one followed)
position   which batches are left for a rank and a worker   (pure)
readers    numbers -> samples
listed     one rank's passes over all this                  (unlisted: over tars of which nothing is known)
tasks      samples -> tensors
dataset    ``ShardStream``
"""

from lrs3_loader.stream.dataset import CURSOR, ShardStream
from lrs3_loader.stream.tasks import Audio2Motion, PostNet, Raw, SyncNet, Task

__all__ = ["CURSOR", "Audio2Motion", "PostNet", "Raw", "ShardStream", "SyncNet", "Task"]
