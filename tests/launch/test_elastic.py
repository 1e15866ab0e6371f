"""Several nodes under torchrun's c10d rendezvous, on one machine: they join, leave, die, and the bytes stay the same.

The variants with network namespaces and with real extraction run with LRS3_LOADER_FAULTS=1.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lrs3_loader import demo
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256
from support.factory import make_features, make_shard
from support.paths import REPO, TESTS

RANK = str(TESTS / "support" / "elastic_rank.py")
OPT_IN = pytest.mark.skipif(os.environ.get("LRS3_LOADER_FAULTS") != "1", reason="takes minutes: LRS3_LOADER_FAULTS=1")
QUICK = "last_call_timeout=2,join_timeout=120,keep_alive_interval=1"
NUM_SHARDS = 30
Where = tuple[str, str]  # (network namespace or nothing, address that its node is known by)
HERE = ("", "localhost")


class Nodes:
    """torchrun processes that share a rendezvous; none is left behind."""

    def __init__(self, folder: Path, endpoint: str, command: list[str], **env: str):
        self._folder = folder
        self._endpoint = endpoint
        self._command = command
        self._env = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1", **env}
        self._env["PYTHONPATH"] = f"{REPO}:{REPO / 'tests'}"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, where: Where = ("", "localhost")) -> None:
        namespace, address = where
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", self._endpoint, "--rdzv-id", "test"]
        # In a namespace the machine's name leads elsewhere: nobody would know that the endpoint is his.
        host = f",is_host={int(name == 'first')}" if namespace else ""
        options = ["--nnodes", "1:2", "--nproc_per_node", "1", "--max-restarts", "3", "--rdzv-conf", QUICK + host]
        options += ["--local-addr", address]
        enter = ["ip", "netns", "exec", namespace] if namespace else []
        with (self._folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [*enter, sys.executable, "-m", "torch.distributed.run", *rendezvous, *options, *self._command],
                env={**self._env, "NODE": name},
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str) -> None:
        """As when its machine is switched off: the ranks end with torchrun."""
        self._running[name].send_signal(signal.SIGKILL)
        self._running.pop(name).wait()

    def wait(self, name: str, seconds: float) -> int:
        return self._running[name].wait(seconds)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()


def until(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def begin(path: Path, num_shards: int) -> RunFolder:
    shards = tuple(make_shard(f"test-{n:06d}", num_clips=2, first=2 * n) for n in range(num_shards))
    record = {"config": {}, "plan_sha256": plan_sha256(shards), "models": {}, "device_type": "cpu"}
    return RunFolder.create(path, record, shards)


def undisturbed(path: Path, num_shards: int) -> list[str]:
    """sha256 of each tar of a run that nothing happened to."""
    run = begin(path, num_shards)
    for index, shard in enumerate(run.shards):
        run.publish(shard, [make_features(clip, seed=index) for clip in shard.clips], {}, {})
    return [ledger.sha256 for ledger in run.ledgers()]


def rounds(run: RunFolder) -> list[list[str]]:
    """(node, rank, number of ranks, shards to do) of each rank that was started."""
    path = Path(run.path) / "rounds.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def go_on(run: RunFolder, stage: int) -> None:
    (Path(run.path) / f"stage{stage}").touch()


def two_nodes_and_one_dies(run: RunFolder, nodes: Nodes, first: Where, second: Where) -> None:
    """Stage 0 by one node, stage 1 by two, of which one dies while it holds a shard of stage 2."""
    nodes.start("first", first)
    until(lambda: len(run.published()) == 10, "stage 0")
    nodes.start("second", second)
    until(lambda: len(rounds(run)) == 3, "a round of two nodes")
    go_on(run, 1)
    until(lambda: len(run.published()) == 20, "stage 1")
    time.sleep(1.0)  # both draw a shard of stage 2
    nodes.kill("second")


def node_dies_and_another_joins(run: RunFolder, nodes: Nodes, first: Where, second: Where, third: Where) -> None:
    two_nodes_and_one_dies(run, nodes, first, second)
    nodes.start("third", third)
    until(lambda: len(rounds(run)) == 5, "a round with the third node")
    go_on(run, 2)
    assert nodes.wait("first", 180) == 0, nodes.log("first")
    assert nodes.wait("third", 60) == 0, nodes.log("third")
    # Every round goes on from what is published.
    assert [(row[2], row[3]) for row in rounds(run)] == [("1", "30"), *2 * [("2", "20")], *2 * [("2", "10")]]
    assert [{row[0] for row in rounds(run)[start:stop]} for start, stop in ((0, 1), (1, 3), (3, 5))] == [
        {"first"},
        {"first", "second"},
        {"first", "third"},
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return begin(tmp_path / "run", NUM_SHARDS)


@pytest.fixture
def nodes(tmp_path: Path, run: RunFolder) -> Iterator[Nodes]:
    found = Nodes(tmp_path, f"localhost:{free_port()}", [RANK, str(run.path)])
    yield found
    found.close()


def test_a_node_dies_and_another_joins(run: RunFolder, nodes: Nodes, tmp_path: Path) -> None:
    node_dies_and_another_joins(run, nodes, HERE, HERE, HERE)
    assert [ledger.sha256 for ledger in run.ledgers()] == undisturbed(tmp_path / "other", NUM_SHARDS)
    assert all(problems == [] for _, problems in run.check())


@OPT_IN
def test_a_node_dies_and_nobody_takes_its_place(run: RunFolder, tmp_path: Path) -> None:
    """Rank 0 notices that the other is silent, and does what it left."""
    nodes = Nodes(tmp_path, f"localhost:{free_port()}", [RANK, str(run.path)], SILENT="4")
    try:
        two_nodes_and_one_dies(run, nodes, HERE, HERE)
        go_on(run, 2)
        until(lambda: not run.pending(), "the end")
    finally:
        nodes.close()
    assert [ledger.sha256 for ledger in run.ledgers()] == undisturbed(tmp_path / "other", NUM_SHARDS)


@OPT_IN
def test_nodes_join_and_leave_an_extraction(shared_assets: Path, tmp_path: Path) -> None:
    """The real command: a second node joins, extracts and is switched off; a third one helps to end it."""
    made = demo.make_demo_corpus(tmp_path / "corpus", num_speakers=4, clips_per_speaker=10, seconds=(1.0, 1.2))
    out = tmp_path / "run"
    tool = [str(REPO / "tools" / "extract.py"), "--corpus", str(made.folder), "--assets", str(shared_assets)]
    tool += ["--face-model", "demo", "--hubert", "demo", "--device", "cpu", "--workers", "1", "--shard-clips", "1"]

    def ranks() -> list[int]:
        return [ledger.provenance["rank"] for ledger in RunFolder.open(out).ledgers()]

    nodes = Nodes(tmp_path, f"localhost:{free_port()}", [*tool, "--out", str(out)])
    try:
        nodes.start("first")
        until(lambda: (out / "ledger").is_dir() and len(ranks()) >= 2, "two shards by the first node")
        nodes.start("second")
        until(lambda: set(ranks()) == {0, 1}, "a shard by each node")
        nodes.kill("second")
        assert len(ranks()) < len(made.keys)  # there is something left to do
        nodes.start("third")
        for name in ("first", "third"):
            assert nodes.wait(name, 240) == 0, nodes.log(name)
    finally:
        nodes.close()
    alone = tmp_path / "alone"
    subprocess.run([sys.executable, *tool, "--out", str(alone)], check=True, capture_output=True)
    first, second = ([ledger.sha256 for ledger in RunFolder.open(path).ledgers()] for path in (out, alone))
    assert first == second
    assert len(first) == len(made.keys)


@pytest.fixture
def namespaces() -> Iterator[list[Where]]:
    """Three network namespaces on one bridge: nodes that share nothing but a folder and a wire."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    tag = f"lrs{os.getpid() % 10_000}"
    found = [(f"{tag}n{number}", f"10.213.{os.getpid() % 250}.{number + 1}") for number in range(3)]

    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, capture_output=True)

    try:
        ip("link", "add", tag, "type", "bridge")
        ip("link", "set", tag, "up")
        for name, address in found:
            ip("netns", "add", name)
            ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b")
            ip("link", "set", f"{name}a", "master", tag, "up")
            ip("link", "set", f"{name}b", "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"{name}b")
            ip("-n", name, "link", "set", f"{name}b", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        _remove(ip, tag, found)
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield found
    _remove(ip, tag, found)


def _remove(ip: Callable[..., None], tag: str, found: list[Where]) -> None:
    for name, _ in found:
        ip("netns", "del", name, check=False)
        ip("link", "del", f"{name}a", check=False)
    ip("link", "del", tag, check=False)


@OPT_IN
def test_nodes_in_network_namespaces(run: RunFolder, namespaces: list[Where], tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, f"{namespaces[0][1]}:29531", [RANK, str(run.path)])
    try:
        node_dies_and_another_joins(run, nodes, *namespaces)
    finally:
        nodes.close()
    assert [ledger.sha256 for ledger in run.ledgers()] == undisturbed(tmp_path / "other", NUM_SHARDS)
