"""Deep3DFaceRecon's regression: 257 face coefficients per frame, for batches of frames of many clips.

A ResNet-50 reads the aligned 224 x 224 crop (see ``deep3d.align``), levels / 255 without further normalisation, and
seven linear heads give the coefficients of the Basel Face Model, of the pose and of the lighting. Frames are
independent of one another. A batch has a fixed number of frames B, so that results do not depend on the rest of the
batch.

Deng et al., "Accurate 3D Face Reconstruction with Weakly-Supervised Learning", 2019; He et al., "Deep Residual
Learning for Image Recognition", 2016, with the stride in the 3x3 convolution, as torchvision has it.

Letters: n frames, B frames of a batch, S = 224.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

from lrs3_loader.errors import RunError
from lrs3_loader.face.deep3d.align import CROP_SIZE, align, five_points, load_standard_face
from lrs3_loader.face.deep3d.residual import MAX_DIFFERENCE, ConvReLU, ResidualBlock, use_joined_kernels
from lrs3_loader.face.image.spans import SpanSampler
from lrs3_loader.face.landmarks.tracks import fill_gaps
from lrs3_loader.face.model.morphable import IDEXP_SCALE, FaceModel
from lrs3_loader.io.files import file_sha256
from lrs3_loader.io.safe_load import load_plain
from lrs3_loader.kernels.trust import FastPath
from lrs3_loader.runtime.memory import split_on_oom
from lrs3_loader.runtime.transfer import HostCopy, to_device

if TYPE_CHECKING:
    from torchvision.models import ResNet

#: The position of each part in the 257 coefficients.
COEFFICIENTS: dict[str, slice] = {
    "id": slice(0, 80),
    "exp": slice(80, 144),
    "tex": slice(144, 224),
    "angles": slice(224, 227),
    "gamma": slice(227, 254),
    "trans": slice(254, 257),
}
NUM_COEFFICIENTS = 257
COEFF_CONVENTION = (
    "id 80, exp 64, tex 80, angles rx,ry,rz[rad], gamma 3x9, trans[dm]; R=Rz@Ry@Rx; p=x@R.T+t; "
    "x right,y up,z to viewer; in the 224x224 crop: u=112+1015*px/(10-pz); v=111-1015*py/(10-pz)"
)
_HEAD_WIDTHS = (80, 64, 80, 3, 27, 2, 1)  # the last two are trans
_FEATURES = 2048


@dataclass(frozen=True)
class Deep3DFiles:
    """The weights of the regression and the standard face, as read from disk."""

    weights: Mapping[str, Tensor]  # the checkpoint's ``net_recon``
    standard: Tensor  # f32 [5, 3], the standard face for the alignment
    name: str
    sha256: str  # of the checkpoint
    standard_sha256: str


def fill_coefficient_gaps(coefficients: Tensor, *, min_valid_fraction: float, max_gap_frames: int) -> Tensor:
    """Fill the gaps (NaN) in a clip's coefficients [T, 257]: linearly, and at the ends with the nearest frame.

    Raises ``NoFaceError`` if too few frames have coefficients; see ``fill_track_gaps``.
    """
    measured = coefficients.isfinite().all(1)
    return fill_gaps(coefficients, measured, min_valid_fraction=min_valid_fraction, max_gap_frames=max_gap_frames)


def check_face_model(model: FaceModel) -> None:
    """Raise ``ValueError`` for a face model that does not fit the coefficients of the regression."""
    widths = (model.num_id, model.num_exp)
    if widths != _HEAD_WIDTHS[:2]:
        raise ValueError(
            "Deep3D's coefficients belong to the Basel Face Model with 80 identity and 64 expression modes; "
            f"{model.name} has {widths[0]} and {widths[1]}"
        )


def idexp_lm3d(model: FaceModel, coefficients: Tensor, *, off_by_one: bool = False) -> Tensor:
    """Compute GeneFace's ``idexp_lm3d`` f32 [..., 68, 3] (decimetres x 10) from ``coefficients`` [..., 257].

    ``off_by_one`` uses the vertex after each landmark's own, as GeneFace's published data does, whose code reads the
    model's 1-based landmark numbers as 0-based.
    """
    verts = model.landmark_verts + int(off_by_one)
    basis = torch.cat([model.id_basis[verts], model.exp_basis[verts]], 2)  # [68, 3, 144]
    shape = coefficients[..., : COEFFICIENTS["exp"].stop]
    return IDEXP_SCALE * (shape @ basis.flatten(0, 1).T).unflatten(-1, basis.shape[:2])


def load_deep3d_files(checkpoint: Path, standard: Path) -> Deep3DFiles:
    """Read ``epoch_20.pth`` and ``similarity_Lm3D_all.mat`` without executing anything in them.

    Raises ``RunError`` if one of them cannot be read or is another file.
    """
    try:
        content = load_plain(checkpoint)
        weights = content.get("net_recon") if isinstance(content, dict) else None
        if not isinstance(weights, dict):
            raise ValueError("it holds no net_recon")
    except (OSError, ValueError) as error:
        raise RunError(f"{checkpoint} is not a checkpoint of Deep3DFaceRecon_pytorch: {error}") from error
    points = load_standard_face(standard)
    return Deep3DFiles(weights, points, checkpoint.stem, file_sha256(checkpoint), file_sha256(standard))


class Deep3DNetwork(nn.Module):
    """The network: crops u8 [B, S, S, 3] to coefficients f32 [B, 257].

    Batch normalisation is folded into the convolutions (in f64, off by less than 1e-5), whose type is ``dtype``;
    pooling and heads are in f32. Raises ``ValueError`` for ``weights`` of another network.
    """

    def __init__(self, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        backbone = _load_backbone(weights)
        self.stem = nn.Sequential(ConvReLU(_fold(backbone.conv1, backbone.bn1)), backbone.maxpool)
        layers = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
        self.blocks = nn.Sequential(*(ResidualBlock(_fold_block(block)) for layer in layers for block in layer))
        self.head = _load_heads(weights)
        self.stem.to(dtype)
        self.blocks.to(dtype)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self.requires_grad_(False).eval()

    def forward(self, crops: Tensor) -> Tensor:
        images = crops.permute(0, 3, 1, 2).to(self.dtype).div_(255)  # channels-last; 16 bits hold 0..255 exactly
        return self.head(self.blocks(self.stem(images)).float().mean((2, 3)))


@dataclass(frozen=True)
class PreparedBatch:
    """A batch between ``prepare`` and ``regress``."""

    frames: list[Tensor]  # per span
    points: HostCopy  # f32 [frames of all spans, 5, 2], NaN where no face was found


class Deep3DRegressor(nn.Module):
    """Computes the coefficients of batches of frames; see the module docstring.

    ``batch_size`` (B) frames go through the network at a time. The GPU never waits for the host when ``prepare`` is
    called for the next batch before ``regress`` for this one. ``description`` names the files and settings, for the
    metadata of runs.
    """

    def __init__(
        self,
        files: Deep3DFiles,
        device: torch.device | str = "cpu",
        *,
        batch_size: int = 8,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network = Deep3DNetwork(files.weights, dtype)
        self.standard = files.standard
        self.description = {
            "name": files.name,
            "sha256": files.sha256,
            "standard_face_sha256": files.standard_sha256,
            "dtype": str(dtype).removeprefix("torch."),
        }
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.to(self.device)
        self.sampler = SpanSampler(self.device)

    def fast_path(self) -> FastPath | None:
        """Return the way by cuDNN's joined kernels, which is not taken at first; there is none in float32."""
        if self.network.dtype not in MAX_DIFFERENCE:
            return None

        def trial() -> list[Tensor]:
            with _exact_convolutions():
                return [self.network(_noise_crops().to(self.device))]

        use = partial(use_joined_kernels, self.network)
        return FastPath("the Deep3D network", use, trial, MAX_DIFFERENCE[self.network.dtype])

    def forward(self, spans: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Compute the coefficients of each span.

        Args:
            spans: pairs of frames, u8 [n, H, W, 3] on the device, of any size, and their iBUG-68 landmarks,
                f32 [n, 68, 2], pixels of the frame, y down, NaN where no face was found.

        Returns:
            f32 [n, 257] per span, on the device; NaN for frames without usable landmarks.
        """
        return self.regress(self.prepare(spans)) if spans else []

    @torch.inference_mode()
    def prepare(self, spans: Sequence[tuple[Tensor, Tensor]]) -> PreparedBatch:
        """Start copying the landmarks of a batch to the host, where ``regress`` computes the crops."""
        for frames, landmarks in spans:
            if landmarks.shape != (len(frames), 68, 2):
                raise ValueError(f"landmarks must be [{len(frames)}, 68, 2], got {list(landmarks.shape)}")
        points = torch.cat([five_points(landmarks).float() for _, landmarks in spans])
        return PreparedBatch([frames for frames, _ in spans], HostCopy(points))

    @torch.inference_mode()
    def regress(self, prepared: PreparedBatch) -> list[Tensor]:
        """Finish a prepared batch; returns the coefficients as ``forward`` does."""
        lengths = [len(frames) for frames in prepared.frames]
        spans = list(zip(prepared.frames, prepared.points.wait().split(lengths), strict=True))
        alignments = [align(points, self.standard, *frames.shape[1:3]) for frames, points in spans]
        crops = self.sampler.resize_crop(
            prepared.frames,
            torch.cat([found.resized for found in alignments]),
            torch.cat([found.corner for found in alignments]),
            CROP_SIZE,
        )
        usable = torch.cat([found.usable for found in alignments])
        chosen = to_device(usable.nonzero()[:, 0], self.device)
        coefficients = torch.full((len(usable), NUM_COEFFICIENTS), torch.nan, device=self.device)
        coefficients[chosen] = self._regress(crops if usable.all() else crops[chosen])
        return list(coefficients.split(lengths))

    def _regress(self, crops: Tensor) -> Tensor:
        """Run the network on crops u8 [k, S, S, 3], B at a time, the last batch padded with black: f32 [k, 257]."""
        results = [crops.new_zeros(0, NUM_COEFFICIENTS, dtype=torch.float32)]
        with _exact_convolutions():
            for part in crops.split(self.batch_size):
                missing = crops.new_zeros(self.batch_size - len(part), CROP_SIZE, CROP_SIZE, 3)
                results.append(torch.cat(split_on_oom(self.network, torch.cat([part, missing])))[: len(part)])
        return torch.cat(results)


def _exact_convolutions() -> contextlib.AbstractContextManager[None]:
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def _noise_crops() -> Tensor:
    """Two crops u8 [2, S, S, 3], always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, CROP_SIZE, CROP_SIZE, 3), dtype=torch.uint8, generator=generator)


def _load_backbone(weights: Mapping[str, Tensor]) -> ResNet:
    from torchvision.models import resnet50  # seconds, which runs without a regression need not spend

    with torch.device("meta"):  # without drawing 25 million random weights
        backbone = resnet50(num_classes=1)
    backbone.fc = nn.Identity()
    own = {name.removeprefix("backbone."): value for name, value in weights.items() if name.startswith("backbone.")}
    try:
        backbone.load_state_dict(own, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"the checkpoint's backbone is no ResNet-50: {lines[min(1, len(lines) - 1)]}") from error
    return backbone.eval()


def _load_heads(weights: Mapping[str, Tensor]) -> nn.Linear:
    """Build one linear layer from the seven 1x1 convolutions."""
    rows, offsets = [], []
    for i, width in enumerate(_HEAD_WIDTHS):
        row, offset = weights.get(f"final_layers.{i}.weight"), weights.get(f"final_layers.{i}.bias")
        shapes = [None if value is None else tuple(value.shape) for value in (row, offset)]
        if row is None or offset is None or shapes != [(width, _FEATURES, 1, 1), (width,)]:
            raise ValueError(f"the checkpoint's head {i} must be a 1x1 convolution to {width} values, got {shapes}")
        rows.append(row.flatten(1))
        offsets.append(offset)
    head = nn.Linear(_FEATURES, NUM_COEFFICIENTS, device="meta")
    head.load_state_dict({"weight": torch.cat(rows).float(), "bias": torch.cat(offsets).float()}, assign=True)
    return head


def _fold_block(block: Any) -> nn.Module:
    """Fold the batch normalisations of a torchvision ``Bottleneck`` into its convolutions."""
    for i in (1, 2, 3):
        setattr(block, f"conv{i}", _fold(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")))
        setattr(block, f"bn{i}", nn.Identity())
    if block.downsample is not None:
        block.downsample = _fold(*block.downsample)
    return block


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    return fusion.fuse_conv_bn_eval(conv.double().eval(), norm.double().eval()).float()
