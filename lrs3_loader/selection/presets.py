"""Published rules for choosing training clips, as conditions over the figures.

The conditions are those that a project publishes and a figure of ours stands for. What it asks beyond that is named in
``not_covered``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """The published rule of one project."""

    conditions: tuple[str, ...]
    source: str
    not_covered: str

    @property
    def where(self) -> str:
        """The conditions as one expression."""
        return " and ".join(self.conditions)


PRESETS = {
    "latentsync": Preset(
        conditions=(
            "num_scene_cuts == 0",
            "num_frames_with_several_faces == 0",
            "face_side_min_px >= 256",
            "abs(sync_offset) <= 6",
        ),
        source=(
            "LatentSync (bytedance/LatentSync at a229c39): README.md, preprocess/filter_high_resolution.py and "
            "preprocess/sync_av.py"
        ),
        not_covered=(
            "hyperIQA of at least 40; pieces of 5 seconds; a sync confidence of at least 3, which is on the scale of "
            "Chung's SyncNet (ours ends at 2). Its face is the detector's box, about 1.3 times as high as ours"
        ),
    ),
    "talkvid": Preset(
        conditions=(
            "shift_1s_mean <= 0.2",
            "shift_1s_max <= 0.4",
            "off_axis_mean <= 54",
            "off_axis_max <= 126",
            "features_inside_min == 1",
            "face_share_mean >= 50 / 3000",
            "face_share_min >= 40 / 3000",
            "turn_1s_mean <= 30",
            "turn_1s_max <= 40",
            "num_frames_with_several_faces <= 25",
        ),
        source=(
            "TalkVid (FreedomIntelligence/TalkVid at b3e15e6): data_pipeline/3_head_detail_filtering, README.md and "
            "config/head_threshold.yml: movement 80 and 60, orientation 70 and 30, completeness 100, resolution 50 and "
            "40, rotation 70 and 60, consistency 80"
        ),
        not_covered=(
            "one frame a second is judged there, every frame here; consistency (at most one second without exactly one "
            "face) counts only frames with several. DOVER and CoTracker scores of its earlier stages"
        ),
    ),
    "hallo": Preset(
        conditions=(
            "source_width == source_height",
            "sqrt(face_share_mean) >= 0.5",
            "sqrt(face_share_mean) <= 0.7",
            "yaw_p05 > -30",
            "yaw_p95 < 30",
        ),
        source=(
            "Hallo (fudan-generative-vision/hallo at 8fd7c57): README.md, training: square crops, the face 50 to 70 % "
            "of the image, rotated by less than 30 degrees, no side profiles"
        ),
        not_covered="50 to 70 % is read as a share of the side of the image, which the README leaves open",
    ),
}
