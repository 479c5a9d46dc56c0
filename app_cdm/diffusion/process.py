"""The forward process and its inverse at one noise level, in the words of diffusers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler


def patchify(slices: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Space to depth: `(B, 1, H, W)` to `(B, patch_size ** 2, H / patch_size, W / patch_size)`; a permutation, so noise stays white."""
    return F.pixel_unshuffle(slices, patch_size) if patch_size > 1 else slices


def unpatchify(samples: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Depth to space, the inverse of `patchify`."""
    return F.pixel_shuffle(samples, patch_size) if patch_size > 1 else samples


def noise_levels(scheduler: DDPMScheduler) -> torch.Tensor:
    """`(T,)` sigma_t = sqrt(1 - alpha_bar_t) of every training timestep."""
    return (1.0 - scheduler.alphas_cumprod).sqrt()


def find_timestep(scheduler: DDPMScheduler, noise_level: float) -> int:
    """The training timestep whose sigma is closest to `noise_level`.

    Raises:
        ValueError: the level is not within the schedule.
    """
    levels = noise_levels(scheduler)
    if not float(levels[0]) * 0.5 <= noise_level <= float(levels[-1]):
        raise ValueError(f"noise level {noise_level}: the schedule reaches from {float(levels[0]):.3f} to {float(levels[-1]):.3f}")
    return int((levels - noise_level).abs().argmin())


def predict_original_sample(
    scheduler: DDPMScheduler, model_output: torch.Tensor, samples: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """x0 predicted from `x_t` and the network's output (v or noise prediction), in float32.

    v-prediction: x0 = alpha_t x_t - sigma_t v (Salimans & Ho 2022, appendix D).

    Args:
        scheduler: tells alpha_bar and the prediction type.
        model_output: `(B, C, H, W)`.
        samples: `(B, C, H, W)` x_t.
        timesteps: `(B,)` int64.
    """
    alpha_bar = scheduler.alphas_cumprod.to(samples.device)[timesteps].view(-1, 1, 1, 1)
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    output, samples = model_output.float(), samples.float()
    if scheduler.config.prediction_type == "v_prediction":
        return alpha * samples - sigma * output
    return (samples - sigma * output) / alpha


def ddim_step(
    scheduler: DDPMScheduler, model_output: torch.Tensor, samples: torch.Tensor, timestep: int, previous_timestep: int
) -> torch.Tensor:
    """Samples at `previous_timestep` from those at `timestep`, deterministic (DDIM, Song et al. 2021, equation 12 with eta = 0).

    diffusers' `DDIMScheduler` knows equal strides alone; this one steps between any two timesteps.

    Args:
        scheduler: tells alpha_bar and the prediction type.
        model_output: `(B, C, H, W)`.
        samples: `(B, C, H, W)` x_t.
        timestep: t of `samples`.
        previous_timestep: t of the result; 0 gives the predicted clean image itself.
    """
    timesteps = torch.full((samples.shape[0],), timestep, device=samples.device)
    original = predict_original_sample(scheduler, model_output, samples, timesteps)
    if previous_timestep == 0:
        return original
    alpha_bar = float(scheduler.alphas_cumprod[timestep])
    noise = (samples.float() - alpha_bar**0.5 * original) / (1 - alpha_bar) ** 0.5
    return scheduler.add_noise(original, noise, torch.full_like(timesteps, previous_timestep))


def slice_generator(seed: int, slice_index: int, stream: int = 0) -> torch.Generator:
    """A CPU generator of a slice's own, so that batch size and order cannot change its noise.

    Args:
        seed: the user's seed.
        slice_index: index of the slice in its stack.
        stream: which of several independent draws.
    """
    mixed = (seed * 1_000_003 + slice_index) * 8191 + stream
    return torch.Generator().manual_seed(mixed % (2**63 - 1))
