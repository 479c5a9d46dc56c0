"""NIfTI in, through nibabel.

Not through MONAI's `NibabelReader`: where spacing and sform disagree it puts the qform in the sform's place, and a mask would
then lie on another grid than the file it belongs to.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from app_cdm.data.grid import Volume, VolumeError, check_shape, checked_volume, reading

SUFFIXES = (".nii", ".nii.gz")
SLICES_AT_ONCE = 16
UNITS_MM = {1: 1000.0, 3: 0.001}  # of metres and microns, by their codes; any other code counts as millimetres


def read_nifti(path: Path) -> Volume:
    """Reads one NIfTI-1 or NIfTI-2 file.

    The array keeps the file's voxel order and the affine is nibabel's (sform before qform before spacing), so nothing is
    flipped or resampled; where the file counts in metres or microns, it is turned into millimetres.

    Raises:
        FileNotFoundError: there is no such file.
        VolumeError: the file is broken, not one 2D or 3D scalar image, not finite, or its affine is singular.
    """
    with reading(path, "NIfTI"):
        image = cast(nib.nifti1.Nifti1Image, nib.load(path, mmap=False))
        check_shape(tuple(image.shape), path)
        dtype = image.get_data_dtype()
        if dtype.names is not None or dtype.kind not in "biuf":
            raise VolumeError(f"{path.name}: colour or complex voxels ({dtype}): save one real-valued channel of it and send that")
        array = _voxels(image)
    return checked_volume(array, affine_mm(image.header), "nifti", path, image.header)


def spatial_unit(header: nib.nifti1.Nifti1Header) -> int:
    """The code of the unit that the header's geometry is in, without that of time."""
    return int(header["xyzt_units"]) % 8


def affine_mm(header: nib.nifti1.Nifti1Header) -> np.ndarray:
    """`(4, 4)` voxel index to RAS millimetres, whatever unit the header's geometry is in."""
    unit_mm = UNITS_MM.get(spatial_unit(header), 1.0)
    return np.asarray(np.diag([unit_mm, unit_mm, unit_mm, 1.0]) @ header.get_best_affine())


def _voxels(image: nib.nifti1.Nifti1Image) -> np.ndarray:
    """The voxels as nibabel gives them, but scaled ones as float32: nibabel's own float64 are twice as large as all that is kept."""
    proxy = cast(nib.arrayproxy.ArrayProxy, image.dataobj)
    stored = np.asarray(proxy.get_unscaled())
    if (proxy.slope, proxy.inter) == (1.0, 0.0):
        return stored
    scaled = np.empty_like(stored, dtype=np.float32)
    with np.errstate(over="ignore"):
        for start in range(0, stored.shape[-1], SLICES_AT_ONCE):
            part = np.s_[..., start : start + SLICES_AT_ONCE]
            scaled[part] = apply_read_scaling(stored[part], proxy.slope, proxy.inter)
    return scaled
