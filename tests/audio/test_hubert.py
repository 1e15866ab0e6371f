"""Speech encoders: against transformers one clip at a time, in batches, from every kind of checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor
from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor

from lrs3_loader.audio.checkpoint import _sha256_of_weights, load_checkpoint
from lrs3_loader.audio.hubert import SpeechEncoder, _ChannelsLastConv1d, chunk_bounds, resolve_layer
from lrs3_loader.config import SpeechConfig
from lrs3_loader.errors import RunError
from support.sounds import real_sounds

pytestmark = pytest.mark.smoke

TOLERANCE = 1e-4
NUM_LAYERS = 3
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}  # as in HuBERT-large
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
KINDS = {
    "hubert-large": ("Hubert", LARGE),
    "hubert-base": ("Hubert", BASE),
    "hubert-batch-norm": ("Hubert", {**LARGE, "conv_pos_batch_norm": True}),
    "wavlm-large": ("WavLM", LARGE),
    "wavlm-base": ("WavLM", BASE),
    "wav2vec2-large": ("Wav2Vec2", LARGE),
    "wav2vec2-base": ("Wav2Vec2", BASE),
}


def make_model(kind: str, suffix: str = "Model", *, groups: int = 2, **settings: object) -> PreTrainedModel:
    """A small network of random weights, none of them zero: biases and norms must show when padding leaks."""
    family, shape = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(
        **shape,
        hidden_size=32,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=groups,
        **settings,
    )
    generator = torch.Generator().manual_seed(0)
    model = getattr(transformers, family + suffix)(config).eval()
    for name, tensor in model.state_dict().items():
        if "num_batches" not in name:
            noise = torch.randn(tensor.shape, generator=generator) * 0.2
            tensor.copy_(1 + noise.abs() if tensor.ndim == 1 and "bias" not in name else noise)
    return model


def save(model: PreTrainedModel, folder: Path, *, do_normalize: bool = True, **how: object) -> Path:
    model.save_pretrained(folder, **how)
    Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: save(make_model(kind), root / kind) for kind in KINDS}


def encoder_of(folder: Path, **settings: object) -> SpeechEncoder:
    return SpeechEncoder.load(SpeechConfig(model=str(folder), **settings), "cpu")


def waveforms(*frames: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(640 * t, generator=generator) * 0.05 + 0.01 for t in frames]


@torch.no_grad()
def geneface(folder: Path, waveform: Tensor, *, whole: bool = False) -> Tensor:
    """The steps of the published script, with transformers' own preprocessing, on one clip: [2 T - 1, D]."""
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    speech = extractor(waveform.numpy(), return_tensors="pt", sampling_rate=16000).input_values
    if whole:
        return model(speech).last_hidden_state[0]
    num_full = speech.shape[1] // 320000
    parts = [speech[:, 320000 * i : 320000 * i + 320080] for i in range(num_full)]
    if speech.shape[1] - 320000 * num_full >= 400:
        parts.append(speech[:, 320000 * num_full :])
    rows = torch.cat([model(part).last_hidden_state[0] for part in parts])
    want = (speech.shape[1] - 80) // 320
    return torch.nn.functional.pad(rows, (0, 0, 0, max(0, want - len(rows))))[:want]


@pytest.mark.parametrize("kind", KINDS)
def test_batch_equals_transformers_clip_by_clip(folders: dict[str, Path], kind: str) -> None:
    clips = waveforms(50, 1, 43, 50, 12, 49, 13)
    encoder = encoder_of(folders[kind], batch_seconds=5.0)
    rows = encoder(clips)
    assert encoder.width == 32
    for waveform, got in zip(clips, rows, strict=True):
        want = geneface(folders[kind], waveform)
        assert got.dtype == torch.float32
        assert tuple(got.shape) == (len(waveform) // 320, 32)
        torch.testing.assert_close(got[:-1], want, rtol=0, atol=TOLERANCE)
        assert torch.equal(got[-1], got[-2])
    assert all(torch.equal(again, once) for again, once in zip(encoder(clips), rows, strict=True))


@pytest.mark.parametrize(("frames", "num_chunks"), [(500, 1), (501, 2), (530, 2)])
def test_clips_beyond_20_seconds_in_chunks(folders: dict[str, Path], frames: int, num_chunks: int) -> None:
    clips = waveforms(frames, 25)
    assert len(chunk_bounds(len(clips[0]), "reference")) == num_chunks
    rows = encoder_of(folders["hubert-large"])(clips)
    for waveform, got in zip(clips, rows, strict=True):
        torch.testing.assert_close(got[:-1], geneface(folders["hubert-large"], waveform), rtol=0, atol=TOLERANCE)


def test_clips_beyond_20_seconds_whole(folders: dict[str, Path]) -> None:
    (waveform,) = waveforms(530)
    (whole,) = encoder_of(folders["hubert-large"], chunking="whole")([waveform])
    want = geneface(folders["hubert-large"], waveform, whole=True)
    torch.testing.assert_close(whole[:-1], want, rtol=0, atol=TOLERANCE)
    (chunked,) = encoder_of(folders["hubert-large"])([waveform])
    assert (whole - chunked).abs().max() > 10 * TOLERANCE  # the encoder looks further than one chunk


def test_padding_would_show_if_it_were_not_masked(folders: dict[str, Path]) -> None:
    """What the masks are for: the same network over padded audio without one gives other rows."""
    short, long = waveforms(40, 50)
    encoder = encoder_of(folders["hubert-large"])
    padded = torch.cat([short, torch.zeros(len(long) - len(short))])
    unmasked = encoder._forward([padded])[0, :79]
    assert (unmasked - encoder._forward([short])[0]).abs().max() > 100 * TOLERANCE
    masked = encoder._forward([long, short])[1, :79]
    torch.testing.assert_close(masked, encoder._forward([short])[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["hubert-large", "hubert-base", "wavlm-large"])
def test_every_layer_equals_transformers(folders: dict[str, Path], kind: str) -> None:
    (waveform,) = waveforms(20)
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    speech = (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()
    with torch.no_grad():
        output = model(speech[None], output_hidden_states=True)
    hidden = [*output.hidden_states[:NUM_LAYERS], output.last_hidden_state]
    for layer in (0, 1, NUM_LAYERS - 1, NUM_LAYERS, None, -1, -2, -NUM_LAYERS - 1):
        (rows,) = encoder_of(folders[kind], layer=layer)([waveform])
        want = hidden[-1 if layer is None else layer][0]
        torch.testing.assert_close(rows[:-1], want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("layer", [NUM_LAYERS + 1, -NUM_LAYERS - 2])
def test_layer_out_of_range(folders: dict[str, Path], layer: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.3 or -4\.\.-1"):
        encoder_of(folders["hubert-large"], layer=layer)


def test_resolve_layer() -> None:
    assert [resolve_layer(layer, 24) for layer in (None, -1, 24, 0, -25, 9)] == [24, 24, 24, 0, 0, 9]


def test_normalisation_is_what_the_checkpoint_was_trained_with(tmp_path: Path) -> None:
    (waveform,) = waveforms(20)
    model = make_model("wav2vec2-large")
    for do_normalize in (True, False):
        folder = save(model, tmp_path / str(do_normalize), do_normalize=do_normalize)
        encoder = encoder_of(folder)
        assert encoder.description()["normalized"] is do_normalize
        torch.testing.assert_close(encoder([waveform])[0][:-1], geneface(folder, waveform), rtol=0, atol=TOLERANCE)
    assert not torch.allclose(encoder([waveform * 3])[0], encoder([waveform])[0], atol=TOLERANCE)


def test_loudness_and_offset_do_not_matter(folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders["hubert-large"])
    (waveform,) = waveforms(20)
    torch.testing.assert_close(encoder([waveform * 5 + 0.1])[0], encoder([waveform])[0], rtol=0, atol=1e-3)


def test_silence_is_finite() -> None:
    (rows,) = encoder_of(Path("demo"))([torch.zeros(640 * 25)])
    assert rows.isfinite().all()


def test_real_clips_in_a_batch(shared_data: Path, folders: dict[str, Path]) -> None:
    sounds_by_name = real_sounds(shared_data)
    clips = [torch.from_numpy(waveform) for name, waveform in sounds_by_name.items() if name.startswith("lrs3_mini")]
    assert len(clips) >= 4
    encoder = encoder_of(folders["hubert-large"], batch_seconds=60.0)
    for waveform, got in zip(clips, encoder(clips), strict=True):
        torch.testing.assert_close(got, encoder([waveform])[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", [(0,), (641,), (1, 640)])
def test_refuses_broken_lengths(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiple of 640"):
        encoder_of(Path("demo"))([torch.zeros(shape)])


def test_no_clips() -> None:
    assert encoder_of(Path("demo"))([]) == []


@pytest.mark.parametrize("num_samples", [640, 319_360, 320_000, 320_640, 640_000, 723_200, 320_399, 320_400])
@pytest.mark.parametrize("chunking", ["reference", "whole"])
def test_chunks_have_the_rows_of_the_whole(num_samples: int, chunking: str) -> None:
    bounds = chunk_bounds(num_samples, chunking)
    rows = [(stretch.stop - stretch.start - 80) // 320 for stretch in bounds]
    assert sum(rows) == (num_samples - 80) // 320
    assert len(bounds) == (1 if chunking == "whole" else -(-(num_samples - 399) // 320_000))


@pytest.mark.parametrize("groups", [2, 4])  # of 16 channels, and of 8, which are narrow
def test_low_precision_stays_close(groups: int, tmp_path: Path) -> None:
    clips = waveforms(60, 50)
    folder = save(make_model("hubert-large", groups=groups), tmp_path)
    exact = encoder_of(folder)(clips)
    encoder = encoder_of(folder, dtype="bfloat16")
    assert encoder.description()["dtype"] == "bfloat16"
    for got, want in zip(encoder(clips), exact, strict=True):
        assert got.dtype == torch.float32
        error = (got - want).norm() / want.norm()
        assert 0 < error < 0.03


@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_leave_rows_together_in_memory(groups: int) -> None:
    """What they are for: the layer norm behind them reads [B, L, C] without a copy."""
    conv = torch.nn.Conv1d(16, 32, kernel_size=4, stride=2, padding=3, dilation=2, groups=groups)
    x = torch.randn(3, 21, 16, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    got = _ChannelsLastConv1d(conv)(x)
    torch.testing.assert_close(got, conv(x))
    assert got.transpose(1, 2).is_contiguous()
    assert not conv(x).transpose(1, 2).is_contiguous()


def test_arithmetic_switches_are_put_back(folders: dict[str, Path]) -> None:
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic)
    encoder_of(folders["hubert-large"])(waveforms(5))
    after = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic)
    assert after == before


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_safetensors_bin_and_split_checkpoints_are_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    (waveform,) = waveforms(10)
    want = encoder_of(folders["hubert-large"])([waveform])[0]

    pickled = tmp_path / "pickled"
    shutil.copytree(folders["hubert-large"], pickled, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(make_model("hubert-large").state_dict(), pickled / "pytorch_model.bin")
    split = save(make_model("hubert-large"), tmp_path / "split", max_shard_size="60KB")
    assert len(list(split.glob("*.safetensors"))) > 1

    digests = set()
    for folder in (folders["hubert-large"], pickled, split):
        encoder = encoder_of(folder)
        assert torch.equal(encoder([waveform])[0], want)
        digests.add(encoder.description()["sha256"])
    assert len(digests) == 3


def test_description(folders: dict[str, Path]) -> None:
    folder = folders["wavlm-large"]
    description = encoder_of(folder, layer=2).description()
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert description == {
        "model": folder.name,
        "type": "wavlm",
        "sha256": weights,
        "untrained": False,
        "layer": 2,
        "width": 32,
        "dtype": "float32",
        "normalized": True,
        "chunking": "reference",
        "transformers": transformers.__version__,
    }
    assert json.loads(json.dumps(description)) == description


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"layer_norm_eps": 0.1}),
        ("config.json", {"hidden_act": "relu"}),
        ("preprocessor_config.json", {"do_normalize": False}),
        ("model.safetensors", None),
    ],
)
def test_every_file_that_shapes_the_rows_is_identified(
    folders: dict[str, Path], tmp_path: Path, name: str, changes: dict[str, object] | None
) -> None:
    (waveform,) = waveforms(20)
    whole, folder = folders["hubert-large"], tmp_path / "changed"
    shutil.copytree(whole, folder)
    if changes is None:
        model = make_model("hubert-large")
        model.encoder.layer_norm.weight.data += 1
        save(model, folder)
    else:
        (folder / name).write_text(json.dumps({**json.loads((whole / name).read_text()), **changes}))
    before, after = encoder_of(whole), encoder_of(folder)
    assert not torch.allclose(before([waveform])[0], after([waveform])[0], atol=0.01)
    assert before.files.keys() == after.files.keys() == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert [file for file, digest in after.files.items() if digest != before.files[file]] == [name]


def test_demo_is_always_the_same_and_says_it_is_untrained() -> None:
    (waveform,) = waveforms(25)
    state = torch.random.get_rng_state()
    first, second = encoder_of(Path("demo")), encoder_of(Path("demo"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first([waveform])[0], second([waveform])[0])
    assert first.description() == second.description()
    assert first.description()["untrained"] is True
    assert first.width == 64
    assert first([waveform])[0].std() > 0.1  # not collapsed to a constant


def test_digest_of_the_demo_sees_every_number() -> None:
    checkpoint = load_checkpoint("demo")
    assert _sha256_of_weights(checkpoint.model) == checkpoint.sha256
    checkpoint.model.encoder.layer_norm.bias.data[0] += 1
    assert _sha256_of_weights(checkpoint.model) != checkpoint.sha256


def test_loading_makes_no_noise(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither bars nor reports on the training head that is left out, in every family."""
    folders = [save(make_model(kind, "ForCTC"), tmp_path / kind) for kind in KINDS]
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for folder in folders:
            encoder_of(folder)(waveforms(20, 18))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert transformers.utils.logging.is_progress_bar_enabled()


def hub(monkeypatch: pytest.MonkeyPatch, folder: Path, *, cached: bool) -> list[tuple[str, bool]]:
    """Let ``folder`` stand for everything on the hub, or in its cache; returns the list that requests go into."""
    requests: list[tuple[str, bool]] = []

    def download(name: str, file: str, *, local_files_only: bool) -> str:
        requests.append((file, local_files_only))
        if local_files_only and not (cached and (folder / file).is_file()):
            raise LocalEntryNotFoundError(f"{file} is not in the cache")
        if not (folder / file).is_file():
            raise EntryNotFoundError(f"no {file} on the hub")
        return str(folder / file)

    monkeypatch.setattr("lrs3_loader.audio.checkpoint.hf_hub_download", download)
    return requests


@pytest.mark.parametrize("split", [False, True])
def test_hub_names_come_from_the_cache_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: bool) -> None:
    how = {"max_shard_size": "60KB"} if split else {}
    folder = save(make_model("hubert-base"), tmp_path / "hub", **how)
    requests = hub(monkeypatch, folder, cached=True)
    assert load_checkpoint("some/encoder").name == "some/encoder"
    assert all(cached_only for _, cached_only in requests)

    requests = hub(monkeypatch, folder, cached=False)
    load_checkpoint("some/encoder")
    fetched = {file for file, cached_only in requests if not cached_only}
    assert fetched >= {path.name for path in folder.iterdir()} - {"README.md"}


def test_missing_preprocessor_settings_are_reported(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(folders["hubert-base"], folder, ignore=shutil.ignore_patterns("*processor*"))
    hub(monkeypatch, folder, cached=False)
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint("some/encoder").normalize
    assert "preprocessor_config.json" in caplog.text


def test_unreachable_hub_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, file: str, *, local_files_only: bool) -> str:
        raise LocalEntryNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr("lrs3_loader.audio.checkpoint.hf_hub_download", unreachable)
    with pytest.raises(RunError, match=r"hf download facebook/hubert-large-ls960-ft .*--hubert hubert-large-ls960-ft"):
        load_checkpoint("facebook/hubert-large-ls960-ft")


@pytest.mark.parametrize("name", ["/no/such/folder", "not a name", ""])
def test_names_that_are_neither_folder_nor_hub_name(name: str) -> None:
    with pytest.raises(RunError, match="--hubert"):
        load_checkpoint(name)


def break_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def break_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")


def break_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_nothing_left(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"encoder.layer_norm.bias": "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def change_config(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def break_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def break_type(folder: Path) -> None:
    change_config(folder, model_type="bert")


def break_geometry(folder: Path) -> None:
    change_config(folder, conv_stride=[5, 2, 2, 2, 2, 2, 1])


def break_layers(folder: Path) -> None:
    change_config(folder, num_hidden_layers=NUM_LAYERS + 1)


def break_width(folder: Path) -> None:
    change_config(folder, hidden_size=64)


def break_rate(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sampling_rate": 8000}))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (break_config, "no config.json"),
        (break_weights, "damaged or incomplete"),
        (break_header, "damaged or incomplete"),
        (break_pickle, "damaged or incomplete"),
        (break_index, "damaged or incomplete"),
        (break_json, "damaged or incomplete"),
        (break_width, "damaged or incomplete"),
        (break_nothing_left, "holds no weights"),
        (break_type, "'bert'"),
        (break_geometry, "every 320"),
        (break_layers, "lack .* tensors"),
        (break_rate, "8000 Hz"),
    ],
)
def test_broken_checkpoints(folders: dict[str, Path], tmp_path: Path, break_it, message: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(folders["hubert-large"], folder)
    break_it(folder)
    with pytest.raises(RunError, match=message):
        load_checkpoint(str(folder))


def test_adapters_are_refused(tmp_path: Path) -> None:
    folder = save(make_model("wav2vec2-large", add_adapter=True), tmp_path / "adapter")
    with pytest.raises(RunError, match="adapter"):
        load_checkpoint(str(folder))


# --- GPU -------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_equals_cpu_in_float32(folders: dict[str, Path], kind: str) -> None:
    clips = waveforms(50, 1, 43, 50, 501)
    config = SpeechConfig(model=str(folders[kind]), dtype="float32")
    encoder = SpeechEncoder.load(config, "cuda")
    on_gpu = encoder(clips)
    for got, want in zip(on_gpu, SpeechEncoder.load(config, "cpu")(clips), strict=True):
        assert got.is_cuda
        torch.testing.assert_close(got.cpu(), want, rtol=0, atol=TOLERANCE)
    assert all(torch.equal(a, b) for a, b in zip(on_gpu, encoder(clips), strict=True))


@pytest.mark.gpu
def test_gpu_uses_bfloat16_and_stays_close(folders: dict[str, Path]) -> None:
    clips = waveforms(60, 50)
    encoder = SpeechEncoder.load(SpeechConfig(model=str(folders["hubert-large"])), "cuda")
    assert encoder.description()["dtype"] == "bfloat16"
    exact = encoder_of(folders["hubert-large"])(clips)
    for got, want in zip(encoder(clips), exact, strict=True):
        error = (got.cpu() - want).norm() / want.norm()
        assert 0 < error < 0.03
