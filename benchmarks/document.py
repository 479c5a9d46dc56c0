"""Documents that benchmarks write piece by piece: what was not measured in this run folder keeps the text that it has.

A whole benchmark takes hours; on another machine, or after a part was measured again, the other parts of its document stay.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

HEADING, ROW = "## ", "| "
Section = tuple[str, ...]


def read_sections(path: Path) -> dict[str, Section]:
    """Title -> lines of every section of a Markdown document, without its heading; empty where there is no document."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith(HEADING):
            lines = sections.setdefault(line.removeprefix(HEADING), [])
        else:
            lines.append(line)
    return {title: tuple("\n".join(found).strip().split("\n")) for title, found in sections.items()}


def read_rows(section: Section) -> dict[str, str]:
    """First cell -> line of every row of the section's tables."""
    return {line.removeprefix(ROW).split(" | ", 1)[0]: line for line in section if line.startswith(ROW)}


def write_sections(path: Path, head: Sequence[str], sections: Mapping[str, Sequence[str]], kept: Mapping[str, Section]) -> None:
    """Writes the document whole or not at all.

    Args:
        path: Markdown file.
        head: lines before the first section.
        sections: title -> lines, in their order. One without lines gets those that it has in `kept`, or is left out.
        kept: sections of an earlier document, see `read_sections`.
    """
    lines = [*head, ""]
    for title, found in sections.items():
        body = found or kept.get(title, ())
        lines += [HEADING + title, "", *body, ""] if body else []
    temporary = path.with_suffix(".part")
    temporary.write_text("\n".join(lines))
    os.replace(temporary, path)
    print(f"wrote {path}")
