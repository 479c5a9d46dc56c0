"""Seeds: against the votes pixel by pixel, and how limits and components change them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import ndimage
from skimage.filters import threshold_otsu

from app_cdm.cldf.seeds import BACKGROUND, FOREGROUND, IGNORED, SeedMaps, SeedSettings, find_seeds
from app_cdm.config import SettingsError

SHARES = st.floats(0, 1)
ANY = st.builds(SeedSettings, st.booleans(), st.booleans(), st.just(True), SHARES, SHARES, SHARES, SHARES, st.floats(0, 3), st.floats(0, 3))


def random_maps(seed: int, count: int = 3, size: int = 12) -> SeedMaps:
    rng = np.random.default_rng(seed)
    cam, gradient, saliency = (ndimage.gaussian_filter(rng.random((count, size, size)), (0, 1, 1)) for _ in range(3))
    body = np.zeros((count, size, size), dtype=bool)
    body[:, 1:-1, 2:-1] = True
    body[-1] = seed % 3 > 0  # now and then a slice without any body
    return SeedMaps((cam - cam.min()) / np.ptp(cam), gradient, saliency - saliency.min(), body)


def votes(maps: SeedMaps, settings: SeedSettings) -> tuple[np.ndarray, np.ndarray]:
    """Candidates for foreground and background, pixel by pixel."""
    foreground, background = np.zeros_like(maps.body), np.zeros_like(maps.body)
    limit = threshold_otsu(maps.saliency[maps.body])
    for s, row, column in zip(*np.nonzero(maps.body), strict=True):
        inside = maps.gradient[s][maps.body[s]]
        cam, gradient, saliency = (m[s, row, column] for m in (maps.cam, maps.gradient, maps.saliency))
        is_target, is_other = [], []
        if settings.use_cam:
            is_target.append(cam > settings.cam_foreground)
            is_other.append(cam < settings.cam_background)
        if settings.use_gradient:
            is_target.append(gradient > np.quantile(inside, settings.gradient_foreground))
            is_other.append(gradient < np.quantile(inside, settings.gradient_background))
        if settings.use_saliency:
            is_target.append(saliency > settings.saliency_foreground * limit)
            is_other.append(saliency < settings.saliency_background * limit)
        foreground[s, row, column], background[s, row, column] = all(is_target), all(is_other)
    return foreground, background


@examples(max_examples=12)
@given(seed=st.integers(0, 1000), settings=ANY)
def test_every_seed_has_all_votes(seed: int, settings: SeedSettings) -> None:
    maps = random_maps(seed)
    seeds = find_seeds(maps, settings)
    foreground, background = votes(maps, settings)
    assert seeds.dtype == np.int8
    assert set(np.unique(seeds)) <= {FOREGROUND, BACKGROUND, IGNORED}
    assert (seeds[~maps.body] == BACKGROUND).all()
    assert foreground[seeds == FOREGROUND].all()
    np.testing.assert_array_equal(seeds == BACKGROUND, (background | ~maps.body) & (seeds != FOREGROUND))
    for found, candidates, saliency in zip(seeds == FOREGROUND, foreground, maps.saliency, strict=True):
        labels, count = ndimage.label(candidates)
        if not count:
            assert not found.any()
            continue
        kept = np.unique(labels[found])
        assert len(kept) == 1
        assert found.sum() == (labels == kept[0]).sum(), "a component is kept as a whole"
        assert saliency[found].sum() >= max(saliency[labels == index].sum() for index in range(1, count + 1)) - 1e-9


@examples(max_examples=12)
@given(seed=st.integers(0, 1000), settings=ANY, share=SHARES)
@pytest.mark.parametrize("name", ["cam_foreground", "gradient_foreground", "saliency_foreground"])
def test_looser_limit_never_gives_less_foreground(name: str, seed: int, settings: SeedSettings, share: float) -> None:
    maps = random_maps(seed)
    looser = settings.replace(**{name: share * getattr(settings, name)})
    before, after = (find_seeds(maps, s) == FOREGROUND for s in (settings, looser))
    mass_before, mass_after = ((maps.saliency * found).sum(axis=(1, 2)) for found in (before, after))
    assert (mass_after >= mass_before - 1e-9).all()
    assert (votes(maps, looser)[0] >= votes(maps, settings)[0]).all()


@examples(max_examples=12)
@given(seed=st.integers(0, 1000), settings=ANY, share=SHARES)
@pytest.mark.parametrize("name", ["cam_background", "gradient_background", "saliency_background"])
def test_stricter_limit_never_gives_more_background(name: str, seed: int, settings: SeedSettings, share: float) -> None:
    maps = random_maps(seed)
    stricter = settings.replace(**{name: share * getattr(settings, name)})
    before, after = (find_seeds(maps, s) for s in (settings, stricter))
    assert ((after == BACKGROUND) <= (before == BACKGROUND)).all()
    np.testing.assert_array_equal(before == FOREGROUND, after == FOREGROUND)


def test_component_with_the_most_saliency_is_kept_not_the_largest() -> None:
    saliency = np.zeros((1, 12, 12))
    saliency[0, 1:6, 1:6], saliency[0, 8:10, 8:10] = 1.0, 9.0
    maps = SeedMaps(np.ones_like(saliency), np.ones_like(saliency), saliency, np.ones(saliency.shape, dtype=bool))
    alone = SeedSettings(use_cam=False, use_gradient=False, saliency_foreground=0.0, saliency_background=0.01)
    expected = np.full(saliency.shape, BACKGROUND)
    expected[saliency == 1] = IGNORED
    expected[saliency == 9] = FOREGROUND
    np.testing.assert_array_equal(find_seeds(maps, alone), expected)


@pytest.mark.parametrize(("name", "field"), [("cam", "use_cam"), ("gradient", "use_gradient"), ("saliency", "use_saliency")])
def test_map_that_does_not_vote_is_not_looked_at(name: str, field: str) -> None:
    maps, settings = random_maps(1), SeedSettings(saliency_foreground=0.9, cam_foreground=0.2)
    nonsense = dataclasses.replace(maps, **{name: np.full_like(maps.cam, np.nan)})
    without = settings.replace(**{field: False})
    np.testing.assert_array_equal(find_seeds(nonsense, without), find_seeds(maps, without))
    assert (find_seeds(maps, without) != find_seeds(maps, settings)).any()
    assert (find_seeds(maps, without) == FOREGROUND).any()


@pytest.mark.parametrize("body", [True, False])
def test_flat_saliency_has_no_foreground(body: bool) -> None:
    flat = np.full((2, 8, 8), 0.4)
    maps = SeedMaps(np.ones_like(flat), np.ones_like(flat), flat, np.full(flat.shape, body))
    assert not (find_seeds(maps, SeedSettings(use_cam=False, use_gradient=False)) == FOREGROUND).any()


def test_limit_is_of_the_volume() -> None:
    saliency = np.zeros((2, 8, 8))
    saliency[0, 2:4, 2:4], saliency[1, 2:4, 2:4] = 10.0, 1.0
    maps = SeedMaps(saliency, saliency, saliency, np.ones(saliency.shape, dtype=bool))
    seeds = find_seeds(maps, SeedSettings(use_cam=False, use_gradient=False))
    assert (seeds[0] == FOREGROUND).sum() == 4
    assert not (seeds[1] == FOREGROUND).any()


def test_at_least_one_map_must_vote() -> None:
    with pytest.raises(SettingsError, match="at least one map must vote"):
        SeedSettings(use_cam=False, use_gradient=False, use_saliency=False)
