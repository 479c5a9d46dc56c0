"""Dice and IoU of binary masks, by slice or over a whole volume."""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice of two masks of any number of axes: `2 |P and R| / (|P| + |R|)`.

    Two empty masks have no Dice (NaN); a mask against an empty one has 0.

    Args:
        prediction: `(X, Y)` or `(X, Y, Z)` booleans.
        reference: the same shape.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: the shapes differ or the masks hold no pixel.

    Example:
        >>> dice(np.array([[True, True]]), np.array([[True, False]]))
        0.6666666865348816
    """
    return float(_overlap(prediction[None], reference[None], is_dice=True)[0])


def iou(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Intersection over union of two masks of any number of axes: `|P and R| / |P or R|`.

    Two empty masks have none (NaN); a mask against an empty one has 0.

    Args:
        prediction: `(X, Y)` or `(X, Y, Z)` booleans.
        reference: the same shape.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: the shapes differ or the masks hold no pixel.

    Example:
        >>> iou(np.array([[True, True]]), np.array([[True, False]]))
        0.5
    """
    return float(_overlap(prediction[None], reference[None], is_dice=False)[0])


def slice_dice(prediction: np.ndarray, reference: np.ndarray, axis: int = 2) -> np.ndarray:
    """Dice of every slice along an axis.

    Args:
        prediction: `(X, Y, Z)` booleans.
        reference: the same shape.
        axis: the slicing axis.

    Returns:
        `(num_slices,)` float64; NaN where both are empty, 0 where one is.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: the shapes differ or the masks hold no pixel.
    """
    return _overlap(np.moveaxis(prediction, axis, 0), np.moveaxis(reference, axis, 0), is_dice=True)


def slice_iou(prediction: np.ndarray, reference: np.ndarray, axis: int = 2) -> np.ndarray:
    """IoU of every slice along an axis; arguments, result and errors as in `slice_dice`."""
    return _overlap(np.moveaxis(prediction, axis, 0), np.moveaxis(reference, axis, 0), is_dice=False)


def check_masks(prediction: np.ndarray, reference: np.ndarray) -> None:
    """Refuses what is no pair of masks.

    Raises:
        TypeError: a mask is not boolean (a label map must be compared with its class first).
        ValueError: the shapes differ or the masks hold no pixel.
    """
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.dtype != np.bool_:
            raise TypeError(f"{name} is of type {mask.dtype}: must be boolean, such as labels == 1")
    if prediction.shape != reference.shape or prediction.size == 0:
        raise ValueError(f"prediction of shape {prediction.shape}, reference of shape {reference.shape}: must be equal and not empty")


def _overlap(prediction: np.ndarray, reference: np.ndarray, is_dice: bool) -> np.ndarray:
    """MONAI's figure of each mask along the first axis, with NaN in place of its 1 for two empty masks."""
    check_masks(prediction, reference)
    compute = compute_dice if is_dice else compute_iou
    first, second = (torch.from_numpy(np.ascontiguousarray(mask)).float()[:, None] for mask in (prediction, reference))
    figures = compute(first, second, ignore_empty=False).numpy()[:, 0].astype(np.float64)
    axes = tuple(range(1, prediction.ndim))
    figures[~(prediction.any(axes) | reference.any(axes))] = np.nan
    return np.asarray(figures)
