"""Augmentation: range, background, determinism, and geometry that does what its settings say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app_cdm.data.augmentation import AugmentationSettings, augment, draw_augmentation

NONE = AugmentationSettings(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def slices(count: int = 4, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def blob(row: float, column: float, size: int = 33, batch: int = 64) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    image = torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8)
    return (image * 2 - 1).expand(batch, 1, size, size).clone()


def centres(images: torch.Tensor) -> torch.Tensor:
    """`(B, 2)` centre of mass from the middle of the image: rows down, columns right."""
    weights = (images[:, 0] + 1).double()
    offsets = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    total = weights.sum(dim=(1, 2))
    return torch.stack([(weights.sum(2) * offsets).sum(1) / total, (weights.sum(1) * offsets).sum(1) / total], dim=1)


def test_no_strength_changes_nothing() -> None:
    torch.testing.assert_close(augment(slices(), NONE, torch.Generator().manual_seed(0)), slices(), atol=1e-5, rtol=0)


def test_certain_mirror_is_an_exact_left_right_flip() -> None:
    flipped = augment(slices(), NONE.replace(flip_probability=1.0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(flipped, slices().flip(-1), atol=1e-5, rtol=0)


def test_mirror_probability() -> None:
    images = slices(2000, 8)
    result = augment(images, NONE.replace(flip_probability=0.3), torch.Generator().manual_seed(0))
    is_same = (result - images).abs().amax(dim=(1, 2, 3)) < 1e-4
    is_mirrored = (result - images.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert (is_same ^ is_mirrored).all()
    assert float(is_mirrored.float().mean()) == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("flip_probability", [0.0, 1.0])
def test_rotation_keeps_the_distance_and_stays_within_its_angle(flip_probability: float) -> None:
    strength = NONE.replace(rotation_degrees=30.0, flip_probability=flip_probability)
    found = centres(augment(blob(16 - 8, 16), strength, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(found.norm(dim=1), torch.full((64,), 8.0, dtype=torch.double), atol=0.15, rtol=0)
    angles = torch.rad2deg(torch.atan2(found[:, 1], -found[:, 0]))
    assert angles.abs().max() <= 30.5
    assert angles.min() < -20
    assert angles.max() > 20


def test_translation_moves_by_at_most_its_fraction_of_the_side() -> None:
    found = centres(augment(blob(16, 16), NONE.replace(translation=0.1), torch.Generator().manual_seed(0)))
    assert found.abs().max() <= 3.3 + 0.05
    assert found.abs().amax(dim=0).min() > 2.5


def test_scaling_changes_the_distance_by_at_most_its_share() -> None:
    found = centres(augment(blob(16, 16 + 8), NONE.replace(scaling=0.2), torch.Generator().manual_seed(0)))[:, 1]
    assert found.max() <= 8 / 0.8 + 0.3
    assert found.min() >= 8 / 1.2 - 0.3
    assert found.max() - found.min() > 2


def test_gamma_keeps_the_order_of_intensities() -> None:
    ramp = torch.linspace(-1, 1, 16)[None, None, :, None].expand(8, 1, 16, 16)
    result = augment(ramp, NONE.replace(gamma=0.5), torch.Generator().manual_seed(0))
    assert (result.diff(dim=2) > 0).all()
    assert (result[:, :, 8] - ramp[:, :, 8]).abs().max() > 0.1
    torch.testing.assert_close(result[:, :, [0, -1]], ramp[:, :, [0, -1]], atol=1e-4, rtol=0)


def test_gain_is_a_smooth_ramp() -> None:
    flat = torch.full((8, 1, 16, 16), -0.5)
    gain = (augment(flat, NONE.replace(gain=0.2), torch.Generator().manual_seed(0)) + 1) / (flat + 1)
    torch.testing.assert_close(gain.diff(dim=2).diff(dim=2), torch.zeros(8, 1, 14, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(gain.mean(dim=(1, 2, 3)), torch.ones(8), atol=1e-4, rtol=0)
    assert gain.std() > 0.05


@settings(max_examples=30, deadline=None)
@given(
    strength=st.builds(
        AugmentationSettings, st.floats(0, 1), st.floats(0, 180), st.floats(0, 0.9), st.floats(0, 0.5), st.floats(0, 1), st.floats(0, 1)
    ),
    seed=st.integers(0, 1000),
)
def test_any_strength_stays_in_range_and_is_deterministic(strength: AugmentationSettings, seed: int) -> None:
    images = slices(seed=seed)
    before = images.clone()
    first = augment(images, strength, torch.Generator().manual_seed(seed))
    assert torch.equal(first, augment(images, strength, torch.Generator().manual_seed(seed)))
    assert torch.equal(images, before)
    assert first.shape == images.shape
    assert first.isfinite().all()
    assert first.min() >= -1
    assert first.max() <= 1
    background = augment(torch.full_like(images, -1.0), strength, torch.Generator().manual_seed(seed))
    assert (background == -1).all()


def test_what_comes_from_outside_is_background_and_seeds_differ() -> None:
    strength = AugmentationSettings(0.0, 45.0, 0.0, 0.3, 0.5, 0.3)
    first = augment(torch.ones(16, 1, 16, 16), strength, torch.Generator().manual_seed(0))
    assert (first == -1).any(dim=(1)).any(dim=(1, 2)).float().mean() > 0.9
    assert not torch.equal(first, augment(torch.ones(16, 1, 16, 16), strength, torch.Generator().manual_seed(1)))
    assert math.isclose(float(first.max()), 1.0, abs_tol=1e-5)


def test_each_slice_is_changed_on_its_own() -> None:
    result = augment(slices(1).expand(6, 1, 16, 16), AugmentationSettings(), torch.Generator().manual_seed(0))
    for first in range(6):
        for second in range(first):
            assert (result[first] - result[second]).abs().max() > 0.05


@settings(max_examples=20, deadline=None)
@given(
    strength=st.builds(
        AugmentationSettings, st.floats(0, 1), st.floats(0, 180), st.floats(0, 0.9), st.floats(0, 0.5), st.just(0.0), st.just(0.0)
    ),
    seed=st.integers(0, 1000),
)
def test_images_and_maps_move_alike(strength: AugmentationSettings, seed: int) -> None:
    images = slices(4, seed=seed)
    drawn = draw_augmentation(images.shape, strength, torch.Generator().manual_seed(seed))
    maps = ((images + 1) / 2).expand(4, 3, 16, 16)
    moved = drawn.on_maps(maps)
    torch.testing.assert_close(drawn.on_images(images).expand(4, 3, 16, 16), moved * 2 - 1, atol=1e-5, rtol=0)
    assert moved.min() >= 0
    assert moved.max() <= 1 + 1e-6
    assert torch.equal(drawn.on_maps(maps), moved), "applying draws nothing"


def test_contrast_is_for_images_alone() -> None:
    images = slices()
    drawn = draw_augmentation(images.shape, NONE.replace(gamma=0.8, gain=0.5), torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.on_maps(images), images, atol=1e-5, rtol=0)
    assert (drawn.on_images(images) - images).abs().amax(dim=(1, 2, 3)).min() > 0.05


def test_what_comes_from_outside_a_map_is_zero_and_its_inside_stays_one() -> None:
    """A map of ones: zero where the image is background, which has its own minus one there."""
    ones = torch.ones(16, 1, 32, 32)
    drawn = draw_augmentation(ones.shape, NONE.replace(translation=0.3, rotation_degrees=40.0), torch.Generator().manual_seed(0))
    maps, images = drawn.on_maps(ones), drawn.on_images(ones)
    assert (maps == 0).flatten(1).any(dim=1).float().mean() > 0.9
    torch.testing.assert_close(maps[:, 0, 16, 16], torch.ones(16), atol=1e-5, rtol=0)
    assert torch.equal(maps == 0, images == -1)


def test_every_channel_moves_alike_and_every_slice_by_itself() -> None:
    images = slices(1).expand(4, 3, 16, 16)
    moved = draw_augmentation(images.shape, AugmentationSettings(), torch.Generator().manual_seed(0)).on_images(images)
    torch.testing.assert_close(moved[:, 1:], moved[:, :1].expand(4, 2, 16, 16), atol=1e-6, rtol=0)
    assert (moved[0] - moved[1]).abs().max() > 0.05
