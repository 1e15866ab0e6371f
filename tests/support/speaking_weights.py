"""Random weights with the names and shapes of LR-ASD's published ones, and its computation written the slow way."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDTHS = ((1, 16, 32), (32, 32, 64), (64, 64, 128))
EPSILON = 1e-3


def speaking_weights(seed: int = 0) -> dict[str, Tensor]:
    """A table of tensors as in ``finetuning_TalkSet.model``, scaled so that activations neither die out nor explode."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    def add(layer: str, norm: str, shape: tuple[int, ...]) -> None:
        weights[f"{layer}.weight"] = draw(*shape, scale=(2 / torch.Size(shape[1:]).numel()) ** 0.5)
        weights[f"{norm}.weight"] = 1 + draw(shape[0], scale=0.1)
        weights[f"{norm}.bias"] = draw(shape[0], scale=0.1)
        weights[f"{norm}.running_mean"] = draw(shape[0], scale=0.1)
        weights[f"{norm}.running_var"] = 1 + draw(shape[0], scale=0.1).abs()
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    for block, (width, between, out) in enumerate(_WIDTHS, 1):
        for encoder, spatial, sizes in (
            ("visual", "s", ((1, 5, 5), (1, 3, 3), (5, 1, 1), (3, 1, 1))),
            ("audio", "m", ((5, 1), (3, 1), (1, 5), (1, 3))),
        ):
            prefix = f"model.{encoder}Encoder.block{block}"
            names = (f"{spatial}_1", f"{spatial}_2", "t_1", "t_2")
            channels = ((between, width), (out, between), (out, out), (out, out))
            for name, (to, of), size in zip(names, channels, sizes, strict=True):
                add(f"{prefix}.{name}", f"{prefix}.{name.replace('_', '_norm_')}", (to, of, *size))
    add("model.fusion.attention", "model.fusion.bn", (256, 256, 1))
    add("model.detector.attention.attention", "model.detector.attention.bn", (128, 128, 1))
    for direction in ("forward", "backward"):
        for name, shape in (("weight_ih_l0", (192, 256)), ("weight_hh_l0", (192, 64)), ("bias_ih_l0", (192,)), ("bias_hh_l0", (192,))):  # fmt: skip  # noqa: E501
            weights[f"model.detector.gru_{direction}.{name}"] = draw(*shape, scale=0.06)
    for head in ("lossAV", "lossV"):
        weights |= {f"{head}.FC.weight": draw(2, 128, scale=0.1), f"{head}.FC.bias": draw(2, scale=0.1)}
    return weights


def slow_scores(weights: Mapping[str, Tensor], faces: Tensor, mfcc: Tensor) -> Tensor:
    """Scores [T] of one clip, faces u8 [T, 112, 112] and mfcc [4 T, 13], layer by layer in f64, nothing folded."""
    table = {name: value.double() for name, value in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, gain, offset = (
            table[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, gain, offset, eps=EPSILON)

    def encode(x: Tensor, encoder: str, spatial: str) -> Tensor:
        for block in (1, 2, 3):
            prefix = f"model.{encoder}Encoder.block{block}"
            for name in (f"{spatial}_1", f"{spatial}_2", "t_1", "t_2"):
                weight = table[f"{prefix}.{name}.weight"]
                padding = [size // 2 for size in weight.shape[2:]]
                halved = (1, 2, 2) if weight.shape[1:] == (1, 1, 5, 5) else 1
                convolve = F.conv3d if weight.ndim == 5 else F.conv2d
                x = convolve(x, weight, stride=halved, padding=padding)
                x = norm(x, f"{prefix}.{name.replace('_', '_norm_')}").relu()
            if block < 3 and encoder == "visual":
                x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
            elif block < 3:
                x = F.max_pool2d(x, (1, 3), (1, 2), (0, 1))
        return x

    def attend(x: Tensor, name: str) -> Tensor:  # x: [T, C]
        scores = F.conv1d(x.T[None], table[f"{name}.attention.weight"])
        return x * norm(scores, f"{name}.bn").sigmoid()[0].T

    def recur(x: Tensor, name: str) -> Tensor:  # equations of a GRU, step by step
        w_input, w_hidden, b_input, b_hidden = (
            table[f"{name}.{part}"] for part in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        )
        state, states = x.new_zeros(64), []
        for row in x:
            reset_x, update_x, new_x = (w_input @ row + b_input).chunk(3)
            reset_h, update_h, new_h = (w_hidden @ state + b_hidden).chunk(3)
            update = (update_x + update_h).sigmoid()
            new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
            state = (1 - update) * new + update * state
            states.append(state)
        return torch.stack(states)

    images = (faces.double() / 255 - 0.4161) / 0.1688
    seen = encode(images[None, None], "visual", "s").amax((3, 4))[0].T
    heard = encode(mfcc.double().T[None, None], "audio", "m").mean(2)[0].T
    x = attend(torch.cat([heard, seen], 1), "model.fusion")
    forward = recur(x, "model.detector.gru_forward")
    backward = recur(x.flip(0), "model.detector.gru_backward").flip(0)
    x = attend(torch.cat([forward, backward], 1), "model.detector.attention")
    return (x @ table["lossAV.FC.weight"].T + table["lossAV.FC.bias"])[:, 1]
