"""From a patient's voxel grid to MNI space: acquisition geometry, affine, elastic deformation, ventricles, mass effect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from demo.fields import Array, smooth_noise

FIELD_SPACING_MM = 4.0
FIELD_SHAPE = (68, 78, 70)
FIELD_ORIGIN_MM = np.array([-134.0, -160.0, -136.0], dtype=np.float32)
VENTRICLES_MM = np.array([0.0, -14.0, 14.0], dtype=np.float32)


@dataclass(frozen=True)
class Geometry:
    """An axial acquisition.

    Attributes:
        shape: voxels (X, Y, Z); Z is the slice axis.
        affine: voxel to RAS in mm, (4, 4).
    """

    shape: tuple[int, int, int]
    affine: Array

    def positions(self, offset: float) -> Array:
        """Positions in mm (3, X, Y, Z) of the voxel centres, moved along the slice axis by `offset` slices."""
        i, j, k = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in self.shape), indexing="ij")
        voxels = np.stack([i, j, k + np.float32(offset)])
        rotation, origin = self.affine[:3, :3].astype(np.float32), self.affine[:3, 3].astype(np.float32)
        return np.asarray(np.tensordot(rotation, voxels, axes=1) + origin[:, None, None, None], dtype=np.float32)


def rotation_matrix(angles_deg: tuple[float, float, float]) -> Array:
    """Rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles_deg)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return np.asarray(matrix, dtype=np.float32)


def axial_geometry(rng: np.random.Generator, *, slice_mm: float, pixel_mm: float, tilt_deg: float, orientation: str) -> Geometry:
    """A stack of axial slices of 160 x 160 pixels from the foramen magnum to above the vertex, inferior to superior.

    Args:
        rng: draws coverage and table position.
        slice_mm: distance of slice centres.
        pixel_mm: in-plane pixel size.
        tilt_deg: tilt of the slices about the left-right axis.
        orientation: `LPS` (as DICOM) or `RAS`: where the first two voxel axes point.
    """
    bottom, top = rng.uniform(-76.0, -62.0), rng.uniform(88.0, 97.0)
    count = int(np.ceil((top - bottom) / slice_mm))
    sign = -1.0 if orientation == "LPS" else 1.0
    axes = rotation_matrix((tilt_deg, 0.0, 0.0)) @ np.diag([sign * pixel_mm, sign * pixel_mm, slice_mm])
    centre = np.array([rng.uniform(-3, 3), -16.0 + rng.uniform(-4, 4), (bottom + top) / 2.0])
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = centre - axes @ (np.array([160, 160, count]) - 1.0) / 2.0
    return Geometry((160, 160, count), np.asarray(affine, dtype=np.float32))


@dataclass(frozen=True)
class Warp:
    """Maps patient positions to MNI space.

    Attributes:
        matrix: linear part (3, 3).
        displacement: displacement of the whole head in mm on a coarse grid, (3, *FIELD_SHAPE).
        folding: further displacement of the brain alone, same grid.
        ventricle_growth: relative enlargement of the ventricles.
        push_centre_mm: centre of the mass effect in MNI space.
        push_radius_mm: its reach.
        push: its strength; 0 is none.
    """

    matrix: Array
    displacement: Array
    folding: Array
    ventricle_growth: float
    push_centre_mm: Array
    push_radius_mm: float
    push: float

    def head(self, positions: Array) -> Array:
        """MNI positions in mm, (3, ...), of patient positions in mm, for skull, scalp and face."""
        points = np.tensordot(self.matrix, positions, axes=1).astype(np.float32)
        return _displace(points, self.displacement)

    def brain(self, points: Array) -> Array:
        """The same for brain tissue, from the result of `head`: folding, ventricles and mass effect added."""
        moved = _magnify(_displace(points, self.folding), VENTRICLES_MM, 26.0, self.ventricle_growth)
        return _magnify(moved, self.push_centre_mm, self.push_radius_mm, self.push)


def _displace(points: Array, fields: Array) -> Array:
    """Adds a displacement that is stored on the coarse grid."""
    grid = (points - FIELD_ORIGIN_MM[:, None, None, None]) / np.float32(FIELD_SPACING_MM)
    return np.asarray(points + np.stack([ndimage.map_coordinates(f, grid, order=1, mode="nearest") for f in fields]), dtype=np.float32)


def _magnify(points: Array, centre: Array, radius_mm: float, strength: float) -> Array:
    """Magnifies tissue around `centre`, pushing its surroundings outwards."""
    if strength == 0.0:
        return points
    delta = points - centre[:, None, None, None]
    weight = strength * np.exp(-np.sum(delta**2, axis=0) / (2.0 * radius_mm**2))
    return np.asarray(points - delta * weight, dtype=np.float32)


def draw_warp(rng: np.random.Generator, push_centre_mm: Array, push_radius_mm: float) -> Warp:
    """Draws one person's shape and position; the mass effect sits at the lesion (radius 0: none)."""
    angles = (rng.uniform(-7, 7), rng.uniform(-3, 3), rng.uniform(-5, 5))
    scale = np.diag(rng.uniform(0.97, 1.10) * rng.uniform(0.96, 1.04, 3))

    def field(*octaves: tuple[float, float]) -> Array:
        """Three components, each a sum of (amplitude in mm, scale in nodes)."""
        parts = [sum(a * smooth_noise(rng, FIELD_SHAPE, scale) for a, scale in octaves) for _ in range(3)]
        return np.stack([np.asarray(part, dtype=np.float32) for part in parts])

    return Warp(
        matrix=np.asarray(scale @ rotation_matrix(angles), dtype=np.float32),
        displacement=field((3.0, 22.0)),
        folding=field((1.3, 11.0), (1.4, 4.5), (0.9, 2.2)),
        ventricle_growth=float(rng.uniform(-0.10, 0.30)),
        push_centre_mm=push_centre_mm,
        push_radius_mm=max(1.1 * push_radius_mm, 1.0),
        push=float(rng.uniform(0.15, 0.35)) if push_radius_mm > 0 else 0.0,
    )
