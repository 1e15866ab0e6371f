"""Data flows one way: a module imports only from its own floor and those below."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from support.paths import REPO

PACKAGE = REPO / "lrs3_loader"

#: Floors of the package, from the lowest. Modules on one floor may import one another; a name stands for a whole
#: folder, too.
ORDER = [
    {"types", "errors"},
    {"runtime", "io", "kernels"},
    {"face", "quality", "run", "config", "flags"},
    {"corpus", "assets", "audio", "demo", "selection", "speaking", "stream"},
    {"extraction", "decode", "train"},
    {"viz", "doctor", "interop", "syncnet", "audio2motion", "api"},
    {"launch"},
    {"commands", "__main__"},
]


def level(module: str) -> int:
    name = module.split(".")[0]
    found = [index for index, group in enumerate(ORDER) if name in group]
    assert found, f"{name} has no place in the order: add it"
    return found[0]


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path} imports by a relative name; write it out")
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lrs3_loader"):
            inside = node.module.removeprefix("lrs3_loader").lstrip(".")
            modules |= {inside} if inside else {alias.name for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.Import):
            modules |= {a.name.removeprefix("lrs3_loader.") for a in node.names if a.name.startswith("lrs3_loader.")}
    return modules


def test_modules_import_only_from_below() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module == "__init__":
            continue
        wrong += [f"{module} imports {other}" for other in imported_modules(path) if level(other) > level(module)]
    assert wrong == []


#: Packages that only some files or folders may use: what is no dependency, and matplotlib, which is slow to import.
ALLOWED = {
    "mediapipe": ("tools/benchmarks/peers.py",),
    "librosa": ("tools/benchmarks/peers.py",),
    "matplotlib": ("lrs3_loader/viz/", "tools/benchmarks/plot.py"),
    "pytorch3d": ("lrs3_loader/face/photometric/render.py",),
    "cv2": (),
    "tensorflow": (),
}


def restricted_imports(nodes: Iterable[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
    return {name.split(".")[0] for name in names} & ALLOWED.keys()


def test_heavy_optional_packages_stay_out() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(REPO / "tools" / "benchmarks").rglob("*.py")]:
        for name in restricted_imports(ast.walk(ast.parse(path.read_text()))):
            assert path.relative_to(REPO).as_posix().startswith(ALLOWED[name] or ("nowhere",)), f"{path} imports {name}"


def test_optional_packages_are_imported_only_when_used() -> None:
    for allowed in {path for paths in ALLOWED.values() for path in paths if path.endswith(".py")}:
        assert not restricted_imports(ast.parse((REPO / allowed).read_text()).body), allowed


COLLECTIVES = {"init_process_group", "barrier", "monitored_barrier", "broadcast", "broadcast_object_list", "scatter"}
COLLECTIVES |= {"gather", "gather_object", "all_gather", "all_gather_object", "all_reduce", "reduce", "reduce_scatter"}


def test_extraction_calls_no_collective() -> None:
    """Ranks share a store and nothing else, so that none of them ever waits for another one."""
    for folder in ("launch", "extraction", "decode", "run", "audio", "face"):
        for path in (PACKAGE / folder).rglob("*.py"):
            names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            if "torch.distributed" in path.read_text():
                assert not names & COLLECTIVES, path


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by these names alone."""
    names = [path.name for path in (REPO / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
