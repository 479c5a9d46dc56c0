"""NIfTI in, through nibabel.

Not through MONAI's `NibabelReader`: where spacing and sform disagree it puts the qform in the sform's place, and a mask would
then lie on another grid than the file it belongs to.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np

from app_cdm.data.grid import Volume, VolumeError, check_shape, checked_volume, reading

SUFFIXES = (".nii", ".nii.gz")


def read_nifti(path: Path) -> Volume:
    """Reads one NIfTI-1 or NIfTI-2 file.

    The array keeps the file's voxel order and the affine is nibabel's (sform before qform before spacing), so nothing is
    flipped or resampled.

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
        array = np.asarray(image.dataobj)
    return checked_volume(array, image.affine, "nifti", path, image.header)
