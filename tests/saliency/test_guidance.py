"""Classifier guidance: gradients against finite differences in float64, and the same step for both prediction types."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from app_cdm.config import SaliencySettings
from app_cdm.diffusion.process import predict_original_sample
from app_cdm.saliency.base import SaliencyModel
from app_cdm.saliency.guidance import log_probability_gradient, logit_gradient
from app_cdm.saliency.parallel import parallel_saliency
from app_cdm.saliency.reference import guide, reference_saliency
from tests.tiny_networks import tiny_inputs, tiny_saliency_model


def exact_logit(model: SaliencyModel, samples: torch.Tensor, timesteps: torch.Tensor, class_index: int) -> torch.Tensor:
    """The pooled log-odds in float64 from the log-odds of the places, which the network itself rounds to float32."""
    caught: list[torch.Tensor] = []
    hook = model.classifier.conv_out.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    model.classifier(samples, timesteps)
    hook.remove()
    sharpness = model.classifier.config.pool_sharpness
    return (sharpness * caught[0][:, class_index].flatten(1)).exp().mean(dim=1).log() / sharpness


def problem() -> tuple[SaliencyModel, torch.Tensor, torch.Tensor, torch.Tensor]:
    model = tiny_saliency_model(dtype=torch.double)
    model.classifier.conv_out.weight.mul_(30)
    generator = torch.Generator().manual_seed(3)
    samples = torch.randn(2, 1, 16, 16, generator=generator, dtype=torch.double)
    direction = torch.randn(samples.shape, generator=generator, dtype=torch.double)
    return model, samples, torch.tensor([0, 400]), direction


@pytest.mark.parametrize("class_index", [0, 1])
def test_logit_gradient_equals_a_central_difference(class_index: int) -> None:
    model, samples, timesteps, direction = problem()
    step = 1e-5
    ahead, behind = (exact_logit(model, samples + side * step * direction, timesteps, class_index) for side in (1, -1))
    found = (logit_gradient(model, samples, timesteps, class_index).double() * direction).sum(dim=(1, 2, 3))
    torch.testing.assert_close(found, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-6)
    assert found.abs().min() > 1e-2


@pytest.mark.parametrize("presence", [0.0, 0.3, 1.0])
def test_log_probability_gradient_equals_a_central_difference(presence: float) -> None:
    model, samples, timesteps, direction = problem()
    step = 1e-5

    def log_probability(x: torch.Tensor) -> torch.Tensor:
        logit = exact_logit(model, x, timesteps, 1)
        return presence * F.logsigmoid(logit) + (1 - presence) * F.logsigmoid(-logit)

    expected = (log_probability(samples + step * direction) - log_probability(samples - step * direction)) / (2 * step)
    gradient = log_probability_gradient(model, samples, timesteps, 1, torch.full((2,), presence))
    torch.testing.assert_close((gradient.double() * direction).sum(dim=(1, 2, 3)), expected, rtol=1e-4, atol=1e-6)


def test_difference_of_both_log_probabilities_is_the_logit() -> None:
    model, samples, timesteps, _ = problem()
    present, absent = (log_probability_gradient(model, samples, timesteps, 0, torch.full((2,), p)) for p in (1.0, 0.0))
    torch.testing.assert_close(present - absent, logit_gradient(model, samples, timesteps, 0), atol=1e-6, rtol=1e-4)


def test_gradients_work_where_gradients_are_off_and_leave_nothing_behind() -> None:
    model, samples, timesteps, _ = problem()
    with torch.no_grad():
        gradient = logit_gradient(model, samples, timesteps, 0)
    assert not gradient.requires_grad
    assert samples.grad is None
    assert not samples.requires_grad
    assert all(parameter.grad is None for parameter in model.classifier.parameters())


@pytest.mark.parametrize("timestep", [5, 400, 900])
def test_guiding_v_is_guiding_epsilon(timestep: int) -> None:
    generator = torch.Generator().manual_seed(0)
    samples, v, gradient = (torch.randn(2, 1, 8, 8, generator=generator) for _ in range(3))
    by_type = {kind: tiny_saliency_model(prediction_type=kind).scheduler for kind in ("v_prediction", "epsilon")}
    bar, timesteps = float(by_type["epsilon"].alphas_cumprod[timestep]), torch.full((2,), timestep)
    eps = bar**0.5 * v + (1 - bar) ** 0.5 * samples
    guided_v = guide(by_type["v_prediction"], v, gradient, timestep, 3.0)
    guided_eps = guide(by_type["epsilon"], eps, gradient, timestep, 3.0)
    torch.testing.assert_close(guided_eps, eps - (1 - bar) ** 0.5 * 3.0 * gradient)
    torch.testing.assert_close(bar**0.5 * guided_v + (1 - bar) ** 0.5 * samples, guided_eps, atol=1e-5, rtol=1e-5)
    clean = [predict_original_sample(by_type[kind], output, samples, timesteps) for kind, output in
             (("v_prediction", guided_v), ("epsilon", guided_eps))]  # fmt: skip
    torch.testing.assert_close(clean[0], clean[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("presence", [0.0, 1.0])
def test_guidance_moves_the_clean_image_towards_its_condition(presence: float) -> None:
    model, samples, timesteps, _ = problem()
    timesteps = torch.full((2,), 400)
    output = torch.zeros_like(samples)
    gradient = log_probability_gradient(model, samples, timesteps, 0, torch.full((2,), presence))
    guided = guide(model.scheduler, output, gradient, 400, 0.01)
    moved = predict_original_sample(model.scheduler, guided, samples, timesteps) - predict_original_sample(
        model.scheduler, output, samples, timesteps
    )
    rise = exact_logit(model, samples + moved, timesteps, 0) - exact_logit(model, samples, timesteps, 0)
    assert ((rise > 0) == bool(presence)).all()


def test_no_guidance_equals_a_guidance_of_nothing() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(2)
    scheduler, output = model.scheduler, torch.randn(2, 1, 16, 16)
    assert torch.equal(guide(scheduler, output, torch.randn_like(output), 300, 0.0), output)
    few = SaliencySettings(num_denoising_steps=2, noise_levels=(0.5,))
    with torch.no_grad():
        for method in (reference_saliency, parallel_saliency):
            plain = method(model, inputs, few)
            hardly = method(model, inputs, few.replace(guidance_scale=1e-7))
            torch.testing.assert_close(plain, hardly, atol=1e-3 * float(plain.abs().max()), rtol=0)
