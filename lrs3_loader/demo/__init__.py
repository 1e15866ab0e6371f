"""Synthetic talking heads with known truth: a procedural face model, and a small corpus of the shape of LRS3.

shape -> mesh -> head      the face model
paint, raster -> render    images of it
voice -> motion            speech, and the movement that goes with it
encode -> corpus           files
"""

from lrs3_loader.demo.corpus import DemoCorpus, MouthRecovery, make_demo_corpus, mouth_recovery
from lrs3_loader.demo.head import demo_head

__all__ = ["DemoCorpus", "MouthRecovery", "demo_head", "make_demo_corpus", "mouth_recovery"]
