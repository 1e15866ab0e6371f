"""The files of a speech encoder in a Hugging Face model folder, none of which is trusted.

Imports no torch: ``assets check`` should be quick.
"""

from __future__ import annotations

import json
from pathlib import Path
from reprlib import repr as shown  # of bounded length, whatever the value
from typing import Any

from lrs3_loader.errors import RunError
from lrs3_loader.types import HOP_LENGTH, SAMPLE_RATE

MODEL_TYPES = ("hubert", "wavlm", "wav2vec2", "whisper")
RECEPTIVE_FIELD = 400  # samples that one row depends on
PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
#: In the order in which transformers prefers them. An index lists the files of a checkpoint that was split.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_MAX_JSON_BYTES = 4 << 20  # the index of the largest wav2vec 2.0 has 0.1 MB
_MAX_PARTS = 1000  # files of a checkpoint that was split

# What a configuration may set. Everything else (training, heads, attention kernels, code to fetch) is left out.
_SIZES = {
    "hidden_size": 1 << 16,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1 << 10,
    "intermediate_size": 1 << 18,
    "num_conv_pos_embeddings": 1 << 12,
    "num_conv_pos_embedding_groups": 1 << 12,
    "num_buckets": 1 << 16,
    "max_bucket_distance": 1 << 20,
    "adapter_attn_dim": 1 << 16,
}
_LISTS = {"conv_dim": 1 << 16, "conv_stride": 1 << 10, "conv_kernel": 1 << 10}
_FLAGS = ("conv_bias", "conv_pos_batch_norm", "do_stable_layer_norm", "feat_proj_layer_norm", "add_adapter")
_ACTIVATIONS = (
    "gelu",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "relu",
    "silu",
    "tanh",
)
_CHOICES = {
    "feat_extract_norm": ("group", "layer"),
    "feat_extract_activation": _ACTIVATIONS,
    "hidden_act": _ACTIVATIONS,
}
#: The same for Whisper: names of its encoder.
_WHISPER_SIZES = {
    "d_model": 1 << 16,
    "encoder_layers": 1000,
    "encoder_attention_heads": 1 << 10,
    "encoder_ffn_dim": 1 << 18,
    "num_mel_bins": 1 << 10,
    "max_source_positions": 1500,
}
_WHISPER_POSITIONS = 1500  # rows of the 30 s that it takes at a time
_DEFAULT_STRIDE, _DEFAULT_KERNEL = (5, 2, 2, 2, 2, 2, 2), (10, 3, 3, 3, 3, 2, 2)
_MAX_CONVOLUTIONS = 32
#: Settings by which transformers would fetch or run code, or that change what the weights mean.
_REFUSED = ("auto_map", "custom_pipelines", "quantization_config")


def find_weights(folder: Path) -> list[Path]:
    """Return the weight files that transformers would load from a model folder.

    Raises:
        RunError: the folder has no config.json or no weights.
        OSError, ValueError, RecursionError: the index of a split checkpoint is damaged, or lists a missing file.
    """
    if not (folder / "config.json").is_file():
        raise RunError(f"{folder} is no Hugging Face model folder: it has no config.json (pass `--hubert FOLDER`)")
    for file in WEIGHT_FILES:
        path = folder / file
        if path.is_file():
            parts = [folder / part for part in parts_of_index(path)] if path.suffix == ".json" else [path]
            if missing := [part.name for part in parts if not part.is_file()]:
                raise ValueError(f"{path.name} lists {missing[0]}, which is missing")
            return parts
    raise RunError(f"{folder} holds no weights of a speech encoder (looked for {', '.join(WEIGHT_FILES)})")


def identity_files(folder: Path) -> list[Path]:
    """Return all files of a model folder that shape the encoder's numbers; raises as ``find_weights`` does."""
    weights = find_weights(folder)
    settings = [folder / "config.json", *(folder / file for file in PREPROCESSOR_FILES)]
    return [*(path for path in settings if path.is_file()), *weights]


def parts_of_index(path: Path) -> list[str]:
    """Return the names of the weight files that an index lists, sorted."""
    weight_map = read_settings(path).get("weight_map")
    parts = sorted({str(part) for part in weight_map.values()}) if isinstance(weight_map, dict) else []
    suffix = ".safetensors" if "safetensors" in path.name else ".bin"
    if not 1 <= len(parts) <= _MAX_PARTS or any(Path(part).name != part or not part.endswith(suffix) for part in parts):
        raise ValueError(f"{path.name} does not list {suffix} files beside it")
    return parts


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read, or holds anything else.
    """
    with open(path, "rb") as file:
        data = file.read(_MAX_JSON_BYTES + 1)
    if len(data) > _MAX_JSON_BYTES:
        raise ValueError(f"{path.name} has over {_MAX_JSON_BYTES} bytes")
    settings = json.loads(data)
    if not isinstance(settings, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return settings


def read_architecture(folder: Path) -> dict[str, Any]:
    """Read the settings of an encoder's architecture, and its ``model_type``, from config.json.

    Raises:
        RunError: it is another kind of model, gives other rows, or asks for code to be fetched or run.
        OSError, ValueError, RecursionError: the file is damaged; the message names the setting.
    """
    path = folder / "config.json"
    settings = read_settings(path)
    kind = settings.get("model_type")
    if kind not in MODEL_TYPES:
        raise RunError(f"{path} is of type {shown(kind)}; supported speech encoders are {', '.join(MODEL_TYPES)}")
    for name in _REFUSED:
        if settings.get(name) is not None:
            raise RunError(f"{path} has {name}, which is not supported: no code of a checkpoint is run")
    if kind == "whisper":
        return {"model_type": kind, **_whisper_settings(folder, settings)}
    known = {name: _checked(name, value) for name, value in settings.items() if name in _KNOWN and value is not None}
    strides, kernels = known.get("conv_stride", _DEFAULT_STRIDE), known.get("conv_kernel", _DEFAULT_KERNEL)
    if not len(strides) == len(kernels) == len(known.get("conv_dim", _DEFAULT_KERNEL)):
        raise ValueError("conv_dim, conv_stride and conv_kernel differ in length")
    hop, field = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    if (hop, field) != (HOP_LENGTH, RECEPTIVE_FIELD):
        raise RunError(
            f"{folder} gives a row every {hop} samples, each from {field}; "
            f"every {HOP_LENGTH}, each from {RECEPTIVE_FIELD}, is needed"
        )
    buckets, distance = known.get("num_buckets", 320), known.get("max_bucket_distance", 800)
    if not 4 <= buckets < distance:
        raise ValueError(f"num_buckets must be at least 4 and below max_bucket_distance, got {buckets} and {distance}")
    if known.pop("add_adapter", False):
        raise RunError(f"{folder} ends in an adapter that thins out its rows; an encoder without one is needed")
    return {"model_type": kind, **known}


def _whisper_settings(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    known = {name: settings[name] for name in (*_WHISPER_SIZES, "activation_function") if name in settings}
    for name, value in known.items():
        if name == "activation_function":
            _checked("hidden_act", value)
        elif not _is_size(value, _WHISPER_SIZES[name]):
            raise ValueError(f"{name} in config.json must be a whole number from 1 to {_WHISPER_SIZES[name]}")
    if known.get("max_source_positions", _WHISPER_POSITIONS) != _WHISPER_POSITIONS:
        raise RunError(f"{folder} takes another length than 30 s at a time, which is not supported")
    return known


def expects_normalized_audio(folder: Path) -> bool | None:
    """Return whether an encoder was trained on audio normalised to zero mean and unit variance, None if unknown.

    Raises:
        RunError: it asks for another sample rate.
        OSError, ValueError, RecursionError: the file that says so is damaged.
    """
    for path in (folder / file for file in PREPROCESSOR_FILES):
        if path.is_file():
            settings = read_settings(path)
            settings = settings.get("feature_extractor", settings)
            if not isinstance(settings, dict):
                raise ValueError(f"feature_extractor in {path.name} is no JSON object")
            kind = settings.get("feature_extractor_type")
            usual = kind != "WhisperFeatureExtractor"  # which does not, unless it is told
            rate, normalize = settings.get("sampling_rate", SAMPLE_RATE), settings.get("do_normalize", usual)
            if rate != SAMPLE_RATE:
                raise RunError(
                    f"{path} asks for audio at {shown(rate)} Hz; encoders for {SAMPLE_RATE} Hz are supported"
                )
            if not isinstance(normalize, bool):
                raise ValueError(f"do_normalize in {path.name} must be true or false, got {shown(normalize)}")
            return normalize
    return None


def _checked(name: str, value: Any) -> Any:
    """Return a setting's value, or raise ``ValueError`` with the values allowed."""
    if name in _SIZES:
        wanted, good = f"a whole number from 1 to {_SIZES[name]}", _is_size(value, _SIZES[name])
    elif name in _LISTS:
        wanted = f"1 to {_MAX_CONVOLUTIONS} whole numbers from 1 to {_LISTS[name]}"
        good = isinstance(value, list) and 1 <= len(value) <= _MAX_CONVOLUTIONS
        good = good and all(_is_size(item, _LISTS[name]) for item in value)
    elif name in _FLAGS:
        wanted, good = "true or false", isinstance(value, bool)
    elif name in _CHOICES:
        wanted, good = f"one of {', '.join(_CHOICES[name])}", isinstance(value, str) and value in _CHOICES[name]
    else:
        wanted, good = "a number above 0 and below 1", type(value) in (int, float) and 0 < value < 1
    if not good:
        raise ValueError(f"{name} in config.json must be {wanted}, got {shown(value)}")
    return value


_KNOWN = {*_SIZES, *_LISTS, *_FLAGS, *_CHOICES, "layer_norm_eps"}


def _is_size(value: Any, largest: int) -> bool:
    return type(value) is int and 1 <= value <= largest
