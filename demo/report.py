"""Compares the masks with the truth and says whether the demo counts as right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from demo.cases import Case
from demo.client import Answer, Grid

# What the demo must reach to exit with 0. A mask from image-level tags follows the bright core, not every border voxel.
MIN_MEAN_DICE = 0.40
MIN_CASE_DICE = 0.20
MAX_FALSE_ML = 5.0


@dataclass(frozen=True)
class Score:
    """One case compared with its truth.

    Attributes:
        case_id: the case.
        dice: 2 |A and B| / (|A| + |B|); NaN for a case without lesion.
        mask_ml: volume of the mask.
        true_ml: volume of the true lesion.
        is_geometry_right: uint8 mask, same voxel grid as the image (for DICOM: up to the order of axes).
        wall_s: seconds from the click to the mask.
    """

    case_id: str
    dice: float
    mask_ml: float
    true_ml: float
    is_geometry_right: bool
    wall_s: float

    def __str__(self) -> str:
        result = f"Dice {self.dice:.2f}" if self.true_ml > 0 else "no lesion"
        grid = "geometry ok" if self.is_geometry_right else "WRONG GEOMETRY"
        return f"{self.case_id:<15} {result:<10} mask {self.mask_ml:6.1f} ml   truth {self.true_ml:6.1f} ml   {self.wall_s:5.1f} s   {grid}"


def score(case: Case, answer: Answer) -> Score:
    """Scores a mask on the case's own grid."""
    truth = Grid(case.mask, case.geometry.affine.astype(np.float64))
    mask = align(answer.mask, truth)
    found = np.zeros(truth.values.shape, dtype=bool) if mask is None else mask.values > 0
    true = truth.values > 0
    voxel_ml = abs(float(np.linalg.det(truth.affine[:3, :3]))) / 1000.0
    dice = 2.0 * float((found & true).sum()) / float(found.sum() + true.sum()) if true.any() else math.nan
    return Score(
        case_id=case.spec.case_id,
        dice=dice,
        mask_ml=float(found.sum()) * voxel_ml,
        true_ml=float(true.sum()) * voxel_ml,
        is_geometry_right=mask is not None and answer.mask.values.dtype == np.uint8,
        wall_s=answer.wall_s,
    )


def align(grid: Grid, reference: Grid) -> Grid | None:
    """Reorders and flips axes so that `grid` lies on the voxels of `reference`; None where the two grids differ."""
    goal = nib.orientations.io_orientation(reference.affine)
    change = nib.orientations.ornt_transform(nib.orientations.io_orientation(grid.affine), goal)
    values = nib.orientations.apply_orientation(grid.values, change)
    affine = grid.affine @ nib.orientations.inv_ornt_aff(change, grid.values.shape)
    if values.shape != reference.values.shape or not np.allclose(affine, reference.affine, atol=1e-2):
        return None
    return Grid(values, affine)


def failures(scores: list[Score]) -> list[str]:
    """What keeps the demo from being right; empty when all is well."""
    lesions = [s for s in scores if s.true_ml > 0]
    mean = float(np.mean([s.dice for s in lesions]))
    found = [f"{s.case_id}: wrong geometry" for s in scores if not s.is_geometry_right]
    found += [f"{s.case_id}: Dice {s.dice:.2f} < {MIN_CASE_DICE}" for s in lesions if s.dice < MIN_CASE_DICE]
    found += [
        f"{s.case_id}: {s.mask_ml:.1f} ml marked without a lesion, > {MAX_FALSE_ML}"
        for s in scores
        if not s.true_ml and s.mask_ml > MAX_FALSE_ML
    ]
    if mean < MIN_MEAN_DICE:
        found.append(f"mean Dice {mean:.2f} < {MIN_MEAN_DICE}")
    return found
