"""Puts together what is stored of a clip: the arrays, the media, and the json that says what they are."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lrs3_loader.config import RunConfig
from lrs3_loader.extraction.media import MediaStage
from lrs3_loader.extraction.models import Models
from lrs3_loader.extraction.state import ClipState
from lrs3_loader.types import ROWS_PER_FRAME, ClipFeatures


def make_sample(
    state: ClipState, models: Models, config: RunConfig, media: MediaStage, only: Collection[str] | None
) -> ClipFeatures:
    """Return the features of a clip that all stages have passed.

    Args:
        only: the arrays that are wanted (None: all).
    """
    clip, head = state.clip, state.head
    true_rows = ROWS_PER_FRAME * state.num_frames - 1
    speech_rows = {name: encoder.num_rows(state.num_frames) for name, (encoder, _) in models.speech_fields.items()}
    transforms, videos = ({}, {}) if state.media is None else state.media.finish()
    audio, audio_meta = media.audio(head.waveform)
    meta: dict[str, Any] = {
        "key": clip.key,
        "split": clip.split,
        "speaker": clip.speaker,
        "utterance": clip.utterance,
        "num_frames": state.num_frames,
        "num_rows": {"mel": true_rows, "f0": head.num_f0_rows, **speech_rows},
        "source": head.source.as_json(),
        "models": models.names,
        "conventions": {**models.conventions(config), **media.conventions},
        "quality": state.quality,
        **audio_meta,
    }
    if clip.audio_offset_frames is not None:
        meta["audio_offset_frames"] = clip.audio_offset_frames
    if clip.text is not None:
        meta["text"] = clip.text
    if head.transcript is not None:
        transcript = head.transcript
        meta |= {
            "text": transcript.text,
            "conf": transcript.conf,
            "ref": transcript.ref,
            "words": [list(word) for word in transcript.words],
            "boxes": transcript.boxes.tolist(),
        }
    arrays = {**state.arrays, **transforms}
    kept = {name: array for name, array in arrays.items() if only is None or name in only}
    return ClipFeatures(clip, state.num_frames, kept, meta, {**audio, **videos})
