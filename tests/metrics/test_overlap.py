"""Dice and IoU against set arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app_cdm.metrics.overlap import dice, iou, slice_dice, slice_iou

masks = hnp.array_shapes(min_dims=3, max_dims=3, max_side=5).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape))
)


def by_sets(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Dice and IoU of sets of pixel indices."""
    one, two = ({tuple(index) for index in np.argwhere(mask)} for mask in (first, second))
    if not one | two:
        return float("nan"), float("nan")
    return 2 * len(one & two) / (len(one) + len(two)), len(one & two) / len(one | two)


@settings(max_examples=60, deadline=None)
@given(pair=masks, axis=st.integers(0, 2))
def test_overlap_is_that_of_sets(pair: tuple[np.ndarray, np.ndarray], axis: int) -> None:
    expected = by_sets(*pair)
    np.testing.assert_allclose((dice(*pair), iou(*pair)), expected, rtol=1e-6)
    slices = [by_sets(*(mask.take(index, axis) for mask in pair)) for index in range(pair[0].shape[axis])]
    np.testing.assert_allclose(slice_dice(*pair, axis=axis), [value for value, _ in slices], rtol=1e-6)
    np.testing.assert_allclose(slice_iou(*pair, axis=axis), [value for _, value in slices], rtol=1e-6)


def test_empty_masks_have_documented_values() -> None:
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert np.isnan(dice(empty, empty)) and np.isnan(iou(empty, empty))
    assert (dice(empty, full), dice(full, empty), iou(empty, full), iou(full, empty)) == (0, 0, 0, 0)
    assert (dice(full, full), iou(full, full)) == (1, 1)


def test_what_is_no_pair_of_masks_is_refused() -> None:
    mask = np.ones((4, 4), bool)
    with pytest.raises(TypeError, match="prediction is of type uint8"):
        dice(mask.astype(np.uint8), mask)
    with pytest.raises(ValueError, match="must be equal"):
        iou(mask, mask[:2])
    with pytest.raises(ValueError, match="not empty"):
        dice(mask[:0], mask[:0])
