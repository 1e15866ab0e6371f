"""All models of one rank, loaded onto one device, and what is to be recorded of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from lrs3_loader import demo
from lrs3_loader.assets.locate import FETCH_COMMAND, Assets
from lrs3_loader.audio.hubert import SpeechEncoder
from lrs3_loader.audio.mel import MelSpectrogram
from lrs3_loader.config import FaceConfig, LandmarkConfig, RegressionConfig, RunConfig
from lrs3_loader.errors import RunError
from lrs3_loader.face.deep3d.regressor import COEFF_CONVENTION, Deep3DRegressor, check_face_model, load_deep3d_files
from lrs3_loader.face.fit.fitter import FitConfig, LandmarkFitter
from lrs3_loader.face.geometry.camera import POSE_CONVENTION
from lrs3_loader.face.landmarks.landmarker import FaceLandmarker, LandmarkerFiles, load_landmarker_files
from lrs3_loader.face.landmarks.tracks import TRACK_RULE
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.face.photometric.fitter import PhotometricFitter
from lrs3_loader.face.photometric.render import pytorch3d_version, require_pytorch3d


@dataclass(frozen=True, eq=False)
class Models:
    """Everything that turns frames and sound into numbers."""

    landmarker_files: LandmarkerFiles
    landmarker: FaceLandmarker
    mel: MelSpectrogram
    speech: SpeechEncoder
    face_model: FaceModel
    fitter: LandmarkFitter
    regressor: Deep3DRegressor | None

    @classmethod
    def load(cls, config: RunConfig, assets: Assets, device: torch.device) -> Models:
        """Load every model that a resolved config needs.

        Raises:
            RunError: a model file is missing, damaged, or does not go with the others; the message says what to do.
        """
        require_extras(config.face)
        path = assets.landmarker()
        files = load_landmarker_files(path)
        try:
            landmarker = make_landmarker(files, config.landmarks, device)
        except ValueError as error:
            raise RunError(
                f"{path} is damaged or of another kind ({error}); delete it and run: {FETCH_COMMAND}"
            ) from error
        speech_config = dataclasses.replace(config.speech, model=assets.speech_encoder(config.speech.model))
        try:
            face_model = load_face_model(config.face, assets).to(device)
            if config.regression.idexp != "fit":
                check_face_model(face_model)
            return cls(
                landmarker_files=files,
                landmarker=landmarker,
                mel=MelSpectrogram().to(device),
                speech=SpeechEncoder.load(speech_config, device),
                face_model=face_model,
                fitter=make_fitter(config.face, face_model),
                regressor=load_regressor(config.regression, assets, device),
            )
        except ValueError as error:
            raise RunError(f"a model does not fit: {error}") from error

    @property
    def needs_pixels(self) -> bool:
        """Whether the fitter needs each clip's ``image.crops``."""
        return isinstance(self.fitter, PhotometricFitter)

    @property
    def record(self) -> dict[str, Any]:
        """What made the numbers, for ``run.json``: names, hashes, licences. Decides whether a run can be resumed."""
        model = self.face_model
        record: dict[str, Any] = {
            "landmarker": {"name": self.landmarker_files.name, "sha256": self.landmarker_files.sha256},
            "face_model": {
                "name": model.name,
                "licence": model.licence,
                "sha256": model.source_sha256,
                "id_names": list(model.id_names),
                "exp_names": list(model.exp_names),
            },
            "speech": self.speech.description(),
        }
        if self.regressor is not None:
            record["regression"] = self.regressor.description
        if self.needs_pixels:
            record["renderer"] = {"name": "pytorch3d", "version": pytorch3d_version()}
        return record

    @property
    def names(self) -> dict[str, Any]:
        """The same in short, for each sample's metadata."""
        names: dict[str, Any] = {
            "landmarker": self.landmarker_files.name,
            "face_model": self.face_model.name,
            "speech": self.speech.description(),
        }
        if self.regressor is not None:
            names["regression"] = self.regressor.description["name"]
        return names

    def conventions(self, config: RunConfig) -> dict[str, str]:
        """How the numbers are to be read, for each sample's metadata."""
        conventions = {"pose": POSE_CONVENTION, "face_track": TRACK_RULE}
        if self.regressor is not None:
            conventions |= {"coeff": COEFF_CONVENTION, "idexp_lm3d": config.regression.idexp}
        return conventions


def make_landmarker(files: LandmarkerFiles, config: LandmarkConfig, device: torch.device) -> FaceLandmarker:
    """The landmarker with as many of its networks as the config needs."""
    assert config.frame_batch is not None, "the config was not resolved"
    if not config.store_blendshapes:
        files = dataclasses.replace(files, blendshapes=None)
    return FaceLandmarker(files, device, batch_size=config.frame_batch, min_face_score=config.min_face_score)


def require_extras(config: FaceConfig) -> None:
    """Raise ``RunError`` where an optional package that the config needs is missing; cheap, to be asked first."""
    if config.fit == "photometric":
        require_pytorch3d("--fit photometric")


def make_fitter(config: FaceConfig, model: FaceModel) -> LandmarkFitter:
    """The fitter a config names."""
    kind = PhotometricFitter if config.fit == "photometric" else LandmarkFitter
    return kind(model, FitConfig.named(config.fit, model))


def load_regressor(config: RegressionConfig, assets: Assets, device: torch.device) -> Deep3DRegressor | None:
    """Deep3DFaceRecon's regression, where the config names its checkpoint."""
    if config.checkpoint is None:
        return None
    assert config.batch is not None, "the config was not resolved"
    files = load_deep3d_files(*assets.deep3d(config.checkpoint))
    return Deep3DRegressor(files, device, batch_size=config.batch, dtype=getattr(torch, config.dtype))


def load_face_model(config: FaceConfig, assets: Assets) -> FaceModel:
    """The face model a config names: ``demo`` is generated, anything else is a file."""
    if config.face_model == "demo":
        return demo.demo_head()
    return FaceModel.load(assets.face_model_path(config.face_model))
