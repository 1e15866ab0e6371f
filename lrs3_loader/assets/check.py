"""A table of the model files that a run needs and that this machine has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lrs3_loader.assets.locate import BFM, DEEP3D, HUBERT, STANDARD_FACE_URL, Assets
from lrs3_loader.audio.model_folder import expects_normalized_audio, find_weights, read_architecture
from lrs3_loader.errors import RunError
from lrs3_loader.io.files import file_sha256

State = Literal["ok", "differs", "unknown", "damaged", "missing"]
_OPTIONAL = (  # name, what it is needed for, licence, how to get it
    (
        BFM,
        "BFM coefficients",
        "by application",
        "apply for the Basel Face Model at https://faces.dmi.unibas.ch/bfm/, then convert as Deep3DFaceRecon does",
    ),
    (
        DEEP3D,
        "Deep3D regression",
        "MIT, needs BFM",
        "download the checkpoint that the authors of Deep3DFaceRecon_pytorch link in its README, and beside it: "
        f"curl -LO {STANDARD_FACE_URL}",
    ),
)


@dataclass(frozen=True)
class AssetStatus:
    """The state of one model file: one row of the table."""

    name: str
    needed_for: str
    licence: str
    instructions: str  # how to get it
    required: bool
    state: State  # the hash is as published, differs, or none is published; or the file is damaged or missing
    path: Path | None = None
    sha256: str | None = None
    problem: str | None = None  # what is wrong with a damaged file


def check_assets(assets: Assets, face_model: str = "ict", speech: str | Sequence[str] = HUBERT) -> list[AssetStatus]:
    """Check every model file; those that a run with this face model and these speech encoders reads are required.

    ICT-FaceKit is converted if there is only its archive, as a run would do.
    """
    rows = [_check_landmarker(assets)]
    if face_model != "demo":
        rows.append(_check_face_model(assets, face_model))
    encoders = (speech,) if isinstance(speech, str) else speech
    rows += [_check_speech(assets, name) for name in encoders if name != "demo"]
    for name, needed_for, licence, instructions in _OPTIONAL:
        path = assets.find(name)
        state: State = "missing" if path is None else "unknown"
        digest = None if path is None else file_sha256(path)
        rows.append(AssetStatus(name, needed_for, licence, instructions, False, state, path, digest))
    return [*rows, _check_speaking(assets)]


def is_complete(rows: Sequence[AssetStatus]) -> bool:
    """Return whether all required files exist and are intact."""
    return not any(row.required and row.state in ("missing", "damaged") for row in rows)


def format_table(rows: Sequence[AssetStatus]) -> str:
    """Format the table as plain text, followed by the problems and by how to get the missing files."""
    cells = [("file", "needed for", "found", "sha256", "licence")]
    for row in rows:
        found = row.state if row.path is None else str(row.path)
        digest = f"{row.sha256[:12]} {row.state}" if row.sha256 else "-"
        needed_for = row.needed_for if row.required else f"{row.needed_for} (optional)"
        cells.append((row.name, needed_for, found, digest, row.licence))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for row in rows:
        if row.problem:
            lines += ["", f"{row.name}: {row.problem}"]
        elif row.state == "missing":
            lines += ["", f"{row.name}{'' if row.required else ' (optional)'}: {row.instructions}"]
    return "\n".join(lines)


def _check_landmarker(assets: Assets) -> AssetStatus:
    catalogue = assets.catalogue
    name, path, digest, problem = catalogue.task, None, None, None
    state: State = "missing"
    if assets.has_landmarker():
        try:
            path = assets.landmarker()
            if path.is_dir():
                name = " + ".join(member.name for member in catalogue.wheel_members)
                digest, state = catalogue.wheel_members[0].sha256, "ok"  # both were compared
            else:
                digest = file_sha256(path)
                state = "ok" if digest == catalogue.task_sha256 else "differs"
        except RunError as error:
            state, problem = "damaged", str(error)
    instructions = assets.landmarker_instructions()
    return AssetStatus(name, "face landmarks", "Apache-2.0", instructions, True, state, path, digest, problem)


def _check_face_model(assets: Assets, name: str) -> AssetStatus:
    from lrs3_loader.face.model.morphable import FaceModel  # here: importing torch takes a second

    instructions = assets.ict_instructions() if name == "ict" else "name an existing file"
    path = None
    try:
        path = assets.face_model_path(name)
        model = FaceModel.load(path)
    except RunError as error:
        licence = "MIT" if name == "ict" else "?"
        if path is None and not (name == "ict" and assets.has_ict()):
            return AssetStatus(name, "face model", licence, instructions, True, "missing")
        return AssetStatus(name, "face model", licence, instructions, True, "damaged", path, problem=str(error))
    state: State = "unknown"
    if name == "ict":
        state = "ok" if model.source_sha256 == assets.catalogue.ict_sha256 else "differs"
    return AssetStatus(name, "face model", model.licence, instructions, True, state, path, model.source_sha256)


def _check_speech(assets: Assets, name: str) -> AssetStatus:
    place = assets.speech_encoder(name)
    folder = Path(place) if Path(place).is_dir() else _hub_snapshot(name)
    instructions = (
        f"downloaded from the Hugging Face hub on first use; without a connection: put its folder (config.json and "
        f"weights) into the assets folder as {Path(name).name}, or name the folder with --hubert"
    )
    licence = "Apache-2.0" if name == HUBERT else "see its card"
    state: State = "missing" if folder is None else "unknown"
    problem = None
    if folder is None and (Path(name).is_absolute() or name.startswith((".", "~"))):
        problem, instructions = f"there is no folder {name}", "name another with --hubert"
    try:
        if folder is not None:
            find_weights(folder)
            read_architecture(folder)
            expects_normalized_audio(folder)
    except (RunError, OSError, ValueError, RecursionError) as error:
        state, problem = "damaged", str(error)
    return AssetStatus(name, "speech features", licence, instructions, True, state, folder, problem=problem)


def _check_speaking(assets: Assets) -> AssetStatus:
    name, instructions = assets.catalogue.speaking, assets.speaking_instructions()
    path = assets.find(name, f"lr_asd/{name}")
    if path is None:
        return AssetStatus(name, "--speaking", "MIT", instructions, False, "missing")
    digest = file_sha256(path)
    state: State = "ok" if digest == assets.catalogue.speaking_sha256 else "differs"
    return AssetStatus(name, "--speaking", "MIT", instructions, False, state, path, digest)


def _hub_snapshot(name: str) -> Path | None:
    """Return the folder of a model in the local cache of the Hugging Face hub, or None; downloads nothing."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path rather than a name
        return None
    return Path(config).parent if isinstance(config, str) else None
