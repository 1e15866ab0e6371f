"""Settings by the names of their flags."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lrs3_loader.config import RunConfig, SpeakingConfig
from lrs3_loader.flags import CORPUS_SECTIONS, flag_names, with_settings

pytestmark = pytest.mark.smoke


def test_settings_go_where_their_flags_do() -> None:
    config = with_settings(
        RunConfig(),
        {
            "min_frames": 8,
            "hubert": "demo",
            "max_av_mismatch_seconds": 1,
            "store_lm478": True,
            "deep3d": "a.pth",
            "threads": 4,
            "max_reprojection": None,
        },
    )
    assert config.decode.min_frames == 8
    assert config.speech.model == "demo"
    assert (config.decode.max_av_mismatch_seconds, type(config.decode.max_av_mismatch_seconds)) == (1.0, float)
    assert config.landmarks.store_lm478 is True
    assert config.regression.checkpoint == Path("a.pth")
    assert config.threads == 4
    assert with_settings(config, {"threads": 1}).decode == config.decode
    assert with_settings(config, {}) == config


def test_every_setting_of_an_extraction_can_be_given() -> None:
    for place, flag in flag_names(RunConfig).items():
        value: Any = RunConfig()
        for name in place:
            value = getattr(value, name)
        given = {flag[2:].replace("-", "_"): value}
        if place[0] in CORPUS_SECTIONS:
            with pytest.raises(TypeError, match="there is no setting"):
                with_settings(RunConfig(), given)
        else:
            assert with_settings(RunConfig(), given) == RunConfig()


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"min_framez": 8}, TypeError, "no setting 'min_framez'; did you mean 'min_frames'"),
        ({"corpus": "x"}, TypeError, "no setting 'corpus'"),
        ({"min_frames": "8"}, TypeError, "min_frames must be int, got '8'"),
        ({"min_frames": True}, TypeError, "min_frames must be int, got True"),
        ({"store_lm478": 1}, TypeError, "store_lm478 must be bool, got 1"),
        ({"max_scene_cuts": 1.5}, TypeError, "max_scene_cuts must be int or None, got 1.5"),
        ({"quality": "fine"}, ValueError, "quality must be one of 'auto', 'none', 'basic', 'full', got 'fine'"),
        ({"min_frames": 0}, ValueError, "min_frames must be above 0"),
        ({"min_speaking_share": 0.5}, ValueError, "needs --speaking"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        with_settings(RunConfig(), settings)


def test_settings_that_need_one_another_are_checked_together() -> None:
    config = with_settings(RunConfig(), {"speaking": True, "min_speaking_share": 0.5})
    assert config.speaking == dataclasses.replace(SpeakingConfig(), store=True, min_share=0.5)
