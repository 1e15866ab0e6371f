"""Several speech encoders and layers in one pass: each field holds what its encoder gives alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel

from lrs3_loader.assets.locate import Assets
from lrs3_loader.commands import extract as command
from lrs3_loader.config import RunConfig, SpeechConfig, as_json, demo_defaults, resolve
from lrs3_loader.errors import RunError
from lrs3_loader.extraction.models import Models
from lrs3_loader.flags import config_from_json
from lrs3_loader.stream import Audio2Motion
from lrs3_loader.types import check_field, field_spec, rows_per_frame


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with another small encoder of 3 layers."""
    config = HubertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    folder = tmp_path_factory.mktemp("models") / "other"
    torch.manual_seed(0)
    HubertModel(config).save_pretrained(folder)
    return str(folder)


def models_with(assets: Path | None, **speech: Any) -> Models:
    config = dataclasses.replace(demo_defaults(RunConfig()), speech=SpeechConfig(**speech))
    return Models.load(resolve(config, "cpu"), Assets(assets), torch.device("cpu"))


def test_each_field_holds_what_its_encoder_gives_alone(other: str, assets: Path | None) -> None:
    both = models_with(assets, model="demo", also=(other,), layer=(1, -1))
    clips = [torch.randn(640 * length, generator=torch.Generator().manual_seed(length)) for length in (8, 30)]
    pairs = [("demo", 1), ("demo", 3), (other, 1), (other, 3)]
    assert list(both.speech_fields) == ["hubert", "hubert_2", "hubert_3", "hubert_4"]
    for (encoder, number), (model, layer) in zip(both.speech_fields.values(), pairs, strict=True):
        alone = models_with(assets, model=model, layer=layer)
        assert list(alone.speech_fields) == ["hubert"]
        assert encoder.description(number) == alone.speech.description()
        for layers, expected in zip(encoder.encode(clips), alone.speech(clips), strict=True):
            np.testing.assert_allclose(layers[number].numpy(), expected.numpy(), atol=1e-5)
    assert {"speech", "speech_2", "speech_3", "speech_4"} <= both.record.keys()
    assert (both.record["speech_3"]["layer"], both.names["speech_4"]["layer"]) == (1, 3)
    assert both.record["speech_3"]["files"] == both.record["speech_4"]["files"] != {}


def test_flags_may_be_given_again(tmp_path: Path, assets: Path | None) -> None:
    words = [
        "--corpus",
        "c",
        "--out",
        str(tmp_path),
        "--hubert",
        "A",
        "--hubert-layer",
        "9,12",
        "--hubert=B",
        "--limit",
        "3",
    ]
    args = command.parse(words)
    assert args.run.speech.models == ("A", "B")
    assert args.run.speech.layer == (9, 12)
    assert args.run.corpus.limit == 3
    assert config_from_json(as_json(args.run)) == args.run
    one = command.parse(["--corpus", "c", "--out", "o", "--hubert", "A", "--hubert-layer", "-2"])
    assert (one.run.speech.models, one.run.speech.layer) == (("A",), -2)
    with pytest.raises(RunError, match="names an encoder twice: demo, B, demo"):
        models_with(assets, model="demo", also=("B", "demo"))


def test_their_fields_are_known() -> None:
    spec = field_spec("hubert_2")
    assert spec is not None
    assert (spec.shape, rows_per_frame("hubert_12")) == (("2T", "D"), 2)
    assert field_spec("hubert_1") is field_spec("hubert_0") is field_spec("hubert_x") is None
    check_field("hubert_3", np.zeros((20, 5), np.float16), 10)
    with pytest.raises(ValueError, match="hubert_3 must be"):
        check_field("hubert_3", np.zeros((19, 5), np.float16), 10)
    assert Audio2Motion(fields=("hubert_2", "idexp_lm3d")).fields == ("hubert_2", "idexp_lm3d")
