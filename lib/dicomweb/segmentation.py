"""A DICOM segmentation as a mask on its image's voxel grid, with the numbers that the app gives its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pydicom
import pydicom_seg
import SimpleITK as sitk
from scipy import ndimage

from app_cdm.data.grid import Volume, VolumeError

# Voxel-to-RAS from voxel-to-LPS.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class NamedMask:
    """A mask with the meaning of its values.

    Attributes:
        mask: `(X, Y, Z)` uint8; 0 is background.
        names: of the values 1, 2, ... in order.
    """

    mask: np.ndarray
    names: tuple[str, ...]


def read_segmentation(dataset: pydicom.Dataset, image: Volume, class_names: Sequence[str]) -> NamedMask:
    """Places a segmentation, which holds only the slices and segments that somebody stored, on its image.

    Values are the classes' alphabetical numbers, whatever numbers the file gives its segments; segments of other names come
    after those. Where segments overlap, the later one in the file wins.

    Args:
        dataset: a binary DICOM segmentation.
        image: the image's grid.
        class_names: the classes there are.

    Raises:
        VolumeError: it is no binary segmentation, or lies beside the image.
    """
    if dataset.get("Modality") != "SEG" or dataset.get("SegmentationType") != "BINARY":
        raise VolumeError(f"series {dataset.get('SeriesInstanceUID', '?')} is not a binary DICOM segmentation")
    segments = [(int(item.SegmentNumber), str(item.SegmentLabel)) for item in dataset.SegmentSequence]
    known = sorted(class_names)
    names = (*known, *(name for name in dict.fromkeys(name for _, name in segments) if name not in known))
    read = pydicom_seg.SegmentReader().read(dataset)
    mask = np.zeros(image.array.shape, dtype=np.uint8)
    is_stored, is_placed = False, False
    for number, name in segments:
        if number not in read.available_segments:
            continue
        stored = read.segment_image(number)
        voxels, affine = _as_volume(stored)
        placed = on_grid(voxels, affine, image)
        mask[placed] = names.index(name) + 1
        is_stored, is_placed = is_stored or bool(voxels.any()), is_placed or bool(placed.any())
    if is_stored and not is_placed:
        raise VolumeError(f"segmentation {dataset.SeriesInstanceUID} lies beside its image")
    return NamedMask(mask, names)


def on_grid(voxels: np.ndarray, affine: np.ndarray, image: Volume) -> np.ndarray:
    """A binary volume on an image's grid, by the nearest voxel: exact where one grid is part of the other, turned or flipped.

    Args:
        voxels: `(X, Y, Z)`.
        affine: its voxel-to-RAS matrix, `(4, 4)`.
        image: the grid.

    Returns:
        `(X, Y, Z)` bool.
    """
    to_voxels = np.linalg.inv(affine) @ image.affine
    moved = ndimage.affine_transform(
        voxels.astype(np.uint8), to_voxels[:3, :3], to_voxels[:3, 3], image.array.shape, order=0, mode="grid-constant", cval=0
    )
    return np.asarray(moved > 0)


def _as_volume(stored: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Voxels `(X, Y, Z)` and voxel-to-RAS matrix of a SimpleITK image."""
    voxels = np.asarray(sitk.GetArrayViewFromImage(stored)).transpose(2, 1, 0)
    affine = np.eye(4)
    affine[:3, :3] = np.array(stored.GetDirection()).reshape(3, 3) * np.array(stored.GetSpacing())  # type: ignore[no-untyped-call]
    affine[:3, 3] = stored.GetOrigin()  # type: ignore[no-untyped-call]
    return voxels, LPS_TO_RAS @ affine
