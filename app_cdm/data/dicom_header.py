"""What a DICOM file's header says about its place in a volume, and the geometry of a stack of such files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from app_cdm.data.grid import LPS_FROM_RAS, VolumeError

LOGGER = logging.getLogger(__name__)
NOT_IMAGES = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID")
SPACING_TAGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
HEADER_TAGS = [
    *("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SeriesDescription", "Modality", "ImageType", "InstanceNumber"),
    *("Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "SpacingBetweenSlices", "SliceThickness"),
    *("RescaleSlope", "RescaleIntercept", *SPACING_TAGS),
]
ORIENTATION_TOLERANCE = 1e-3
GAP_TOLERANCE = 0.1


@dataclass(frozen=True)
class SliceHeader:
    """The header of one DICOM image file; numbers that the file lacks or that make no sense are None.

    Attributes:
        position: centre of the first pixel, `(3,)` LPS mm.
        orientation: directions of a row and of a column, `(6,)` LPS cosines.
        pixel_spacing_mm: distance between rows, distance between columns.
        thickness_mm: slice distance that the header claims; only used for a slice that stands alone.
    """

    path: Path
    sop_uid: str
    series_uid: str
    study_uid: str
    description: str
    modality: str
    instance_number: int
    shape: tuple[int, int]
    num_frames: int
    is_mosaic: bool
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, ...] | None
    thickness_mm: float
    slope: float
    intercept: float

    @property
    def normal(self) -> np.ndarray | None:
        """Unit vector across the slice, `(3,)` LPS: row direction x column direction."""
        if self.orientation is None:
            return None
        return np.asarray(np.cross(self.orientation[:3], self.orientation[3:]))

    @property
    def depth_mm(self) -> float | None:
        """Position along the slice's own normal."""
        if self.position is None or self.normal is None:
            return None
        return float(np.dot(self.position, self.normal))


def read_header(path: Path) -> SliceHeader | None:
    """Reads a header without its pixels; None where the file is no DICOM image (other file, report, contour, segmentation)."""
    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
        if "Rows" not in data or "Columns" not in data or str(data.get("Modality", "")) in NOT_IMAGES:
            return None
        return _header(path, data)
    except (InvalidDicomError, EOFError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        LOGGER.warning("%s: DICOM header cannot be read, file passed over (%s)", path.name, error)
        return None


def _header(path: Path, data: pydicom.Dataset) -> SliceHeader:
    spacings = (_numbers(data, tag, 2) for tag in SPACING_TAGS)
    thickness = (_numbers(data, tag, 1) for tag in ("SpacingBetweenSlices", "SliceThickness"))
    return SliceHeader(
        path=path,
        sop_uid=str(data.get("SOPInstanceUID", path.name)),
        series_uid=str(data.get("SeriesInstanceUID", "")),
        study_uid=str(data.get("StudyInstanceUID", "")),
        description=str(data.get("SeriesDescription", "")).strip(),
        modality=str(data.get("Modality", "")),
        instance_number=int((_numbers(data, "InstanceNumber", 1) or (0,))[0]),
        shape=(int(data.Columns), int(data.Rows)),
        num_frames=int(data.get("NumberOfFrames") or 1),
        is_mosaic="MOSAIC" in str(data.get("ImageType", "")),
        position=_numbers(data, "ImagePositionPatient", 3),
        orientation=_numbers(data, "ImageOrientationPatient", 6),
        pixel_spacing_mm=next((value for value in spacings if value is not None), None),
        thickness_mm=next((value[0] for value in thickness if value is not None and value[0] > 0), 1.0),
        slope=(_numbers(data, "RescaleSlope", 1) or (1.0,))[0],
        intercept=(_numbers(data, "RescaleIntercept", 1) or (0.0,))[0],
    )


def _numbers(data: pydicom.Dataset, tag: str, count: int) -> tuple[float, ...] | None:
    """A numeric attribute of exactly `count` finite values, or None."""
    try:
        values = tuple(float(value) for value in np.atleast_1d(np.asarray(data.get(tag), dtype=np.float64)))
    except (ValueError, TypeError, OverflowError):
        return None
    return values if len(values) == count and all(np.isfinite(values)) else None


def ordered(headers: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Headers along the normal where there is one, else by instance number and file name; copies of one instance drop out."""
    by_name = sorted(headers, key=lambda header: (header.instance_number, str(header.path)))
    unique = list({header.sop_uid: header for header in reversed(by_name)}.values())[::-1]
    if any(header.depth_mm is None for header in unique):
        return unique
    normal = unique[0].normal
    return sorted(unique, key=lambda header: float(np.dot(header.position or (0, 0, 0), normal)))  # type: ignore[arg-type]


def stack_affine(headers: Sequence[SliceHeader]) -> np.ndarray:
    """The affine `(4, 4)` of ordered slices stacked as `(columns, rows, slices)`, voxel index to RAS mm.

    The third column is the step from slice to slice as measured between positions, never the header's thickness, so the shear
    of a tilted gantry is kept. A slice that stands alone without a geometry gets 1 mm pixels in the orientation of a picture.

    Raises:
        VolumeError: the slices do not make one regular stack; the message names the first file that does not fit.
    """
    first = headers[0]
    if len(headers) == 1 and (first.position is None or first.orientation is None):
        row_mm, column_mm = first.pixel_spacing_mm or (1.0, 1.0)
        return np.asarray(LPS_FROM_RAS @ np.diag([column_mm, row_mm, first.thickness_mm, 1.0]))
    _check_same(headers)
    rows, columns = np.array(first.orientation[:3]), np.array(first.orientation[3:])  # type: ignore[index]
    row_mm, column_mm = first.pixel_spacing_mm or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = rows * column_mm, columns * row_mm
    affine[:3, 2], affine[:3, 3] = _slice_step(headers), first.position
    return np.asarray(LPS_FROM_RAS @ affine)


def _check_same(headers: Sequence[SliceHeader]) -> None:
    """Refuses slices that lack a geometry or differ in it."""
    first = headers[0]
    for header in headers:
        name = header.path.name
        if header.position is None or header.orientation is None or (header.pixel_spacing_mm is None and len(headers) > 1):
            raise VolumeError(f"{name}: position, orientation or pixel spacing is missing: export the series again with its geometry")
        if header.shape != first.shape:
            raise VolumeError(f"{name}: {header.shape} pixels where others of its series have {first.shape}: remove what is no slice")
        if np.abs(np.subtract(header.orientation, first.orientation or 0)).max() > ORIENTATION_TOLERANCE:
            raise VolumeError(
                f"{name}: points in another direction than others of its series (a localizer?): keep slices of one orientation"
            )
        if not np.allclose(header.pixel_spacing_mm or 0, first.pixel_spacing_mm or 0, rtol=1e-3):
            raise VolumeError(f"{name}: pixel spacing {header.pixel_spacing_mm} mm where others have {first.pixel_spacing_mm} mm")
    rows, columns = np.array(first.orientation[:3]), np.array(first.orientation[3:])  # type: ignore[index]
    gram = np.array([rows @ rows - 1, columns @ columns - 1, rows @ columns])
    if np.abs(gram).max() > 10 * ORIENTATION_TOLERANCE:
        raise VolumeError(f"{first.path.name}: its orientation {first.orientation} is no pair of perpendicular unit vectors: repair it")


def _slice_step(headers: Sequence[SliceHeader]) -> np.ndarray:
    """The vector `(3,)` from one slice to the next in LPS mm, after checking that all steps are alike."""
    normal = headers[0].normal
    assert normal is not None
    positions = np.array([header.position for header in headers])
    if len(headers) == 1:
        return np.asarray(normal * headers[0].thickness_mm)
    gaps_mm = np.diff(positions @ normal)
    typical_mm = float(np.median(gaps_mm))
    if gaps_mm.min() < GAP_TOLERANCE * max(typical_mm, gaps_mm.max() * GAP_TOLERANCE):
        at = int(np.argmin(gaps_mm))
        count = 1 + int(np.count_nonzero(gaps_mm > GAP_TOLERANCE * gaps_mm.max()))
        raise VolumeError(
            f"{headers[at].path.name} and {headers[at + 1].path.name} lie at one position "
            f"({len(headers)} slices at about {count} positions), "
            "several echoes, times or b-values: send one volume of them"
        )
    worst = int(np.argmax(np.abs(gaps_mm - typical_mm)))
    if abs(gaps_mm[worst] - typical_mm) > GAP_TOLERANCE * typical_mm:
        raise VolumeError(
            f"{gaps_mm[worst]:.2f} mm between {headers[worst].path.name} and {headers[worst + 1].path.name} where the series has "
            f"{typical_mm:.2f} mm: a slice is missing or the series is irregular; send it complete"
        )
    step = (positions[-1] - positions[0]) / (len(headers) - 1)
    drift_mm = np.linalg.norm(positions - positions[0] - np.arange(len(headers))[:, None] * step, axis=1)
    if drift_mm.max() > max(GAP_TOLERANCE * typical_mm * len(headers) ** 0.5, 0.5 * min(headers[0].pixel_spacing_mm or (1.0,))):
        raise VolumeError(f"{headers[int(np.argmax(drift_mm))].path.name}: shifted {drift_mm.max():.2f} mm from the line of its series")
    return np.asarray(step)
