"""One synthetic case from a seed: who it is, how it was scanned, where the lesion sits."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt

from demo.lesion import draw_lesion
from demo.scanner import acquire, draw_head
from demo.template import load_template
from demo.warp import Geometry, axial_geometry, draw_warp


@dataclass(frozen=True)
class CaseSpec:
    """What is asked of a case; everything else follows from the seed.

    Attributes:
        case_id: name of the case, used as file name.
        seed: of everything random in it.
        radius_mm: mean lesion radius; 0 makes a case without lesion.
        side: hemisphere of the lesion, -1 left, +1 right.
        slice_mm: distance of slice centres.
        pixel_mm: in-plane pixel size.
        tilt_deg: tilt of the slices about the left-right axis.
        orientation: `LPS` or `RAS`, directions of the voxel axes.
    """

    case_id: str
    seed: int
    radius_mm: float
    side: int = 1
    slice_mm: float = 6.0
    pixel_mm: float = 1.5
    tilt_deg: float = 0.0
    orientation: str = "LPS"


@dataclass(frozen=True)
class Case:
    """A finished case.

    Attributes:
        spec: what was asked.
        image: signal (X, Y, Z) int16.
        mask: true lesion mask {0, 1}, same grid.
        geometry: the grid.
    """

    spec: CaseSpec
    image: npt.NDArray[np.int16]
    mask: npt.NDArray[np.uint8]
    geometry: Geometry

    def image_nifti(self) -> nib.Nifti1Image:
        """The image with its affine, units mm, in scanner coordinates."""
        return _nifti(self.image, self.geometry)

    def mask_nifti(self) -> nib.Nifti1Image:
        """The true mask with the same affine."""
        return _nifti(self.mask, self.geometry)

    def slice_tags(self) -> list[int]:
        """1 for each slice that shows the lesion, else 0, in voxel order."""
        return [int(present) for present in self.mask.any(axis=(0, 1))]


def _nifti(values: npt.NDArray[np.int16] | npt.NDArray[np.uint8], geometry: Geometry) -> nib.Nifti1Image:
    image = nib.Nifti1Image(values, geometry.affine.astype(np.float64))
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    return image


def make_case(spec: CaseSpec) -> Case:
    """Makes a case; the same specification gives the same voxels."""
    template = load_template()
    person, scan, tumour, shape = (np.random.default_rng([spec.seed, part]) for part in range(4))
    geometry = axial_geometry(scan, slice_mm=spec.slice_mm, pixel_mm=spec.pixel_mm, tilt_deg=spec.tilt_deg, orientation=spec.orientation)
    lesion = draw_lesion(template, tumour, spec.radius_mm, spec.side) if spec.radius_mm > 0 else None
    warp = draw_warp(shape, lesion.centre_mm if lesion else np.zeros(3, dtype=np.float32), spec.radius_mm)
    image, mask = acquire(draw_head(template, person), warp, geometry, lesion, scan)
    return Case(spec=spec, image=image, mask=mask, geometry=geometry)


def draw_spec(case_id: str, seed: int, lesion_free_fraction: float = 0.15) -> CaseSpec:
    """A random specification: lesions of 1 to 6 cm on either side, slices of 5 to 6.5 mm."""
    rng = np.random.default_rng([seed, 99])
    radius = float(rng.uniform(6.0, 30.0))
    return CaseSpec(
        case_id=case_id,
        seed=seed,
        radius_mm=0.0 if rng.uniform() < lesion_free_fraction else radius,
        side=int(rng.choice([-1, 1])),
        slice_mm=round(float(rng.uniform(5.0, 6.5)), 2),
        pixel_mm=round(float(rng.uniform(1.4, 1.6)), 3),
        tilt_deg=float(rng.uniform(-10.0, 10.0)),
    )
