"""Boundaries that follow the image: a random walk between what is sure and what is not."""

from __future__ import annotations

import warnings

import numpy as np
from skimage.segmentation import random_walker

from app_cdm.saliency.base import FOREGROUND

SURE_FOREGROUND, SURE_BACKGROUND, UNDECIDED, EXCLUDED = 2, 1, 0, -1
SPACING = (2.0, 1.0, 1.0)  # a step to the next slice is farther than one to the next pixel


def refine(maps: np.ndarray, limits: np.ndarray, slices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps and thresholds whose boundary follows the image.

    Args:
        maps: `(S, H, W)` saliency in [0, 1].
        limits: `(S,)` thresholds; infinite where a slice is not positive.
        slices: `(S, H, W)` images in [-1, 1].

    Returns:
        `(S, H, W)` probabilities, and the threshold of one half where there was a finite one.
    """
    usable = np.isfinite(limits) & (limits > 0)
    refined = np.zeros_like(maps)
    if usable.any():
        probabilities = np.clip(maps[usable] / (2 * limits[usable][:, None, None]), 0.0, 1.0)
        refined[usable] = random_walk(probabilities, slices[usable])
    return refined, np.where(usable, 0.5, np.inf)


def random_walk(
    probabilities: np.ndarray, slices: np.ndarray, sure_foreground: float = 0.75, sure_background: float = 0.25, beta: float = 130.0
) -> np.ndarray:
    """Probability that a random walk over the image reaches sure foreground before sure background (Grady 2006).

    Args:
        probabilities: `(S, H, W)` in [0, 1], the positive slices of one volume in order.
        slices: `(S, H, W)` images in [-1, 1].
        sure_foreground: probability from which a pixel is sure to be the target.
        sure_background: probability up to which it is sure not to be.
        beta: how much a step of intensity hinders the walk.

    Returns:
        `(S, H, W)` float32; unchanged where nothing is sure or nothing undecided, 0 outside the body.
    """
    body = slices > FOREGROUND
    result = np.asarray(probabilities * body, dtype=np.float32)
    box = _box(result > sure_background)
    values, inside = result[box], body[box]
    marks = np.full(values.shape, UNDECIDED, dtype=np.int32)
    marks[values >= sure_foreground] = SURE_FOREGROUND
    marks[values <= sure_background] = SURE_BACKGROUND
    marks[~inside] = EXCLUDED
    if not {SURE_FOREGROUND, SURE_BACKGROUND, UNDECIDED} <= set(np.unique(marks).tolist()):
        return result
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pockets that no walk leaves keep no probability, and are background
        found = random_walker(slices[box].astype(np.float64), marks, beta=beta, mode="cg_j", return_full_prob=True, spacing=SPACING)
    result[box] = np.clip(np.nan_to_num(np.asarray(found)[1], nan=0.0), 0.0, 1.0) * inside
    return result


def _box(wanted: np.ndarray) -> tuple[slice, ...]:
    """Bounding box of what is not sure background, one pixel wider: outside of it a walk has ended already."""
    places = np.argwhere(wanted)
    if not len(places):
        return (slice(0, 0),) * wanted.ndim
    low, high = places.min(axis=0), places.max(axis=0) + 1
    return tuple(slice(max(0, int(first) - 1), int(last) + 1) for first, last in zip(low, high, strict=True))
