"""Tag tables in and out: CSV and JSON, as `app_cdm.data.tags.read_tags` reads them."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app_cdm.data.tags import TagError, TagTable, read_tags
from lib.server.checks import parse_json
from lib.tags.book import TagBook
from lib.tags.record import Provenance, TagsByImage, check_user, to_stored, to_text

SUFFIXES = (".csv", ".json")
FIELDS = ("image", "patient", "class", "tag", "user", "time", "provenance")
IMPORT: Provenance = "import"


@dataclass(frozen=True)
class ImportOptions:
    """How a table is read.

    Attributes:
        user: who imports.
        split: take rows with this value in the column `split` only.
        id_suffix: what image ids have after the names in the table, such as `_flair`.
        columns: class -> 0/1 column or `COLUMN=VALUE`, for tables by slice or image; by default every `has_<class>`.
        is_dry_run: check everything, store nothing.
        exclude: leave out rows with 1 in this column.
    """

    user: str
    split: str | None = None
    id_suffix: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    is_dry_run: bool = False
    exclude: str | None = None


def import_table(book: TagBook, name: str, content: bytes, options: ImportOptions) -> dict[str, Any]:
    """Stores the tags of a table: all or none. Tags that are in force already are left alone, with who gave them.

    Args:
        book: where they go.
        name: the table's file name, ending in `.csv` or `.json`.
        content: the file.
        options: how to read it.

    Returns:
        What was, or would be, stored: `images` and `tags` in the table, how many `changed`, and the `action`.

    Raises:
        TagError: the table or a tag in it is malformed.
        UnknownNameError: an image or class does not exist.
    """
    check_user(options.user)
    table = parse_table(name, content, options)
    said = {image: tags for image, tags in table.tags.items() if tags}  # a row of empty cells says nothing of its image
    given = {f"{image}{options.id_suffix}": {key: to_stored(tag) for key, tag in tags.items()} for image, tags in said.items()}
    checked = book.check(given)
    changed = changes(checked, book.store.all_tags())
    action = None
    named = {f"{image}{options.id_suffix}": patient for image, patient in table.patients.items()}
    patients = {image: patient for image, patient in named.items() if patient != image}
    if changed and not options.is_dry_run:
        action = book.record(changed, options.user, IMPORT, patients)
    elif not options.is_dry_run:
        book.store.set_patients(patients)
    return {
        "images": len(checked),
        "tags": sum(map(len, checked.values())),
        "changed": sum(map(len, changed.values())),
        "dry_run": options.is_dry_run,
        "action": action,
    }


def parse_table(name: str, content: bytes, options: ImportOptions) -> TagTable:
    """Reads a table that came as bytes.

    Raises:
        TagError: it is no tag table.
    """
    suffix = next((item for item in SUFFIXES if name.lower().endswith(item)), None)
    if suffix is None:
        raise TagError(f"table {name!r}: its name must end in one of {list(SUFFIXES)}")
    try:
        text = content.decode("utf-8-sig")
        if suffix == ".json":
            parse_json(text)  # which also refuses an image or a class that is named twice
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"table{suffix}"
            path.write_text(text)
            return read_tags(path, options.columns or None, options.split, options.exclude)
    except (ValueError, csv.Error, KeyError, AttributeError, TypeError) as error:
        raise TagError(f"table {name!r}: {error}") from error


def changes(tags: TagsByImage, current: TagsByImage) -> TagsByImage:
    """The tags that differ from those in force; a class that was never tagged is unknown."""
    differing = {
        image: {name: value for name, value in by_class.items() if value != current.get(image, {}).get(name)}
        for image, by_class in tags.items()
    }
    return {image: by_class for image, by_class in differing.items() if by_class}


def export_csv(book: TagBook) -> str:
    """Every tag in force as CSV, one row an image and class; `read_tags` and an import read it."""
    patients = book.store.patients()
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for event in book.store.current():
        if event.value is None:
            continue
        patient = patients.get(event.image, "")
        writer.writerow((event.image, patient, event.class_name, to_text(event.value), event.user, event.time, event.provenance))
    return text.getvalue()


def export_json(book: TagBook) -> str:
    """Every tag in force as JSON, image -> class -> tag; `read_tags` and an import read it."""
    tags: TagsByImage = {}
    for event in book.store.current():
        if event.value is not None:
            tags.setdefault(event.image, {})[event.class_name] = event.value
    return json.dumps(tags, indent=1, ensure_ascii=False) + "\n"
