"""The voxel grid that each image had when it was last used: labels and slice tags fit that one, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from app_cdm.data.grid import Volume
from app_cdm.data.writing import write_atomically

TOLERANCE_MM = 1e-3  # an affine loses some digits in a NIfTI header


class KnownGrids:
    """Grids by image, each in a small file that every process reads anew.

    Args:
        folder: where they are kept; made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fits(self, image_id: str, grid: Volume) -> bool | None:
        """Whether this is the grid that an image had; None where nothing is known of it."""
        try:
            known = json.loads(self._file(image_id).read_text())
            shape, affine = tuple(known["shape"]), np.array(known["affine"], dtype=np.float64)
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        return shape == grid.array.shape and affine.shape == (4, 4) and np.allclose(affine, grid.affine, atol=TOLERANCE_MM)

    def keep(self, image_id: str, grid: Volume) -> None:
        """Takes note of an image's grid."""
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {"shape": grid.array.shape, "affine": grid.affine.tolist()}
        write_atomically(self._file(image_id), json.dumps(content).encode())

    def _file(self, image_id: str) -> Path:
        return self._folder / f"{image_id}.json"
