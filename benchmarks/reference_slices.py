"""Reference masks of validation or test volumes at the resolution of the networks, to look at maps before they are put back."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import nibabel.orientations as orientations
import numpy as np
import torch
import torch.nn.functional as F

from app_cdm.config import PreprocessSettings
from app_cdm.data.dataset import TaggedSlices
from app_cdm.data.slices import SliceGeometry, cut_slices
from app_cdm.data.volume import read_volume


def reference_slices(dataset: Path, data: TaggedSlices, preprocess: PreprocessSettings, pattern: str) -> np.ndarray:
    """`(N, H, W)` bool: where more than half of a network pixel is covered by the expert's mask.

    Args:
        dataset: folder with `images/` and `masks/<image>_seg.nii.gz`.
        data: the slices, volume after volume.
        preprocess: how they were cut.
        pattern: file name of an image.
    """
    found = []
    for image in data.image_ids:
        geometry = cut_slices(read_volume(dataset / "images" / pattern.format(image=image)), preprocess).geometry
        mask = np.asarray(nib.load(dataset / "masks" / f"{image}_seg.nii.gz").dataobj) > 0  # type: ignore[attr-defined]
        found.append(share_of_pixels(mask, geometry))
    return np.concatenate(found) > 0.5


def share_of_pixels(mask: np.ndarray, geometry: SliceGeometry) -> np.ndarray:
    """`(S, H, W)` float32 share of each network pixel that a mask `(X, Y, Z)` of the file's grid covers."""
    display = orientations.apply_orientation(mask.astype(np.float32), geometry.to_display)
    row0, row1, column0, column1 = geometry.crop
    cut = torch.from_numpy(np.ascontiguousarray(display[row0:row1, column0:column1])).permute(2, 0, 1)[:, None]
    result = torch.zeros(cut.shape[0], geometry.image_size, geometry.image_size)
    top, left = geometry.padding
    shrunk = F.interpolate(cut, size=geometry.resized, mode="area")[:, 0]
    result[:, top : top + geometry.resized[0], left : left + geometry.resized[1]] = shrunk
    return result.numpy()
