"""The tree is the architecture: imports point one way, and no tracked file names a path of somebody's machine."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"main", "lib", "app_cdm", "demo", "tests", "benchmarks"}
ALLOWED = {
    "app_cdm": {"app_cdm"},
    "lib": {"lib", "app_cdm"},
    "main": {"main", "lib", "app_cdm"},
    "demo": {"demo", "app_cdm"},
}
# What `app_cdm` must work without: the host, and everything that belongs to a server.
NOT_IN_APP_CDM = {"monailabel", "fastapi", "starlette", "uvicorn", "requests", "nilearn", "pydicom_seg"}
# The command line's own edge: launchers say in the environment which of several processes this is, and a password must come from there.
READS_ENVIRONMENT = "app_cdm/commands/environment.py"
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:home|Users|root|work|mnt)/[A-Za-z]")


def sources(package: str) -> list[Path]:
    single = ROOT / f"{package}.py"
    return [single] if single.is_file() else sorted((ROOT / package).rglob("*.py"))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package: str) -> None:
    for path in sources(package):
        names = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
        wrong = (names & OURS) - ALLOWED[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}; {package} may import {sorted(ALLOWED[package])}"


def test_app_cdm_knows_nothing_of_its_host() -> None:
    for path in sources("app_cdm"):
        tree = ast.parse(path.read_text())
        names = {name.split(".")[0] for name in imported(tree)}
        assert not names & NOT_IN_APP_CDM, f"{path.relative_to(ROOT)} imports {sorted(names & NOT_IN_APP_CDM)}"
        for node in ast.walk(tree) if path != ROOT / READS_ENVIRONMENT else ():
            reads = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv")
            assert not reads, f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} touches environment variables"


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_stand_at_module_top(package: str) -> None:
    for path in sources(package):
        tree = ast.parse(path.read_text())
        nested = [
            node.lineno
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert not nested, f"{path.relative_to(ROOT)}: imports inside functions, lines {nested}"


def test_no_tracked_file_names_a_machine_path() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    texts = (".py", ".md", ".toml", ".txt", ".cfg", ".json", ".yml", ".yaml", "Makefile", "run")
    for name in listing.stdout.split():
        path = ROOT / name
        if name.endswith(texts) and path.is_file():
            found = MACHINE_PATH.search(path.read_text(errors="replace"))
            assert not found, f"{name}: machine path near {found.group() if found else ''!r}"
