"""Gradient map: against finite differences in float64, its scaling, and independence of batch mates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from app_cdm.config import SaliencySettings
from app_cdm.diffusion.process import find_timestep, slice_generator
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel
from app_cdm.saliency.gradient import NOISE_STREAM, SMOOTHING_PX, gradient_map, gradient_saliency
from tests.saliency.counting import batch_sizes, timesteps_seen
from tests.tiny_networks import as_double, tiny_inputs, tiny_saliency_model


def lively_model(dtype: torch.dtype = torch.float32) -> SaliencyModel:
    model = tiny_saliency_model(dtype=dtype)
    model.classifier.conv_out.weight.mul_(20)
    return model


def exact_logit(model: SaliencyModel, samples: torch.Tensor, timestep: int, class_index: int) -> torch.Tensor:
    """`(B,)` pooled log-odds in float64; the network itself rounds the log-odds of the places to float32."""
    caught: list[torch.Tensor] = []
    hook = model.classifier.conv_out.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    model.classifier(samples, torch.full((samples.shape[0],), timestep))
    hook.remove()
    sharpness = model.classifier.config.pool_sharpness
    return (sharpness * caught[0][:, class_index].flatten(1)).exp().mean(dim=1).log() / sharpness


def gradient_by_differences(model: SaliencyModel, x: torch.Tensor, timestep: int, class_index: int) -> torch.Tensor:
    """`(H, W)` central difference of the log-odds in every pixel of `(1, 1, H, W)`."""
    step = 1e-5
    moves = step * torch.eye(x.numel(), dtype=torch.double).view(-1, *x.shape[1:])
    ahead, behind = (exact_logit(model, x + side * moves, timestep, class_index) for side in (1, -1))
    return ((ahead - behind) / (2 * step)).view(x.shape[2:])


@pytest.mark.parametrize("class_index", [0, 1])
def test_equals_finite_differences_smoothed_and_scaled_by_the_percentiles_of_the_body(class_index: int) -> None:
    model, inputs = lively_model(torch.double), as_double(tiny_inputs(2, class_index=class_index))
    found = gradient_map(model, inputs, num_draws=3, seed=5)
    for saliency, image, index in zip(found, inputs.slices, inputs.slice_indices, strict=True):
        total = torch.zeros(16, 16, dtype=torch.double)
        for draw, timestep in enumerate((25, 162, 300)):
            noise = torch.randn(1, 16, 16, generator=slice_generator(5, index, NOISE_STREAM + draw)).double()
            bar = float(model.scheduler.alphas_cumprod[timestep])
            x = (bar**0.5 * image + (1 - bar) ** 0.5 * noise)[None]
            total += gradient_by_differences(model, x, timestep, class_index).abs() / 3
        smoothed = ndimage.gaussian_filter(total.numpy(), SMOOTHING_PX)
        low, high = np.percentile(smoothed[image[0].numpy() > -0.95], [1, 99])
        expected = np.clip((smoothed - low) / (high - low), 0, 1)
        np.testing.assert_allclose(saliency.numpy(), expected, atol=1e-3)


def test_one_draw_a_timestep_from_25_to_300_and_no_unet() -> None:
    model = tiny_saliency_model()
    with timesteps_seen(model.classifier) as seen, batch_sizes(model.unet) as sizes:
        found = gradient_map(model, tiny_inputs(2))
    assert [timesteps[0] for timesteps in seen] == [25, 64, 104, 143, 182, 221, 261, 300]
    assert not sizes
    assert model.counter.images == 0
    assert found.shape == (2, 16, 16)
    assert found.dtype == torch.float32
    assert found.min() == 0
    assert found.max() == 1


def test_slice_alone_equals_the_slice_in_any_batch_and_order() -> None:
    model, inputs = lively_model(), tiny_inputs(4)
    together = gradient_map(model, inputs)
    with batch_sizes(model.classifier) as sizes:
        torch.testing.assert_close(gradient_map(model, inputs, batch_images=3), together, atol=1e-4, rtol=1e-4)
    assert max(sizes) == 3
    order = [3, 1, 2, 0]
    shuffled = SaliencyInputs(inputs.slices[order], inputs.positions[order], tuple(inputs.slice_indices[i] for i in order), 1)
    torch.testing.assert_close(gradient_map(model, shuffled), together[order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient_map(model, inputs.select(2, 3)), together[2:3], atol=1e-4, rtol=1e-4)
    assert torch.equal(gradient_map(model, inputs), together)
    assert (gradient_map(model, inputs, seed=1) - together).abs().max() > 0.05


def test_edges() -> None:
    model, inputs = lively_model(), tiny_inputs(2)
    inputs.slices[1] = -1.0
    found = gradient_map(model, inputs)
    assert found[0].max() == 1
    assert (found[1] == 0).all()  # no body, no percentiles
    assert gradient_map(model, inputs.select(0, 0)).shape == (0, 16, 16)
    model.classifier.conv_out.weight.zero_()
    assert (gradient_map(model, inputs) == 0).all()


def test_mode_uses_seed_level_and_batch_of_the_settings() -> None:
    model, inputs = lively_model(), tiny_inputs(3)
    settings = SaliencySettings(mode="gradient", gradient_noise_level=0.7, seed=3, batch_images=2)
    with timesteps_seen(model.classifier) as seen:
        found = gradient_saliency(model, inputs, settings)
    last = find_timestep(model.scheduler, 0.7)
    assert max(max(timesteps) for timesteps in seen) == last
    assert max(len(timesteps) for timesteps in seen) == 2
    torch.testing.assert_close(found, gradient_map(model, inputs, seed=3, last_timestep=last), atol=1e-4, rtol=1e-4)
    assert abs(find_timestep(model.scheduler, SaliencySettings().gradient_noise_level) - 300) <= 3
