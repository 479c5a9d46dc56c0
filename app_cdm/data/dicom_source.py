"""The DICOM instances that a mask or a map belongs to: their headers, and the mask's planes in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM, DSfloat

from app_cdm.data.dicom_header import GAP_TOLERANCE, SliceHeader, ordered, read_header
from app_cdm.data.grid import LPS_FROM_RAS, VolumeError

# What the objects of a study must carry, even empty, and scanners and anonymisers leave out.
EMPTY_TAGS = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime")
SEXES = ("M", "F", "O", "")
INSTANCE_TAGS = ["SOPClassUID", "FrameOfReferenceUID"]
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
    headers = ordered([header for header in map(read_header, files) if header is not None])
    if not headers:
        raise VolumeError("no DICOM image of the series is at hand: the study may have been removed")
    if len({header.series_uid for header in headers}) > 1:
        raise VolumeError(f"{headers[0].path.parent.name}: files of several series: give those of one")
    for header in headers:
        if header.num_frames > 1 or header.is_mosaic:
            raise VolumeError(f"{header.path.name}: several frames in one file: the result can be had as NIfTI only")
    first: Dataset = pydicom.dcmread(headers[0].path, stop_before_pixels=True)
    _make_whole(first, headers[0])
    sources: list[Dataset] = [first]
    for header in headers[1:]:
        source: Dataset = pydicom.dcmread(header.path, stop_before_pixels=True, specific_tags=INSTANCE_TAGS)
        source.FrameOfReferenceUID = first.get("FrameOfReferenceUID")
        _set_identity(source, header)
        sources.append(source)
    for source, header in zip(sources, headers, strict=True):
        _set_geometry(source, header, headers)
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


def _make_whole(first: Dataset, header: SliceHeader) -> None:
    """Fills in what is missing, and empties what no reader would accept, in the header that patient and study are taken from."""
    for keyword in EMPTY_TAGS:
        if keyword not in first or first[keyword].value is None:
            setattr(first, keyword, "")
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        if not _is_valid(kind, first[keyword].value):
            setattr(first, keyword, "")
    if first.PatientSex not in SEXES:
        first.PatientSex = ""
    if header.position is not None and not first.get("FrameOfReferenceUID"):
        # Positions without a frame of reference: the series is its own.
        first.FrameOfReferenceUID = generate_uid(entropy_srcs=[header.series_uid, "frame of reference"])
    # How the source was compressed is said of the result by the writer, if it can be.
    if "LossyImageCompression" in first and not ("LossyImageCompressionRatio" in first and "LossyImageCompressionMethod" in first):
        del first.LossyImageCompression
    _set_identity(first, header)


def _set_identity(source: Dataset, header: SliceHeader) -> None:
    source.SOPInstanceUID, source.SeriesInstanceUID, source.StudyInstanceUID = header.sop_uid, header.series_uid, header.study_uid
    source.Columns, source.Rows = header.shape
    if "SOPClassUID" not in source:
        raise VolumeError(f"{header.path.name}: no SOP Class UID: export the series again")
    if "NumberOfFrames" in source:
        del source.NumberOfFrames


def _set_geometry(source: Dataset, header: SliceHeader, headers: Sequence[SliceHeader]) -> None:
    """Position, and one spacing for all: the distance between slices as measured, where all are alike."""
    first = headers[0]
    if header.position is None or header.orientation is None or first.orientation is None:
        if len(headers) > 1:
            raise VolumeError(f"{header.path.name}: position or orientation is missing: export the series again with its geometry")
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
            if keyword in source:
                delattr(source, keyword)
        return
    source.ImagePositionPatient = [_decimal(value) for value in header.position]
    source.ImageOrientationPatient = [_decimal(value) for value in first.orientation]
    source.PixelSpacing = [_decimal(value) for value in first.pixel_spacing_mm or (1.0, 1.0)]
    spacing_mm = _slice_spacing_mm(headers)
    source.SliceThickness = _decimal(first.thickness_mm if spacing_mm is None else spacing_mm)
    if spacing_mm is not None:
        source.SpacingBetweenSlices = _decimal(spacing_mm)
    elif "SpacingBetweenSlices" in source:
        del source.SpacingBetweenSlices


def _slice_spacing_mm(headers: Sequence[SliceHeader]) -> float | None:
    """Distance between neighbouring slices; None where they differ, or there is one slice."""
    depths_mm = np.array([np.dot(header.position or (0, 0, 0), headers[0].normal) for header in headers])  # type: ignore[arg-type]
    gaps_mm = np.diff(depths_mm)
    if not len(gaps_mm) or np.abs(gaps_mm - gaps_mm.mean()).max() > GAP_TOLERANCE * gaps_mm.mean():
        return None
    return float(gaps_mm.mean())


def _decimal(value: float) -> DSfloat:
    """A number as a DICOM decimal string, which has 16 characters."""
    return DSfloat(float(value), auto_format=True)


def _is_valid(kind: Callable[[str], object], value: object) -> bool:
    try:
        kind(str(value or ""))
    except ValueError:
        return False
    return True
