"""Image-level tags: per image and class absent, present on slice ranges, present somewhere, or unknown."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

PRESENT, ABSENT, UNKNOWN = 1, 0, -1
TagValue = bool | None | tuple[tuple[int, int], ...]
TRUTHS = {"1": PRESENT, "0": ABSENT, "": UNKNOWN, "true": PRESENT, "false": ABSENT}


class TagError(ValueError):
    """A tag or tag table is malformed; the message names image, class and value."""


def parse_tag(value: object) -> TagValue:
    """Checks one tag.

    Args:
        value: `False` (absent), `True` (present somewhere), `None` (unknown) or a list of inclusive, 0-based slice
            ranges `[[first, last], ...]` in the file's own voxel order (present exactly there). In CSV files the words
            `absent`, `present`, `unknown` and ranges such as `8-15;20-20` say the same.

    Raises:
        TagError: anything else, a reversed or negative range, or ranges that overlap.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _parse_text(value)
    if not isinstance(value, list | tuple) or not value:
        raise TagError(f"tag {value!r}: must be false, true, null or a list of slice ranges such as [[8, 15]]")
    ranges = []
    for item in value:
        whole = isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(n, int) and not isinstance(n, bool) for n in item)
        if not whole or not 0 <= item[0] <= item[1]:
            raise TagError(f"slice range {item!r}: must be [first, last] with 0 <= first <= last")
        ranges.append((item[0], item[1]))
    ranges.sort()
    for (_, stop), (start, _) in zip(ranges, ranges[1:], strict=False):
        if start <= stop:
            raise TagError(f"slice ranges {ranges}: must not overlap")
    return tuple(ranges)


def _parse_text(text: str) -> TagValue:
    words: dict[str, bool | None] = {"absent": False, "present": True, "unknown": None, "": None}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        return parse_tag([[int(n) for n in part.split("-")] for part in text.split(";")])
    except ValueError as error:
        raise TagError(f"tag {text!r}: must be absent, present, unknown or ranges such as 8-15;20-20") from error


def slice_states(tag: TagValue, num_slices: int) -> np.ndarray:
    """`(num_slices,)` int8 of PRESENT, ABSENT or UNKNOWN, in the file's own slice order.

    Present somewhere says nothing of a single slice, unless it is the only one.

    Raises:
        TagError: a range ends beyond the last slice.
    """
    if tag is True and num_slices == 1:
        return np.array([PRESENT], dtype=np.int8)
    if tag is None or tag is True:
        return np.full(num_slices, UNKNOWN, dtype=np.int8)
    states = np.full(num_slices, ABSENT, dtype=np.int8)
    for first, last in tag or ():
        if last >= num_slices:
            raise TagError(f"slice range [{first}, {last}]: the image has {num_slices} slices (0 to {num_slices - 1})")
        states[first : last + 1] = PRESENT
    return states


@dataclass(frozen=True)
class TagTable:
    """Tags of many images.

    Attributes:
        class_names: the classes, alphabetically.
        tags: image id -> class -> tag, as given.
        patients: image id -> patient id; splits are made by patient.
        num_slices: image id -> slices, where that is known: ranges that cover all of them leave none where the class is absent.
    """

    class_names: tuple[str, ...]
    tags: Mapping[str, Mapping[str, TagValue]]
    patients: Mapping[str, str]
    num_slices: Mapping[str, int] = field(default_factory=dict)

    def states(self, image_id: str, num_slices: int) -> np.ndarray:
        """`(num_slices, num_classes)` int8 in the file's own slice order; a class without a tag is unknown."""
        tags, known = self.tags[image_id], self.num_slices.get(image_id, num_slices)
        if known != num_slices:
            raise TagError(f"image {image_id!r}: has {num_slices} slices, and the tags are of {known}")
        try:
            return np.stack([slice_states(tags.get(name), num_slices) for name in self.class_names], axis=1)
        except TagError as error:
            raise TagError(f"image {image_id!r}: {error}") from error

    def digest(self) -> str:
        """SHA-256 of the tag set, independent of the order of images; stored beside the weights trained on it."""
        rows = [[image, dict(sorted(tags.items()))] for image, tags in sorted(self.tags.items())]
        return hashlib.sha256(json.dumps([list(self.class_names), rows]).encode()).hexdigest()

    def subset(self, image_ids: Iterable[str]) -> TagTable:
        """The table of some images only."""
        keep = list(image_ids)
        num_slices = {image: self.num_slices[image] for image in keep if image in self.num_slices}
        return TagTable(self.class_names, {i: self.tags[i] for i in keep}, {i: self.patients[i] for i in keep}, num_slices)

    def patients_with(self, class_name: str, state: int) -> set[str]:
        """Patients of whom an image is tagged PRESENT, somewhere or on slices, or of whom slices are tagged ABSENT."""
        return {self.patients[image] for image in self.tags if self._holds(image, class_name, state)}

    def _holds(self, image: str, class_name: str, state: int) -> bool:
        tag = self.tags[image].get(class_name)
        if state == PRESENT:
            return bool(tag)
        if tag is None or tag is True:  # present somewhere says nothing of any slice
            return False
        return sum(last - first + 1 for first, last in tag or ()) < self.num_slices.get(image, math.inf)


def read_tags(path: Path, columns: Mapping[str, str] | None = None, split: str | None = None, exclude: str | None = None) -> TagTable:
    """Reads a tag table: JSON, a CSV of tags, or a CSV with one row a slice or an image.

    - JSON: `{"image": {"class": tag}}`.
    - CSV of tags: columns `image`, `class`, `tag`, and optionally `patient` and `split`.
    - CSV with one row a slice: `volume` (or `patient_id`), `slice_index` (from 0, every slice of a volume) and a 0/1 column a class.
    - CSV with one row an image: `image_id` and a 0/1 column a class; an empty cell says nothing.

    Args:
        path: the table.
        columns: class name -> 0/1 column, for tables by slice or image; `COLUMN=VALUE` is 1 where the column holds that value. By
            default every `has_<class>` column.
        split: keep rows with this value in the column `split`.
        exclude: leave out rows with 1 in this column, such as those whose labels contradict each other; not of a table by slice.

    Raises:
        TagError: the file is no such table, or a value in it is malformed.
    """
    if path.suffix == ".json":
        return _from_json(path)
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a byte order mark
        fields, rows = _read_rows(csv.DictReader(file), path)
    rows = [row for row in rows if split is None or row.get("split") == split]
    if exclude is not None:
        kept = [row for row in rows if not _is_excluded(row, exclude, path)]
        if len(kept) < len(rows) and "slice_index" in fields:
            raise TagError(f"{path.name}: rows of slices cannot be left out, because a slice without a row would count as absent")
        rows = kept
    if not rows:
        raise TagError(f"{path.name}: no row{f' of split {split!r}' if split else ''}")
    if {"image", "class", "tag"} <= set(fields):
        return _from_tag_rows(rows)
    columns = columns or {field.removeprefix("has_"): field for field in fields if field.startswith("has_")}
    missing = sorted({column.partition("=")[0] for column in columns.values()} - set(fields))
    if not columns or missing:
        raise TagError(f"{path.name}: no tag column {missing or 'has_<class>'}; the columns are {fields}")
    return _from_state_rows(rows, columns)


def _read_rows(reader: csv.DictReader[str], path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a table, each row with a cell a column; columns without a name do not count."""
    fields = list(reader.fieldnames or [])
    doubled = sorted(name for name, count in Counter(fields).items() if name and count > 1)
    if doubled:
        raise TagError(f"{path.name}, line {reader.line_num}: columns {doubled} are there twice: name each column once")
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise TagError(f"{path.name}, line {reader.line_num}: has fewer or more cells than the {len(fields)} of the header")
        rows.append(row)
    return fields, rows


def _is_excluded(row: Mapping[str, str], column: str, path: Path) -> bool:
    """Whether a row holds 1 in the column that says which rows to leave out."""
    state = TRUTHS.get((row.get(column) or "").strip().lower()) if column in row else None
    if state is None:
        raise TagError(f"{path.name}: column {column!r} says which rows to leave out; it must be there, and hold 1, 0 or nothing")
    return state == PRESENT


def _state_of(row: Mapping[str, str], column: str) -> int | None:
    """What a row says of a class: of a 0/1 column, or whether `COLUMN=VALUE` is so; None where it is neither."""
    name, is_value, value = column.partition("=")
    text = (row[name] or "").strip()
    return int(text == value.strip()) if is_value else TRUTHS.get(text.lower())


def _table(
    tags: dict[str, dict[str, TagValue]], patients: dict[str, str], num_slices: Mapping[str, int] | None = None, names: Iterable[str] = ()
) -> TagTable:
    names = sorted({*names, *(name for by_class in tags.values() for name in by_class)})
    return TagTable(tuple(names), tags, {image: patients.get(image, image) for image in tags}, num_slices or {})


def _from_json(path: Path) -> TagTable:
    try:
        given = json.loads(path.read_text())
    except ValueError as error:
        raise TagError(f"{path.name}: is not JSON ({error})") from error
    if not isinstance(given, dict) or not given or not all(isinstance(tags, dict) for tags in given.values()):
        raise TagError(f"{path.name}: must be an object of image -> class -> tag")
    return _table({image: {name: _named_tag(image, name, tag) for name, tag in tags.items()} for image, tags in given.items()}, {})


def _named_tag(image: str, name: str, tag: object) -> TagValue:
    try:
        return parse_tag(tag)
    except TagError as error:
        raise TagError(f"image {image!r}, class {name!r}: {error}") from error


def _from_tag_rows(rows: list[dict[str, str]]) -> TagTable:
    tags: dict[str, dict[str, TagValue]] = {}
    for row in rows:
        by_class = tags.setdefault(row["image"], {})
        if row["class"] in by_class:
            raise TagError(f"image {row['image']!r}, class {row['class']!r}: tagged twice")
        by_class[row["class"]] = _named_tag(row["image"], row["class"], row["tag"])
    return _table(tags, {row["image"]: row["patient"] for row in rows if row.get("patient")})


def _from_state_rows(rows: list[dict[str, str]], columns: Mapping[str, str]) -> TagTable:
    """Tables with one 0/1 row a slice (runs of 1 become slice ranges) or an image (1 is present somewhere)."""
    by_slice = "slice_index" in rows[0]
    found: dict[str, dict[str, dict[int, int]]] = {}
    patients: dict[str, str] = {}
    for row in rows:
        image = row.get("volume") or row.get("image_id") or row.get("patient_id") or ""
        patients[image] = row.get("patient_id") or row.get("group_id") or image
        index = row.get("slice_index") or "" if by_slice else "0"
        if not image or not index.isdecimal():
            raise TagError(f"image {image!r}, slice_index {index!r}: every row needs an image and a slice index of 0 or more")
        for name, column in columns.items():
            state = _state_of(row, column)
            if state is None or (state == UNKNOWN and by_slice):
                raise TagError(f"image {image!r}, column {column!r}: {row[column]!r} is neither 0 nor 1")
            states = found.setdefault(image, {}).setdefault(name, {})
            if int(index) in states:
                raise TagError(f"image {image!r}, class {name!r}: tagged twice" + (f" on slice {index}" if by_slice else ""))
            states[int(index)] = state
    tags: dict[str, dict[str, TagValue]] = {
        image: {
            name: (_runs(states) or False) if by_slice else states[0] == PRESENT
            for name, states in by_class.items()
            if UNKNOWN not in states.values()
        }
        for image, by_class in found.items()
    }
    num_slices = {image: _count_slices(image, by_class) for image, by_class in found.items()} if by_slice else {}
    return _table(tags, patients, num_slices, columns)


def _count_slices(image: str, by_class: Mapping[str, Mapping[int, int]]) -> int:
    """Slices of an image of which every one has a row."""
    indices = sorted(next(iter(by_class.values())))
    missing = next((number for number, index in enumerate(indices) if index != number), None)
    if missing is not None:
        raise TagError(
            f"image {image!r}: no row for slice {missing} (slices count from 0): a table by slice needs all slices of an image; "
            "tag some of them by slice ranges instead"
        )
    return len(indices)


def _runs(states: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    """Consecutive runs of present slices as inclusive ranges."""
    runs: list[list[int]] = []
    for index in sorted(index for index, state in states.items() if state == PRESENT):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return tuple((first, last) for first, last in runs)
