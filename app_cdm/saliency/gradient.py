"""Gradient map of the noise-conditional classifier: where its log-odds react to the pixels of noised slices."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from app_cdm.config import SaliencySettings
from app_cdm.diffusion.process import find_timestep
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel, chunks, draw_noise
from app_cdm.saliency.guidance import logit_gradient

NOISE_STREAM = 300_000
NUM_DRAWS = 8
FIRST_SHARE, LAST_SHARE = 0.025, 0.3  # t = 25 and 300 of 1000
SMOOTHING_PX = 1.5
LOWER_PERCENTILE, UPPER_PERCENTILE = 1.0, 99.0


def gradient_saliency(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings) -> torch.Tensor:
    """`gradient_map` with the settings' seed and last noise level; smoothed by `saliency_maps` once more.

    Args:
        model: the networks.
        inputs: S slices and the class.
        settings: `gradient_noise_level`, `seed` and `batch_images` are used.

    Returns:
        `(S, H, W)` float32 in [0, 1].
    """
    last_timestep = find_timestep(model.scheduler, settings.gradient_noise_level)
    return gradient_map(model, inputs, seed=settings.seed, last_timestep=last_timestep, batch_images=settings.batch_images)


def gradient_map(
    model: SaliencyModel,
    inputs: SaliencyInputs,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
    last_timestep: int | None = None,
    batch_images: int = 64,
) -> torch.Tensor:
    """Mean over noise draws of |grad_x [log p(present | x_t, t) - log p(absent | x_t, t)]|, smoothed and scaled per slice.

    One draw a timestep, the timesteps evenly spaced from 25 to 300 of 1000. After a Gaussian of 1.5 px the 1st and
    99th percentile of the body become 0 and 1. No U-Net call; Zeng et al. 2025 name the map, its numbers are ours.

    Args:
        model: the networks; only classifier and scheduler are used.
        inputs: S slices and the class.
        num_draws: noise draws, each at a timestep of its own.
        seed: of the noise; every slice draws from its own streams, so batch mates and order cannot matter.
        last_timestep: largest timestep in place of 300 of 1000; the first keeps its proportion to it.
        batch_images: most images in one call of the classifier.

    Returns:
        `(S, H, W)` float32 in [0, 1]; 0 in a slice without a body or without any gradient.
    """
    last = round(LAST_SHARE * model.scheduler.config.num_train_timesteps) if last_timestep is None else last_timestep
    timesteps = torch.linspace(last * FIRST_SHARE / LAST_SHARE, last, num_draws).round().long().tolist()
    maps = [_mean_magnitude(model, part, timesteps, seed) for part in chunks(inputs, 1, batch_images)]
    if not maps:
        return torch.zeros(0, *inputs.slices.shape[2:])
    smoothed = ndimage.gaussian_filter(torch.cat(maps).numpy(), sigma=(0, SMOOTHING_PX, SMOOTHING_PX))
    body = inputs.body.numpy()
    scaled = [_scale_percentiles(values, inside) for values, inside in zip(smoothed, body, strict=True)]
    return torch.from_numpy(np.stack(scaled).astype(np.float32))


def _mean_magnitude(model: SaliencyModel, part: SaliencyInputs, timesteps: list[int], seed: int) -> torch.Tensor:
    """`(S, H, W)` mean over the timesteps of the gradient's magnitude, one noise stream a timestep."""
    slices = part.slices.to(model.device)
    total = torch.zeros(slices.shape[0], *slices.shape[2:])
    for number, timestep in enumerate(timesteps):
        noise = draw_noise(part, seed, NOISE_STREAM + number).to(model.device)
        at = torch.full((slices.shape[0],), timestep, device=model.device)
        gradient = logit_gradient(model, model.scheduler.add_noise(slices, noise, at), at, part.class_index)
        total += gradient.abs().sum(dim=1).cpu()
    return total / len(timesteps)


def _scale_percentiles(values: np.ndarray, body: np.ndarray) -> np.ndarray:
    """`(H, W)` with the percentiles of the body at 0 and 1, clipped; a flat map or an empty body gives zeros."""
    if not body.any():
        return np.zeros_like(values)
    low, high = np.percentile(values[body], [LOWER_PERCENTILE, UPPER_PERCENTILE])
    return np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros_like(values)
