"""Model files that are damaged or of another kind: one line that names the file, whatever the damage."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import HubertConfig, HubertModel

from lrs3_loader import demo
from lrs3_loader.assets.locate import Assets, Catalogue
from lrs3_loader.audio.checkpoint import load_checkpoint
from lrs3_loader.config import LandmarkConfig, RunConfig, demo_defaults, resolve
from lrs3_loader.errors import RunError
from lrs3_loader.extraction.models import Models
from lrs3_loader.face.deep3d import regressor
from lrs3_loader.face.landmarks.landmarker import load_landmarker_files
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.syncnet.checkpoint import SyncNetCheckpoint
from support.fault_tools import damaged, small_fuzz
from support.tflite_writer import small_network

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def make_task(compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name in Catalogue().task_members:
            archive.writestr(name, small_network())
    return buffer.getvalue()


TASKS = [make_task(zipfile.ZIP_STORED), make_task(zipfile.ZIP_DEFLATED)]


@small_fuzz
@given(st.sampled_from(TASKS).flatmap(damaged))
def test_landmarkers(folder: Path, data: bytes) -> None:
    path = folder / "face_landmarker.task"
    path.write_bytes(data)
    for read in (Assets(folder).landmarker, lambda: load_landmarker_files(path)):
        try:
            read()
        except RunError as error:
            assert str(path) in str(error)  # noqa: PT017  (not every damage shows)


def test_a_zip_that_unpacks_to_too_much(folder: Path) -> None:
    path = folder / "big.task"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in Catalogue().task_members:
            archive.writestr(name, bytes(90 << 20))
    with pytest.raises(RunError, match=r"big\.task is not .* it would unpack to 283115520 bytes, over the limit"):
        load_landmarker_files(path)


def test_networks_of_another_kind_are_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "face_landmarker.task").write_bytes(TASKS[0])
    config = resolve(demo_defaults(RunConfig(landmarks=LandmarkConfig())), "cpu")
    with pytest.raises(RunError, match=r"face_landmarker\.task is damaged or of another kind .*delete it and run"):
        Models.load(config, Assets(tmp_path), torch.device("cpu"))


@pytest.fixture(scope="module")
def face_model(folder: Path) -> bytes:
    demo.demo_head().save(folder / "face.npz")
    return (folder / "face.npz").read_bytes()


@small_fuzz
@given(data=st.data())
def test_face_models(folder: Path, face_model: bytes, data: st.DataObject) -> None:
    path = folder / "damaged.npz"
    ends = (len(face_model) - 2000, len(face_model) - 1)
    path.write_bytes(data.draw(damaged(face_model, ends) | damaged(face_model, (0, 300))))
    try:
        FaceModel.load(path)
    except RunError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"net_recon": {"a": torch.zeros(3)}, "format": "x"}, buffer)
    return buffer.getvalue()


@small_fuzz
@given(data=st.data())
def test_checkpoints(folder: Path, checkpoint: bytes, data: st.DataObject) -> None:
    path = folder / "checkpoint.pt"
    path.write_bytes(data.draw(damaged(checkpoint)))
    with pytest.raises(RunError, match=r"checkpoint\.pt"):
        SyncNetCheckpoint.load(path)
    with pytest.raises(RunError, match=r"checkpoint\.pt|standard\.mat"):
        regressor.load_deep3d_files(path, folder / "standard.mat")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Path:
    config = HubertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, conv_dim=(4,) * 7,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=1,
    )  # fmt: skip
    HubertModel(config).save_pretrained(folder / "encoder")
    return folder / "encoder"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_speech_encoders(encoder: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(encoder, copy)
    whole = (copy / name).read_bytes()
    load_checkpoint(str(copy))
    rng = np.random.default_rng(0)
    spoilt = [whole[: int(share * len(whole))] for share in (0, 0.01, 0.5, 0.99)]
    spoilt += [b"<html>404</html>", b"null", b"[]", b"{}", bytes(1000), rng.bytes(1000), b"[" * 100_000]
    for data in spoilt:
        (copy / name).write_bytes(data)
        with pytest.raises(RunError) as caught:
            load_checkpoint(str(copy))
        assert str(copy) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
