"""Speech encoder checkpoints: finding them on disk or on the Hugging Face hub, loading them, naming them exactly.

A hub name is looked up in the local cache first and on the network only when something is missing there, so that a run
resumed later, or on a machine without network, uses the weights it began with. Whatever the source, everything is then
loaded from one folder, and the folder's own files are hashed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import HubertConfig, HubertModel, PretrainedConfig, PreTrainedModel, Wav2Vec2Model, WavLMModel
from transformers.utils import logging as transformers_logging

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import file_sha256
from lrs3_loader.types import HOP_LENGTH, SAMPLE_RATE

logger = logging.getLogger(__name__)

DEMO_MODEL = "demo"
DEMO_SEED = 1013
RECEPTIVE_FIELD = 400  # samples one row looks at

MODEL_CLASSES: dict[str, Any] = {
    "hubert": HubertModel,
    "wavlm": WavLMModel,
    "wav2vec2": Wav2Vec2Model,
}
PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
#: In the order in which transformers prefers them; an index names the pieces of a checkpoint that was split.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: What reading a truncated, altered or foreign file raises: json, pickle, safetensors, and transformers on top of them.
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    RecursionError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)
#: The vector that replaces masked inputs in training: never used here, and left out of some checkpoints.
UNUSED_WEIGHTS = frozenset({"masked_spec_embed"})


@dataclass(frozen=True)
class SpeechCheckpoint:
    """A loaded encoder and where it came from."""

    model: PreTrainedModel  # float32, on the CPU, in eval mode
    name: str  # as given by the user
    sha256: str  # of the weight file; see ``_sha256_of_files``
    normalize: bool  # whether it was trained on sound of zero mean and unit variance
    untrained: bool = False


def load_checkpoint(name: str) -> SpeechCheckpoint:
    """A speech encoder by Hugging Face name, by folder, or ``demo``.

    Raises:
        RunError: it cannot be found or fetched, is damaged or incomplete, or is no encoder of the wav2vec 2.0 family
            with one row for every 320 samples at 16 kHz.
    """
    if name == DEMO_MODEL:
        return demo_checkpoint()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetch(name)
    if not (folder / "config.json").is_file():
        raise RunError(f"{folder} is no Hugging Face model folder: it has no config.json (pass `--hubert FOLDER`)")
    try:
        files = _weight_files(folder)
        model = _load_model(name, folder)
        return SpeechCheckpoint(model, name, _sha256_of_files(files), _expects_normalized_audio(folder))
    except DAMAGE as error:
        raise RunError(
            f"the speech encoder in {folder} is damaged or incomplete: {_first_line(error)}. Fetch it again with "
            f"`hf download`, or pass another `--hubert NAME_OR_FOLDER`."
        ) from error


def demo_checkpoint() -> SpeechCheckpoint:
    """A small HuBERT of fixed random weights: shapes and plumbing are right, what it says about speech is not."""
    config = HubertConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(32,) * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    with torch.random.fork_rng(devices=[]), _quiet_transformers():
        torch.manual_seed(DEMO_SEED)
        model = HubertModel(config).eval()
    return SpeechCheckpoint(model, DEMO_MODEL, _sha256_of_weights(model), normalize=True, untrained=True)


def _fetch(name: str) -> Path:
    """Folder of the hub's copy of a checkpoint: from the cache when whole there, else downloaded into it."""
    try:
        try:
            return _hub_folder(name, cached_only=True)
        except LocalEntryNotFoundError:
            return _hub_folder(name, cached_only=False)
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError) as error:
        where = name.rstrip("/").split("/")[-1] or "hubert"
        raise RunError(
            f"speech encoder {name!r} is no folder here, not in the Hugging Face cache, and could not be downloaded: "
            f"{_first_line(error)}. Where there is a network, run `hf download {name} --local-dir {where}`, bring the "
            f"folder here and pass `--hubert {where}`; `--hubert {DEMO_MODEL}` is a small untrained encoder."
        ) from error


def _hub_folder(name: str, *, cached_only: bool) -> Path:
    folder = Path(hf_hub_download(name, "config.json", local_files_only=cached_only)).parent
    _fetch_first_of(name, PREPROCESSOR_FILES, cached_only=cached_only, required=cached_only)
    first = _fetch_first_of(name, WEIGHT_FILES, cached_only=cached_only, required=True)
    if first is not None and first.suffix == ".json":
        for piece in _index_pieces(first):
            hf_hub_download(name, piece, local_files_only=cached_only)
    return folder


def _fetch_first_of(name: str, files: tuple[str, ...], *, cached_only: bool, required: bool) -> Path | None:
    for file in files:
        try:
            return Path(hf_hub_download(name, file, local_files_only=cached_only))
        except EntryNotFoundError as error:
            missing = error
    if required:
        raise missing
    return None


def _weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers will load from a folder."""
    for file in WEIGHT_FILES:
        path = folder / file
        if path.is_file():
            return [folder / piece for piece in _index_pieces(path)] if path.suffix == ".json" else [path]
    raise RunError(f"{folder} holds no weights of a speech encoder (looked for {', '.join(WEIGHT_FILES)})")


def _index_pieces(index: Path) -> list[str]:
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def _load_model(name: str, folder: Path) -> PreTrainedModel:
    """The encoder in a folder, without its training heads, in float32 on the CPU."""
    settings, _ = PretrainedConfig.get_config_dict(folder)
    model_class = MODEL_CLASSES.get(settings.get("model_type", ""))
    if model_class is None:
        raise RunError(
            f"{name} is of type {settings.get('model_type')!r}; "
            f"speech encoders known here are {', '.join(MODEL_CLASSES)}"
        )
    config = model_class.config_class.from_pretrained(folder)
    _check_geometry(name, config)
    with _quiet_transformers():
        model, report = model_class.from_pretrained(folder, config=config, output_loading_info=True)
    missing = sorted(set(report["missing_keys"]) - UNUSED_WEIGHTS)
    if missing:
        # transformers would go on with random numbers in their place
        raise RunError(f"the weights in {folder} lack {len(missing)} tensors of {name}, such as {missing[0]}")
    return model.float().eval()


def _check_geometry(name: str, config: PretrainedConfig) -> None:
    """Raise ``RunError`` unless rows come every 320 samples and look at 400."""
    hop, field = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    if (hop, field) != (HOP_LENGTH, RECEPTIVE_FIELD):
        raise RunError(
            f"{name} gives a row every {hop} samples, each from {field}; "
            f"every {HOP_LENGTH}, each from {RECEPTIVE_FIELD}, is needed"
        )
    if getattr(config, "add_adapter", False):
        raise RunError(f"{name} ends in an adapter that thins out its rows; an encoder without one is needed")


def _expects_normalized_audio(folder: Path) -> bool:
    for file in PREPROCESSOR_FILES:
        path = folder / file
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
            settings = settings.get("feature_extractor", settings)
            rate = settings.get("sampling_rate", SAMPLE_RATE)
            if rate != SAMPLE_RATE:
                raise RunError(f"{path} asks for sound at {rate} Hz; encoders for {SAMPLE_RATE} Hz are supported")
            return bool(settings.get("do_normalize", True))
    logger.warning("%s has no preprocessor_config.json: its sound is taken to be normalised", folder)
    return True


def _sha256_of_files(files: list[Path]) -> str:
    """sha256 of the one weight file; of the lines ``<sha256>  <name>`` where the weights come in several."""
    digests = [file_sha256(path) for path in files]
    if len(digests) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256_of_weights(model: PreTrainedModel) -> str:
    """sha256 over all tensors in order of their names: name, dtype, shape, bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No loading bars and no report on unused training heads; errors are raised all the same."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
