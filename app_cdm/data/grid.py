"""One image as a voxel array with an affine, and the checks that every reader ends with."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

VolumeKind = Literal["nifti", "nrrd", "dicom", "image"]

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns an LPS affine (DICOM, NRRD, ITK) into a RAS one and back."""

MIN_SPACING_MM = 1e-6
MAX_VOXELS = 2**30  # 4 GiB as float32; a small compressed file may claim any number
MIN_RELATIVE_DETERMINANT = 1e-4
OF_THE_FILE = (errno.EINVAL, errno.EOVERFLOW)  # a place in the file that cannot be


class VolumeError(ValueError):
    """An image cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Volume:
    """One image on its own voxel grid.

    Attributes:
        array: `(X, Y, Z)` float32, voxel order of the file; a 2D image is `(columns, rows, 1)`.
        affine: `(4, 4)` float64, voxel index to RAS millimetres.
        kind: the format it came from.
        path: where it came from, if anywhere.
        nifti_header: header of a NIfTI source, so that a mask can keep its qform, sform and unit of length; None otherwise.
    """

    array: np.ndarray
    affine: np.ndarray
    kind: VolumeKind = "nifti"
    path: Path | None = None
    nifti_header: nib.nifti1.Nifti1Header | None = field(default=None, repr=False, compare=False)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel spacing along the three array axes."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def checked_volume(
    array: np.ndarray, affine: np.ndarray, kind: VolumeKind, path: Path, nifti_header: nib.nifti1.Nifti1Header | None = None
) -> Volume:
    """Makes a `Volume` of what a reader returned.

    Args:
        array: `(X, Y)` or `(X, Y, Z)`, with any number of trailing axes of length 1; real numbers.
        affine: `(4, 4)`, voxel index to RAS mm.
        kind: the format it came from.
        path: where it came from; its name starts every message.
        nifti_header: kept in the volume.

    Raises:
        VolumeError: the shape is not that of one 2D or 3D image, a voxel is not finite, or the affine cannot be inverted.
    """
    check_shape(array.shape, path)
    array = array.reshape(three_axes(array.shape))
    with np.errstate(over="ignore"):
        array = np.asarray(array, dtype=np.float32)
    affine = np.asarray(affine, dtype=np.float64)
    _check_affine(affine, path)
    _check_finite(array, path)
    return Volume(array, affine, kind, path, nifti_header)


def three_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with trailing axes of length 1 dropped or added, so that three remain where that is possible."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape + (1,) * (3 - len(shape))


def check_shape(shape: tuple[int, ...], path: Path) -> None:
    """Refuses what is not one 2D or 3D image, before any voxel is read.

    Raises:
        VolumeError: an axis is empty, there is only one axis, there are more than three longer than 1, or more than `MAX_VOXELS` voxels.
    """
    if len(shape) < 2 or 0 in shape:
        raise VolumeError(f"{path.name}: shape {shape} holds no image: export the series again")
    if math.prod(shape) > MAX_VOXELS:
        raise VolumeError(f"{path.name}: shape {shape} has more than {MAX_VOXELS} voxels: crop or downsample the image and send that")
    if len(three_axes(shape)) > 3:
        raise VolumeError(
            f"{path.name}: {len(shape)}D image of shape {shape}, a time series or several channels: save one 3D volume of it and send that"
        )


def _check_finite(array: np.ndarray, path: Path) -> None:
    """Refuses NaN and infinity, which no network and no percentile survives."""
    num_bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if num_bad == array.size:
        raise VolumeError(f"{path.name}: all {array.size} voxels are NaN or infinite: export the series again")
    if num_bad:
        raise VolumeError(
            f"{path.name}: {num_bad} of {array.size} voxels are NaN or infinite: replace them by the background value (numpy.nan_to_num)"
        )


def _check_affine(affine: np.ndarray, path: Path) -> None:
    """Refuses an affine that maps voxels onto a plane, a line or nowhere."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise VolumeError(f"{path.name}: the affine is not a finite 4x4 matrix: repair the header's geometry")
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing_mm.min() < MIN_SPACING_MM or abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < MIN_RELATIVE_DETERMINANT:
        text = " x ".join(f"{value:g}" for value in spacing_mm)
        raise VolumeError(f"{path.name}: the affine is singular (spacing {text} mm): repair the header's geometry")


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turns whatever a third-party reader raises on a broken file into a `VolumeError`.

    Errors of the operating system (missing file, no permission, disk failure) pass unchanged, but for those that come of where a
    header says that voxels lie.
    """
    try:
        yield
    except (VolumeError, FileNotFoundError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, *OF_THE_FILE):
            raise
        raise VolumeError(f"{path.name}: cannot be read as {what} ({_first_words(error, path)}): check or export the file again") from error


def _first_words(error: Any, path: Path) -> str:
    """The telling line of an error, short and without the folder it happened in."""
    lines = [line.strip() for line in str(error).replace(str(path), path.name).splitlines() if line.strip()]
    return (lines[-1][:160] if lines else type(error).__name__).rstrip(".")
