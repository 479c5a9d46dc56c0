"""Volumes whose slices say their own number, in any orientation."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

NUM_SLICES = 12
GREY_STEP = 20  # grey value of slice k is 20 k, drawn as it is because the header's window is 0 to 255


def _turned(order: tuple[int, int, int], signs: tuple[int, int, int], slicing: int, tilt: float = 0.0) -> np.ndarray:
    """Affine of a file whose voxel axis i runs along RAS axis `order[i]`, with `signs[i]`; slices are 5 mm apart."""
    affine = np.zeros((4, 4))
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * (5.0 if axis == slicing else 1.0)
    cosine, sine = np.cos(tilt), np.sin(tilt)
    affine[:3, :3] = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]]) @ affine[:3, :3]
    affine[:, 3] = [-11.0, 7.0, 3.0, 1.0]
    return affine


RAMPS: dict[str, tuple[int, np.ndarray]] = {
    "axial_up": (2, _turned((0, 1, 2), (1, 1, 1), 2)),
    "axial_down": (2, _turned((0, 1, 2), (-1, -1, -1), 2)),
    "axial_first_up": (0, _turned((2, 0, 1), (1, -1, 1), 0)),
    "axial_first_down": (0, _turned((2, 1, 0), (-1, 1, -1), 0)),
    "sagittal_right": (2, _turned((1, 2, 0), (-1, -1, 1), 2)),
    "sagittal_left": (0, _turned((0, 1, 2), (-1, 1, 1), 0)),
    "coronal_front": (1, _turned((0, 1, 2), (1, 1, 1), 1)),
    "coronal_back": (2, _turned((2, 0, 1), (-1, 1, -1), 2)),
    "oblique": (2, _turned((0, 1, 2), (-1, 1, -1), 2, tilt=0.5)),
}


def write_ramp(path: Path, axis: int, affine: np.ndarray) -> None:
    """Slice k along a voxel axis of the file has the grey value 20 k."""
    shape = [36, 40, 44]
    shape[axis] = NUM_SLICES
    numbers = np.arange(NUM_SLICES).reshape([-1 if index == axis else 1 for index in range(3)])
    image = nib.Nifti1Image(np.broadcast_to(GREY_STEP * numbers, shape).astype(np.uint8), affine)
    image.header["cal_min"], image.header["cal_max"] = 0, 255
    nib.save(image, path)


def write_halves(folder: Path) -> None:
    """Two axial volumes that are bright on the patient's left and in front, with the first voxel axis to the right and to the left."""
    for name, sign in (("halves_ras", 1), ("halves_las", -1)):
        voxels = np.zeros((40, 40, 4), dtype=np.uint8)
        left = slice(0, 20) if sign > 0 else slice(20, 40)
        voxels[left, 20:] = 200
        image = nib.Nifti1Image(voxels, np.diag([sign * 1.0, 1.0, 5.0, 1.0]))
        image.header["cal_min"], image.header["cal_max"] = 0, 255
        nib.save(image, folder / f"{name}.nii.gz")
