"""Feeds damaged files to whatever reads files, many thousands of them, from a seed.

damage        changes bytes of a file
clips         small clips in every container and codec
media         decodes damaged clips and compares frames and audio with the truth
readers       every other reader of files from elsewhere
with_atheris  one of these readers, guided by coverage; needs the package atheris
supervise     runs cases in processes that may hang or die
"""
