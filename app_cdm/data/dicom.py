"""DICOM in: series found by header alone, pixels through MONAI's `ITKReader`."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import itk
import numpy as np
import pydicom
from monai.data.image_reader import ITKReader

from app_cdm.data.dicom_header import SliceHeader, ordered, read_header, stack_affine
from app_cdm.data.grid import Volume, VolumeError, checked_volume, reading

MAGIC = b"DICM"
MAGIC_OFFSET = 128
MAX_LISTED = 10


@dataclass(frozen=True)
class DicomSeries:
    """One DICOM series on disk.

    Attributes:
        uid: Series Instance UID.
        study_uid: Study Instance UID.
        files: its image files in order along the slice normal (by instance number where they have no position); of several
            copies of one instance only one.
        description: Series Description, may be empty.
        modality: such as `MR`.
    """

    uid: str
    study_uid: str
    files: tuple[Path, ...]
    description: str
    modality: str

    def __str__(self) -> str:
        return f"{self.uid} ({self.modality or 'no modality'} {self.description!r}, {len(self.files)} files)"


def is_dicom_file(path: Path) -> bool:
    """Whether the file carries the DICOM file marker; any other file, and one too short, does not."""
    with path.open("rb") as file:
        file.seek(MAGIC_OFFSET)
        return file.read(len(MAGIC)) == MAGIC


def find_dicom_series(folder: str | Path) -> list[DicomSeries]:
    """Finds the image series below a folder by their headers; pixels are not read.

    Files that are no DICOM images (others, DICOMDIR, reports, contours, segmentations, doses) are passed over, and so are
    hidden subfolders.

    Args:
        folder: searched with its subfolders.

    Returns:
        Series sorted by study and series UID.

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
            header = read_header(path) if path.is_file() and is_dicom_file(path) else None
            if header is not None:
                groups[header.study_uid, header.series_uid].append(header)
    found = []
    for (study_uid, uid), headers in sorted(groups.items()):
        slices = ordered(headers)
        files = tuple(header.path for header in slices)
        found.append(DicomSeries(uid, study_uid, files, slices[0].description, slices[0].modality))
    return found


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
        raise VolumeError(f"{folder.name}: {len(found)} series in this folder, point to one of them: {listing}")
    return read_dicom_series(found[0], folder)


def read_dicom_series(series: DicomSeries, path: Path | None = None) -> Volume:
    """Reads one series as a volume `(columns, rows, slices)`, slices ordered along the normal (row x column direction).

    Args:
        series: as `find_dicom_series` gave it.
        path: what the volume names as its source; the folder of the first file by default.

    Raises:
        VolumeError: a file is broken, or the slices make no regular stack (missing, doubled, shifted or turned slices).
    """
    headers = [read_header(file) for file in series.files]
    if not headers or None in headers:
        broken = next((file.name for file, header in zip(series.files, headers, strict=True) if header is None), series.uid)
        raise VolumeError(f"{broken}: cannot be read as a DICOM image: export the series again")
    return _read_slices([header for header in headers if header is not None], path or series.files[0].parent)


def read_dicom_file(path: Path) -> Volume:
    """Reads a single DICOM file as a volume of one slice.

    Raises:
        FileNotFoundError: there is no such file.
        VolumeError: the file is no DICOM image or is broken.
    """
    header = read_header(path)
    if header is None:
        raise VolumeError(f"{path.name}: cannot be read as a DICOM image: send an image object with its pixels")
    return _read_slices([header], path)


def _read_slices(headers: Sequence[SliceHeader], path: Path) -> Volume:
    """Stacks slices after their geometry has been checked, so that a bad series costs no pixel reading."""
    for header in headers:
        if header.num_frames > 1 or header.is_mosaic:
            raise VolumeError(
                f"{header.path.name}: several frames in one file: convert the series to one slice a file "
                "or to NIfTI (dcm2niix) and send that"
            )
    headers = ordered(headers)
    affine = stack_affine(headers)
    array = np.stack([_read_pixels(header) for header in headers], axis=-1)
    return checked_volume(array, affine, "dicom", path)


def _read_pixels(header: SliceHeader) -> np.ndarray:
    """One slice as float32 `(columns, rows)` in the units of its rescale slope and intercept; colour as luminance.

    GDCM, inside ITK, knows every compressed syntax in clinical use; the few files that it refuses go to pydicom.
    """
    with reading(header.path, "DICOM"):
        try:
            pixels = _pixels_by_itk(header)
        except RuntimeError:
            pixels = _pixels_by_pydicom(header)
        return pixels.astype(np.float32).reshape(header.shape)


def _pixels_by_itk(header: SliceHeader) -> np.ndarray:
    """GDCM leaves the rescale of plain MR objects out (their slope may change from slice to slice); it is applied here then."""
    image_io = itk.GDCMImageIO.New()
    reader = ITKReader(pixel_type=itk.F, imageio=image_io)
    array, _ = reader.get_data(reader.read(header.path))
    if (image_io.GetRescaleSlope(), image_io.GetRescaleIntercept()) == (1.0, 0.0):
        return np.asarray(array * np.float32(header.slope) + np.float32(header.intercept))
    return np.array(array)


def _pixels_by_pydicom(header: SliceHeader) -> np.ndarray:
    """Stored values from pydicom's own decoders, rescaled."""
    stored = pydicom.dcmread(header.path).pixel_array
    if stored.ndim != 2:
        raise VolumeError(f"{header.path.name}: colour pixels in a syntax that cannot be decoded: save the image uncompressed")
    return np.asarray(stored.T * header.slope + header.intercept)
