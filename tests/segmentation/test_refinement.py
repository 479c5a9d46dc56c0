"""Refinement: the random walk against one over the whole volume, what stays as it is, and thresholds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from threadpoolctl import ThreadpoolController

from app_cdm.config import Refinement
from app_cdm.segmentation.appearance import appearance_posterior
from app_cdm.segmentation.refinement import follow_image, random_walk, refine

SHAPE = (3, 18, 16)


def cone(centre: tuple[float, float] = (8, 7), width: float = 6.0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Probabilities that fall with the distance from a centre."""
    rows, columns = np.mgrid[0 : shape[1], 0 : shape[2]]
    distance = np.hypot(rows - centre[0], columns - centre[1])
    return np.clip(1.2 - distance / width, 0, 1)[None].repeat(shape[0], axis=0).astype(np.float32)


def disc(radius: float, seed: int = 0, centre: tuple[float, float] = (8, 7)) -> np.ndarray:
    """A bright disc in a darker body that fills the slice, with noise."""
    rows, columns = np.mgrid[0 : SHAPE[1], 0 : SHAPE[2]]
    image = np.where(np.hypot(rows - centre[0], columns - centre[1]) < radius, 0.5, -0.3)
    noise = np.random.default_rng(seed).normal(0, 0.08, SHAPE)
    return (image[None] + noise).clip(-0.9, 1).astype(np.float32)


def head() -> np.ndarray:
    """A body without any lone pixel in air."""
    rows, columns = np.mgrid[0 : SHAPE[1], 0 : SHAPE[2]]
    return (np.hypot(rows - 9, columns - 8) < 7.2)[None].repeat(SHAPE[0], axis=0)


def dense_walk(probabilities: np.ndarray, slices: np.ndarray, high: float, low: float, stiffness: float) -> np.ndarray:
    """The same by a loop over pixels and a dense solver, over the whole volume."""
    values = (probabilities * (slices > -0.95)).astype(float)
    body = slices > -0.95
    places = [tuple(place) for place in np.argwhere(body & (values > low) & (values < high))]
    number = {place: index for index, place in enumerate(places)}
    matrix, right = np.zeros((len(places), len(places))), np.zeros(len(places))
    for place, index in number.items():
        for axis, length in enumerate((2.0, 1.0, 1.0)):
            for side in (-1, 1):
                near = tuple(p + side * (a == axis) for a, p in enumerate(place))
                if min(near) < 0 or any(p >= n for p, n in zip(near, body.shape, strict=True)) or not body[near]:
                    continue
                weight = max(np.exp(-stiffness * (float(slices[place]) - float(slices[near])) ** 2), 1e-4) / length**2
                matrix[index, index] += weight
                if near in number:
                    matrix[index, number[near]] -= weight
                elif values[near] >= high:
                    right[index] += weight
    result = np.where(body, np.where(values >= high, 1.0, 0.0), 0.0)
    for place, found in zip(places, np.linalg.solve(matrix, right), strict=True):
        result[place] = found
    return result


@pytest.mark.parametrize("direct_pixels", [0, 10_000], ids=["iterated", "direct"])
@pytest.mark.parametrize("in_air", [False, True])
@pytest.mark.parametrize("limits", [(0.75, 0.25, 30.0), (0.9, 0.1, 5.0)])
def test_equals_the_walk_over_the_whole_volume(
    in_air: bool, limits: tuple[float, float, float], direct_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app_cdm.segmentation.refinement.DIRECT_PIXELS", direct_pixels)
    high, low, stiffness = limits
    probabilities, slices = cone(width=5.0), disc(3.6)
    probabilities[0] *= 0.8
    slices[1] *= 0.7
    if in_air:
        slices = np.where(head(), slices, -1.0).astype(np.float32)
    found = random_walk(probabilities, slices, high, low, stiffness)
    assert found.dtype == np.float32
    expected = dense_walk(probabilities, slices, high, low, stiffness)
    near = found > 0
    np.testing.assert_allclose(found[near], expected[near], atol=1e-3)
    assert expected[~near].max() < 1e-3
    assert np.abs(found - probabilities * (slices > -0.95)).max() > 0.1, "the walk has moved the boundary"


def test_image_beyond_the_box_does_not_matter() -> None:
    probabilities, slices = cone(width=4.0), disc(3.0)
    beyond = np.ones(SHAPE, dtype=bool)
    beyond[:, 2:15, 1:14] = False
    assert (probabilities[beyond] == 0).all()
    other = np.where(beyond, 0.9, slices).astype(np.float32)
    np.testing.assert_array_equal(random_walk(probabilities, slices), random_walk(probabilities, other))


@pytest.mark.parametrize("radius", [2.7, 5.2])
def test_boundary_moves_to_the_edge_of_the_image(radius: float) -> None:
    probabilities, rows_columns = cone(width=6.0), np.mgrid[0 : SHAPE[1], 0 : SHAPE[2]]
    truth = np.hypot(rows_columns[0] - 8, rows_columns[1] - 7) < radius
    found = random_walk(probabilities, disc(radius)) > 0.5
    assert (found[1] != truth).sum() <= 2 < ((probabilities[1] > 0.5) != truth).sum()


def test_a_slice_without_anything_sure_learns_from_its_neighbours() -> None:
    probabilities, slices = cone(), disc(4.2)
    probabilities[1] = np.clip(probabilities[1], 0.3, 0.7)
    found = random_walk(probabilities, slices)
    assert found[1, 8, 7] > 0.9
    assert found[1, 8, 12] < 0.5


def test_no_step_leads_across_slices_that_are_left_out() -> None:
    probabilities, slices = cone(), np.full(SHAPE, 0.3, dtype=np.float32)
    probabilities[2] = cone((8, 11))[2]
    probabilities[probabilities <= 0.25] = 0.0
    found = random_walk(probabilities, slices, places=np.array([3, 4, 15]))
    apart = np.concatenate([random_walk(probabilities[:2], slices[:2]), random_walk(probabilities[2:], slices[2:])])
    np.testing.assert_allclose(found, apart, atol=1e-6)
    joined = random_walk(probabilities, slices)
    assert np.abs(found - joined).max() > 0.1
    np.testing.assert_array_equal(random_walk(probabilities, slices, places=np.array([3, 4, 5])), joined)


def test_single_slice() -> None:
    found = random_walk(cone()[:1], disc(4.2)[:1])
    assert found.shape == (1, *SHAPE[1:])
    assert found[0, 8, 7] == 1.0
    assert 0 < found.mean() < 1


@pytest.mark.parametrize(
    "probabilities",
    [
        np.zeros(SHAPE, dtype=np.float32),
        np.full(SHAPE, 0.5, dtype=np.float32),
        np.full(SHAPE, 1.0, dtype=np.float32),
        (cone() > 0.5).astype(np.float32),
        np.where(cone() > 0.5, 0.8, 0.5).astype(np.float32),
        np.where(cone() > 0.5, 0.5, 0.2).astype(np.float32),
        np.where(cone() > 0.5, 0.8, 0.1).astype(np.float32),
    ],
    ids=["empty", "undecided", "full", "mask", "no background", "no foreground", "all sure"],
)
def test_unchanged_where_there_is_nothing_to_decide(probabilities: np.ndarray) -> None:
    before = probabilities.copy()
    np.testing.assert_array_equal(random_walk(probabilities, disc(4.0)), before)
    np.testing.assert_array_equal(probabilities, before)
    in_air = np.where(head(), disc(4.0), -1.0)
    np.testing.assert_array_equal(random_walk(probabilities, in_air), probabilities * head())


@examples(max_examples=15)
@given(seed=st.integers(0, 999), width=st.floats(2.5, 9), radius=st.floats(0, 6), row=st.integers(3, 14), column=st.integers(3, 12))
def test_sure_pixels_stay_and_nothing_leaves_the_body(seed: int, width: float, radius: float, row: int, column: int) -> None:
    probabilities = cone((row, column), width)
    slices = np.where(head(), disc(radius, seed, (row, column)), -1.0).astype(np.float32)
    found = random_walk(probabilities, slices)
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found[~head()].any()
    if not np.array_equal(found, probabilities * head()):
        assert (found[head() & (probabilities >= 0.75)] == 1).all()
        assert (found[head() & (probabilities <= 0.25) & (found > 0)] <= 0.25).all()


ISLANDS = ((1, 6, 4), (1, 14, 12))  # within the box of the disc, outside the disc, in no row or column of each other


def with_islands(*values: float) -> tuple[np.ndarray, np.ndarray]:
    """A cone on a disc in air, but for one slice that holds nothing but lone pixels of the body with these probabilities."""
    probabilities, slices = cone((10, 8), 5.0), disc(4.0, centre=(10, 8))
    rows, columns = np.mgrid[0 : SHAPE[1], 0 : SHAPE[2]]
    slices[:, np.hypot(rows - 10, columns - 8) > 5.2] = -1.0
    slices[1] = -1.0
    for place, value in zip(ISLANDS, values, strict=False):
        slices[place], probabilities[place] = 0.0, value
    return probabilities, slices


def without_islands(probabilities: np.ndarray, slices: np.ndarray, count: int) -> np.ndarray:
    alone = slices.copy()
    for place in ISLANDS[:count]:
        alone[place] = -1.0
    return random_walk(probabilities, alone)


def test_undecided_pixel_that_no_walk_leaves_stays_as_it_is() -> None:
    probabilities, slices = with_islands(0.4)
    found = random_walk(probabilities, slices)
    assert found[ISLANDS[0]] == pytest.approx(0.4, abs=1e-6)
    found[ISLANDS[0]] = 0
    np.testing.assert_allclose(found, without_islands(probabilities, slices, 1), atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.9])
def test_lone_sure_pixel_changes_nothing_elsewhere(value: float) -> None:
    """scikit-image's walker shifts every later pixel here."""
    probabilities, slices = with_islands(value)
    found, expected = random_walk(probabilities, slices), without_islands(probabilities, slices, 1)
    assert found[ISLANDS[0]] == float(value > 0.5)
    found[ISLANDS[0]] = expected[ISLANDS[0]] = 0
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_lone_pixels_that_are_all_that_is_undecided() -> None:
    probabilities, slices = with_islands(0.4, 0.6)
    mask = (probabilities > 0.5).astype(np.float32)
    mask[ISLANDS[0]], mask[ISLANDS[1]] = 0.4, 0.6
    np.testing.assert_allclose(random_walk(mask, slices), mask * (slices > -0.95), atol=1e-6)


def test_constant_image_has_no_edge_and_the_boundary_lies_between_what_is_sure() -> None:
    probabilities = cone()
    found = random_walk(probabilities, np.full(SHAPE, 0.3, dtype=np.float32))
    sure = probabilities >= 0.75
    undecided = ~sure & (probabilities > 0.25)
    assert (found[undecided] > 0).all()
    assert (found[undecided] < 1).all()


def test_undecided_pixel_within_sure_foreground_is_foreground_whatever_its_intensity() -> None:
    probabilities, slices = cone(), disc(4.2)
    probabilities[:, 8, 7], slices[:, 8, 7] = 0.5, -0.5
    assert (random_walk(probabilities, slices)[:, 8, 7] > 0.9).all()


def test_borders_move_but_nothing_new_appears() -> None:
    probabilities, slices = cone(width=3.5), disc(3.0)
    slices[1, 14:17, 10:15], probabilities[1, 14:17, 10:15] = 0.5, 0.4
    assert (random_walk(appearance_posterior(probabilities, slices), slices)[1, 14:17, 10:15] > 0.5).all(), "it looks like the target"
    found = follow_image(probabilities, slices)
    assert not found[1, 14:17, 10:15].any()
    assert (found[:, 8, 7] > 0.9).all()
    probabilities[1, 15, 12] = 0.6
    assert (follow_image(probabilities, slices)[1, 14:17, 10:15] > 0.5).all(), "the map has said so itself, of one pixel"


@pytest.mark.parametrize(("refinement", "boundary"), [("random_walk", random_walk), ("appearance", follow_image)])
def test_refine_scales_maps_by_their_limits_and_leaves_other_slices_empty(
    refinement: Refinement, boundary: Callable[..., np.ndarray]
) -> None:
    maps, slices = cone() * np.array([0.5, 1.0, 0.7], dtype=np.float32)[:, None, None], disc(4.0)
    limits = np.array([0.25, np.inf, 0.4])
    before = maps.copy()
    refined, thresholds = refine(maps, limits, slices, refinement)
    np.testing.assert_array_equal(thresholds, [0.5, np.inf, 0.5])
    assert not refined[1].any()
    scaled = np.stack([np.clip(maps[0] / 0.5, 0, 1), np.clip(maps[2] / 0.8, 0, 1)])
    np.testing.assert_allclose(refined[[0, 2]], boundary(scaled, slices[[0, 2]], places=np.array([0, 2])), atol=1e-6)
    assert refined.dtype == maps.dtype
    np.testing.assert_array_equal(maps, before)


@pytest.mark.parametrize("limits", [[np.inf] * 3, [np.inf, 0.0, np.inf]])
def test_refine_without_any_usable_limit_is_empty(limits: list[float]) -> None:
    refined, thresholds = refine(cone(), np.array(limits), disc(4.0))
    assert not refined.any()
    assert np.isinf(thresholds).all()


def test_large_walks_at_the_same_time_leave_the_threads_of_the_process_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app_cdm.segmentation.refinement.DIRECT_PIXELS", 0)
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        before = ThreadpoolController().info()
        with ThreadPoolExecutor(8) as pool:
            walks = list(pool.map(lambda _: random_walk(cone(), head()), range(200)))
        assert ThreadpoolController().info() == before
    assert all(np.array_equal(walk, walks[0]) for walk in walks)
