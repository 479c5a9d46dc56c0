"""What there is to segment: a name for the output and a way to read the image, for every case."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from app_cdm.cohort.table import read_table
from app_cdm.data.dataset import SUFFIXES
from app_cdm.data.dicom import DicomSeries
from app_cdm.data.volume import Volume, find_dicom_series, read_dicom_series, read_volume

TABLE_SUFFIX = ".csv"
INDEX, LABELS = "datastore_v2.json", "labels"  # of a label server, side by side
MAX_NAME_BYTES = 180  # of a part of an output name: suffixes follow, and file systems allow 255


@dataclass(frozen=True)
class Case:
    """One image.

    Attributes:
        name: of its output, with its subfolder, unique in a cohort.
        source: where it is, for a person.
        read: gives the image; raises ValueError or OSError where it cannot.
    """

    name: str
    source: str
    read: Callable[[], Volume]


def find_cases(inputs: Sequence[Path], output: Path, image_column: str = "image", name_column: str = "name") -> list[Case]:
    """Every image of files, folders, folders of DICOM series, and CSV tables.

    Args:
        inputs: the paths.
        output: results are written there; a folder below an input is not searched.
        image_column: of a table, names the image.
        name_column: of a table, names the output, if there is such a column.

    Raises:
        FileNotFoundError: a path does not exist or a folder holds no image.
        ValueError: a table is malformed, or two images would write to the same name.
    """
    found: list[Case] = []
    for path in inputs:
        if path.is_file() and path.name.lower().endswith(TABLE_SUFFIX):
            rows = read_table(path, image_column, name_column)
            found += [Case(row.name or stem(row.image), str(row.image), partial(read_volume, row.image)) for row in rows]
        elif path.is_file():
            found.append(_case_of_file(stem(path), path))
        elif path.is_dir():
            found += _cases_of_folder(path, output)
        else:
            raise FileNotFoundError(f"{path} does not exist")
    check_names(case.name for case in found)
    return found


def check_names(names: Iterable[str]) -> None:
    """Refuses names that two cases have, that name a file in another way than others may, or that would not stay in the output folder.

    Raises:
        ValueError: there are such names; says which.
    """
    counts = Counter(names)
    doubled = sorted(name for name, count in counts.items() if count > 1)
    if doubled:
        raise ValueError(f"several inputs are named {doubled[:3]}: infer them into different output folders, or name them in a CSV table")
    for name in counts:
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or any(part.startswith(".") for part in parts) or "\0" in name:
            raise ValueError(f"output name {name!r}: must be a path below the output folder, and no part of it may start with a dot")
        if name != str(PurePosixPath(name)):
            raise ValueError(f"output name {name!r}: write {str(PurePosixPath(name))!r}, lest two cases share a file")
        if any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
            raise ValueError(f"output name {name[:40]!r}...: longer than {MAX_NAME_BYTES} bytes; name the output in a CSV table")
        if f"{name}.error" in counts:
            raise ValueError(f"output names {name!r} and {name + '.error'!r} would write to the same file: rename one of them")


def stem(path: Path) -> str:
    """File name without the suffix of its format; of a folder its name."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "" if path.is_dir() else path.suffix)
    return path.name[: len(path.name) - len(suffix)]


def _cases_of_folder(folder: Path, output: Path) -> list[Case]:
    own = output.resolve()
    is_inside = own != folder.resolve() and own.is_relative_to(folder.resolve())
    items = [item for item in folder.rglob("*") if not any(part.startswith(".") for part in item.relative_to(folder).parts)]
    labels = {item.with_name(LABELS) for item in items if item.name == INDEX}
    files = sorted(
        item
        for item in items
        if item.name.lower().endswith(SUFFIXES)
        and labels.isdisjoint(item.parents)
        and not (is_inside and item.resolve().is_relative_to(own))
    )
    series = find_dicom_series(folder)
    if not files and not series:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(SUFFIXES)}) and no DICOM series")
    cases = [_case_of_file(str(item.relative_to(folder).parent / stem(item)), item) for item in files]
    return cases + [Case(_series_name(item), str(item.files[0].parent), partial(read_dicom_series, item)) for item in series]


def _case_of_file(name: str, path: Path) -> Case:
    return Case(name, str(path), partial(read_volume, path))


def _series_name(series: DicomSeries) -> str:
    """SeriesInstanceUID; of a series that holds several volumes also what tells them apart."""
    return series.uid if series.part is None else re.sub(r"[^\w.+-]", "_", "_".join([series.uid, *series.part]))
