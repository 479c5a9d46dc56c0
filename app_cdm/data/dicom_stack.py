"""Slices of a DICOM series as one volume: their order, their geometry, and why some make none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app_cdm.data.dicom_header import SliceHeader
from app_cdm.data.grid import LPS_FROM_RAS, VolumeError, check_shape

ORIENTATION_TOLERANCE = 1e-3
GAP_TOLERANCE = 0.1
MAX_SHOWN = 5


def ordered(headers: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Headers along the normal where there is one, else by instance number and file name; copies of one instance drop out.

    A copy has the position of its original too: exports are known in which all slices have one instance UID.
    """
    by_name = sorted(headers, key=lambda header: (header.instance_number, str(header.path), header.frame))
    kept = {(header.sop_uid, header.num_frames, header.frame, header.position): header for header in reversed(by_name)}
    unique = list(kept.values())[::-1]
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
    for header in headers:
        if header.problem:
            raise VolumeError(f"{header.path.name}: {header.problem}")
    check_shape((*first.shape, len(headers)), first.path)
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
        name = header.name
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
        raise VolumeError(f"{first.name}: its orientation {first.orientation} is no pair of perpendicular unit vectors: repair it")


def _slice_step(headers: Sequence[SliceHeader]) -> np.ndarray:
    """The vector `(3,)` from one slice to the next in LPS mm, after checking that all steps are alike."""
    normal = headers[0].normal
    assert normal is not None
    positions = np.array([header.position for header in headers])
    if len(headers) == 1:
        return np.asarray(normal * headers[0].thickness_mm)
    gaps_mm = np.diff(positions @ normal)
    typical_mm = float(np.median(gaps_mm))
    if gaps_mm.min() <= GAP_TOLERANCE * max(typical_mm, gaps_mm.max() * GAP_TOLERANCE):
        at = int(np.argmin(gaps_mm))
        count = count_positions(headers)
        raise VolumeError(
            f"{headers[at].name} and {headers[at + 1].name} lie at one position ({len(headers)} slices at about {count} positions), "
            f"several echoes, times or b-values{_differences(headers)}: send one volume of them"
        )
    worst = int(np.argmax(np.abs(gaps_mm - typical_mm)))
    if abs(gaps_mm[worst] - typical_mm) > GAP_TOLERANCE * typical_mm:
        raise VolumeError(
            f"{gaps_mm[worst]:.2f} mm between {headers[worst].name} and {headers[worst + 1].name} where the series has "
            f"{typical_mm:.2f} mm: a slice is missing or the series is irregular; send it complete"
        )
    step = (positions[-1] - positions[0]) / (len(headers) - 1)
    drift_mm = np.linalg.norm(positions - positions[0] - np.arange(len(headers))[:, None] * step, axis=1)
    if drift_mm.max() > max(GAP_TOLERANCE * typical_mm * len(headers) ** 0.5, 0.5 * min(headers[0].pixel_spacing_mm or (1.0,))):
        raise VolumeError(f"{headers[int(np.argmax(drift_mm))].name}: shifted {drift_mm.max():.2f} mm from the line of its series")
    return np.asarray(step)


def count_positions(headers: Sequence[SliceHeader]) -> int:
    """At how many places along the normal ordered slices lie; 0 where a position is missing."""
    if not headers or any(header.depth_mm is None for header in headers):
        return 0
    gaps_mm = np.diff([header.depth_mm or 0.0 for header in headers])
    return 1 + int(np.count_nonzero(gaps_mm > GAP_TOLERANCE * max(gaps_mm.max(initial=0.0), 1e-6)))


def _differences(headers: Sequence[SliceHeader]) -> str:
    """Which marks differ among slices, for a message: ` (EchoTime 10, 90)`."""
    values: dict[str, list[str]] = {}
    for header in headers:
        for name, value in header.marks:
            known = values.setdefault(name, [])
            if value not in known:
                known.append(value)
    told = [
        f"{name} {', '.join(found[:MAX_SHOWN])}{', ...' * (len(found) > MAX_SHOWN)}" for name, found in values.items() if len(found) > 1
    ]
    return f" ({'; '.join(told)})" if told else ""
