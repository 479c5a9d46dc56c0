"""CG-Diff, the baseline: noise, classifier-guided return to the absent class, absolute difference."""

from __future__ import annotations

import torch

from app_cdm.config import SaliencySettings
from app_cdm.diffusion.process import ddim_step
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel, chunks, class_weights, draw_noise, start_timestep
from app_cdm.saliency.guidance import log_probability_gradient
from app_cdm.saliency.reference import guide

NOISE_STREAM = 200_000


def cg_diff_saliency(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings) -> torch.Tensor:
    """|x_0 - reconstruction| after unconditional denoising guided towards absence (Wolleb et al. 2022).

    *Differs from the paper:* noise in closed form instead of DDIM inversion, and a number of steps of its own.

    Args:
        model: the networks.
        inputs: S slices and the class.
        settings: `cg_diff_noise_level`, `cg_diff_num_steps`, `cg_diff_guidance_scale`, `seed`; the sign is ignored.

    Returns:
        `(S, H, W)` float32, large where the target is.

    Raises:
        ValueError: there are more steps than timesteps below the noise level.
    """
    first_timestep = start_timestep(model, settings.cg_diff_noise_level, settings.cg_diff_num_steps, "cg_diff_num_steps")
    return torch.cat([_reconstruct(model, part, settings, first_timestep) for part in chunks(inputs, 1, settings.batch_images)])


def _reconstruct(model: SaliencyModel, part: SaliencyInputs, settings: SaliencySettings, first_timestep: int) -> torch.Tensor:
    slices = part.slices.to(model.device)
    embedding = model.embed(class_weights(model, part, None), part.positions)
    noise = draw_noise(part, settings.seed, NOISE_STREAM).to(model.device)
    samples = model.scheduler.add_noise(slices, noise, torch.tensor([first_timestep], device=model.device))
    absent = torch.zeros(slices.shape[0])
    path = torch.linspace(first_timestep, 0, settings.cg_diff_num_steps + 1).round().int().tolist()
    for timestep, previous in zip(path, path[1:], strict=False):
        timesteps = torch.full((slices.shape[0],), timestep, device=model.device)
        output = model.model_output(samples, timesteps, embedding)
        gradient = log_probability_gradient(model, samples, timesteps, part.class_index, absent)
        output = guide(model.scheduler, output, gradient, timestep, settings.cg_diff_guidance_scale)
        samples = ddim_step(model.scheduler, output, samples, timestep, previous)
    return (slices - samples).abs()[:, 0].cpu()
