"""A document keeps what was not measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.document import read_rows, read_sections, write_sections

ROOT = Path(__file__).resolve().parents[2]
HEAD = ["# Title", "", "Written by a command."]
TABLE = ["Said before.", "", "| mode | Dice |", "|---|---|", "| `a`, with words | 0.5 | x |", "| `b` | 0.6 | y |"]


def test_what_has_no_lines_keeps_those_of_the_document(tmp_path: Path) -> None:
    path = tmp_path / "document.md"
    write_sections(path, HEAD, {"One": TABLE, "Two": ["old"], "Three": []}, {})
    assert list(read_sections(path)) == ["One", "Two"]
    write_sections(path, HEAD, {"One": [], "Two": ["new", "", "lines"], "Three": ["added"]}, read_sections(path))
    assert read_sections(path) == {"One": tuple(TABLE), "Two": ("new", "", "lines"), "Three": ("added",)}
    assert path.read_text().startswith("# Title\n\nWritten by a command.\n\n## One\n\nSaid before.\n")
    assert [found.name for found in tmp_path.iterdir()] == ["document.md"]


def test_rows_go_by_their_first_cell() -> None:
    rows = read_rows(tuple(TABLE))
    assert rows["`a`, with words"] == TABLE[4]
    assert rows["`b`"] == TABLE[5]


def test_there_need_be_no_document(tmp_path: Path) -> None:
    assert read_sections(tmp_path / "absent.md") == {}


@pytest.mark.parametrize("name", ["benchmark", "learning-curve", "performance"])
def test_documents_of_the_project_survive_unchanged(name: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text()
    sections = read_sections(ROOT / "docs" / f"{name}.md")
    head = text.split("\n## ")[0].rstrip("\n").split("\n")
    write_sections(tmp_path / "copy.md", head, dict.fromkeys(sections, ()), sections)
    assert (tmp_path / "copy.md").read_text() == text
    assert sections
