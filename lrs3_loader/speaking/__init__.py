"""Who is speaking: scores of every frame by LR-ASD (see ``speaking.network``)."""

from lrs3_loader.speaking.network import SpeakingNetwork

__all__ = ["SpeakingNetwork"]
