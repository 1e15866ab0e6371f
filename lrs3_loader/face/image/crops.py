"""Small square crops of the face in every frame of a clip, kept until its landmarks are fitted.

Frames are released while a shard is read, but a photometric fit needs the pixels of the face afterwards. Storage is
bounded: 48 KiB per frame, in memory up to ``MEMORY_BYTES`` per clip and in an unnamed temporary file beyond that.

Letters: n frames, T frames of a clip, H W source size, S = 128.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch

from lrs3_loader.face.image.resample import resize_crop

CROP_SIZE = 128
MARGIN = 1.3  # side of the square over the larger extent of the landmarks
MIN_SIDE_PX = 16.0  # of the square in the source: smaller faces are not enlarged further
MEMORY_BYTES = 96 << 20  # per clip; the rest is stored on disk
_FRAME_BYTES = CROP_SIZE * CROP_SIZE * 3


def crop_to_landmarks(frames: torch.Tensor, landmarks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop a square around the face in each frame.

    Args:
        frames: u8 [n, H, W, 3].
        landmarks: f32 [n, 68, 2], pixels of the source, y down, NaN where no face was found.

    Returns:
        crops: u8 [n, S, S, 3] on the CPU, black outside the frame and where no face was found.
        transforms: f32 [n, 4] = (x scale, y scale, x shift, y shift): ``crop = scale * source + shift``, with whole
            numbers at pixel centres on both sides; NaN where no face was found.

    Raises:
        ValueError: the landmarks have another shape.
    """
    num_frames, height, width = frames.shape[:3]
    if landmarks.shape != (num_frames, 68, 2):
        raise ValueError(f"landmarks must be [{num_frames}, 68, 2], got {list(landmarks.shape)}")
    points = landmarks.detach().cpu().double()
    usable = points.isfinite().all(-1).all(-1)
    low, high = points.amin(1), points.amax(1)
    side = (MARGIN * (high - low).amax(1, keepdim=True)).clamp(min=MIN_SIDE_PX)
    size = torch.tensor([width, height], dtype=torch.float64)
    resized = (size * CROP_SIZE / side).round().clamp(min=1).where(usable[:, None], 1.0)
    scale = resized / size
    corner = (((low + high) / 2 + 0.5) * scale - CROP_SIZE / 2).round().where(usable[:, None], 0.0)
    transform = torch.cat((scale, 0.5 * scale - 0.5 - corner), 1).float()
    crops = torch.zeros(num_frames, CROP_SIZE, CROP_SIZE, 3, dtype=torch.uint8)
    if bool(usable.any()):
        chosen = frames if bool(usable.all()) else frames[usable.nonzero()[:, 0].to(frames.device)]
        crops[usable] = resize_crop(chosen, resized[usable].long(), corner[usable].long(), CROP_SIZE).cpu()
    return crops, transform.masked_fill(~usable[:, None], torch.nan)


class FaceCrops:
    """The face crops of one clip: ``append`` them in the order of its frames, then ``read`` any of them."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=memory_bytes)  # noqa: SIM115  # lives as long as this
        self._transforms: list[torch.Tensor] = []

    def __len__(self) -> int:
        return sum(map(len, self._transforms))

    def append(self, crops: torch.Tensor, transforms: torch.Tensor) -> None:
        """Store the crops of the next frames, as ``crop_to_landmarks`` returns them."""
        if crops.shape != (len(transforms), CROP_SIZE, CROP_SIZE, 3) or crops.dtype != torch.uint8:
            raise ValueError(f"crops must be u8 [{len(transforms)}, {CROP_SIZE}, {CROP_SIZE}, 3]")
        self._file.seek(0, 2)
        self._file.write(crops.contiguous().numpy().tobytes())
        self._transforms.append(transforms)

    @property
    def transforms(self) -> torch.Tensor:
        """The transforms of all frames, f32 [T, 4]; see ``crop_to_landmarks``."""
        return torch.cat(self._transforms) if self._transforms else torch.zeros(0, 4)

    def read(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the crops u8 [n, S, S, 3] of the frames with these numbers, i64 [n]."""
        out = np.empty((len(frames), CROP_SIZE, CROP_SIZE, 3), dtype=np.uint8)
        for row, frame in enumerate(frames.tolist()):
            self._file.seek(frame * _FRAME_BYTES)
            out[row] = np.frombuffer(self._file.read(_FRAME_BYTES), dtype=np.uint8).reshape(out.shape[1:])
        return torch.from_numpy(out)
