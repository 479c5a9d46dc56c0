"""Random geometry and contrast for batches of slices; drawing randomness is apart from applying it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from app_cdm.config import Settings, ranged


@dataclass(frozen=True)
class AugmentationSettings(Settings):
    """Strength of augmentation.

    Attributes:
        flip_probability: of a left-right mirror.
        rotation_degrees: largest rotation.
        scaling: largest relative change of size.
        translation: largest shift, as a fraction of the image side.
        gamma: standard deviation of the logarithm of the contrast exponent.
        gain: standard deviation of a smooth multiplicative intensity ramp (coil bias).
    """

    flip_probability: float = ranged(0.5, 0.0, 1.0)
    rotation_degrees: float = ranged(12.0, 0.0, 180.0)
    scaling: float = ranged(0.12, 0.0, 0.9)
    translation: float = ranged(0.05, 0.0, 0.5)
    gamma: float = ranged(0.25, 0.0, 1.0)
    gain: float = ranged(0.1, 0.0, 1.0)


@dataclass(frozen=True)
class DrawnAugmentation:
    """One random transform a slice; drawn apart from being applied, so that images and masks share it.

    Attributes:
        grid: `(B, H, W, 2)` sampling positions in [-1, 1], x before y.
        exponent: `(B, 1, 1, 1)` contrast exponent.
        ramp: `(B, 1, H, W)` multiplicative intensity ramp.
    """

    grid: torch.Tensor
    exponent: torch.Tensor
    ramp: torch.Tensor

    def on_images(self, slices: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` slices in [-1, 1], moved and re-contrasted; what comes from outside the image is -1."""
        moved = self.on_maps(slices + 1) * 0.5  # shifted by one so that zero padding means background
        return (moved.clamp_min(0).pow(self.exponent) * self.ramp).clamp(0, 1) * 2 - 1

    def on_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` maps, moved alone; what comes from outside is 0."""
        return F.grid_sample(maps, self.grid, padding_mode="zeros", align_corners=False)


def draw_augmentation(shape: torch.Size, settings: AugmentationSettings, generator: torch.Generator) -> DrawnAugmentation:
    """Draws a transform for every slice of a batch.

    Args:
        shape: `(B, C, H, W)` of the batch.
        settings: strength.
        generator: source of randomness.
    """
    batch = shape[0]
    draw = torch.rand(batch, 5, generator=generator) * 2 - 1
    normal = torch.randn(batch, 3, generator=generator)
    mirror = torch.where(torch.rand(batch, generator=generator) < settings.flip_probability, -1.0, 1.0)
    angle = draw[:, 0] * math.radians(settings.rotation_degrees)
    scale = 1 + draw[:, 1:3] * settings.scaling
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = mirror * torch.cos(angle) * scale[:, 0]
    theta[:, 0, 1] = -torch.sin(angle) * scale[:, 0]
    theta[:, 1, 0] = mirror * torch.sin(angle) * scale[:, 1]
    theta[:, 1, 1] = torch.cos(angle) * scale[:, 1]
    theta[:, :, 2] = draw[:, 3:5] * settings.translation * 2
    grid = F.affine_grid(theta, list(shape), align_corners=False)
    exponent = torch.exp(normal[:, 0] * settings.gamma)[:, None, None, None]
    ramp = 1 + settings.gain * (normal[:, 1, None, None] * grid[..., 0] + normal[:, 2, None, None] * grid[..., 1])[:, None]
    return DrawnAugmentation(grid, exponent, ramp)


def augment(slices: torch.Tensor, settings: AugmentationSettings, generator: torch.Generator) -> torch.Tensor:
    """Mirrors, turns, scales, shifts and re-contrasts each slice on its own.

    Args:
        slices: `(B, C, H, W)` in [-1, 1].
        settings: strength.
        generator: source of randomness.

    Returns:
        A new `(B, C, H, W)` tensor in [-1, 1]; what comes from outside the image is -1.
    """
    return draw_augmentation(slices.shape, settings, generator).on_images(slices)
