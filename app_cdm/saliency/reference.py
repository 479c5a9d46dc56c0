"""CDM exactly as published: two deterministic trajectories under two conditions."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from app_cdm.config import SaliencySettings
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel, chunks, class_weights, draw_noise, signed, start_timestep
from app_cdm.saliency.guidance import log_probability_gradient

NOISE_STREAM = 100_000


def reference_saliency(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings) -> torch.Tensor:
    """Sum over R steps of (x_{t-1} - x'_{t-1}) / (1 - tau) (Hu et al. 2023, Algorithm 1).

    Both trajectories start from one noised image; the first is conditioned on f(present), the second on
    tau f(present) + (1 - tau) f(absent). As in the published loop, t is lowered before the first call. The optional
    guidance of CG-CDM gives each branch its own y. Exactly 2 R evaluations a slice, in R calls of both branches.

    *Differs from the paper:* sigma_Q in place of Q, which means nothing without the schedule; a class dropped in
    training; the slice position in both conditions; the map is scaled per image, never over a batch.

    Args:
        model: the networks.
        inputs: S slices and the class.
        settings: `condition_mix`, `num_denoising_steps`, `reference_noise_level`, `guidance_scale`, `sign`, `seed`.

    Returns:
        `(S, H, W)` float32, large where the target is.

    Raises:
        ValueError: R is larger than the timestep of the noise level.
    """
    first_timestep = start_timestep(model, settings.reference_noise_level, settings.num_denoising_steps, "num_denoising_steps")
    parts = [_accumulate(model, part, settings, first_timestep) for part in chunks(inputs, 2, settings.batch_images)]
    return signed(torch.cat(parts), settings)


def _accumulate(model: SaliencyModel, part: SaliencyInputs, settings: SaliencySettings, first_timestep: int) -> torch.Tensor:
    tau, count = settings.condition_mix, part.slices.shape[0]
    ddim = DDIMScheduler.from_config(model.scheduler.config)
    ddim.set_timesteps(ddim.config.num_train_timesteps)
    presence = torch.cat([torch.ones(count), torch.full((count,), tau)])
    weights = torch.cat([class_weights(model, part, 1.0), class_weights(model, part, tau)])
    embedding = model.embed(weights, part.positions.repeat(2))
    noise = draw_noise(part, settings.seed, NOISE_STREAM).to(model.device)
    start = torch.tensor([first_timestep], device=model.device)
    samples = model.scheduler.add_noise(part.slices.to(model.device), noise, start).repeat(2, 1, 1, 1)
    total = torch.zeros(count, *part.slices.shape[2:])
    for timestep in range(first_timestep - 1, first_timestep - 1 - settings.num_denoising_steps, -1):
        timesteps = torch.full((2 * count,), timestep, device=model.device)
        output = model.model_output(samples, timesteps, embedding)
        if settings.guidance_scale > 0:
            gradient = log_probability_gradient(model, samples, timesteps, part.class_index, presence)
            output = guide(ddim, output, gradient, timestep, settings.guidance_scale)
        samples = ddim.step(output, timestep, samples, eta=0.0).prev_sample
        present, blended = samples.chunk(2)
        total += ((present - blended) / (1.0 - tau))[:, 0].cpu()
    return total


def guide(
    scheduler: DDPMScheduler | DDIMScheduler, output: torch.Tensor, gradient: torch.Tensor, timestep: int, guidance_scale: float
) -> torch.Tensor:
    """Classifier guidance, eps <- eps - sigma s grad log p, on a network output of either prediction type.

    Dhariwal & Nichol 2021, Algorithm 2. For v = alpha eps - sigma x0 and x_t fixed, d v = d eps / alpha.
    """
    alpha_bar = float(scheduler.alphas_cumprod[timestep])
    change = -((1 - alpha_bar) ** 0.5) * guidance_scale * gradient
    return output + (change / alpha_bar**0.5 if scheduler.config.prediction_type == "v_prediction" else change)
