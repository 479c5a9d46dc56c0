"""Cohorts as a CSV table: one row an image."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

SEPARATORS = ",;\t"
MAX_NAMED = 5


@dataclass(frozen=True)
class Row:
    """One image of a table.

    Attributes:
        image: a file, or the folder of one DICOM series.
        name: of the output; empty where the table does not say.
    """

    image: Path
    name: str


def read_table(path: Path, image_column: str = "image", name_column: str = "name") -> list[Row]:
    """Reads a table with a header; separated by commas, semicolons or tabs, in UTF-8.

    Args:
        path: the table; paths in it are relative to its folder, or absolute.
        image_column: column of image paths.
        name_column: column of output names; need not be there unless it is another than "name".

    Raises:
        ValueError: a column or a value is missing, an image does not exist, or the file is no such table; names the lines.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(SEPARATORS, key=header.count), strict=True)
            columns = list(reader.fieldnames or [])
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name}: cannot be read as a CSV table in UTF-8: {error}") from error
    for column, is_needed in ((image_column, True), (name_column, name_column != "name")):
        if is_needed and column not in columns:
            raise ValueError(f"{path.name}, line 1: no column {column!r}; the columns are {columns}")
    if not rows:
        raise ValueError(f"{path.name}: no row below the header")
    found: list[Row] = []
    problems: list[str] = []
    for line, row in rows:
        image = (row.get(image_column) or "").strip()
        if not image:
            problems.append(f"line {line}: column {image_column!r} is empty")
        elif None in row:  # where csv puts what has no column
            problems.append(f"line {line}: more values than columns")
        elif not (path.parent / image).exists():
            problems.append(f"line {line}: no such image: {image}")
        else:
            found.append(Row(path.parent / image, (row.get(name_column) or "").strip()))
    if problems:
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise ValueError(f"{path.name}, {'; '.join(problems[:MAX_NAMED])}{more}")
    return found
