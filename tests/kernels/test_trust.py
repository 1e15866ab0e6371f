"""Fast kernels are used if they prove equal, and otherwise plain ones, which is said once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.stand_in import Record
from lrs3_loader.doctor import trial
from lrs3_loader.errors import RunError
from lrs3_loader.kernels import convolution
from lrs3_loader.kernels.trust import FastPath, choose_kernels

pytestmark = pytest.mark.smoke

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
NUMBERS = torch.linspace(-1, 1, 11)


class Model:
    """Computes ``NUMBERS``; the fast path computes them by a function of its own."""

    def __init__(self, fast: Callable[[], Tensor], name: str = "a model") -> None:
        self.is_fast = False
        self.path = FastPath(name, self.use, lambda: [fast() if self.is_fast else NUMBERS], 1e-3)

    def use(self, wanted: bool) -> None:
        self.is_fast = wanted


def fails() -> Tensor:
    raise OSError("no compiler\nanywhere")


def test_equal_results_are_trusted() -> None:
    models = [Model(lambda: NUMBERS + 1e-4), Model(lambda: NUMBERS)]
    assert choose_kernels("auto", [model.path for model in models], GPU) == "fast"
    assert all(model.is_fast for model in models)


@pytest.mark.parametrize(
    ("fast", "reason"),
    [
        (lambda: NUMBERS + 1e-2, "another model: results are off by 0.016 of the deviation, more than 0.001"),
        (lambda: NUMBERS / 0, "off by (nan|inf)"),
        (lambda: NUMBERS[:-1], "The size of tensor|off by nan"),
        (fails, "another model: OSError: no compiler"),
    ],
)
def test_all_are_plain_if_one_is_not(fast: Callable[[], Tensor], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    models = [Model(lambda: NUMBERS), Model(fast, "another model")]
    paths = [model.path for model in models]
    assert choose_kernels("auto", paths, GPU) == "plain"
    assert not any(model.is_fast for model in models)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    with pytest.raises(RunError, match=reason):
        choose_kernels("fast", paths, GPU)


def test_plain_is_not_tried(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(fails)
    model.is_fast = True
    assert choose_kernels("plain", [model.path], GPU) == "plain"
    assert not model.is_fast
    assert not caplog.records


def test_a_cpu_has_plain_ones() -> None:
    assert choose_kernels("auto", [Model(fails).path], CPU) == "plain"
    with pytest.raises(RunError, match="--kernels fast needs a GPU"):
        choose_kernels("fast", [], CPU)


def test_the_doctor_tries_them(stand_in: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial.check_kernels().level == "ok"
    assert any(kernel.op == "residual_block" for kernel in stand_in.kernels)

    def wrong(*arguments: object) -> Sequence[Tensor]:
        return [1.1 * result for result in convolution.plain_residual_block(*arguments)]  # type: ignore[arg-type]

    monkeypatch.setattr(convolution, "residual_block", wrong)
    check = trial.check_kernels()
    assert (check.level, check.remedy != "") == ("warn", True)
    assert "results are off by 0.1" in check.text
