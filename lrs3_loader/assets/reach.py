"""Finds out whether model files can be fetched from where this machine is, without fetching them."""

from __future__ import annotations

import http.client
import subprocess
import tempfile
import urllib.request

from lrs3_loader.assets.check import AssetStatus
from lrs3_loader.assets.download import versions_command
from lrs3_loader.assets.locate import Assets

_TIMEOUT_SECONDS = 5.0
_PIP_TIMEOUT_SECONDS = 60.0


def why_not_fetched(row: AssetStatus, assets: Assets) -> str | None:
    """Return why a missing file that a run needs cannot be fetched now; None if a run can fetch it."""
    catalogue = assets.catalogue
    if row.needed_for == "face landmarks":
        problem = _address_problem(catalogue.task_url)
        return problem and _wheel_problem(catalogue.wheel) and problem
    if row.needed_for == "speech features":
        return _hub_problem(row.name)
    return _address_problem(catalogue.ict_url) if row.name == "ict" else "there is no such file"


def _address_problem(url: str) -> str | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT_SECONDS):
            return None
    except (OSError, http.client.HTTPException) as error:
        return f"{url} cannot be reached: {getattr(error, 'reason', None) or error}"


def _wheel_problem(requirement: str) -> str | None:
    name, _, version = requirement.partition("==")
    try:
        done = subprocess.run(
            versions_command(name), capture_output=True, text=True, timeout=_PIP_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"pip gives no answer about {name}"
    return None if version in done.stdout.replace(",", " ").split() else f"pip does not find {requirement}"


def _hub_problem(name: str) -> str | None:
    from huggingface_hub import hf_hub_download

    try:
        with tempfile.TemporaryDirectory(prefix="lrs3-loader-") as folder:  # a cached config would pass for the model
            hf_hub_download(name, "config.json", cache_dir=folder, etag_timeout=_TIMEOUT_SECONDS)
    except (OSError, ValueError) as error:
        return f"the Hugging Face hub does not give {name}: {' '.join(str(error).split())[:200]}"
    return None
