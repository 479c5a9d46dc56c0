"""Which pixels of a slice are the body, and which the air or the frame around it."""

from __future__ import annotations

import numpy as np

DARKEST = -0.95  # of slices in [-1, 1]; what is not brighter may be air


def find_body(slices: np.ndarray) -> np.ndarray:
    """What is brighter than air, and what lies between two such pixels of its row or of its column.

    A ventricle and a cyst are dark and of the body, and so is a lesion of the breast whose acoustic shadow reaches the lower edge.

    Args:
        slices: `(S, H, W)` in [-1, 1].

    Returns:
        `(S, H, W)` bool.
    """
    bright = slices > DARKEST
    return np.asarray(_between(bright, 1) | _between(bright, 2))


def _between(bright: np.ndarray, axis: int) -> np.ndarray:
    """From the first to the last bright pixel along an axis."""
    after_first, before_last = np.maximum.accumulate(bright, axis), np.flip(np.maximum.accumulate(np.flip(bright, axis), axis), axis)
    return np.asarray(after_first & before_last)
