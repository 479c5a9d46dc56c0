"""AnoFPDM, a baseline: squared error of the healthy prediction, accumulated along the forward process."""

from __future__ import annotations

import torch

from app_cdm.config import SaliencySettings
from app_cdm.diffusion.process import find_timestep
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel, chunks, class_weights, draw_noise

NOISE_STREAM = 400_000
GUIDANCE_WEIGHT = 2.0


def forward_process_saliency(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings) -> torch.Tensor:
    """Mean over the noise levels up to t_e of (x0_h - x_0)^2 (Che et al. 2024, AnoFPDM).

    x0_h = (1 + w) x0(absent) - w x0(null) is the clean image predicted under classifier-free guidance towards health,
    w = 2 as published for BraTS. Each slice has its own end of the process: t_e is the level at which the guided and
    the null prediction differ most, by mean (x0_h - x0(null))^2. No reverse process, no label of the slice.

    *Differs from the paper:* a few levels in place of 600 steps; noise in closed form, averaged over `num_draws` draws
    that all levels share, in place of DDIM encoding under the null condition; t_e itself is included; gate, smoothing
    and threshold are this project's for every mode, in place of the cosine similarity of error curves, the median
    filter and the quantile that depends on the largest difference.

    Args:
        model: the networks.
        inputs: S slices and the class.
        settings: `forward_process_noise_levels`, `num_draws`, `seed` and `batch_images` are used; the sign is ignored.

    Returns:
        `(S, H, W)` float32, large where the slice is unlike a healthy one.
    """
    timesteps = [find_timestep(model.scheduler, level) for level in settings.forward_process_noise_levels]
    return torch.cat([_accumulate(model, part, settings, timesteps) for part in chunks(inputs, 2, settings.batch_images)])


def _accumulate(model: SaliencyModel, part: SaliencyInputs, settings: SaliencySettings, timesteps: list[int]) -> torch.Tensor:
    slices, count = part.slices.to(model.device), part.slices.shape[0]
    weights = torch.cat([class_weights(model, part, 0.0), class_weights(model, part, None)])
    embedding = model.embed(weights, part.positions.repeat(2))
    errors = torch.zeros(len(timesteps), count, *slices.shape[2:])
    gaps = torch.zeros(len(timesteps), count)
    for draw in range(settings.num_draws):
        noise = draw_noise(part, settings.seed, NOISE_STREAM + draw).to(model.device)
        for level, timestep in enumerate(timesteps):
            at = torch.full((2 * count,), timestep, device=model.device)
            samples = model.scheduler.add_noise(slices, noise, at[:count]).repeat(2, 1, 1, 1)
            absent, null = model.original_samples(samples, at, embedding).chunk(2)
            healthy = (1 + GUIDANCE_WEIGHT) * absent - GUIDANCE_WEIGHT * null
            errors[level] += (healthy - slices).square()[:, 0].cpu()
            gaps[level] += (healthy - null).square().flatten(1).mean(dim=1).cpu()
    is_before_end = torch.arange(len(timesteps))[:, None] <= gaps.argmax(dim=0)
    kept = is_before_end[:, :, None, None] * errors
    return kept.sum(dim=0) / (is_before_end.sum(dim=0)[:, None, None] * settings.num_draws)
