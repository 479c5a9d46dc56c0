"""Images a synthetic head: tissue signal on the slice grid, partial volume, bias field, ghost, Rician noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from demo.fields import Array, smooth_noise
from demo.head import Contrast, draw_contrast, paint_head
from demo.lesion import Lesion
from demo.template import HEAD_ORIGIN_MM, HEAD_SPACING_MM, Template
from demo.warp import Geometry, Warp

SUBSAMPLES = (-0.33, -0.11, 0.11, 0.33)
WHITE_MATTER_LEVEL = 260.0


@dataclass(frozen=True)
class Head:
    """A person ready to be imaged: tissue maps, painted surroundings and the drawn look of the brain."""

    template: Template
    contrast: Contrast
    surroundings: Array
    mottle: Array
    sharpness: float
    caps: float


def draw_head(template: Template, rng: np.random.Generator) -> Head:
    """Draws contrast, skull, face and texture of one person."""
    contrast = draw_contrast(rng)
    return Head(
        template=template,
        contrast=contrast,
        surroundings=paint_head(template, contrast, rng),
        mottle=smooth_noise(rng, (50, 60, 55), 2.0),
        sharpness=float(rng.uniform(1.5, 2.4)),
        caps=float(rng.uniform(0.1, 0.45)),
    )


def acquire(
    head: Head, warp: Warp, geometry: Geometry, lesion: Lesion | None, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Images a head on a slice grid.

    Returns:
        Signal (X, Y, Z) int16 and the true lesion mask {0, 1} uint8 on the same grid.
    """
    signal = np.zeros(geometry.shape, dtype=np.float32)
    member = np.zeros(geometry.shape, dtype=np.float32)
    for offset in SUBSAMPLES:
        part, inside = _sample(head, warp, geometry.positions(offset), lesion)
        signal += part / len(SUBSAMPLES)
        member += inside / len(SUBSAMPLES)
    mask = np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(member > 0.5, 2, 0)], axis=2)
    return _degrade(signal, rng), mask.astype(np.uint8)


def _sample(head: Head, warp: Warp, positions: Array, lesion: Lesion | None) -> tuple[Array, Array]:
    """Noise-free signal and lesion membership at patient positions (3, X, Y, Z)."""
    outer_points = warp.head(positions)
    points = warp.brain(outer_points)
    template, contrast = head.template, head.contrast
    voxels = points - template.origin_mm[:, None, None, None]
    grey = ndimage.map_coordinates(template.grey, voxels, order=1)
    white = ndimage.map_coordinates(template.white, voxels, order=1)
    ventricle = ndimage.map_coordinates(template.ventricle_proximity, voxels, order=1)
    fluid = np.clip(1.0 - grey - white, 0.0, 1.0)
    powers = [np.maximum(p, 1e-4) ** head.sharpness for p in (grey, white, fluid)]
    total = np.asarray(sum(powers))
    grey, white, fluid = (p / total for p in powers)
    mottle = ndimage.map_coordinates(head.mottle, voxels / 4.0, order=1, mode="nearest")
    tissue = grey * contrast.grey + white * contrast.white * (1.0 + head.caps * ventricle)
    tissue = tissue * (1.0 + 0.025 * mottle)
    outer_voxels = (outer_points - HEAD_ORIGIN_MM.astype(np.float32)[:, None, None, None]) / np.float32(HEAD_SPACING_MM)
    outer = ndimage.map_coordinates(head.surroundings, outer_voxels, order=1)
    member = np.zeros(grey.shape, dtype=np.float32)
    if lesion is not None:
        near = np.sum((points - lesion.centre_mm[:, None, None, None]) ** 2, axis=0) < (2.2 * lesion.radius_mm) ** 2
        inside, level = lesion.evaluate(points[:, near], white[near])
        member[near] = inside * np.clip(1.6 * (grey + white)[near], 0.0, 1.0)
        blend = inside * np.clip(1.2 * (grey + white)[near], 0.0, 1.0)
        tissue[near] = tissue[near] * (1.0 - blend) + level * blend
    return np.asarray(tissue * (grey + white) + outer * fluid, dtype=np.float32), member


def _degrade(signal: Array, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Blur, interleaved slice gain, coil sensitivity, phase ghost and Rician noise; scales white matter to scanner units."""
    signal = np.asarray(ndimage.gaussian_filter(signal, (0.45, 0.45, 0.0)), dtype=np.float32)
    gain = 1.0 + rng.normal(0.0, 0.012, signal.shape[2]) + 0.012 * (np.arange(signal.shape[2]) % 2)
    bias = np.exp(0.15 * smooth_noise(rng, signal.shape, 80.0))
    signal = signal * gain.astype(np.float32) * bias
    signal = signal + rng.uniform(0.002, 0.012) * np.roll(signal, signal.shape[1] // 2, axis=1)
    sigma = rng.uniform(0.015, 0.045)
    noise = sigma * rng.standard_normal((2, *signal.shape)).astype(np.float32)
    magnitude = np.hypot(signal + noise[0], noise[1])
    return np.asarray(np.rint(magnitude * WHITE_MATTER_LEVEL * rng.uniform(0.7, 1.5)), dtype=np.int16)
