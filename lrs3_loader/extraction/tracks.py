"""Joins what was found in the frames of each clip of a shard, and fills its gaps.

The device is asked once for a shard: everything is copied to the host together, as the work on a clip is many small
steps, each of which would be a kernel, and some of which have to be waited for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from lrs3_loader.config import RunConfig
from lrs3_loader.errors import ClipError, DamagedFramesError, NoFaceError
from lrs3_loader.extraction.quality import QualityStage
from lrs3_loader.extraction.state import ClipState
from lrs3_loader.face.deep3d.regressor import fill_coefficient_gaps
from lrs3_loader.face.geometry.topology import to_ibug68
from lrs3_loader.face.landmarks.landmarker import FrameLandmarks, fill_track_gaps
from lrs3_loader.quality.figures import rounded_number
from lrs3_loader.quality.picture import MeasuredPixels, PictureMeter, measured_pixels
from lrs3_loader.runtime.transfer import copy_to_host


def finish_tracks(states: Sequence[ClipState], config: RunConfig, quality: QualityStage, *, keeps_dense: bool) -> None:
    """Join the landmarks and coefficients of each clip, and fill short gaps, of which damaged frames are some.

    Clips in which too many frames show no face fail.

    Args:
        keeps_dense: the fit uses all landmarks.
    """
    tracks = _copy_tracks(states)
    pixels: Sequence[MeasuredPixels | None] = [None] * len(states)
    if quality.needs_pixels:
        pixels = measured_pixels([state.picture for state in states])
    for state, (track, coefficients), seen in zip(states, tracks, pixels, strict=True):
        state.picture = PictureMeter()  # frees its tensors
        try:
            found = _fill_gaps(state, track, coefficients, config)
            _keep(state, found, config, keeps_dense)
            state.quality |= {
                "damaged_fraction": round(len(state.damaged) / state.num_frames, 4),
                "valid_fraction": rounded_number(found.found.float().mean()),
                "face_score": rounded_number(found.score[found.found].mean()),
                "num_frames_with_several_faces": state.track.num_frames_with_several_faces,
                "num_track_switches": state.track.num_switches,
                **quality.identity(found.points, found.found),
                **quality.picture(seen),
            }
        except ClipError as error:
            state.fail(error)


def _copy_tracks(states: Sequence[ClipState]) -> list[tuple[FrameLandmarks, torch.Tensor | None]]:
    """Copy the landmarks, and the coefficients if there are any, of each clip to the host, all in one copy."""
    if not states:
        return []
    track = FrameLandmarks.cat([part for state in states for part in state.landmarks])
    coefficients = [part for state in states for part in state.coefficients]
    num_points, num_frames = track.points.shape[1], [state.num_frames for state in states]
    for state in states:
        state.landmarks.clear()
        state.coefficients.clear()
    columns = [track.points.flatten(1), track.score[:, None], track.found[:, None].to(track.points.dtype)]
    columns += [] if track.blendshapes is None else [track.blendshapes]
    columns += [torch.cat(coefficients)] if coefficients else []
    widths = [column.shape[1] for column in columns]
    [whole] = copy_to_host([torch.cat(columns, 1)])
    clips = []
    for rows in whole.split(num_frames):
        points, score, found, *rest = (part.contiguous() for part in rows.split(widths, 1))
        blendshapes = None if track.blendshapes is None else rest.pop(0)
        landmarks = FrameLandmarks(points.view(-1, num_points, 3), score[:, 0], found[:, 0] > 0, blendshapes)
        clips.append((landmarks, rest[0] if rest else None))
    return clips


def _fill_gaps(
    state: ClipState, track: FrameLandmarks, coefficients: torch.Tensor | None, config: RunConfig
) -> FrameLandmarks:
    """Return the landmarks of a clip without gaps, and keep its coefficients."""
    num_damaged = len(state.damaged)
    bounds: dict[str, Any] = {
        "min_valid_fraction": config.landmarks.min_valid_fraction,
        "max_gap_frames": config.landmarks.max_gap_frames,
    }
    if num_damaged > config.decode.max_damaged_fraction * state.num_frames:
        raise DamagedFramesError(f"{num_damaged} of {state.num_frames} frames are damaged")
    found = fill_track_gaps(track, **bounds)
    if state.damaged:
        intact = track.found.clone()
        intact[state.damaged] = False
        try:
            found = fill_track_gaps(dataclasses.replace(track, found=intact), **bounds)
        except NoFaceError as error:
            message = f"{num_damaged} of {state.num_frames} frames are damaged; without them: {error}"
            raise DamagedFramesError(message) from error
        if coefficients is not None:
            coefficients[state.damaged] = torch.nan
    if coefficients is not None:
        state.arrays["coeff"] = fill_coefficient_gaps(coefficients, **bounds).numpy()
    return found


def _keep(state: ClipState, found: FrameLandmarks, config: RunConfig, keeps_dense: bool) -> None:
    """Keep of the landmarks of a clip what is stored, and what the fit needs."""
    state.arrays["lm68"] = to_ibug68(found.points)[..., :2].numpy()
    state.arrays["valid"] = found.found.numpy()
    if keeps_dense:
        state.dense = found.points[..., :2]
    if config.landmarks.store_lm478:
        state.arrays["lm478"] = found.points.numpy()
    if found.blendshapes is not None:
        state.blendshapes = found.blendshapes.to(torch.float16)
        if config.landmarks.store_blendshapes:
            state.arrays["blendshapes"] = state.blendshapes.numpy()
