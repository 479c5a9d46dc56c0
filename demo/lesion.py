"""Glioma-like lesions: an irregular oedema that follows white matter, a heterogeneous core, sometimes a cyst."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from demo.fields import Array, smooth_noise
from demo.template import Template
from demo.warp import rotation_matrix

NOISE_SHAPE = (64, 64, 64)


@dataclass(frozen=True)
class Lesion:
    """One lesion in MNI space.

    Attributes:
        centre_mm: its centre.
        radius_mm: mean radius.
        frame: (3, 3) rotation and relative elongation.
        border: noise that shapes the outline, over a cube of four radii.
        texture: noise that mottles the signal, over the same cube.
        softness: width of the border, relative to the radius.
        oedema: signal of oedema relative to white matter.
        core: signal of the core relative to white matter.
        core_fraction: radius of the core relative to the radius.
        cyst_fraction: radius of a dark cyst relative to the radius; 0 is none.
    """

    centre_mm: Array
    radius_mm: float
    frame: Array
    border: Array
    texture: Array
    softness: float
    oedema: float
    core: float
    core_fraction: float
    cyst_fraction: float

    def evaluate(self, points: Array, white: Array) -> tuple[Array, Array]:
        """Membership in [0, 1] and signal (white matter is 1) at MNI positions.

        Args:
            points: positions in mm, (3, N).
            white: white-matter probability there, (N,).
        """
        local = self.frame @ (points - self.centre_mm[:, None]) / self.radius_mm
        cube = (local / 2.0 + 1.0) * (NOISE_SHAPE[0] - 1) / 2.0
        border = ndimage.map_coordinates(self.border, cube, order=1, mode="nearest")
        texture = ndimage.map_coordinates(self.texture, cube, order=1, mode="nearest")
        radius = np.sqrt(np.sum(local**2, axis=0)) + border
        member = _sigmoid((1.0 - radius - 0.30 * (1.0 - white)) / self.softness)
        core = _sigmoid((self.core_fraction - radius + 0.5 * border) / 0.08)
        signal = (self.oedema + (self.core - self.oedema) * core) * (1.0 + 0.10 * texture)
        if self.cyst_fraction > 0.0:
            cyst = _sigmoid((self.cyst_fraction - radius + 0.4 * border) / 0.04)
            signal = signal * (1.0 - cyst) + 0.40 * cyst
        return np.asarray(member, dtype=np.float32), np.asarray(signal, dtype=np.float32)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0))), dtype=np.float32)


def draw_lesion(template: Template, rng: np.random.Generator, radius_mm: float, side: int) -> Lesion:
    """Places a lesion of mean radius `radius_mm` in the white matter of one hemisphere.

    Args:
        template: its white-matter map and distances say where a lesion may sit.
        rng: source of randomness.
        radius_mm: mean radius.
        side: -1 left, +1 right (RAS).
    """
    elongation = np.exp(rng.uniform(-0.25, 0.25, 3))
    turn = rotation_matrix((rng.uniform(0, 180), rng.uniform(0, 180), rng.uniform(0, 180)))
    border = (
        0.22 * smooth_noise(rng, NOISE_SHAPE, 15.0)
        + 0.10 * smooth_noise(rng, NOISE_SHAPE, 6.0)
        + 0.05 * smooth_noise(rng, NOISE_SHAPE, 3.0)
    )
    texture = smooth_noise(rng, NOISE_SHAPE, 9.0) + 0.6 * smooth_noise(rng, NOISE_SHAPE, 4.0)
    has_cyst = radius_mm > 14.0 and rng.uniform() < 0.3
    oedema = rng.uniform(1.35, 1.8)
    return Lesion(
        centre_mm=_draw_centre(template, rng, radius_mm, side),
        radius_mm=radius_mm,
        frame=np.asarray(np.diag(elongation) @ turn, dtype=np.float32),
        border=border,
        texture=texture,
        softness=float(rng.uniform(0.05, 0.12)),
        oedema=float(oedema),
        core=float(oedema * rng.uniform(0.85, 1.35)),
        core_fraction=float(rng.uniform(0.35, 0.75)),
        cyst_fraction=float(rng.uniform(0.3, 0.5)) if has_cyst else 0.0,
    )


def _draw_centre(template: Template, rng: np.random.Generator, radius_mm: float, side: int) -> Array:
    """A random white-matter voxel of the cerebrum, off the midline and the brain stem."""
    voxels = np.argwhere(template.white > 0.75) + template.origin_mm
    off_midline = 12.0 + 0.5 * radius_mm
    keep = (voxels[:, 0] * side > off_midline) & (voxels[:, 2] > -18.0) & (voxels[:, 2] < 52.0) & (voxels[:, 1] < 52.0)
    candidates = voxels[keep]
    return np.asarray(candidates[rng.integers(len(candidates))], dtype=np.float32)
