"""Parallel CDM: several noise levels, the draws of each in one batch, instead of neighbouring steps of one trajectory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from app_cdm.config import SaliencySettings
from app_cdm.diffusion.process import find_timestep
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel, chunks, class_weights, draw_noise, signed
from app_cdm.saliency.guidance import logit_gradient

Difference = Callable[[SaliencyModel, SaliencyInputs, torch.Tensor, torch.Tensor], torch.Tensor]


def parallel_saliency(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings) -> torch.Tensor:
    """Mean over noise levels of x0(present) - x0(absent), each level divided by its own standard deviation.

    With a shared x_t the steps of Algorithm 1 (Hu et al. 2023) are to first order the difference of the two predicted
    clean images at one noise level; draws and levels average its noise, which further steps do not.

    *Differs from the paper:* independent levels and draws, no trajectory, conditions fully present and absent
    (tau = 0), optional mirror image.

    Args:
        model: the networks.
        inputs: S slices and the class.
        settings: `noise_levels`, `num_draws`, `flip`, `guidance_scale`, `sign`, `seed` and `batch_images` are used.

    Returns:
        `(S, H, W)` float32, large where the target is.
    """
    return average_levels(model, inputs, settings, _difference)


def average_levels(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings, difference: Difference) -> torch.Tensor:
    """Averages a difference of predicted images over levels, draws and mirror images.

    Args:
        model: the networks.
        inputs: S slices and the class.
        settings: as in `parallel_saliency`.
        difference: gives `(B, 1, H, W)` for inputs, x_t and timesteps of B images.
    """
    levels = level_differences(model, inputs, settings, difference)
    spread = levels.flatten(2).std(dim=2).clamp_min(1e-12)[:, :, None, None]
    return signed(levels / spread, settings).mean(dim=0)


def level_differences(
    model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings, difference: Difference | None = None
) -> torch.Tensor:
    """Mean over draws and mirror images of x0(present) - x0(absent) at every noise level, as it is: comparable between slices.

    Args:
        model: the networks.
        inputs: S slices and the class.
        settings: as in `parallel_saliency`.
        difference: as in `average_levels`; x0(present) - x0(absent) where None.

    Returns:
        `(L, S, H, W)` float32.
    """
    images_per_slice = 2 * settings.num_draws * (2 if settings.flip else 1)
    maps = []
    for part in chunks(inputs, images_per_slice, settings.batch_images):
        by_level = [
            _level_map(model, part, settings, difference or _difference, noise_level, position)
            for position, noise_level in enumerate(settings.noise_levels)
        ]
        maps.append(torch.stack(by_level))
    return torch.cat(maps, dim=1)


def _level_map(
    model: SaliencyModel, part: SaliencyInputs, settings: SaliencySettings, difference: Difference, noise_level: float, position: int
) -> torch.Tensor:
    """`(S, H, W)` mean difference at one noise level; draws and mirror images share forward calls of at most `batch_images`."""
    timestep = find_timestep(model.scheduler, noise_level)
    streams = range(position * settings.num_draws, (position + 1) * settings.num_draws)
    views = [(stream, mirror) for stream in streams for mirror in ((False, True) if settings.flip else (False,))]
    views_per_call = max(1, settings.batch_images // (2 * part.slices.shape[0]))
    total = torch.zeros(part.slices.shape[0], *part.slices.shape[2:])
    for start in range(0, len(views), views_per_call):
        total += _views_sum(model, part, settings, difference, timestep, views[start : start + views_per_call])
    return total / len(views)


def _views_sum(
    model: SaliencyModel,
    part: SaliencyInputs,
    settings: SaliencySettings,
    difference: Difference,
    timestep: int,
    views: list[tuple[int, bool]],
) -> torch.Tensor:
    """`(S, H, W)` sum of the differences of (noise stream, is mirrored) views, mirrored back; one call for all."""
    noise = torch.cat([draw_noise(part, settings.seed, stream) for stream, _ in views]).to(model.device)
    slices = torch.cat([part.slices.flip(-1) if mirror else part.slices for _, mirror in views]).to(model.device)
    repeated = SaliencyInputs(slices, part.positions.repeat(len(views)), part.slice_indices * len(views), part.class_index)
    timesteps = torch.full((slices.shape[0],), timestep, device=model.device)
    samples = model.scheduler.add_noise(slices, noise, timesteps)
    maps = difference(model, repeated, samples, timesteps)
    if settings.guidance_scale > 0:
        # eps <- eps - sigma s grad log p moves x0 by sigma^2 s / alpha grad log p, with opposite y in the two branches.
        alpha_bar = float(model.scheduler.alphas_cumprod[timestep])
        factor = settings.guidance_scale * (1 - alpha_bar) / alpha_bar**0.5
        maps = maps + factor * logit_gradient(model, samples, timesteps, part.class_index)
    by_view = maps[:, 0].cpu().split(part.slices.shape[0])
    return torch.stack([view.flip(-1) if mirror else view for view, (_, mirror) in zip(by_view, views, strict=True)]).sum(dim=0)


def _difference(model: SaliencyModel, inputs: SaliencyInputs, samples: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """x0(present) - x0(absent) by one call with both conditions; subtracted in float32."""
    weights = torch.cat([class_weights(model, inputs, presence) for presence in (1.0, 0.0)])
    embedding = model.embed(weights, inputs.positions.repeat(2))
    present, absent = model.original_samples(samples.repeat(2, 1, 1, 1), timesteps.repeat(2), embedding).chunk(2)
    return present - absent
