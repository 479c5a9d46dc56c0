"""Saliency to mask: threshold, components, consistency along the slicing axis."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu

from app_cdm.config import MaskSettings
from app_cdm.data.body import find_body
from app_cdm.data.slices import SliceGeometry

LEAST_PEAK = 0.9
PEAK_SHARE = 0.002  # of a slice's pixels, whose mean is its peak
MAX_FACTOR = 50.0


def smooth_along_slices(maps: np.ndarray, positive: np.ndarray, spacing_mm: float, smoothing_mm: float) -> np.ndarray:
    """Gaussian smoothing of `(S, H, W)` maps along the slicing axis, over positive slices alone.

    Args:
        maps: saliency; slices that are not positive are ignored and stay as they are.
        positive: `(S,)` bool.
        spacing_mm: distance between slices.
        smoothing_mm: standard deviation; 0 is none.
    """
    if smoothing_mm <= 0 or positive.sum() < 2:
        return maps
    weights = positive.astype(np.float32)
    sigma = smoothing_mm / spacing_mm
    total = ndimage.gaussian_filter1d(maps * weights[:, None, None], sigma, axis=0, mode="constant")
    norm = ndimage.gaussian_filter1d(weights, sigma, mode="constant")
    smoothed = maps.copy()
    smoothed[positive] = (total / np.maximum(norm, 1e-6)[:, None, None])[positive]
    return smoothed


def raise_peaks(maps: np.ndarray, least_peak: float) -> np.ndarray:
    """Scales the maps of slices that are known to hold the class so that each reaches a peak, if it does not already.

    Given that a slice holds the class, p(pixel | present) = p(pixel) / p(present) (Bayes); what a network is unsure of on a
    hard slice is mostly whether there is anything at all, and that the gate or the tag has decided.

    Args:
        maps: `(S, H, W)` in [0, 1], positive slices.
        least_peak: the peak, as the mean of the highest two thousandths of the pixels; 0 changes nothing.

    Returns:
        `(S, H, W)` in [0, 1].
    """
    if least_peak <= 0 or not len(maps):
        return maps
    flat = maps.reshape(len(maps), -1)
    count = max(1, round(flat.shape[1] * PEAK_SHARE))
    peaks = np.partition(flat, -count, axis=1)[:, -count:].mean(axis=1)
    factors = np.clip(least_peak / np.maximum(peaks, 1e-6), 1.0, MAX_FACTOR)
    return np.asarray(np.minimum(maps * factors[:, None, None], 1.0), dtype=maps.dtype)


def thresholds(maps: np.ndarray, slices: np.ndarray, positive: np.ndarray, settings: MaskSettings) -> np.ndarray:
    """`(S,)` threshold of each slice; infinite where a slice is not positive or its map is flat.

    `otsu` is found per slice, `otsu_volume` over all positive slices together (Otsu 1979), both within the body.

    Args:
        maps: `(S, H, W)` saliency in [0, 1].
        slices: `(S, H, W)` images in [-1, 1].
        positive: `(S,)` bool.
        settings: the rule.
    """
    result = np.full(maps.shape[0], np.inf)
    body = find_body(slices)
    if settings.threshold_rule == "fixed":
        result[positive] = settings.fixed_threshold
    elif settings.threshold_rule == "otsu_volume":
        result[positive] = _otsu(maps[positive][body[positive]])
    else:
        for index in np.flatnonzero(positive):
            result[index] = _otsu(maps[index][body[index]])
    return result


def _otsu(values: np.ndarray) -> float:
    return float(threshold_otsu(values)) if values.size and values.max() > values.min() else float("inf")


def keep_components(mask: np.ndarray, maps: np.ndarray, settings: MaskSettings) -> np.ndarray:
    """`(S, H, W)` bool with only the components that the settings keep, per slice.

    `largest` keeps the component with the largest sum of saliency; `all` those of at least `min_component_px`.
    """
    kept = np.zeros_like(mask)
    for index in np.flatnonzero(mask.any(axis=(1, 2))):
        labels, count = ndimage.label(mask[index])
        ids = np.arange(1, count + 1)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        if settings.components == "largest":
            mass = np.atleast_1d(ndimage.sum_labels(maps[index], labels, ids))
            ids = ids[[int(mass.argmax())]]
        ids = ids[sizes[ids - 1] >= settings.min_component_px]
        kept[index] = np.isin(labels, ids)
    return kept


def masks_on_source_grid(maps: np.ndarray, limits: np.ndarray, kept: np.ndarray, geometry: SliceGeometry) -> np.ndarray:
    """`(X, Y, Z)` bool: the kept components at the resolution of the file.

    The map, not the mask, is resampled, so that the border follows it below network resolution.

    Args:
        maps: `(S, H, W)` saliency.
        limits: `(S,)` thresholds.
        kept: `(S, H, W)` bool, what is left of `maps > limits`.
        geometry: how the slices were cut.
    """
    finite = np.where(np.isfinite(limits), limits, 2.0).astype(np.float32)
    above = np.maximum(maps - finite[:, None, None], 1e-4)
    below = np.minimum(maps - finite[:, None, None], -1e-4)
    # What was not kept stays below the threshold, even where its own map is above.
    surface = np.where(kept, above, below)
    surface[~kept.any(axis=(1, 2))] = -1.0
    return geometry.to_mask(torch.from_numpy(surface.astype(np.float32)))
