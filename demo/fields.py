"""Smooth random fields and signed distances: the raw material of the synthetic heads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Array:
    """A random field of zero mean and unit standard deviation, band-limited by cubic interpolation of a coarse grid.

    Args:
        rng: source of randomness.
        shape: shape of the field.
        scale: distance between the nodes of the coarse grid, in voxels.

    Returns:
        The field, float32, of the given shape.
    """
    nodes = [int(np.ceil(size / scale)) + 3 for size in shape]
    coarse = rng.standard_normal(nodes).astype(np.float32)
    offset = rng.uniform(0.0, 1.0, len(shape))
    for axis, size in enumerate(shape):
        positions = np.arange(size, dtype=np.float32) / scale + 1.0 * offset[axis]
        coarse = _interpolate(coarse, positions, axis)
    return np.asarray((coarse - coarse.mean()) / (coarse.std() + 1e-6), dtype=np.float32)


def _interpolate(values: Array, positions: Array, axis: int) -> Array:
    """Catmull-Rom interpolation along one axis; positions lie in [0, size - 3)."""
    start = np.floor(positions).astype(np.intp)
    t = (positions - start).astype(np.float32)
    weights = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1.0 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2.0 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    shape = [1] * values.ndim
    shape[axis] = len(t)
    last = values.shape[axis] - 1
    parts = (np.take(values, np.minimum(start + k, last), axis=axis) * w.reshape(shape) for k, w in enumerate(weights))
    return np.asarray(sum(parts), dtype=np.float32)


def signed_distance(mask: Mask, spacing_mm: float) -> Array:
    """Distance to the surface of `mask` in mm: positive outside, negative inside."""
    outside = ndimage.distance_transform_edt(~mask)
    inside = ndimage.distance_transform_edt(mask)
    return np.asarray((outside - inside) * spacing_mm, dtype=np.float32)


def close(mask: Mask, radius_mm: float, spacing_mm: float) -> Mask:
    """Morphological closing with a ball, by two distance transforms."""
    dilated = ndimage.distance_transform_edt(~mask) * spacing_mm <= radius_mm
    return np.asarray(ndimage.distance_transform_edt(dilated) * spacing_mm > radius_mm, dtype=bool)
