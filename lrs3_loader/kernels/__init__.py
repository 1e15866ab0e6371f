"""Operators that a GPU runs as one kernel each: plain PyTorch defines them, Triton computes them there."""
