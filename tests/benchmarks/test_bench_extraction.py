"""The benchmarks of extraction run, count what they say they count, and compare like with like."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
import torch

from benchmarks import chain, compare, extraction, inputs, machine, peers, plot, processes, scale, stages, timing
from benchmarks.e2e import measure as measure_e2e
from benchmarks.e2e import rank_counts
from benchmarks.extrapolate import lrs3_remark
from benchmarks.options import BenchOptions
from benchmarks.results import Bound, Figure, Record, Remark, figure_line
from lrs3_loader.face.landmarks.tflite_graph import read_graph
from support.paths import REPO

CPU = torch.device("cpu")
EXTRACT = REPO / "tools" / "extract.py"


@pytest.fixture(scope="module")
def options(assets: Path | None) -> BenchOptions:
    """Tiny inputs, with the face landmarker at hand."""
    return BenchOptions(assets=assets, device="cpu", quick=True, repeats=1)


@pytest.fixture(scope="module")
def workbench(options: BenchOptions, tmp_path_factory: pytest.TempPathFactory) -> inputs.Workbench:
    return inputs.Workbench(options, CPU, tmp_path_factory.mktemp("bench"), stages.NUM_FRAMES)


def split(items: object) -> tuple[dict[tuple[str, str], Figure], list[str]]:
    figures, remarks = {}, []
    for item in items:  # type: ignore[attr-defined]
        if isinstance(item, Remark):
            remarks.append(item.text)
        else:
            figures[item.group, item.name.strip()] = item
    return figures, remarks


def test_every_stage_is_measured(workbench: inputs.Workbench) -> None:
    figures, remarks = split(stages.StageBench(workbench).figures())
    groups = {group for group, _ in figures}
    assert groups >= {"ceiling", "decode", "pitch", "mel", "HuBERT-large", "landmarks", "align + ResNet-50", "fit"}
    assert all(figure.value > 0 and math.isfinite(figure.value) for figure in figures.values())
    assert 0 < figures["landmarks", "float32"].share < 1.5  # of a ceiling measured at another moment
    if "bfloat16" in machine.precisions(CPU):
        for network in ("HuBERT-large", "align + ResNet-50"):
            assert 1e-4 < figures[network, "bfloat16"].error < 0.1
    assert figures["align + ResNet-50", "float32"].error is None
    assert any("random weights" in text for text in remarks)
    assert any("all of LRS3" in text for text in remarks)


def test_flops_are_those_of_the_networks(workbench: inputs.Workbench) -> None:
    """Two for each multiplication of a convolution; a full batch, so that nothing is padding."""
    network = workbench.models.landmarker.network
    with stages.flop_counter() as counter:
        network(torch.zeros(8, *network.input_shape))
    multiplications = convolution_multiplications(workbench.models.landmarker_files.landmarks)
    assert counter.get_total_flops() / 8 == pytest.approx(2 * multiplications, rel=0.02)
    if network.output_shapes[0][-1] == 3 * 478:
        assert multiplications == pytest.approx(113e6, rel=0.02)


def convolution_multiplications(network: bytes) -> int:
    """Counted on the graph: the size of each kernel times the number of places where it is applied."""
    graph = read_graph(network)
    total = 0
    for op in graph.operators:
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            _, height, width, _ = graph.tensors[op.outputs[0]].shape
            total += height * width * math.prod(graph.tensors[op.inputs[1]].shape)
    return total


def test_both_sides_compute_the_same(workbench: inputs.Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the speeds: each peer's result is ours, which it would not be if one side did less."""
    bench = compare.PeerBench(workbench, EXTRACT)
    monkeypatch.setattr(bench, "_whole", lambda: iter(()))
    figures, remarks = split(bench.figures())
    apart = {group: figure.error for (group, name), figure in figures.items() if name == "times as fast"}
    assert apart["pitch"] < 1e-3
    assert apart["HuBERT-large"] < 0.1
    assert apart["align + ResNet-50"] < 0.1
    assert 0.2 < apart["fit"] < 1.1  # ours over Adam's objective, same or lower
    for package, stage, bound in (("librosa", "mel", 1e-4), ("mediapipe", "landmarks", 0.05)):
        if package == "mediapipe" and workbench.assets.landmarker().is_dir():
            assert any("reads only the .task file" in text for text in remarks)
        elif importlib.util.find_spec(package):
            assert apart[stage] < bound
        else:
            assert any(f"{package} is not installed" in text for text in remarks)


def test_the_chain_of_peers_keeps_what_it_computes(workbench: inputs.Workbench, tmp_path: Path) -> None:
    """With stand-ins for the networks: every script reads files and leaves one for the next."""
    take = workbench.takes[0]
    points = workbench.find_faces(workbench.models.landmarker)[0].points[..., :2].numpy()
    frames = iter([*points, *[points[-1]] * 100])
    seconds = chain.run_chain(
        [chain.Source("clip", take.path)],
        tmp_path,
        chain.Peers(
            mel=lambda waveform: np.zeros((80, len(waveform) // 320)),  # type: ignore[arg-type]
            hubert=lambda waveform: np.zeros((len(waveform) // 320, 4)),
            landmarks=lambda frame: next(frames),  # type: ignore[arg-type]
            coefficients=lambda frames, lm68: np.zeros((len(frames), 257)),  # type: ignore[arg-type]
            fit=lambda lm68, height, width: {"size": np.array([height, width])},
        ),
    )
    assert list(seconds) == ["wav", "mel, F0", "hubert", "landmarks", "coefficients", "fit", "binarise"]
    names = {path.name for path in tmp_path.iterdir()}
    kinds = ("wav", "mel.npy", "hubert.npy", "lm68.npy", "coeff.npy", "fit.npy")
    assert names == {"all.data", *(f"clip.{kind}" for kind in kinds)}
    assert np.load(tmp_path / "clip.fit.npy", allow_pickle=True).item()["size"].tolist() == [224, 224]


def test_whole_runs_say_what_was_busy(options: BenchOptions, tmp_path: Path) -> None:
    figures, remarks = split(measure_e2e(options, CPU, tmp_path, EXTRACT, max_ranks=1, full=False))
    assert figures["1 rank", "cold"].value > 0
    assert figures["1 rank", "processor busy"].value > 0.5
    assert "landmarks" in figures["1 rank", "stages"].note
    assert 100 < figures["1 rank", "memory"].value < 20_000
    assert any("--hubert demo" in text for text in remarks)


class CountingRunner(extraction.ExtractRunner):
    """Takes a second to begin with and one for each clip, and remembers one clip in ten."""

    def __init__(self) -> None:
        super().__init__(EXTRACT, [], threads=1, on_gpu=False)

    def run(self, corpus: Path, out: Path, ranks: int, extra: object = ()) -> extraction.Extraction:
        clips = len(list(corpus.rglob("*.mp4")))
        usage = processes.Usage(clips + 9.0, "", [processes.ProcessHistory("ranks", peak_mib=1000 + clips * 100)])
        return extraction.Extraction(25 * clips, clips + 1.0, usage, {}, 0)


def test_growth_of_time_and_memory_is_held_against_the_clips(options: BenchOptions, tmp_path: Path) -> None:
    figures, _ = split(scale.measure(options, CPU, tmp_path, EXTRACT, (1, 4, 16), CountingRunner()))
    time_growth, memory_growth = figures["growth", "time, 16x / 1x"], figures["growth", "ranks, 16x / 4x"]
    assert time_growth.value == 17 / 2
    assert time_growth.bound == Bound(16.5, at_most=True)
    assert memory_growth.value == pytest.approx(2600 / 1400)
    assert memory_growth.bound is not None
    assert not memory_growth.bound.is_met(memory_growth.value)
    with pytest.raises(ValueError, match="two different factors"):
        next(scale.measure(options, CPU, tmp_path, EXTRACT, (4, 4)))


def test_pinning_holds_threads_that_exist_and_children() -> None:
    ask = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
    before = timing.os.sched_getaffinity(0)
    with timing.pinned(1) as cores:
        assert len(cores) == 1
        assert subprocess.check_output(ask, text=True).strip() == "1"
    assert timing.os.sched_getaffinity(0) == before
    with pytest.raises(ValueError, match=r"threads must lie in 1\.\."), timing.pinned(10_000):
        pass


def test_ways_are_timed_in_turn() -> None:
    calls: list[str] = []
    seconds = timing.in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, CPU)
    assert calls == ["a", "b", "a", "b"]
    assert [len(each) for each in seconds.values()] == [2, 2]


def test_no_library_has_more_threads_than_another() -> None:
    """OpenBLAS comes with numpy; a process's cores alone do not limit it."""

    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]

    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        found: list[list[int]] = []
        timing.in_turn({"each": lambda: found.append(threads())}, 1, CPU)
        assert threads() != found[0]
    assert set(found[0]) == {torch.get_num_threads()}


def test_processes_are_followed_to_grandchildren() -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print('done')"
    usage = processes.run_measured(
        [sys.executable, "-c", code], {}, lambda line: "burner" if "subprocess" not in line else "parent", on_gpu=False
    )
    assert usage.output == "done\n"
    assert 0.2 < usage.cpu_seconds("burner") < 1.0
    assert usage.peak_mib("parent") > 1


def test_a_failing_command_is_no_measurement() -> None:
    with pytest.raises(processes.CommandFailedError, match="ended with 3:\nwhy"):
        processes.run_measured(
            [sys.executable, "-c", "import sys; print('why'); sys.exit(3)"], {}, lambda line: "", on_gpu=False
        )


def test_nvidia_smi_lines_that_are_cut_short_do_not_count() -> None:
    assert processes.parse_gpu_samples("97, 1024\n3, 900\nN/A, 5\n8") == [(97.0, 1024.0), (3.0, 900.0)]


def test_files_leave_the_page_cache_and_links_share_data(tmp_path: Path) -> None:
    clip = tmp_path / "clips" / "pretrain" / "someone" / "00001.mp4"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"x" * 100_000)
    extraction.forget([clip])
    target = extraction.link_copies(tmp_path / "clips", tmp_path / "more", 4)
    found = sorted(path.relative_to(target).as_posix() for path in target.rglob("*.mp4"))
    assert found == [f"pretrain/someonex00{k}/00001.mp4" for k in range(4)]
    assert clip.stat().st_nlink == 5


def test_rank_counts_end_at_what_there_is() -> None:
    cores = len(timing.os.sched_getaffinity(0))
    assert rank_counts(CPU, 1, threads=1) == [1]
    assert rank_counts(CPU, None, threads=1)[-1] == cores
    with pytest.raises(ValueError, match=f"ranks must lie in 1..{cores}"):
        rank_counts(CPU, cores + 1, threads=1)


def test_a_record_says_what_missed_its_bound(tmp_path: Path) -> None:
    record = Record({"processor": "one"}, command="python tools/bench.py")
    slow = Figure.ratio("mel", "times as fast", slow=[2.0, 4.0, 3.0], fast=[1.0, 1.0, 1.0], bound=Bound(3.5))
    record.add(slow)
    record.add(Figure("growth", "time", 16.2, "x", bound=Bound(16.5, at_most=True)))
    record.add(Remark("rests on nothing"))
    record.write(tmp_path / "deep" / "figures.json")
    plain = json.loads((tmp_path / "deep" / "figures.json").read_text())
    assert [figure["bound"]["met"] for figure in plain["figures"]] == [False, True]
    assert (slow.value, slow.low, slow.high) == (3.0, 2.0, 4.0)
    assert record.missed() == [slow]
    assert "MISSED (>= 3.5)" in figure_line(slow)
    assert plain["remarks"] == ["rests on nothing"]
    assert set(plain) == {"command", "date", "machine", "figures", "remarks"}


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    record = Record({"processor": "one"})
    record.add(Figure("decode", "pictures", 100.0, "frames/s", 90.0, 110.0))
    record.add(Figure("mel", "times as fast", 4.0, "x", bound=Bound(3)))
    plot.draw(record, tmp_path / "figures.png")
    assert (tmp_path / "figures.png").read_bytes()[:4] == b"\x89PNG"


def test_the_whole_of_lrs3_is_39_million_frames() -> None:
    assert "4.5 days" in lrs3_remark(100.0, 1, "GPU", "x").text
    assert "22.6 days; on 64 of them 16.9 hours" in lrs3_remark(20.0, 2, "ranks", "x").text


def test_the_large_encoder_has_the_weights_of_the_original() -> None:
    with torch.device("meta"):
        model = inputs.HubertModel(inputs.large_config())
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(315.4e6, rel=0.003)


def test_kept_filters_give_librosas_own_mel() -> None:
    pytest.importorskip("librosa")
    sound = np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)
    np.testing.assert_allclose(peers.LibrosaMel(True)(sound), peers.LibrosaMel()(sound), atol=1e-6)


def test_wrong_numbers_are_one_line(tmp_path: Path) -> None:
    started = time.perf_counter()
    command = [sys.executable, str(REPO / "tools" / "bench.py"), "stages", "--repeats", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "repeats must be at least 1, got 0" in done.stdout + done.stderr
    assert time.perf_counter() - started < 60
