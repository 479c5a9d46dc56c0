"""Which pixels of a slice are the body, and which the air or the frame around it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

DARKEST = -0.95  # of slices in [-1, 1]; what is not brighter may be air
IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


def find_body(slices: np.ndarray) -> np.ndarray:
    """What is brighter than air, and every dark place that it encloses: a cyst and a ventricle are of the body.

    Args:
        slices: `(S, H, W)` in [-1, 1].

    Returns:
        `(S, H, W)` bool; False where the slice is dark from its edge on.
    """
    regions, count = ndimage.label(slices <= DARKEST, structure=IN_PLANE)
    is_outside = np.zeros(count + 1, dtype=bool)
    for edge in (regions[:, 0], regions[:, -1], regions[:, :, 0], regions[:, :, -1]):
        is_outside[edge] = True
    is_outside[0] = False  # not dark
    return np.asarray(~is_outside[regions])
