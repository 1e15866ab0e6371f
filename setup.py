from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"

setup(
    name="lrs3_loader",
    version="0.1.0",
    description="Batched, resumable extraction of talking-face corpora into WebDataset shards",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    packages=find_packages(include=["lrs3_loader", "lrs3_loader.*"]),
    python_requires=">=3.10",
    install_requires=[
        # The three are built for one another: 2.11 is the last release that all of them share. torchaudio 2.11.1 asks
        # for torch 2.11 and does not load beside it: it is built for a later one.
        "torch>=2.6,<2.12",
        "torchvision>=0.21,<0.27",
        "torchaudio>=2.6,<2.11.1",
        "transformers>=4.50",
        "huggingface_hub>=0.26",
        "safetensors>=0.4.3",
        "numpy>=1.26",
        "scipy>=1.11",
        "decord>=0.6.0",
        "av>=14",
        "praat-parselmouth>=0.4.5",
        "webdataset>=0.2.100",
        "braceexpand>=0.1.7",
        "fsspec>=2024.2",
        "tyro>=0.9",
        "tqdm>=4.66",
        "pillow>=10.1",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis>=6.100",
            "librosa>=0.10",
            "torchdata>=0.10",
            "tensorboard>=2.14",
            "matplotlib>=3.8",
            "imageio-ffmpeg>=0.5",  # a whole ffmpeg program: timelines and sound are compared with it
            "moto[server]>=5",
            "s3fs>=2024.2",
            "pyyaml",
            "ruff",
            "mypy",
        ],
        "viz": ["matplotlib>=3.8"],
        # What tools/bench.py peers is measured against; it says which of them it misses.
        "bench": ["librosa>=0.10", "mediapipe>=0.10.21"],
        "train": ["tensorboard>=2.14"],
        # pytorch3d has no wheel on the package index; see its own installation notes.
        "render": ["pytorch3d"],
        "s3": ["s3fs>=2024.2"],
    },
)
