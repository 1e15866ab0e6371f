"""A post-net that is trained from the task ``postnet`` brings a generator's motion nearer to one person's.

A generator that learned from a corpus moves an average face. GeneFace (Ye et al., 2023) refines its motion for one
person: on the person's few clips by their true motion, and on the corpus, which says much more, by a discriminator of
single frames that tells the person from refined motion. Here the generator is a linear regression.

Letters: B clips, T frames, D width of the speech features, M = 204 numbers of ``idexp_lm3d`` (centimetres).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrs3_loader import ShardStream
from lrs3_loader.demo.head import EXPRESSION_MODES
from lrs3_loader.stream import Audio2Motion, PostNet
from support.sync_factory import make_talking_run

pytestmark = pytest.mark.slow

MOUTH = slice(48, 68)
WIDTH = 3 * 68
SCALE = 4.0  # brings motion in centimetres to about 1 for the networks
ADVERSARIAL = 0.05  # weight of the discriminator's opinion
FIELDS = ("hubert", "idexp_lm3d", "valid")
ALONE: dict[str, Any] = {"rank": 0, "world_size": 1}


def person_moves(exp: torch.Tensor) -> torch.Tensor:
    """The person opens the mouth wider than others, hardly puckers, and smiles with one side."""
    changed = exp.clone()
    changed[:, EXPRESSION_MODES.index("jaw_open")] *= 1.5
    changed[:, EXPRESSION_MODES.index("lip_pucker")] *= 0.3
    changed[:, EXPRESSION_MODES.index("smile_left")] = 0.6
    return changed.clamp(0, 1)


def is_trained_on(key: str) -> bool:
    return int(key.rsplit("/", 1)[1]) >= 4


def is_held_out(key: str) -> bool:
    return not is_trained_on(key)


@dataclass(frozen=True)
class Generator:
    """Motion [B, T, M] from speech features [B, 2T, D]: a linear function of windows of 10 rows."""

    weights: torch.Tensor  # [10 D + 1, M]

    @classmethod
    def of_corpus(cls, run: Path) -> Generator:
        batches = list(ShardStream(run, Audio2Motion(fields=FIELDS), batch_size=8, **ALONE))
        rows = torch.cat([cls.windows(batch["hubert"])[batch["y_mask"] == 1] for batch in batches]).double()
        motion = torch.cat([batch["idexp_lm3d"][batch["y_mask"] == 1] for batch in batches]).double()
        damped = rows.T @ rows + 10 * torch.eye(rows.shape[1], dtype=torch.float64)
        return cls(torch.linalg.solve(damped, rows.T @ motion).float())

    @staticmethod
    def windows(hubert: torch.Tensor) -> torch.Tensor:
        padded = F.pad(hubert, (0, 0, 4, 4), value=float(hubert.min()))
        rows = padded.unfold(1, 10, 2).flatten(2)
        return torch.cat([rows, torch.ones(*rows.shape[:2], 1)], dim=2)

    def __call__(self, batch: dict[str, Any]) -> torch.Tensor:
        return self.windows(batch["hubert"]) @ self.weights


class Refiner(nn.Module):
    """Adds to motion [B, T, M] what convolutions over 9 frames find to be missing; nothing before it is trained."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((WIDTH, 64), (64, 64), (64, 64))
        layers = [layer for a, b in widths for layer in (nn.Conv1d(a, b, 3, padding=1), nn.LeakyReLU(0.02))]
        self.layers = nn.Sequential(*layers, nn.Conv1d(64, WIDTH, 1))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        return motion + self.layers(SCALE * motion.transpose(1, 2)).transpose(1, 2) / SCALE


def make_discriminator() -> nn.Module:
    """Scores of single frames [..., M]: towards 1 for the person, towards 0 for refined motion."""
    return nn.Sequential(
        nn.Linear(WIDTH, 64), nn.LeakyReLU(0.02), nn.Linear(64, 64), nn.LeakyReLU(0.02), nn.Linear(64, 1)
    )


def items_of(stream: ShardStream) -> Iterator[dict[str, Any]]:
    for epoch in count():
        stream.set_epoch(epoch)
        yield from stream


def train(generator: Generator, stream: ShardStream, adversarial: float, num_steps: int = 250) -> Refiner:
    """Least squares to the person's motion, and a least-squares GAN (Mao et al., 2017) with a weight."""
    torch.manual_seed(0)
    refiner, discriminator = Refiner(), make_discriminator()
    optimizer, opponent = (torch.optim.Adam(net.parameters(), 1e-3, (0.5, 0.99)) for net in (refiner, discriminator))
    for _, item in zip(range(num_steps), items_of(stream), strict=False):
        corpus, person = item["corpus"], item["person"]
        of_corpus, of_person = corpus["y_mask"] == 1, person["y_mask"] == 1
        truth = SCALE * person["idexp_lm3d"][of_person]
        refined = SCALE * refiner(generator(corpus))[of_corpus]
        step(opponent, (discriminator(truth) - 1).square().mean() + discriminator(refined.detach()).square().mean())
        missing = SCALE * refiner(generator(person))[of_person] - truth
        step(optimizer, missing.square().mean() + adversarial * (discriminator(refined) - 1).square().mean())
    return refiner.eval()


def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@dataclass(frozen=True)
class Runs:
    corpus: Path
    person: Path

    def pairs(self, person: Path | None = None) -> ShardStream:
        """Batches of the corpus, beside the person's clips that are trained on, or beside those of another run."""
        return ShardStream(
            self.corpus,
            PostNet(fields=(*FIELDS, "pose")),
            batch_size=8,
            crop_frames=48,
            person=person or self.person,
            person_select=is_trained_on,
            **ALONE,
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    corpus = make_talking_run(folder / "corpus", num_speakers=10, clips_per_speaker=6)
    person = make_talking_run(folder / "person", 1, 16, first_speaker=31, habit=person_moves)
    return Runs(Path(corpus.path), Path(person.path))


@pytest.fixture(scope="module")
def generator(runs: Runs) -> Generator:
    return Generator.of_corpus(runs.corpus)


@pytest.fixture(scope="module")
def refiner(runs: Runs, generator: Generator) -> Refiner:
    return train(generator, runs.pairs(), ADVERSARIAL)


@torch.no_grad()
def motion_of(
    run: Path, generator: Generator, refiner: Refiner | None, select: Callable[[str], bool] | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The generated and the true motion of each clip, both [T, 68, 3] in millimetres."""
    pairs = []
    for batch in ShardStream(run, Audio2Motion(fields=FIELDS), batch_size=1, shuffle=False, select=select, **ALONE):
        motion = generator(batch) if refiner is None else refiner(generator(batch))
        found, truth = (10 * part[batch["y_mask"] == 1].unflatten(1, (68, 3)) for part in (motion, batch["idexp_lm3d"]))
        pairs.append((found, truth))
    return pairs


def mouth_error(runs: Runs, generator: Generator, refiner: Refiner | None) -> tuple[float, float]:
    """Mean distance of the mouth's landmarks to the truth in the person's held-out clips, in mm.

    The second figure is that of the movement alone: about the mean shape of each clip.
    """
    missing = [(found - truth)[:, MOUTH] for found, truth in motion_of(runs.person, generator, refiner, is_held_out)]
    moving = [clip - clip.mean(0) for clip in missing]
    at_all, moving_alone = (float(torch.cat(clips).norm(dim=-1).mean()) for clips in (missing, moving))
    return at_all, moving_alone


def distance_to_person(runs: Runs, generator: Generator, refiner: Refiner | None) -> float:
    """How far the mean face of the refined corpus is from the person's, in mm: a domain is that, first of all."""
    refined = torch.cat([found for found, _ in motion_of(runs.corpus, generator, refiner)]).mean(0)
    truth = torch.cat([truth for _, truth in motion_of(runs.person, generator, None)]).mean(0)
    return float((refined - truth).norm(dim=-1).mean())


def test_held_out_clips_of_the_person_come_nearer_to_the_truth(
    runs: Runs, generator: Generator, refiner: Refiner
) -> None:
    before, moving_before = mouth_error(runs, generator, None)
    after, moving_after = mouth_error(runs, generator, refiner)
    assert after < 0.4 * before  # 1.1 of 4.9 mm
    assert moving_after < 0.6 * moving_before  # 1.0 of 2.2 mm: not only the shape of the face


def test_without_the_persons_clips_they_do_not(runs: Runs, generator: Generator) -> None:
    before, moving_before = mouth_error(runs, generator, None)
    stranger = train(generator, runs.pairs(person=runs.corpus), ADVERSARIAL)
    after, moving_after = mouth_error(runs, generator, stranger)
    assert after > 0.85 * before
    assert moving_after > 0.85 * moving_before


def test_the_discriminator_brings_what_the_corpus_says_nearer_to_the_person(
    runs: Runs, generator: Generator, refiner: Refiner
) -> None:
    before = distance_to_person(runs, generator, None)
    supervised = distance_to_person(runs, generator, train(generator, runs.pairs(), adversarial=0.0))
    after = distance_to_person(runs, generator, refiner)
    assert after < 0.8 * supervised < 0.8 * before  # 0.4, 0.8 and 3.9 mm


def test_the_same_arguments_train_the_same_refiner(runs: Runs, generator: Generator) -> None:
    first, second = (train(generator, runs.pairs(), ADVERSARIAL, num_steps=5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
