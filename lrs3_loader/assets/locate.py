"""Model files: find, check, fetch, convert.

Files are searched for, in this order, in the folder that ``--assets DIR`` names, in ``$LRS3_LOADER_ASSETS``, and in the
cache: ``$LRS3_LOADER_CACHE``, or ``lrs3_loader`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. Files that are fetched or
converted go to the cache. No model file is part of this package.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lrs3_loader.assets.download import WheelMember, download, download_wheel, extract_wheel, locked, wheel_command
from lrs3_loader.errors import RunError, UnreachableError
from lrs3_loader.io.files import file_sha256
from lrs3_loader.io.zip_files import read_zip

logger = logging.getLogger(__name__)

FETCH_COMMAND = "lrs3-loader assets fetch"


@dataclass(frozen=True)
class Catalogue:
    """Names, addresses and hashes of the model files that can be downloaded freely."""

    task: str = "face_landmarker.task"
    task_sha256: str = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
    task_url: str = (
        "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task"
    )
    task_members: tuple[str, ...] = (
        "face_detector.tflite",
        "face_landmarks_detector.tflite",
        "face_blendshapes.tflite",
    )
    wheel: str = "mediapipe==0.10.21"  # the last version that carries model files
    wheel_members: tuple[WheelMember, ...] = (
        WheelMember(
            "mediapipe/modules/face_detection/face_detection_short_range.tflite",
            "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
        ),
        WheelMember(
            "mediapipe/modules/face_landmark/face_landmark.tflite",
            "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
        ),
    )
    ict_url: str = "https://github.com/ICT-VGL/ICT-FaceKit/archive/refs/heads/master.zip"
    ict_sha256: str = "82c2fa292ae248dea9d3f0e840417638210182f410ceba46dc5d18afeb1e2005"
    """Over the contents of the files used, so that it does not depend on the archive (see ``face.model.ict``)."""
    speaking: str = "finetuning_TalkSet.model"  # LR-ASD's weights, 0.84 million of them, under MIT
    speaking_sha256: str = "6b4ef53694e874e96cf630198dc479c78aebb3993bbf166aee3d926dfe7d9342"
    speaking_url: str = (
        "https://raw.githubusercontent.com/Junhua-Liao/LR-ASD/1b6dcd2d8fc2895683de6508ec6294ec47d388ca/"
        "weight/finetuning_TalkSet.model"
    )


ICT_MODEL = "ict.npz"
#: Part of the name of a converted model. Increase it when ``face.model.ict`` or ``face.model.correspondence`` changes
#: what it writes, so that conversions in the cache are replaced.
ICT_CONVERTER_VERSION = 3
ICT_ARCHIVE = "ICT-FaceKit-master.zip"
ICT_SOURCES = ("ict_facekit.tar.xz", ICT_ARCHIVE, "ICT-FaceKit-master", "ICT-FaceKit", "FaceXModel")
HUBERT = "facebook/hubert-large-ls960-ft"
BFM = "BFM_model_front.mat"
DEEP3D = "epoch_20.pth"
STANDARD_FACE = "similarity_Lm3D_all.mat"  # goes with it; part of Deep3DFaceReconstruction's code, under MIT
STANDARD_FACE_URL = f"https://raw.githubusercontent.com/microsoft/Deep3DFaceReconstruction/master/BFM/{STANDARD_FACE}"


def cache_folder() -> Path:
    """Return the folder for fetched and converted files, which need not exist yet."""
    if own := os.environ.get("LRS3_LOADER_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative values.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "lrs3_loader"


class Assets:
    """Finds the model files of this machine, and fetches or converts those that are missing.

    Args:
        folder: the folder to search first.
        store: the folder for fetched and converted files, which is searched last; the cache by default.
        catalogue: names, addresses and hashes of the files.

    Raises:
        RunError: ``folder`` or ``$LRS3_LOADER_ASSETS`` names a folder that does not exist.
    """

    def __init__(self, folder: Path | None = None, store: Path | None = None, catalogue: Catalogue | None = None):
        self.catalogue = catalogue or Catalogue()
        self.store = store or cache_folder()
        named = {"--assets": folder, "$LRS3_LOADER_ASSETS": os.environ.get("LRS3_LOADER_ASSETS")}
        self.folders = (*(Path(place) for place in named.values() if place), self.store)
        for origin, place in named.items():
            if place and not Path(place).is_dir():
                raise RunError(f"{origin} names a folder that does not exist: {place}")
        self._searched = ", ".join(map(str, self.folders))

    def find(self, *names: str) -> Path | None:
        """Return the path of the first of ``names`` in the first folder that has any of them, or None."""
        places = (folder / name for folder in self.folders for name in names)
        return next((place for place in places if place.exists()), None)

    def landmarker(self) -> Path:
        """Return the path of MediaPipe's face landmarker: a ``.task`` file, or a folder with the two older networks.

        Raises:
            RunError: neither exists (the message tells how to get them), or the files are damaged.
        """
        for folder in self.folders:
            task = folder / self.catalogue.task
            if task.exists():
                self._check_task(task)
                return task
            pair = {folder / member.name: member.sha256 for member in self.catalogue.wheel_members}
            if all(path.exists() for path in pair):
                for path, sha256 in pair.items():
                    if file_sha256(path) != sha256:
                        raise RunError(f"{path} is damaged or another version; delete it and run: {FETCH_COMMAND}")
                return folder
        raise RunError(f"{self.catalogue.task} not found in {self._searched}. {self.landmarker_instructions()}")

    def ensure_landmarker(self) -> Path:
        """Return ``landmarker()``; if there is none, download it from its official address or out of the wheel."""
        if not self.has_landmarker():
            with self._exclusive_write(self.catalogue.task):
                if not self.has_landmarker():  # another process may have fetched it in the meantime
                    try:
                        download(self.catalogue.task_url, self.store / self.catalogue.task, self.catalogue.task_sha256)
                    except UnreachableError as error:
                        logger.info("%s; taking the older networks from a wheel", error)
                        with tempfile.TemporaryDirectory() as folder:
                            wheel = download_wheel(self.catalogue.wheel, Path(folder))
                            extract_wheel(wheel, self.catalogue.wheel_members, self.store)
        return self.landmarker()

    def landmarker_instructions(self) -> str:
        """Return the commands that get the landmarker, as one sentence."""
        names = " and ".join(member.path for member in self.catalogue.wheel_members)
        wheel = shlex.join(["python", *wheel_command(self.catalogue.wheel, ".")[1:]])
        return (
            f"Get it with: {FETCH_COMMAND}  (that is: curl -LO {self.catalogue.task_url}  or, where only a package "
            f"registry can be reached: {wheel}  and take {names} out of the wheel)"
        )

    def has_landmarker(self) -> bool:
        """Return whether there is a landmarker, intact or not."""
        pair = [member.name for member in self.catalogue.wheel_members]
        return any(
            (folder / self.catalogue.task).exists() or all((folder / name).exists() for name in pair)
            for folder in self.folders
        )

    def _check_task(self, path: Path) -> None:
        remedy = f"delete it and run: {FETCH_COMMAND}"
        try:
            if path.is_file() and file_sha256(path) == self.catalogue.task_sha256:
                return
            missing = sorted(set(self.catalogue.task_members) - set(read_zip(path)))
            if missing:
                raise ValueError(f"it lacks {missing[0]}")
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is damaged or not a face landmarker file ({error}); {remedy}") from error
        logger.warning("%s is another version of the face landmarker than this package was checked with", path)

    def face_model_path(self, name: str) -> Path:
        """Return the path of the ``.npz`` file of ``ict``, which is converted on first use, or of a file by its name.

        Raises:
            RunError: the model does not exist (the message tells how to get it), or its source is damaged.
            ValueError: the name is ``demo``, a model that is generated and has no file.
        """
        if name == "demo":
            raise ValueError("the demo face model is generated; it has no file")
        if name != "ict":
            path = Path(name) if Path(name).is_file() else self.find(name)
            if path is None or not path.is_file():
                raise RunError(
                    f"no face model {name}: it must be ict, demo, or an .npz file (lrs3-loader assets convert)"
                )
            return path
        source = self.find(ICT_MODEL, *ICT_SOURCES) or self._last_conversion()
        if source is None:
            raise RunError(f"ICT-FaceKit not found in {self._searched}. {self.ict_instructions()}")
        return source if source.suffix == ".npz" else self._converted_ict(source)

    def ensure_face_model(self, name: str) -> Path:
        """Return ``face_model_path(name)``; download ICT-FaceKit if it is needed and missing."""
        if name == "ict" and not self.has_ict():
            with self._exclusive_write(ICT_ARCHIVE):
                if not self.has_ict():
                    self._fetch_ict()
        return self.face_model_path(name)

    def has_ict(self) -> bool:
        """Return whether ICT-FaceKit is available, converted or not."""
        return (self.find(ICT_MODEL, *ICT_SOURCES) or self._last_conversion()) is not None

    def ict_instructions(self) -> str:
        """Return the commands that get ICT-FaceKit, as one sentence."""
        return (
            f"Get it with: {FETCH_COMMAND}  (that is: curl -L -o {ICT_ARCHIVE} {self.catalogue.ict_url}) "
            "or put its folder FaceXModel into the assets folder; or use --face-model demo"
        )

    def speaking_weights(self) -> Path:
        """Return the path of LR-ASD's weights: in an assets folder, or in a folder ``lr_asd`` there.

        Raises:
            RunError: they are missing; the message tells how to get them.
        """
        path = self.find(self.catalogue.speaking, f"lr_asd/{self.catalogue.speaking}")
        if path is None:
            raise RunError(f"{self.catalogue.speaking} not found in {self._searched}. {self.speaking_instructions()}")
        if file_sha256(path) != self.catalogue.speaking_sha256:
            logger.warning("%s is another version of LR-ASD's weights than this package was checked with", path)
        return path

    def ensure_speaking_weights(self) -> Path:
        """Return ``speaking_weights()``; download them if they are missing."""
        name = self.catalogue.speaking
        if self.find(name, f"lr_asd/{name}") is None:
            with self._exclusive_write(name):
                if self.find(name) is None:  # another process may have fetched it in the meantime
                    try:
                        download(self.catalogue.speaking_url, self.store / name, self.catalogue.speaking_sha256)
                    except UnreachableError as error:
                        raise RunError(f"{error}. {self.speaking_instructions()}") from error
        return self.speaking_weights()

    def speaking_instructions(self) -> str:
        """Return the commands that get LR-ASD's weights, as one sentence."""
        return f"Get it with: {FETCH_COMMAND} --speaking  (that is: curl -LO {self.catalogue.speaking_url})"

    def ensure(self, face_model: str, *, speaking: bool = False) -> None:
        """Fetch what a run with ``face_model``, and with ``speaking`` scores, needs and this machine lacks."""
        self.ensure_landmarker()
        if face_model != "demo":
            self.ensure_face_model(face_model)
        if speaking:
            self.ensure_speaking_weights()

    def _fetch_ict(self) -> None:
        from lrs3_loader.face.model.morphable import FaceModel  # here: importing torch takes a second

        archive = self.store / ICT_ARCHIVE
        try:
            download(self.catalogue.ict_url, archive, None)
        except UnreachableError as error:
            raise RunError(f"{error}. {self.ict_instructions()}") from error
        try:
            digest = FaceModel.load(self._converted_ict(archive)).source_sha256
        except RunError:
            archive.unlink(missing_ok=True)
            raise
        if digest != self.catalogue.ict_sha256:
            archive.unlink(missing_ok=True)
            raise RunError(
                f"{self.catalogue.ict_url} gave another ICT-FaceKit than expected: sha256 {digest}, not "
                f"{self.catalogue.ict_sha256}; put it into the assets folder yourself to use it all the same"
            )

    def canonical_task(self) -> Path | None:
        """Return the ``.task`` file with the canonical face that dense correspondence needs, or None."""
        from lrs3_loader.face.model.canonical import has_canonical_face

        task = self.find(self.catalogue.task)
        return task if task is not None and has_canonical_face(task) else None

    def _converted_ict(self, source: Path) -> Path:
        """Return the converted model of ``source``, made if the cache has none by this version of the converter."""
        from lrs3_loader.face.model import correspondence, ict  # here: importing torch takes a second

        task = self.canonical_task()
        made_from = f"{_contents_digest(source)} {file_sha256(task) if task else None}"
        path = self.store / f"ict-v{ICT_CONVERTER_VERSION}-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.npz"
        if path.exists():
            return path
        with self._exclusive_write(path.name):
            if not path.exists():
                logger.info("converting %s", source)
                model = ict.convert_ict(source)
                if model.source_sha256 != self.catalogue.ict_sha256:
                    logger.warning("%s is another version of ICT-FaceKit than this package was checked with", source)
                if task is not None:
                    model = correspondence.with_dense(model, task)
                with tempfile.TemporaryDirectory(dir=self.store, prefix=".ict-") as folder:
                    model.save(Path(folder) / ICT_MODEL)
                    os.replace(Path(folder) / ICT_MODEL, path)
        return path

    def _last_conversion(self) -> Path | None:
        """Return the newest converted ICT-FaceKit of this version of the converter, whose source is elsewhere now."""
        found = [(path.stat().st_mtime_ns, path) for path in self.store.glob(f"ict-v{ICT_CONVERTER_VERSION}-*.npz")]
        return max(found)[1] if found else None

    def deep3d(self, checkpoint: Path) -> tuple[Path, Path]:
        """Return the paths of Deep3DFaceRecon's checkpoint and of the standard face that belongs to it.

        ``checkpoint`` is a file, or the name of one in an assets folder. Raises ``RunError`` with how to get the one
        of the two that does not exist.
        """
        path = checkpoint if checkpoint.is_file() else self.find(checkpoint.name)
        if path is None or not path.is_file():
            raise RunError(
                f"no Deep3D checkpoint {checkpoint}; {DEEP3D} is linked in the README of "
                "https://github.com/sicxu/Deep3DFaceRecon_pytorch"
            )
        neighbours = [path.parent / STANDARD_FACE, path.parent / "BFM" / STANDARD_FACE]
        standard = next((place for place in neighbours if place.is_file()), None)
        standard = standard or self.find(STANDARD_FACE, f"BFM/{STANDARD_FACE}")
        if standard is None:
            raise RunError(
                f"{STANDARD_FACE}, which {path.name} needs, is neither in its folder nor in {self._searched}. "
                f"Get it with: curl -L -o {shlex.quote(str(neighbours[0]))} {STANDARD_FACE_URL}"
            )
        return path, standard

    def speech_encoder(self, name: str) -> str:
        """Return the local folder of a speech encoder if there is one, otherwise ``name`` itself.

        A folder is a path as given, or one in an assets folder with the last part of ``name``
        (``hubert-large-ls960-ft``).
        """
        if Path(name).is_dir():
            return name
        found = self.find(Path(name).name)
        return str(found) if found is not None and found.is_dir() else name

    @contextmanager
    def _exclusive_write(self, name: str) -> Iterator[None]:
        """Create the store's folder, let one process at a time make the file ``name``, and report disk errors."""
        try:
            self.store.mkdir(parents=True, exist_ok=True)
            with locked(self.store / name):
                yield
        except OSError as error:
            raise RunError(
                f"cannot write model files to {self.store}: {error.strerror or error}; free it up or name another "
                "folder in $LRS3_LOADER_CACHE"
            ) from error


def _contents_digest(source: Path) -> str:
    """Return the hash of an archive, or of the mesh files in an unpacked folder."""
    if source.is_file():
        return file_sha256(source)
    files = [*source.rglob("*.obj"), *source.rglob("vertex_indices.json")]
    lines = sorted(f"{path.relative_to(source).as_posix()} {file_sha256(path)}" for path in files)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
