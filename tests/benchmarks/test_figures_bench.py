"""The benchmark of the figures reads every clip of the run that it makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import figures
from lrs3_loader.quality.figures import FIGURES
from lrs3_loader.run.folder import RunFolder


def test_the_made_up_run_has_all_figures_of_all_clips(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    lines = list(figures.measure_table(tmp_path / "run", 100))
    assert [line.split(" clips in ")[0] for line in lines[:2]] == [
        "open_run(RUN).figures(): 116",
        "open_run(RUN).table(): 116",
    ]
    assert lines[2].startswith("report, figures alone: ")
    assert "Presets" in (tmp_path / "run" / "report.html").read_text()
    columns = RunFolder.open(tmp_path / "run").figures().columns
    assert set(FIGURES) <= set(columns)
    assert all(columns[name].std() > 0 for name in FIGURES)
