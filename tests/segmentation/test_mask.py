"""Saliency to mask: smoothing along slices, thresholds, components, and the border on the source grid."""

from __future__ import annotations

import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.filters import threshold_otsu

from app_cdm.config import MaskSettings, PreprocessSettings
from app_cdm.data.slices import SliceGeometry, cut_slices
from app_cdm.data.volume import Volume
from app_cdm.segmentation.mask import MAX_FACTOR, keep_components, masks_on_source_grid, raise_peaks, smooth_along_slices, thresholds

RNG = np.random.default_rng(0)


def geometry(shape: tuple[int, int, int] = (40, 36, 6), code: str = "LAS", size: int = 16) -> SliceGeometry:
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(code), shape) @ np.diag([1.0, 1.0, 4.0, 1.0])
    array = RNG.random(shape).astype(np.float32)
    return cut_slices(Volume(array, affine), PreprocessSettings(image_size=size, crop_foreground=False), 2).geometry


def blobs(*centres: tuple[int, int, int], count: int = 6, size: int = 16, radius: float = 2.5) -> np.ndarray:
    maps = np.zeros((count, size, size), dtype=np.float32)
    rows, columns = np.mgrid[0:size, 0:size]
    for index, row, column in centres:
        maps[index] = np.maximum(maps[index], np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * radius**2)))
    return maps


def test_smoothing_along_slices_uses_positive_slices_alone() -> None:
    maps, positive = RNG.random((7, 4, 4)).astype(np.float32), np.array([0, 1, 1, 0, 1, 1, 0], dtype=bool)
    found = smooth_along_slices(maps, positive, 5.0, 5.0)
    for index in range(7):
        weight = np.exp(-0.5 * (np.arange(7) - index) ** 2) * positive
        weight[np.abs(np.arange(7) - index) > 4] = 0
        expected = np.tensordot(weight / weight.sum(), maps, axes=1) if positive[index] else maps[index]
        np.testing.assert_allclose(found[index], expected, rtol=2e-3)
    np.testing.assert_allclose(smooth_along_slices(np.ones((7, 4, 4), np.float32), positive, 5.0, 5.0), 1.0, rtol=1e-6)


@pytest.mark.parametrize(("positive", "smoothing"), [([0, 1, 0], 5.0), ([1, 1, 1], 0.0), ([0, 0, 0], 5.0)])
def test_nothing_to_smooth(positive: list[int], smoothing: float) -> None:
    maps = RNG.random((3, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(smooth_along_slices(maps, np.array(positive, dtype=bool), 5.0, smoothing), maps)


def test_thresholds_of_every_rule() -> None:
    maps, slices = blobs((0, 8, 8), (1, 4, 4), (2, 8, 8)), np.full((6, 16, 16), 0.2, dtype=np.float32)
    maps[1] *= 0.3
    slices[:, :2] = -1.0  # outside the body: no part of the statistics
    maps[0, :2] = 5.0
    positive = np.array([1, 1, 0, 1, 0, 0], dtype=bool)  # slice 3 is positive but its map is flat
    per_slice = thresholds(maps, slices, positive, MaskSettings())
    assert per_slice[0] == threshold_otsu(maps[0, 2:])
    assert per_slice[1] == threshold_otsu(maps[1, 2:])
    assert np.isinf(per_slice[2:]).all()
    together = thresholds(maps, slices, positive, MaskSettings(threshold_rule="otsu_volume"))
    assert together[0] == together[1] == together[3] == threshold_otsu(maps[positive][:, 2:])
    assert np.isinf(together[[2, 4, 5]]).all()
    fixed = thresholds(maps, slices, positive, MaskSettings(threshold_rule="fixed", fixed_threshold=0.4))
    assert fixed.tolist() == [0.4, 0.4, np.inf, 0.4, np.inf, np.inf]


@pytest.mark.parametrize("rule", ["otsu", "otsu_volume", "fixed"])
def test_empty_and_flat_maps_give_an_empty_mask(rule: str) -> None:
    settings_of_rule = MaskSettings().replace(threshold_rule=rule)
    slices = np.zeros((6, 16, 16), dtype=np.float32)
    for maps in (np.zeros((6, 16, 16), np.float32), np.full((6, 16, 16), 0.3, np.float32)):
        for positive in (np.ones(6, dtype=bool), np.zeros(6, dtype=bool)):
            limits = thresholds(maps, slices, positive, settings_of_rule)
            kept = keep_components(maps > limits[:, None, None], maps, settings_of_rule)
            assert not masks_on_source_grid(maps, limits, kept, geometry()).any()
    outside = np.full((6, 16, 16), -1.0, dtype=np.float32)
    assert (thresholds(blobs((0, 8, 8)), outside, np.ones(6, dtype=bool), MaskSettings()) == np.inf).all()


def test_components() -> None:
    mask = np.zeros((2, 8, 8), dtype=bool)
    mask[0, 0:2, 0:5] = True  # ten dim pixels
    mask[0, 4:6, 4:6] = True  # four bright ones
    mask[0, 7, 0] = True  # a speck
    maps = np.where(mask, 0.2, 0.0).astype(np.float32)
    maps[0, 4:6, 4:6] = 0.9
    largest = keep_components(mask, maps, MaskSettings(components="largest", min_component_px=1))
    assert largest[0].sum() == 4
    assert largest[0, 4:6, 4:6].all()
    every = keep_components(mask, maps, MaskSettings(components="all", min_component_px=1))
    np.testing.assert_array_equal(every, mask)
    big = keep_components(mask, maps, MaskSettings(components="all", min_component_px=4))
    assert big.sum() == 14
    assert not keep_components(mask, maps, MaskSettings(components="largest", min_component_px=5)).any()
    assert not every[1].any()


@given(st.integers(0, 10_000), st.sampled_from(["largest", "all"]), st.integers(1, 6))
def test_components_against_a_flood_fill(seed: int, which: str, smallest: int) -> None:
    generator = np.random.default_rng(seed)
    maps = generator.random((1, 9, 9)).astype(np.float32)
    mask = maps > 0.6
    kept = keep_components(mask, maps, MaskSettings(min_component_px=smallest).replace(components=which))[0]
    remaining, components = {tuple(p) for p in np.argwhere(mask[0])}, []
    while remaining:
        stack, component = [remaining.pop()], set()
        while stack:
            row, column = stack.pop()
            component.add((row, column))
            near = {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)} & remaining
            remaining -= near
            stack += near
        components.append(component)
    if which == "largest" and components:
        components = [max(components, key=lambda c: sum(float(maps[0][p]) for p in c))]
    expected = {p for component in components if len(component) >= smallest for p in component}
    assert {tuple(p) for p in np.argwhere(kept)} == expected


@pytest.mark.parametrize("code", ["LAS", "RAS", "LPS", "SPL", "IRA"])
def test_border_follows_the_map_below_network_resolution(code: str) -> None:
    shape = {"LAS": (40, 36, 6), "RAS": (40, 36, 6), "LPS": (40, 36, 6)}.get(code, (40, 36, 8))
    place = geometry(shape, code)
    maps = blobs((2, 6, 9), count=shape[2], radius=3.0)
    limits = np.where(maps.max(axis=(1, 2)) > 0, 0.5, np.inf)
    mask = masks_on_source_grid(maps, limits, maps > limits[:, None, None], place)
    assert mask.shape == shape
    assert mask.dtype == bool
    expected = place.to_volume(torch.from_numpy(maps)) > 0.5
    assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) > 0.95
    signed = torch.from_numpy(maps - 0.5)
    assert (place.to_mask(signed) == (place.to_volume(signed, fill=-1.0) > 0)).all()
    coarse = place.to_volume(torch.from_numpy((maps > 0.5).astype(np.float32))) > 0.5
    assert (mask ^ expected).sum() <= (coarse ^ expected).sum()


def test_mask_of_a_large_volume_takes_little_more_than_its_own_memory() -> None:
    place = geometry((128, 128, 400), "LPS")
    maps = blobs((2, 6, 9), (300, 8, 8), count=400)
    limits = np.where(maps.max(axis=(1, 2)) > 0, 0.5, np.inf)
    tracemalloc.start()
    mask = masks_on_source_grid(maps, limits, maps > limits[:, None, None], place)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.any() and peak < 2 * mask.nbytes, "a float volume takes four times as much as the mask"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([8, 16, 24, 56]), which=st.sampled_from(["largest", "all"]))
def test_mask_stays_next_to_what_was_kept(seed: int, size: int, which: str) -> None:
    generator = np.random.default_rng(seed)
    place = geometry((30, 26, 5), "PIR", 16) if size == 16 else geometry((size, size + 3, 5), "LAS", 16)
    maps = np.stack([ndimage.gaussian_filter(generator.random((16, 16)), 1.0) for _ in range(5)]).astype(np.float32)
    limits = np.quantile(maps, 0.8, axis=(1, 2))
    limits[1] = np.inf
    kept = keep_components(maps > limits[:, None, None], maps, MaskSettings().replace(components=which))
    mask = masks_on_source_grid(maps, limits, kept, place)
    near = ndimage.binary_dilation(kept, structure=np.ones((1, 3, 3), dtype=bool))
    allowed = place.to_volume(torch.from_numpy(near.astype(np.float32))) > 0
    assert not (mask & ~allowed).any()
    in_stack_order = place.to_file_order(np.moveaxis(mask, place.slicing_axis, 0))
    for index in range(5):
        if not kept[index].any():
            assert not in_stack_order[index].any()
        elif size >= 16:
            assert in_stack_order[index].any()


def test_peaks_are_raised_where_they_are_too_low_and_left_alone_elsewhere() -> None:
    maps = np.zeros((3, 64, 64), dtype=np.float32)
    maps[0, 10:14, 10:14], maps[1, 10:14, 10:14] = 0.3, 0.95
    before = maps.copy()
    raised = raise_peaks(maps, 0.9)
    np.testing.assert_allclose(raised[0], before[0] * 3, atol=1e-6)
    np.testing.assert_array_equal(raised[1:], before[1:])
    np.testing.assert_array_equal(maps, before)
    np.testing.assert_array_equal(raise_peaks(maps, 0.0), before)


def test_one_bright_pixel_is_no_peak_and_noise_is_not_blown_up() -> None:
    maps = np.full((1, 64, 64), 1e-5, dtype=np.float32)
    assert raise_peaks(maps, 0.9).max() == pytest.approx(1e-5 * MAX_FACTOR)
    maps[0, 3, 3] = 0.95
    maps[0, 20:24, 20:24] = 0.3
    assert raise_peaks(maps, 0.9)[0, 22, 22] > 0.6


@given(st.floats(0.05, 1.0), st.integers(0, 50))
def test_raised_maps_are_probabilities_in_the_same_order(least_peak: float, seed: int) -> None:
    maps = np.random.default_rng(seed).random((2, 32, 32)).astype(np.float32) * 0.5
    raised = raise_peaks(maps, least_peak)
    assert raised.max() <= 1
    assert (raised >= maps - 1e-7).all()
    order = maps[0].ravel().argsort()
    assert (np.diff(raised[0].ravel()[order]) >= 0).all()


def test_no_slices_have_no_peaks() -> None:
    assert raise_peaks(np.zeros((0, 8, 8), dtype=np.float32), 0.9).shape == (0, 8, 8)
