"""``lrs3-loader``, ``python -m lrs3_loader`` and ``tools/*.py``: three ways to call the same commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import lrs3_loader
from lrs3_loader.__main__ import COMMANDS
from lrs3_loader.commands import doctor as doctor_command
from lrs3_loader.doctor import checks
from lrs3_loader.doctor.checks import CheckResult
from lrs3_loader.launch import cli
from support.paths import REPO

MODULE = [sys.executable, "-m", "lrs3_loader"]


def call(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as somebody would who has no model files yet."""
    environment = {**os.environ, "LRS3_LOADER_CACHE": str(folder / "no-models")}
    environment.pop("LRS3_LOADER_ASSETS", None)
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


def test_every_command_has_a_module_and_a_tool() -> None:
    stems = {name.replace("-", "_") for name in COMMANDS}
    assert {path.stem for path in (REPO / "lrs3_loader" / "commands").glob("[a-z]*.py")} == stems
    tools = {path.name for path in (REPO / "tools").glob("*.py")}
    assert {cli.tool_name(name) for name in COMMANDS} <= tools
    assert not {name.removesuffix(".py") for name in tools} & sys.stdlib_module_names  # they would hide these


def test_help_lists_the_commands_and_wrong_names_are_told(tmp_path: Path) -> None:
    done = call([*MODULE, "--help"], tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m lrs3_loader COMMAND")
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{text}$", done.stdout, re.MULTILINE)
    done = call([*MODULE, "extrakt"], tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: no command extrakt; did you mean extract?\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_does_not_wait_for_torch(name: str, tmp_path: Path) -> None:
    script = (
        f"import sys, lrs3_loader.__main__ as m\ntry: m.main(['{name}', '--help'])\nfinally: print(sorted(sys.modules))"
    )
    done = call([sys.executable, "-c", script], tmp_path)
    assert done.returncode == 0, done.stderr
    *_, modules = done.stdout.splitlines()
    assert done.stdout.startswith(f"usage: lrs3-loader {name} ")
    assert "'tyro'" in modules
    assert "'torch'" not in modules


def test_a_launch_that_cannot_work_does_not_wait_for_transformers(tmp_path: Path) -> None:
    words = ["extract", "--corpus", "nowhere", "--out", "run", "--device", "cpu"]
    script = f"import sys, lrs3_loader.__main__ as m\ntry: m.main({words})\nfinally: print(sorted(sys.modules))"
    done = call([sys.executable, "-c", script], tmp_path)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "'torch'" in done.stdout
    for slow in ("transformers", "scipy.interpolate", "lrs3_loader.demo"):
        assert f"'{slow}'" not in done.stdout


@pytest.mark.parametrize(
    ("command", "often", "rarely"),
    [
        ("extract", "--corpus", "--frame-batch"),
        ("doctor", "--corpus", "--frame-batch"),
        ("report", "--page", "--assets"),
        ("preview", "--face-model", "--panel"),
        ("export geneface", "--splits", "--flip-lm5"),
        ("export import-geneface", "--hubert-store", "--shard-frames"),
        ("assets convert", "--out", "--dense-index"),
        ("train-syncnet", "--device", "--learning-rate"),
        ("animate", "--beside", "--panel"),
    ],
)
def test_flags_that_are_set_often_come_first(command: str, often: str, rarely: str, tmp_path: Path) -> None:
    shown = call([*MODULE, *command.split(), "--help"], tmp_path).stdout
    titles = re.findall(r"─ (.+) options ─", shown)
    rare = [title.startswith("rarely set: ") for title in titles]
    assert True in rare
    assert rare == sorted(rare)
    first_rare = shown.index("rarely set: ")
    assert shown.rindex(f"{often} ") < first_rare < shown.index(rarely)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/venv/bin/lrs3-loader", "run: lrs3-loader train-syncnet RUN, torchrun -m lrs3_loader train-syncnet"),
        (
            "/x/lrs3_loader/__main__.py",
            "run: python -m lrs3_loader train-syncnet RUN, torchrun -m lrs3_loader train-syncnet",
        ),
        (
            "../tools/verify.py",
            "run: python ../tools/train_syncnet.py RUN, torchrun ../tools/train_syncnet.py",
        ),
    ],
)
def test_texts_name_commands_as_the_program_was_called(
    program: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    text = "run: lrs3-loader train-syncnet RUN, torchrun -m lrs3_loader train-syncnet"
    assert cli.as_called(text) == expected


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (MODULE, "python -m lrs3_loader assets"),
        ([sys.executable, str(REPO / "tools" / "assets.py")], f"python {REPO / 'tools' / 'assets.py'}"),
    ],
)
def test_help_and_errors_show_how_the_program_was_called(words: list[str], program: str, tmp_path: Path) -> None:
    command = [] if words[-1].endswith(".py") else ["assets"]
    assert call([*words, *command, "--help"], tmp_path).stdout.startswith(f"usage: {program} ")
    done = call([*words, *command, "check", "--assets", str(tmp_path), "--face-model", "demo"], tmp_path)
    assert f"{program} fetch" in done.stdout


def test_torchrun_starts_a_command_on_every_rank(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = call([*torchrun, "-m", "lrs3_loader", "extract", "--out", "x"], tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: give either --corpus PATH or --demo") == 1  # rank 0 speaks for all


def test_the_version_stands_in_one_place(tmp_path: Path) -> None:
    version = lrs3_loader.__version__
    assert call([*MODULE, "--version"], tmp_path).stdout == f"lrs3_loader {version}\n"
    assert metadata.version("lrs3_loader") == version
    newest = re.search(r"^## \[([^]]+)\]", (REPO / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_the_doctor_speaks_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        CheckResult("python", "ok", "3.11.7"),
        CheckResult("packages", "fail", "not installed: av", "run: lrs3-loader assets fetch"),
    ]
    monkeypatch.setattr(checks, "check_software", lambda: found)
    monkeypatch.setattr(checks, "check_machine", lambda out: [])
    monkeypatch.setattr(sys, "argv", ["tools/doctor.py"])
    assert doctor_command.main(["--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["fit"] is False
    assert printed["checks"][0] == {"name": "python", "level": "ok", "text": "3.11.7", "remedy": ""}
    assert printed["checks"][1]["remedy"] == "run: python tools/assets.py fetch"
    assert printed["versions"]["lrs3_loader"] == lrs3_loader.__version__
    assert printed["versions"]["torch"] == metadata.version("torch")
