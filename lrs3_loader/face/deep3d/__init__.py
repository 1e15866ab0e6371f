"""Coefficients of a face by a network: Deep3DFaceRecon."""
