"""Triton's kernels of the operators of ``lrs3_loader.kernels``; imported only on a GPU: Triton is not everywhere."""
