"""The DICOM instances that a mask or a map belongs to: their headers, and the mask's planes in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM, DSfloat

from app_cdm.data.grid import LPS_FROM_RAS, VolumeError

# What the objects of a study must carry, even empty, and scanners and anonymisers leave out.
EMPTY_TAGS = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime")
SEXES = ("M", "F", "O", "")
SPACING_TAGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
GEOMETRY_TAGS = ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID")
IDENTITY_TAGS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Rows", "Columns")
INSTANCE_TAGS = [*IDENTITY_TAGS, *GEOMETRY_TAGS, *SPACING_TAGS, "InstanceNumber", "NumberOfFrames", "SliceThickness"]
GAP_TOLERANCE = 0.1
IN_PLANE_TOLERANCE = 0.05
POSITION_TOLERANCE = 0.5


def read_sources(files: Iterable[Path]) -> list[Dataset]:
    """Headers of one series, ready to be referred to: along the slice normal, and made whole where the standard asks for more.

    Args:
        files: the series' files; what is no image is passed over, and so are copies.

    Returns:
        One dataset a slice, without pixels. All have position, orientation, spacing and frame of reference, unless a single
        image has no geometry at all; the first has everything of patient and study.

    Raises:
        VolumeError: they are no series of single-frame images.
    """
    found: dict[str, tuple[Path, Dataset]] = {}
    for path in sorted(files):
        with suppress(InvalidDicomError):
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=INSTANCE_TAGS)
            if "Rows" in data and "Columns" in data:
                _check_identity(path, data)
                found.setdefault(str(data.SOPInstanceUID), (path, data))
    if not found:
        raise VolumeError("no DICOM image of the series is at hand: the study may have been removed")
    if len({data.SeriesInstanceUID for _, data in found.values()}) > 1:
        raise VolumeError(f"{next(iter(found.values()))[0].parent.name}: files of several series: give those of one")
    ordered = sorted(found.values(), key=lambda item: _place(item[1]))
    sources = [data for _, data in ordered]
    first: Dataset = pydicom.dcmread(ordered[0][0], stop_before_pixels=True)
    has_geometry = [_numbers(data, "ImagePositionPatient", 3) and _numbers(data, "ImageOrientationPatient", 6) for data in sources]
    if not all(has_geometry) and len(sources) > 1:
        raise VolumeError(f"{ordered[has_geometry.index(None)][0].name}: no position or orientation: export the series with its geometry")
    _make_whole(first, is_placed=bool(has_geometry[0]))
    sources[0] = first
    if has_geometry[0]:
        _set_geometry(sources)
    else:
        _remove_geometry(first)
    return sources


def to_planes(array: np.ndarray, affine: np.ndarray, sources: Sequence[Dataset]) -> np.ndarray:
    """A mask's planes in the order of its source instances, rows down and columns across: a view, nothing is resampled.

    Slices are matched by their rank along the normal, not by the distance between them, so that a series with a gap is right.

    Args:
        array: `(X, Y, Z)`, turned or flipped against the instances at most.
        affine: `(4, 4)`, voxel index to RAS mm.
        sources: of `read_sources`.

    Returns:
        `(S, rows, columns)`.

    Raises:
        VolumeError: the array does not lie on the instances.
    """
    first, last = sources[0], sources[-1]
    if "ImagePositionPatient" not in first:
        planes = np.moveaxis(array, (2, 1, 0), (0, 1, 2))
        return _checked(planes, sources)
    to_index = np.linalg.inv(affine) @ LPS_FROM_RAS
    across, down = np.reshape(np.asarray(first.ImageOrientationPatient, dtype=float), (2, 3))
    row_mm, column_mm = (float(value) for value in first.PixelSpacing)
    steps = np.stack([np.cross(across, down), down * row_mm, across * column_mm]) @ to_index[:3, :3].T
    axes = [int(np.argmax(np.abs(step))) for step in steps]
    in_plane = np.abs(steps[1:])
    expected = np.eye(3)[axes[1:]]
    if sorted(axes) != [0, 1, 2] or np.abs(in_plane - expected).max() > IN_PLANE_TOLERANCE:
        raise VolumeError("the mask's voxels are not those of the DICOM series: make it on the series' own grid")
    is_reversed = [bool(step[axis] < 0) for step, axis in zip(steps, axes, strict=True)]
    planes = _checked(np.moveaxis(array, axes, (0, 1, 2)), sources)
    ends = [to_index @ [*(float(value) for value in source.ImagePositionPatient), 1.0] for source in (first, last)]
    for axis, backwards in zip(axes[1:], is_reversed[1:], strict=True):
        corner = array.shape[axis] - 1 if backwards else 0
        if abs(ends[0][axis] - corner) > POSITION_TOLERANCE:
            raise VolumeError("the mask lies beside the DICOM series: make it on the series' own grid")
    corners = (array.shape[axes[0]] - 1, 0) if is_reversed[0] else (0, array.shape[axes[0]] - 1)
    # With a gap in the series, the affine is right at one end only.
    if min(abs(end[axes[0]] - corner) for end, corner in zip(ends, corners, strict=True)) > POSITION_TOLERANCE:
        raise VolumeError("the mask's slices lie beside those of the DICOM series: make it on the series' own grid")
    return np.flip(planes, [axis for axis, backwards in enumerate(is_reversed) if backwards])


def _checked(planes: np.ndarray, sources: Sequence[Dataset]) -> np.ndarray:
    expected = (len(sources), int(sources[0].Rows), int(sources[0].Columns))
    if planes.shape != expected:
        raise VolumeError(
            f"a mask of {planes.shape} slices, rows, columns for a DICOM series of {expected}: make it on the series' own grid"
        )
    return planes


def _check_identity(path: Path, data: Dataset) -> None:
    missing = [keyword for keyword in IDENTITY_TAGS if not data.get(keyword)]
    if missing:
        raise VolumeError(f"{path.name}: {missing} are missing: export the series again")
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise VolumeError(f"{path.name}: several frames in one file: the result can be had as NIfTI only")
    data.pop("NumberOfFrames", None)


def _numbers(data: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """A numeric attribute of exactly `count` finite values, or None."""
    try:
        values = tuple(float(value) for value in np.atleast_1d(np.asarray(data.get(keyword), dtype=np.float64)))
    except (ValueError, TypeError, OverflowError):
        return None
    return values if len(values) == count and all(np.isfinite(values)) else None


def _place(data: Dataset) -> tuple[float, float]:
    """Sorts slices: along their normal, and where there is none by instance number."""
    position, orientation = _numbers(data, "ImagePositionPatient", 3), _numbers(data, "ImageOrientationPatient", 6)
    number = (_numbers(data, "InstanceNumber", 1) or (0.0,))[0]
    if position is None or orientation is None:
        return 0.0, number
    return float(np.dot(position, np.cross(orientation[:3], orientation[3:]))), number


def _make_whole(first: Dataset, is_placed: bool) -> None:
    """Fills in what is missing, and empties what no reader would accept, in the header that patient and study are taken from."""
    for keyword in EMPTY_TAGS:
        if keyword not in first or first[keyword].value is None:
            setattr(first, keyword, "")
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        if not _is_valid(kind, first[keyword].value):
            setattr(first, keyword, "")
    if first.PatientSex not in SEXES:
        first.PatientSex = ""
    if is_placed and not first.get("FrameOfReferenceUID"):
        # Positions without a frame of reference: the series is its own.
        first.FrameOfReferenceUID = generate_uid(entropy_srcs=[str(first.SeriesInstanceUID), "frame of reference"])
    # How the source was compressed is said of the result by the writer, if it can be.
    if "LossyImageCompression" in first and not ("LossyImageCompressionRatio" in first and "LossyImageCompressionMethod" in first):
        del first.LossyImageCompression
    first.pop("NumberOfFrames", None)


def _set_geometry(sources: Sequence[Dataset]) -> None:
    """One orientation, spacing and frame of reference for all; between slices the distance as measured, where all are alike."""
    first = sources[0]
    spacing_mm = next((value for value in (_numbers(first, keyword, 2) for keyword in SPACING_TAGS) if value is not None), (1.0, 1.0))
    depths_mm = np.array([_place(source)[0] for source in sources])
    gaps_mm = np.diff(depths_mm)
    is_regular = len(gaps_mm) > 0 and np.abs(gaps_mm - gaps_mm.mean()).max() <= GAP_TOLERANCE * gaps_mm.mean()
    thickness_mm = max((_numbers(first, "SliceThickness", 1) or (0.0,))[0], 0.0) or 1.0
    orientation = _numbers(first, "ImageOrientationPatient", 6) or ()
    for source in sources:
        source.ImagePositionPatient = [_decimal(value) for value in _numbers(source, "ImagePositionPatient", 3) or ()]
        source.ImageOrientationPatient = [_decimal(value) for value in orientation]
        source.PixelSpacing = [_decimal(value) for value in spacing_mm]
        source.FrameOfReferenceUID = first.FrameOfReferenceUID
        source.pop("SpacingBetweenSlices", None)
        if is_regular:
            source.SpacingBetweenSlices = _decimal(gaps_mm.mean())
        source.SliceThickness = _decimal(gaps_mm.mean() if is_regular else thickness_mm)


def _remove_geometry(source: Dataset) -> None:
    for keyword in GEOMETRY_TAGS:
        source.pop(keyword, None)


def _decimal(value: float) -> DSfloat:
    """A number as a DICOM decimal string, which has 16 characters."""
    return DSfloat(float(value), auto_format=True)


def _is_valid(kind: Callable[[str], object], value: object) -> bool:
    try:
        kind(str(value or ""))
    except ValueError:
        return False
    return True
