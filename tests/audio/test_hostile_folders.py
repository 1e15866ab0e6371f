"""Model folders that are damaged, hostile or merely odd: one line that names the folder, in little time and memory."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from lrs3_loader.assets.check import check_assets
from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.checkpoint import load_checkpoint
from lrs3_loader.errors import RunError

pytestmark = pytest.mark.faults

MAX_SECONDS, MAX_GROWTH_BYTES = 5.0, 300 << 20
NESTED = "[" * 100_000
HUGE = 10**30
NUMBERS: list[Any] = [-1, 0, 10**7, HUGE, 1.5, "12", True, [], {}, [[1]], float("nan"), float("inf")]
SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_conv_pos_embeddings"),
    *("num_conv_pos_embedding_groups", "num_buckets", "max_bucket_distance", "adapter_attn_dim"),
)
LISTS = ("conv_dim", "conv_stride", "conv_kernel")
BAD_LISTS: list[Any] = [7, "7", {}, [], [1] * 6, [1] * 100, [10**9] * 7, [-1] * 7, [1.5] * 7, [[1]] * 7, [None] * 7]

Damage = Callable[[Path], object]


def settings(**changes: Any) -> Damage:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def contents(name: str, data: bytes | str) -> Damage:
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def replaced(name: str, make: Callable[[Path], object]) -> Damage:
    """Put something else in a file's place."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def header(text: str, claimed: int | None = None) -> Damage:
    """A safetensors file with this header."""
    size = len(text) if claimed is None else claimed
    return contents("model.safetensors", size.to_bytes(8, "little") + text.encode() + bytes(64))


def tensor(**changes: Any) -> str:
    return json.dumps({"encoder.layer_norm.bias": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32], **changes}})


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def rewrite(folder: Path) -> None:
        weights = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return rewrite


def pickled(make: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(make(weights), folder / "pytorch_model.bin")

    return rewrite


def indexed(index: Any, data: str | None = None) -> Damage:
    def rewrite(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "whole.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index) if data is None else data)

    return rewrite


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def a_thousand_layers(folder: Path) -> None:
    settings(num_hidden_layers=1000)(folder)
    tensors(lambda weights: weights.update({"encoder.layers.999.x": torch.zeros(1)}))(folder)


def one_number_for_all(folder: Path) -> None:
    """Tensors of half a gigabyte that are one stored number each."""
    settings(hidden_size=1 << 12, intermediate_size=1 << 14)(folder)
    with torch.device("meta"):
        shapes = HubertModel(HubertConfig.from_pretrained(folder)).state_dict()
    made = {name: torch.zeros(()).expand(value.shape) for name, value in shapes.items()}
    pickled(lambda weights: made)(folder)


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("archive/data.pkl", "archive/data/0", "archive/version"):
            archive.writestr(name, bytes(64 << 20))


def hostile() -> Iterator[tuple[str, Damage]]:
    for name in SIZES:
        for value in NUMBERS:
            yield f"{name}={value!r:.20}", settings(**{name: value})
    for name in LISTS:
        for number, value in enumerate(BAD_LISTS):
            yield f"{name}-{number}", settings(**{name: value})
    for name in ("conv_bias", "do_stable_layer_norm", "feat_proj_layer_norm", "conv_pos_batch_norm", "add_adapter"):
        for value in (1, "true", [], 0.5):
            yield f"{name}={value!r}", settings(**{name: value})
    for name in ("feat_extract_norm", "feat_extract_activation", "hidden_act"):
        for value in ("prelu", "x" * 10**6, 5, ["gelu"], {}, True):
            yield f"{name}={value!r:.20}", settings(**{name: value})
    for value in (-1, 0, 1, "1e-5", float("nan"), float("inf"), HUGE, True, []):
        yield f"layer_norm_eps={value!r}", settings(layer_norm_eps=value)
    for value in ("bert", None, 5, ["hubert"], {}, "hubert" * 10**5, "HUBERT"):
        yield f"model_type={value!r:.20}", settings(model_type=value)
    yield "model_type of another family", settings(model_type="wavlm")
    yield "heads that do not divide", settings(num_attention_heads=3)
    yield "groups that do not divide", settings(num_conv_pos_embedding_groups=3)
    yield "more layers than weights", settings(num_hidden_layers=2)
    yield "wider than weights", settings(hidden_size=16)
    yield "wider and deeper than memory", settings(hidden_size=1 << 16, intermediate_size=1 << 18)
    yield "more rows", settings(conv_stride=[5, 2, 2, 2, 2, 1, 1])
    yield "adapter", settings(add_adapter=True)
    yield "code of its own", settings(auto_map={"AutoModel": "modeling.Evil"})
    yield "code of another", settings(auto_map={"AutoModel": "some/repository--modeling.Evil"})
    yield "quantised", settings(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    for file in ("config.json", "preprocessor_config.json"):
        bad = ["", "{", "null", "[]", "5", '"text"', "{}x", NESTED, '{"a":' * 100_000, '{"a": 1e}', "{'a': 1}"]
        bad += ['{"hidden_size": ' + "9" * 10_000 + "}", " " * (5 << 20) + "{}", "<html>404</html>", "\0" * 1000]
        for number, text in enumerate(bad):
            yield f"{file}-{number}", contents(file, text)
        yield f"{file} in UTF-16 that ends early", contents(file, '{"a": "\u2603"}'.encode("utf-16")[:-3])
        yield f"{file} of random bytes", contents(file, bytes(range(128, 256)) * 10)
    for name, make in {
        "a folder": Path.mkdir,
        "gone": lambda path: None,
        "a broken link": lambda path: path.symlink_to("nowhere"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "endless": lambda path: path.symlink_to("/dev/zero"),
        "a pipe": os.mkfifo,
        "empty": Path.touch,
    }.items():
        for file in ("config.json", "model.safetensors"):
            yield f"{file} is {name}", replaced(file, make)
    for value in (8000, "16000", None, [], float("nan"), HUGE):
        yield f"sampling_rate={value!r}", contents("preprocessor_config.json", json.dumps({"sampling_rate": value}))
    for value in (1, "no", None, [], {}):
        yield f"do_normalize={value!r}", contents("preprocessor_config.json", json.dumps({"do_normalize": value}))
    yield "feature_extractor", contents("preprocessor_config.json", '{"feature_extractor": 5}')

    for name, text in {
        "no object": "[]",
        "no JSON": "{",
        "nested": NESTED,
        "of another type": tensor(dtype="Q7"),
        "without a type": json.dumps({"a": {}}),
        "of fewer bytes": tensor(data_offsets=[0, 16]),
        "backwards": tensor(data_offsets=[32, 0]),
        "beyond the file": tensor(data_offsets=[0, 1 << 40], shape=[1 << 38]),
        "of huge numbers": tensor(shape=[HUGE]),
        "that overflows": tensor(shape=[1 << 62, 4]),
        "of negative shape": tensor(shape=[-8]),
        "of no offsets": tensor(data_offsets=[]),
        "of text offsets": tensor(data_offsets="ab"),
        "overlapping": json.dumps({n: {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]} for n in "ab"}),
        "of many": json.dumps({str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(50_000)}),
    }.items():
        yield f"header {name}", header(text)
    for claimed in (0, 1, 1 << 20, 1 << 40, (1 << 63) + 1, (1 << 64) - 1):
        yield f"header of {claimed} bytes", header(tensor(), claimed)
    for length in (0, 1, 7, 8, 9, 100, 4000):
        yield f"cut at {length}", lambda folder, length=length: os.truncate(folder / "model.safetensors", length)
    yield "cut at the end", lambda folder: os.truncate(folder / "model.safetensors", 20_000)
    yield "no tensors", tensors(dict.clear)
    yield "one tensor less", tensors(lambda weights: weights.pop("encoder.layer_norm.bias"))
    yield "another shape", tensors(lambda weights: weights.update({"encoder.layer_norm.bias": torch.zeros(9)}))
    yield "a scalar", tensors(lambda weights: weights.update({"encoder.layer_norm.bias": torch.tensor(1.0)}))
    yield "whole numbers", tensors(lambda weights: weights.update({"encoder.layer_norm.bias": torch.zeros(8).int()}))
    yield "a layer of a high number", a_thousand_layers

    others = {"text": "text", "a list": [torch.zeros(3)], "None": None, "numbers": {"a": 5}, "empty": {}}
    for name, made in {**others, "nested": {"encoder": {"layer_norm": torch.zeros(3)}}}.items():
        yield f"bin of {name}", pickled(lambda weights, made=made: made)
    yield "bin that runs code", pickled(lambda weights: Bomb())
    yield "bin of meta tensors", pickled(lambda weights: {name: value.to("meta") for name, value in weights.items()})
    yield "bin of sparse tensors", pickled(lambda weights: {name: value.to_sparse() for name, value in weights.items()})
    yield "bin of one number", one_number_for_all
    yield "bin that is a pickle", replaced_weights(lambda path: path.write_bytes(pickle.dumps({"a": Bomb()})))
    yield "bin that is a bomb", replaced_weights(zip_bomb)
    for data in (b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x80\x02" + b"]" * 10**6, bytes(1000), b"<html>"):
        yield f"bin of {data[:8]!r}", replaced_weights(lambda path, data=data: path.write_bytes(data))

    many = {"weight_map": {str(number): f"{number}.safetensors" for number in range(50_000)}}
    for number, index in enumerate(
        ({}, [], None, {"weight_map": []}, {"weight_map": {}}, {"weight_map": 5}, {"weight_map": {"a": 5}}, many)
    ):
        yield f"index-{number}", indexed(index)
    for part in ("gone.safetensors", "../x.safetensors", "/etc/passwd", "", ".", "a/b.safetensors", "x.bin", ["a"], {}):
        yield f"index of {part!r}", indexed({"weight_map": {"encoder.layer_norm.bias": part}})
    yield "index of some", indexed({"weight_map": {"a": "whole.safetensors", "b": "gone.safetensors"}})
    yield "index nested", indexed(None, NESTED)
    yield "index of a pipe", a_pipe_of_weights


def a_pipe_of_weights(folder: Path) -> None:
    os.mkfifo(folder / "pipe.safetensors")
    indexed({"weight_map": {"a": "pipe.safetensors"}})(folder)


def replaced_weights(make: Callable[[Path], object]) -> Damage:
    def rewrite(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        make(folder / "pytorch_model.bin")

    return rewrite


HOSTILE = dict(hostile())


@pytest.fixture(scope="module")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "encoder"
    config = HubertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, conv_dim=(4,) * 7,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    load_checkpoint(str(folder))
    return folder


@pytest.fixture
def folder(sound_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(sound_folder, tmp_path / "encoder"))


@pytest.mark.parametrize("name", HOSTILE)
def test_every_hostile_folder_ends_in_one_line(folder: Path, name: str) -> None:
    HOSTILE[name](folder)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(RunError) as caught:
        load_checkpoint(str(folder))
    message = str(caught.value)
    assert str(folder) in message
    assert len(message.splitlines()) == 1
    assert len(message) < 1000
    assert time.process_time() - started < MAX_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_GROWTH_BYTES
    assert not (folder.parent / "exploded").exists()
    rows = check_assets(Assets(folder.parent), face_model="demo", speech=str(folder))
    assert rows[1].state in ("damaged", "unknown")


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "some/kernel"},
        {"_attn_implementation": "some/kernel:flash"},
        {"attn_implementation": {"": "flash_attention_2"}},
        {"return_dict": False, "output_hidden_states": True, "output_attentions": True},
        {"torch_dtype": "float8_e5m2", "dtype": "os.system"},
        {"device_map": "auto", "tp_plan": "auto", "gguf_file": "x", "pruned_heads": {"0": [0]}},
        {"transformers_version": "99.0", "_name_or_path": "some/repository", "id2label": NESTED[:100]},
        {"mask_time_prob": 7, "hidden_dropout": "x", "layerdrop": HUGE, "vocab_size": -1, "pad_token_id": []},
    ],
)
def test_settings_that_do_not_shape_rows_change_nothing(
    sound_folder: Path, folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise AssertionError("something was asked of the network")

    monkeypatch.setattr("socket.socket.connect", unreachable)
    settings(**changes)(folder)
    audio = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rows = [load_checkpoint(str(place)).model(audio).last_hidden_state for place in (sound_folder, folder)]
    assert torch.equal(*rows)


def test_files_beside_the_model_are_not_read(folder: Path) -> None:
    for name in ("adapter_config.json", "modeling.py", "generation_config.json", "chat_template.jinja", "conda.py"):
        (folder / name).write_text('raise SystemExit("run") # {"base_model_name_or_path": "some/repository"}')
    assert set(load_checkpoint(str(folder)).files) == {"config.json", "preprocessor_config.json", "model.safetensors"}
