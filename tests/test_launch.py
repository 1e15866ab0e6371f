"""The launch files: that they parse, that what they start is understood, and Slurm's as far as one machine allows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml
from torch.distributed.run import get_args_parser

from conftest import REPO
from lrs3_loader import cli, demo
from lrs3_loader.commands import extract
from lrs3_loader.config import LaunchConfig, RunConfig
from lrs3_loader.runfolder import RunFolder
from lrs3_loader.storage import Url

LAUNCH = REPO / "tools" / "launch"


def extract_args(words: list[str]) -> Any:
    """What tools/extract.py makes of a command line."""
    default = extract.Args(RunConfig(), LaunchConfig(out=tyro.MISSING))
    return cli.parse(extract.Args, "", "extract", words, default)


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def sbatch(tmp_path: Path, words: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the batch script as Slurm would, with its commands from ``tmp_path/bin``."""
    fake(tmp_path / "bin", "scontrol", "echo localhost; echo node2")
    env = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "4711",
        "SLURM_SUBMIT_DIR": str(REPO),
        **variables,
    }
    script = ["bash", str(LAUNCH / "slurm.sbatch"), *words]
    return subprocess.run(script, capture_output=True, text=True, env=env, timeout=600)


def test_slurm_starts_what_the_tools_understand(tmp_path: Path) -> None:
    fake(tmp_path / "bin", "srun", 'shift; printf "%s\\n" "$@"')
    done = sbatch(tmp_path, ["/data/a b", "s3://bucket/run", "--limit", "10"], SLURM_GPUS_ON_NODE="4")
    assert done.returncode == 0, done.stderr
    torchrun, *words = done.stdout.splitlines()
    assert torchrun == "torchrun"
    launch = get_args_parser().parse_args(words)
    assert (launch.nnodes, launch.nproc_per_node, launch.rdzv_backend) == ("2", "4", "c10d")
    assert (launch.rdzv_endpoint, launch.rdzv_id) == ("localhost:29400", "4711")
    assert launch.training_script == str(REPO / "tools" / "extract.py")
    args = extract_args(launch.training_script_args)
    assert (args.run.corpus.corpus, args.launch.out) == (Path("/data/a b"), Url("s3://bucket/run"))
    assert args.run.corpus.limit == 10


def test_slurm_needs_corpus_and_run(tmp_path: Path) -> None:
    fake(tmp_path / "bin", "srun", "exit 0")
    assert "unbound variable" in sbatch(tmp_path, []).stderr


def test_kubernetes_starts_what_the_tools_understand() -> None:
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert service["spec"]["clusterIP"] == "None"
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    launch = get_args_parser().parse_args(container["args"])
    assert (container["command"], launch.rdzv_backend) == (["torchrun"], "c10d")
    assert launch.nnodes == f"1:{spec['completions']}"
    assert spec["parallelism"] == spec["completions"]
    # Pod 0 is found by its own name below the service's.
    name = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert launch.rdzv_endpoint == f"{name}:29400"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    args = extract_args(launch.training_script_args)
    assert (args.run.corpus.corpus, args.launch.out) == (Url("s3://bucket/lrs3"), Url("s3://bucket/lrs3-shards"))
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in container["env"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm"}


@pytest.mark.skipif(os.environ.get("LRS3_LOADER_FAULTS") != "1", reason="takes minutes: LRS3_LOADER_FAULTS=1")
def test_slurm_extracts_on_two_nodes(shared_assets: Path, tmp_path: Path) -> None:
    """Two tasks on this machine meet as two nodes would; the bytes are those of one process."""
    made = demo.make_demo_corpus(tmp_path / "corpus", num_speakers=2, clips_per_speaker=2, seconds=(1.0, 1.2))
    options = ["--assets", str(shared_assets), "--face-model", "demo", "--hubert", "demo", "--device", "cpu"]
    options += ["--workers", "1", "--shard-clips", "1"]
    fake(tmp_path / "bin", "srun", 'shift; "$@" & first=$!; "$@" || exit; wait $first')
    done = sbatch(tmp_path, [str(made.folder), str(tmp_path / "run"), *options], LRS3_LOADER_PORT="29417")
    assert done.returncode == 0, done.stderr
    assert "4 samples, 0 rejects in 4 of 4 shards" in done.stdout
    alone = [sys.executable, str(REPO / "tools" / "extract.py"), "--corpus", str(made.folder)]
    subprocess.run([*alone, "--out", str(tmp_path / "alone"), *options], check=True, capture_output=True)
    runs = [RunFolder.open(tmp_path / name) for name in ("run", "alone")]
    first, second = ([ledger.sha256 for ledger in run.ledgers()] for run in runs)
    assert first == second
