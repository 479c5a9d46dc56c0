"""The voxel grid of an image from its header alone, where only its shape and geometry are wanted."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import cast

import itk
import nibabel as nib
import numpy as np
from PIL import Image

from app_cdm.data import nifti, nrrd, picture
from app_cdm.data.dicom import DicomSeries, series_headers
from app_cdm.data.dicom_stack import stack_affine
from app_cdm.data.grid import LPS_FROM_RAS, Volume, VolumeError, VolumeKind, check_shape, checked_volume, reading, three_axes


def read_grid(path: Path) -> Volume:
    """The grid of one NIfTI, NRRD, PNG or JPEG file, as `read_volume` would give it.

    Args:
        path: the file.

    Returns:
        A volume of the file's shape, affine and kind whose voxels are all 0 and take no memory.

    Raises:
        FileNotFoundError: there is no such file.
        VolumeError: the header is broken, or not that of one 2D or 3D image.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such image: {path}")
    stat = path.stat()
    return _read_grid(path, stat.st_size, stat.st_mtime_ns)


def read_series_grid(series: DicomSeries) -> Volume:
    """The grid of a DICOM series, as `read_dicom_series` would give it; see `read_grid`.

    Raises:
        VolumeError: a header cannot be read, or the slices make no regular stack.
    """
    stats = [file.stat() for file in series.files]
    return _read_series_grid(series, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


@lru_cache(maxsize=1024)
def _read_series_grid(series: DicomSeries, stamps: tuple[tuple[int, int], ...]) -> Volume:
    slices = series_headers(series)
    return _empty((*slices[0].shape, len(slices)), stack_affine(slices), "dicom", series.files[0].parent)


@lru_cache(maxsize=4096)
def _read_grid(path: Path, size: int, modified: int) -> Volume:
    """Kept by size and time of change, so that a changed file is read again."""
    name = path.name.lower()
    if name.endswith(nifti.SUFFIXES):
        with reading(path, "NIfTI"):
            image = cast(nib.nifti1.Nifti1Image, nib.load(path))
            return _empty(tuple(image.shape), nifti.affine_mm(image.header), "nifti", path)
    if name.endswith(nrrd.SUFFIXES):
        return _empty(*_nrrd_grid(path), "nrrd", path)
    if name.endswith(picture.SUFFIXES):
        with reading(path, "PNG or JPEG"), Image.open(path, formats=picture.FORMATS) as opened:
            return _empty((*opened.size, 1), LPS_FROM_RAS, "image", path)
    raise VolumeError(f"{path.name}: unknown image format: send NIfTI, NRRD, PNG or JPEG")


def _nrrd_grid(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    nrrd.check_data_file(path)
    with reading(path, "NRRD"):
        header = itk.NrrdImageIO.New()
        header.SetFileName(str(path))
        header.ReadImageInformation()
        axes = range(header.GetNumberOfDimensions())
        affine = np.eye(4)
        for axis in list(axes)[:3]:
            direction = np.asarray(header.GetDirection(axis), dtype=np.float64)[:3]
            affine[: len(direction), axis] = direction * header.GetSpacing(axis)
            affine[axis, 3] = header.GetOrigin(axis)
        return tuple(header.GetDimensions(axis) for axis in axes), LPS_FROM_RAS @ affine


def _empty(shape: tuple[int, ...], affine: np.ndarray, kind: VolumeKind, path: Path) -> Volume:
    check_shape(shape, path)
    checked = checked_volume(np.zeros((1, 1, 1)), affine, kind, path)
    return Volume(np.broadcast_to(np.float32(0), three_axes(shape)), checked.affine, kind, path)
