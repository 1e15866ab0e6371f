"""Whisper's encoder against transformers' own, one clip at a time, and several layers in one pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from lrs3_loader.audio.checkpoint import load_checkpoint
from lrs3_loader.audio.hubert import SpeechEncoder, resolve_layers
from lrs3_loader.audio.whisper import WhisperEncoder
from lrs3_loader.config import SpeechConfig
from lrs3_loader.errors import RunError

NUM_LAYERS = 3


@pytest.fixture(scope="module")
def model() -> WhisperForConditionalGeneration:
    """A small network of random weights, with a decoder."""
    config = WhisperConfig(
        d_model=16,
        encoder_layers=NUM_LAYERS,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        vocab_size=50,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=1,
    )
    generator = torch.Generator().manual_seed(0)
    made = WhisperForConditionalGeneration(config).eval()
    for tensor in made.model.encoder.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return made


@pytest.fixture(scope="module")
def folder(model: WhisperForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("encoders") / "whisper-small"
    model.save_pretrained(where)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(where)
    return where


def encoder_of(folder: Path, **settings: object) -> SpeechEncoder:
    return SpeechEncoder.load(SpeechConfig(model=str(folder), dtype="float32", **settings), "cpu")  # type: ignore[arg-type]


def clip(num_frames: int, seed: int) -> torch.Tensor:
    return torch.randn(640 * num_frames, generator=torch.Generator().manual_seed(seed)) * 0.1


@torch.inference_mode()
def reference(model: WhisperForConditionalGeneration, waveform: torch.Tensor) -> torch.Tensor:
    """Hidden states [N + 1, rows, D] of one clip of at most 30 s, as transformers gives them."""
    mel = WhisperFeatureExtractor(feature_size=80)(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
    found = model.model.encoder(mel["input_features"], output_hidden_states=True)
    return torch.stack(found.hidden_states)[:, 0, : len(waveform) // 320]


def test_rows_are_those_of_transformers_clip_by_clip(model: WhisperForConditionalGeneration, folder: Path) -> None:
    encoder = encoder_of(folder)
    assert isinstance(encoder, WhisperEncoder)
    clips = [clip(6, 1), clip(75, 2), clip(750, 3)]
    for rows, waveform in zip(encoder(clips), clips, strict=True):
        expected = reference(model, waveform)[-1]
        assert rows.shape == (len(waveform) // 320, 16)
        assert (rows - expected).abs().max() < 1e-4
    described = encoder.description()
    assert (described["type"], described["chunking"], described["layer"]) == ("whisper", "30s", NUM_LAYERS)
    assert encoder.num_rows(75) == 150


def test_longer_clips_are_encoded_in_parts_of_30_s(model: WhisperForConditionalGeneration, folder: Path) -> None:
    waveform = clip(760, 4)
    (rows,) = encoder_of(folder)([waveform])
    expected = torch.cat([reference(model, part)[-1] for part in (waveform[:480_000], waveform[480_000:])])
    assert rows.shape == (1520, 16)
    assert (rows - expected).abs().max() < 1e-4


def test_layers_of_one_pass_are_those_of_single_ones(model: WhisperForConditionalGeneration, folder: Path) -> None:
    encoder = encoder_of(folder, layer=(1, -1, 0))
    assert encoder.layers == (1, NUM_LAYERS, 0)
    clips = [clip(10, 5), clip(30, 6)]
    for layers, waveform in zip(encoder.encode(clips), clips, strict=True):
        expected = reference(model, waveform)
        for rows, layer in zip(layers, (1, NUM_LAYERS, 0), strict=True):
            assert (rows - expected[layer]).abs().max() < 1e-4
    (below,) = encoder_of(folder, layer=2)([clips[0]])
    assert (below - reference(model, clips[0])[2]).abs().max() < 1e-4


def test_padding_counts_whole_windows(folder: Path) -> None:
    counted = encoder_of(folder, batch_seconds=60.0).count_padding([16_000, 32_000, 16_000])
    assert counted == {"audio_samples": 64_000, "audio_slots": 3 * 480_000}


def test_layers_that_cannot_be() -> None:
    assert resolve_layers(None, 12) == (12,)
    assert resolve_layers((9, -1), 12) == (9, 12)
    with pytest.raises(ValueError, match="comes twice"):
        resolve_layers((12, -1), 12)
    with pytest.raises(ValueError, match=r"0\.\.12"):
        resolve_layers((9, 13), 12)


def test_a_folder_that_takes_another_length_or_is_damaged_is_named(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    for name, value, message in (
        ("max_source_positions", 100, "another length than 30 s"),
        ("d_model", -3, "d_model in config.json"),
        ("activation_function", "x", "hidden_act"),
    ):
        (tmp_path / name).mkdir()
        for path in folder.iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
        (tmp_path / name / "config.json").write_text(json.dumps({**settings, name: value}))
        with pytest.raises(RunError, match=message):
            load_checkpoint(str(tmp_path / name))
