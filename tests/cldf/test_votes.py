"""Votes: the maps that are collected, the diffusion map of a volume, and the seeds of a class volume by volume."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from app_cdm.cldf.seeds import BACKGROUND, FOREGROUND, SeedMaps, SeedSettings, find_seeds
from app_cdm.cldf.votes import Votes, collect_votes, inputs_of, seeds_of_class, volume_saliency
from app_cdm.config import SaliencySettings
from app_cdm.saliency.base import SaliencyInputs
from app_cdm.saliency.parallel import parallel_saliency
from tests.saliency.oracle import slice_oracles
from tests.tagged_slices import two_volumes
from tests.tiny_networks import tiny_inputs, tiny_saliency_model

SALIENCY = SaliencySettings(noise_levels=(0.4, 0.7), num_draws=1, flip=False, smoothing_px=0.0)
LOOSE = SeedSettings(cam_foreground=0.2, gradient_foreground=0.2, saliency_foreground=0.9, slice_smoothing=0.7)


def random_votes(index: torch.Tensor, seed: int = 0) -> Votes:
    generator = torch.Generator().manual_seed(seed)
    cam, gradient = torch.rand(2, len(index), 16, 16, generator=generator)
    levels = torch.randn(len(index), 2, 16, 16, generator=generator) * torch.tensor([1.0, 30.0])[:, None, None]
    blob = torch.zeros(16, 16)
    blob[5:9, 6:10] = 1
    return Votes(index, (cam * 0.2 + 0.8 * blob), (gradient * 0.2 + 0.8 * blob), levels + 60 * blob)


def test_votes_are_the_three_maps() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(3)
    cam, gradient, levels = collect_votes(model, inputs, SALIENCY)
    assert cam.shape == gradient.shape == (3, 16, 16)
    assert levels.shape == (3, 2, 16, 16)
    body = inputs.slices[:, 0] > -0.95
    assert not cam[~body].any()
    torch.testing.assert_close(cam.flatten(1).amax(dim=1), torch.ones(3))
    assert gradient.min() >= 0
    assert gradient.max() <= 1
    for row, oracle in enumerate(slice_oracles(model, inputs)):
        for number, level in enumerate(SALIENCY.noise_levels):
            t = oracle.timestep(level)
            x = oracle.noisy(t, number, SALIENCY.seed)
            with torch.no_grad():
                present, absent = (oracle.x0_of(x, oracle.noise_prediction(x, t, oracle.embedding(p)), t) for p in (1.0, 0.0))
            torch.testing.assert_close(levels[row, number].double(), (present - absent)[0, 0], atol=5e-4, rtol=1e-3)


def test_votes_of_a_slice_are_its_own() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(3)
    for whole, alone in zip(collect_votes(model, inputs, SALIENCY), collect_votes(model, inputs.select(1, 2), SALIENCY), strict=True):
        torch.testing.assert_close(alone[0], whole[1], atol=1e-4, rtol=1e-3)


def test_inputs_know_the_place_of_a_slice_in_its_volume() -> None:
    data = two_volumes()
    inputs = inputs_of(data, torch.tensor([8, 1, 5, 0]), 1)
    assert inputs.slice_indices == (3, 1, 0, 0)
    assert inputs.class_index == 1
    assert torch.equal(inputs.slices, data.slices[[8, 1, 5, 0]])
    assert torch.equal(inputs.positions, data.positions[[8, 1, 5, 0]])


def test_volume_map_keeps_the_amplitude_between_slices_and_weighs_levels_alike() -> None:
    slices = torch.zeros(3, 1, 16, 16)
    pattern = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    levels = pattern * torch.tensor([1.0, 5.0, 0.5])[:, None, None, None]
    found = volume_saliency(levels, slices, SALIENCY, 0.0)
    np.testing.assert_allclose(found[1], 5 * found[0], rtol=1e-5)
    np.testing.assert_allclose(found[2], found[0] / 2, rtol=1e-5)
    scaled = volume_saliency(levels * torch.tensor([1.0, 100.0])[:, None, None], slices, SALIENCY, 0.0)
    np.testing.assert_allclose(scaled, found, rtol=1e-4)
    flat_in_a_slice = volume_saliency(levels[:1], slices[:1], SALIENCY, 0.0)
    assert flat_in_a_slice.std() == pytest.approx(float(volume_saliency(levels[1:2], slices[:1], SALIENCY, 0.0).std()), rel=1e-4)


@pytest.mark.parametrize("sign", ["positive", "negative", "magnitude"])
@pytest.mark.parametrize("smoothing_px", [0.0, 1.5])
def test_volume_map_is_its_formula(sign: str, smoothing_px: float) -> None:
    data = two_volumes()
    levels = torch.randn(5, 2, 16, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0])[:, None, None]
    settings = SALIENCY.replace(sign=sign, smoothing_px=smoothing_px)
    found = volume_saliency(levels, data.slices[:5], settings, 0.0)
    turn = {"positive": lambda m: m, "negative": lambda m: -m, "magnitude": np.abs}[sign]
    expected = sum(turn(levels[:, k].numpy() / levels[:, k].numpy().std()) for k in (0, 1)) / 2
    expected = np.stack([ndimage.gaussian_filter(m, smoothing_px) for m in expected]) if smoothing_px else expected
    expected = np.maximum(expected, 0) * (data.slices[:5, 0] > -0.95).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-3)


def test_smoothing_along_slices_shares_between_neighbours_within_the_body() -> None:
    slices, levels = torch.full((5, 1, 16, 16), -1.0), torch.zeros(5, 1, 16, 16)
    slices[:, :, 2:14, 2:14] = 0.0
    slices[3, :, 2:8] = -1.0  # the next slice has no body there
    levels[2, 0, 4, 4], levels[2, 0, 10, 10] = 1.0, 1.0
    found = volume_saliency(levels, slices, SALIENCY, 1.0)
    assert found[2, 4, 4] > found[1, 4, 4] > found[0, 4, 4] > 0
    assert found[3, 10, 10] == pytest.approx(found[1, 10, 10])
    assert not found[(slices[:, 0] <= -0.95).numpy()].any(), "0 outside the body"
    assert volume_saliency(levels[2:3], slices[2:3], SALIENCY, 1.0)[0, 4, 4] > 0, "a single slice has no neighbour"
    apart = volume_saliency(levels, slices, SALIENCY, 1.0, torch.tensor([4, 5, 6, 40, 41]))
    assert apart[1, 4, 4] > apart[0, 4, 4] > 0
    assert not apart[3:].any(), "what lies between two ranges is not known"


def test_volume_map_without_any_difference_is_zero() -> None:
    assert not volume_saliency(torch.zeros(2, 2, 16, 16), torch.zeros(2, 1, 16, 16), SALIENCY, 1.0).any()


def test_diffusion_map_of_one_slice_and_level_is_that_of_parallel_saliency() -> None:
    model, inputs, settings = tiny_saliency_model(), tiny_inputs(1), SALIENCY.replace(noise_levels=(0.5,))
    inside = SaliencyInputs(inputs.slices.clamp_min(-0.9), inputs.positions, inputs.slice_indices, inputs.class_index)
    levels = collect_votes(model, inside, settings)[2]
    with torch.no_grad():
        expected = parallel_saliency(model, inside, settings).clamp_min(0)
    np.testing.assert_allclose(volume_saliency(levels, inside.slices, settings, 0.0), expected.numpy(), atol=1e-5, rtol=1e-4)


def test_seeds_of_a_class_are_found_volume_by_volume() -> None:
    data, index = two_volumes(), torch.tensor([1, 2, 3, 5, 6])
    votes = random_votes(index)
    seeds = seeds_of_class(data, 0, votes, SALIENCY, LOOSE)
    assert seeds.dtype == torch.int8
    for rows in (torch.tensor([0, 1, 2]), torch.tensor([3, 4])):
        slices = data.slices[index[rows]]
        maps = volume_saliency(votes.levels[rows], slices, SALIENCY, LOOSE.slice_smoothing)
        expected = find_seeds(SeedMaps(votes.cam[rows].numpy(), votes.gradient[rows].numpy(), maps, (slices[:, 0] > -0.95).numpy()), LOOSE)
        np.testing.assert_array_equal(seeds[rows], expected)
        assert (expected == FOREGROUND).any()
        assert (expected == BACKGROUND).any()
    louder = dataclasses.replace(votes, levels=votes.levels * torch.tensor([1, 1, 1, 7, 0.1])[:, None, None, None])
    changed = seeds_of_class(data, 0, louder, SALIENCY, LOOSE)
    assert torch.equal(changed[:3], seeds[:3])
    assert not torch.equal(changed[3:], seeds[3:])


@pytest.mark.parametrize("index", [[1, 2, 3, 5], [1, 2, 3, 5, 7], [1, 2, 3, 6, 5], []])
def test_votes_of_other_tags_are_refused(index: list[int]) -> None:
    with pytest.raises(ValueError, match="the votes were made for other tags; delete them and run the stage again"):
        seeds_of_class(two_volumes(), 0, random_votes(torch.tensor(index, dtype=torch.long)), SALIENCY, LOOSE)
