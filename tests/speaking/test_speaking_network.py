"""The active-speaker network: the published scores, a slow reference, padding, and files that are something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lrs3_loader.errors import RunError
from lrs3_loader.speaking import SpeakingNetwork
from lrs3_loader.speaking.network import CONTEXT_FRAMES
from support.speaking_weights import slow_scores, speaking_weights


def draw_clip(num_frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Faces u8 [T, 112, 112] and MFCC [4 T, 13] of the usual range."""
    generator = torch.Generator().manual_seed(seed)
    faces = torch.randint(0, 256, (num_frames, 112, 112), dtype=torch.uint8, generator=generator)
    return faces, torch.randn(4 * num_frames, 13, generator=generator) * 10


@pytest.fixture(scope="module")
def network() -> SpeakingNetwork:
    return SpeakingNetwork(speaking_weights())


def test_equals_the_published_scores(shared_assets: Path) -> None:
    network = SpeakingNetwork.load(shared_assets / "lr_asd" / "finetuning_TalkSet.model")
    gold = np.load(shared_assets / "lr_asd" / "gold.npz")
    clips = sorted(name.removesuffix("_v") for name in gold if name.endswith("_v"))
    assert clips
    for clip in clips:
        faces, mfcc = (torch.from_numpy(gold[f"{clip}_{part}"])[None] for part in "va")
        scores = network(faces, mfcc)
        assert scores.shape == faces.shape[:2]
        np.testing.assert_allclose(scores[0].numpy(), gold[f"{clip}_s"], rtol=0, atol=1e-4)


@pytest.mark.smoke
def test_equals_the_slow_reference(network: SpeakingNetwork) -> None:
    faces, mfcc = draw_clip(7, seed=1)
    expected = slow_scores(speaking_weights(), faces, mfcc)
    assert expected.std() > 1e-2  # the frames differ
    np.testing.assert_allclose(network(faces[None], mfcc[None])[0].numpy(), expected.numpy(), rtol=0, atol=1e-5)
    assert torch.equal(network(faces[None], mfcc[None].double()), network(faces[None], mfcc[None]))


def test_a_clip_scores_the_same_beside_longer_ones(network: SpeakingNetwork) -> None:
    lengths = [5, 12, 1, 8]
    clips = [draw_clip(length, seed) for seed, length in enumerate(lengths)]
    # Padding that is not zero must not matter either.
    faces = torch.full((4, 12, 112, 112), 255, dtype=torch.uint8)
    mfcc = torch.full((4, 48, 13), 50.0)
    for number, (own_faces, own_mfcc) in enumerate(clips):
        faces[number, : len(own_faces)], mfcc[number, : len(own_mfcc)] = own_faces, own_mfcc
    together = network(faces, mfcc, torch.tensor(lengths))
    for number, (own_faces, own_mfcc) in enumerate(clips):
        alone = network(own_faces[None], own_mfcc[None])[0]
        torch.testing.assert_close(together[number, : lengths[number]], alone, rtol=0, atol=1e-5)


def test_face_features_depend_on_so_many_frames_around(network: SpeakingNetwork) -> None:
    """What lets a long clip be encoded piece by piece."""
    faces, _ = draw_clip(2 * CONTEXT_FRAMES + 3, seed=2)
    middle = CONTEXT_FRAMES + 1
    other = faces.clone()
    other[0], other[-1] = 255 - other[0], 255 - other[-1]
    length = torch.tensor([len(faces)])
    first, second = (network.encode_faces(clip[None], length)[0] for clip in (faces, other))
    torch.testing.assert_close(first[middle], second[middle], rtol=0, atol=0)
    assert not torch.equal(first[middle - 1], second[middle - 1])
    assert not torch.equal(first[middle + 1], second[middle + 1])


def test_wrong_arguments_are_named(network: SpeakingNetwork) -> None:
    faces, mfcc = draw_clip(3, seed=0)
    with pytest.raises(ValueError, match="faces must be u8"):
        network(faces[None].float(), mfcc[None])
    with pytest.raises(ValueError, match="faces must be u8"):
        network(faces[None, :, :100], mfcc[None])
    with pytest.raises(ValueError, match=r"mfcc must be \[1, 12, 13\], got \[1, 11, 13\]"):
        network(faces[None], mfcc[None, 1:])


def test_other_files_are_refused(tmp_path: Path) -> None:
    good = speaking_weights()
    path = tmp_path / "finetuning_TalkSet.model"
    torch.save(good, path)
    assert isinstance(SpeakingNetwork.load(path), SpeakingNetwork)
    bad = {
        "model.fusion.bn.running_var is missing": {k: v for k, v in good.items() if k != "model.fusion.bn.running_var"},
        "lossAV.FC.weight must be a tensor": good | {"lossAV.FC.weight": torch.zeros(2, 64)},
        "holds no table of tensors": {"model": good},
    }
    for message, content in bad.items():
        torch.save(content, path)
        with pytest.raises(RunError, match="does not hold LR-ASD's weights") as error:
            SpeakingNetwork.load(path)
        assert message.split()[0] in str(error.value)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(RunError, match="does not hold LR-ASD's weights"):
        SpeakingNetwork.load(path)
    with pytest.raises(RunError, match="nowhere"):
        SpeakingNetwork.load(tmp_path / "nowhere")


@pytest.mark.gpu
def test_gpu_equals_cpu(network: SpeakingNetwork) -> None:
    faces, mfcc = draw_clip(20, seed=3)
    on_gpu = SpeakingNetwork(speaking_weights()).cuda()
    found = on_gpu(faces[None].cuda(), mfcc[None].cuda()).cpu()
    torch.testing.assert_close(found, network(faces[None], mfcc[None]), rtol=0, atol=1e-4)
