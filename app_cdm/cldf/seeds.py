"""Seed pixels for contrastive learning: where gradient, activation and diffusion maps agree, and every pixel of a negative slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from app_cdm.config import Settings, SettingsError, ranged

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1


@dataclass(frozen=True)
class SeedSettings(Settings):
    """When a pixel of a positive slice is sure enough to be learned from.

    Attributes:
        use_cam: the activation map votes.
        use_gradient: the gradient map votes.
        use_saliency: the diffusion map votes.
        cam_foreground: foreground needs an activation, scaled to unit peak a slice, above this.
        cam_background: background needs one below this.
        gradient_foreground: foreground needs a gradient above this quantile of the body.
        gradient_background: background needs one below this quantile.
        saliency_foreground: foreground needs a diffusion map above this multiple of the volume's Otsu threshold.
        saliency_background: background needs one below this multiple.
        slice_smoothing: standard deviation of the diffusion map's smoothing along the slices, in slices.
    """

    use_cam: bool = True
    use_gradient: bool = True
    use_saliency: bool = True
    cam_foreground: float = ranged(0.3, 0.0, 1.0)
    cam_background: float = ranged(0.5, 0.0, 1.0)
    gradient_foreground: float = ranged(0.5, 0.0, 1.0)
    gradient_background: float = ranged(0.9, 0.0, 1.0)
    saliency_foreground: float = ranged(1.2, 0.0, 10.0)
    saliency_background: float = ranged(0.6, 0.0, 10.0)
    slice_smoothing: float = ranged(1.0, 0.0, 10.0)

    def check(self) -> None:
        if not (self.use_cam or self.use_gradient or self.use_saliency):
            raise SettingsError("SeedSettings: use_cam, use_gradient and use_saliency are all false; at least one map must vote")


@dataclass(frozen=True)
class SeedMaps:
    """What votes, for the S positive slices of one class in one volume.

    Attributes:
        cam: `(S, H, W)` activation map in [0, 1].
        gradient: `(S, H, W)` gradient map.
        saliency: `(S, H, W)` diffusion map, comparable between the slices of the volume.
        body: `(S, H, W)` bool, inside the body.
    """

    cam: np.ndarray
    gradient: np.ndarray
    saliency: np.ndarray
    body: np.ndarray


def find_seeds(maps: SeedMaps, settings: SeedSettings) -> np.ndarray:
    """Seeds of the positive slices of one volume.

    Foreground needs every vote, and of each slice's candidates the connected component with the most saliency is
    kept; background needs every vote for background. What is outside the body is background.

    Args:
        maps: the votes.
        settings: the limits.

    Returns:
        `(S, H, W)` int8: FOREGROUND, BACKGROUND or IGNORED.
    """
    foreground, background = maps.body.copy(), np.ones_like(maps.body)
    if settings.use_cam:
        foreground &= maps.cam > settings.cam_foreground
        background &= maps.cam < settings.cam_background
    if settings.use_gradient:
        high, low = (_quantiles(maps, share) for share in (settings.gradient_foreground, settings.gradient_background))
        foreground &= maps.gradient > high
        background &= maps.gradient < low
    if settings.use_saliency:
        inside = maps.saliency[maps.body]
        limit = threshold_otsu(inside) if inside.size and inside.max() > inside.min() else np.inf
        foreground &= maps.saliency > settings.saliency_foreground * limit
        background &= maps.saliency < settings.saliency_background * limit
    ranking = maps.saliency if settings.use_saliency else maps.cam + maps.gradient
    seeds = np.full(maps.body.shape, IGNORED, dtype=np.int8)
    seeds[background] = BACKGROUND
    for index in np.flatnonzero(foreground.any(axis=(1, 2))):
        labels, count = ndimage.label(foreground[index])
        mass = np.atleast_1d(ndimage.sum_labels(ranking[index], labels, np.arange(1, count + 1)))
        seeds[index][labels == 1 + int(mass.argmax())] = FOREGROUND
    seeds[~maps.body] = BACKGROUND
    return seeds


def _quantiles(maps: SeedMaps, share: float) -> np.ndarray:
    """`(S, 1, 1)` quantile of each slice's gradient inside the body."""
    found = [np.quantile(values[body], share) if body.any() else np.inf for values, body in zip(maps.gradient, maps.body, strict=True)]
    return np.asarray(found)[:, None, None]
