"""The published algorithm: number of evaluations, every step against an independent implementation, tau and R."""

from __future__ import annotations

import pytest
import torch

from app_cdm.config import SaliencySettings
from app_cdm.diffusion.process import find_timestep
from app_cdm.saliency.derivative import directional_derivative
from app_cdm.saliency.reference import NOISE_STREAM, reference_saliency
from tests.saliency.counting import batch_sizes, timesteps_seen
from tests.saliency.oracle import algorithm_1, slice_oracles
from tests.tiny_networks import as_double, tiny_inputs, tiny_saliency_model

PUBLISHED = SaliencySettings(mode="reference")


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("count", [1, 3])
def test_exactly_2r_evaluations_a_slice(steps: int, count: int) -> None:
    model, settings = tiny_saliency_model(), PUBLISHED.replace(num_denoising_steps=steps)
    with torch.no_grad(), batch_sizes(model.unet) as sizes:
        reference_saliency(model, tiny_inputs(count), settings)
    assert model.counter.images == sum(sizes) == 2 * steps * count
    assert sizes == [2 * count] * steps  # R sequential calls of both branches


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("change", [{}, {"condition_mix": 0.0}, {"num_denoising_steps": 1}, {"reference_noise_level": 0.9, "seed": 5}])
def test_equals_algorithm_1_step_by_step(prediction_type: str, patch_size: int, change: dict[str, float]) -> None:
    model = tiny_saliency_model(patch_size=patch_size, prediction_type=prediction_type, dtype=torch.double)
    inputs, settings = as_double(tiny_inputs(2)), PUBLISHED.replace(num_denoising_steps=4).replace(**change)
    with torch.no_grad():
        found = reference_saliency(model, inputs, settings)
    for saliency, oracle in zip(found, slice_oracles(model, inputs), strict=True):
        expected = algorithm_1(oracle, settings, NOISE_STREAM)
        torch.testing.assert_close(saliency.double(), expected, atol=2e-3 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_guidance_gives_each_branch_its_own_condition(prediction_type: str) -> None:
    model = tiny_saliency_model(prediction_type=prediction_type, dtype=torch.double)
    model.classifier.conv_out.weight.mul_(20)
    inputs, settings = as_double(tiny_inputs(2)), PUBLISHED.replace(num_denoising_steps=3, guidance_scale=30.0)
    with torch.no_grad():
        found = reference_saliency(model, inputs, settings)
        unguided = reference_saliency(model, inputs, settings.replace(guidance_scale=0.0))
    for saliency, plain, oracle in zip(found, unguided, slice_oracles(model, inputs), strict=True):
        expected = algorithm_1(oracle, settings, NOISE_STREAM)
        assert (saliency - plain).abs().max() > 0.05 * expected.abs().max()
        torch.testing.assert_close(saliency.double(), expected, atol=2e-3 * float(expected.abs().max()), rtol=0)


def test_t_is_lowered_before_the_first_call() -> None:
    model, settings = tiny_saliency_model(), PUBLISHED.replace(num_denoising_steps=4)
    with torch.no_grad(), timesteps_seen(model.unet) as timesteps:
        reference_saliency(model, tiny_inputs(2), settings)
    first = find_timestep(model.scheduler, settings.reference_noise_level)
    assert timesteps == [[first - k] * 4 for k in (1, 2, 3, 4)]


def test_float32_is_enough_for_the_published_tau() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs()
    with torch.no_grad():
        found = reference_saliency(model, inputs, PUBLISHED)
    for saliency, oracle in zip(found, slice_oracles(model, inputs), strict=True):
        expected = algorithm_1(oracle, PUBLISHED, NOISE_STREAM)
        torch.testing.assert_close(saliency.double(), expected, atol=5e-3 * float(expected.abs().max()), rtol=0)


def test_map_hardly_depends_on_tau_and_tends_to_the_derivative() -> None:
    model, inputs = tiny_saliency_model(dtype=torch.double), as_double(tiny_inputs(1))
    one_step = PUBLISHED.replace(num_denoising_steps=1)
    with torch.no_grad():
        at = {tau: reference_saliency(model, inputs, one_step.replace(condition_mix=tau)) for tau in (0.96, 0.98, 0.99)}
    scale = at[0.99].abs().max()
    assert (at[0.96] - at[0.98]).abs().max() < 0.1 * scale
    # One DDIM step from a shared x_t: x_{t-1} - x'_{t-1} = c_t (x0 - x0'), with c_t from the closed form.
    timestep = find_timestep(model.scheduler, one_step.reference_noise_level)
    oracle = slice_oracles(model, inputs)[0]
    bar, previous = oracle.bar(timestep - 1), oracle.bar(timestep - 2)
    factor = previous**0.5 - (1 - previous) ** 0.5 * (bar / (1 - bar)) ** 0.5
    samples = oracle.noisy(timestep, NOISE_STREAM, one_step.seed)
    derivative = directional_derivative(model, inputs, samples, torch.tensor([timestep - 1]))[:, 0]
    assert factor > 0
    torch.testing.assert_close(at[0.99].double(), factor * derivative.double(), atol=0.05 * float(scale), rtol=0)


def test_more_steps_than_the_noise_level_has_are_refused() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(1)
    first = find_timestep(model.scheduler, 0.05)
    settings = PUBLISHED.replace(reference_noise_level=0.05)
    with torch.no_grad():
        assert reference_saliency(model, inputs, settings.replace(num_denoising_steps=first)).isfinite().all()
    assert model.counter.images == 2 * first
    with pytest.raises(ValueError, match=rf"num_denoising_steps = {first + 1}: noise level 0\.05 is only {first} steps"):
        reference_saliency(model, inputs, settings.replace(num_denoising_steps=first + 1))


def test_sign() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(2)
    with torch.no_grad():
        positive, negative, magnitude = (
            reference_saliency(model, inputs, SaliencySettings(num_denoising_steps=2, sign=sign))
            for sign in ("positive", "negative", "magnitude")
        )
    assert torch.equal(positive, -negative)
    assert torch.equal(positive.abs(), magnitude)
    assert (positive > 0).any()
    assert (positive < 0).any()
