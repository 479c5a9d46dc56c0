"""Distance between the outlines of two masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from monai.metrics.utils import get_mask_edges, get_surface_distance

from app_cdm.metrics.overlap import check_masks

PERCENTILE = 95.0


def hd95_px(prediction: np.ndarray, reference: np.ndarray) -> float:
    """95th percentile of the symmetric surface distance in pixels: `P95({d(p, S_R): p in S_P} and {d(r, S_P): r in S_R})`.

    The surface `S` of a mask is the mask without its erosion by the 4- (in 3D 6-) neighbourhood, `d` is Euclidean. The distances of both
    directions are pooled before the percentile; MONAI's `compute_hausdorff_distance` takes the larger of two percentiles. An axis of
    length 1 does not count: along it every pixel would be of the surface.

    Args:
        prediction: `(X, Y)` or `(X, Y, Z)` booleans.
        reference: the same shape.

    Returns:
        The distance; NaN where one mask or both are empty. A caller counts an empty prediction of a non-empty reference as a failure.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: the shapes differ or the masks hold no pixel.

    Example:
        >>> hd95_px(np.array([[True, False, False, False]]), np.array([[False, False, False, True]]))
        3.0
    """
    return _hd95(prediction, reference, None)


def hd95_mm(prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """`hd95_px` in millimetres; only for images whose spacing is real, not nominal.

    Args:
        prediction: `(X, Y)` or `(X, Y, Z)` booleans.
        reference: the same shape.
        spacing_mm: one positive number an axis.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: the shapes differ, the masks hold no pixel, or the spacing does not fit.

    Example:
        >>> hd95_mm(np.array([[True, False, False, False]]), np.array([[False, False, False, True]]), (1.0, 0.5))
        1.5
    """
    if len(spacing_mm) != prediction.ndim or min(spacing_mm) <= 0:
        raise ValueError(f"spacing_mm = {tuple(spacing_mm)}: must be {prediction.ndim} positive numbers")
    return _hd95(prediction, reference, tuple(float(value) for value in spacing_mm))


def slice_hd95_px(prediction: np.ndarray, reference: np.ndarray, axis: int = 2) -> np.ndarray:
    """`hd95_px` of every slice along an axis of `(X, Y, Z)` masks, in in-plane pixels; `(num_slices,)` float64 with NaN where undefined."""
    check_masks(prediction, reference)
    pairs = zip(np.moveaxis(prediction, axis, 0), np.moveaxis(reference, axis, 0), strict=True)
    return np.array([_hd95(first, second, None) for first, second in pairs])


def _hd95(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...] | None) -> float:
    check_masks(prediction, reference)
    if not prediction.any() or not reference.any():
        return float("nan")
    sides = [length for length in prediction.shape if length > 1] or [1]
    found = get_mask_edges(prediction.reshape(sides), reference.reshape(sides), crop=False)
    edges, reference_edges = (np.asarray(edge).reshape(prediction.shape) for edge in found)
    there = get_surface_distance(edges, reference_edges, spacing=spacing)
    back = get_surface_distance(reference_edges, edges, spacing=spacing)
    return float(np.percentile(np.concatenate([np.asarray(there), np.asarray(back)]).astype(np.float64), PERCENTILE))
