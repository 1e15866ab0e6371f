"""Speech encoder checkpoints: find them on disk or on the Hugging Face hub, load them, and identify them by hash.

A hub name is looked up in the local cache first and on the network only when something is missing there, so that a run
resumed later, or on a machine without network, uses the weights it began with. Whatever the source, everything is then
loaded from one folder, and the folder's own files are hashed.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, HubertConfig, HubertModel, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lrs3_loader.audio.model_folder import (
    PREPROCESSOR_FILES,
    WEIGHT_FILES,
    find_weights,
    parts_of_index,
    read_settings,
)
from lrs3_loader.errors import RunError
from lrs3_loader.io.files import file_sha256
from lrs3_loader.types import HOP_LENGTH, SAMPLE_RATE

logger = logging.getLogger(__name__)

DEMO_MODEL = "demo"
DEMO_SEED = 1013
RECEPTIVE_FIELD = 400  # samples that one row depends on

MODEL_TYPES = ("hubert", "wavlm", "wav2vec2")
#: What transformers raises for a truncated or foreign file (a ``RuntimeError`` for tensors of another shape, a
#: ``RecursionError``, which is one, for deeply nested JSON).
DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)
#: The vector that replaces masked inputs during training. It is not used here, and some checkpoints lack it.
UNUSED_WEIGHTS = frozenset({"masked_spec_embed"})


@dataclass(frozen=True)
class SpeechCheckpoint:
    """A loaded speech encoder and its origin."""

    model: PreTrainedModel  # float32, on the CPU, in eval mode
    name: str  # as given by the user
    sha256: str  # of the weight file; see ``_sha256_of_files``
    normalize: bool  # trained on audio normalised to zero mean and unit variance
    untrained: bool = False


def load_checkpoint(name: str) -> SpeechCheckpoint:
    """Load a speech encoder.

    Args:
        name: a name on the Hugging Face hub, a folder, or ``demo``.

    Raises:
        RunError: the encoder cannot be found or downloaded, is damaged or incomplete, or does not belong to the
            wav2vec 2.0 family with one row for every 320 samples at 16 kHz.
    """
    if name == DEMO_MODEL:
        return demo_checkpoint()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetch(name)
    try:
        files = find_weights(folder)
        model = _load_model(name, folder)
        return SpeechCheckpoint(model, name, _sha256_of_files(files), _expects_normalized_audio(folder))
    except DAMAGE as error:
        raise RunError(
            f"the speech encoder in {folder} is damaged or incomplete: {_first_line(error)}. Fetch it again with "
            f"`hf download`, or pass another `--hubert NAME_OR_FOLDER`."
        ) from error


def demo_checkpoint() -> SpeechCheckpoint:
    """Build a small HuBERT with fixed random weights: its outputs have the right shapes but carry no information."""
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
    """Return the cached folder of a checkpoint on the hub, downloading the files that are missing from the cache."""
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
        for part in parts_of_index(first):
            hf_hub_download(name, part, local_files_only=cached_only)
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


def _load_model(name: str, folder: Path) -> PreTrainedModel:
    """Load the encoder in a folder, without its training heads, in float32 on the CPU."""
    settings = read_settings(folder / "config.json")
    if settings.get("model_type") not in MODEL_TYPES:
        raise RunError(
            f"{name} is of type {settings.get('model_type')!r}; supported speech encoders are {', '.join(MODEL_TYPES)}"
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    _check_geometry(name, config)
    with _quiet_transformers():
        model, report = AutoModel.from_pretrained(
            folder, config=config, trust_remote_code=False, output_loading_info=True
        )
    missing = sorted(set(report["missing_keys"]) - UNUSED_WEIGHTS)
    if missing:
        # transformers would use random numbers in their place
        raise RunError(f"the weights in {folder} lack {len(missing)} tensors of {name}, such as {missing[0]}")
    return model.float().eval()


def _check_geometry(name: str, config: PretrainedConfig) -> None:
    """Raise ``RunError`` unless the encoder gives a row every 320 samples, each from a window of 400."""
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
            settings = read_settings(path)
            settings = settings.get("feature_extractor", settings)
            rate = settings.get("sampling_rate", SAMPLE_RATE)
            if rate != SAMPLE_RATE:
                raise RunError(f"{path} asks for audio at {rate} Hz; encoders for {SAMPLE_RATE} Hz are supported")
            return bool(settings.get("do_normalize", True))
    logger.warning("%s has no preprocessor_config.json: its audio is assumed to be normalised", folder)
    return True


def _sha256_of_files(files: list[Path]) -> str:
    """Return the sha256 of a single weight file, or that of the lines ``<sha256>  <name>`` of several."""
    digests = [file_sha256(path) for path in files]
    if len(digests) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256_of_weights(model: PreTrainedModel) -> str:
    """Return the sha256 over the name, dtype, shape and bytes of all tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppress progress bars and reports of unused training heads while a model loads."""
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
