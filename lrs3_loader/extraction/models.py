"""All models of one rank, loaded onto one device, and the record of them that a run keeps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrs3_loader.assets.locate import FETCH_COMMAND, Assets
from lrs3_loader.audio.hubert import SpeechEncoder
from lrs3_loader.audio.mel import MelSpectrogram
from lrs3_loader.config import FaceConfig, LandmarkConfig, QualityConfig, RegressionConfig, RunConfig
from lrs3_loader.decode.geneface_audio import MEL_CONVENTION
from lrs3_loader.errors import RunError
from lrs3_loader.face.deep3d.regressor import COEFF_CONVENTION, Deep3DRegressor, check_face_model, load_deep3d_files
from lrs3_loader.face.fit.fitter import FitConfig, LandmarkFitter
from lrs3_loader.face.geometry.camera import POSE_CONVENTION
from lrs3_loader.face.landmarks.landmarker import FaceLandmarker, LandmarkerFiles, load_landmarker_files
from lrs3_loader.face.landmarks.tracks import TRACK_RULE
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.face.photometric.fitter import PhotometricFitter
from lrs3_loader.face.photometric.render import pytorch3d_version, require_pytorch3d
from lrs3_loader.io.files import file_sha256
from lrs3_loader.kernels.trust import Kernels, choose_kernels
from lrs3_loader.quality.speech import SpeechDetector
from lrs3_loader.speaking.choice import SPEAKING_TRACK_RULE
from lrs3_loader.speaking.network import SpeakingNetwork
from lrs3_loader.speaking.scorer import SPEAKING_CONVENTION, SpeakingScorer


@dataclass(frozen=True, eq=False)
class Models:
    """All models that turn frames and audio into features."""

    landmarker_files: LandmarkerFiles
    landmarker: FaceLandmarker
    mel: MelSpectrogram
    speech: SpeechEncoder  # the first
    face_model: FaceModel
    fitter: LandmarkFitter
    regressor: Deep3DRegressor | None
    speech_detector: SpeechDetector | None = None  # None: the config asks for no figures
    face_model_file: str | None = None  # its name; None: the demo model, which is generated
    speaking: SpeakingScorer | None = None
    speaking_sha256: str | None = None  # of its weights
    kernels: Kernels = "plain"  # what they run by; see ``lrs3_loader.kernels.trust``
    more_speech: tuple[SpeechEncoder, ...] = ()  # further encoders

    @classmethod
    def load(cls, config: RunConfig, assets: Assets, device: torch.device) -> Models:
        """Load every model that a resolved config needs.

        Raises:
            RunError: a model file is missing, damaged, or does not match the others; the message says what to do.
        """
        require_extras(config.face)
        # All files are found before any is loaded.
        landmarker_path, name = assets.landmarker(), config.face.face_model
        face_path = None if name == "demo" else assets.face_model_path(name)
        if len(set(config.speech.models)) < len(config.speech.models):
            raise RunError(f"--hubert names an encoder twice: {', '.join(config.speech.models)}")
        places = map(assets.speech_encoder, config.speech.models)
        encoders = [dataclasses.replace(config.speech, model=place, also=()) for place in places]
        checkpoint = config.regression.checkpoint
        deep3d_paths = None if checkpoint is None else assets.deep3d(checkpoint)
        speaking_path = assets.speaking_weights() if config.speaking.needs_scores else None
        files = load_landmarker_files(landmarker_path)
        try:
            face_model = (FaceModel.load(face_path) if face_path else _demo_head()).to(device)
            fitter = _make_fitter(config.face, face_model)
        except ValueError as error:
            raise RunError(f"a model cannot be used with this configuration: {error}") from error
        try:
            landmarker = _make_landmarker(files, config.landmarks, device, blendshapes=fitter.uses_blendshapes)
        except ValueError as error:
            raise RunError(
                f"{landmarker_path} is damaged or of another kind ({error}); delete it and run: {FETCH_COMMAND}"
            ) from error
        try:
            if config.regression.idexp != "fit":
                check_face_model(face_model)
            regressor = _load_regressor(config.regression, deep3d_paths, device)
            paths = [landmarker.fast_path(), landmarker.sampler.fast_path()]
            if regressor is not None:
                paths += filter(None, (regressor.fast_path(), regressor.sampler.fast_path()))
            return cls(
                landmarker_files=files,
                landmarker=landmarker,
                mel=MelSpectrogram().to(device),
                speech=SpeechEncoder.load(encoders[0], device),
                more_speech=tuple(SpeechEncoder.load(encoder, device) for encoder in encoders[1:]),
                face_model=face_model,
                fitter=fitter,
                regressor=regressor,
                speech_detector=_load_speech_detector(config.quality),
                face_model_file=face_path.name if face_path else None,
                speaking=SpeakingScorer(SpeakingNetwork.load(speaking_path), device) if speaking_path else None,
                speaking_sha256=file_sha256(speaking_path) if speaking_path else None,
                kernels=choose_kernels(config.kernels, paths, device),
            )
        except ValueError as error:
            raise RunError(f"a model cannot be used with this configuration: {error}") from error

    @property
    def speech_fields(self) -> dict[str, tuple[SpeechEncoder, int]]:
        """The encoder of each of the fields ``hubert``, ``hubert_2`` ..., and which of its layers it holds."""
        pairs = [(encoder, number) for encoder in self.encoders for number in range(len(encoder.layers))]
        return {"hubert" if n == 1 else f"hubert_{n}": pair for n, pair in enumerate(pairs, 1)}

    @property
    def encoders(self) -> tuple[SpeechEncoder, ...]:
        return (self.speech, *self.more_speech)

    @property
    def needs_pixels(self) -> bool:
        """True if the fitter needs the face crops of each clip, not only its landmarks."""
        return isinstance(self.fitter, PhotometricFitter)

    @property
    def record(self) -> dict[str, Any]:
        """Names, hashes and licences of the models, for ``run.json``; a run is resumed only with equal ones.

        ``files`` are the hashes, by name, of all files that shape a model's numbers, where ``sha256`` covers only some.
        """
        model = self.face_model
        digest = model.sha256(dense=self.fitter.config.dense)
        record: dict[str, Any] = {
            "landmarker": {"name": self.landmarker_files.name, "sha256": self.landmarker_files.sha256},
            "face_model": {
                "name": model.name,
                "licence": model.licence,
                "sha256": model.source_sha256,
                "files": {self.face_model_file: digest} if self.face_model_file else {},
                "id_names": list(model.id_names),
                "exp_names": list(model.exp_names),
            },
        }
        for name, (encoder, number) in self.speech_fields.items():
            record[record_name(name)] = {**encoder.description(number), "files": dict(encoder.files)}
        if self.regressor is not None:
            record["regression"] = self.regressor.description
        if self.speaking is not None:
            record["speaking"] = {"name": "lr_asd", "sha256": self.speaking_sha256}
        if self.speech_detector is not None:
            record["speech_detector"] = self.speech_detector.record
        if self.needs_pixels:
            record["renderer"] = {"name": "pytorch3d", "version": pytorch3d_version()}
        return record

    @property
    def names(self) -> dict[str, Any]:
        """Names of the models, for the metadata of each sample."""
        names: dict[str, Any] = {
            "landmarker": self.landmarker_files.name,
            "face_model": self.face_model.name,
        }
        for name, (encoder, number) in self.speech_fields.items():
            names[record_name(name)] = encoder.description(number)
        if self.regressor is not None:
            names["regression"] = self.regressor.description["name"]
        if self.speaking is not None:
            names["speaking"] = "lr_asd"
        return names

    def conventions(self, config: RunConfig) -> dict[str, str]:
        """Conventions that the features follow, for the metadata of each sample."""
        track_rule = SPEAKING_TRACK_RULE if config.speaking.track == "speaking" else TRACK_RULE
        conventions = {"pose": POSE_CONVENTION, "face_track": track_rule}
        if self.regressor is not None:
            conventions |= {"coeff": COEFF_CONVENTION, "idexp_lm3d": config.regression.idexp}
        if config.decode.mel_like == "geneface":
            conventions["mel"] = MEL_CONVENTION
        if config.speaking.store:
            conventions["speaking"] = SPEAKING_CONVENTION
        return conventions


def record_name(field: str) -> str:
    """Return the name under which the encoder of a field is described: ``speech`` for ``hubert``, ``speech_2`` ..."""
    return field.replace("hubert", "speech")


def _make_fitter(config: FaceConfig, model: FaceModel) -> LandmarkFitter:
    fitter = PhotometricFitter if config.fit == "photometric" else LandmarkFitter
    return fitter(model, FitConfig.named(config.fit, model))


def _make_landmarker(
    files: LandmarkerFiles, config: LandmarkConfig, device: torch.device, *, blendshapes: bool
) -> FaceLandmarker:
    """Build the landmarker with those of its networks that are needed; ``blendshapes``: whether the fit needs them."""
    assert config.frame_batch is not None, "the config was not resolved"
    if not config.store_blendshapes and not blendshapes:
        files = dataclasses.replace(files, blendshapes=None)
    return FaceLandmarker(files, device, batch_size=config.frame_batch, min_face_score=config.min_face_score)


def require_extras(config: FaceConfig) -> None:
    """Check that the optional packages that the config needs are installed; raises ``RunError`` otherwise."""
    if config.fit == "photometric":
        require_pytorch3d("--fit photometric")


def _load_regressor(
    config: RegressionConfig, paths: tuple[Path, Path] | None, device: torch.device
) -> Deep3DRegressor | None:
    """Load Deep3DFaceRecon's regression from its checkpoint and standard face, if there is one."""
    if paths is None:
        return None
    assert config.batch is not None, "the config was not resolved"
    return Deep3DRegressor(
        load_deep3d_files(*paths), device, batch_size=config.batch, dtype=getattr(torch, config.dtype)
    )


def _load_speech_detector(config: QualityConfig) -> SpeechDetector | None:
    return None if config.level == "none" else SpeechDetector.load(config.speech_detector)


def load_face_model(config: FaceConfig, assets: Assets) -> FaceModel:
    """Load the face model that a config names: ``demo`` is generated, any other is a file."""
    if config.face_model == "demo":
        return _demo_head()
    return FaceModel.load(assets.face_model_path(config.face_model))


def _demo_head() -> FaceModel:
    from lrs3_loader.demo import demo_head  # with all that draws a demo corpus

    return demo_head()
