"""Speech encoder checkpoints: find them on disk or on the Hugging Face hub, load them, and identify them by hash.

A hub name is looked up in the local cache first and on the network only when something is missing there, so that a run
resumed later, or on a machine without network, uses the weights it began with. Whatever the source, everything is then
loaded from one folder, and the folder's own files are hashed. Settings are read by ``model_folder`` and tensors here,
so that nothing in a folder makes transformers fetch or run anything.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file

from lrs3_loader.audio.model_folder import (
    PREPROCESSOR_FILES,
    WEIGHT_FILES,
    expects_normalized_audio,
    find_weights,
    identity_files,
    parts_of_index,
    read_architecture,
)
from lrs3_loader.errors import RunError
from lrs3_loader.io.files import file_sha256
from lrs3_loader.io.safe_load import load_plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

DEMO_MODEL = "demo"
DEMO_SEED = 1013

#: What a damaged folder may raise: ``RecursionError`` for deeply nested JSON.
DAMAGE = (OSError, ValueError, RecursionError, SafetensorError)
_CLASSES = {"hubert": "Hubert", "wavlm": "WavLM", "wav2vec2": "Wav2Vec2", "whisper": "Whisper"}
_MAX_HEADER_BYTES = 8 << 20  # of a safetensors file; that of the largest wav2vec 2.0 has 0.1 MB
_MAX_WEIGHT_BYTES = 64 << 30
#: Names of the weight norm's tensors in older checkpoints.
_OLD_NAMES = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


@dataclass(frozen=True)
class SpeechCheckpoint:
    """A loaded speech encoder and its origin."""

    model: PreTrainedModel  # float32, on the CPU, in eval mode
    name: str  # on the hub, or that of its folder
    sha256: str  # of the weight file; of several, over their hashes and names
    normalize: bool  # trained on audio normalised to zero mean and unit variance
    untrained: bool = False
    files: Mapping[str, str] = field(default_factory=dict)  # sha256 by name, of all files that shape the numbers


def load_checkpoint(name: str) -> SpeechCheckpoint:
    """Load a speech encoder.

    Args:
        name: a name on the Hugging Face hub, a folder, or ``demo``.

    Raises:
        RunError: the encoder cannot be found or downloaded, is damaged or incomplete, or is neither a Whisper nor of
            the wav2vec 2.0 family with one row for every 320 samples at 16 kHz.
    """
    if name == DEMO_MODEL:
        return demo_checkpoint()
    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            name = folder.resolve().name
        else:
            folder = _fetch(name)
        model = _load_model(folder)
        normalize = expects_normalized_audio(folder)
        if normalize is None and model.config.model_type == "whisper":
            normalize = False
        if normalize is None:
            logger.warning("%s has no preprocessor_config.json: its audio is assumed to be normalised", folder)
        files = {path.name: file_sha256(path) for path in identity_files(folder)}
        weights = {path.name: files[path.name] for path in find_weights(folder)}
    except DAMAGE as error:
        raise RunError(
            f"the speech encoder in {folder} is damaged or incomplete: {_first_line(error)}. Fetch it again with "
            f"`hf download`, or pass another `--hubert NAME_OR_FOLDER`."
        ) from error
    # Of a single file it is its hash, of several that of their lines.
    lines = "".join(f"{digest}  {file}\n" for file, digest in weights.items())
    digest = next(iter(weights.values())) if len(weights) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    return SpeechCheckpoint(model, name, digest, normalize is not False, files=files)


def demo_checkpoint() -> SpeechCheckpoint:
    """Build a small HuBERT with fixed random weights: its outputs have the right shapes but carry no information."""
    from transformers import HubertConfig, HubertModel  # takes longer than torch itself

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
    with torch.random.fork_rng(devices=[]):
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
        if Path(name).is_absolute() or name.startswith((".", "~")):
            raise RunError(f"there is no folder {name}: name another with --hubert") from error
        where = name.rstrip("/").split("/")[-1] or "hubert"
        raise RunError(
            f"speech encoder {name!r} is no folder here, not in the Hugging Face cache, and could not be downloaded: "
            f"{_first_line(error).rstrip('.')}. With a network, run `hf download {name} --local-dir {where}`, bring "
            f"the folder here and pass `--hubert {where}`; `--hubert {DEMO_MODEL}` is a small untrained encoder."
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


def _load_model(folder: Path) -> PreTrainedModel:
    """Load the encoder in a folder, without its training heads, in float32 on the CPU."""
    import transformers

    paths = find_weights(folder)
    settings = read_architecture(folder)
    family = _CLASSES[settings.pop("model_type")]
    tensors: dict[str, torch.Tensor] = {}
    num_bytes = 0
    for path in paths:
        num_bytes += path.stat().st_size
        if num_bytes > _MAX_WEIGHT_BYTES:
            raise ValueError(f"its weights have over {_MAX_WEIGHT_BYTES} bytes")
        tensors |= _read_tensors(path)
    if family == "Whisper":
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        tensors, kind, path_of_layers = _of_whisper_encoder(tensors), WhisperEncoder, r"layers\.(\d{1,6})\."
    else:
        tensors = {_current_name(name, family.lower()): tensor for name, tensor in tensors.items()}
        kind, path_of_layers = getattr(transformers, f"{family}Model"), r"encoder\.layers\.(\d{1,6})\."
    config = getattr(transformers, f"{family}Config")(**settings, mask_time_prob=0.0, mask_feature_prob=0.0)
    layers = {int(found[1]) for name in tensors if (found := re.match(path_of_layers, name))}
    if absent := set(range(config.num_hidden_layers)) - layers:
        raise RunError(f"the weights in {folder} lack all tensors of {len(absent)} layers, such as {min(absent)}")
    with torch.device("meta"):
        model = kind(config)
    wanted = model.state_dict()
    if missing := sorted(set(wanted) - set(tensors)):
        raise RunError(f"the weights in {folder} lack {len(missing)} tensors of {family}, such as {missing[0]}")
    if sum(tensor.numel() for tensor in wanted.values()) > num_bytes:
        raise ValueError("its weights hold fewer bytes than config.json asks for numbers")
    for name, want in wanted.items():
        got = tensors[name]
        sound = got.device.type == "cpu" and got.layout == torch.strided
        if not sound or got.shape != want.shape or got.is_floating_point() != want.is_floating_point():
            raise ValueError(f"{name} is {got.dtype} {list(got.shape)}, config.json asks for {list(want.shape)}")
        wanted[name] = got.to(want.dtype, copy=True)
    model.load_state_dict(wanted, assign=True)
    return model.eval()


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Map the tensors of a weight file into memory."""
    if path.suffix != ".safetensors":
        content = load_plain(path)
        if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
            raise ValueError(f"{path.name} does not hold a dictionary of tensors")
        return {str(name): tensor for name, tensor in content.items()}
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > _MAX_HEADER_BYTES:
        raise ValueError(f"{path.name} has a header of {header_bytes} bytes, over the limit of {_MAX_HEADER_BYTES}")
    return load_file(path)


def _current_name(name: str, prefix: str) -> str:
    """Return a tensor's name in an encoder by itself, as transformers has it now."""
    before, _, last = name.removeprefix(f"{prefix}.").rpartition(".")
    last = _OLD_NAMES.get(last, last)
    return f"{before}.{last}" if before else last


def _of_whisper_encoder(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of the encoder by their names in it; those of a checkpoint begin with ``model.encoder.``."""
    plain = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return {name.removeprefix("encoder."): tensor for name, tensor in plain.items() if name.startswith("encoder.")}


def _sha256_of_weights(model: PreTrainedModel) -> str:
    """Return the sha256 over the name, dtype, shape and bytes of all tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
