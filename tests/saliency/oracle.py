"""The saliency methods once more, slice by slice in float64 and straight from the formulas: oracles for the tests.

Nothing of `app_cdm.saliency` runs here but the noise, which is pinned by its seeds.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from app_cdm.config import SaliencySettings
from app_cdm.diffusion.process import slice_generator
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel


@dataclass(frozen=True)
class SliceOracle:
    """One slice and the networks in float64; every method below is a formula of the papers.

    Attributes:
        model: networks, any precision; copied to float64.
        x0: `(1, 1, H, W)`.
        position: of the slice, NaN where unknown.
        index: of the slice in its volume.
        class_index: the class in question.
    """

    model: SaliencyModel
    x0: torch.Tensor
    position: torch.Tensor
    index: int
    class_index: int

    def embedding(self, presence: float | None) -> torch.Tensor:
        """F(y) for a class present to a degree, or f(null); every other class null."""
        weights = torch.zeros(1, self.model.num_classes, 3, dtype=torch.double)
        weights[:, :, 2] = 1
        if presence is not None:
            weights[0, self.class_index] = torch.tensor([1 - presence, presence, 0], dtype=torch.double)
        return self.model.condition_embedding(weights, self.position)

    def bar(self, t: int) -> float:
        """alpha_bar_t, 1 for the clean image."""
        return float(self.model.scheduler.alphas_cumprod[t]) if t >= 0 else 1.0

    def noisy(self, t: int, stream: int, seed: int, mirrored: bool = False) -> torch.Tensor:
        """x_t in closed form."""
        noise = torch.randn(self.x0.shape[1:], generator=slice_generator(seed, self.index, stream))[None].double()
        x0 = self.x0.flip(-1) if mirrored else self.x0
        return math.sqrt(self.bar(t)) * x0 + math.sqrt(1 - self.bar(t)) * noise

    def noise_prediction(self, x: torch.Tensor, t: int, embedding: torch.Tensor) -> torch.Tensor:
        """eps(x_t, t, f)."""
        side, p = x.shape[-1], self.model.patch_size
        patches = x.view(1, side // p, p, side // p, p).permute(0, 2, 4, 1, 3).reshape(1, p * p, side // p, side // p)
        output = self.model.unet(patches, torch.tensor([t]), embedding).sample
        output = output.view(1, p, p, side // p, side // p).permute(0, 3, 1, 4, 2).reshape(1, 1, side, side)
        if self.model.scheduler.config.prediction_type == "epsilon":
            return output
        return math.sqrt(self.bar(t)) * output + math.sqrt(1 - self.bar(t)) * x

    def guided(self, eps: torch.Tensor, x: torch.Tensor, t: int, presence: float, scale: float) -> torch.Tensor:
        """Eps - sigma s grad_x [p log p(present) + (1 - p) log p(absent)]."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            logit = self.model.classifier(leaf, torch.tensor([t]))[:, self.class_index]
            log_p = presence * F.logsigmoid(logit) + (1 - presence) * F.logsigmoid(-logit)
            gradient = torch.autograd.grad(log_p.sum(), leaf)[0]
        return eps - math.sqrt(1 - self.bar(t)) * scale * gradient

    def x0_of(self, x: torch.Tensor, eps: torch.Tensor, t: int) -> torch.Tensor:
        """Predicted clean image."""
        return (x - math.sqrt(1 - self.bar(t)) * eps) / math.sqrt(self.bar(t))

    def timestep(self, level: float) -> int:
        """The nearest timestep by search."""
        return min(range(1000), key=lambda t: abs(math.sqrt(1 - self.bar(t)) - level))


def slice_oracles(model: SaliencyModel, inputs: SaliencyInputs) -> list[SliceOracle]:
    """One oracle a slice, on a float64 copy of the networks."""
    double = SaliencyModel(
        *(
            torch.nn.Module.to(copy.deepcopy(network), torch.double)
            for network in (model.unet, model.condition_embedding, model.classifier)
        ),
        model.scheduler,
        model.patch_size,
    )
    return [
        SliceOracle(double, inputs.slices[i : i + 1].double(), inputs.positions[i : i + 1], index, inputs.class_index)
        for i, index in enumerate(inputs.slice_indices)
    ]


@torch.no_grad()
def algorithm_1(oracle: SliceOracle, settings: SaliencySettings, stream: int) -> torch.Tensor:
    """Hu et al. 2023, Algorithm 1, `(H, W)`; t is lowered before the first call, as published."""
    tau, t = settings.condition_mix, oracle.timestep(settings.reference_noise_level)
    f1, f0 = oracle.embedding(1.0), oracle.embedding(0.0)
    x = x_prime = oracle.noisy(t, stream, settings.seed)
    a = torch.zeros_like(x)
    for _ in range(settings.num_denoising_steps):
        t -= 1
        following = []
        for sample, f, presence in ((x, f1, 1.0), (x_prime, tau * f1 + (1 - tau) * f0, tau)):
            eps = oracle.noise_prediction(sample, t, f)
            if settings.guidance_scale:
                eps = oracle.guided(eps, sample, t, presence, settings.guidance_scale)
            clean = oracle.x0_of(sample, eps, t)
            following.append(math.sqrt(oracle.bar(t - 1)) * clean + math.sqrt(1 - oracle.bar(t - 1)) * eps)
        x, x_prime = following
        a += (x - x_prime) / (1 - tau)
    return a[0, 0]


@torch.no_grad()
def mean_over_levels(oracle: SliceOracle, settings: SaliencySettings) -> torch.Tensor:
    """x0(present) - x0(absent), averaged over draws and mirrors, divided by its deviation, averaged over levels."""
    total = torch.zeros(oracle.x0.shape[2:], dtype=torch.double)
    for number, level in enumerate(settings.noise_levels):
        t, differences = oracle.timestep(level), []
        for draw in range(settings.num_draws):
            for mirrored in (False, True) if settings.flip else (False,):
                x = oracle.noisy(t, number * settings.num_draws + draw, settings.seed, mirrored)
                clean = []
                for presence in (1.0, 0.0):
                    eps = oracle.noise_prediction(x, t, oracle.embedding(presence))
                    if settings.guidance_scale:
                        eps = oracle.guided(eps, x, t, presence, settings.guidance_scale)
                    clean.append(oracle.x0_of(x, eps, t))
                difference = (clean[0] - clean[1])[0, 0]
                differences.append(difference.flip(-1) if mirrored else difference)
        mean = torch.stack(differences).mean(dim=0)
        total += mean / mean.std()
    return total / len(settings.noise_levels)


@torch.no_grad()
def cg_diff(oracle: SliceOracle, settings: SaliencySettings, stream: int) -> torch.Tensor:
    """|x0 - reconstruction| of a denoising with the null condition, guided towards absence, `(H, W)`."""
    first, steps = oracle.timestep(settings.cg_diff_noise_level), settings.cg_diff_num_steps
    x = oracle.noisy(first, stream, settings.seed)
    times = [round(first * (steps - k) / steps) for k in range(steps + 1)]
    for t, previous in zip(times, times[1:], strict=False):
        eps = oracle.guided(oracle.noise_prediction(x, t, oracle.embedding(None)), x, t, 0.0, settings.cg_diff_guidance_scale)
        clean = oracle.x0_of(x, eps, t)
        bar = oracle.bar(previous) if previous else 1.0
        x = math.sqrt(bar) * clean + math.sqrt(1 - bar) * eps
    return (oracle.x0 - x).abs()[0, 0]


@torch.no_grad()
def forward_process(oracle: SliceOracle, settings: SaliencySettings, first_stream: int) -> tuple[torch.Tensor, int]:
    """Mean of (x0_h - x0)^2 over the levels up to the one where x0_h and x0(null) differ most, and that level's number.

    Guidance on the noise prediction, eps = 3 eps(absent) - 2 eps(null), as in Che et al. 2024 with w = 2.
    """
    errors, gaps = [], []
    for level in settings.forward_process_noise_levels:
        t, error, gap = oracle.timestep(level), 0.0, 0.0
        for draw in range(settings.num_draws):
            x = oracle.noisy(t, first_stream + draw, settings.seed)
            absent, null = (oracle.noise_prediction(x, t, oracle.embedding(presence)) for presence in (0.0, None))
            healthy = oracle.x0_of(x, 3 * absent - 2 * null, t)
            error = error + (healthy - oracle.x0)[0, 0] ** 2
            gap = gap + float(((healthy - oracle.x0_of(x, null, t)) ** 2).mean())
        errors.append(error / settings.num_draws)
        gaps.append(gap)
    end = max(range(len(gaps)), key=lambda number: gaps[number])
    return torch.stack(errors[: end + 1]).mean(dim=0), end
