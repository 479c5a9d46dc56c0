"""HD95 against all pairwise distances of surface pixels found by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from scipy.spatial.distance import cdist

from app_cdm.metrics.surface import hd95_mm, hd95_px, slice_hd95_px

pairs = st.one_of(
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12), hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=6)
).flatmap(lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape)))


def surface_points(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask with a neighbour along an axis that is outside the mask or the image."""
    padded = np.pad(mask, 1)
    inner = np.ones_like(mask)
    for axis in range(mask.ndim):
        for shift in (-1, 1):
            rolled = np.roll(padded, shift, axis)
            inner &= rolled[tuple(slice(1, -1) for _ in range(mask.ndim))]
    return np.argwhere(mask & ~inner).astype(float)


def by_pairs(first: np.ndarray, second: np.ndarray, spacing: np.ndarray) -> float:
    """Pooled 95th percentile from the full distance matrix."""
    distances = cdist(surface_points(first) * spacing, surface_points(second) * spacing)
    return float(np.percentile(np.concatenate([distances.min(axis=1), distances.min(axis=0)]), 95))


@settings(max_examples=60, deadline=None)
@given(pair=pairs)
def test_hd95_is_that_of_all_pairs(pair: tuple[np.ndarray, np.ndarray]) -> None:
    if not pair[0].any() or not pair[1].any():
        assert np.isnan(hd95_px(*pair))
        return
    spacing = np.array([0.7, 1.3, 4.0])[: pair[0].ndim]
    assert hd95_px(*pair) == pytest.approx(by_pairs(*pair, np.ones(pair[0].ndim)), rel=1e-5)
    assert hd95_mm(*pair, spacing.tolist()) == pytest.approx(by_pairs(*pair, spacing), rel=1e-5)
    assert hd95_px(*pair) == hd95_px(*pair[::-1])


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_hd95_lies_below_the_larger_of_monais_two_percentiles() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.random((2, 16, 16)) > 0.8
        one, two = (torch.from_numpy(mask)[None, None] for mask in (first, second))
        pairs_both_ways = ((one, two), (two, one))
        directed = [float(compute_hausdorff_distance(a, b, percentile=95, directed=True)) for a, b in pairs_both_ways]
        assert min(directed) - 1e-6 <= hd95_px(first, second) <= max(directed) + 1e-6


def test_slices_are_measured_one_by_one() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 8, 9, 4)) > 0.7
    first[:, :, 1] = False
    expected = [hd95_px(first[:, :, index], second[:, :, index]) for index in range(4)]
    np.testing.assert_array_equal(slice_hd95_px(first, second), expected)
    assert np.isnan(expected[1]) and not np.isnan(expected[0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_of_length_one_does_not_count(axis: int) -> None:
    first, second = np.zeros((2, 20, 20), bool)
    first[2:15, 2:15] = second[4:18, 3:17] = True
    deep, other = np.expand_dims(first, axis), np.expand_dims(second, axis)
    spacing = np.insert([0.7, 1.3], axis, 4.0).tolist()
    assert hd95_px(deep, other) == hd95_px(first, second) == 3.0
    assert hd95_mm(deep, other, spacing) == hd95_mm(first, second, (0.7, 1.3))
    assert hd95_px(np.ones((1, 1, 1), bool), np.ones((1, 1, 1), bool)) == 0.0


def test_wrong_spacing_is_refused() -> None:
    mask = np.ones((4, 4), bool)
    for spacing in ((1.0,), (1.0, 0.0), (1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="spacing_mm"):
            hd95_mm(mask, mask, spacing)
