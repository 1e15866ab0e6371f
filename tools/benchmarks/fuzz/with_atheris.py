#!/usr/bin/env python3
"""Fuzzes one reader of ``readers`` guided by coverage, for as long as it is let.

pip install atheris

python -m benchmarks.fuzz.with_atheris ledger -max_total_time=600    # in tools/
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["lrs3_loader"], enable_loader_override=False):
    from benchmarks.fuzz.readers import ReaderFuzz


def main() -> None:
    name = sys.argv.pop(1)
    with ReaderFuzz(None, (name,)) as fuzz:

        def test(data: bytes) -> None:
            verdict = fuzz.read(name, data)
            if verdict.problem:
                raise AssertionError(verdict.problem)

        corpus = fuzz.folder / "corpus"
        corpus.mkdir()
        for number, whole in enumerate(fuzz.targets[name].files):
            (corpus / str(number)).write_bytes(whole)
        atheris.Setup([*sys.argv, str(corpus)], test)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
