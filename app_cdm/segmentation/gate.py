"""Which slices hold a class: the classifier's probability, made consistent along the slicing axis."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from app_cdm.config import MaskSettings
from app_cdm.networks.classifier import NoiseConditionalClassifier

MAX_LOGIT = 12.0


def slice_logits(classifier: NoiseConditionalClassifier, slices: torch.Tensor, batch_images: int = 64) -> torch.Tensor:
    """`(S, C)` log-odds of each class in clean slices, the mean of a slice and its mirror image.

    Args:
        classifier: of clean and noised slices.
        slices: `(S, 1, H, W)` in [-1, 1].
        batch_images: most images in one call.
    """
    device, results = classifier.device, []
    with torch.no_grad():
        for start in range(0, slices.shape[0], max(1, batch_images // 2)):
            part = slices[start : start + max(1, batch_images // 2)].to(device)
            both = torch.cat([part, part.flip(-1)])
            timesteps = torch.zeros(both.shape[0], dtype=torch.long, device=device)
            first, second = classifier(both, timesteps).chunk(2)
            results.append(((first + second) / 2).cpu())
    return torch.cat(results)


def slice_scores(logits: np.ndarray, slice_spacing_mm: float, smoothing_mm: float) -> np.ndarray:
    """Probability that each slice holds the class, from log-odds smoothed along the slicing axis.

    Args:
        logits: `(S,)`.
        slice_spacing_mm: distance between slices.
        smoothing_mm: standard deviation of the smoothing; 0 is none.

    Returns:
        `(S,)` in [0, 1].
    """
    clipped = np.clip(logits.astype(np.float64), -MAX_LOGIT, MAX_LOGIT)
    if smoothing_mm > 0 and clipped.size > 1:
        clipped = ndimage.gaussian_filter1d(clipped, smoothing_mm / slice_spacing_mm, mode="nearest")
    return np.asarray(1.0 / (1.0 + np.exp(-clipped)))


def positive_slices(scores: np.ndarray, settings: MaskSettings) -> np.ndarray:
    """`(S,)` bool: slices at or above the gate's threshold, without runs shorter than `slice_consistency`.

    Short runs stay where there is no longer one, so that a small lesion on a single slice is not lost.
    """
    if settings.gate == "off":
        return np.ones(scores.shape, dtype=bool)
    chosen = scores >= settings.gate_threshold
    runs, count = ndimage.label(chosen)
    lengths = np.bincount(runs.ravel(), minlength=count + 1)
    long_enough = lengths >= settings.slice_consistency
    long_enough[0] = False
    return np.asarray(long_enough[runs] if long_enough.any() else chosen)
