"""The forward process against its closed form, diffusers' schedulers, and its own inverse."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from app_cdm.diffusion.process import (
    ddim_step,
    find_timestep,
    noise_levels,
    patchify,
    predict_original_sample,
    slice_generator,
    unpatchify,
)
from app_cdm.networks.presets import build_scheduler

PREDICTIONS = ["v_prediction", "epsilon"]


def scheduler_of(prediction_type: str) -> DDPMScheduler:
    return DDPMScheduler.from_config(build_scheduler().config, prediction_type=prediction_type)


def perfect_output(
    scheduler: DDPMScheduler, original: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """What a network that knows everything would answer."""
    return scheduler.get_velocity(original, noise, timesteps) if scheduler.config.prediction_type == "v_prediction" else noise


def pair(count: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1, torch.randn(count, 1, 8, 8, generator=generator)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_patches_are_a_permutation_and_come_back(patch_size: int) -> None:
    slices = torch.randn(3, 1, 16, 8)
    patches = patchify(slices, patch_size)
    assert patches.shape == (3, patch_size**2, 16 // patch_size, 8 // patch_size)
    assert torch.equal(unpatchify(patches, patch_size), slices)
    assert torch.equal(patches.flatten(1).sort(dim=1).values, slices.flatten(1).sort(dim=1).values)
    # Neighbouring pixels of a patch are channels of one place.
    assert torch.equal(patches[:, :, 0, 0], slices[:, 0, :patch_size, :patch_size].flatten(1))


def test_noise_levels_of_the_cosine_schedule() -> None:
    scheduler = build_scheduler()
    levels = noise_levels(scheduler)
    assert levels.shape == (1000,)
    assert (levels.diff() > 0).all()
    # Nichol & Dhariwal 2021, equation 17, with offset 0.008; the published clipping of beta touches the last steps alone.
    t = torch.arange(1, 1001, dtype=torch.double) / 1000
    bar = (
        torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2 / torch.cos(torch.tensor(0.008 / 1.008, dtype=torch.double) * torch.pi / 2) ** 2
    )
    torch.testing.assert_close(scheduler.alphas_cumprod[:995].double(), bar[:995], atol=1e-5, rtol=0)
    torch.testing.assert_close(levels[:990].double() ** 2 + bar[:990], torch.ones(990, dtype=torch.double), atol=1e-5, rtol=0)


@pytest.mark.parametrize("level", [0.02, 0.1, 0.35, 0.5, 0.6, 0.65, 0.8, 0.95, 0.995])
def test_timestep_of_a_noise_level_is_the_nearest_one(level: float) -> None:
    scheduler = build_scheduler()
    levels = [float(1 - bar) ** 0.5 for bar in scheduler.alphas_cumprod]
    assert find_timestep(scheduler, level) == min(range(1000), key=lambda t: abs(levels[t] - level))


@pytest.mark.parametrize("level", [0.0, 0.001, 1.01])
def test_noise_level_outside_the_schedule_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match=rf"noise level {level}: the schedule reaches from"):
        find_timestep(build_scheduler(), level)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_original_sample_is_recovered_exactly_from_a_perfect_output(prediction_type: str) -> None:
    scheduler, (original, noise) = scheduler_of(prediction_type), pair()
    timesteps = torch.tensor([0, 57, 300, 650, 900])
    samples = scheduler.add_noise(original, noise, timesteps)
    output = perfect_output(scheduler, original, noise, timesteps)
    torch.testing.assert_close(predict_original_sample(scheduler, output, samples, timesteps), original, atol=2e-5, rtol=0)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_original_sample_agrees_with_diffusers(prediction_type: str) -> None:
    scheduler, (samples, output) = scheduler_of(prediction_type), pair(1)
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(1000)
    for timestep in (1, 123, 777):
        expected = ddim.step(output, timestep, samples).pred_original_sample
        torch.testing.assert_close(predict_original_sample(scheduler, output, samples, torch.tensor([timestep])), expected)


def test_original_sample_is_float32_whatever_the_network_gives() -> None:
    scheduler, (samples, output) = build_scheduler(), pair(2)
    timesteps = torch.tensor([100, 200])
    result = predict_original_sample(scheduler, output.bfloat16(), samples, timesteps)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, predict_original_sample(scheduler, output, samples, timesteps), atol=5e-3, rtol=0)


@pytest.mark.parametrize("stride", [1, 4, 40])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_ddim_step_agrees_with_diffusers(prediction_type: str, stride: int) -> None:
    scheduler, (samples, output) = scheduler_of(prediction_type), pair()
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(1000 // stride)
    for timestep in (stride + 1, 400, 760):
        expected = ddim.step(output, timestep, samples, eta=0.0).prev_sample
        found = ddim_step(scheduler, output, samples, timestep, timestep - stride)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_ddim_steps_of_a_perfect_network_stay_on_the_forward_process(prediction_type: str) -> None:
    scheduler, (original, noise) = scheduler_of(prediction_type), pair()
    timesteps = [700, 431, 430, 60, 0]
    samples = scheduler.add_noise(original, noise, torch.tensor([700]))
    for timestep, previous in itertools.pairwise(timesteps):
        output = perfect_output(scheduler, original, noise, torch.tensor([timestep]))
        samples = ddim_step(scheduler, output, samples, timestep, previous)
        expected = scheduler.add_noise(original, noise, torch.tensor([previous])) if previous else original
        torch.testing.assert_close(samples, expected, atol=2e-5, rtol=0)


def test_every_slice_and_stream_has_noise_of_its_own() -> None:
    keys = [(seed, index, stream) for seed in (0, 1, 12345) for index in (0, 1, 2, 12, 90) for stream in (0, 1, 2, 31, 100_000, 200_000)]
    draws = torch.stack([torch.randn(64, 16, generator=slice_generator(*key)).flatten() for key in keys]).double()
    correlation = torch.corrcoef(draws) - torch.eye(len(keys), dtype=torch.double)
    assert correlation.abs().max() < 0.2  # 4 standard deviations of independent draws are 0.125


def test_slices_and_the_streams_of_a_method_never_share_a_seed() -> None:
    seeds = {
        slice_generator(seed, index, stream).initial_seed() for seed in (0, 1, 2**31 - 1) for index in range(600) for stream in range(256)
    }
    assert len(seeds) == 3 * 600 * 256


def test_generator_repeats_and_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first = torch.randn(10, generator=slice_generator(3, 4, 5))
    assert torch.equal(first, torch.randn(10, generator=slice_generator(3, 4, 5)))
    assert torch.equal(before, torch.get_rng_state())
