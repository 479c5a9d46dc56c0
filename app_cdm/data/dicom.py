"""DICOM in: series found by header alone, checked as a stack, then read."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app_cdm.data.dicom_header import SliceHeader, read_headers
from app_cdm.data.dicom_pixels import read_stack
from app_cdm.data.dicom_split import Part, split_volumes
from app_cdm.data.dicom_stack import ordered, stack_affine
from app_cdm.data.grid import Volume, VolumeError, checked_volume

LOGGER = logging.getLogger(__name__)
MAGIC = b"DICM"
MAGIC_OFFSET = 128
MAX_LISTED = 10


@dataclass(frozen=True)
class DicomSeries:
    """One DICOM series on disk, or one volume of a series that holds several.

    Attributes:
        uid: Series Instance UID.
        study_uid: Study Instance UID.
        files: its image files in order along the slice normal (by instance number where they have no position); of several
            copies of one instance only one.
        description: Series Description, may be empty.
        modality: such as `MR`.
        patient: digest that tells patients apart; the identity cannot be read from it. May be empty.
        part: name and value of the attribute that sets this volume apart in its series, such as `("EchoTime", "90")`.
        is_localizer: whether the files call themselves that.
        problem: why the files make no volume; empty where they do, as far as their headers say.
    """

    uid: str
    study_uid: str
    files: tuple[Path, ...]
    description: str
    modality: str
    patient: str = ""
    part: Part | None = None
    is_localizer: bool = False
    problem: str = ""

    def __str__(self) -> str:
        part = f", {self.part[0]} {self.part[1]}" if self.part else ""
        return f"{self.uid} ({self.modality or 'no modality'} {self.description!r}{part}, {len(self.files)} files)"


def is_dicom_file(path: Path) -> bool:
    """Whether the file carries the DICOM file marker; any other file, and one too short, does not."""
    with path.open("rb") as file:
        file.seek(MAGIC_OFFSET)
        return file.read(len(MAGIC)) == MAGIC


def find_dicom_series(folder: str | Path) -> list[DicomSeries]:
    """Finds the image series below a folder by their headers; pixels are not read.

    Files that are no DICOM images (others, DICOMDIR, reports, contours, segmentations, doses) are passed over, and so are
    hidden subfolders. A series of several volumes is listed as its volumes where one attribute tells them apart.

    Args:
        folder: searched with its subfolders.

    Returns:
        Series sorted by study and series UID; those that make no volume say why.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    groups: dict[tuple[str, str], list[SliceHeader]] = defaultdict(list)
    for parent, folders, names in os.walk(folder):
        # Hidden folders hold no studies; and to open and close a database that this process uses would drop its locks.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent) / name for name in names):
            for header in _headers_of(path):
                groups[header.study_uid, header.series_uid].append(header)
    return [series for _, headers in sorted(groups.items()) for series in _volumes(headers)]


def _headers_of(path: Path) -> list[SliceHeader]:
    try:
        return read_headers(path) if path.is_file() and is_dicom_file(path) else []
    except OSError as error:
        LOGGER.warning("%s: cannot be opened, file passed over (%s)", path.name, error.strerror)
        return []


def _volumes(headers: Sequence[SliceHeader]) -> list[DicomSeries]:
    parts = split_volumes(headers)
    if parts:
        return [_series(slices, part) for part, slices in parts.items()]
    return [_series(ordered(headers), None)]


def _series(slices: Sequence[SliceHeader], part: Part | None) -> DicomSeries:
    first, problem = slices[0], ""
    try:
        stack_affine(slices)
    except VolumeError as error:
        problem = str(error)
    return DicomSeries(
        uid=first.series_uid,
        study_uid=first.study_uid,
        files=tuple(dict.fromkeys(header.path for header in slices)),
        description=first.description,
        modality=first.modality,
        patient=first.patient,
        part=part,
        is_localizer=first.is_localizer,
        problem=problem,
    )


def read_dicom_folder(folder: Path) -> Volume:
    """Reads the one image series below a folder.

    Raises:
        FileNotFoundError: there is no such folder.
        VolumeError: it holds no series or several (each is named), or the series makes no regular volume.
    """
    found = find_dicom_series(folder)
    if not found:
        raise VolumeError(f"{folder.name}: no DICOM image in this folder: point to the folder of one series")
    if len(found) > 1:
        listing = "; ".join(str(series) for series in found[:MAX_LISTED]) + ("; ..." if len(found) > MAX_LISTED else "")
        what = "volumes" if any(series.part for series in found) else "series"
        raise VolumeError(f"{folder.name}: {len(found)} {what} in this folder, point to one of them: {listing}")
    return read_dicom_series(found[0], folder)


def read_dicom_series(series: DicomSeries, path: Path | None = None) -> Volume:
    """Reads one series as a volume `(columns, rows, slices)`, slices ordered along the normal (row x column direction).

    Args:
        series: as `find_dicom_series` gave it.
        path: what the volume names as its source; the folder of the first file by default.

    Raises:
        VolumeError: a file is broken, or the slices make no regular stack (missing, doubled, shifted or turned slices).
    """
    return _read_slices(series_headers(series), path or series.files[0].parent)


def series_headers(series: DicomSeries) -> list[SliceHeader]:
    """The headers of a series' slices, in order.

    Raises:
        VolumeError: a file of it cannot be read any more.
    """
    headers: list[SliceHeader] = []
    for file in series.files:
        found = read_headers(file)
        if not found:
            raise VolumeError(f"{file.name}: cannot be read as a DICOM image: export the series again")
        headers.extend(header for header in found if series.part is None or series.part in header.marks)
    if not headers:
        raise VolumeError(f"{series.uid}: its files have changed and hold no slice of {series}: reload the studies")
    return ordered(headers)


def read_dicom_file(path: Path) -> Volume:
    """Reads a single DICOM file as a volume: of one slice, or of all its frames.

    Raises:
        FileNotFoundError: there is no such file.
        VolumeError: the file is no DICOM image, is broken, or its frames make no regular volume.
    """
    headers = read_headers(path)
    if not headers:
        raise VolumeError(f"{path.name}: cannot be read as a DICOM image: send an image object with its pixels")
    return _read_slices(ordered(headers), path)


def _read_slices(headers: Sequence[SliceHeader], path: Path) -> Volume:
    """Stacks ordered slices after their geometry has been checked, so that a bad series costs no pixel reading."""
    affine = stack_affine(headers)
    return checked_volume(read_stack(headers), affine, "dicom", path)
