"""Settings in a YAML file of flags, read and written."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrs3_loader.config import LaunchConfig, RunConfig
from lrs3_loader.errors import RunError
from lrs3_loader.flags import flag_names
from lrs3_loader.io.files import reading
from lrs3_loader.io.storage import Url

MAX_FILE_BYTES = 1 << 20
#: Flags that a file cannot set: they say what to do once.
_NOT_IN_FILES = ("--retry-rejects", "--extend", "--repair", "--add")


def words_from_file(path: Path, given: Sequence[str]) -> list[str]:
    """Read flags from a YAML file, such as ``min-frames: 8``, as words of a command line.

    Args:
        given: the words of the command line itself: flags in them are left out, so that they count.

    Raises:
        RunError: the file cannot be read, is not a mapping, or sets a flag that does not exist; the message names it.
    """
    import yaml

    try:
        with reading(path), open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(f"there is no file {path}") from error
    try:
        settings = yaml.safe_load(data) if len(data) <= MAX_FILE_BYTES else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(settings, dict):
        raise RunError(f"{path} is not a list of flags and their values, such as `min-frames: 8`")
    known = {flag for kind in (RunConfig, LaunchConfig) for flag in flag_names(kind).values()} - {*_NOT_IN_FILES}
    on_command_line = {word.partition("=")[0].replace("_", "-") for word in given}
    words = []
    for name, value in settings.items():
        flag = f"--{name}".replace("_", "-")
        if flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            raise RunError(f"{path} sets {name}, which is no flag" + (f"; did you mean {near[0][2:]}?" if near else ""))
        if value is None or on_command_line & {flag, f"--no-{flag[2:]}"}:
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list):
            words += [flag, *(_word(path, name, entry) for entry in value)] if value else []
        else:
            words += [flag, _word(path, name, value)]
    return words


def _word(path: Path, name: str, value: object) -> str:
    if isinstance(value, (dict, list)):  # aliases could make them of any size
        raise RunError(f"{path}: {name} must be a value or a list of values, without lists or mappings in it")
    return str(value)


def as_file(run: RunConfig, launch: LaunchConfig) -> str:
    """Format all settings as a file for ``--config``."""
    import yaml

    settings = {}
    for config in (run, launch):
        for place, flag in flag_names(type(config)).items():
            value: Any = config
            for name in place:
                value = getattr(value, name)
            if flag not in _NOT_IN_FILES:
                settings[flag[2:]] = _plain(value)
    return str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _plain(value: Any) -> Any:
    if isinstance(value, (Path, Url)):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
