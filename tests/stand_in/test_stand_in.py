"""The stand-in device computes what the host does, refuses what CUDA refuses, and counts what it is asked to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.stand_in import KernelCounter, Record, hollow, stand_in_device, why_not
from lrs3_loader.audio.mel import MelSpectrogram
from lrs3_loader.extraction.upload import upload
from lrs3_loader.runtime.pipelining import BackgroundTask
from lrs3_loader.runtime.transfer import HostCopy, to_device
from support.factory import make_chunk, make_clip

CUDA = torch.device("cuda:0")


def on_device() -> torch.Tensor:
    return torch.arange(6.0).view(2, 3).to(CUDA)


def test_it_says_that_it_is_a_gpu_and_leaves_no_trace(stand_in: Record) -> None:
    assert torch.cuda.is_available()
    assert on_device().is_cuda
    assert on_device().device == CUDA
    assert torch.zeros(2, device="cuda").device == CUDA
    assert torch.tensor([1, 2], device="cuda").tolist() == [1, 2]
    assert on_device().cpu().numpy().sum() == 15


def test_after_the_block_there_is_none() -> None:
    if reason := why_not():
        pytest.skip(reason)
    before = torch.Tensor.pin_memory, torch.inference_mode.__enter__, torch.cuda.current_stream
    with stand_in_device():
        pass
    assert not torch.cuda.is_available()
    assert (torch.Tensor.pin_memory, torch.inference_mode.__enter__, torch.cuda.current_stream) == before


REFUSED = {
    "two memories": lambda d: d + torch.ones(3),
    "a product of two memories": lambda d: d @ torch.ones(3, 2),
    "a join of two memories": lambda d: torch.cat([d, torch.ones(2, 3)]),
    "indices on the host": lambda d: d.index_select(0, torch.tensor([0])),
    "a mask on the device for the host": lambda d: torch.ones(2, 3)[d > 1],
    "a host tensor that is changed": lambda d: torch.ones(()).add_(d.sum()),
    "values from the host": lambda d: d.index_put_((torch.tensor([0, 1], device=CUDA),), torch.ones(2, 3)),
    "a network on the host": lambda d: nn.Linear(3, 2)(d),
    "integer products": lambda d: d.long() @ d.long().T,
    "numpy": lambda d: d.numpy(),
    "pinned device memory": lambda d: d.pin_memory(),
    "attention": lambda d: F.scaled_dot_product_attention(d[None], d[None], torch.ones(1, 2, 3)),
}


@pytest.mark.parametrize("operation", REFUSED.values(), ids=REFUSED)
def test_what_cuda_refuses_is_refused(stand_in: Record, operation: Any) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        operation(on_device())


def test_host_scalars_and_host_indices_are_taken(stand_in: Record) -> None:
    d = on_device()
    assert torch.equal((d * torch.tensor(2.0)).cpu(), 2 * torch.arange(6.0).view(2, 3))
    assert d[torch.tensor([1])].cpu().tolist() == [[3, 4, 5]]
    assert torch.where(d > 1, d, torch.tensor(0.0)).sum().item() == 14


WAITING = {
    "item": lambda d: d.sum().item(),
    "bool": lambda d: bool(d.any()),
    "float": lambda d: float(d[0, 0]),
    "tolist": lambda d: d.tolist(),
    "cpu": lambda d: d.cpu(),
    "nonzero": lambda d: d.nonzero(),
    "mask": lambda d: d[d > 1],
    "list": lambda d: d[[0, 1]],
    "repeat_interleave": lambda d: d.repeat_interleave(torch.tensor([1, 2], device=CUDA).long(), 0),
    "synchronize": lambda d: torch.cuda.synchronize(),
    "not pinned": lambda d: torch.ones(3).to(CUDA, non_blocking=True),
}


@pytest.mark.parametrize("operation", WAITING.values(), ids=WAITING)
def test_waits_are_counted_with_the_line_that_waits(stand_in: Record, operation: Any) -> None:
    d = on_device()
    stand_in.clear()
    operation(d)
    assert len(stand_in.waits) >= 1
    assert all("test_stand_in.py:" in wait.place for wait in stand_in.waits)


def test_what_runs_behind_the_host_is_no_wait(stand_in: Record) -> None:
    d = to_device(torch.ones(4, 4), CUDA)
    HostCopy(((d @ d).relu() + d[:, 1:2]).sum(0))
    assert stand_in.waits == []


def test_kernels_bytes_and_flops(stand_in: Record) -> None:
    a, b = torch.ones(8, 16, device=CUDA), torch.ones(16, 4, device=CUDA, dtype=torch.float32)
    image = torch.ones(2, 3, 8, 8, device=CUDA).bfloat16()
    conv = nn.Conv2d(3, 5, 3, bias=False).to(CUDA).bfloat16()
    stand_in.clear()
    a.T.view(4, 4, 8)  # views are free
    (a @ b).add_(1)
    a[:, :2].index_select(0, torch.tensor([0, 1], device=CUDA))
    conv(image)
    product, added, gathered, convolved = (kernel for kernel in stand_in.kernels if kernel.op != "_to_copy")
    assert (product.op, product.num_bytes, product.num_flops) == ("mm", 4 * (128 + 64 + 32), 2 * 8 * 16 * 4)
    assert (added.op, added.num_bytes, added.is_product) == ("add_", 2 * 4 * 32, False)
    assert (gathered.op, gathered.num_bytes) == ("index_select", 2 * 2 * 2 * 4 + 2 * 8)
    assert (convolved.arithmetic, convolved.num_flops) == ("half", 2 * 2 * 5 * 36 * 27)
    assert convolved.num_bytes == 2 * (2 * 3 * 64 + 5 * 27 + 2 * 5 * 36)
    assert [copy.to_device for copy in stand_in.copies] == [True]


def test_the_bias_of_a_convolution_is_a_kernel_of_its_own(stand_in: Record) -> None:
    network, x = nn.Conv2d(3, 4, 3).to(CUDA), torch.ones(2, 3, 8, 8, device=CUDA)
    stand_in.clear()
    network(x)
    convolution, bias = stand_in.kernels
    assert convolution.is_product
    assert (bias.is_product, bias.num_bytes) == (False, 2 * 4 * 2 * 4 * 36)


def test_sums_in_any_order_are_noted(stand_in: Record) -> None:
    d, index = on_device(), torch.tensor([0, 0], device=CUDA)
    d.long().index_add_(0, index, d.long())
    assert not stand_in.unordered
    d.index_add_(0, index, d.clone())
    assert len(stand_in.unordered) == 1


def test_a_stream_has_to_wait_for_another(stand_in: Record) -> None:
    side, here = torch.cuda.Stream(), torch.cuda.current_stream()
    with torch.cuda.stream(side):
        made = torch.ones(3, device=CUDA)
    with pytest.raises(RuntimeError, match="another stream may still be writing"):
        made + 1
    here.wait_event(side.record_event())
    assert (made + 1).tolist() == [2, 2, 2]
    with torch.cuda.stream(side), pytest.raises(RuntimeError, match="another stream may still read"):
        made.zero_()


def test_frames_used_before_they_are_there_are_found(stand_in: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [(number, make_chunk(make_clip(f"test/speaker/{number:05d}"), 4)) for number in range(3)]

    def use_frames() -> None:
        for _, item in upload(iter(items), CUDA):
            item.frames.float()  # type: ignore[union-attr]

    use_frames()
    monkeypatch.setattr(type(torch.cuda.current_stream()), "wait_event", lambda *_: None)
    with pytest.raises(RuntimeError, match="another stream may still be writing"):
        use_frames()


def test_a_copy_holds_garbage_until_it_is_waited_for(stand_in: Record) -> None:
    copy = HostCopy(on_device())
    assert copy._host.isnan().all()
    assert copy.wait().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_planted_device_mix_up_fails(stand_in: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    mel = MelSpectrogram().to(CUDA)
    waveforms = [torch.rand(6400)]
    assert mel(waveforms)[0].is_cuda
    mel.basis = mel.basis.cpu()
    with pytest.raises(RuntimeError, match=r"cuda:0 and cpu .*at lrs3_loader/audio/mel\.py:\d+"):
        mel(waveforms)


def test_threads_are_on_it_too(stand_in: Record) -> None:
    found = []
    with BackgroundTask("test") as task:
        task.submit(lambda: found.append(torch.ones(3, device=CUDA).sum().item()))
    assert found == [3]


def test_hollow_tensors_have_shapes_and_give_zeros(stand_in: Record) -> None:
    made = hollow(on_device()) @ torch.ones(3, 2, device=CUDA)
    values = torch.full((2, 2), torch.nan, device=CUDA)
    values[torch.tensor([1], device=CUDA)] = made[:1]
    assert made.cpu().tolist() == [[0, 0], [0, 0]]
    assert values[1].tolist() == [0, 0]
    assert values[0].isnan().all()
    assert stand_in.kernels[-1].num_flops > 0


def train(device: torch.device | str) -> list[float]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.randn(2, 3, 8, 8).to(device)
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    losses = []
    for _ in range(3):
        y = network(x)
        loss = y.square().mean() + torch.cat([y, y * 2]).abs().sum() * y.mean()  # y has several uses
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_training_gives_the_losses_of_the_host(stand_in: Record) -> None:
    assert train(CUDA) == pytest.approx(train("cpu"), rel=1e-5)


def test_kernels_of_the_host_are_counted_alike(stand_in: Record) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    x = torch.ones(2, 3, 8, 8)
    with KernelCounter() as plain, torch.no_grad():
        network(x)
    with KernelCounter() as inference, torch.inference_mode():
        network(x)
    network.to(CUDA)
    x = x.to(CUDA)
    stand_in.clear()
    network(x)
    counted = [[(k.op, k.num_bytes, k.num_flops) for k in each.kernels] for each in (plain, inference, stand_in)]
    assert counted[0] == counted[1] == counted[2]
    assert sum(kernel.num_flops for kernel in plain.kernels if kernel.is_product) == 2 * 2 * (36 * 4 * 27 + 144 * 2)
