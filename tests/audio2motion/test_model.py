"""The generator is indifferent to padding and company, and its flow goes there and back without changing volumes."""

from __future__ import annotations

import pytest
import torch

from lrs3_loader.audio2motion.flow import FlowPrior
from lrs3_loader.audio2motion.layers import TemporalStack, dilations
from lrs3_loader.audio2motion.loss import LossWeights, motion_loss, sync_loss
from lrs3_loader.audio2motion.model import SIZES, AveragedMotionModel, MotionModel, reference_of
from lrs3_loader.stream.tasks import pad
from lrs3_loader.syncnet.model import SyncNetModel

WIDTH = 6


@pytest.fixture(scope="module")
def model() -> MotionModel:
    torch.manual_seed(0)
    made = MotionModel(WIDTH, 204, SIZES["demo"]).eval()
    for parameter in made.parameters():  # also those that begin as zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def make_batch(lengths: list[int], frames: int | None = None) -> dict[str, torch.Tensor]:
    """A batch of task "audio2motion"; clip i has the same numbers in every batch."""
    longest = frames or -(-max(lengths) // 4) * 4
    clips = [torch.Generator().manual_seed(number) for number in range(len(lengths))]
    speech = [torch.randn(2 * n, WIDTH, generator=g).numpy() for n, g in zip(lengths, clips, strict=True)]
    f0 = [
        (100 + 50 * torch.randn(2 * n, generator=g)).clamp_min(0).numpy() for n, g in zip(lengths, clips, strict=True)
    ]
    motion = [torch.randn(n, 204, generator=g).numpy() for n, g in zip(lengths, clips, strict=True)]
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).float()
    return {
        "hubert": pad(speech, 2 * longest),
        "f0": pad(f0, 2 * longest),
        "idexp_lm3d": pad(motion, longest),
        "y_mask": mask,
        "x_mask": mask.repeat_interleave(2, 1),
        "valid": mask.clone(),
        "y_lengths": torch.tensor(lengths),
    }


def motions(model: MotionModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Best estimates [B, T, 204] of all clips of a batch."""
    mask = batch["y_mask"][..., None]
    reference = reference_of(batch["idexp_lm3d"], batch["valid"][..., None])
    inputs = model.speech_inputs(batch["hubert"], batch["f0"], batch["x_mask"][..., None])
    condition = model.condition(inputs, mask)
    noise = torch.zeros(len(mask), mask.shape[1] // 4, model.size.latent)
    return model.decode(model.draw(noise, condition, mask), reference, condition, mask)


@pytest.mark.parametrize("num_frames", [1, 3, 4, 30, 101])
def test_any_number_of_frames_gives_as_many(model: MotionModel, num_frames: int) -> None:
    speech = torch.randn(2 * num_frames, WIDTH)
    motion = model.generate(speech, torch.full((2 * num_frames,), 120.0))
    assert motion.shape == (num_frames, 204)
    assert motion.dtype == torch.float32
    assert torch.isfinite(motion).all()


@torch.no_grad()
def test_a_clip_gives_in_company_and_padded_what_it_gives_alone(model: MotionModel) -> None:
    lengths = [30, 57, 8]
    together = motions(model, make_batch(lengths, frames=80))
    batch = make_batch(lengths)
    for number, length in enumerate(lengths):
        reference = batch["idexp_lm3d"][number, :length].mean(0)
        rows, f0 = batch["hubert"][number, : 2 * length], batch["f0"][number, : 2 * length]
        alone = model.generate(rows, f0, reference, temperature=0.0)
        torch.testing.assert_close(together[number, :length], alone, atol=1e-5, rtol=1e-5)


def test_what_lies_in_the_padding_does_not_change_the_loss(model: MotionModel) -> None:
    losses = []
    for junk in (0.0, 7.0):
        batch = make_batch([30, 57])
        batch["idexp_lm3d"] = batch["idexp_lm3d"] + junk * (1 - batch["y_mask"][..., None])
        batch["hubert"] = batch["hubert"] + junk * (1 - batch["x_mask"][..., None])
        torch.manual_seed(3)
        losses.append(motion_loss(model, batch, "hubert", "idexp_lm3d", LossWeights(0.1, 1.0, 0.0), None)["loss"])
    torch.testing.assert_close(*losses)


def test_frames_without_a_face_are_no_target(model: MotionModel) -> None:
    def estimate(change: float) -> torch.Tensor:
        batch = make_batch([40])
        batch["valid"][0, 10:14] = 0
        batch["idexp_lm3d"][0, 10:14] += change
        return motion_loss(model, batch, "hubert", "idexp_lm3d", LossWeights(0.1, 1.0, 0.0), None)["estimate"]

    torch.testing.assert_close(estimate(0.0), estimate(5.0))


def test_the_seed_and_the_temperature_decide_the_sample(model: MotionModel) -> None:
    speech = torch.randn(40, WIDTH)
    first = model.generate(speech, seed=1)
    assert torch.equal(first, model.generate(speech, seed=1))
    assert not torch.equal(first, model.generate(speech, seed=2))
    best = model.generate(speech, seed=1, temperature=0.0)
    assert torch.equal(best, model.generate(speech, seed=2, temperature=0.0))
    assert not torch.equal(first, best)


def test_without_a_reference_it_is_that_of_the_people_trained_on(model: MotionModel) -> None:
    model.reference_mean.fill_(0.5)
    speech = torch.randn(40, WIDTH)
    assert torch.equal(model.generate(speech), model.generate(speech, reference=torch.full((204,), 0.5)))
    shift = model.generate(speech, reference=torch.full((204,), 3.0)).mean() - model.generate(speech).mean()
    assert float(shift) == pytest.approx(2.5, abs=1.0)
    model.reference_mean.zero_()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speech": torch.zeros(7, WIDTH)}, r"speech must be \[2T, 6\] with T > 0, got \[7, 6\]"),
        ({"speech": torch.zeros(8, WIDTH + 1)}, r"got \[8, 7\]"),
        ({"speech": torch.zeros(0, WIDTH)}, r"got \[0, 6\]"),
        ({"speech": torch.zeros(8, WIDTH), "f0": torch.zeros(4)}, r"f0 must be \[8\].*got \[4\]"),
        ({"speech": torch.zeros(8, WIDTH), "reference": torch.zeros(3)}, r"reference must be \[204\], got \[3\]"),
        ({"speech": torch.zeros(8, WIDTH), "temperature": -1.0}, "temperature must be at least 0, got -1.0"),
    ],
)
def test_wrong_arguments_are_named(model: MotionModel, arguments: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(**arguments)


def test_speech_is_normalised_by_the_training_data_and_the_clip() -> None:
    made = MotionModel(WIDTH, 204, SIZES["demo"])
    batch = make_batch([40, 60, 52])
    batch["hubert"] = (3 * batch["hubert"] + 10) * batch["x_mask"][..., None]
    made.set_normalization([batch], "hubert", "idexp_lm3d")
    inputs = made.speech_inputs(batch["hubert"], batch["f0"], batch["x_mask"][..., None])
    for clip, length in zip(inputs, (40, 60, 52), strict=True):
        torch.testing.assert_close(clip[: 2 * length, :WIDTH].mean(0), torch.zeros(WIDTH), atol=1e-5, rtol=0)
        assert not clip[2 * length :].any()
    true = inputs[batch["x_mask"] > 0]
    torch.testing.assert_close(true[:, :WIDTH].square().mean(0), torch.ones(WIDTH), rtol=0.05, atol=0.05)
    assert set(true[:, WIDTH].tolist()) == {0.0, 1.0}
    assert not true[true[:, WIDTH] == 0, WIDTH + 1].any()
    assert float(made.motion_deviation) == pytest.approx(1.0, abs=0.05)


@torch.no_grad()
def test_the_average_follows_the_weights() -> None:
    network = AveragedMotionModel(MotionModel(WIDTH, 204, SIZES["demo"]))
    weight, averaged = network.model.decoder.last.bias, network.averaged.decoder.last.bias
    values = []
    for value in (1.0, 2.0, 5.0):
        weight.fill_(value)
        network.update()
        values.append(float(averaged[0]))
    decay = SIZES["demo"].average_decay
    second = decay * 1.0 + (1 - decay) * 2.0
    assert values == pytest.approx([1.0, second, decay * second + (1 - decay) * 5.0])
    assert not any(parameter.requires_grad for parameter in network.averaged.parameters())


def test_features_and_pitch_are_hidden_in_training_only() -> None:
    torch.manual_seed(0)
    made = MotionModel(WIDTH, 204, SIZES["demo"])
    seen: list[torch.Tensor] = []
    made.speech_encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    made.train().condition(torch.ones(200, 8, WIDTH + 2), torch.ones(200, 4, 1))
    made.eval().condition(torch.ones(1, 8, WIDTH + 2), torch.ones(1, 4, 1))
    assert (seen[1] == 1).all()
    hidden = (seen[0].unflatten(-1, (2, -1)) == 0).flatten(1, 2)  # [clips, rows, features]
    assert torch.equal(hidden.all(1), hidden.any(1)), "for all of a clip or not at all"
    assert float(hidden[..., :WIDTH].float().mean()) == pytest.approx(SIZES["demo"].dropout, abs=0.05)
    assert float(hidden[..., WIDTH].float().mean()) == pytest.approx(0.2, abs=0.1)
    assert torch.equal(hidden[..., WIDTH], hidden[..., WIDTH + 1])


@torch.no_grad()
def test_the_flow_goes_there_and_back_and_keeps_volumes() -> None:
    torch.manual_seed(0)
    flow = FlowPrior(4, 3, num_layers=3, width=8)
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    latent, condition, mask = torch.randn(2, 5, 4), torch.randn(2, 5, 3), torch.ones(2, 5, 1)
    noise = flow.to_noise(latent, condition, mask)
    assert not torch.allclose(noise, latent, atol=0.1)
    torch.testing.assert_close(flow.to_latent(noise, condition, mask), latent, atol=1e-5, rtol=1e-5)
    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(
            lambda z: flow.to_noise(z.view(1, 5, 4), condition[:1], mask[:1]).flatten(), latent[0].flatten()
        )
    assert float(torch.linalg.slogdet(jacobian).logabsdet) == pytest.approx(0, abs=1e-4)
    with pytest.raises(ValueError, match="even number of channels, got 3"):
        FlowPrior(3, 3, 1, 8)


@torch.no_grad()
def test_layers_see_as_far_as_their_dilations_reach() -> None:
    torch.manual_seed(0)
    stack = TemporalStack(2, 2, 8, dilations(4), 0.0).eval()
    x, mask = torch.randn(1, 41, 2), torch.ones(1, 41, 1)
    changed = x.clone()
    changed[0, 20] += 1
    moved = (stack(changed, mask) - stack(x, mask)).abs().sum(-1)[0] > 1e-7
    assert moved.nonzero().flatten().tolist() == list(range(20 - 8, 20 + 9))  # 1 + 2 + 4 + 1


def test_the_experts_loss_is_that_of_its_windows_and_moves_the_motion_only() -> None:
    torch.manual_seed(0)
    expert = SyncNetModel(WIDTH, width=8).requires_grad_(False)
    batch = make_batch([5, 9, 3])
    motion = batch["idexp_lm3d"].clone().requires_grad_()
    loss = sync_loss(expert, motion[:1], batch["hubert"][:1], batch["y_lengths"][:1])  # one window only
    mouth = batch["idexp_lm3d"][0, :5].view(5, 68, 3)[:, 48:68].reshape(1, 5, 60)
    torch.testing.assert_close(loss, torch.nn.functional.softplus(-expert(mouth, batch["hubert"][:1, :10]))[0])
    sync_loss(expert, motion, batch["hubert"], batch["y_lengths"]).backward()
    assert motion.grad is not None
    moved = motion.grad.view(3, -1, 68, 3).abs().sum((1, 3)) > 0
    assert moved[:2, 48:].all()
    assert not moved[:, :48].any()
    assert not moved[2].any(), "a clip shorter than a window has none"
    assert all(parameter.grad is None for parameter in expert.parameters())
