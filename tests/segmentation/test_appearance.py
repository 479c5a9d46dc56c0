"""What looks like the target: against a plain loop, on phantoms whose truth is known, and where there is nothing to learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from app_cdm.metrics.overlap import dice
from app_cdm.segmentation.appearance import BIN_BLUR, BINS, ROUNDS, appearance_posterior
from app_cdm.segmentation.refinement import follow_image

SIDE = 64
ROWS, COLUMNS = np.mgrid[0:SIDE, 0:SIDE]


def phantom(radius: float, contrast: float, seed: int = 0, num_slices: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A disc that differs from the body around it, in air, with noise; and where it is."""
    truth = np.hypot(ROWS - 30, COLUMNS - 35) < radius
    body = np.hypot(ROWS - 32, COLUMNS - 32) < 28
    noise = np.random.default_rng(seed).normal(0, 0.06, (num_slices, SIDE, SIDE))
    image = np.where(body, np.where(truth, contrast, 0.0) + noise, -1.0)
    return image.clip(-0.94, 1).astype(np.float32) * body - ~body, truth[None].repeat(num_slices, axis=0)


def halo(radius: float, shift: float = 0.0, num_slices: int = 3) -> np.ndarray:
    """A map that is sure within a radius and falls off over a few pixels."""
    distance = np.hypot(ROWS - 30 - shift, COLUMNS - 35)
    return np.clip(0.5 + (radius - distance) / 4, 0, 1)[None].repeat(num_slices, axis=0).astype(np.float32)


@pytest.mark.parametrize("contrast", [0.5, -0.5], ids=["bright", "dark"])
@pytest.mark.parametrize("map_radius", [6.0, 13.0], ids=["too small", "too large"])
def test_border_is_found_whatever_the_target_looks_like(contrast: float, map_radius: float) -> None:
    slices, truth = phantom(9.0, contrast)
    before = dice(halo(map_radius) > 0.5, truth)
    after = dice(follow_image(halo(map_radius), slices) > 0.5, truth)
    assert before < 0.82
    assert after > 0.95


def test_map_that_lies_beside_the_target_is_drawn_to_it() -> None:
    slices, truth = phantom(9.0, 0.5)
    assert dice(halo(9.0, shift=5.0) > 0.5, truth) < 0.7
    assert dice(follow_image(halo(9.0, shift=5.0), slices) > 0.5, truth) > 0.95


def test_a_small_target_beside_a_large_one_is_kept() -> None:
    """Blurred, a map of a few pixels is nowhere above one quarter."""
    slices, truth = phantom(7.0, 0.5)
    small = np.hypot(ROWS - 46, COLUMNS - 25) < 1.5
    slices[:, small] = 0.5
    maps = halo(7.0)
    maps[:, small] = 0.95
    assert small.sum() == 9
    found = follow_image(maps, slices) > 0.5
    assert found[:, small].all()
    assert dice(found, truth | small) > 0.95


def test_what_looks_the_same_elsewhere_stays_out() -> None:
    slices, truth = phantom(7.0, 0.5)
    slices[:, 44:52, 10:20] = 0.5
    found = follow_image(halo(10.0), slices) > 0.5
    assert not found[:, 44:52, 10:20].any()
    assert dice(found, truth) > 0.95


def test_without_contrast_the_map_decides() -> None:
    slices, truth = phantom(9.0, 0.0)
    posterior = appearance_posterior(halo(9.0), slices)
    assert dice(posterior > 0.5, truth) > 0.85


def plain(probabilities: np.ndarray, slices: np.ndarray, blur: float, weight: float, reach: int) -> np.ndarray:
    """The same, written as the equations are: for each pixel alone."""
    from scipy.ndimage import gaussian_filter, gaussian_filter1d

    body = slices > -0.95
    prior = np.stack([gaussian_filter(one, blur) for one in probabilities * body])
    places = []
    for place in np.argwhere(body):
        z, y, x = place
        seen = np.argwhere((prior[z] > 0.25) | (probabilities[z] * body[z] > 0.25))
        if len(seen) and np.abs(seen - [y, x]).sum(axis=1).min() <= reach:
            places.append(tuple(place))
    bins = {place: min(BINS - 1, int((slices[place] + 1) / 2 * BINS)) for place in places}
    posterior = {place: float(prior[place]) for place in places}
    for _ in range(ROUNDS):
        inside, outside = np.full(BINS, 1e-3), np.full(BINS, 1e-3)
        for place in places:
            inside[bins[place]] += posterior[place]
            outside[bins[place]] += 1 - posterior[place]
        inside, outside = (gaussian_filter1d(counts, BIN_BLUR, mode="nearest") for counts in (inside, outside))
        inside, outside = inside / inside.sum() + 1e-4, outside / outside.sum() + 1e-4
        for place in places:
            odds = np.clip(prior[place], 0.01, 0.99)
            odds = (odds / (1 - odds)) ** weight * inside[bins[place]] / outside[bins[place]]
            posterior[place] = odds / (1 + odds)
    result = np.zeros(probabilities.shape)
    for place in places:
        result[place] = posterior[place]
    return result


def test_equals_the_equations() -> None:
    slices, _ = phantom(9.0, 0.4, num_slices=2)
    maps = halo(11.0, 3.0, num_slices=2)
    maps[1] *= 0.6
    found = appearance_posterior(maps, slices, prior_blur=1.5 / SIDE, prior_weight=0.7, reach=3 / SIDE)
    np.testing.assert_allclose(found, plain(maps, slices, 1.5, 0.7, 3), atol=1e-5)


def test_size_of_the_slices_does_not_change_the_scale() -> None:
    slices, _ = phantom(9.0, 0.5)
    large = slices.repeat(2, axis=1).repeat(2, axis=2)
    found = appearance_posterior(halo(12.0).repeat(2, axis=1).repeat(2, axis=2), large)[:, ::2, ::2]
    expected = appearance_posterior(halo(12.0), slices)
    assert dice(found > 0.5, expected > 0.5) > 0.97


@pytest.mark.parametrize("value", [0.0, 0.2])
def test_nothing_to_learn_from_leaves_the_map(value: float) -> None:
    slices, _ = phantom(9.0, 0.5)
    maps = np.full(slices.shape, value, dtype=np.float32)
    np.testing.assert_array_equal(appearance_posterior(maps, slices), maps * (slices > -0.95))


def test_all_air_and_all_target() -> None:
    air = np.full((2, SIDE, SIDE), -1.0, dtype=np.float32)
    assert not appearance_posterior(np.ones_like(air), air).any()
    body = np.full_like(air, 0.2)
    assert (appearance_posterior(np.ones_like(air), body) > 0.5).all()


@examples(max_examples=20)
@given(seed=st.integers(0, 999), radius=st.floats(0, 30), contrast=st.floats(-0.9, 0.9), blur=st.floats(0, 0.1), weight=st.floats(0.1, 1))
def test_always_probabilities_within_the_body(seed: int, radius: float, contrast: float, blur: float, weight: float) -> None:
    slices, _ = phantom(8.0, contrast, seed)
    found = appearance_posterior(halo(radius), slices, prior_blur=blur, prior_weight=weight)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found[slices <= -0.95].any()
