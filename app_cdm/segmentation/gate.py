"""Which slices hold a class: log-odds of the classifier and, where there is one, the student, made consistent along the slicing axis."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage, special

from app_cdm.config import MaskSettings
from app_cdm.networks.classifier import NoiseConditionalClassifier

MAX_LOGIT = 12.0
TOP_SHARE = 0.01  # of the pixels of a map, which speak for the slice
SURE_LOGIT = 4.0  # log-odds of maps from which nobody else is asked
REACH_MM = 6.0  # as far as the widest smoothing of scores that is chosen from


def slice_logits(classifier: NoiseConditionalClassifier, slices: torch.Tensor, batch_images: int = 64) -> torch.Tensor:
    """`(S, C)` log-odds of each class in clean slices.

    Args:
        classifier: of clean and noised slices.
        slices: `(S, 1, H, W)` in [-1, 1].
        batch_images: most images in one call.
    """
    results = []
    with torch.no_grad():
        for part in slices.split(max(1, batch_images)):
            timesteps = torch.zeros(part.shape[0], dtype=torch.long, device=classifier.device)
            results.append(classifier(part.to(classifier.device), timesteps).cpu())
    return torch.cat(results)


def map_logits(maps: np.ndarray) -> np.ndarray:
    """`(S,)` log-odds that each slice of an `(S, H, W)` map of probabilities holds the target: the mean over the highest hundredth."""
    pixels = maps.reshape(len(maps), -1)
    count = max(1, round(TOP_SHARE * pixels.shape[1]))
    top = np.partition(pixels, pixels.shape[1] - count, axis=1)[:, -count:]
    return np.asarray(np.clip(special.logit(top.astype(np.float64)), -MAX_LOGIT, MAX_LOGIT).mean(axis=1))


def joint_logits(
    of_maps: np.ndarray, classify: Callable[[np.ndarray], np.ndarray], slice_spacing_mm: float, exclusive_classes: bool = False
) -> np.ndarray:
    """`(S, C)` log-odds of two networks that err differently: the mean of a map's and the classifier's.

    Where the maps are sure of every class, and of the same within reach, the classifier is not asked, and their log-odds stand alone. Maps
    of classes that exclude each other tell where one of them is, not which: of these they can only be sure that there is none.

    Args:
        of_maps: `(S, C)` of `map_logits`.
        classify: `(n,)` indices of slices to their `(n, C)` log-odds.
        slice_spacing_mm: distance between slices.
        exclusive_classes: whether a slice holds one class at most.
    """
    size = 2 * math.ceil(REACH_MM / slice_spacing_mm) + 1
    highest, lowest = (find(of_maps, size, axis=0, mode="nearest") for find in (ndimage.maximum_filter1d, ndimage.minimum_filter1d))
    is_sure = highest < -SURE_LOGIT
    if not exclusive_classes:
        is_sure |= lowest > SURE_LOGIT
    asked = np.flatnonzero(~is_sure.all(axis=1))
    joint = of_maps.copy()
    if len(asked):
        joint[asked] = (joint[asked] + np.clip(classify(asked), -MAX_LOGIT, MAX_LOGIT)) / 2
    return joint


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


def is_likeliest(scores: np.ndarray, exclusive_classes: bool) -> np.ndarray:
    """`(S, C)` bool: where a class may be decided for. Of classes that exclude each other only the one with the highest score of a slice.

    Args:
        scores: `(S, C)`.
        exclusive_classes: whether a slice holds one class at most; otherwise every class may be decided for.
    """
    allowed = np.ones(scores.shape, dtype=bool)
    if exclusive_classes:
        allowed[:] = np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None]
    return allowed


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


def decide(scores: np.ndarray, settings: MaskSettings, exclusive_classes: bool) -> np.ndarray:
    """`(S, C)` bool: `positive_slices` of every class, of classes that exclude each other among the slices where it is the likeliest.

    With the gate off every slice counts for every class that is asked for.

    Args:
        scores: `(S, C)`.
        settings: the gate.
        exclusive_classes: whether a slice holds one class at most.
    """
    contested = np.where(is_likeliest(scores, exclusive_classes), scores, -1.0)  # -1: below every threshold, so runs end there
    return np.stack([positive_slices(of_class, settings) for of_class in contested.T], axis=1)
