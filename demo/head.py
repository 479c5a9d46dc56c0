"""Paints everything around the brain: skull with marrow, scalp, orbits, sinuses, muscles, fat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from demo.fields import Array, Mask, smooth_noise
from demo.template import HEAD_SHAPE, Template, head_coordinates


@dataclass(frozen=True)
class Contrast:
    """FLAIR signal of each tissue; white matter is about 1.

    Attributes:
        grey: grey matter, a little above white matter.
        white: white matter.
        csf: cerebrospinal fluid and vitreous, nulled by the inversion pulse.
        fat: subcutaneous and orbital fat.
        marrow: fatty marrow of the skull.
        muscle: muscle.
        skin: skin and mucosa.
        bone: cortical bone.
    """

    grey: float
    white: float
    csf: float
    fat: float
    marrow: float
    muscle: float
    skin: float
    bone: float


def draw_contrast(rng: np.random.Generator) -> Contrast:
    """Draws the signal of each tissue for one scanner and protocol."""
    white = 1.0
    fat = rng.uniform(1.5, 2.9)
    return Contrast(
        grey=white * rng.uniform(1.14, 1.30),
        white=white,
        csf=rng.uniform(0.20, 0.40),
        fat=fat,
        marrow=fat * rng.uniform(0.45, 0.75),
        muscle=rng.uniform(0.45, 0.65),
        skin=rng.uniform(0.8, 1.3),
        bone=rng.uniform(0.05, 0.12),
    )


def paint_head(template: Template, contrast: Contrast, rng: np.random.Generator) -> Array:
    """Signal of everything but the brain on the head grid; the intracranial space holds CSF.

    Args:
        template: distances to brain and envelope.
        contrast: signal of each tissue.
        rng: draws thicknesses and the texture of the skull base.

    Returns:
        float32 of shape `HEAD_SHAPE`; air is 0.
    """
    envelope, brain = template.envelope_distance, template.brain_distance
    _, _, z = head_coordinates()
    skull = rng.uniform(4.5, 6.2)
    scalp = rng.uniform(3.5, 7.5)
    low = 1.0 / (1.0 + np.exp((z + 20.0) / 6.0))
    surface = envelope - skull - scalp - 1.5 + 0.8 * smooth_noise(rng, HEAD_SHAPE, 40.0)
    coarse, fine = _mirrored_noise(rng, 9.0), _mirrored_noise(rng, 4.0)
    signal = np.where(np.abs(coarse + 0.3 * fine) < 0.24, contrast.fat * 0.8, contrast.muscle * (1.0 + 0.15 * fine)).astype(np.float32)
    _paint_skull_base(signal, contrast, coarse, fine, brain)
    _paint_temporalis(signal, contrast, envelope, skull)
    _paint_calvaria(signal, contrast, np.maximum(envelope, brain), envelope, skull, fine, low)
    _paint_face(signal, contrast, fine, rng)
    fat_depth = -(scalp - 1.0 + 2.5 * low)
    signal[(surface > fat_depth) & (envelope > 2.0)] = 0.0
    shell = (surface > fat_depth) & (envelope > skull * (1.0 - low))
    signal = np.where(shell, contrast.fat * (1.0 + 0.06 * fine), signal)
    signal[surface > -1.8] = contrast.skin
    signal[brain < 2.2] = contrast.csf
    signal[surface > 0.0] = 0.0
    return np.asarray(ndimage.gaussian_filter(signal, 0.45), dtype=np.float32)


def _mirrored_noise(rng: np.random.Generator, scale: float) -> Array:
    """Noise that is mostly left-right symmetric, as anatomy is."""
    noise = smooth_noise(rng, HEAD_SHAPE, scale)
    return np.asarray((noise + noise[::-1]) * 0.62 + 0.25 * smooth_noise(rng, HEAD_SHAPE, scale), dtype=np.float32)


def _ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float], *, both_sides: bool = False) -> Array:
    """Normalised radius (1 on the surface); `both_sides` mirrors it at the midline."""
    x, y, z = head_coordinates()
    x = np.abs(x) if both_sides else x
    squares = ((v - c) / r for v, c, r in zip((x, y, z), centre, radii, strict=True))
    return np.asarray(np.sqrt(sum(s**2 for s in squares)), dtype=np.float32)


def _paint_skull_base(signal: Array, contrast: Contrast, coarse: Array, fine: Array, brain: Array) -> None:
    """Bone with islands of marrow around the lower brain, air cells in the mastoids."""
    base = brain < 8.0 + 2.5 * coarse
    signal[base] = contrast.bone
    signal[base & (fine > 0.55) & (brain > 4.0)] = contrast.marrow * 0.7
    mastoid = _ellipsoid((52.0, -34.0, -50.0), (12.0, 15.0, 16.0), both_sides=True) < 1.0
    signal[mastoid] = np.where(fine[mastoid] > 0.3, contrast.skin * 0.6, 0.03)


def _paint_temporalis(signal: Array, contrast: Contrast, envelope: Array, skull: float) -> None:
    """The temporal muscle on the outside of the skull."""
    x, y, z = head_coordinates()
    place = (np.abs(x) > 42.0) & (np.abs(y - 14.0) < 32.0) & (np.abs(z + 18.0) < 34.0)
    signal[place & (envelope > skull)] = contrast.muscle


def _paint_calvaria(signal: Array, contrast: Contrast, depth: Array, envelope: Array, skull: float, fine: Array, low: Array) -> None:
    """Inner table, diploe with marrow and outer table above the skull base."""
    vault = (low < 0.5) & (envelope < skull)
    signal[vault] = contrast.bone
    middle: Mask = vault & (np.abs(depth - 0.55 * skull) < 0.24 * skull + 0.4 * fine)
    signal[middle] = contrast.marrow * 0.85


def _paint_face(signal: Array, contrast: Contrast, fine: Array, rng: np.random.Generator) -> None:
    """Orbits with globes, optic nerves and muscles; nasal cavity and sinuses."""
    x, y, z = head_coordinates()
    height = -33.0 + rng.uniform(-2.0, 2.0)
    orbit = _ellipsoid((30.0, 50.0, height), (17.0, 27.0, 16.0), both_sides=True)
    signal[orbit < 1.14] = contrast.bone
    signal[orbit < 1.0] = contrast.fat * 0.9
    apex = np.clip((y - 25.0) / 35.0, 0.0, 1.0)
    lateral, vertical = np.abs(x) - (10.0 + 22.0 * apex), z - height
    inside = (orbit < 0.97) & (y > 25.0) & (y < 66.0)
    signal[inside & (lateral**2 + vertical**2 < 2.6**2)] = contrast.white * 0.8
    for dx, dz in ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)):
        reach = 3.0 + 10.0 * apex
        signal[inside & ((lateral - dx * reach) ** 2 + (vertical - dz * reach) ** 2 < 2.4**2)] = contrast.muscle * 1.2
    globe = _ellipsoid((32.0, 64.0, height), (12.5, 12.5, 12.5), both_sides=True)
    signal[globe < 1.12] = contrast.skin
    signal[globe < 1.0] = contrast.csf * 1.1
    signal[_ellipsoid((32.0, 73.0, height), (4.5, 2.2, 4.5), both_sides=True) < 1.0] = contrast.muscle
    ethmoid = (np.abs(x) < 12.0) & (y > 28.0) & (y < 72.0) & (z < -18.0) & (z > -80.0)
    signal[ethmoid] = np.where(fine[ethmoid] > 0.45, contrast.skin * 1.1, 0.02)
    signal[ethmoid & (np.abs(x) < 1.2)] = contrast.skin
    frontal = _ellipsoid((0.0, 72.0, -4.0), (18.0, 6.0, 14.0))
    for cavity in (
        _ellipsoid((0.0, 18.0, -44.0), (13.0, 12.0, 10.0)),
        _ellipsoid((29.0, 46.0, -66.0), (14.0, 17.0, 15.0), both_sides=True),
        frontal,
    ):
        signal[cavity < 1.1] = contrast.skin
        signal[cavity < 1.0] = 0.02
