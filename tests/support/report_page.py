"""Writes reports, and reads their pages as a strict reader of HTML does."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from lrs3_loader.errors import RunError
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.viz.report import Findings, write_report


def no_model() -> FaceModel:
    raise RunError("no face model ict here")


def report(run: RunFolder, **options: object) -> tuple[str, Findings]:
    settings: dict[str, object] = {"sample": None, "gallery": 4, "load_model": no_model, "progress": lambda _: None}
    findings = write_report(run, run.path / "report.html", **(settings | options))  # type: ignore[arg-type]
    return (run.path / "report.html").read_text(encoding="utf-8"), findings


class Checker(HTMLParser):
    """Every tag is closed by its own, and what is referred to is inside the page."""

    EMPTY = frozenset({"meta", "img", "br", "link", "rect", "line", "circle", "polyline", "polygon", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag not in ("script", "link", "iframe")
        assert "href" not in values
        assert not any(name.startswith("on") for name in values)
        if tag == "img":
            source = values["src"]
            assert source is not None
            assert source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
            self.images.append(source)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.EMPTY

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def read_page(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert "http" not in page.replace("http-equiv", "")
    return checker


def words(page: str) -> str:
    return re.sub(r"\s+", " ", " ".join(read_page(page).text))
