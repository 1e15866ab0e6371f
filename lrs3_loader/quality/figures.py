"""The figures that an extraction stores for every clip, by name; docs/quality.md has the formula of each.

A figure is one number per clip. It stands in the clip's json under ``quality`` and in the ledger of its shard. A figure
that has no value for a clip (no two frames to compare, no audio to measure) is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, SupportsFloat

#: Raised when the definition of a figure changes: figures of different versions are not compared.
FIGURES_VERSION = 1

SILENT_RMS = 1e-4  # ``sound_rms`` of a clip in which nothing is heard (-80 dBFS)

Level = Literal["none", "basic", "full"]
_DIGITS = 5


class Figure(NamedTuple):
    """Unit, meaning and origin of a figure."""

    unit: str
    meaning: str
    level: Level = "basic"  # the lowest ``--quality`` that computes it; "none": every run has it


def _always(unit: str, meaning: str) -> Figure:
    return Figure(unit, meaning, "none")


def _pixels(unit: str, meaning: str) -> Figure:
    return Figure(unit, meaning, "full")


FIGURES: dict[str, Figure] = {
    # Measured in every run.
    "damaged_fraction": _always("0..1", "frames that could not be decoded faithfully"),
    "valid_fraction": _always("0..1", "frames in which the face was really found"),
    "face_score": _always("0..1", "mean presence of the face, as the landmark network says"),
    "num_frames_with_several_faces": _always("frames", "frames in which the detector found more than one face"),
    "num_track_switches": _always("count", "times that another face was followed after the first was lost"),
    "sound_rms": _always("0..1", "root mean square of the audio"),
    "reprojection_px": _always("pixels", "mean distance of the landmarks to the fitted face"),
    "mouth_reprojection_px": _always("pixels", "mean distance of the landmarks of the mouth to the fitted face"),
    "relative_error": _always("face sizes", "reprojection_px over the size of the face"),
    "relative_mouth_error": _always("face sizes", "mouth_reprojection_px over the size of the face"),
    "face_size_px": _always("pixels", "mean geometric mean of width and height of the landmarks"),
    "converged": _always("0 or 1", "the fit converged"),
    "photometric_error_landmark_fit": _always("0..1", "colour difference of the landmark fit (--fit photometric)"),
    "photometric_error": _always("0..1", "colour difference of the photometric fit (--fit photometric)"),
    "photometric_refined": _always("0 or 1", "the photometric fit was kept (--fit photometric)"),
    "speaking_fraction": _always("0..1", "frames in which the face speaks what is heard (--speaking)"),
    # Face.
    "face_side_min_px": Figure("pixels", "shorter side of the box of the landmarks, in the frame where it is least"),
    "face_share_mean": Figure("0..1", "area of the box of the landmarks over that of the frame"),
    "face_share_min": Figure("0..1", "area of the box of the landmarks over that of the frame, where it is least"),
    "face_inside_mean": Figure("0..1", "share of the 68 landmarks inside the frame"),
    "face_inside_min": Figure("0..1", "share of the 68 landmarks inside the frame, where it is least"),
    "features_inside_min": Figure("0..1", "share of brows, eyes, nose and mouth inside, where it is least"),
    "face_size_ratio": Figure("ratio", "size of the face: 95th percentile over 5th (zoom, approach)"),
    "pitch_p05": Figure("degrees", "rotation about x, 5th percentile; positive: looking down"),
    "pitch_p50": Figure("degrees", "rotation about x, median"),
    "pitch_p95": Figure("degrees", "rotation about x, 95th percentile"),
    "yaw_p05": Figure("degrees", "rotation about y, 5th percentile; positive: to the right of the image"),
    "yaw_p50": Figure("degrees", "rotation about y, median"),
    "yaw_p95": Figure("degrees", "rotation about y, 95th percentile"),
    "roll_p05": Figure("degrees", "rotation about z, 5th percentile"),
    "roll_p50": Figure("degrees", "rotation about z, median"),
    "roll_p95": Figure("degrees", "rotation about z, 95th percentile"),
    "off_axis_mean": Figure("degrees", "root of the sum of squares of pitch, yaw and roll, mean"),
    "off_axis_max": Figure("degrees", "root of the sum of squares of pitch, yaw and roll, largest"),
    "turn_speed_p95": Figure("degrees/s", "speed of the head's rotation over 0.2 s, 95th percentile"),
    "turn_1s_mean": Figure("degrees", "change of pitch, yaw and roll within one second, mean"),
    "turn_1s_max": Figure("degrees", "change of pitch, yaw and roll within one second, largest"),
    "shift_speed_p95": Figure("face sizes/s", "speed of the face in the picture over 0.2 s, 95th percentile"),
    "shift_1s_mean": Figure("frame sides", "shift of the landmarks within one second over the frame's side, mean"),
    "shift_1s_max": Figure("frame sides", "shift of the landmarks within one second over the frame's side, largest"),
    "landmark_jitter": Figure("% of face size", "noise of the landmarks from frame to frame"),
    "identity_change": Figure("% of face size", "the shape of the rigid parts of the face before and after some frame"),
    "identity_jump": Figure("% of face size", "largest step in the shape of the rigid parts of the face"),
    "identity_spread": Figure("% of face size", "spread of the shape of the rigid parts of the face"),
    # Mouth.
    "mouth_range": Figure("% of face size", "opening of the lips: 95th percentile minus 5th"),
    "mouth_speed": Figure("% of face size/s", "root mean square speed of the opening"),
    "mouth_audio_correlation": Figure("-1..1", "correlation of the opening with loudness at the best lag"),
    "mouth_audio_lag": Figure("frames", "lag at which mouth and loudness agree best; positive: the audio is late"),
    # Audio.
    "audio_level_db": Figure("dBFS", "root mean square level"),
    "audio_clipped_share": Figure("0..1", "samples at full scale"),
    "audio_noise_db": Figure("dBFS", "level of the quietest tenth"),
    "audio_snr_db": Figure("dB", "level of the louder half above the noise floor, which is taken off"),
    "audio_bandwidth_hz": Figure("Hz", "frequency above which the spectrum stays 60 dB below its maximum"),
    "silent_share": Figure("0..1", "40 ms pieces of audio below -60 dBFS"),
    "speech_fraction": Figure("0..1", "share of the clip with speech, by the detector that run.json names"),
    # The source file.
    "source_height": Figure("pixels", "height of the frame as shown"),
    "source_width": Figure("pixels", "width of the frame as shown"),
    "source_fps": Figure("1/s", "frames per second before resampling"),
    "source_sample_rate": Figure("Hz", "sample rate of the audio before resampling"),
    "source_channels": Figure("count", "channels of the audio before mixing"),
    # Pixels of the face.
    "face_sharpness": _pixels("levels^2", "variance of the Laplacian at a face of 96 pixels, median"),
    "face_brightness": _pixels("0..255", "mean luma of the face, median"),
    "face_contrast": _pixels("levels", "standard deviation of the luma of the face, median"),
    "face_clipped_share": _pixels("0..1", "pixels of the face at the ends of the range, mean"),
    # Picture.
    "num_scene_cuts": _pixels("count", "changes of the picture at least as strong as --scene-cut-strength"),
    "scene_cut_strength": _pixels("levels", "strength of the strongest change from one frame to the next"),
    "scene_cut_frame": _pixels("frame", "first frame after the strongest change"),
    "picture_motion": _pixels("levels", "median change of the picture from frame to frame"),
    "static_share": _pixels("0..1", "frames that repeat their predecessor"),
    "black_bar_share": _pixels("0..1", "area of black bars at the edges"),
}


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that have a value, with 5 significant digits; whole numbers become integers."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        value = float(value)
        if math.isfinite(value):
            short = float(f"{value:.{_DIGITS}g}")
            found[name] = int(short) if short.is_integer() else short
    return found


def rounded_number(value: SupportsFloat, digits: int = 4) -> float:
    """Return a number with so many digits after the point."""
    return round(float(value), digits)


def figure_numbers(meta: Any) -> dict[str, float]:
    """Return the figures in the json of a sample, those entries of ``quality`` that are numbers; true is 1, false 0.

    Names are kept if they can stand in an expression.
    """
    quality = meta.get("quality") if isinstance(meta, Mapping) else None
    return {
        name: int(value) if isinstance(value, bool) else value
        for name, value in (quality.items() if isinstance(quality, Mapping) else ())
        if name.isidentifier() and isinstance(value, (bool, int, float)) and math.isfinite(value)
    }
